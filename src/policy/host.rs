//! Hosts: the one parser of names and address literals (N1, N2, N3, N7).

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use unicode_security::MixedScript as _;
use unicode_security::skeleton;

use crate::name::text_form;

mod resolvers;
pub(super) mod suffixes;

/// The longest text that is looked at: 253 characters of up to four bytes fit well.
const MAX_INPUT_BYTES: usize = 1024;
/// The longest name (RFC 1035, without the final dot).
const MAX_NAME_BYTES: usize = 253;
/// The longest label (RFC 1035).
const MAX_LABEL_BYTES: usize = 63;

/// Says why a text is not a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a host: {flaw}", .text.escape_debug())]
pub struct InvalidHost {
    text: String,
    flaw: HostFlaw,
}

/// What is wrong with a text that should be a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostFlaw {
    /// Nothing is there.
    #[error("it is empty")]
    Empty,
    /// The name is over 253 characters.
    #[error("it is longer than 253 characters")]
    TooLong,
    /// A label is over 63 characters.
    #[error("a label is longer than 63 characters")]
    LongLabel,
    /// Two dots follow each other, or a dot leads.
    #[error("a label between two dots is empty")]
    EmptyLabel,
    /// A label starts or ends with `-`.
    #[error("a label starts or ends with `-`")]
    Hyphen,
    /// A character that no host name holds.
    #[error("it holds the character {0:?}; only letters, digits, `-`, `_` and `.` may stand there")]
    Character(char),
    /// Unicode text without a valid form in the DNS (UTS 46).
    #[error("it has no valid form in the DNS (IDNA)")]
    Idna,
    /// A number that some programs read as an address, and that is not a dotted quad.
    #[error(
        "it ends in a number and is no address; write an address as four decimal numbers, like `192.0.2.1`"
    )]
    Numeric,
    /// An address stands where only a name may stand.
    #[error("it is an address, not a name")]
    Address,
    /// A zone id (`%eth0`) follows the address.
    #[error("an address with a zone id is not accepted")]
    Zone,
    /// A text with colons that is not an IPv6 address.
    #[error("it is not an IPv6 address")]
    Ipv6,
}

impl InvalidHost {
    fn new(text: &str, flaw: HostFlaw) -> Self {
        // A text that is too long is not worth repeating whole.
        let text = if text.len() > MAX_INPUT_BYTES { "…" } else { text };
        Self { text: text.to_owned(), flaw }
    }
}

/// A DNS name in its one canonical form: lower case, A-labels, no final dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(String);

impl DomainName {
    /// Reads a name in any spelling: upper or lower case, Unicode or A-labels, with or without one final dot.
    pub fn parse(text: &str) -> Result<Self, InvalidHost> {
        canonical(text).map(Self).map_err(|flaw| InvalidHost::new(text, flaw))
    }

