//! Requests and answers in words. What a sandbox wrote is escaped here and nowhere else (A1).

use std::time::Duration;

use jiff::Timestamp;

use crate::approval::{Answer, Outcome, Pending, Scope, Settled, Voice};
use crate::policy::{Authority, Effect, Host};
use crate::text::{Quoted, Untrusted};

/// How much of what a sandbox says of itself has a place in a line, in characters.
const SAID_CHARACTERS: usize = 60;

/// What is odd about a destination, for the one who decides.
pub(super) fn marks(authority: &Authority) -> Vec<String> {
    let Host::Name(name) = authority.host() else { return vec!["an address".to_owned()] };
    let unicode = name.unicode();
    let decoded = (unicode != name.as_str()).then(|| Untrusted(&unicode).to_string());
    let mixed = name.mixes_scripts().then(|| "mixed scripts".to_owned());
    let imitating = name.imitates().then(|| "letters that look like others".to_owned());
    let shared = name.shared_suffix().map(|suffix| format!("user content below {suffix}"));
    decoded.into_iter().chain(mixed).chain(imitating).chain(shared).collect()
}

/// A destination with what is odd about it.
pub(super) fn destination(authority: &Authority) -> String {
    let marks = match authority.host() {
        Host::Name(_) => marks(authority),
        Host::Ip(_) => Vec::new(),
    };
    if marks.is_empty() { authority.to_string() } else { format!("{authority} ({})", marks.join(", ")) }
}

/// What the sandbox says, all of it.
pub(super) fn said(voice: &Voice) -> Option<String> {
    match voice {
        Voice::Connection { user_agent } => user_agent.as_ref().map(|text| Quoted(text).to_string()),
        Voice::Polite { reason: Some(reason) } => Some(format!("asks: {}", Quoted(reason))),
        Voice::Polite { reason: None } => Some("asks politely".to_owned()),
    }
}

/// What the sandbox says, as far as it has a place in a line.
pub(super) fn said_shortly(voice: &Voice) -> String {
    said(voice).map_or_else(|| "-".to_owned(), |said| cut(&said, SAID_CHARACTERS))
}

/// The beginning of a text.
pub(super) fn cut(text: &str, characters: usize) -> String {
    if text.chars().count() <= characters {
        return text.to_owned();
    }
    let kept = text.chars().take(characters.saturating_sub(1));
    kept.chain(['…']).collect()
}

/// The end of a text: of a name, the part that counts.
pub(super) fn cut_front(text: &str, characters: usize) -> String {
    let count = text.chars().count();
    if count <= characters {
        return text.to_owned();
    }
    let kept = text.chars().skip(count + 1 - characters.max(1));
    ['…'].into_iter().chain(kept).collect()
}

/// How long ago something was.
pub(super) fn age(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

/// For whom, and for how long, an answer holds.
pub(super) fn reach(scope: Scope, settled: &Settled) -> String {
    let Settled { cloister, project, .. } = settled;
    match scope {
        Scope::Once => format!("for {cloister}, this once"),
        Scope::Session => format!("for {cloister}, until it is stopped"),
        Scope::Project => format!("for every cloister of project {project}, for good"),
        Scope::Global => "for every cloister, for good".to_owned(),
    }
}

pub(super) fn done(effect: Effect) -> &'static str {
    match effect {
        Effect::Allow => "allowed",
        Effect::Deny => "denied",
    }
}

/// What holds after a request has ended.
pub(super) fn outcome(settled: &Settled) -> String {
    let Settled { cloister, authority, .. } = settled;
    match &settled.outcome {
        Outcome::Answered { answer: Answer { effect, scope, .. }, pattern, .. } => {
            format!("{} {} {}", done(*effect), Untrusted(pattern), reach(*scope, settled))
        }
        Outcome::Ruled => format!("{authority} for {cloister}: a rule that came meanwhile decided it"),
        Outcome::TimedOut => format!("{authority} for {cloister}: nobody answered in time"),
        Outcome::Withdrawn => format!("{authority} for {cloister}: nobody waits for it any more"),
    }
}

/// What to type to take an answer back, where it is remembered.
pub(super) fn taking_back(settled: &Settled) -> Option<String> {
    match &settled.outcome {
        Outcome::Answered { answer, pattern, .. } if answer.scope != Scope::Once => {
            Some(format!("cloister approvals forget {}", Quoted(pattern)))
        }
        Outcome::Answered { .. } | Outcome::Ruled | Outcome::TimedOut | Outcome::Withdrawn => None,
    }
}

/// Why a request has no wildcard.
pub(super) fn no_wildcard(pending: &Pending) -> String {
    let authority = &pending.authority;
    let why = match authority.host() {
        Host::Ip(_) => "an address has no names beside it".to_owned(),
        Host::Name(name) if name.is_local() => "it is a name of this machine or network".to_owned(),
        Host::Name(name) if name.is_resolver() => {
            "a wildcard does not open a name server; it has to be named".to_owned()
        }
        Host::Name(name) => match name.shared_suffix() {
            Some(suffix) => format!("the names beside it belong to others: {suffix} is shared"),
            None => "the names beside it belong to others".to_owned(),
        },
    };
    format!("there is no wildcard for {authority}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(text: &str) -> Authority {
        Authority::parse(text).unwrap()
    }

    #[test]
    fn n2_n6_a_destination_is_shown_with_what_is_odd_about_it() {
        let shown = |text| destination(&authority(text));
        assert_eq!(shown("api.example.org:443"), "api.example.org:443");
        assert_eq!(shown("192.0.2.1:443"), "192.0.2.1:443");
        assert_eq!(shown("bücher.example:443"), "xn--bcher-kva.example:443 (bücher.example)");
        assert_eq!(shown("me.github.io:443"), "me.github.io:443 (user content below github.io)");
        // The first letter is Cyrillic.
        let mixed = shown("аpple.example:443");
        assert!(
            mixed.ends_with(".example:443 (аpple.example, mixed scripts, letters that look like others)"),
            "{mixed}"
        );
        // All letters are Cyrillic.
        let imitating = shown("xn--80ak6aa92e.com:443");
        assert!(imitating.ends_with(", letters that look like others)"), "{imitating}");
    }

    #[test]
    fn a1_what_a_sandbox_says_is_escaped_and_bounded() {
        let agent = |text: &str| Voice::Connection { user_agent: Some(text.to_owned()) };
        assert_eq!(said_shortly(&agent("curl/8.5.0")), "curl/8.5.0");
        assert_eq!(said_shortly(&agent("\u{1b}[2J\u{202e}x")), "\"\\u{1b}[2J\\u{202e}x\"");
        assert_eq!(said_shortly(&Voice::Connection { user_agent: None }), "-");
        let long = Voice::Polite { reason: Some("word ".repeat(200)) };
        let shown = said_shortly(&long);
        assert_eq!((shown.chars().count(), shown.ends_with('…')), (SAID_CHARACTERS, true));
        assert!(shown.starts_with("asks: \"word "), "{shown}");
    }

    #[test]
    fn n5_the_end_of_a_name_stays() {
        assert_eq!(cut_front("login.bank.example.attacker.test:443", 20), "…e.attacker.test:443");
        assert_eq!(cut_front("a.test:443", 20), "a.test:443");
        assert_eq!(cut_front("abc", 0), "…");
    }
}
