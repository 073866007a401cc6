//! Which addresses belong to this machine: what listens there is as near as on loopback (T11).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

/// How long the system's word is believed: addresses come and go with networks, and asking costs a few system
/// calls, on every request.
const BELIEVED: Duration = Duration::from_secs(1);
/// How many addresses are remembered at most.
const MAX_KNOWN: usize = 4096;
/// What holds for an address of which the system can't say whose it is: whoever uses up what asking takes gains
/// nothing (invariant 7).
const UNKNOWN: bool = true;
/// A port for a socket that sends nothing.
const DISCARD_PORT: u16 = 9;

/// What the system said a moment ago.
#[derive(Debug, Default)]
pub(super) struct OwnAddresses(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    since: Option<Instant>,
    addresses: HashMap<IpAddr, bool>,
}

impl OwnAddresses {
    /// Tells whether an address belongs to this machine, or did so a moment ago.
    pub(super) fn contain(&self, address: IpAddr) -> bool {
        self.ask(address, Instant::now(), of_system)
    }

    fn ask(&self, address: IpAddr, now: Instant, system: impl Fn(IpAddr) -> Option<bool>) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = known.since.is_some_and(|since| now.saturating_duration_since(since) < BELIEVED);
        if !fresh || known.addresses.len() >= MAX_KNOWN {
            *known = Known { since: Some(now), addresses: HashMap::new() };
        }
        if let Some(belongs) = known.addresses.get(&address) {
            return *belongs;
        }
        let belongs = system(address);
        known.addresses.extend(belongs.map(|belongs| (address, belongs)));
        belongs.unwrap_or(UNKNOWN)
    }
}

/// Tells whether an address belongs to this machine.
pub(super) fn belongs_here(address: IpAddr) -> bool {
    of_system(address).unwrap_or(UNKNOWN)
}

/// Asks the system, without a packet: only an address of this machine can be bound, and only from there does a
/// socket send when it is connected to there. `None` when it could not say, such as without a descriptor left.
fn of_system(address: IpAddr) -> Option<bool> {
    let binds = |address: IpAddr| means(UdpSocket::bind((address, 0)));
    let (anywhere, foreign) = match address {
        IpAddr::V4(_) => (IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::new(192, 0, 2, 1))),
        IpAddr::V6(_) => {
            let example = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
            (IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(example))
        }
    };
    let sends_from_there = || {
        let socket = UdpSocket::bind((anywhere, 0))?;
        socket.connect((address, DISCARD_PORT))?;
        Ok::<_, io::Error>(socket.local_addr()?.ip() == address)
    };
    if !binds(address)? {
        return Some(false);
    }
    // A system can be told to let every address be bound (`ip_nonlocal_bind`).
    if binds(foreign)? { sends_from_there().ok() } else { Some(true) }
}

/// What binding an address says of it; most errors say nothing.
fn means<T>(bound: io::Result<T>) -> Option<bool> {
    match bound {
        Ok(_) => Some(true),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT) => Some(false),
            Some(_) | None => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn t11_an_address_of_this_machine_is_known() {
        for (address, own) in
            [("127.0.0.1", true), ("127.8.8.8", true), ("8.8.8.8", false), ("2001:4860::1", false)]
        {
            assert_eq!(belongs_here(address.parse().unwrap()), own, "{address}");
        }
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        // Only a machine with a way out has an address besides loopback.
        if socket.connect("8.8.8.8:9").is_ok() {
            assert!(belongs_here(socket.local_addr().unwrap().ip()));
        }
    }

    #[test]
    fn t11_the_system_is_asked_anew_after_a_moment_and_little_is_remembered() {
        let (own, asked) = (OwnAddresses::default(), Cell::new(0));
        let answer = |address: IpAddr| {
            asked.set(asked.get() + 1);
            Some(address.is_loopback())
        };
        let start = Instant::now();
        let (here, there) = ("127.0.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap());
        for _ in 0..3 {
            assert!(own.ask(here, start, answer));
            assert!(!own.ask(there, start + BELIEVED / 2, answer));
        }
        assert_eq!(asked.get(), 2);
        assert!(own.ask(here, start + BELIEVED, answer));
        assert_eq!(asked.get(), 3);
        for last in 0..=u16::MAX {
            own.ask(IpAddr::from(Ipv4Addr::from(u32::from(last))), start + BELIEVED, answer);
        }
        assert!(own.0.lock().unwrap().addresses.len() <= MAX_KNOWN);
    }

    #[test]
    fn t11_an_address_is_own_until_the_system_has_said_that_it_is_not() {
        let (own, now, address) = (OwnAddresses::default(), Instant::now(), "192.0.2.1".parse().unwrap());
        for (said, expected) in [(None, true), (None, true), (Some(false), false), (Some(true), false)] {
            assert_eq!(own.ask(address, now, |_| said), expected, "{said:?}");
        }
    }

    #[test]
    fn t11_h15_want_of_descriptors_says_nothing_of_an_address() {
        assert_eq!(means(Ok(())), Some(true));
        for (errno, expected) in [
            (Errno::ADDRNOTAVAIL, Some(false)),
            // A machine without IPv6.
            (Errno::AFNOSUPPORT, Some(false)),
            (Errno::MFILE, None),
            (Errno::NFILE, None),
            (Errno::NOBUFS, None),
            (Errno::NOMEM, None),
            (Errno::ADDRINUSE, None),
            (Errno::ACCESS, None),
        ] {
            assert_eq!(means::<()>(Err(errno.into())), expected, "{errno}");
        }
    }
}
