//! Address classes: which addresses may be dialled at all (N7, N8, K12).
//!
//! The tables follow the IANA IPv4 and IPv6 special-purpose address registries.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What kind of address an address is, ordered from harmless to never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressClass {
    /// Globally reachable.
    Public,
    /// RFC 1918, or IPv6 unique local.
    Private,
    /// Carrier-grade NAT (RFC 6598), which overlay networks use, too; treated as private.
    Shared,
    /// This machine.
    Loopback,
    /// Reserved for examples.
    Documentation,
    /// Reserved for benchmarks.
    Benchmarking,
    /// Reserved for protocols or the future.
    Reserved,
    /// A group of machines.
    Multicast,
    /// All machines of a network.
    Broadcast,
    /// No address, or `this network`: connects to this machine on many systems.
    Unspecified,
    /// The local link, where metadata services live.
    LinkLocal,
    /// A cloud's metadata service at an address of its own.
    Metadata,
}

impl AddressClass {
    /// Classes an address; one that hides an IPv4 address is as bad as the worse of the two.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => class_v4(address),
            IpAddr::V6(address) => {
                embedded(address).into_iter().map(class_v4).fold(class_v6(address), Self::max)
            }
        }
    }

    /// Tells whether neither a rule nor a pin nor a private name opens addresses of this class.
    pub fn is_never_allowed(self) -> bool {
        match self {
            Self::Public | Self::Private | Self::Shared | Self::Loopback => false,
            Self::Documentation
            | Self::Benchmarking
            | Self::Reserved
            | Self::Multicast
            | Self::Broadcast
            | Self::Unspecified
            | Self::LinkLocal
            | Self::Metadata => true,
        }
    }
}

impl fmt::Display for AddressClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Shared => "carrier-grade NAT",
            Self::Loopback => "loopback",
            Self::Documentation => "documentation",
            Self::Benchmarking => "benchmarking",
            Self::Reserved => "reserved",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Unspecified => "unspecified",
            Self::LinkLocal => "link-local",
            Self::Metadata => "cloud metadata",
        })
    }
}

/// A network of a registry: its first address, its prefix length and its class.
type Network<A> = (A, u32, AddressClass);

const fn v4(a: u8, b: u8, c: u8, d: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}

/// The special networks of IPv4; the first that contains an address classes it.
const NETWORKS_V4: [Network<Ipv4Addr>; 22] = [
    (v4(100, 100, 100, 200), 32, AddressClass::Metadata), // Alibaba Cloud
    (v4(168, 63, 129, 16), 32, AddressClass::Metadata),   // Azure's wire server
    (v4(169, 254, 169, 254), 32, AddressClass::Metadata), // most clouds
    (v4(192, 0, 0, 192), 32, AddressClass::Metadata),     // Oracle Cloud, classic
    (v4(0, 0, 0, 0), 8, AddressClass::Unspecified),       // RFC 791
    (v4(10, 0, 0, 0), 8, AddressClass::Private),          // RFC 1918
    (v4(100, 64, 0, 0), 10, AddressClass::Shared),        // RFC 6598
    (v4(127, 0, 0, 0), 8, AddressClass::Loopback),        // RFC 1122
    (v4(169, 254, 0, 0), 16, AddressClass::LinkLocal),    // RFC 3927
    (v4(172, 16, 0, 0), 12, AddressClass::Private),       // RFC 1918
    (v4(192, 0, 0, 9), 32, AddressClass::Public),         // RFC 7723, PCP anycast
    (v4(192, 0, 0, 10), 32, AddressClass::Public),        // RFC 8155, TURN anycast
    (v4(192, 0, 0, 0), 24, AddressClass::Reserved),       // RFC 6890
    (v4(192, 0, 2, 0), 24, AddressClass::Documentation),  // RFC 5737
    (v4(192, 88, 99, 0), 24, AddressClass::Reserved),     // RFC 7526, former 6to4 relays
    (v4(192, 168, 0, 0), 16, AddressClass::Private),      // RFC 1918
    (v4(198, 18, 0, 0), 15, AddressClass::Benchmarking),  // RFC 2544
    (v4(198, 51, 100, 0), 24, AddressClass::Documentation), // RFC 5737
    (v4(203, 0, 113, 0), 24, AddressClass::Documentation), // RFC 5737
    (v4(224, 0, 0, 0), 4, AddressClass::Multicast),       // RFC 5771
    (v4(255, 255, 255, 255), 32, AddressClass::Broadcast), // RFC 919
    (v4(240, 0, 0, 0), 4, AddressClass::Reserved),        // RFC 1112
];

