//! The one place that opens outgoing TCP sockets, and it wants a [`Permit`] (invariant 1): straight to a checked
//! address, or to the company's proxy, which is given the checked address and never a name (N16).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::Outbound;
use crate::policy::Permit;
use failure::DialError;
use race::race;
use resolve::Resolve;
use through::Through;
use upstream::{Link, Upstream};

pub(super) mod failure;
mod hosts;
mod own;
mod race;
pub(super) mod resolve;
mod roots;
mod servers;
mod through;
pub(super) mod upstream;

/// How many addresses of a permit are tried at most.
const MAX_ADDRESSES: usize = 16;

/// How long dialling may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// One address.
    pub(super) attempt: Duration,
    /// All of them.
    pub(super) whole: Duration,
}

/// How a connection gets out of this machine.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) outbound: &'a Outbound,
    /// Finds the company's proxy.
    pub(super) resolver: &'a dyn Resolve,
    pub(super) patience: Patience,
}

/// Connects to an address of the permit, and says to which; they were checked, and no other is tried.
pub(super) async fn dial(permit: Permit, way: Way<'_>) -> Result<(Upstream, SocketAddr), DialError> {
    match way.outbound {
        Outbound::Direct => {
            let (stream, address) = race(interleave(permit.addresses()), connect, way.patience).await?;
            Ok((Upstream::new(Link::Tcp(stream), Bytes::new()), address))
        }
        Outbound::Through(proxy) => {
            let through =
                Through { proxy, resolver: way.resolver, roots: &roots::SYSTEM, patience: way.patience };
            through.dial(permit.addresses()).await
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place: the address is of a permit, or of the proxy that the settings name"
    )]
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Both families in turn, IPv6 first (RFC 8305, 4); within a family the order stays.
fn interleave(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let (v6, v4): (Vec<_>, Vec<_>) =
        addresses.iter().copied().partition(|address| matches!(address.ip(), IpAddr::V6(_)));
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut mixed = Vec::with_capacity(addresses.len().min(MAX_ADDRESSES));
    while mixed.len() < MAX_ADDRESSES {
        let before = mixed.len();
        mixed.extend(v6.next());
        mixed.extend(v4.next());
        if mixed.len() == before {
            break;
        }
    }
    mixed.truncate(MAX_ADDRESSES);
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_and_the_count_is_bounded() {
        for (given, expected) in [
            (&["1.1.1.1:1", "1.1.1.2:1", "[2::1]:1"][..], &["[2::1]:1", "1.1.1.1:1", "1.1.1.2:1"][..]),
            (&["[2::1]:1", "[2::2]:1", "1.1.1.1:1"], &["[2::1]:1", "1.1.1.1:1", "[2::2]:1"]),
            (&["1.1.1.1:1"], &["1.1.1.1:1"]),
            (&[], &[]),
        ] {
            assert_eq!(interleave(&addresses(given)), addresses(expected));
        }
        let many: Vec<_> = (0..100).map(|last| SocketAddr::from(([1, 1, 1, last], 1))).collect();
        assert_eq!(interleave(&many), many[..MAX_ADDRESSES]);
    }
}
