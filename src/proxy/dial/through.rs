//! The way out through the company's proxy (`proxy.upstream`): CONNECT to a checked address, never to a name (N16).
//!
//! Requests in absolute form go through a tunnel, too, so no field of theirs reaches the proxy; one that opens
//! tunnels to port 443 alone can't carry them.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::failure::{DialError, ProxyError};
use super::race::race;
use super::resolve::Resolve;
use super::roots::Roots;
use super::upstream::{Link, Upstream};
use super::{MAX_ADDRESSES, Patience, connect, interleave};
use crate::config::{UpstreamProxy, UpstreamScheme};
use crate::policy::{AddressClass, Host};

/// How long the proxy may take to open a tunnel.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest head of its answer, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;
const READ_BYTES: usize = 2 << 10;

/// A proxy, and what is needed to get to it.
pub(super) struct Through<'a> {
    pub(super) proxy: &'a UpstreamProxy,
    pub(super) resolver: &'a dyn Resolve,
    pub(super) roots: &'a Roots,
    pub(super) patience: Patience,
}

impl Through<'_> {
    /// Has a tunnel opened to one address after the other, until one stands.
    pub(super) async fn dial(&self, targets: &[SocketAddr]) -> Result<(Upstream, SocketAddr), DialError> {
        let end = Instant::now() + self.patience.whole;
        let found = timeout_at(end, self.find()).await.unwrap_or(Err(ProxyError::Silent))?;
        let mut failure = ProxyError::Silent;
        let mut targets = targets.iter().copied().take(MAX_ADDRESSES);
        while let Some(target) = targets.next() {
            // Only the last one may use up the time.
            let limit = if targets.len() > 0 { self.patience.attempt } else { ANSWER_TIMEOUT };
            let opened = timeout_at(end.min(Instant::now() + limit), self.open(&found, target)).await;
            match opened.unwrap_or(Err(ProxyError::Silent)) {
                Ok(upstream) => return Ok((upstream, target)),
                Err(error) if error.is_about_target() => failure = error,
                Err(error) => return Err(error.into()),
            }
        }
        Err(failure.into())
    }

    /// Where the proxy listens. The user of the host named it, so it may be near, other than what a sandbox names.
    async fn find(&self) -> Result<Vec<SocketAddr>, ProxyError> {
        let authority = &self.proxy.authority;
        let addresses = match authority.host() {
            Host::Ip(address) => vec![*address],
            Host::Name(name) => self.resolver.resolve(name).await.map_err(ProxyError::Unresolved)?,
        };
        let classes = addresses.iter().map(|address| AddressClass::of(*address));
        if let Some(class) = classes.into_iter().find(|class| class.is_never_allowed()) {
            return Err(ProxyError::Forbidden(class));
        }
        let port = authority.port();
        let sockets: Vec<_> =
            addresses.iter().map(|address| SocketAddr::new(address.to_canonical(), port)).collect();
        Ok(interleave(&sockets))
    }

    async fn open(&self, found: &[SocketAddr], target: SocketAddr) -> Result<Upstream, ProxyError> {
        let raced = race(found.to_vec(), connect, self.patience).await;
        let (stream, _) = raced.map_err(ProxyError::Unconnected)?;
        let link = match self.proxy.scheme {
            UpstreamScheme::Http => Link::Tcp(stream),
            UpstreamScheme::Https => self.secure(stream).await?,
        };
        let mut upstream = Upstream::new(link, Bytes::new());
        let early = self.ask(&mut upstream, target).await?;
        Ok(upstream.behind(early))
    }

    async fn secure(&self, stream: TcpStream) -> Result<Link, ProxyError> {
        let name = match self.proxy.authority.host() {
            Host::Name(name) => ServerName::try_from(name.as_str().to_owned())
                .map_err(|error| ProxyError::Tls(io::Error::other(error)))?,
            Host::Ip(address) => ServerName::from(*address),
        };
        let config = self.roots.config().await.map_err(|error| ProxyError::Tls(io::Error::other(error)))?;
        let connected = TlsConnector::from(config).connect(name, stream).await;
        Ok(Link::Tls(Box::new(connected.map_err(ProxyError::Tls)?)))
    }

    /// Asks for the tunnel, and gives what comes behind the answer.
    async fn ask(&self, upstream: &mut Upstream, target: SocketAddr) -> Result<Bytes, ProxyError> {
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(credentials) = &self.proxy.credentials {
            let encoded = BASE64_STANDARD.encode(credentials.expose());
            write!(request, "Proxy-Authorization: Basic {encoded}\r\n").expect("a String takes everything");
        }
        request += "\r\n";
        upstream.write_all(request.as_bytes()).await.map_err(ProxyError::Broken)?;
        upstream.flush().await.map_err(ProxyError::Broken)?;
        let mut bytes = BytesMut::new();
        let mut interim_bytes = 0;
        loop {
            let before = bytes.len();
            match take_head(&mut bytes)? {
                Some(200..=299) => return Ok(bytes.freeze()),
                // Something is still to come (RFC 9110, 15.2); another protocol was not asked for.
                Some(100 | 102..=199) => interim_bytes += before - bytes.len(),
                Some(status) => return Err(ProxyError::Status(status)),
                None => {
                    bytes.reserve(READ_BYTES);
                    if upstream.read_buf(&mut bytes).await.map_err(ProxyError::Broken)? == 0 {
                        return Err(ProxyError::Broken(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
            }
            if interim_bytes > MAX_HEAD_BYTES {
                return Err(ProxyError::Garbage("it never comes to its end"));
            }
        }
    }
}

/// Takes a whole head off the front, and gives its status; `None` while it is not complete.
fn take_head(bytes: &mut BytesMut) -> Result<Option<u16>, ProxyError> {
    const VERSION: &[u8] = b"HTTP/1.";
    let begun = bytes.len().min(VERSION.len());
    if bytes[..begun] != VERSION[..begun] {
        return Err(ProxyError::Garbage("it does not begin with `HTTP/1.`"));
    }
    let limit = bytes.len().min(MAX_HEAD_BYTES);
    let Some(end) = bytes[..limit].windows(4).position(|window| window == b"\r\n\r\n") else {
        let too_long = bytes.len() >= MAX_HEAD_BYTES;
        return if too_long { Err(ProxyError::Garbage("its head is too long")) } else { Ok(None) };
    };
    let head = bytes.split_to(end + 4);
    match &head[VERSION.len()..] {
        [b'0'..=b'9', b' ', status @ ..] if status.len() > 3 && matches!(status[3], b' ' | b'\r') => {
            let digits = std::str::from_utf8(&status[..3])
                .ok()
                .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let status = digits.and_then(|text| text.parse().ok()).filter(|status| *status >= 100);
            status.map(Some).ok_or(ProxyError::Garbage("its status is no number"))
        }
        _ => Err(ProxyError::Garbage("its first line is no status line")),
    }
}

#[cfg(test)]
mod tests;
