//! `/etc/hosts`: what stands there goes before the DNS, and is judged like any answer.

use std::collections::HashMap;
use std::net::IpAddr;

/// The names of a hosts file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hosts(HashMap<String, Vec<IpAddr>>);

impl Hosts {
    /// Reads what can be read: a line that makes no sense means nothing, as it does to the system's own resolver.
    pub(super) fn parse(text: &str) -> Self {
        let mut hosts: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
            for name in words {
                let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
                let addresses = hosts.entry(name).or_default();
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        Self(hosts)
    }

    /// The addresses of a name; the DNS is not asked for one that is here, whatever its family.
    pub(super) fn get(&self, name: &str) -> Option<&[IpAddr]> {
        self.0.get(name).map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_addresses_and_what_makes_no_sense_is_left_out() {
        let hosts = Hosts::parse(
            "127.0.0.1 localhost\n\n# 10.0.0.1 comment.test\n10.1.2.3\tDB.corp db # ours.test\n::1 localhost\n\
             10.1.2.4 db.corp.\n10.1.2.4 db.corp\nfe80::1%eth0 scoped.test\nnonsense bad.test\n10.9.9.9\n\u{feff}",
        );
        let check = |name: &str, expected: &[&str]| {
            let expected: Vec<IpAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(hosts.get(name).unwrap_or_default(), expected, "{name}");
        };
        check("localhost", &["127.0.0.1", "::1"]);
        check("db.corp", &["10.1.2.3", "10.1.2.4"]);
        check("db", &["10.1.2.3"]);
        for name in ["comment.test", "ours.test", "bad.test", "scoped.test", "corp", ""] {
            assert_eq!(hosts.get(name), None, "{name}");
        }
    }
}
