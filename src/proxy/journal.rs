//! What the proxy tells the audit log, in its own words.

use std::error::Error;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::name::CloisterName;
use crate::policy::{Authority, Permit, Rule};

use super::refusal::Reason;

/// Takes the proxy's events in the order in which they happen; what it can't write stops the traffic.
pub trait Journal: Send + Sync + 'static {
    /// Writes one event, so that a reader of the log sees it from now on.
    ///
    /// # Errors
    /// Whatever keeps the event from being written; the proxy then lets nothing through.
    fn write(&self, event: &Event<'_>) -> Result<(), JournalError>;

    /// Takes what may pass, in its place behind all that came before it. It has to be [settled](Self::settle) before
    /// a byte flows: what several tasks entered is then written at once.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn enter(&self, event: &Event<'_>) -> Result<Ticket, JournalError> {
        self.write(event).map(|()| Ticket::default())
    }

    /// Makes sure that what was entered is written.
    ///
    /// # Errors
    /// As for [`write`](Self::write); the event stays entered, and its end has to be written.
    fn settle(&self, _ticket: Ticket) -> Result<(), JournalError> {
        Ok(())
    }

    /// Takes a measurement; it lies on the way of every request and must cost next to nothing.
    fn measure(&self, _sample: Sample) {}

    /// What the bytes of all tunnels and requests of the sandbox are added to.
    fn traffic(&self) -> Arc<Traffic> {
        Arc::default()
    }
}

/// Names an event that was entered; what it says is the journal's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ticket {
    /// Which of the logs that the journal has had.
    pub log: u64,
    /// The number of the record there.
    pub record: u64,
}

/// What is counted besides the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// A client connected.
    Connected,
    /// A client is gone.
    Disconnected,
    /// A refusal of which no event tells, nor the end of what had been allowed.
    Refused(Reason),
    /// How long a step of a request took.
    Took(Step, Duration),
}

/// A step of a request, as it is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Asking the DNS.
    Resolve,
    /// From the parsed head to the recorded permit.
    Decide,
    /// Connecting to a permitted address.
    Dial,
    /// From the parsed head to the connected upstream.
    Open,
    /// From the parsed head to the refusal.
    Refuse,
}

impl Step {
    /// The step that a request has taken when this became of it.
    pub(super) fn of<T, E>(outcome: &Result<T, E>) -> Self {
        if outcome.is_ok() { Self::Open } else { Self::Refuse }
    }
}

/// The bytes of one sandbox, also of what is still open.
#[derive(Debug, Default)]
pub struct Traffic {
    /// From its clients to upstreams.
    pub up: AtomicU64,
    /// From upstreams to its clients.
    pub down: AtomicU64,
}

/// Tells that a client is connected for as long as it lives.
pub(super) struct Connected(Arc<dyn Journal>);

impl Connected {
    pub(super) fn new(journal: &Arc<dyn Journal>) -> Self {
        journal.measure(Sample::Connected);
        Self(Arc::clone(journal))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.measure(Sample::Disconnected);
    }
}

/// Why an event could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write an event of the proxy")]
pub struct JournalError(#[source] pub Box<dyn Error + Send + Sync>);

/// One event of the proxy.
#[derive(Debug)]
pub struct Event<'a> {
    /// The sandbox it is about.
    pub cloister: &'a CloisterName,
    /// Where the sandbox wanted to go; unknown when it did not prove who it is.
    pub authority: Option<&'a Authority>,
    /// What happened.
    pub kind: EventKind<'a>,
}

/// What happened.
#[derive(Debug)]
pub enum EventKind<'a> {
    /// A request may pass; written before its first byte flows, followed by exactly one `Closed`.
    Allowed {
        /// The rule that allows it.
        rule: &'a Rule,
        /// The checked addresses, of which one will be dialled.
        addresses: &'a [SocketAddr],
    },
    /// A request, or the protocol inside of a tunnel, was refused.
    Denied {
        /// Why.
        reason: Reason,
        /// The rule that forbids it, when it was one.
        rule: Option<&'a Rule>,
        /// What the sandbox is not told.
        detail: Option<&'a str>,
    },
    /// What was allowed has ended.
    Closed {
        /// The address that was dialled; `None` when none could be.
        address: Option<SocketAddr>,
        /// What kept it from being dialled, which the sandbox is not told.
        detail: Option<&'a str>,
        /// Why it did not end in order.
        reason: Option<Reason>,
        /// Bytes from the client to the upstream.
        bytes_up: u64,
        /// Bytes from the upstream to the client.
        bytes_down: u64,
        /// Since it was allowed.
        duration: Duration,
    },
}

