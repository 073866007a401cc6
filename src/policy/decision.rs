//! Decisions: what a policy says to a request, and the proof that it allowed one.
//!
//! [`NameAllowed`] and [`Permit`] have private fields and are made here and in [`Policy::evaluate`] alone.
//!
//! [`Policy::evaluate`]: super::Policy::evaluate

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::addressing::Addressing;
use super::authority::Authority;
use super::host::{DomainName, Host};
use super::rule::{Effect, Rule};
use super::table::Table;
use crate::name::CloisterName;

/// The form in which a client asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// `CONNECT host:port`: a tunnel.
    Connect,
    /// Absolute-form: one plain HTTP request.
    Plain,
}

/// What a policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The sandbox that asks.
    pub cloister: &'a CloisterName,
    /// Where it wants to go.
    pub authority: &'a Authority,
    /// In which form it asked.
    pub via: Via,
    /// What a human said to this request alone, scope `once`: a rule that nobody else sees.
    pub grant: Option<&'a Arc<Rule>>,
}

impl Request<'_> {
    /// Gives the grant if it has this effect and is about this request.
    pub(super) fn granted(&self, effect: Effect) -> Option<&Arc<Rule>> {
        self.grant.filter(|rule| rule.effect() == effect && rule.pattern().covers(effect, self.authority))
    }
}

/// What a policy says.
#[must_use]
#[derive(Debug)]
pub enum Decision {
    /// The name may be resolved and its addresses be presented for a permit.
    Allow(NameAllowed),
    /// The request is refused.
    Deny(Denial),
    /// No rule covers the request, and a human may be asked.
    Ask(Question),
}

impl Decision {
    /// Gives the rule that decided, if one did.
    pub fn rule(&self) -> Option<&Arc<Rule>> {
        match self {
            Self::Allow(allowed) => Some(&allowed.rule),
            Self::Deny(denial) => denial.rule(),
            Self::Ask(_) => None,
        }
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// No rule allows it.
    NotAllowed,
    /// A rule of the configuration denies it.
    DeniedByRule,
    /// A human's answer denies it.
    DeniedByUser,
    /// The address, or the name of a metadata service, may never be reached.
    AddressForbidden,
    /// The name is allowed, and no address stands for it.
    NoAddress,
}

impl Reason {
    /// Gives the stable code that clients and the audit see.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotAllowed => "not_allowed",
            Self::DeniedByRule => "denied_by_rule",
            Self::DeniedByUser => "denied_by_user",
            Self::AddressForbidden => "address_forbidden",
            Self::NoAddress => "dns_failed",
        }
    }
}

/// A refusal with what decided it.
///
/// The rule and the detail are for the audit and the user; a sandbox is told the reason's code alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    reason: Reason,
    rule: Option<Arc<Rule>>,
    detail: Option<String>,
}

impl Denial {
    pub(super) fn new(reason: Reason) -> Self {
        Self { reason, rule: None, detail: None }
    }

    pub(super) fn by(rule: &Arc<Rule>) -> Self {
        let reason =
            if rule.origin().kind().is_answer() { Reason::DeniedByUser } else { Reason::DeniedByRule };
        Self::new(reason).with_rule(rule)
    }

    pub(super) fn with_rule(self, rule: &Arc<Rule>) -> Self {
        Self { rule: Some(Arc::clone(rule)), ..self }
    }

    pub(super) fn with_detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }

    /// Gives the reason.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Gives the rule that denied, or that allowed the name before something else refused it.
    pub fn rule(&self) -> Option<&Arc<Rule>> {
        self.rule.as_ref()
    }

    /// Gives what more there is to say, such as the address and its class.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }
}

/// A [`Request`] that is kept for later.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KeptRequest {
    cloister: CloisterName,
    authority: Authority,
    via: Via,
    grant: Option<Arc<Rule>>,
}

impl KeptRequest {
    fn new(request: &Request<'_>) -> Self {
        Self {
            cloister: request.cloister.clone(),
            authority: request.authority.clone(),
            via: request.via,
            grant: request.grant.map(Arc::clone),
        }
    }

    fn request(&self) -> Request<'_> {
        Request {
            cloister: &self.cloister,
            authority: &self.authority,
            via: self.via,
            grant: self.grant.as_ref(),
        }
    }
}

/// A request that no rule covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question(KeptRequest);

impl Question {
    pub(super) fn new(request: &Request<'_>) -> Self {
        Self(KeptRequest::new(request))
    }

