//! Public name servers that are asked inside of HTTPS (D8).
//!
//! Whoever reaches one can ask it anything, and so tell anybody anything by the names that are asked for. A wildcard
//! that happens to cover one, such as `*.google.com`, does not mean it. The list can't be complete: what no rule
//! names is refused anyway.

/// Each with all names below it.
const RESOLVERS: [&str; 43] = [
    "1dot1dot1dot1.cloudflare-dns.com",
    "adguard-dns.com",
    "cloudflare-dns.com",
    "cloudflare-gateway.com",
    "dns.adguard.com",
    "dns.alidns.com",
    "dns.apple.com",
    "dns.bebasid.com",
    "dns.controld.com",
    "dns.digitale-gesellschaft.ch",
    "dns.google",
    "dns.google.com",
    "dns.hinet.net",
    "dns.mullvad.net",
    "dns.nextdns.io",
    "dns.njal.la",
    "dns.pub",
    "dns.quad9.net",
    "dns.sb",
    "dns.switch.ch",
    "dns.twnic.tw",
    "dns0.eu",
    "dns10.quad9.net",
    "dns11.quad9.net",
    "dns9.quad9.net",
    "doh.360.cn",
    "doh.cleanbrowsing.org",
    "doh.cox.net",
    "doh.familyshield.opendns.com",
    "doh.ffmuc.net",
    "doh.libredns.gr",
    "doh.opendns.com",
    "doh.pub",
    "doh.sandbox.opendns.com",
    "doh.umbrella.com",
    "doh.xfinity.com",
    "freedns.controld.com",
    "odvr.nic.cz",
    "one.one.one.one",
    "ordns.he.net",
    "public.dns.iij.jp",
    "unfiltered.joindns4.eu",
    "wikimedia-dns.org",
];

/// Tells whether a public name server answers under this name.
pub(super) fn contain(name: &str) -> bool {
    RESOLVERS.binary_search(&name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::RESOLVERS;
    use crate::policy::DomainName;

    #[test]
    fn d8_the_list_is_in_order_and_holds_names_in_their_one_form() {
        assert!(RESOLVERS.is_sorted());
        for name in RESOLVERS {
            assert_eq!(DomainName::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn d8_names_below_a_resolver_are_its_own_and_names_above_it_are_not() {
        for name in ["dns.google", "DNS.Google.com.", "mozilla.cloudflare-dns.com", "abc.dns.nextdns.io"] {
            assert!(DomainName::parse(name).unwrap().is_resolver(), "{name}");
        }
        for name in
            ["google.com", "www.google.com", "xdns.google", "quad9.net", "nextdns.io", "dns.google.evil.test"]
        {
            assert!(!DomainName::parse(name).unwrap().is_resolver(), "{name}");
        }
    }
}
