//! The lookup of rules: a walk over the labels of the asked name, whatever the number of rules.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::address;
use super::decision::{Request, Via};
use super::host::{DomainName, Host};
use super::pattern::PatternHost;
use super::rule::{Effect, Rule};

/// All rules of a policy, by what they are about.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    addresses: HashMap<IpAddr, Entry>,
    names: HashMap<DomainName, Entry>,
    /// Rules for the names below the key.
    wildcards: HashMap<DomainName, Entry>,
}

/// The rules of one host.
#[derive(Debug, Clone, Default)]
struct Entry {
    allow: Ports,
    deny: Ports,
}

/// The rules of one host and effect, by port.
#[derive(Debug, Clone, Default)]
struct Ports {
    without_port: Option<Arc<Rule>>,
    with_port: HashMap<u16, Arc<Rule>>,
}

impl Table {
    /// Adds a rule; of two that say the same, the first stays the one that is shown.
    pub(super) fn insert(&mut self, rule: &Arc<Rule>) {
        let entry = match rule.pattern().host() {
            PatternHost::Ip(address) => self.addresses.entry(*address).or_default(),
            PatternHost::Domain(domain) if domain.is_wildcard() => {
                self.wildcards.entry(domain.name().clone()).or_default()
            }
            PatternHost::Domain(domain) => self.names.entry(domain.name().clone()).or_default(),
        };
        let ports = match rule.effect() {
            Effect::Allow => &mut entry.allow,
            Effect::Deny => &mut entry.deny,
        };
        match rule.pattern().port() {
            Some(port) => ports.with_port.entry(port).or_insert_with(|| Arc::clone(rule)),
            None => ports.without_port.get_or_insert_with(|| Arc::clone(rule)),
        };
    }

    /// Finds the most specific rule that denies a request.
    pub(super) fn denying(&self, request: &Request<'_>) -> Option<&Arc<Rule>> {
        let port = request.authority.port();
        match request.authority.host() {
            Host::Ip(address) => self.denying_address(*address, port),
            host @ Host::Name(_) => {
                self.entries(host, Effect::Deny).find_map(|entry| entry.deny.covering(port))
            }
        }
    }

    /// Finds the rule that denies an address, or one that it carries in another form, whoever leads there.
    pub(super) fn denying_address(&self, address: IpAddr, port: u16) -> Option<&Arc<Rule>> {
        address::forms(address).into_iter().find_map(|form| self.addresses.get(&form)?.deny.covering(port))
    }

    /// Finds the most specific rule that allows a request.
    pub(super) fn allowing(&self, request: &Request<'_>) -> Option<&Arc<Rule>> {
        let port = request.authority.port();
        if port == request.via.forbidden_port() {
            return None;
        }
        self.entries(request.authority.host(), Effect::Allow).find_map(|entry| {
            let ports = &entry.allow;
            let is_default = port == request.via.default_port();
            ports.with_port.get(&port).or_else(|| ports.without_port.as_ref().filter(|_| is_default))
        })
    }

    /// Gives the entries that cover a host for rules with an effect, the most specific first: a wildcard that allows
    /// means no names of strangers below it (N5, N6).
    fn entries<'table, 'host>(
        &'table self,
        host: &'host Host,
        effect: Effect,
    ) -> impl Iterator<Item = &'table Entry> + use<'table, 'host> {
        let (name, address) = match host {
            Host::Name(name) => (Some(name), None),
            Host::Ip(address) => (None, self.addresses.get(address)),
        };
        let exact = name.and_then(|name| self.names.get(name));
        let wildcard = move |name: &DomainName, parent| {
            let entry = self.wildcards.get(parent)?;
            (effect == Effect::Deny || name.belongs_to_owner_of(parent)).then_some(entry)
        };
        let above = name
            .into_iter()
            .flat_map(move |name| name.parents().filter_map(move |parent| wildcard(name, parent)));
        address.into_iter().chain(exact).chain(above)
    }
}

impl Ports {
    /// Finds the rule for the port, or else the one for all ports.
    fn covering(&self, port: u16) -> Option<&Arc<Rule>> {
        self.with_port.get(&port).or(self.without_port.as_ref())
    }
}

impl Via {
    /// Gives the port that an allow rule without a port means.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Connect => 443,
            Self::Plain => 80,
        }
    }

    /// Gives the port that no rule opens: CONNECT carries no plain HTTP, and plain HTTP goes to no TLS port (N9).
    pub fn forbidden_port(self) -> u16 {
        match self {
            Self::Connect => 80,
            Self::Plain => 443,
        }
    }
}
