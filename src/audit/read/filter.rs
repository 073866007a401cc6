//! Chooses entries.

use std::str::FromStr;

use jiff::Timestamp;

use crate::audit::{Entry, Event};
use crate::name::CloisterName;

/// Chooses entries; an empty filter takes all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Takes only this cloister's entries.
    pub cloister: Option<CloisterName>,
    /// Takes only entries from this time on.
    pub since: Option<Timestamp>,
    /// Takes only entries up to this time.
    pub until: Option<Timestamp>,
    /// Takes only these events, if there are any.
    pub events: Vec<Event>,
    /// Takes only entries about such hosts.
    pub host: Option<HostFilter>,
    /// Takes only entries with this reason.
    pub reason: Option<String>,
}

impl Filter {
    pub(super) fn takes(&self, entry: &Entry) -> bool {
        self.cloister.as_ref().is_none_or(|name| entry.cloister.as_ref() == Some(name))
            && self.since.is_none_or(|since| entry.time >= since)
            && self.until.is_none_or(|until| entry.time <= until)
            && (self.events.is_empty() || self.events.contains(&entry.event))
            && self
                .host
                .as_ref()
                .is_none_or(|host| entry.host.as_deref().is_some_and(|name| host.takes(name)))
            && self.reason.as_ref().is_none_or(|reason| entry.reason.as_ref() == Some(reason))
    }
}

/// Chooses hosts: `a.example.com` itself, or with `*.example.com` all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFilter {
    name: String,
    is_wildcard: bool,
}

impl HostFilter {
    fn takes(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        if self.is_wildcard {
            host.strip_suffix(&self.name).is_some_and(|front| front.len() > 1 && front.ends_with('.'))
        } else {
            host == self.name
        }
    }
}

/// Says that a text chooses no hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a host such as `api.example.com`, or `*.example.com` for all below it; without a port")]
pub struct InvalidHostFilter;

impl FromStr for HostFilter {
    type Err = InvalidHostFilter;

    fn from_str(text: &str) -> Result<Self, InvalidHostFilter> {
        let (name, is_wildcard) = text.strip_prefix("*.").map_or((text, false), |name| (name, true));
        let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let has_port = name.matches(':').count() == 1;
        if name.is_empty() || has_port || name.contains(['*', '/', ' ']) {
            return Err(InvalidHostFilter);
        }
        Ok(Self { name, is_wildcard })
    }
}

#[cfg(test)]
mod tests {
    use super::HostFilter;

    #[track_caller]
    fn check(filter: &str, taken: &[&str], left_out: &[&str]) {
        let filter: HostFilter = filter.parse().unwrap();
        let found = |hosts: &[&str]| hosts.iter().filter(|host| filter.takes(host)).count();
        assert_eq!((found(taken), found(left_out)), (taken.len(), 0), "{filter:?}");
    }

    #[test]
    fn a_host_is_itself_and_a_wildcard_is_all_below() {
        check(
            "api.example.com",
            &["api.example.com", "API.example.com"],
            &["example.com", "x.api.example.com"],
        );
        check(
            "*.example.com",
            &["a.example.com", "a.b.example.com"],
            &["example.com", "evil-example.com", ".example.com"],
        );
        check("2001:db8::1", &["2001:db8::1"], &["::1"]);
        check("[2001:db8::1]", &["2001:db8::1"], &[]);
        for text in ["", "*", "*.", "a.test:443", "*.*.test", "http://a.test", "a*.test"] {
            assert!(text.parse::<HostFilter>().is_err(), "{text}");
        }
    }
}
