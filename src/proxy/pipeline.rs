//! The way of one request, as steps that consume each other:
//! [`Accepted`] → [`Authenticated`] → [`Allowed`] → [`Permitted`] → [`Recorded`] → [`Dialled`] or [`Reached`].
//!
//! CONNECT and absolute-form take the same way (H11). No step can be left out: each is made only by the one
//! before it, and only the last holds a socket to the upstream. For absolute-form that may be a kept one, which
//! costs the permit as dialling does.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::policy::{Authority, Decision, Destination, NameAllowed, Permit, Policy, Request, Rule, Via};

use super::Client;
use super::admission::Held;
use super::admission::tunnels::{Refused, Registration};
use super::connection::Caller;
use super::dial::failure::DialError;
use super::dial::upstream::Upstream;
use super::dial::{Patience, Way, dial};
use super::head::Head;
use super::journal::{OpenRecord, Step};
use super::plain::{Origin, Taken};
use super::refusal::Refusal;

/// A request whose head is parsed.
pub(super) struct Accepted<'a> {
    pub(super) client: &'a Client,
    pub(super) caller: &'a Caller,
    pub(super) head: &'a Head,
}

impl<'a> Accepted<'a> {
    /// Checks the token: before any answer of the policy, so that nobody else learns what is on the list.
    pub(super) fn authenticate(self) -> Result<Authenticated<'a>, Refusal> {
        let Self { client, head, .. } = self;
        let rate = client.settings().limits.rate;
        let refusal = match &head.credentials {
            credentials if credentials.are_missing() => Refusal::challenge(),
            credentials if !credentials.match_token(&client.identity.token) => Refusal::wrong_credentials(),
            _ => {
                let authority = Some(head.target.authority());
                let counted = client.admission.request(rate);
                counted.map_err(|too_often| Refusal::rate_limited(authority, rate, too_often))?;
                return Ok(Authenticated(self));
            }
        };
        Err(client.refuse_stranger(refusal))
    }
}

/// A request of a known sandbox.
pub(super) struct Authenticated<'a>(Accepted<'a>);

impl<'a> Authenticated<'a> {
    /// Asks the policy for the verdict over the name, and a human where no rule covers it; then the policy again.
    pub(super) async fn evaluate(self) -> Result<Allowed<'a>, Refusal> {
        let Accepted { client, caller, head } = self.0;
        let (authority, via) = (head.target.authority(), head.target.via());
        let policies = &client.services.policies;
        let mut policy = policies.current().ok_or_else(|| Refusal::unavailable(authority))?;
        let mut grant = None;
        loop {
            let request =
                Request { cloister: &client.identity.cloister, authority, via, grant: grant.as_ref() };
            let allowed = match policy.evaluate(&request) {
                Decision::Allow(allowed) => allowed,
                Decision::Deny(denial) => {
                    return Err(Refusal::denied(&denial, authority, via, &client.identity.project));
                }
                Decision::Ask(question) => {
                    let _held = caller.hold();
                    // In a box: who waits long holds little.
                    grant = Box::pin(client.decided(&question, head.user_agent.as_deref())).await?;
                    policy = policies.current().ok_or_else(|| Refusal::unavailable(authority))?;
                    continue;
                }
            };
            let max = client.settings().limits.max_tunnels;
            let registration = client.tunnels.register(caller.connection, &request, max).map_err(
                |refused| match refused {
                    Refused::TooMany { limit } => Refusal::too_many_tunnels(authority, limit),
                    Refused::Ended(ending) => Refusal::ended(ending.into(), authority),
                },
            )?;
            // A policy that came between the verdict and the registration has not seen this request.
            let current = policies.current().ok_or_else(|| Refusal::unavailable(authority))?;
            if Arc::ptr_eq(&current, &policy) {
                return Ok(Allowed { client, via, name: allowed, policy, registration });
            }
            policy = current;
        }
    }
}

/// A request whose name is allowed; nothing was asked of the DNS yet (D3).
pub(super) struct Allowed<'a> {
    client: &'a Client,
    via: Via,
    name: NameAllowed,
    policy: Arc<Policy>,
    registration: Registration,
}

impl<'a> Allowed<'a> {
    /// Finds the addresses, once, and has all of them checked (D4, D5).
    pub(super) async fn resolve(self) -> Result<Permitted<'a>, Refusal> {
        let Self { client, via, name: allowed, policy, mut registration } = self;
        let authority = allowed.authority().clone();
        let passage = client.admission.passage().or_else(|| {
            // What is kept for later gives way to what is asked now.
            client.pool.clear();
            client.admission.passage()
        });
        let passage = passage.ok_or_else(|| Refusal::exhausted(Some(&authority)))?;
        let answers = match allowed.destination() {
            Destination::Known(_) => Vec::new(),
            Destination::Resolve(name) => {
                let _turn = tokio::select! {
                    biased;
                    reason = registration.stopped() => Err(Refusal::ended(reason, &authority)),
                    turn = client.turn_to_ask(&authority) => turn,
                }?;
                let asked = Instant::now();
                let mut unheard = Unheard { client, authority: &authority, is_heard: false };
                let answers = tokio::select! {
                    biased;
                    reason = registration.stopped() => Err(Refusal::ended(reason, &authority)),
                    answers = client.services.resolver.resolve(name) => {
                        client.measure(Step::Resolve, asked);
                        answers.map_err(|error| Refusal::unresolved(&authority, &error))
                    }
                };
                unheard.is_heard = true;
                answers?
            }
        };
        let permit = allowed
            .permit(&answers, |address| client.services.resolver.is_own(address))
            .map_err(|denial| Refusal::denied(&denial, &authority, via, &client.identity.project))?;
        registration.permitted(permit.addresses());
        // A policy that came meanwhile has judged the name, and now judges the addresses too.
        if !client.services.policies.current().is_some_and(|current| Arc::ptr_eq(&current, &policy)) {
            client.revalidate();
        }
        Ok(Permitted { client, permit, registration, passage })
    }
}

