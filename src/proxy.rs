//! The forward proxy: the only way out of a sandbox (DESIGN 3).
//!
//! One listener belongs to one sandbox, and to one [`Client`]. A connection is served by `connection`, request
//! by request: `head` parses, `pipeline` leads from the parsed head to a dialled upstream, `connect` and `plain`
//! carry the bytes. Every refusal stands in `refusal`. What lies outside comes in through three traits:
//! [`Policies`] (the rules that hold now), [`Journal`] (the audit log) and [`Resolve`] (the DNS).
//!
//! What is not audited: heads that can't be parsed, and a first request without credentials. An `Allowed` is
//! written before a byte flows, and followed by exactly one `Closed`.

use std::error::Error;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::Instrument as _;

use crate::config::{RateLimit, UpstreamProxy};
use crate::name::{CloisterName, ProjectName};
use crate::policy::{ConnectionId, Policy};
use crate::token::HashedToken;

pub use connection::Stream;
pub use dial::resolve::{Resolve, ResolveError, Resolving, SystemResolver};
pub use journal::{Event, EventKind, Journal, JournalError, Sample, Step, Traffic};
pub use refusal::Reason;
pub use tunnels::Ending;

use refusal::{After, Audit, Refusal, Show};
use tunnels::Tunnels;

mod connect;
mod connection;
mod dial;
mod head;
mod journal;
mod pipeline;
mod plain;
mod refusal;
mod tunnels;

/// How long the accept loop rests when the system has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a client that is one too many may take to hear it.
const TURN_AWAY_TIMEOUT: Duration = Duration::from_secs(1);
/// How long connections may take to end once all has to.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Counts the connections of all sandboxes: an id is never used twice.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

/// Gives the rules that hold now.
pub trait Policies: Send + Sync + 'static {
    /// The policy of this sandbox, or `None` while none can be had: then nothing passes.
    ///
    /// As long as nothing changes it is the same `Arc`: another one has the request judged again.
    fn current(&self) -> Option<Arc<Policy>>;
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
    /// The audit log.
    pub journal: Arc<dyn Journal>,
    /// The DNS.
    pub resolver: Arc<dyn Resolve>,
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
    /// Connections at the same time; default 1024.
    pub max_connections: usize,
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
            max_connections: 1024,
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
}

impl Client {
    /// Makes the client whose listener can then be given to [`serve`].
    pub fn new(identity: Identity, services: Services, settings: Settings) -> Self {
        let settings = RwLock::new(Arc::new(settings));
        Self { identity, services, settings, tunnels: Arc::default() }
    }

    /// What holds now for a new request.
    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Applies other settings; what is open keeps those that it was opened with.
    pub fn apply(&self, settings: Settings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    /// Judges again all that is open, after the rules have changed, and says how many it stopped (T10).
    pub fn revalidate(&self) -> usize {
        self.tunnels.revalidate(&self.identity.cloister, self.services.policies.current().as_deref())
    }

    /// Stops all that is open, lets nothing in from now on, and makes [`serve`] return.
    pub fn end(&self, ending: Ending) {
        self.tunnels.end(ending);
    }

    /// Counts the tunnels and requests that are open.
    pub fn open_tunnels(&self) -> usize {
        self.tunnels.count()
    }

    /// Tells how long a step took that began at `since`.
    fn measure(&self, step: Step, since: Instant) {
        self.services.journal.measure(Sample::Took(step, since.elapsed()));
    }

    fn write_denial(&self, refusal: &Refusal) {
        let Audit::Deny { rule, detail } = refusal.audit() else {
            return self.services.journal.measure(Sample::Refused(refusal.reason()));
        };
        let event = Event {
            cloister: &self.identity.cloister,
            authority: refusal.authority(),
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

/// Where clients connect.
pub trait Listener: Send + 'static {
    /// A connection to a client.
    type Stream: Stream;

    /// Waits for the next client.
    ///
    /// # Errors
    /// Whatever the system says; it does not end the listener.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = Self::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Stream for UnixStream {
    /// Both directions end at once, which tells the relay in the sandbox (it sees a hang-up rather than the end of
    /// one direction) to reset its own client; the socket itself has no way to say it.
    fn abort(self) {}
}

impl Stream for TcpStream {
    fn abort(self) {
        // Without it the peer sees an orderly end: worse, but no reason to keep the connection.
        let _ = self.set_zero_linger();
    }
}

/// Serves the clients of one sandbox, until [`Client::end`] is called and all connections have ended.
///
/// Spawn it on a worker: a runtime's root future would have to wake a worker for every connection.
pub async fn serve<L: Listener>(listener: L, client: Arc<Client>) {
    let span = tracing::info_span!("sandbox", name = %client.identity.cloister);
    let max_connections = client.settings().limits.max_connections;
    let slots = Arc::new(Semaphore::new(max_connections));
    tokio::select! {
        () = accept_all(&listener, &client, &slots).instrument(span) => {}
        () = wait_for_end(&client) => {}
    }
    drop(listener);
    let all = u32::try_from(max_connections).unwrap_or(u32::MAX);
    if timeout(END_TIMEOUT, slots.acquire_many(all)).await.is_err() {
        tracing::warn!("connections are still open after the end");
    }
}

async fn wait_for_end(client: &Client) {
    // The sender lives in the client.
    let _ = client.tunnels.ending().wait_for(Option::is_some).await;
}

async fn accept_all<L: Listener>(listener: &L, client: &Arc<Client>, slots: &Arc<Semaphore>) {
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(error = &error as &dyn Error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(slots).try_acquire_owned() else {
            client.services.journal.measure(Sample::Refused(Reason::Overloaded));
            tokio::spawn(turn_away(stream, client.settings().limits.max_connections));
            continue;
        };
        let id = ConnectionId::new(CONNECTIONS.fetch_add(1, Ordering::Relaxed));
        let client = Arc::clone(client);
        tokio::spawn(
            async move {
                let _slot = slot;
                connection::serve(stream, client, id).await;
            }
            .instrument(tracing::info_span!("conn", client = %id)),
        );
    }
}

/// Says that there are too many connections; a client that does not listen is not waited for.
async fn turn_away<S: Stream>(mut stream: S, limit: usize) {
    let answer = Refusal::overloaded(limit).render(After::Close, Show::Whole);
    // The connection ends either way.
    let _ = timeout(TURN_AWAY_TIMEOUT, stream.write_all(&answer)).await;
}
