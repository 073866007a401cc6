//! Patterns: what a rule is about (N5, N6, N9). A pattern is another type than a name.

mod reading;

use std::fmt;
use std::net::IpAddr;

use super::authority::{Authority, InvalidAuthority};
use super::host::{DomainName, Host};
use super::rule::Effect;
use crate::name::text_form;

use reading::{explained, read};

/// Says why a text is not a pattern and, where one is known, what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a pattern: {flaw}{}", .text.escape_debug(), advice(.repair.as_deref()))]
pub struct InvalidPattern {
    text: String,
    flaw: PatternFlaw,
    repair: Option<String>,
}

/// What is wrong with a text that should be a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternFlaw {
    /// White space stands in it.
    #[error("it holds white space")]
    Space,
    /// A scheme leads it.
    #[error("a rule names a host, not a URL")]
    Scheme,
    /// A user name or password stands in it.
    #[error("a rule names no user")]
    Userinfo,
    /// A path, query or fragment follows the host.
    #[error("a rule names a host, without a path")]
    Path,
    /// An address range stands in it.
    #[error("address ranges are not accepted; name each address")]
    Range,
    /// It starts with a dot.
    #[error("it starts with a dot")]
    LeadingDot,
    /// `*` stands elsewhere than as the whole first label.
    #[error("`*` may only be the whole first label of a name, as in `*.example.com`")]
    Star,
    /// `*` stands for the port.
    #[error("`*` is no port; a rule without a port means 443 and 80, others are named one by one")]
    StarPort,
    /// The wildcard covers names that belong to many owners.
    #[error("`{0}` is a public suffix: anybody can register names below it")]
    PublicSuffix(DomainName),
    /// The wildcard covers names that users of a shared service own.
    #[error("`{0}` is shared by the users of a service, any of whom can receive data there")]
    SharedSuffix(DomainName),
    /// A port stands where only names are wanted.
    #[error("only a name may stand here, without a port")]
    Port,
    /// An address stands where only names are wanted.
    #[error("only a name may stand here, not an address")]
    Address,
    /// The host or the port is not one.
    #[error(transparent)]
    Authority(#[from] InvalidAuthority),
}

fn advice(repair: Option<&str>) -> String {
    repair.map(|repair| format!("; write `{repair}`")).unwrap_or_default()
}

impl InvalidPattern {
    /// Tells what is wrong.
    pub fn flaw(&self) -> &PatternFlaw {
        &self.flaw
    }

    /// Gives the pattern to write instead, if one is known.
    pub fn repair(&self) -> Option<&str> {
        self.repair.as_deref()
    }
}

/// A name, or with `*.` all names below one at any depth and not that name itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainPattern {
    name: DomainName,
    reach: Reach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Reach {
    Exact,
    Below,
}

impl DomainPattern {
    /// Reads `example.com` or `*.example.com`.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let fail = |flaw, repair| Err(InvalidPattern { text: text.to_owned(), flaw, repair });
        match read(text, Effect::Allow) {
            Ok((PatternHost::Domain(pattern), None)) => Ok(pattern),
            Ok((PatternHost::Domain(pattern), Some(_))) => fail(PatternFlaw::Port, Some(pattern.to_string())),
            Ok((PatternHost::Ip(_), _)) => fail(PatternFlaw::Address, None),
            Err(flaw) => Err(explained(text, flaw, Effect::Allow)),
        }
    }

    /// Gives the name that the pattern is built on, without `*.`.
    pub fn name(&self) -> &DomainName {
        &self.name
    }

    /// Tells whether the pattern means the names below [`Self::name`].
    pub fn is_wildcard(&self) -> bool {
        self.reach == Reach::Below
    }

    /// Tells whether the pattern covers `name` in a rule with this effect. A wildcard that allows covers no names of
    /// strangers: none below a suffix that lies below the wildcard's own name (N5, N6).
    pub fn covers(&self, effect: Effect, name: &DomainName) -> bool {
        let is_meant = match (effect, self.reach) {
            (Effect::Allow, Reach::Below) => name.belongs_to_owner_of(self.name.as_str()),
            (Effect::Deny, _) | (_, Reach::Exact) => true,
        };
        is_meant && self.matches(name)
    }

    /// Tells whether the pattern stands for `name`, whoever's it is.
    pub(super) fn matches(&self, name: &DomainName) -> bool {
        match self.reach {
            Reach::Exact => *name == self.name,
            Reach::Below => name.parents().any(|parent| parent == self.name.as_str()),
        }
    }
}

impl From<DomainName> for DomainPattern {
    fn from(name: DomainName) -> Self {
        Self { name, reach: Reach::Exact }
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.is_wildcard() { "*." } else { "" };
        write!(f, "{star}{}", self.name)
    }
}