    /// Gives the canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Gives the name with its Unicode labels decoded, for showing beside the canonical form.
    pub fn unicode(&self) -> Cow<'_, str> {
        decoded(&self.0)
    }

    /// Gives the part of the name that somebody registered: the public suffix and one label more. None for a public
    /// suffix itself and for a name of one label.
    pub fn registrable(&self) -> Option<&str> {
        suffixes::registrable(&self.0)
    }

    /// Gives the suffix below which a service lets its users have names, such as `github.io`, if the name is below one:
    /// what is there is user content (N6).
    pub fn shared_suffix(&self) -> Option<&str> {
        suffixes::suffix(&self.0)
            .filter(|(_, kind)| *kind == suffixes::Kind::Shared)
            .map(|(suffix, _)| suffix)
    }

    /// Tells whether the name belongs to whom `above`, a name above it, belongs: no suffix lies between them, below
    /// which strangers have names (N5, N6).
    pub(super) fn belongs_to_owner_of(&self, above: &str) -> bool {
        self.registrable().is_some_and(|registered| registered.len() <= above.len())
    }

    /// Tells whether a label of the name mixes scripts that do not belong together, as names do that imitate others
    /// (N2, UTS 39).
    pub fn mixes_scripts(&self) -> bool {
        self.unicode().split('.').any(|label| !label.is_single_script())
    }

    /// Tells whether a label of the name is in letters that look like ASCII letters and are others, all of one script or
    /// not: `xn--80ak6aa92e.com` reads as another name does (N2, UTS 39).
    pub fn imitates(&self) -> bool {
        let is_alike = |label: &str| !label.is_ascii() && skeleton(label).all(|c| c.is_ascii());
        self.unicode().split('.').any(is_alike)
    }

    /// Gives every name above this one, the nearest first.
    pub(super) fn parents(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('.').map(|(dot, _)| &self.0[dot + 1..])
    }

    /// Tells whether the name means something only on this machine or in its search domain (D7, RFC 6761).
    ///
    /// Such a name is never resolved: it has to be pinned.
    pub fn is_local(&self) -> bool {
        !self.0.contains('.') || self.0.ends_with(".localhost")
    }

    /// Tells whether the name is a public name server's that is asked inside of HTTPS (D8): only a rule that names it
    /// exactly opens it.
    pub fn is_resolver(&self) -> bool {
        resolvers::contain(&self.0) || self.parents().any(resolvers::contain)
    }

    /// Tells whether the name belongs to a cloud's metadata service (K12), which no rule can open.
    pub(super) fn is_metadata(&self) -> bool {
        let is_listed = |name: &str| METADATA_NAMES.contains(&name);
        is_listed(&self.0)
            || self.parents().any(|parent| parent.contains('.') && is_listed(parent))
            || (self.0.starts_with("instance-data.") && self.0.ends_with(".internal"))
    }
}

/// Names under which clouds serve instance metadata; names below those with a dot count, too.
const METADATA_NAMES: [&str; 8] = [
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "metadata.azure.internal",
    "metadata.platformequinix.com",
    "metadata.packet.net",
    "metadata.tencentyun.com",
    "instance-data",
];

impl Borrow<str> for DomainName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_form!(DomainName, InvalidHost);

/// Where a request wants to go: a name or an address literal, in its one canonical form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A DNS name.
    Name(DomainName),
    /// An address literal; an IPv4-mapped IPv6 address is the IPv4 address that it hides.
    Ip(IpAddr),
}

impl Host {
    /// Reads a name, a strict dotted quad or an IPv6 address without brackets.
    pub fn parse(text: &str) -> Result<Self, InvalidHost> {
        if text.contains(':') {
            let flaw = if text.contains('%') { HostFlaw::Zone } else { HostFlaw::Ipv6 };
            let address: Ipv6Addr = text.parse().map_err(|_| InvalidHost::new(text, flaw))?;
            return Ok(Self::from(IpAddr::V6(address)));
        }
        match text.parse::<Ipv4Addr>() {
            Ok(address) => Ok(Self::Ip(IpAddr::V4(address))),
            Err(_) => DomainName::parse(text).map(Self::Name),
        }
    }
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        Self::Ip(address.to_canonical())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

text_form!(Host, InvalidHost);

/// Brings a name to its canonical form, or says what is wrong with it.
fn canonical(text: &str) -> Result<String, HostFlaw> {
    if text.is_empty() {
        return Err(HostFlaw::Empty);
    }
    if text.len() > MAX_INPUT_BYTES {
        return Err(HostFlaw::TooLong);
    }
    if text.parse::<Ipv4Addr>().is_ok() {
        return Err(HostFlaw::Address);
    }
    let is_foreign = |c: &char| c.is_ascii() && !is_name_character(c.to_ascii_lowercase());
    if let Some(character) = text.chars().find(is_foreign) {
        return Err(HostFlaw::Character(character));
    }
    if text.split('.').any(|label| label.starts_with('-') || label.ends_with('-')) {
        return Err(HostFlaw::Hyphen);
    }
    // Non-transitional processing; nothing is percent-decoded.
    let ascii = Uts46::new()
        .to_ascii(text.as_bytes(), AsciiDenyList::EMPTY, Hyphens::CheckFirstLast, DnsLength::Ignore)
        .map_err(|_| HostFlaw::Idna)?;
    let name = ascii.strip_suffix('.').unwrap_or(&ascii);
    check(name)?;
    if name.contains("xn--") && hides_another(name) {
        return Err(HostFlaw::Idna);
    }
    Ok(name.to_owned())
}

/// Decodes the labels of a canonical name.
fn decoded(name: &str) -> Cow<'_, str> {
    Uts46::new().to_unicode(name.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow).0
}

