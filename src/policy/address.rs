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

/// Gives an address in its canonical form, and the IPv4 addresses that it leads to by another way.
pub(super) fn forms(address: IpAddr) -> Vec<IpAddr> {
    let canonical = address.to_canonical();
    let carried = match canonical {
        IpAddr::V4(_) => Vec::new(),
        IpAddr::V6(address) => embedded(address),
    };
    [canonical].into_iter().chain(carried.into_iter().map(IpAddr::V4)).collect()
}

/// Gives the IPv4 addresses that an IPv6 address carries to a translator or a tunnel.
fn embedded(address: Ipv6Addr) -> Vec<Ipv4Addr> {
    let join = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        // `::` and `::1` only look like IPv4-compatible addresses.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Vec::new(),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(class: AddressClass, addresses: &[&str]) {
        for address in addresses {
            assert_eq!(AddressClass::of(address.parse().unwrap()), class, "{address}");
        }
    }

    #[test]
    fn n8_the_ipv4_registry() {
        use AddressClass as Class;
        check(
            Class::Public,
            &["1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0"],
        );
        check(
            Class::Public,
            &["126.255.255.255", "128.0.0.0", "172.15.255.255", "172.32.0.0", "192.0.0.9", "192.0.0.10"],
        );
        check(
            Class::Public,
            &["192.0.1.0", "192.31.196.1", "192.52.193.1", "192.175.48.1", "198.17.255.255"],
        );
        check(Class::Public, &["198.20.0.0", "223.255.255.255", "169.253.255.255", "169.255.0.0"]);
        check(Class::Private, &["10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.1"]);
        check(Class::Shared, &["100.64.0.0", "100.127.255.255"]);
        check(Class::Loopback, &["127.0.0.0", "127.0.0.1", "127.255.255.255"]);
        check(Class::Documentation, &["192.0.2.1", "198.51.100.1", "203.0.113.255"]);
        check(Class::Benchmarking, &["198.18.0.0", "198.19.255.255"]);
        check(Class::Reserved, &["192.0.0.0", "192.0.0.8", "192.0.0.170", "192.0.0.255", "192.88.99.1"]);
        check(Class::Reserved, &["240.0.0.0", "255.255.255.254"]);
        check(Class::Multicast, &["224.0.0.0", "239.255.255.255"]);
        check(Class::Broadcast, &["255.255.255.255"]);
        check(Class::Unspecified, &["0.0.0.0", "0.0.0.1", "0.255.255.255"]);
        check(Class::LinkLocal, &["169.254.0.0", "169.254.170.2", "169.254.255.255"]);
    }

    #[test]
    fn n8_the_ipv6_registry() {
        use AddressClass as Class;
        check(Class::Public, &["2606:4700::1111", "2000::", "3ffe::1", "2620:4f:8000::1", "2001:200::1"]);
        check(
            Class::Public,
            &["2001:1::1", "2001:1::2", "2001:1::3", "2001:3::1", "2001:4:112::1", "2001:20::1"],
        );
        check(Class::Private, &["fc00::1", "fd12:3456::1", "fdff:ffff::1"]);
        check(Class::Loopback, &["::1"]);
        check(Class::Documentation, &["2001:db8::1", "3fff::1", "3fff:fff::1"]);
        check(Class::Benchmarking, &["2001:2::1"]);
        check(
            Class::Reserved,
            &["2001:1::4", "2001:10::1", "2001:1ff::1", "100::1", "100:0:0:1::1", "5f00::1"],
        );
        check(
            Class::Reserved,
            &["4000::1", "e000::1", "fec0::1", "::ffff:0:8.8.8.8", "1::", "64:ff9b:1::8.8.8.8"],
        );
        check(Class::Multicast, &["ff00::", "ff02::1", "ff0e::1"]);
        check(Class::Unspecified, &["::"]);
        check(Class::LinkLocal, &["fe80::1", "febf::1"]);
    }

    #[test]
    fn n7_an_address_that_hides_another_is_as_bad_as_that_one() {
        use AddressClass as Class;
        check(Class::Loopback, &["::ffff:127.0.0.1", "64:ff9b::127.0.0.1", "2002:7f00:1::1"]);
        check(Class::Private, &["::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:c0a8:101::1"]);
        check(Class::Public, &["::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"]);
        check(Class::Reserved, &["::8.8.8.8", "::127.0.0.1"]);
        check(Class::Unspecified, &["64:ff9b::", "2002::1"]);
        check(Class::LinkLocal, &["64:ff9b::169.254.0.1", "2002:a9fe:1::"]);
        // Teredo: a public server and a public client, then a loopback client, then a private server.
        check(Class::Public, &["2001:0:808:808::f7f7:f7f7"]);
        check(Class::Loopback, &["2001:0:808:808::80ff:fffe"]);
        check(Class::Private, &["2001:0:a00:1::f7f7:f7f7"]);
    }

    #[test]
    fn k12_metadata_services_are_a_class_of_their_own() {
        check(
            AddressClass::Metadata,
            &["169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192"],
        );
        check(AddressClass::Metadata, &["fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"]);
        check(
            AddressClass::Metadata,
            &["::ffff:169.254.169.254", "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::1"],
        );
        check(AddressClass::Metadata, &["::169.254.169.254", "64:ff9b:1::169.254.169.254"]);
    }

    proptest! {
        #[test]
        fn n7_no_embedding_makes_an_address_better(bits in any::<u32>(), low in any::<u64>()) {
            let address = Ipv4Addr::from_bits(bits);
            let class = AddressClass::of(address.into());
            let wide = u128::from(bits);
            let forms = [
                0xffff_0000_0000 | wide,
                wide,
                0x64_ff9b << 96 | wide,
                0x64_ff9b_0001 << 80 | wide,
                0x2002 << 112 | wide << 80 | u128::from(low),
                0x2001 << 112 | wide << 64 | u128::from(low),
                0x2001 << 112 | u128::from(low) << 64 >> 32 | u128::from(!bits),
            ];
            for form in forms {
                // `::` and `::1` are addresses of their own.
                prop_assert!(form <= 1 || AddressClass::of(IpAddr::V6(Ipv6Addr::from_bits(form))) >= class, "{form:x}");
            }
        }

        #[test]
        fn n8_only_global_unicast_is_public(bits in any::<u128>()) {
            let address = Ipv6Addr::from_bits(bits);
            if AddressClass::of(address.into()) == AddressClass::Public {
                let is_translated = address.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
                prop_assert!(address.segments()[0] >> 13 == 1 || is_translated || address.to_ipv4_mapped().is_some());
            }
        }
    }
}
