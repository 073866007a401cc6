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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn reads(text: &str, canonical: &str) {
        let authority = Authority::parse(text).unwrap();
        assert_eq!(authority.to_string(), canonical);
        assert_eq!(Authority::parse(canonical), Ok(authority));
    }

    #[track_caller]
    fn refuses(text: &str, message: &str) {
        assert_eq!(
            Authority::parse(text).unwrap_err().to_string(),
            message,
            "{text:?}"
        );
    }

    #[test]
    fn n1_spellings_of_an_authority_have_one_form() {
        reads("Example.com.:443", "example.com:443");
        reads("bücher.example:8443", "xn--bcher-kva.example:8443");
        reads("192.0.2.1:1", "192.0.2.1:1");
        reads("[2001:DB8::1]:65535", "[2001:db8::1]:65535");
        reads("[::ffff:192.0.2.1]:443", "192.0.2.1:443");
    }

    #[test]
    fn n3_what_is_no_authority_is_refused() {
        let port = |text| format!("`{text}` is not a port; a port is a number from 1 to 65535");
        for text in [
            "", "0", "65536", "99999", "+443", "-1", "0443", "443 ", " 443", "0x1bb", "٤٤٣", "4_4", "https",
        ] {
            refuses(&format!("example.com:{text}"), &port(text));
            refuses(&format!("[::1]:{text}"), &port(text));
        }
        refuses("example.com", "`example.com` has no port; write `HOST:PORT`");
        refuses("[::1]", "`[::1]` has no port; write `HOST:PORT`");
        refuses(":443", "`` is not a host: it is empty");
        refuses("", "`` is not a host: it is empty");
        let ambiguous = |text| {
            format!("`{text}` is ambiguous; write an IPv6 address in brackets, like `[2001:db8::1]:443`")
        };
        refuses("::1", &ambiguous("::1"));
        refuses("::1:443", &ambiguous("::1:443"));
        refuses("a:1:2", &ambiguous("a:1:2"));
        let brackets = |text| format!("`{text}` has brackets around something else than an IPv6 address");
        for text in [
            "[example.com]:443",
            "[127.0.0.1]:443",
            "[::1",
            "[::1]443",
            "[::1]]:443",
            "[]:443",
            "[",
        ] {
            refuses(text, &brackets(text));
        }
        refuses(
            "[fe80::1%eth0]:443",
            "`fe80::1%eth0` is not a host: an address with a zone id is not accepted",
        );
    }

    #[test]
    fn n4_userinfo_is_refused() {
        let message = "a user name before the host is not accepted; nothing may stand before an `@`";
        for text in [
            "allowed.com@evil.com:443",
            "u:p@evil.com:443",
            "@evil.com:443",
            "evil.com:443@",
            "[::1]@a:1",
        ] {
            refuses(text, message);
        }
    }

    #[test]
    fn a_missing_port_is_the_default_one() {
        let read = |text| {
            Authority::parse_with_default(text, 80)
                .map(|authority| authority.to_string())
                .ok()
        };
        assert_eq!(read("example.com").as_deref(), Some("example.com:80"));
        assert_eq!(read("example.com:8080").as_deref(), Some("example.com:8080"));
        assert_eq!(read("[::1]").as_deref(), Some("[::1]:80"));
        assert_eq!(read("example.com:"), None);
        assert_eq!(read("::1"), None);
        assert_eq!(
            Authority::parse_with_default("a", 0),
            Err(InvalidAuthority::Port("0".to_owned()))
        );
    }

    #[test]
    fn n7_an_authority_never_holds_a_mapped_address() {
        let mapped = Host::Ip("::ffff:127.0.0.1".parse().unwrap());
        assert_eq!(Authority::new(mapped, 80), Authority::parse("127.0.0.1:80"));
    }

    proptest! {
        #[test]
        fn n1_what_is_shown_reads_as_the_same_authority(
            text in "\\PC{0,40}|[a-zA-Z0-9._-]{1,20}:[0-9]{1,5}|\\[[0-9a-f:.]{1,20}\\]:[0-9]{1,5}",
        ) {
            if let Ok(authority) = Authority::parse(&text) {
                prop_assert_eq!(Authority::parse(&authority.to_string()), Ok(authority));
            }
        }
    }
}