/// What was asked of the DNS and has no record yet. A client that goes away meanwhile leaves one: the name servers
/// have heard the name.
struct Unheard<'a> {
    client: &'a Client,
    authority: &'a Authority,
    is_heard: bool,
}

impl Drop for Unheard<'_> {
    fn drop(&mut self) {
        if !self.is_heard {
            self.client.write_lost(self.authority);
        }
    }
}

/// A request with a permit.
pub(super) struct Permitted<'a> {
    client: &'a Client,
    permit: Permit,
    registration: Registration,
    passage: Held,
}

impl<'a> Permitted<'a> {
    /// Writes the record, before the first byte flows; without a record nothing flows (invariant 7).
    pub(super) async fn record(self) -> Result<Recorded<'a>, Refusal> {
        let Self { client, permit, registration, passage } = self;
        let journal = Arc::clone(&client.services.journal);
        match OpenRecord::open(journal, &permit).await {
            Ok(record) => Ok(Recorded { client, permit, record, registration, passage }),
            Err(error) => {
                tracing::error!(error = &error as &dyn Error, "nothing passes without a record");
                Err(Refusal::unavailable(permit.authority()))
            }
        }
    }
}

/// A request whose permit is recorded.
pub(super) struct Recorded<'a> {
    client: &'a Client,
    permit: Permit,
    record: OpenRecord,
    registration: Registration,
    passage: Held,
}

impl Recorded<'_> {
    /// Connects to a permitted address.
    pub(super) async fn dial(self) -> Result<Dialled, Refusal> {
        let Self { client, permit, mut record, mut registration, passage } = self;
        record.dialling();
        let rule = Arc::clone(permit.rule());
        tokio::select! {
            biased;
            reason = registration.stopped() => {
                let refusal = Refusal::ended(reason, record.authority()).closed();
                record.close(Some(reason));
                Err(refusal)
            }
            dialled = connect(client, permit) => match dialled {
                Ok((upstream, address)) => {
                    record.connected(address);
                    Ok(Dialled { upstream, address, rule, record, registration, passage })
                }
                Err(error) => {
                    let refusal = Refusal::undialled(record.authority(), &error);
                    record.fail(refusal.reason(), error.detail());
                    Err(refusal)
                }
            },
        }
    }

    /// Takes a kept connection that the permit covers, where the request may, or connects to a permitted address.
    pub(super) async fn reach(self, reuse: Reuse) -> Result<Reached, Refusal> {
        let Self { client, permit, mut record, registration, passage } = self;
        let origin = client.pool.origin(&permit);
        let taken = match reuse {
            Reuse::Allowed => client.pool.take(permit),
            Reuse::Never => Err(permit),
        };
        match taken {
            Ok(taken) => {
                record.connected(taken.address());
                let upstream = Line::Kept(taken);
                Ok(Reached { upstream, origin, record, registration, passage })
            }
            Err(permit) => {
                let dialled = Self { client, permit, record, registration, passage }.dial().await?;
                let Dialled { upstream, address, record, registration, passage, .. } = dialled;
                let upstream = Line::Fresh(upstream, address);
                Ok(Reached { upstream, origin, record, registration, passage })
            }
        }
    }
}

/// Whether a request may go over a connection that has served another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reuse {
    Allowed,
    /// It could not be sent again if the connection turned out to be closed.
    Never,
}

/// Dials for a permit, in the way and with the patience that hold now.
pub(super) async fn connect(client: &Client, permit: Permit) -> Result<(Upstream, SocketAddr), DialError> {
    let settings = client.settings();
    let limits = &settings.limits;
    let way = Way {
        outbound: &settings.outbound,
        resolver: &*client.services.resolver,
        patience: Patience { attempt: limits.dial_attempt_timeout, whole: limits.dial_timeout },
    };
    let began = Instant::now();
    let dialled = dial(permit, way).await;
    match &dialled {
        Ok(_) => client.measure(Step::Dial, began),
        Err(error) => tracing::debug!(error = error as &dyn Error, "dialling failed"),
    }
    dialled
}

/// A request with a connection to its upstream.
pub(super) struct Dialled {
    pub(super) upstream: Upstream,
    /// Where it leads.
    pub(super) address: SocketAddr,
    pub(super) rule: Arc<Rule>,
    pub(super) record: OpenRecord,
    pub(super) registration: Registration,
    /// Accounts for what the first bytes may need, until the connection is a tunnel or the answer is sent.
    pub(super) passage: Held,
}

/// A request in absolute-form with a connection to its upstream.
pub(super) struct Reached {
    pub(super) upstream: Line,
    /// What the connection is permitted for.
    pub(super) origin: Origin,
    pub(super) record: OpenRecord,
    pub(super) registration: Registration,
    /// Accounts for what the exchange may need besides its two sockets, and then for the connection if it is kept.
    pub(super) passage: Held,
}

/// A connection to an upstream that speaks HTTP.
pub(super) enum Line {
    Fresh(Upstream, SocketAddr),
    Kept(Taken),
}
