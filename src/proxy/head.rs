//! The request head: one strict parser, one canonical form (THREATS 4, H1 to H5, T7, N4).
//!
//! Pure: bytes in, a [`Head`] or a [`HeadError`] out. What two parsers could read differently is refused,
//! never repaired. What leaves the parser no longer holds anything that concerns only the connection between
//! client and proxy: hop-by-hop fields, credentials, `Host` and the framing fields are taken out, so that no
//! later step can send them upstream by accident (H3, H11).
//!
//! What is decided here: a body of a GET or HEAD is framed anew and passed on, since no rule is about bodies yet
//! (H10); `Max-Forwards` counts down for OPTIONS; no `Via` is added, which would only tell the upstream about the
//! sandbox and have it answer worse (some never compress for a proxy).

use bytes::BytesMut;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method};

use crate::policy::{Authority, Via};

use credentials::Credentials;
use fields::Connection;
pub(super) use fields::is_hop_by_hop;

mod credentials;
pub(super) mod fields;

/// The largest request head in bytes, with its final empty line.
pub(super) const MAX_HEAD_BYTES: usize = 16 << 10;
/// The most header fields in one head.
pub(super) const MAX_FIELDS: usize = 100;
/// What ends a head.
const END: &[u8] = b"\r\n\r\n";

/// A request head in canonical form.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) target: Target,
    pub(super) credentials: Credentials,
    pub(super) framing: Framing,
    pub(super) version: Version,
    /// Whether the client lets the connection serve another request.
    pub(super) keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
    /// Whether the client wants to speak WebSocket from then on (T6).
    pub(super) wants_websocket: bool,
    /// What the client calls itself, which proves nothing.
    pub(super) user_agent: Option<String>,
}

/// What a request asks for.
#[derive(Debug)]
pub(super) enum Target {
    /// `CONNECT host:port`.
    Connect(Authority),
    /// `METHOD http://host/path`.
    Plain(Box<PlainTarget>),
}

/// The target of an absolute-form request, and what of its head goes upstream.
#[derive(Debug)]
pub(super) struct PlainTarget {
    pub(super) authority: Authority,
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    /// The end-to-end fields in their order.
    pub(super) fields: Vec<(HeaderName, HeaderValue)>,
}

impl Target {
    pub(super) fn authority(&self) -> &Authority {
        match self {
            Self::Connect(authority) => authority,
            Self::Plain(plain) => &plain.authority,
        }
    }

    pub(super) fn via(&self) -> Via {
        match self {
            Self::Connect(_) => Via::Connect,
            Self::Plain(_) => Via::Plain,
        }
    }
}

/// How the body of a request is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is no body.
    None,
    /// Exactly so many bytes follow; never 0.
    Length(u64),
    /// Chunks follow.
    Chunked,
}

/// The protocol version of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Http10,
    Http11,
}

/// Why a request head is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeadError {
    /// The head breaks the grammar, or could be read in two ways.
    #[error("{0}")]
    Malformed(&'static str),
    /// The host or port of the target is none.
    #[error("{0}")]
    Authority(String),
    /// The head has more than [`MAX_HEAD_BYTES`] or [`MAX_FIELDS`].
    #[error("a request head has at most {} KiB and {} header fields", MAX_HEAD_BYTES >> 10, MAX_FIELDS)]
    TooLarge,
    /// The method is refused whatever its target (H9).
    #[error("the methods TRACE and TRACK are refused")]
    MethodRefused,
    /// The request is meant for an origin server; none is here (I6).
    #[error(
        "this is a forward proxy: it answers `CONNECT host:port` and `http://` targets, and nothing else is here"
    )]
    NotForAProxy,
}

/// Finds and parses the head at the beginning of what a connection has sent so far.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// How much of the buffer is known to hold no end.
    scanned: usize,
}

impl Parser {
    /// Takes a head out of `buffer`, once it is complete.
    ///
    /// `Ok(None)` means that more has to come; what can never become a head is an error at once.
    ///
    /// # Errors
    /// A [`HeadError`] for every head that is malformed, ambiguous or too large.
    pub(super) fn parse(&mut self, buffer: &mut BytesMut) -> Result<Option<Head>, HeadError> {
        let Some(end) = self.find_end(buffer)? else {
            return Ok(None);
        };
        self.scanned = 0;
        let text = buffer.split_to(end).freeze();
        let mut lines = text[..end - END.len()]
            .split(|byte| *byte == b'\n')
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let request_line = RequestLine::parse(lines.next().unwrap_or_default())?;
        let fields = fields::parse(lines, &text)?;
        assemble(&request_line, fields).map(Some)
    }

