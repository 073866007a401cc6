//! The `ClientHello` at the beginning of a tunnel to port 443: it must name the host that was authorised (N10),
//! and there must be one (T8). Only the outer name is visible; what an encrypted inner hello names is not (N13).

use std::time::Duration;

use bytes::BytesMut;
use rustls::server::{Accepted, Acceptor};
use rustls::{Error as TlsError, InvalidMessage, PeerMisbehaved};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;

use super::{record, sni};
use crate::policy::Host;
use crate::proxy::refusal::Reason;

/// The largest `ClientHello` in bytes, with the headers of its records.
const MAX_HELLO_BYTES: usize = 64 << 10;

/// The TLS alert that answers a wrong name: fatal, `unrecognized_name` (RFC 6066, 3).
pub(super) const UNRECOGNIZED_NAME: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70];

/// Why a tunnel is closed before its first byte goes upstream.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HelloError {
    /// The client ended before it said anything whole.
    #[error("the client left before its ClientHello was complete")]
    Gone,
    /// What the client says is not TLS.
    #[error("{0}")]
    NotTls(String),
    /// The hello names another host.
    #[error("the ClientHello names `{0}`")]
    OtherName(String),
    /// The hello names no host, though the authority is a name.
    #[error("the ClientHello names no host")]
    NoName,
}

impl HelloError {
    /// The code of a denial; a client that merely left is none.
    pub(super) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Gone => None,
            Self::NotTls(_) => Some(Reason::NotTls),
            Self::OtherName(_) | Self::NoName => Some(Reason::SniMismatch),
        }
    }
}

/// Reads from `client` into `buffer`, behind what is there already, until the `ClientHello` is complete, and
/// checks that it names `host`. The bytes stay in the buffer, as they came; how many of them are the hello's is
/// given back.
pub(super) async fn check<C>(
    client: &mut C,
    buffer: &mut BytesMut,
    host: &Host,
    patience: Duration,
) -> Result<usize, HelloError>
where
    C: AsyncRead + Unpin,
{
    let late = |_| HelloError::NotTls("no complete ClientHello came in time".to_owned());
    timeout(patience, read_hello(client, buffer)).await.map_err(late)??;
    judge(buffer, host)
}

/// Checks the name in a hello that is complete, and gives its length.
fn judge(buffer: &[u8], host: &Host) -> Result<usize, HelloError> {
    let (message, bytes) = record::message(buffer).ok_or_else(|| {
        HelloError::NotTls("the records of the ClientHello hold something else, too".to_owned())
    })?;
    let named = sni::server_name(&message)
        .map_err(|sni::Doubtful| HelloError::OtherName("not one valid host name".to_owned()))?;
    compare(named, host)?;
    Ok(bytes)
}

/// Reads until the hello is complete and rustls, which goes by the whole of it, accepts it.
async fn read_hello<C>(client: &mut C, buffer: &mut BytesMut) -> Result<Accepted, HelloError>
where
    C: AsyncRead + Unpin,
{
    let mut acceptor = Acceptor::default();
    let mut fed = 0;
    loop {
        if let Some(hello) = feed(&mut acceptor, &buffer[fed..])? {
            return Ok(hello);
        }
        fed = buffer.len();
        if fed > MAX_HELLO_BYTES {
            return Err(HelloError::NotTls("the ClientHello has more than 64 KiB".to_owned()));
        }
        match client.read_buf(buffer).await {
            Ok(0) | Err(_) => return Err(HelloError::Gone),
            Ok(_) => {}
        }
    }
}

fn feed(acceptor: &mut Acceptor, mut bytes: &[u8]) -> Result<Option<Accepted>, HelloError> {
    while !bytes.is_empty() {
        let taken = acceptor.read_tls(&mut bytes).map_err(|error| HelloError::NotTls(error.to_string()))?;
        if taken == 0 {
            return Err(HelloError::NotTls("TLS ended before its ClientHello".to_owned()));
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(hello)) => return Ok(Some(hello)),
            Err((
                TlsError::PeerMisbehaved(PeerMisbehaved::ServerNameMustContainOneHostName)
                | TlsError::InvalidMessage(InvalidMessage::InvalidServerName),
                _,
            )) => {
                return Err(HelloError::OtherName("not one valid host name".to_owned()));
            }
            Err((error, _)) => return Err(HelloError::NotTls(error.to_string())),
        }
    }
    Ok(None)
}

fn compare(named: Option<&str>, host: &Host) -> Result<(), HelloError> {
    match (named, host) {
        (None, Host::Ip(_)) => Ok(()),
        (None, Host::Name(_)) => Err(HelloError::NoName),
        (Some(named), Host::Name(_)) if Host::parse(named).is_ok_and(|named| named == *host) => Ok(()),
        (Some(named), Host::Name(_) | Host::Ip(_)) => Err(HelloError::OtherName(named.to_owned())),
    }
}

/// Judges `bytes` as the beginning of a tunnel to the host that rustls finds in them.
#[cfg(fuzzing)]
pub(in crate::proxy) fn fuzz(bytes: &[u8]) {
    // Whatever the bytes are, reading them on their own must not panic either.
    let _ = record::message(bytes).map(|(message, _)| sni::server_name(&message).is_ok());
    let Ok(Some(accepted)) = feed(&mut Acceptor::default(), bytes) else { return };
    let named = accepted.client_hello().server_name().map(str::to_owned);
    let elsewhere = Host::parse("elsewhere.invalid").expect("it is a name");
    let host = named.as_deref().and_then(|named| Host::parse(named).ok());
    if host.as_ref() != Some(&elsewhere) {
        assert!(judge(bytes, &elsewhere).is_err(), "only the host that the hello names is let through");
    }
    if let Ok(taken) = judge(bytes, host.as_ref().unwrap_or(&elsewhere)) {
        assert!(named.is_some() && taken <= bytes.len());
    }
    // An address is reached without a name, or not at all.
    if judge(bytes, &Host::Ip([192, 0, 2, 1].into())).is_ok() {
        assert!(named.is_none());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(named: Option<&str>, host: &str, expected: &Result<(), HelloError>) {
        assert_eq!(&compare(named, &Host::parse(host).unwrap()), expected, "{named:?} for {host}");
    }

    #[test]
    fn n10_name_is_the_authority_and_an_address_has_none() {
        let other = |name: &str| Err(HelloError::OtherName(name.to_owned()));
        check(Some("a.test"), "a.test", &Ok(()));
        check(Some("A.Test."), "a.test", &Ok(()));
        check(Some("b.a.test"), "a.test", &other("b.a.test"));
        check(Some("xa.test"), "a.test", &other("xa.test"));
        check(Some(""), "a.test", &other(""));
        check(None, "a.test", &Err(HelloError::NoName));
        check(None, "192.0.2.1", &Ok(()));
        check(None, "2001:db8::1", &Ok(()));
        check(Some("a.test"), "192.0.2.1", &other("a.test"));
        check(Some("192.0.2.1"), "192.0.2.1", &other("192.0.2.1"));
    }
}
