//! The answer of an upstream on its way to the client: its head written anew, its body streamed.

use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::response::Parts;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::ext::ReasonPhrase;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::Exchange;
use crate::proxy::head::fields::Connection;
use crate::proxy::head::{Version, is_hop_by_hop};
use crate::proxy::journal::Meter;
use crate::proxy::refusal::After;

/// Only the proxy itself says this.
const REASON_FIELD: &str = "x-cloister-reason";

/// What the request says about its answer.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) method: Method,
    pub(super) version: Version,
    pub(super) keep_alive: bool,
    pub(super) websocket: bool,
}

impl Wanted {
    pub(super) fn of(exchange: Exchange<'_>) -> Self {
        let Exchange { target, head } = exchange;
        let websocket = head.wants_websocket;
        // Behind such a request come bytes of the new protocol, even where the upstream does not want it.
        let keep_alive = head.keep_alive && !websocket;
        Self { method: target.method.clone(), version: head.version, keep_alive, websocket }
    }
}

/// How the body of an answer is delimited towards the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delimiter {
    /// There is none, whatever the fields say.
    None,
    Length(u64),
    Chunks,
    /// The end of the connection: HTTP/1.0 knows nothing better.
    Close,
    /// It is none: a tunnel follows.
    Tunnel,
}

/// An answer whose head is understood.
pub(super) struct Answer {
    head: BytesMut,
    delimiter: Delimiter,
    body: Incoming,
    /// Whether the client may send another request after it.
    pub(super) keep_alive: bool,
    /// Whether there is one way only to see where it ends.
    pub(super) has_certain_end: bool,
}

/// Why an answer does not reach the client whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    Upstream,
    Client,
}