/// Tells whether a label, once decoded, looks like another encoded one: what is shown of it would not read as the same
/// name (found by fuzzing).
fn hides_another(name: &str) -> bool {
    decoded(name).split('.').any(|label| !label.is_ascii() && label.starts_with("xn--"))
}

/// Checks what IDNA processing gave: mapping can bring forth any ASCII character.
fn check(name: &str) -> Result<(), HostFlaw> {
    if let Some(character) = name.chars().find(|c| !is_name_character(*c)) {
        return Err(HostFlaw::Character(character));
    }
    if name.split('.').any(str::is_empty) {
        return Err(HostFlaw::EmptyLabel);
    }
    if name.split('.').any(|label| label.len() > MAX_LABEL_BYTES) {
        return Err(HostFlaw::LongLabel);
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(HostFlaw::TooLong);
    }
    if name.rsplit('.').next().is_some_and(is_number) {
        return Err(HostFlaw::Numeric);
    }
    Ok(())
}

fn is_name_character(character: char) -> bool {
    matches!(character, 'a'..='z' | '0'..='9' | '-' | '_' | '.')
}

/// Tells the labels at which URL parsers and `inet_aton` start to read an address.
fn is_number(label: &str) -> bool {
    let is_hex = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    label.bytes().all(|byte| byte.is_ascii_digit()) || label.strip_prefix("0x").is_some_and(is_hex)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn reads(text: &str, canonical: &str) {
        let host = Host::parse(text).unwrap();
        assert_eq!(host.to_string(), canonical, "{text:?}");
        assert_eq!(Host::parse(canonical), Ok(host));
    }

    #[track_caller]
    fn refuses(text: &str, flaw: HostFlaw) {
        assert_eq!(Host::parse(text), Err(InvalidHost::new(text, flaw)), "{text:?}");
    }

    #[test]
    fn n1_spellings_of_a_name_have_one_form() {
        for text in [
            "example.com",
            "EXAMPLE.com",
            "Example.Com.",
            "example.com.",
            "ｅｘａｍｐｌｅ.com",
            "example。com",
        ] {
            reads(text, "example.com");
        }
        reads("_dmarc.example.com", "_dmarc.example.com");
        reads("r3---sn-4g5e6nez.googlevideo.com", "r3---sn-4g5e6nez.googlevideo.com");
        reads("localhost", "localhost");
        reads("1and1.com", "1and1.com");
        reads("3.com", "3.com");
        reads(&"a".repeat(63), &"a".repeat(63));
        let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        reads(&longest, &longest);
        reads(&format!("{longest}."), &longest);
    }

    #[test]
    fn n1_empty_and_long_labels_are_refused() {
        refuses("", HostFlaw::Empty);
        for text in [".", "..", "example.com..", ".example.com", "a..b", "example.com.。"] {
            refuses(text, HostFlaw::EmptyLabel);
        }
        refuses(&format!("{}.com", "a".repeat(64)), HostFlaw::LongLabel);
        refuses(
            &["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(62)].join("."),
            HostFlaw::TooLong,
        );
        refuses(&"a.".repeat(600), HostFlaw::TooLong);
        for text in ["-a.com", "a-.com", "a.-b.com", "a.b-", "-", "a.-", "xn--.com"] {
            refuses(text, HostFlaw::Hyphen);
        }
    }

    #[test]
    fn n2_unicode_names_become_a_labels() {
        reads("bücher.example", "xn--bcher-kva.example");
        reads("BÜCHER.example", "xn--bcher-kva.example");
        reads("XN--BCHER-KVA.example", "xn--bcher-kva.example");
        // Non-transitional: the sharp s stays itself.
        reads("faß.de", "xn--fa-hia.de");
        // Cyrillic letters that look like Latin ones are another name.
        reads("аpple.com", "xn--pple-43d.com");
        let name = DomainName::parse("xn--bcher-kva.example").unwrap();
        assert_eq!(name.unicode(), "bücher.example");
        assert_eq!(DomainName::parse("example.com").unwrap().unicode(), "example.com");
    }

    #[test]
    fn n2_letters_that_look_like_ascii_ones_are_told() {
        let imitates = |text| DomainName::parse(text).unwrap().imitates();
        // All Cyrillic, all Greek, and one Cyrillic letter among Latin ones.
        for name in [
            "xn--80ak6aa92e.com",
            "www.\u{441}\u{43e}\u{440}\u{435}.test",
            "\u{3bf}\u{3bd}.test",
            "\u{430}pple.com",
        ] {
            assert!(imitates(name), "{name}");
        }
        assert!(!DomainName::parse("xn--80ak6aa92e.com").unwrap().mixes_scripts());
        for name in ["apple.com", "m0rn1ng.com", "bücher.example", "пример.test", "例え.test", "faß.de"]
        {
            assert!(!imitates(name), "{name}");
        }
    }

    #[test]
    fn n2_broken_a_labels_are_refused() {
        let hiding = "xn--xn--bczherr-0er-f1pbczherr-0er-f1p";
        for text in
            ["xn--a.com", "xn--\u{fc}.com", "xn--bcher-kv.xn--a", "\u{301}a.com", "a\u{200d}b.com", hiding]
        {
            refuses(text, HostFlaw::Idna);
        }
    }

    #[test]
    fn n3_other_characters_are_refused() {
        for character in "\0\x01\t\n\r\x1b !\"#$%&'()*+,/;<=>?@[\\]^`{|}~\x7f".chars() {
            for text in
                [format!("a{character}b.com"), format!("{character}a.com"), format!("a.com{character}")]
            {
                refuses(&text, HostFlaw::Character(character));
            }
        }
        refuses("example%2ecom", HostFlaw::Character('%'));
        refuses("allowed.com%00.evil.com", HostFlaw::Character('%'));
        // Mapping brings forth a slash.
        refuses("℀.com", HostFlaw::Character('/'));
    }

    #[test]
    fn n3_a_refusal_is_safe_to_show() {
        let error = Host::parse("a\r\n\x1b[2J\u{202e}").unwrap_err();
        assert_eq!(
            error.to_string(),
            "`a\\r\\n\\u{1b}[2J\\u{202e}` is not a host: it holds the character '\\r'; only letters, digits, `-`, \
             `_` and `.` may stand there"
        );
        let error = Host::parse(&"a".repeat(5000)).unwrap_err();
        assert_eq!(error.to_string(), "`…` is not a host: it is longer than 253 characters");
    }

    #[test]
    fn n7_address_literals_have_one_form() {
        reads("192.0.2.1", "192.0.2.1");
        reads("0.0.0.0", "0.0.0.0");
        reads("::1", "::1");
        reads("2001:DB8:0:0::0001", "2001:db8::1");
        reads("::ffff:127.0.0.1", "127.0.0.1");
        reads("::FFFF:7f00:1", "127.0.0.1");
        assert_eq!(Host::parse("::ffff:10.0.0.1"), Host::parse("10.0.0.1"));
    }

    #[test]
    fn n7_other_numbers_are_refused() {
        for text in [
            "2130706433",
            "0x7f000001",
            "0x7F.1",
            "127.1",
            "127.0.1",
            "0177.0.0.1",
            "127.0.0.01",
            "0x7f.0.0.1",
            "0x",
            "127.0.0.1.",
            "127.0.0.1.5",
            "256.0.0.1",
            "1.2.3.4.5",
            "example.com.1",
            "a.0x7f",
            "a.0X7F",
            "00000000177.1",
            "１２７.0.0.1",
            "１２７。0。0。１",
            "①27.0.0.1",
            "0",
            "999999999999999999999",
        ] {
            refuses(text, HostFlaw::Numeric);
        }
        assert_eq!(DomainName::parse("127.0.0.1"), Err(InvalidHost::new("127.0.0.1", HostFlaw::Address)));
    }

    #[test]
    fn n7_zone_ids_and_broken_ipv6_are_refused() {
        for text in ["fe80::1%eth0", "fe80::1%25eth0", "::1%"] {
            refuses(text, HostFlaw::Zone);
        }
        for text in [
            ":",
            ":::",
            "1::2::3",
            "2001:db8::12345",
            "::1.2.3",
            "::ffff:0177.0.0.1",
            "example.com:443",
            "::1 ",
        ] {
            refuses(text, HostFlaw::Ipv6);
        }
        refuses("[::1]", HostFlaw::Ipv6);
    }

    #[test]
    fn d7_local_names_are_known() {
        for text in ["localhost", "db", "LOCALHOST.", "a.localhost", "a.b.localhost"] {
            assert!(DomainName::parse(text).unwrap().is_local(), "{text}");
        }
        for text in ["example.com", "localhost.example.com", "alocalhost.com", "a.internal"] {
            assert!(!DomainName::parse(text).unwrap().is_local(), "{text}");
        }
    }

    #[test]
    fn k12_metadata_names_are_known() {
        for text in [
            "metadata",
            "metadata.google.internal",
            "Metadata.Google.Internal.",
            "x.metadata.google.internal",
            "metadata.goog",
            "instance-data",
            "instance-data.ec2.internal",
            "instance-data.eu-west-1.compute.internal",
        ] {
            assert!(DomainName::parse(text).unwrap().is_metadata(), "{text}");
        }
        for text in ["metadata.example.com", "google.internal", "instance-data.example.com", "x.metadata"] {
            assert!(!DomainName::parse(text).unwrap().is_metadata(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn n1_what_is_shown_reads_as_the_same_host(text in "\\PC{0,40}|[a-zA-Z0-9.:ü_-]{1,30}|[0-9a-fx.:]{1,20}") {
            if let Ok(host) = Host::parse(&text) {
                prop_assert_eq!(Host::parse(&host.to_string()), Ok(host));
            }
        }

        #[test]
        fn n3_a_name_holds_only_plain_characters(text in "\\PC{0,40}|[a-zA-Z0-9.ü_-]{1,30}") {
            if let Ok(name) = DomainName::parse(&text) {
                prop_assert!(name.as_str().chars().all(is_name_character));
                prop_assert!(name.as_str().len() <= MAX_NAME_BYTES);
                prop_assert!(name.as_str().split('.').all(|label| (1..=MAX_LABEL_BYTES).contains(&label.len())));
            }
        }

        #[test]
        fn n7_encodings_of_an_ipv4_address_are_refused_or_the_address(bits in any::<u32>()) {
            let address = Ipv4Addr::from_bits(bits);
            let [a, b, c, d] = address.octets();
            let canonical = Ok(Host::Ip(IpAddr::V4(address)));
            prop_assert_eq!(Host::parse(&address.to_string()), canonical.clone());
            prop_assert_eq!(Host::parse(&format!("::ffff:{address}")), canonical.clone());
            prop_assert_eq!(Host::parse(&address.to_ipv6_mapped().to_string()), canonical);
            for text in [
                format!("{bits}"),
                format!("{bits:#x}"),
                format!("{bits:#X}").replace("0X", "0x"),
                format!("0{bits:o}"),
                format!("{a:#x}.{b:#x}.{c:#x}.{d:#x}"),
                format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
                format!("{a}.{}", bits & 0x00ff_ffff),
                format!("{a}.{b}.{}", bits & 0xffff),
                format!("{address}."),
            ] {
                prop_assert_eq!(Host::parse(&text), Err(InvalidHost::new(&text, HostFlaw::Numeric)));
            }
        }
    }
}