const fn v6(a: u16, b: u16, c: u16, d: u16) -> Ipv6Addr {
    Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)
}

/// The special networks of IPv6; the first that contains an address classes it.
const NETWORKS_V6: [Network<Ipv6Addr>; 23] = [
    (v6(0xfd00, 0xec2, 0, 0), 32, AddressClass::Metadata), // AWS: instance metadata and its kin
    (Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254), 128, AddressClass::Metadata), // Google Cloud
    (Ipv6Addr::UNSPECIFIED, 128, AddressClass::Unspecified), // RFC 4291
    (Ipv6Addr::LOCALHOST, 128, AddressClass::Loopback),    // RFC 4291
    (v6(0x64, 0xff9b, 0, 0), 96, AddressClass::Public),    // RFC 6052, judged by IPv4
    (Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 1), 128, AddressClass::Public), // RFC 7723, PCP anycast
    (Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 2), 128, AddressClass::Public), // RFC 8155, TURN anycast
    (Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 3), 128, AddressClass::Public), // RFC 9665, DNS-SD SRP
    (v6(0x2001, 0, 0, 0), 32, AddressClass::Public),       // RFC 4380, judged by IPv4
    (v6(0x2001, 2, 0, 0), 48, AddressClass::Benchmarking), // RFC 5180
    (v6(0x2001, 3, 0, 0), 32, AddressClass::Public),       // RFC 7450, AMT
    (v6(0x2001, 4, 0x112, 0), 48, AddressClass::Public),   // RFC 7535, AS112
    (v6(0x2001, 0x20, 0, 0), 28, AddressClass::Public),    // RFC 7343, ORCHIDv2
    (v6(0x2001, 0x30, 0, 0), 28, AddressClass::Public),    // RFC 9374, drone ids
    (v6(0x2001, 0, 0, 0), 23, AddressClass::Reserved),     // RFC 2928
    (v6(0x2001, 0xdb8, 0, 0), 32, AddressClass::Documentation), // RFC 3849
    (v6(0x3fff, 0, 0, 0), 20, AddressClass::Documentation), // RFC 9637
    (v6(0x2000, 0, 0, 0), 3, AddressClass::Public),        // RFC 4291; 6to4 is judged by IPv4
    (v6(0xfc00, 0, 0, 0), 7, AddressClass::Private),       // RFC 4193
    (v6(0xfe80, 0, 0, 0), 10, AddressClass::LinkLocal),    // RFC 4291
    (v6(0xfec0, 0, 0, 0), 10, AddressClass::Reserved),     // RFC 3879, former site-local
    (v6(0xff00, 0, 0, 0), 8, AddressClass::Multicast),     // RFC 4291
    // Nothing else is allocated; this covers 64:ff9b:1::/48, 100::/64, 5f00::/16 and the compatible ::/96.
    (Ipv6Addr::UNSPECIFIED, 0, AddressClass::Reserved),
];

/// Gives the IPv4 addresses that an IPv6 address carries to a translator or a tunnel.
fn embedded(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let join = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        // IPv4-compatible (RFC 4291), and NAT64 (RFC 6052, RFC 8215)
        [0, 0, 0, 0, 0, 0, a, b] | [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x64, 0xff9b, 1, .., a, b] => {
            vec![join(a, b)]
        }
        // Teredo (RFC 4380): the server, and the client with its bits flipped
        [0x2001, 0, a, b, .., c, d] => vec![join(a, b), join(!c, !d)],
        // 6to4 (RFC 3056)
        [0x2002, a, b, ..] => vec![join(a, b)],
        _ => Vec::new(),
    }
}

fn class_v4(address: Ipv4Addr) -> AddressClass {
    let contains = |network: &Network<Ipv4Addr>| {
        let difference = address.to_bits() ^ network.0.to_bits();
        difference.leading_zeros() >= network.1
    };
    NETWORKS_V4.iter().find(|network| contains(network)).map_or(AddressClass::Public, |network| network.2)
}

fn class_v6(address: Ipv6Addr) -> AddressClass {
    let contains = |network: &Network<Ipv6Addr>| {
        let difference = address.to_bits() ^ network.0.to_bits();
        difference.leading_zeros() >= network.1
    };
    NETWORKS_V6.iter().find(|network| contains(network)).map_or(AddressClass::Reserved, |network| network.2)
}