impl Answer {
    /// Understands the head, or says what is wrong with it.
    pub(super) fn new(response: http::Response<Incoming>, wanted: &Wanted) -> Result<Self, &'static str> {
        let (parts, body) = response.into_parts();
        let switches = wanted.websocket && agrees_to_websocket(&parts);
        if parts.status.is_informational() && !switches {
            return Err("it changes the protocol unasked");
        }
        let codings: Vec<_> = parts.headers.get_all(TRANSFER_ENCODING).iter().collect();
        if codings.len() > 1
            || codings.iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        {
            return Err("it uses a transfer coding other than `chunked`");
        }
        let delimiter = if switches { Delimiter::Tunnel } else { delimit(&parts, &body, wanted) };
        let keep_alive = wanted.keep_alive && !matches!(delimiter, Delimiter::Close | Delimiter::Tunnel);
        let after =
            if keep_alive || delimiter == Delimiter::Tunnel { After::KeepAlive } else { After::Close };
        let head = write_head(&parts, delimiter, after);
        let has_certain_end = codings.is_empty() || !parts.headers.contains_key(CONTENT_LENGTH);
        Ok(Self { head, delimiter, body, keep_alive, has_certain_end })
    }

    /// Whether the connection is a tunnel from here on.
    pub(super) fn begins_tunnel(&self) -> bool {
        self.delimiter == Delimiter::Tunnel
    }

    /// Writes the answer to the client, every piece as soon as it is there.
    pub(super) async fn send<W>(mut self, client: &mut W, meter: &Meter) -> Result<(), Broken>
    where
        W: AsyncWrite + Unpin,
    {
        let mut out = std::mem::take(&mut self.head);
        if matches!(self.delimiter, Delimiter::None | Delimiter::Tunnel) {
            return flush(client, &mut out, meter).await;
        }
        loop {
            // Pieces that are there already share a write; nothing waits for one that is not.
            let frame = tokio::select! {
                biased;
                frame = self.body.frame() => frame,
                () = std::future::ready(()), if !out.is_empty() => {
                    flush(client, &mut out, meter).await?;
                    continue;
                }
            };
            match frame {
                Some(Ok(frame)) => {
                    // Trailers are dropped.
                    if let Ok(data) = frame.into_data() {
                        self.append(&mut out, &data);
                    }
                    if out.len() >= FLUSH_BYTES {
                        flush(client, &mut out, meter).await?;
                    }
                }
                Some(Err(_)) => {
                    flush(client, &mut out, meter).await?;
                    return Err(Broken::Upstream);
                }
                None => break,
            }
        }
        if self.delimiter == Delimiter::Chunks {
            out.extend_from_slice(b"0\r\n\r\n");
        }
        flush(client, &mut out, meter).await
    }

    fn append(&self, out: &mut BytesMut, data: &Bytes) {
        // An empty chunk would end the body.
        if data.is_empty() {
            return;
        }
        if self.delimiter == Delimiter::Chunks {
            // Memory always takes what is written.
            let _ = write!(out, "{:x}\r\n", data.len());
        }
        out.extend_from_slice(data);
        if self.delimiter == Delimiter::Chunks {
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// What the head and a short body of an answer commonly take.
const HEAD_BYTES: usize = 1 << 10;
/// What is collected at most before it is written.
const FLUSH_BYTES: usize = 64 << 10;

async fn flush<W: AsyncWrite + Unpin>(
    client: &mut W,
    out: &mut BytesMut,
    meter: &Meter,
) -> Result<(), Broken> {
    client.write_all(out).await.map_err(|_| Broken::Client)?;
    out.clear();
    meter.touch();
    Ok(())
}

fn delimit(parts: &Parts, body: &Incoming, wanted: &Wanted) -> Delimiter {
    if wanted.method == Method::HEAD
        || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    {
        return Delimiter::None;
    }
    match (body.size_hint().exact(), wanted.version) {
        (Some(length), _) => Delimiter::Length(length),
        (None, Version::Http11) => Delimiter::Chunks,
        (None, Version::Http10) => Delimiter::Close,
    }
}

/// Whether the upstream changes to WebSocket, and to nothing else (RFC 6455, 4.1).
fn agrees_to_websocket(parts: &Parts) -> bool {
    let mut protocols = parts.headers.get_all(UPGRADE).iter();
    let only = protocols.next().filter(|_| protocols.next().is_none());
    parts.status == StatusCode::SWITCHING_PROTOCOLS
        && parts.version == http::Version::HTTP_11
        && only.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && connection_of(&parts.headers).names.contains(&UPGRADE)
}

fn write_head(parts: &Parts, delimiter: Delimiter, after: After) -> BytesMut {
    let phrase = match parts.extensions.get::<ReasonPhrase>() {
        Some(phrase) => phrase.as_bytes(),
        None => parts.status.canonical_reason().unwrap_or_default().as_bytes(),
    };
    let mut head = BytesMut::with_capacity(HEAD_BYTES);
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(parts.status.as_str().as_bytes());
    head.extend_from_slice(b" ");
    head.extend_from_slice(phrase);
    head.extend_from_slice(b"\r\n");
    let connection = connection_of(&parts.headers);
    for (name, value) in &parts.headers {
        if goes_to_client(name, &connection) {
            write_field(&mut head, name.as_str(), value.as_bytes());
        }
    }
    match delimiter {
        Delimiter::Length(length) => write_field(&mut head, "content-length", length.to_string().as_bytes()),
        Delimiter::Chunks => write_field(&mut head, "transfer-encoding", b"chunked"),
        // The length of what a GET would have brought, if the upstream says it.
        Delimiter::None if parts.status != StatusCode::NO_CONTENT => {
            if let Some(length) = single_length(&parts.headers) {
                write_field(&mut head, "content-length", length.to_string().as_bytes());
            }
        }
        Delimiter::Tunnel => {
            write_field(&mut head, "upgrade", b"websocket");
            write_field(&mut head, "connection", b"upgrade");
        }
        Delimiter::None | Delimiter::Close => {}
    }
    if after == After::Close {
        write_field(&mut head, "connection", b"close");
    }
    head.extend_from_slice(b"\r\n");
    head
}

fn write_field(head: &mut BytesMut, name: &str, value: &[u8]) {
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

fn goes_to_client(name: &HeaderName, connection: &Connection) -> bool {
    *name != CONNECTION
        && *name != TRANSFER_ENCODING
        && *name != CONTENT_LENGTH
        && *name != REASON_FIELD
        && !is_hop_by_hop(name)
        && !connection.names.contains(name)
}

/// An upstream's `Connection` field that is no list names nothing.
fn connection_of(headers: &HeaderMap) -> Connection {
    let mut connection = Connection::default();
    for value in headers.get_all(CONNECTION) {
        let _ = connection.add(value.as_bytes());
    }
    connection
}

fn single_length(headers: &HeaderMap) -> Option<u64> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    value.to_str().ok()?.parse().ok()
}
