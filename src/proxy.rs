//! The forward proxy: the only way out of a sandbox (DESIGN 3).
//!
//! One listener belongs to one sandbox, and to one [`Client`]. A connection is served by `connection`, request
//! by request: `head` parses, `pipeline` leads from the parsed head to a dialled upstream, `connect` and `plain`
//! carry the bytes. Every refusal stands in `refusal`. What lies outside comes in through four traits:
//! [`Policies`] (the rules that hold now), [`Decider`] (a human), [`Journal`] (the audit log) and [`Resolve`] (the DNS).
//!
//! An `Allowed` is written before a byte flows, and followed by exactly one `Closed`, which tells also why what was
//! allowed was refused in the end. What is counted and not audited: heads that can't be parsed, a first request
//! without credentials, whatever there is no room for (`overloaded`), and what nobody can judge or record
//! (`policy_unavailable`).

use std::error::Error;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::timeout;
use tracing::Instrument as _;

use crate::config::{RateLimit, UpstreamProxy};
use crate::name::{CloisterName, ProjectName};
use crate::policy::{Authority, Policy, Question, Rule};
use crate::token::HashedToken;

pub use admission::Listener;
pub use admission::descriptors::Descriptors;
pub use admission::tunnels::Ending;
pub use connect::splice::{Socket, Spliceable};
pub use connection::Stream;
pub use dial::resolve::{Resolve, ResolveError, Resolving, SystemResolver};
pub use journal::{Event, EventKind, Journal, JournalError, Sample, Step, Ticket, Traffic};
pub use refusal::Reason;

use admission::Admission;
use admission::tunnels::Tunnels;
use plain::Pool;
use plain::beat::Beat;
use refusal::{Audit, Refusal};

mod admission;
mod connect;
mod connection;
mod dial;
#[cfg(fuzzing)]
pub mod fuzz;
mod head;
mod journal;
mod pipeline;
mod plain;
mod refusal;

/// How long connections may take to end once all has to.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// How many names one sandbox may have asked for at the same time, and how long the next one waits for its turn.
const MAX_LOOKUPS: usize = 16;
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// Gives the rules that hold now.
pub trait Policies: Send + Sync + 'static {
    /// The policy of this sandbox, or `None` while none can be had: then nothing passes.
    ///
    /// As long as nothing changes it is the same `Arc`: another one has the request judged again.
    fn current(&self) -> Option<Arc<Policy>>;
}

/// Asks a human about what no rule covers.
pub trait Decider: Send + Sync + 'static {
    /// Asks, and waits for the answer; dropping the future withdraws the question. `user_agent` is what the client calls
    /// itself.
    fn decide<'a>(&'a self, question: &'a Question, user_agent: Option<&'a str>) -> Deciding<'a>;
}

/// A question that waits for its answer.
pub type Deciding<'a> = Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>;

/// What became of a question.
#[derive(Debug)]
pub enum Verdict {
    /// The rules are others now: they judge again, together with what was granted to this request alone.
    Judge(Option<Arc<Rule>>),
    /// Nobody answered for so long.
    TimedOut(Duration),
    /// Nobody is asked: too much waits for an answer already, or was asked in a short time. It may be tried again then.
    TooMany(Duration),
    /// Nobody is asked, for it can't be recorded.
    Unrecorded,
}

/// Which sandbox a listener belongs to.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name, for rules and audit.
    pub cloister: CloisterName,
    /// Its project, which hints name.
    pub project: ProjectName,
    /// The token that its clients present.
    pub token: HashedToken,
}

/// What the proxy needs from outside.
#[derive(Clone)]
pub struct Services {
    /// The rules.
    pub policies: Arc<dyn Policies>,
    /// The human.
    pub decider: Arc<dyn Decider>,
    /// The audit log.
    pub journal: Arc<dyn Journal>,
    /// The DNS.
    pub resolver: Arc<dyn Resolve>,
    /// The descriptors that all sandboxes share.
    pub descriptors: Arc<Descriptors>,
}

