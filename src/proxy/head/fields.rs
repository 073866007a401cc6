//! The header fields of a request: collected once, each special field into its own slot.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::credentials::Credentials;
use super::{Framing, HeadError, MAX_FIELDS, Version};

/// Fields that concern one connection only (RFC 9110, 7.6.1), besides those with a slot in [`Fields`].
const HOP_BY_HOP: [&str; 5] = ["keep-alive", "te", "trailer", "upgrade", "http2-settings"];
/// How much of a `User-Agent` is kept for showing it.
const MAX_USER_AGENT_BYTES: usize = 200;
/// Fields of this kind are between a client and its proxy.
const PROXY_PREFIX: &str = "proxy-";

/// The fields of one head.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub(super) host: Option<Bytes>,
    pub(super) credentials: Credentials,
    content_length: Option<Bytes>,
    transfer_encoding: Option<Bytes>,
    expect: Option<Bytes>,
    connection: Vec<Bytes>,
    rest: Vec<(HeaderName, HeaderValue)>,
}

/// Collects `lines`, which are slices of `text`.
pub(super) fn parse<'a>(lines: impl Iterator<Item = &'a [u8]>, text: &'a Bytes) -> Result<Fields, HeadError> {
    let mut fields = Fields::default();
    for (count, line) in lines.enumerate() {
        if count == MAX_FIELDS {
            return Err(HeadError::TooLarge);
        }
        let (name, value) = split(line)?;
        fields.insert(name, text.slice_ref(value))?;
    }
    Ok(fields)
}

/// One line into name and value, without the white space around the value.
fn split(line: &[u8]) -> Result<(&[u8], &[u8]), HeadError> {
    if line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
        return Err(HeadError::Malformed("a header field is folded over two lines"));
    }
    let colon = line.iter().position(|byte| *byte == b':');
    let Some(colon) = colon else {
        return Err(HeadError::Malformed("a header field has no colon"));
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() {
        return Err(HeadError::Malformed("a header field has no name"));
    }
    if !name.iter().copied().all(is_token_byte) {
        return Err(HeadError::Malformed("a header field's name is not a token"));
    }
    if value.iter().any(|byte| *byte != b'\t' && (*byte < b' ' || *byte == 0x7f)) {
        return Err(HeadError::Malformed("a header field's value holds control characters"));
    }
    Ok((name, value.trim_ascii()))
}

impl Fields {
    fn insert(&mut self, name: &[u8], value: Bytes) -> Result<(), HeadError> {
        let name = HeaderName::from_bytes(name)
            .map_err(|_| HeadError::Malformed("a header field's name is not a token"))?;
        match name.as_str() {
            "host" => once(&mut self.host, value, "there is more than one Host field"),
            "content-length" => {
                once(&mut self.content_length, value, "there is more than one Content-Length field")
            }
            "transfer-encoding" => {
                once(&mut self.transfer_encoding, value, "there is more than one Transfer-Encoding field")
            }
            "expect" => once(&mut self.expect, value, "there is more than one Expect field"),
            "proxy-authorization" => self.credentials.present(&value).map_err(HeadError::Malformed),
            "connection" => {
                self.connection.push(value);
                Ok(())
            }
            _ => {
                let value = HeaderValue::from_maybe_shared(value)
                    .map_err(|_| HeadError::Malformed("a header field's value holds control characters"))?;
                self.rest.push((name, value));
                Ok(())
            }
        }
    }

