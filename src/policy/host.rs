//! Hosts: the one parser of names and address literals (N1, N2, N3, N7).

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

use crate::name::text_form;

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

    /// Tells what is wrong.
    pub fn flaw(&self) -> HostFlaw {
        self.flaw
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
        Uts46::new().to_unicode(self.0.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow).0
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
    Ok(name.to_owned())
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
