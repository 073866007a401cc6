//! The addresses of this host, read from the kernel's tables.

use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

/// The addresses on which a service of this host could listen, loopback first.
pub(super) fn addresses(root: &Path) -> Vec<IpAddr> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let mut all = version_4(&read("proc/net/fib_trie"));
    all.extend(version_6(&read("proc/net/if_inet6")));
    all
}

/// The local addresses of a routing table as `/proc/net/fib_trie` draws it; each subnet is drawn twice.
fn version_4(table: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut last = None;
    for line in table.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = last.take()
            && !found.contains(&IpAddr::V4(address))
        {
            found.push(IpAddr::V4(address));
        }
    }
    found.sort_by_key(|address| !address.is_loopback());
    found
}

/// The addresses of `/proc/net/if_inet6` that need no interface beside them.
fn version_6(table: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let bits = u128::from_str_radix(line.split_ascii_whitespace().next()?, 16).ok()?;
        let address = Ipv6Addr::from_bits(bits);
        (!address.is_unicast_link_local()).then_some(IpAddr::V6(address))
    };
    let mut found: Vec<IpAddr> = table.lines().filter_map(address).collect();
    found.sort_by_key(|address| !address.is_loopback());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     \
                    |-- 192.0.2.2\n        /32 host LOCAL\n     |-- 192.0.2.255\n        /32 link BROADCAST\n\
                    Local:\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 192.0.2.2\n        /32 host LOCAL\n";
        assert_eq!(version_4(trie), ["127.0.0.1", "192.0.2.2"].map(|text| text.parse::<IpAddr>().unwrap()));
        let inet6 = "fe80000000000000000000fffe000001 04 40 20 80     eth0\n\
                     fd000000000000000000000000000002 04 40 00 82     eth0\n\
                     00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!(version_6(inet6), ["::1", "fd00::2"].map(|text| text.parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn a_host_without_tables_has_no_address() {
        assert_eq!(addresses(Path::new("/nonexistent")), [] as [IpAddr; 0]);
    }
}
