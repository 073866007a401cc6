//! The one place that opens an outgoing socket, and it wants a [`Permit`] (invariant 1).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::policy::Permit;

use upstream::{Link, Upstream};

pub(super) mod resolve;
pub(super) mod upstream;

/// How long dialling may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// One address.
    pub(super) attempt: Duration,
    /// All of them.
    pub(super) whole: Duration,
}

/// No address of a permit could be connected.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to any address")]
pub(super) struct DialError(#[source] pub(super) io::Error);

/// Connects to the first address of the permit that answers; the addresses were checked, and no other is tried.
pub(super) async fn dial(permit: Permit, patience: Patience) -> Result<Upstream, DialError> {
    let end = Instant::now() + patience.whole;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in permit.addresses() {
        let attempt_end = end.min(Instant::now() + patience.attempt);
        match timeout_at(attempt_end, connect(*address)).await {
            Ok(Ok(stream)) => return Ok(Upstream::new(Link::Tcp(stream), Bytes::new())),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(DialError(last))
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place, and it has a permit for the address"
    )]
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
