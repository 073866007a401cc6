//! Authorities: a host and a port, as a request names its destination (N3, N4, N7).

use std::fmt;
use std::net::IpAddr;

use super::host::{Host, InvalidHost};
use crate::name::text_form;

/// Says why a text is not an authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAuthority {
    /// The host is not one; the message is the host's.
    #[error(transparent)]
    Host(#[from] InvalidHost),
    /// The port is missing where it has to be given.
    #[error("`{}` has no port; write `HOST:PORT`", .0.escape_debug())]
    NoPort(String),
    /// The port is not a plain decimal number from 1 to 65535.
    #[error("`{}` is not a port; a port is a number from 1 to 65535", .0.escape_debug())]
    Port(String),
    /// A user name or password stands before the host.
    #[error("a user name before the host is not accepted; nothing may stand before an `@`")]
    Userinfo,
    /// An IPv6 address without brackets, so that its end is unclear.
    #[error("`{}` is ambiguous; write an IPv6 address in brackets, like `[2001:db8::1]:443`", .0.escape_debug())]
    Unbracketed(String),
    /// Brackets that do not hold exactly an IPv6 address.
    #[error("`{}` has brackets around something else than an IPv6 address", .0.escape_debug())]
    Brackets(String),
}

/// A host and a port in canonical form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Authority {
    host: Host,
    port: u16,
}

impl Authority {
    /// Joins a host and a port.
    ///
    /// # Errors
    /// When the port is 0.
    pub fn new(host: Host, port: u16) -> Result<Self, InvalidAuthority> {
        if port == 0 {
            return Err(InvalidAuthority::Port("0".to_owned()));
        }
        let host = match host {
            Host::Name(name) => Host::Name(name),
            // `Host::Ip` can be written by hand, so the canonical form is made sure of here.
            Host::Ip(address) => Host::from(address),
        };
        Ok(Self { host, port })
    }

    /// Reads `host:port` or `[v6]:port`.
    pub fn parse(text: &str) -> Result<Self, InvalidAuthority> {
        match split(text)? {
            (host, Some(port)) => Self::new(host, port),
            (_, None) => Err(InvalidAuthority::NoPort(text.to_owned())),
        }
    }

    /// Reads an authority whose port may be missing and then is `port`.
    pub fn parse_with_default(text: &str, port: u16) -> Result<Self, InvalidAuthority> {
        let (host, given) = split(text)?;
        Self::new(host, given.unwrap_or(port))
    }

    /// Gives the host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Gives the port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

text_form!(Authority, InvalidAuthority);

/// Splits `host`, `host:port`, `[v6]` or `[v6]:port`.
pub(super) fn split(text: &str) -> Result<(Host, Option<u16>), InvalidAuthority> {
    if text.contains('@') {
        return Err(InvalidAuthority::Userinfo);
    }
    if let Some(rest) = text.strip_prefix('[') {
        return split_bracketed(text, rest);
    }
    match text.split_once(':') {
        None => Ok((Host::parse(text)?, None)),
        Some((_, rest)) if rest.contains(':') => Err(InvalidAuthority::Unbracketed(text.to_owned())),
        Some((host, port)) => Ok((Host::parse(host)?, Some(parse_port(port)?))),
    }
}

fn split_bracketed(text: &str, rest: &str) -> Result<(Host, Option<u16>), InvalidAuthority> {
    let bad_brackets = || InvalidAuthority::Brackets(text.to_owned());
    let (inside, after) = rest.split_once(']').ok_or_else(bad_brackets)?;
    if !inside.contains(':') {
        return Err(bad_brackets());
    }
    let host = Host::parse(inside)?;
    if after.is_empty() {
        return Ok((host, None));
    }
    let port = after.strip_prefix(':').ok_or_else(bad_brackets)?;
    Ok((host, Some(parse_port(port)?)))
}

/// Reads a port in its one spelling: no sign, no leading zero, not 0.
fn parse_port(text: &str) -> Result<u16, InvalidAuthority> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    is_plain.then(|| text.parse().ok()).flatten().ok_or_else(|| InvalidAuthority::Port(text.to_owned()))
}