    /// The length of the head with its final empty line, or `None` while that has not come.
    fn find_end(&mut self, buffer: &[u8]) -> Result<Option<usize>, HeadError> {
        if buffer.first().is_some_and(|first| !fields::is_token_byte(*first)) {
            return Err(HeadError::Malformed("a request begins with a method"));
        }
        let seen = &buffer[..buffer.len().min(MAX_HEAD_BYTES)];
        // The last byte is looked at again: only its successor says whether it was a lone carriage return.
        for at in self.scanned.saturating_sub(1)..seen.len() {
            match seen[at] {
                b'\r' if seen.get(at + 1).is_some_and(|next| *next != b'\n') => {
                    return Err(HeadError::Malformed("a carriage return stands without a line feed"));
                }
                b'\n' if at == 0 || seen[at - 1] != b'\r' => {
                    return Err(HeadError::Malformed("a line feed stands without a carriage return"));
                }
                b'\n' if seen[..=at].ends_with(END) => return Ok(Some(at + 1)),
                _ => {}
            }
        }
        self.scanned = seen.len();
        if buffer.len() >= MAX_HEAD_BYTES { Err(HeadError::TooLarge) } else { Ok(None) }
    }
}

struct RequestLine<'a> {
    method: Method,
    target: &'a str,
    version: Version,
}

impl<'a> RequestLine<'a> {
    fn parse(line: &'a [u8]) -> Result<Self, HeadError> {
        let line = std::str::from_utf8(line)
            .map_err(|_| HeadError::Malformed("the request line holds bytes that are not ASCII"))?;
        if line.bytes().any(|byte| !matches!(byte, b' '..=b'~')) {
            return Err(HeadError::Malformed("the request line holds bytes that are not printable ASCII"));
        }
        let mut parts = line.split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(HeadError::Malformed(
                "a request line is a method, a target and a version, one space apart",
            ));
        };
        if method.is_empty() || !method.bytes().all(fields::is_token_byte) {
            return Err(HeadError::Malformed("the method is not a token"));
        }
        if target.is_empty() {
            return Err(HeadError::Malformed("the request line has no target"));
        }
        let version = match version {
            "HTTP/1.1" => Version::Http11,
            "HTTP/1.0" => Version::Http10,
            "HTTP/2.0" => return Err(HeadError::Malformed("HTTP/2 is not spoken here; use HTTP/1.1")),
            _ => {
                return Err(HeadError::Malformed("the version is neither HTTP/1.1 nor HTTP/1.0"));
            }
        };
        // Methods are case-sensitive, and some upstreams don't care: what means TRACE to anybody is refused.
        if ["TRACE", "TRACK"].iter().any(|refused| method.eq_ignore_ascii_case(refused)) {
            return Err(HeadError::MethodRefused);
        }
        if method != "CONNECT" && method.eq_ignore_ascii_case("CONNECT") {
            return Err(HeadError::Malformed("the method `CONNECT` is written in capitals"));
        }
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| HeadError::Malformed("the method is not a token"))?;
        Ok(Self { method, target, version })
    }
}

/// Puts request line and fields together; everything that concerns both is checked here.
fn assemble(line: &RequestLine<'_>, mut fields: fields::Fields) -> Result<Head, HeadError> {
    let (named, path) = parse_target(&line.method, line.target)?;
    let authority = named.parse()?;
    check_host(fields.host.as_deref(), &authority, &named, line.version)?;
    let framing = fields.framing(line.version)?;
    let expects_continue = fields.expects_continue()?;
    if line.method == Method::OPTIONS {
        fields.count_hop()?;
    }
    let connection = Connection::parse(&fields)?;
    let wants_websocket = fields.wants_websocket(&connection)?;
    if wants_websocket
        && (line.method != Method::GET || line.version != Version::Http11 || framing != Framing::None)
    {
        return Err(HeadError::Malformed("a WebSocket begins with a GET of HTTP/1.1 without a body"));
    }
    let credentials = std::mem::take(&mut fields.credentials);
    let user_agent = fields.user_agent();
    let target = match path {
        None if framing != Framing::None => {
            return Err(HeadError::Malformed("a CONNECT request has no body"));
        }
        None => Target::Connect(authority),
        Some(path) => Target::Plain(Box::new(PlainTarget {
            authority,
            method: line.method.clone(),
            path,
            fields: fields.end_to_end(&connection),
        })),
    };
    Ok(Head {
        target,
        credentials,
        framing,
        version: line.version,
        keep_alive: line.version == Version::Http11 && !connection.close,
        expects_continue: expects_continue && line.version == Version::Http11,
        wants_websocket,
        user_agent,
    })
}

