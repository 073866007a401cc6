//! Raw values to domain values: every value goes through its one parser, and every problem is reported.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use super::environment::{EnvName, EnvValue};
use super::keys::{self, Kind};
use super::problem::Report;
use super::raw::{Marked, Raw, RawEnv, RawProxy};
use super::{Backend, Config, Source, duration};
use crate::policy::{AddressClass, DomainName, DomainPattern, Effect, Pattern, Rule, Unlisted};

/// Adds one file's values to the configuration: lists add up, scalars and entries of maps replace.
pub(super) fn apply(raw: Raw, source: &Source, config: &mut Config, report: &mut Report<'_>) {
    let mut layer = Layer { source, config, report };
    if let Some(backend) = raw.backend {
        layer.backend(&backend);
    }
    if let Some(shell) = raw.shell {
        layer.shell(&shell);
    }
    layer.proxy(raw.proxy);
    layer.env(raw.env);
}

struct Layer<'a, 'p> {
    source: &'a Source,
    config: &'a mut Config,
    report: &'a mut Report<'p>,
}

impl Layer<'_, '_> {
    fn backend(&mut self, written: &Marked<String>) {
        match written.value.as_str() {
            "auto" => self.config.backend = Backend::Auto,
            "docker" => self.config.backend = Backend::Docker,
            "bubblewrap" => self.config.backend = Backend::Bubblewrap,
            _ => self.refuse_choice(written),
        }
    }

    fn shell(&mut self, written: &Marked<String>) {
        let path = &written.value;
        let is_usable = path.starts_with('/') && !path.ends_with('/') && !path.contains(char::is_control);
        if is_usable {
            self.config.shell = PathBuf::from(path);
        } else {
            let what = format!("`{path}` is no absolute path of a program");
            self.refuse(written, what, Some("write it in full, such as `/bin/bash`"));
        }
    }

    fn proxy(&mut self, raw: RawProxy) {
        self.rules(&raw.allow, Effect::Allow);
        self.rules(&raw.deny, Effect::Deny);
        if let Some(unlisted) = raw.unlisted {
            match unlisted.value.as_str() {
                "ask" => self.config.proxy.unlisted = Unlisted::Ask,
                "reject" => self.config.proxy.unlisted = Unlisted::Reject,
                _ => self.refuse_choice(&unlisted),
            }
        }
        self.pins(&raw.hosts);
        for written in raw.private {
            match DomainPattern::parse(&written.value) {
                Ok(pattern) => self.config.proxy.private.push(pattern),
                Err(error) => self.refuse(&written, error.to_string(), None),
            }
        }
        if let Some(written) = raw.idle_timeout {
            match duration::parse(&written.value) {
                Ok(idle_timeout) => self.config.proxy.idle_timeout = idle_timeout,
                Err(error) => self.refuse(&written, format!("`{}` {error}", written.value), None),
            }
        }
    }

    fn rules(&mut self, patterns: &[Marked<String>], effect: Effect) {
        let rule = match effect {
            Effect::Allow => Rule::allow,
            Effect::Deny => Rule::deny,
        };
        for written in patterns {
            match Pattern::parse_for(effect, &written.value) {
                Ok(pattern) => self.config.proxy.rules.push(rule(pattern, self.source.origin(written.line))),
                Err(error) => self.refuse(written, error.to_string(), None),
            }
        }
    }

    fn pins(&mut self, hosts: &[(Marked<String>, Vec<Marked<String>>)]) {
        let mut pinned = BTreeSet::new();
        for (written, addresses) in hosts {
            let name = match DomainName::parse(&written.value) {
                Ok(name) => name,
                Err(error) => {
                    self.refuse(written, error.to_string(), None);
                    continue;
                }
            };
            if !pinned.insert(name.clone()) {
                self.refuse(written, format!("pins `{name}` a second time"), Some("keep one of the two"));
                continue;
            }
            if addresses.is_empty() {
                self.refuse(written, "pins the name to no address", Some("list one, or remove the name"));
                continue;
            }
            let addresses = addresses.iter().filter_map(|address| self.address(address)).collect();
            self.config.proxy.pins.insert(name, addresses);
        }
    }

    /// Reads an address that a name may be pinned to.
    fn address(&mut self, written: &Marked<String>) -> Option<IpAddr> {
        let Ok(address) = written.value.parse::<IpAddr>() else {
            let what = format!("`{}` is no IP address", written.value);
            self.refuse(written, what, Some("write one such as `10.1.2.3` or `2001:db8::1`, without a port"));
            return None;
        };
        let class = AddressClass::of(address);
        if class.is_never_allowed() {
            let what = format!("`{address}` is a {class} address, which no sandbox may ever reach");
            self.refuse(written, what, Some("remove it"));
            return None;
        }
        Some(address.to_canonical())
    }

    fn env(&mut self, raw: RawEnv) {
        for written in raw.pass {
            match EnvName::parse_to_pass(&written.value) {
                Ok(name) => drop(self.config.env.pass.insert(name)),
                Err(error) => self.refuse(&written, error.to_string(), None),
            }
        }
        for (written, value) in raw.set {
            match EnvName::parse_to_set(&written.value) {
                Ok(name) => match EnvValue::parse(&value.value) {
                    Some(value) => drop(self.config.env.set.insert(name, value)),
                    None => self.refuse(&value, "holds a NUL, which no variable can hold", Some("remove it")),
                },
                Err(error) => self.refuse(&written, error.to_string(), None),
            }
        }
    }

    fn refuse_choice(&mut self, written: &Marked<String>) {
        let kind = keys::key(&written.key).map(|key| key.kind);
        let words = match kind {
            Some(Kind::Choice(words)) => words,
            _ => &[],
        };
        let repair = match keys::nearest(&written.value, words) {
            Some(word) => format!("did you mean `{word}`?"),
            None => format!("write one of {}", keys::listed(words)),
        };
        self.refuse(written, format!("`{}` is not one of the choices", written.value), Some(&repair));
    }

    fn refuse(&mut self, written: &Marked<String>, what: impl Into<String>, repair: Option<&str>) {
        self.report.add(written.line, &written.key, what, repair.map(str::to_owned));
    }
}
