//! The parser of patterns, and the repairs that it proposes.

use std::net::Ipv6Addr;

use super::{DomainPattern, InvalidPattern, Pattern, PatternFlaw, PatternHost, Reach};
use crate::policy::authority::split;
use crate::policy::host::suffixes::{self, Kind};
use crate::policy::host::{DomainName, Host};
use crate::policy::rule::Effect;

/// Reads the pattern of a rule with this effect, or says what is wrong with it.
pub(super) fn read(text: &str, effect: Effect) -> Result<(PatternHost, Option<u16>), PatternFlaw> {
    check_form(text)?;
    let (authority, reach) = match text.strip_prefix("*.") {
        Some(below) => (below, Reach::Below),
        None => (text, Reach::Exact),
    };
    let (host, port) = split(authority)?;
    match (host, reach) {
        (Host::Ip(address), Reach::Exact) => Ok((PatternHost::Ip(address), port)),
        (Host::Ip(_), Reach::Below) => Err(PatternFlaw::Star),
        (Host::Name(name), reach) => {
            let pattern = DomainPattern { name, reach };
            match effect {
                Effect::Allow => check_breadth(&pattern)?,
                Effect::Deny => {}
            }
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

/// Refuses a wildcard over a suffix below which anybody can have names.
fn check_breadth(pattern: &DomainPattern) -> Result<(), PatternFlaw> {
    if !pattern.is_wildcard() {
        return Ok(());
    }
    let name = &pattern.name;
    match public_suffix(name.as_str()) {
        None => Ok(()),
        Some(Kind::Public) => Err(PatternFlaw::PublicSuffix(name.clone())),
        Some(Kind::Shared) => Err(PatternFlaw::SharedSuffix(name.clone())),
    }
}

/// Tells whether `name` itself, or every name directly below it, is such a suffix.
fn public_suffix(name: &str) -> Option<Kind> {
    let kind =
        |name: &str| suffixes::suffix(name).filter(|(suffix, _)| *suffix == name).map(|(_, kind)| kind);
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
pub(super) fn explained(text: &str, flaw: PatternFlaw, effect: Effect) -> InvalidPattern {
    let repair = match &flaw {
        PatternFlaw::PublicSuffix(name) => Some(narrower(name)),
        PatternFlaw::SharedSuffix(name) => Some(format!("you.{name}")),
        PatternFlaw::Range => None,
        _ => repaired(text, effect),
    };
    InvalidPattern { text: text.to_owned(), flaw, repair }
}

/// Takes off what does not belong into a pattern and gives the rest, if it then is one.
fn repaired(text: &str, effect: Effect) -> Option<String> {
    let text = text.trim();
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    let text = text.split(['/', '?', '#']).next().unwrap_or_default();
    let text = text.rsplit('@').next().unwrap_or_default();
    let text = text.strip_suffix(":*").or_else(|| text.strip_suffix(':')).unwrap_or(text);
    let text = match text.trim_start_matches(['*', '.']) {
        rest if rest.len() < text.len() => format!("*.{rest}"),
        rest if rest.parse::<Ipv6Addr>().is_ok() => format!("[{rest}]"),
        rest => rest.to_owned(),
    };
    let (host, port) = read(&text, effect).ok()?;
    Some(Pattern { host, port }.to_string())
}
