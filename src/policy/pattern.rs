//! Patterns: what a rule is about (N5, N6, N9). A pattern is another type than a name.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use super::authority::{Authority, InvalidAuthority, split};
use super::host::{DomainName, Host};
use crate::name::text_form;

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
        match read(text) {
            Ok((PatternHost::Domain(pattern), None)) => Ok(pattern),
            Ok((PatternHost::Domain(pattern), Some(_))) => fail(PatternFlaw::Port, Some(pattern.to_string())),
            Ok((PatternHost::Ip(_), _)) => fail(PatternFlaw::Address, None),
            Err(flaw) => Err(explained(text, flaw)),
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

    /// Tells whether the pattern covers `name`.
    pub fn matches(&self, name: &DomainName) -> bool {
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
    /// Reads `example.com`, `*.example.com:8443`, `192.0.2.1:443` or `[2001:db8::1]`.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let (host, port) = read(text).map_err(|flaw| explained(text, flaw))?;
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

fn read(text: &str) -> Result<(PatternHost, Option<u16>), PatternFlaw> {
    check_form(text)?;
    let (host, port, reach) = match text.strip_prefix("*.") {
        None => {
            let (host, port) = split(text)?;
            (host, port, Reach::Exact)
        }
        Some(rest) => {
            let (host, port) = split(rest)?;
            (host, port, Reach::Below)
        }
    };
    match (host, reach) {
        (Host::Ip(address), Reach::Exact) => Ok((PatternHost::Ip(address), port)),
        (Host::Ip(_), Reach::Below) => Err(PatternFlaw::Star),
        (Host::Name(name), reach) => {
            let pattern = DomainPattern { name, reach };
            check_breadth(&pattern)?;
            Ok((PatternHost::Domain(pattern), port))
        }
    }
}

/// Refuses the forms that people write where a pattern belongs.
fn check_form(text: &str) -> Result<(), PatternFlaw> {
    if text.contains(char::is_whitespace) {
        return Err(PatternFlaw::Space);
    }
    if text.contains("://") {
        return Err(PatternFlaw::Scheme);
    }
    if text.contains('@') {
        return Err(PatternFlaw::Userinfo);
    }
    if let Some((host, length)) = text.split_once('/') {
        let is_range =
            Host::parse(host).is_ok_and(|host| matches!(host, Host::Ip(_))) && length.parse::<u8>().is_ok();
        return Err(if is_range { PatternFlaw::Range } else { PatternFlaw::Path });
    }
    if text.contains(['?', '#']) {
        return Err(PatternFlaw::Path);
    }
    if text.ends_with(":*") {
        return Err(PatternFlaw::StarPort);
    }
    if text.strip_prefix("*.").unwrap_or(text).contains('*') {
        return Err(PatternFlaw::Star);
    }
    if text.starts_with('.') {
        return Err(PatternFlaw::LeadingDot);
    }
    Ok(())
}

/// Refuses a wildcard over a public suffix, of the ICANN or the private section of the list or of an unknown kind.
fn check_breadth(pattern: &DomainPattern) -> Result<(), PatternFlaw> {
    if !pattern.is_wildcard() {
        return Ok(());
    }
    let name = &pattern.name;
    match public_suffix(name.as_str()) {
        None => Ok(()),
        Some(psl::Type::Icann) => Err(PatternFlaw::PublicSuffix(name.clone())),
        Some(psl::Type::Private) => Err(PatternFlaw::SharedSuffix(name.clone())),
    }
}

/// Tells whether `name` itself, or every name directly below it, is a public suffix.
fn public_suffix(name: &str) -> Option<psl::Type> {
    let kind = |name: &str| {
        let suffix = psl::suffix(name.as_bytes())?;
        // A top-level domain that the list does not know is treated like one that it knows.
        (suffix.as_bytes() == name.as_bytes()).then(|| suffix.typ().unwrap_or(psl::Type::Icann))
    };
    kind(name).or_else(|| kind(&format!("example.{name}")))
}

/// Builds a wildcard below `name` that is over no public suffix.
fn narrower(name: &DomainName) -> String {
    let mut narrower = format!("example.{name}");
    while public_suffix(&narrower).is_some() {
        narrower.insert_str(0, "example.");
    }
    format!("*.{narrower}")
}

/// Adds to a flaw what to write instead.
fn explained(text: &str, flaw: PatternFlaw) -> InvalidPattern {
    let repair = match &flaw {
        PatternFlaw::PublicSuffix(name) => Some(narrower(name)),
        PatternFlaw::SharedSuffix(name) => Some(format!("you.{name}")),
        PatternFlaw::Range => None,
        _ => repaired(text),
    };
    InvalidPattern { text: text.to_owned(), flaw, repair }
}

/// Takes off what does not belong into a pattern and gives the rest, if it then is one.
fn repaired(text: &str) -> Option<String> {
    let text: String = text.split_whitespace().collect();
    let text = text.split_once("://").map_or(text.as_str(), |(_, rest)| rest);
    let text = text.split(['/', '?', '#']).next().unwrap_or_default();
    let text = text.rsplit('@').next().unwrap_or_default();
    let text = text.strip_suffix(":*").or_else(|| text.strip_suffix(':')).unwrap_or(text);
    let text = match text.trim_start_matches(['*', '.']) {
        rest if rest.len() < text.len() => format!("*.{rest}"),
        rest if rest.parse::<Ipv6Addr>().is_ok() => format!("[{rest}]"),
        rest => rest.to_owned(),
    };
    let (host, port) = read(&text).ok()?;
    Some(Pattern { host, port }.to_string())
}
