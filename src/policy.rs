//! The policy: pure values that decide where a sandbox may go.
//!
//! A [`Request`] is evaluated to a [`Decision`]. Only an allowed name is resolved; its addresses, all of them checked,
//! become a [`Permit`], and only a permit can be dialled. Deny beats allow at every level, and an empty list of rules
//! allows nothing. A human's answer is one more [`Rule`], after which the request is evaluated again.

mod address;
mod addressing;
mod authority;
mod decision;
mod host;
mod pattern;
mod rule;
mod table;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub use address::AddressClass;
pub use authority::{Authority, InvalidAuthority};
pub use decision::{Decision, Denial, Destination, NameAllowed, Permit, Question, Reason, Request, Via};
pub use host::{DomainName, Host, HostFlaw, InvalidHost};
pub use pattern::{DomainPattern, InvalidPattern, Pattern, PatternFlaw, PatternHost};
pub use rule::{Effect, Origin, OriginKind, Rule};

use addressing::Addressing;
use table::Table;

/// What happens to a request that no rule covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unlisted {
    /// A human is asked.
    Ask,
    /// It is refused.
    #[default]
    Reject,
}

/// What a policy is made of; the default allows nothing and asks nobody.
#[derive(Debug, Clone, Default)]
pub struct PolicyInput {
    /// All rules of all origins; their order does not matter for the verdict.
    pub rules: Vec<Rule>,
    /// What happens to a request that no rule covers.
    pub unlisted: Unlisted,
    /// Names that stand for fixed addresses and are never resolved; a pin allows nothing by itself.
    pub pins: BTreeMap<DomainName, Vec<IpAddr>>,
    /// Names that may resolve to private addresses.
    pub private: Vec<DomainPattern>,
    /// The guardian's own sockets, which nobody reaches through it.
    pub listening: Vec<SocketAddr>,
}

/// The rules and address settings that hold for one cloister.
#[derive(Debug, Clone)]
pub struct Policy {
    rules: Vec<Arc<Rule>>,
    table: Arc<Table>,
    unlisted: Unlisted,
    addressing: Arc<Addressing>,
}

impl Policy {
    /// Builds a policy.
    pub fn new(input: PolicyInput) -> Self {
        let rules: Vec<_> = input.rules.into_iter().map(Arc::new).collect();
        let mut table = Table::default();
        for rule in &rules {
            table.insert(rule);
        }
        let addressing = Arc::new(Addressing::new(input.pins, input.private, input.listening));
        Self { rules, table: Arc::new(table), unlisted: input.unlisted, addressing }
    }

