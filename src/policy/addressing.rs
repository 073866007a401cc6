//! Which addresses a name may stand for: pins, private names, and the guardian's own sockets (D4, K12, H18).

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use super::address::{self, AddressClass};
use super::host::{DomainName, Host};
use super::pattern::DomainPattern;

/// The address settings of a policy.
#[derive(Debug)]
pub(super) struct Addressing {
    pins: BTreeMap<DomainName, Vec<IpAddr>>,
    private_names: HashSet<DomainName>,
    private_below: HashSet<DomainName>,
    listening: Vec<SocketAddr>,
}

/// How an address came to stand for a host, which decides what classes it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The request named the address, and a rule does so, too.
    Literal,
    /// The configuration pins the name to it.
    Pinned,
    /// The DNS gave it for a name that may be private.
    PrivateName,
    /// The DNS gave it for any other name.
    PublicName,
}

impl Source {
    fn accepts(self, class: AddressClass) -> bool {
        match class {
            AddressClass::Public => true,
            AddressClass::Private | AddressClass::Shared => self != Self::PublicName,
            AddressClass::Loopback => self == Self::Pinned,
            AddressClass::Documentation
            | AddressClass::Benchmarking
            | AddressClass::Reserved
            | AddressClass::Multicast
            | AddressClass::Broadcast
            | AddressClass::Unspecified
            | AddressClass::LinkLocal
            | AddressClass::Metadata => false,
        }
    }
}

impl Addressing {
    pub(super) fn new(
        pins: BTreeMap<DomainName, Vec<IpAddr>>,
        private: Vec<DomainPattern>,
        listening: Vec<SocketAddr>,
    ) -> Self {
        let (below, exact): (Vec<_>, Vec<_>) = private.into_iter().partition(DomainPattern::is_wildcard);
        let names =
            |patterns: Vec<DomainPattern>| patterns.iter().map(|pattern| pattern.name().clone()).collect();
        let pins = pins.into_iter().map(|(name, addresses)| (name, canonical(&addresses))).collect();
        Self { pins, private_names: names(exact), private_below: names(below), listening }
    }

    /// Gives the addresses that a name is pinned to, if it is.
    pub(super) fn pinned(&self, name: &DomainName) -> Option<&[IpAddr]> {
        self.pins.get(name).map(Vec::as_slice)
    }

    /// Tells how addresses come to stand for `host`.
    pub(super) fn source(&self, host: &Host) -> Source {
        match host {
            Host::Ip(_) => Source::Literal,
            Host::Name(name) if self.pins.contains_key(name) => Source::Pinned,
            Host::Name(name) if self.is_private(name) => Source::PrivateName,
            Host::Name(_) => Source::PublicName,
        }
    }

    fn is_private(&self, name: &DomainName) -> bool {
        let is_below = |parent: &str| self.private_below.contains(parent) && name.belongs_to_owner_of(parent);
        self.private_names.contains(name) || name.parents().any(is_below)
    }

    /// Checks all addresses and gives what to dial; one that is forbidden refuses them all.
    ///
    /// # Errors
    /// What is wrong with the first address that may not be dialled.
    pub(super) fn check(
        &self,
        source: Source,
        addresses: &[IpAddr],
        port: u16,
        is_own: impl Fn(IpAddr) -> bool,
    ) -> Result<Vec<SocketAddr>, String> {
        let mut checked = Vec::with_capacity(addresses.len());
        for address in canonical(addresses) {
            let class = AddressClass::of(address);
            if !source.accepts(class) {
                return Err(format!("`{address}` is a {class} address"));
            }
            let is_own = address::forms(address).into_iter().any(&is_own);
            if is_own && !source.accepts(AddressClass::Loopback) {
                return Err(format!("`{address}` belongs to this machine"));
            }
            let is_local = is_own || class == AddressClass::Loopback;
            let address = SocketAddr::new(address, port);
            if self.listening.iter().any(|own| is_same_socket(*own, address, is_local)) {
                return Err(format!("the guardian itself listens on `{address}`"));
            }
            if !checked.contains(&address) {
                checked.push(address);
            }
        }
        Ok(checked)
    }
}

fn canonical(addresses: &[IpAddr]) -> Vec<IpAddr> {
    addresses.iter().map(IpAddr::to_canonical).collect()
}

/// Tells whether dialling `asked` on this machine can reach a socket that listens on `own`.
fn is_same_socket(own: SocketAddr, asked: SocketAddr, is_local: bool) -> bool {
    let (own_ip, asked_ip) = (own.ip().to_canonical(), asked.ip());
    // A socket on all addresses answers on every local one, in both families.
    own.port() == asked.port() && (own_ip == asked_ip || own_ip.is_unspecified() && is_local)
}