text_form!(DomainPattern, InvalidPattern);

/// The hosts that a pattern covers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PatternHost {
    /// A name or the names below one.
    Domain(DomainPattern),
    /// Exactly one address.
    Ip(IpAddr),
}

/// What a rule is about: hosts and, if named, a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern {
    host: PatternHost,
    port: Option<u16>,
}

impl Pattern {
    /// Reads `example.com`, `*.example.com:8443`, `192.0.2.1:443` or `[2001:db8::1]`, as narrow as an allow rule
    /// has to be.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        Self::parse_for(Effect::Allow, text)
    }

    /// Reads the pattern of a rule that has this effect: one that denies may cover names of many owners, like
    /// `*.com`.
    pub fn parse_for(effect: Effect, text: &str) -> Result<Self, InvalidPattern> {
        let (host, port) = read(text, effect).map_err(|flaw| explained(text, flaw, effect))?;
        Ok(Self { host, port })
    }

    /// Makes the pattern that covers exactly one authority.
    pub fn exactly(authority: &Authority) -> Self {
        let host = match authority.host() {
            Host::Name(name) => PatternHost::Domain(name.clone().into()),
            Host::Ip(address) => PatternHost::Ip(*address),
        };
        Self { host, port: Some(authority.port()) }
    }

    /// Makes the pattern that covers the names beside the one of an authority, at its port: `*.x.org:443` for
    /// `api.x.org:443`. There is none for an address, for a name of fewer than three labels, and where the names beside
    /// belong to others (N5, N6).
    pub fn beside(authority: &Authority) -> Option<Self> {
        let Host::Name(name) = authority.host() else { return None };
        let (_, above) = name.as_str().split_once('.')?;
        // A wildcard does not open name servers and local names.
        if !above.contains('.') || name.is_resolver() || name.is_local() {
            return None;
        }
        let host = DomainPattern::parse(&format!("*.{above}")).ok()?;
        host.covers(Effect::Allow, name).then_some(())?;
        Some(Self { host: PatternHost::Domain(host), port: Some(authority.port()) })
    }

    /// Tells whether the pattern covers an authority in a rule with this effect; one without a port covers every port.
    pub fn covers(&self, effect: Effect, authority: &Authority) -> bool {
        let is_host = match (&self.host, authority.host()) {
            (PatternHost::Domain(domain), Host::Name(name)) => domain.covers(effect, name),
            (PatternHost::Ip(own), Host::Ip(address)) => own == address,
            (PatternHost::Domain(_), Host::Ip(_)) | (PatternHost::Ip(_), Host::Name(_)) => false,
        };
        is_host && self.port.is_none_or(|port| port == authority.port())
    }

    /// Gives the hosts that the pattern covers.
    pub fn host(&self) -> &PatternHost {
        &self.host
    }

    /// Gives the port, if the pattern names one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Tells whether the pattern means the names below one.
    pub fn is_wildcard(&self) -> bool {
        match &self.host {
            PatternHost::Domain(domain) => domain.is_wildcard(),
            PatternHost::Ip(_) => false,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            PatternHost::Domain(domain) => domain.fmt(f)?,
            PatternHost::Ip(IpAddr::V4(address)) => address.fmt(f)?,
            PatternHost::Ip(IpAddr::V6(address)) => write!(f, "[{address}]")?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

text_form!(Pattern, InvalidPattern);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn reads(text: &str, canonical: &str) {
        let pattern = Pattern::parse(text).unwrap();
        assert_eq!(pattern.to_string(), canonical);
        assert_eq!(Pattern::parse(canonical), Ok(pattern));
    }

    #[track_caller]
    fn refuses(text: &str, flaw: &str, repair: Option<&str>) {
        let advice = repair.map(|repair| format!("; write `{repair}`")).unwrap_or_default();
        let error = Pattern::parse(text).unwrap_err();
        assert_eq!(error.to_string(), format!("`{}` is not a pattern: {flaw}{advice}", text.escape_debug()));
        assert_eq!(error.repair(), repair);
        if let Some(repair) = repair {
            assert_eq!(Pattern::parse(repair).unwrap().to_string(), repair);
        }
    }

    #[track_caller]
    fn matches(pattern: &str, name: &str, expected: bool) {
        let pattern = DomainPattern::parse(pattern).unwrap();
        let name = DomainName::parse(name).unwrap();
        assert_eq!(pattern.matches(&name), expected, "{pattern} {name}");
    }

    #[test]
    fn patterns_have_one_form() {
        reads("Example.com.", "example.com");
        reads("*.Example.com:8443", "*.example.com:8443");
        reads("*.bücher.example", "*.xn--bcher-kva.example");
        reads("10.1.2.3:443", "10.1.2.3:443");
        reads("[2001:DB8::1]:443", "[2001:db8::1]:443");
        reads("[2001:db8::1]", "[2001:db8::1]");
        reads("[::ffff:10.1.2.3]:5432", "10.1.2.3:5432");
        reads("db", "db");
        reads("you.github.io", "you.github.io");
        reads("*.you.github.io", "*.you.github.io");
        reads("*.city.kawasaki.jp", "*.city.kawasaki.jp");
    }

    #[test]
    fn n5_a_wildcard_over_a_public_suffix_is_refused_with_a_narrower_one() {
        let public = |name| format!("`{name}` is a public suffix: anybody can register names below it");
        for (suffix, narrower) in [
            ("com", "*.example.com"),
            ("co.uk", "*.example.co.uk"),
            ("corp", "*.example.corp"),
            ("localhost", "*.example.localhost"),
            ("internal", "*.example.internal"),
            // Every name below this one is a public suffix.
            ("kawasaki.jp", "*.example.example.kawasaki.jp"),
            ("ck", "*.example.example.ck"),
            // 公司.cn
            ("xn--55qx5d.cn", "*.example.xn--55qx5d.cn"),
        ] {
            refuses(&format!("*.{suffix}"), &public(suffix), Some(narrower));
            refuses(&format!("*.{suffix}:8443"), &public(suffix), Some(narrower));
        }
        refuses("*.公司.cn", &public("xn--55qx5d.cn"), Some("*.example.xn--55qx5d.cn"));
    }

    #[test]
    fn n5_n6_a_deny_rule_may_cover_names_of_many_owners() {
        for text in ["*.com", "*.co.uk:8443", "*.github.io", "*.localhost", "*.kawasaki.jp"] {
            assert_eq!(Pattern::parse_for(Effect::Deny, text).unwrap().to_string(), text);
            assert_eq!(Pattern::parse_for(Effect::Allow, text), Pattern::parse(text));
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
        // All else is as strict, and a repair is as broad as the rule may be.
        for text in ["*", "*com", "10.0.0.0/8", "x.com:*", ""] {
            assert_eq!(
                Pattern::parse_for(Effect::Deny, text).unwrap_err().flaw(),
                Pattern::parse(text).unwrap_err().flaw()
            );
        }
        let error = Pattern::parse_for(Effect::Deny, "https://*.com/").unwrap_err();
        assert_eq!(error.repair(), Some("*.com"));
    }

    #[test]
    fn n6_a_wildcard_over_a_shared_service_is_refused_with_an_exact_name() {
        for suffix in [
            "github.io",
            "blob.core.windows.net",
            "s3.amazonaws.com",
            "compute.amazonaws.com",
            "cloudfront.net",
            "herokuapp.com",
            "pages.dev",
        ] {
            let flaw =
                format!("`{suffix}` is shared by the users of a service, any of whom can receive data there");
            refuses(&format!("*.{suffix}"), &flaw, Some(&format!("you.{suffix}")));
        }
    }

    #[test]
    fn n5_a_star_is_the_whole_first_label_or_nothing() {
        let star = "`*` may only be the whole first label of a name, as in `*.example.com`";
        refuses("*", star, None);
        refuses("*example.com", star, Some("*.example.com"));
        refuses("**.example.com", star, Some("*.example.com"));
        refuses("*.*.example.com", star, Some("*.example.com"));
        refuses("api*.example.com", star, None);
        refuses("a.*.example.com", star, None);
        refuses("example.*", star, None);
        refuses("*.10.1.2.3", star, None);
        refuses("*.", "`` is not a host: it is empty", None);
        refuses(".example.com", "it starts with a dot", Some("*.example.com"));
    }

    #[test]
    fn patterns_that_look_like_urls_are_refused_with_the_repair() {
        let scheme = "a rule names a host, not a URL";
        refuses("https://x.com/", scheme, Some("x.com"));
        refuses("http://x.com:8080/a?b#c", scheme, Some("x.com:8080"));
        refuses("https://u:p@x.com", scheme, Some("x.com"));
        refuses("https://*.x.com/*", scheme, Some("*.x.com"));
        refuses("https://", scheme, None);
        let path = "a rule names a host, without a path";
        refuses("x.com/", path, Some("x.com"));
        refuses("x.com/a/b", path, Some("x.com"));
        refuses("x.com?q", path, Some("x.com"));
        refuses("x.com#f", path, Some("x.com"));
        refuses("u@x.com", "a rule names no user", Some("x.com"));
        refuses(" x.com", "it holds white space", Some("x.com"));
        refuses("x.com y.com", "it holds white space", None);
        refuses("x.com\n", "it holds white space", Some("x.com"));
        refuses("", "`` is not a host: it is empty", None);
    }

    #[test]
    fn n7_addresses_are_named_one_by_one_and_strictly() {
        let range = "address ranges are not accepted; name each address";
        refuses("10.0.0.0/8", range, None);
        refuses("fc00::/7", range, None);
        refuses(
            "2001:db8::1",
            "`2001:db8::1` is ambiguous; write an IPv6 address in brackets, like `[2001:db8::1]:443`",
            Some("[2001:db8::1]"),
        );
        refuses(
            "127.1",
            "`127.1` is not a host: it ends in a number and is no address; write an address as four decimal numbers, \
             like `192.0.2.1`",
            None,
        );
    }

    #[test]
    fn n9_a_port_is_a_number() {
        let star = "`*` is no port; a rule without a port means 443 and 80, others are named one by one";
        refuses("x.com:*", star, Some("x.com"));
        refuses("*:443", "`*` may only be the whole first label of a name, as in `*.example.com`", None);
        for port in ["0", "65536", "+1", "https"] {
            let flaw = format!("`{port}` is not a port; a port is a number from 1 to 65535");
            refuses(&format!("x.com:{port}"), &flaw, None);
        }
        refuses("x.com:", "`` is not a port; a port is a number from 1 to 65535", Some("x.com"));
    }

    #[test]
    fn where_only_a_name_may_stand_ports_and_addresses_are_refused() {
        let message = |text| DomainPattern::parse(text).unwrap_err().to_string();
        assert_eq!(DomainPattern::parse("*.Corp.example").unwrap().to_string(), "*.corp.example");
        assert_eq!(
            message("*.corp.example:443"),
            "`*.corp.example:443` is not a pattern: only a name may stand here, without a port; write \
             `*.corp.example`"
        );
        assert_eq!(
            message("10.0.0.1"),
            "`10.0.0.1` is not a pattern: only a name may stand here, not an address"
        );
        assert_eq!(
            message("https://corp.example"),
            "`https://corp.example` is not a pattern: a rule names a host, not a URL; write `corp.example`"
        );
    }

    #[test]
    fn n5_names_match_label_by_label() {
        matches("example.com", "example.com", true);
        matches("example.com", "EXAMPLE.COM.", true);
        matches("example.com", "a.example.com", false);
        matches("*.example.com", "a.example.com", true);
        matches("*.example.com", "a.b.c.example.com", true);
        matches("*.example.com", "example.com", false);
        matches("*.example.com", "evil-example.com", false);
        matches("*.example.com", "evilexample.com", false);
        matches("*.example.com", "a.example.com.evil.net", false);
        matches("*.example.com", "com", false);
    }

    #[test]
    fn exactly_one_authority_gives_its_pattern() {
        for text in ["example.com:443", "10.0.0.1:5432", "[2001:db8::1]:80", "com:443"] {
            assert_eq!(Pattern::exactly(&Authority::parse(text).unwrap()), Pattern::parse(text).unwrap());
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_as_the_same_pattern(
            text in "\\PC{0,40}|(\\*\\.)?[a-zA-Z0-9._-]{1,20}(:[0-9]{1,5})?|\\[[0-9a-f:.]{1,20}\\](:[0-9]{1,5})?",
        ) {
            if let Ok(pattern) = Pattern::parse(&text) {
                prop_assert_eq!(Pattern::parse(&pattern.to_string()), Ok(pattern));
            }
        }

        #[test]
        fn a_repair_is_a_pattern(text in "\\PC{0,40}|([a-z]{1,5}://)?[a-z*@./: ]{1,20}") {
            if let Some(repair) = Pattern::parse(&text).err().and_then(|error| error.repair) {
                prop_assert_eq!(Pattern::parse(&repair).unwrap().to_string(), repair);
            }
        }

        #[test]
        fn n5_a_wildcard_never_matches_a_name_that_only_ends_alike(
            prefix in "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?",
            labels in "([a-z0-9]{1,8}\\.){0,3}",
        ) {
            let pattern = DomainPattern::parse("*.example.com").unwrap();
            let alike = DomainName::parse(&format!("{labels}{prefix}example.com")).unwrap();
            prop_assert!(!pattern.matches(&alike));
            let below = DomainName::parse(&format!("{labels}{prefix}.example.com")).unwrap();
            prop_assert!(pattern.matches(&below));
            let elsewhere = DomainName::parse(&format!("{labels}example.com.{prefix}.net")).unwrap();
            prop_assert!(!pattern.matches(&elsewhere));
        }
    }
}