/// An authority as it was written, and the port that it has when none is.
struct Named<'a> {
    text: &'a str,
    default_port: Option<u16>,
}

/// The authority, and for the absolute form also the path.
fn parse_target<'a>(
    method: &Method,
    target: &'a str,
) -> Result<(Named<'a>, Option<PathAndQuery>), HeadError> {
    if method == Method::CONNECT {
        return Ok((Named { text: target, default_port: None }, None));
    }
    if target.starts_with('/') {
        return Err(HeadError::NotForAProxy);
    }
    if target == "*" {
        return Err(HeadError::Malformed("the target `*` names no host; write an `http://` target"));
    }
    let Some((scheme, rest)) = target.split_once("://") else {
        return Err(HeadError::Malformed(
            "the target is neither `http://host/path` nor, for CONNECT, `host:port`",
        ));
    };
    if scheme.eq_ignore_ascii_case("https") {
        return Err(HeadError::Malformed(
            "an `https://` target is refused; ask with CONNECT and speak TLS through it",
        ));
    }
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(HeadError::Malformed("only `http://` targets are forwarded"));
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let named = Named { text: authority, default_port: Some(Via::Plain.default_port()) };
    Ok((named, Some(parse_path(method, path)?)))
}

fn parse_path(method: &Method, path: &str) -> Result<PathAndQuery, HeadError> {
    if path.contains('#') {
        return Err(HeadError::Malformed("the target holds a fragment (`#`)"));
    }
    let malformed =
        |_| HeadError::Malformed("the path of the target holds characters that must be percent-encoded");
    match path {
        // RFC 9112, 3.2.4: the last proxy turns the empty path of OPTIONS into `*`.
        "" if method == Method::OPTIONS => PathAndQuery::try_from("*").map_err(malformed),
        "" => Ok(PathAndQuery::from_static("/")),
        query if query.starts_with('?') => PathAndQuery::try_from(format!("/{query}")).map_err(malformed),
        path => PathAndQuery::try_from(path).map_err(malformed),
    }
}

impl Named<'_> {
    fn parse(&self) -> Result<Authority, HeadError> {
        if self.text.contains('@') {
            return Err(HeadError::Malformed("a user name or `@` in the target is refused"));
        }
        let parsed = match self.default_port {
            Some(port) => Authority::parse_with_default(self.text, port),
            None => Authority::parse(self.text),
        };
        parsed.map_err(|error| HeadError::Authority(error.to_string()))
    }
}

/// The `Host` field must be there once (HTTP/1.1) and name the target (H3, H4, H5).
fn check_host(
    host: Option<&[u8]>,
    target: &Authority,
    named: &Named<'_>,
    version: Version,
) -> Result<(), HeadError> {
    let Some(host) = host else {
        return match version {
            Version::Http10 => Ok(()),
            Version::Http11 => Err(HeadError::Malformed("the Host field is missing")),
        };
    };
    if host == named.text.as_bytes() {
        // The same words name the same: what both leave out is the same port.
        return Ok(());
    }
    // Many clients leave the port out of a CONNECT's Host field: there it stands for the target's own.
    let default_port = named.default_port.unwrap_or(target.port());
    let host = std::str::from_utf8(host)
        .ok()
        .and_then(|host| Authority::parse_with_default(host, default_port).ok());
    if host.as_ref() == Some(target) {
        Ok(())
    } else {
        Err(HeadError::Malformed("the Host field differs from the target"))
    }
}

/// Takes a head apart that [`Parser`] has accepted, by the line breaks and colons alone.
#[cfg(any(test, fuzzing))]
pub(super) fn field_lines(head: &[u8]) -> (String, String, Vec<(String, Vec<u8>)>) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut lines = head.strip_suffix(END).unwrap_or(head).split(|byte| *byte == b'\n');
    let mut words = lines.next().unwrap_or_default().split(|byte| *byte == b' ').map(text);
    let fields = lines.map(|line| {
        let at = line.iter().position(|byte| *byte == b':').unwrap_or(line.len() - 1);
        (text(&line[..at]).to_ascii_lowercase(), line[at + 1..].trim_ascii().to_vec())
    });
    (words.next().unwrap_or_default(), words.next().unwrap_or_default(), fields.collect())
}

#[cfg(test)]
mod tests;