    /// Gives the request, for evaluating it again after an answer.
    pub fn request(&self) -> Request<'_> {
        self.0.request()
    }
}

/// A request whose name is allowed and whose addresses are not yet checked.
#[must_use]
#[derive(Debug)]
pub struct NameAllowed {
    request: KeptRequest,
    rule: Arc<Rule>,
    table: Arc<Table>,
    addressing: Arc<Addressing>,
}

/// Where the addresses of an allowed name come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination<'a> {
    /// The address is a literal, or the name is pinned: the DNS is not asked.
    Known(&'a [IpAddr]),
    /// The name has to be resolved.
    Resolve(&'a DomainName),
}

impl NameAllowed {
    pub(super) fn new(
        request: &Request<'_>,
        rule: &Arc<Rule>,
        table: &Arc<Table>,
        addressing: &Arc<Addressing>,
    ) -> Self {
        Self {
            request: KeptRequest::new(request),
            rule: Arc::clone(rule),
            table: Arc::clone(table),
            addressing: Arc::clone(addressing),
        }
    }

    /// Gives where the request may go.
    pub fn authority(&self) -> &Authority {
        &self.request.authority
    }

    /// Gives the rule that allowed it.
    pub fn rule(&self) -> &Arc<Rule> {
        &self.rule
    }

    /// Tells whether the name has to be resolved.
    pub fn destination(&self) -> Destination<'_> {
        match self.request.authority.host() {
            Host::Ip(address) => Destination::Known(std::slice::from_ref(address)),
            Host::Name(name) => match self.addressing.pinned(name) {
                Some(addresses) => Destination::Known(addresses),
                None => Destination::Resolve(name),
            },
        }
    }

    /// Checks all addresses and gives the permit to dial them.
    ///
    /// `answers` is what the DNS gave for [`Destination::Resolve`]; for [`Destination::Known`] it is not looked at.
    /// `is_own` tells of an address whether it belongs to an interface of this host: such a one counts as loopback,
    /// which only a pin opens (T11).
    ///
    /// # Errors
    /// [`Reason::DeniedByRule`] or [`Reason::DeniedByUser`] when a rule denies any of the addresses,
    /// [`Reason::AddressForbidden`] when any of them may not be dialled, [`Reason::NoAddress`] when there is none.
    pub fn permit(self, answers: &[IpAddr], is_own: impl Fn(IpAddr) -> bool) -> Result<Permit, Denial> {
        let addresses = match self.destination() {
            Destination::Known(known) => known,
            Destination::Resolve(_) => answers,
        };
        if let Some(denial) = denied(&self.table, self.authority(), addresses) {
            return Err(denial);
        }
        let source = self.addressing.source(self.request.authority.host());
        let port = self.request.authority.port();
        let addresses = self.addressing.check(source, addresses, port, is_own).map_err(|detail| {
            Denial::new(Reason::AddressForbidden).with_rule(&self.rule).with_detail(detail)
        })?;
        if addresses.is_empty() {
            return Err(Denial::new(Reason::NoAddress).with_rule(&self.rule));
        }
        Ok(Permit { request: self.request, addresses, rule: self.rule })
    }
}

/// Refuses when a rule denies any of the addresses: deny beats allow whoever leads there, the DNS or a pin
/// (invariant 2).
pub(super) fn denied(table: &Table, authority: &Authority, addresses: &[IpAddr]) -> Option<Denial> {
    addresses.iter().find_map(|address| {
        let rule = table.denying_address(*address, authority.port())?;
        let detail = format!("`{}` stands for `{}`", authority.host(), address.to_canonical());
        Some(Denial::by(rule).with_detail(detail))
    })
}

/// The proof that a request may be dialled, and the only addresses to dial.
///
/// It can't be copied, and only [`NameAllowed::permit`] makes one.
#[must_use]
#[derive(Debug)]
pub struct Permit {
    request: KeptRequest,
    addresses: Vec<SocketAddr>,
    rule: Arc<Rule>,
}

impl Permit {
    /// Gives where the request may go.
    pub fn authority(&self) -> &Authority {
        &self.request.authority
    }

    /// Gives the checked addresses, at least one, in the order of the answers.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Gives the rule that allowed it.
    pub fn rule(&self) -> &Arc<Rule> {
        &self.rule
    }

    /// Gives the sandbox that it was given to.
    pub fn cloister(&self) -> &CloisterName {
        &self.request.cloister
    }

    /// Gives the request, for asking whether it still is allowed.
    pub fn request(&self) -> Request<'_> {
        self.request.request()
    }
}