/// Counts the bytes of one tunnel or request, and knows when the last one passed.
#[derive(Debug)]
pub(super) struct Meter {
    start: Instant,
    up: AtomicU64,
    down: AtomicU64,
    last_millis: AtomicU64,
    traffic: Arc<Traffic>,
}

impl Meter {
    /// `traffic` is what is counted besides, for the whole sandbox.
    pub(super) fn new(traffic: Arc<Traffic>) -> Self {
        Self {
            traffic,
            start: Instant::now(),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            last_millis: AtomicU64::new(0),
        }
    }

    pub(super) fn add_up(&self, bytes: usize) {
        self.up.fetch_add(bytes as u64, Ordering::Relaxed);
        self.traffic.up.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touch();
    }

    pub(super) fn add_down(&self, bytes: usize) {
        self.down.fetch_add(bytes as u64, Ordering::Relaxed);
        self.traffic.down.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touch();
    }

    /// How many bytes came from the upstream.
    pub(super) fn bytes_down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
    }

    /// Notes that something moved, whatever its direction.
    pub(super) fn touch(&self) {
        self.last_millis.store(self.elapsed_millis(), Ordering::Relaxed);
    }

    /// How much has passed, up and down.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed))
    }

    /// How long nothing has moved.
    pub(super) fn idle(&self) -> Duration {
        Duration::from_millis(self.elapsed_millis().saturating_sub(self.last_millis.load(Ordering::Relaxed)))
    }

    /// How long it has been open.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    fn elapsed_millis(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The record of something allowed that has not ended yet: opening it writes `Allowed`, and however it ends,
/// `Closed` is written once.
pub(super) struct OpenRecord {
    journal: Arc<dyn Journal>,
    cloister: CloisterName,
    authority: Authority,
    meter: Arc<Meter>,
    address: Option<SocketAddr>,
    detail: Option<String>,
    reason: Option<Reason>,
}

impl OpenRecord {
    /// # Errors
    /// When the journal can't be written; nothing may flow then.
    pub(super) async fn open(journal: Arc<dyn Journal>, permit: &Permit) -> Result<Self, JournalError> {
        let event = Event {
            cloister: permit.cloister(),
            authority: Some(permit.authority()),
            kind: EventKind::Allowed { rule: permit.rule(), addresses: permit.addresses() },
        };
        let ticket = journal.enter(&event)?;
        let meter = Arc::new(Meter::new(journal.traffic()));
        let mut record = Self {
            journal,
            cloister: permit.cloister().clone(),
            authority: permit.authority().clone(),
            meter,
            address: None,
            detail: None,
            // What is left behind by who does not come back from the turn of the others.
            reason: Some(Reason::ClientReset),
        };
        others_first().await;
        let settled = record.journal.settle(ticket);
        // What a panic leaves behind.
        record.reason = Some(if settled.is_ok() { Reason::Aborted } else { Reason::PolicyUnavailable });
        settled.map(|()| record)
    }

    pub(super) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(super) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Writes that the protocol inside of the tunnel was refused.
    pub(super) fn deny(&self, reason: Reason, detail: Option<&str>) {
        self.write(EventKind::Denied { reason, rule: None, detail });
    }

    /// Notes that an upstream is being dialled, which ends early only when the client goes.
    pub(super) fn dialling(&mut self) {
        self.reason = Some(Reason::ClientReset);
    }

    /// Notes to which address the connection goes.
    pub(super) fn connected(&mut self, address: SocketAddr) {
        self.address = Some(address);
        self.reason = Some(Reason::Aborted);
    }

    /// Ends the record of what could not be connected.
    pub(super) fn fail(mut self, reason: Reason, detail: String) {
        self.detail = Some(detail);
        self.close(Some(reason));
    }

    /// Ends the record; without a reason it ended in order.
    pub(super) fn close(mut self, reason: Option<Reason>) {
        self.reason = reason;
    }

    /// A record that can't be written any more stops nothing: what it tells has already ended.
    fn write(&self, kind: EventKind<'_>) {
        let event = Event { cloister: &self.cloister, authority: Some(&self.authority), kind };
        if let Err(error) = self.journal.write(&event) {
            tracing::error!(error = &error as &dyn Error, "the end of a tunnel is not recorded");
        }
    }
}

impl Drop for OpenRecord {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.reason = Some(Reason::Aborted);
        }
        let (bytes_up, bytes_down) = self.meter.bytes();
        self.write(EventKind::Closed {
            address: self.address,
            detail: self.detail.as_deref(),
            reason: self.reason,
            bytes_up,
            bytes_down,
            duration: self.meter.start.elapsed(),
        });
    }
}

/// Lets the other tasks go on that are ready.
async fn others_first() {
    let mut is_back = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut is_back, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