    /// Gives all rules in the order in which they were given.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(AsRef::as_ref)
    }

    /// Decides a request.
    ///
    /// Pure and cheap: the cost depends on the labels of the asked name, not on the number of rules.
    pub fn evaluate(&self, request: &Request<'_>) -> Decision {
        if let Some(rule) = self.table.denying(request).or_else(|| request.granted(Effect::Deny)) {
            return Decision::Deny(Denial::by(rule));
        }
        if let Some(denial) = never(request) {
            return Decision::Deny(denial);
        }
        let allowing = self.table.allowing(request).or_else(|| request.granted(Effect::Allow));
        if let Some(denial) = self.local(request, allowing) {
            return Decision::Deny(denial);
        }
        if let Some(denial) = allowing.and_then(|rule| resolver(request, rule)) {
            return Decision::Deny(denial);
        }
        match (allowing, self.unlisted) {
            (Some(rule), _) => {
                Decision::Allow(NameAllowed::new(request, rule, &self.table, &self.addressing))
            }
            (None, Unlisted::Ask) => match self.unaskable(request) {
                Some(denial) => Decision::Deny(denial),
                None => Decision::Ask(Question::new(request)),
            },
            (None, Unlisted::Reject) => Decision::Deny(Denial::new(Reason::NotAllowed)),
        }
    }

    /// Tells why what was permitted no longer is, if so: the tunnel has to be closed (T10). `addresses` are those of
    /// the permit; none as long as the name is not resolved.
    pub fn withdraws(&self, request: &Request<'_>, addresses: &[SocketAddr]) -> Option<Denial> {
        let allowed = match self.evaluate(request) {
            Decision::Allow(allowed) => allowed,
            Decision::Deny(denial) => return Some(denial),
            Decision::Ask(_) => return Some(Denial::new(Reason::NotAllowed)),
        };
        if addresses.is_empty() {
            return None;
        }
        let answers: Vec<_> = addresses.iter().map(SocketAddr::ip).collect();
        // Whose the addresses are was asked for the permit; that is no part of the rules.
        match allowed.permit(&answers, |_| false) {
            Err(denial) => Some(denial),
            Ok(renewed) => {
                let lost = addresses.iter().find(|address| !renewed.addresses().contains(address))?;
                let denial = Denial::new(Reason::AddressForbidden).with_rule(renewed.rule());
                Some(denial.with_detail(format!("the name no longer stands for `{}`", lost.ip())))
            }
        }
    }

    /// Refuses what no answer may open: nobody knows what stands behind a bare number, and an address that may not be
    /// reached is not reached through a pin either (N7, K12).
    fn unaskable(&self, request: &Request<'_>) -> Option<Denial> {
        match request.authority.host() {
            Host::Ip(address) => {
                let detail =
                    format!("nobody is asked about a bare address such as `{address}`; a rule may name it");
                Some(Denial::new(Reason::NotAllowed).with_detail(detail))
            }
            Host::Name(name) => {
                let pinned = self.addressing.pinned(name)?;
                if let Some(denial) = decision::denied(&self.table, request.authority, pinned) {
                    return Some(denial);
                }
                let source = self.addressing.source(request.authority.host());
                let checked = self.addressing.check(source, pinned, request.authority.port(), |_| false);
                let detail = checked.err()?;
                Some(Denial::new(Reason::AddressForbidden).with_detail(detail))
            }
        }
    }

    /// Refuses a name that means something only on this machine, unless it is named exactly and pinned (D7).
    fn local(&self, request: &Request<'_>, allowing: Option<&Arc<Rule>>) -> Option<Denial> {
        let Host::Name(name) = request.authority.host() else {
            return None;
        };
        if !name.is_local() {
            return None;
        }
        let denial = Denial::new(Reason::NotAllowed);
        match allowing {
            Some(rule) if rule.pattern().is_wildcard() => Some(
                denial
                    .with_rule(rule)
                    .with_detail(format!("`{name}` is a local name, which no wildcard covers")),
            ),
            _ if self.addressing.pinned(name).is_some() => None,
            Some(rule) => Some(denial.with_rule(rule).with_detail(unpinned(name))),
            None => Some(denial.with_detail(unpinned(name))),
        }
    }
}

/// Refuses a public name server that only a wildcard covers: through one, everything can be told to everybody, and
/// whoever wrote `*.example.com` did not mean that (D8).
fn resolver(request: &Request<'_>, allowing: &Arc<Rule>) -> Option<Denial> {
    let Host::Name(name) = request.authority.host() else {
        return None;
    };
    (name.is_resolver() && allowing.pattern().is_wildcard()).then(|| {
        let detail = format!("`{name}` is a public name server, which no wildcard covers");
        Denial::new(Reason::NotAllowed).with_rule(allowing).with_detail(detail)
    })
}

fn unpinned(name: &DomainName) -> String {
    format!("`{name}` is a local name, which is never resolved; it has to be pinned")
}

/// Refuses what neither a rule nor a human can open.
fn never(request: &Request<'_>) -> Option<Denial> {
    let forbidden = |detail| Some(Denial::new(Reason::AddressForbidden).with_detail(detail));
    match request.authority.host() {
        Host::Name(name) if name.is_metadata() => {
            return forbidden(format!("`{name}` is a cloud's metadata service"));
        }
        Host::Ip(address) => {
            let class = AddressClass::of(*address);
            if class.is_never_allowed() || class == AddressClass::Loopback {
                return forbidden(format!("`{address}` is a {class} address"));
            }
        }
        Host::Name(_) => {}
    }
    let port = request.authority.port();
    (port == request.via.forbidden_port()).then(|| {
        let detail = match request.via {
            Via::Connect => "CONNECT never goes to port 80",
            Via::Plain => "plain HTTP never goes to port 443",
        };
        Denial::new(Reason::NotAllowed).with_detail(detail)
    })
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