/// How much, and how long, a sandbox may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// From the first byte of a request head to its last; default 10 s.
    pub head_timeout: Duration,
    /// Silence before a request; default 60 s.
    pub keep_alive: Duration,
    /// From the answer to CONNECT to a complete `ClientHello`; default 10 s.
    pub hello_timeout: Duration,
    /// Connecting to one address; default 10 s.
    pub dial_attempt_timeout: Duration,
    /// Connecting to one address after the other; default 30 s.
    pub dial_timeout: Duration,
    /// Silence in both directions of a tunnel or request; default 10 min (`proxy.idle_timeout`).
    pub idle: Duration,
    /// Tunnels and requests at the same time; default 512 (`proxy.max_tunnels`).
    pub max_tunnels: usize,
    /// How long a tunnel or request may last, whatever flows; default 24 h (`proxy.max_duration`).
    pub max_duration: Duration,
    /// How often it may ask; default 1200 a minute, 600 at once (`proxy.rate_limit`).
    pub rate: RateLimit,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_mins(1),
            hello_timeout: Duration::from_secs(10),
            dial_attempt_timeout: Duration::from_secs(10),
            dial_timeout: Duration::from_secs(30),
            idle: Duration::from_mins(10),
            max_tunnels: 512,
            max_duration: Duration::from_hours(24),
            rate: RateLimit::default(),
        }
    }
}

/// What can change while a sandbox runs, besides its rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// How much, and how long, it may.
    pub limits: Limits,
    /// The way that its connections take.
    pub outbound: Outbound,
}

/// The way out of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Outbound {
    /// Straight to the checked address.
    #[default]
    Direct,
    /// Through another proxy, which is given the checked address (N16; `proxy.upstream`).
    Through(UpstreamProxy),
}

/// One sandbox as the proxy knows it.
pub struct Client {
    identity: Identity,
    services: Services,
    settings: RwLock<Arc<Settings>>,
    tunnels: Arc<Tunnels>,
    admission: Arc<Admission>,
    lookups: Semaphore,
    is_draining: watch::Sender<bool>,
    pool: Arc<Pool>,
    beat: Arc<Beat>,
}

impl Client {
    /// Makes the client whose listener can then be given to [`serve`].
    pub fn new(identity: Identity, services: Services, settings: Settings) -> Self {
        let settings = RwLock::new(Arc::new(settings));
        let admission = Arc::new(Admission::new(Arc::clone(&services.descriptors)));
        let lookups = Semaphore::new(MAX_LOOKUPS);
        let is_draining = watch::Sender::new(false);
        let (tunnels, pool, beat) = (Arc::default(), Arc::default(), Arc::default());
        Self { identity, services, settings, tunnels, admission, lookups, is_draining, pool, beat }
    }