    /// How the body is delimited; every doubt is an error (H1).
    pub(super) fn framing(&self, version: Version) -> Result<Framing, HeadError> {
        match (&self.content_length, &self.transfer_encoding) {
            (Some(_), Some(_)) => {
                Err(HeadError::Malformed("Content-Length and Transfer-Encoding stand together"))
            }
            (None, Some(_)) if version == Version::Http10 => {
                Err(HeadError::Malformed("HTTP/1.0 has no Transfer-Encoding"))
            }
            (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
            (None, Some(_)) => Err(HeadError::Malformed("the only Transfer-Encoding taken is `chunked`")),
            (Some(length), None) => match parse_number(length) {
                Some(0) => Ok(Framing::None),
                Some(length) => Ok(Framing::Length(length)),
                None => Err(HeadError::Malformed("the Content-Length is not a number")),
            },
            (None, None) => Ok(Framing::None),
        }
    }

    /// Whether the client asks for a WebSocket (T6). Every other change of protocol is refused (T7): `h2c` would
    /// leave the eyes of the proxy, and the rest would be tunnels that nobody knows.
    pub(super) fn wants_websocket(&self, connection: &Connection) -> Result<bool, HeadError> {
        let all = |wanted: &'static str| self.rest.iter().filter(move |(name, _)| name == wanted);
        if all("http2-settings").next().is_some() {
            return Err(HeadError::Malformed(
                "HTTP2-Settings is refused; HTTP/2 is spoken only inside of TLS",
            ));
        }
        let mut protocols = all("upgrade").map(|(_, value)| value.as_bytes());
        match (protocols.next(), protocols.next()) {
            (None, _) => return Ok(false),
            (Some(one), None) if one.eq_ignore_ascii_case(b"websocket") => {}
            (Some(_), _) => {
                return Err(HeadError::Malformed(
                    "the only Upgrade taken is `websocket`; open a tunnel with CONNECT instead",
                ));
            }
        }
        let is_named = |name: &str| connection.names.iter().any(|named| named == name);
        let reaches = |name| all(name).count() == 1 && !is_named(name);
        if is_named("upgrade") && reaches("sec-websocket-key") && reaches("sec-websocket-version") {
            return Ok(true);
        }
        Err(HeadError::Malformed(
            "a WebSocket needs `Connection: upgrade`, one Sec-WebSocket-Key and one Sec-WebSocket-Version",
        ))
    }

    /// What the client calls itself, the beginning of it.
    pub(super) fn user_agent(&self) -> Option<String> {
        let (_, value) = self.rest.iter().find(|(name, _)| *name == http::header::USER_AGENT)?;
        let bytes = value.as_bytes();
        Some(String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_USER_AGENT_BYTES)]).into_owned())
    }

    pub(super) fn expects_continue(&self) -> Result<bool, HeadError> {
        match &self.expect {
            None => Ok(false),
            Some(value) if value.eq_ignore_ascii_case(b"100-continue") => Ok(true),
            Some(_) => Err(HeadError::Malformed("the only expectation known is `100-continue`")),
        }
    }

    /// The fields that concern the upstream, in their order.
    pub(super) fn end_to_end(self, connection: &Connection) -> Vec<(HeaderName, HeaderValue)> {
        let mut rest = self.rest;
        rest.retain(|(name, _)| !is_hop_by_hop(name) && !connection.names.contains(name));
        rest
    }

    /// Counts this proxy as one of the hops that an OPTIONS may take (RFC 9110, 7.6.2).
    pub(super) fn count_hop(&mut self) -> Result<(), HeadError> {
        let mut limits = self.rest.iter_mut().filter(|(name, _)| *name == http::header::MAX_FORWARDS);
        let Some((_, limit)) = limits.next() else { return Ok(()) };
        let left = parse_number(limit.as_bytes()).and_then(|hops| hops.checked_sub(1));
        let none = HeadError::Malformed("Max-Forwards is no number of hops from 1 on; this is one");
        *limit = HeaderValue::from(left.ok_or(none)?);
        match limits.next() {
            None => Ok(()),
            Some(_) => Err(HeadError::Malformed("there is more than one Max-Forwards field")),
        }
    }
}

/// Whether a field concerns one connection only, whatever the `Connection` field says.
pub(in crate::proxy) fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(&name.as_str()) || name.as_str().starts_with(PROXY_PREFIX)
}

/// What the `Connection` field says.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Connection {
    pub(in crate::proxy) close: bool,
    /// The fields that it makes hop-by-hop.
    pub(in crate::proxy) names: Vec<HeaderName>,
}

impl Connection {
    pub(super) fn parse(fields: &Fields) -> Result<Self, HeadError> {
        let mut connection = Self::default();
        for value in &fields.connection {
            connection
                .add(value)
                .ok_or(HeadError::Malformed("the Connection field does not list field names"))?;
        }
        // Never standardised, but what older clients send to a proxy instead of `Connection`.
        connection.close |= fields.rest.iter().any(|(name, value)| {
            name == "proxy-connection" && value.as_bytes().eq_ignore_ascii_case(b"close")
        });
        Ok(connection)
    }

    /// Adds one line of the field; `None` when it is no list of tokens.
    pub(in crate::proxy) fn add(&mut self, value: &[u8]) -> Option<()> {
        for option in
            value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|option| !option.is_empty())
        {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else {
                self.names.push(HeaderName::from_bytes(option).ok()?);
            }
        }
        Some(())
    }
}

fn once(slot: &mut Option<Bytes>, value: Bytes, twice: &'static str) -> Result<(), HeadError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(HeadError::Malformed(twice)),
    }
}

/// Digits only: no sign, no list, no white space.
fn parse_number(text: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text).ok()?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Whether `byte` may stand in a token (RFC 9110, 5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