    /// What holds now for a new request.
    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until a name may be asked for, few at a time: a sandbox that asks for many waits for itself alone.
    async fn turn_to_ask(&self, authority: &Authority) -> Result<SemaphorePermit<'_>, Refusal> {
        match timeout(TURN_TIMEOUT, self.lookups.acquire()).await {
            Ok(turn) => Ok(turn.expect("nobody closes the semaphore")),
            Err(_) => Err(Refusal::too_many_lookups(authority, MAX_LOOKUPS)),
        }
    }

    /// Applies other settings; what is open keeps those that it was opened with.
    pub fn apply(&self, settings: Settings) {
        let mut current = self.settings.write().unwrap_or_else(PoisonError::into_inner);
        let has_other_rate = current.limits.rate != settings.limits.rate;
        *current = Arc::new(settings);
        drop(current);
        if has_other_rate {
            self.admission.fill_buckets();
        }
        // The way out may be another one.
        self.pool.clear();
    }

    /// Judges again all that is open, after the rules have changed, and says how many it stopped (T10).
    pub fn revalidate(&self) -> usize {
        self.pool.clear();
        self.tunnels.revalidate(&self.identity.cloister, self.services.policies.current().as_deref())
    }

    /// Waits for the answer of a human, as long as that makes sense: not longer than the sandbox and the guardian live.
    async fn decided(
        &self,
        question: &Question,
        user_agent: Option<&str>,
    ) -> Result<Option<Arc<Rule>>, Refusal> {
        let authority = question.request().authority;
        let verdict = tokio::select! {
            biased;
            () = wait_for_end(self) => {
                let ending = (*self.tunnels.ending().borrow()).unwrap_or(Ending::ShuttingDown);
                return Err(Refusal::ended(ending.into(), authority));
            }
            () = wait_for_drain(self) => return Err(Refusal::ended(Reason::ShuttingDown, authority)),
            verdict = self.services.decider.decide(question, user_agent) => verdict,
        };
        match verdict {
            Verdict::Judge(grant) => Ok(grant),
            Verdict::TimedOut(patience) => Err(Refusal::unanswered(authority, patience)),
            Verdict::TooMany(wait) => Err(Refusal::too_many_questions(authority, wait)),
            Verdict::Unrecorded => Err(Refusal::unavailable(authority)),
        }
    }

    /// Accepts no more connections, and makes [`serve`] return when those that are open have ended by themselves; a
    /// connection that could go on with another request ends after its present one.
    pub fn drain(&self) {
        self.is_draining.send_replace(true);
    }

    fn is_draining(&self) -> bool {
        *self.is_draining.borrow()
    }

    /// Stops all that is open, lets nothing in from now on, and makes [`serve`] return.
    pub fn end(&self, ending: Ending) {
        self.tunnels.end(ending);
        self.pool.close();
    }

    /// Counts the tunnels and requests that are open.
    pub fn open_tunnels(&self) -> usize {
        self.tunnels.count()
    }

    /// The answer to a client that did not prove who it is, unless there are too many of them.
    fn refuse_stranger(&self, refusal: Refusal) -> Refusal {
        let rate = self.settings().limits.rate;
        match self.admission.stranger(rate) {
            Ok(()) => refusal,
            Err(too_often) => Refusal::rate_limited(None, rate, too_often),
        }
    }

    /// Tells how long a step took that began at `since`.
    fn measure(&self, step: Step, since: Instant) {
        self.services.journal.measure(Sample::Took(step, since.elapsed()));
    }

    /// Writes that a client went away while the name servers were asked for what it wanted.
    fn write_lost(&self, authority: &Authority) {
        let kind = EventKind::Denied { reason: Reason::ClientReset, rule: None, detail: None };
        let event = Event { cloister: &self.identity.cloister, authority: Some(authority), kind };
        if let Err(error) = self.services.journal.write(&event) {
            tracing::error!(error = &error as &dyn Error, "a question to the name servers is not recorded");
        }
    }

    fn write_denial(&self, refusal: &Refusal) {
        let (rule, detail) = match refusal.audit() {
            Audit::Deny { rule, detail } => (rule, detail),
            Audit::Silent => return self.services.journal.measure(Sample::Refused(refusal.reason())),
            Audit::Closed => return,
        };
        let event = Event {
            cloister: &self.identity.cloister,
            authority: refusal.recorded_authority(),
            kind: EventKind::Denied {
                reason: refusal.reason(),
                rule: rule.as_deref(),
                detail: detail.as_deref(),
            },
        };
        // The denial stands without its record: nothing flows.
        if let Err(error) = self.services.journal.write(&event) {
            tracing::error!(error = &error as &dyn Error, "a denial is not recorded");
        }
    }
}

impl Stream for UnixStream {
    /// It can't be said: a socket of this machine has no reset, and the relay in the sandbox passes on an end like any
    /// other. What the client received shows by its own framing, if it has one, that it is not the whole.
    fn abort(self) {}
}

impl Stream for TcpStream {
    fn abort(self) {
        // Without it the peer sees an orderly end: worse, but no reason to keep the connection.
        let _ = self.set_zero_linger();
    }
}

/// Serves the clients of one sandbox, until [`Client::end`] or [`Client::drain`] is called and all connections have
/// ended.
///
/// Spawn it on a worker: a runtime's root future would have to wake a worker for every connection.
pub async fn serve<L: Listener>(listener: L, client: Arc<Client>) {
    let span = tracing::info_span!("sandbox", name = %client.identity.cloister);
    let _share = client.admission.join();
    tokio::select! {
        () = admission::accept_all(&listener, &client).instrument(span) => {}
        () = wait_for_end(&client) => {}
        () = wait_for_drain(&client) => {}
    }
    drop(listener);
    tokio::select! {
        () = client.admission.emptied() => return,
        () = wait_for_end(&client) => {}
    }
    if timeout(END_TIMEOUT, client.admission.emptied()).await.is_err() {
        tracing::warn!("connections are still open after the end");
    }
}

async fn wait_for_end(client: &Client) {
    // The sender lives in the client.
    let _ = client.tunnels.ending().wait_for(Option::is_some).await;
}

async fn wait_for_drain(client: &Client) {
    // The sender is the client's.
    let _ = client.is_draining.subscribe().wait_for(|is_draining| *is_draining).await;
}
