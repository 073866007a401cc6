//! Who is let in, and how often (H15): the accept loop of one sandbox, its connections, its buckets of requests.
//!
//! What a sandbox asks beyond its limits costs the guardian little and other sandboxes nothing: a connection too
//! many is turned away without a task of its own, a request too many waits for its refusal.

use std::error::Error;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::Instrument as _;

use crate::config::RateLimit;

use super::connection::{self, Stream};
use super::plain::Pool;
use super::refusal::{After, Refusal, Show};
use super::{Client, Limits};
use bucket::Bucket;
use descriptors::{Descriptors, Share};
use tunnels::ConnectionId;

mod bucket;
pub(super) mod descriptors;
pub(super) mod tunnels;

/// How long the accept loop rests when accepting fails.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long it rests after each client that is one too many: a flood of them is not worth more.
const TURN_AWAY_PAUSE: Duration = Duration::from_millis(1);
/// How long a client may have to wait for an idle connection to give way.
const ROOM_PATIENCE: Duration = Duration::from_millis(10);
/// How long a request that is one too many waits for its answer, so that a client that goes on at once can't keep a
/// processor busy. Whoever obeys `Retry-After` loses nothing: it is a second at least.
pub(super) const REFUSAL_PAUSE: Duration = Duration::from_millis(250);
/// What is taken at most from a client that is turned away.
const HEARD_BYTES: usize = 4 << 10;
/// Connections beyond two for every tunnel, for clients that say nothing yet.
const SPARE_CONNECTIONS: usize = 16;

/// Counts the connections of all sandboxes: an id is never used twice.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

impl Limits {
    /// Connections at the same time: twice the tunnels, so that idle ones leave room for those that work.
    pub fn max_connections(&self) -> usize {
        self.max_tunnels.saturating_mul(2).saturating_add(SPARE_CONNECTIONS)
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

/// What one sandbox has of connections and requests.
#[derive(Debug)]
pub(super) struct Admission {
    descriptors: Arc<Descriptors>,
    began: Instant,
    /// Of clients that proved who they are.
    requests: Bucket,
    /// Of clients that did not, so that they can't use up what the others have.
    strangers: Bucket,
    connections: AtomicUsize,
    /// What is taken from the descriptors.
    held: AtomicUsize,
    /// Connections between two requests.
    idle: AtomicUsize,
    make_room: Notify,
    /// Whether somebody waits for a connection to give way: `make_room` outlives the wish.
    is_room_wanted: AtomicBool,
    left: Notify,
}

/// The answer to a request that is one too many: how long until there is one again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooOften(pub(super) Duration);

/// Why a connection is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    Connections,
    Descriptors,
}

impl Admission {
    pub(super) fn new(descriptors: Arc<Descriptors>) -> Self {
        Self {
            descriptors,
            began: Instant::now(),
            requests: Bucket::default(),
            strangers: Bucket::default(),
            connections: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            make_room: Notify::new(),
            is_room_wanted: AtomicBool::new(false),
            left: Notify::new(),
        }
    }

    /// Counts the sandbox among those that share the descriptors.
    pub(super) fn join(&self) -> Share {
        self.descriptors.join()
    }

    /// Takes one request of a client that proved who it is.
    pub(super) fn request(&self, rate: RateLimit) -> Result<(), TooOften> {
        self.requests.take(rate, self.began.elapsed()).map_err(TooOften)
    }

    /// Takes one attempt of a client that did not.
    pub(super) fn stranger(&self, rate: RateLimit) -> Result<(), TooOften> {
        self.strangers.take(rate, self.began.elapsed()).map_err(TooOften)
    }

    /// Begins anew, for another rate.
    pub(super) fn fill_buckets(&self) {
        self.requests.fill();
        self.strangers.fill();
    }

    /// Takes what resolving and dialling need besides the two sockets of a connection.
    pub(super) fn passage(self: &Arc<Self>) -> Option<Held> {
        let own = self.held.load(Ordering::Relaxed);
        self.descriptors.take(own).then(|| {
            self.held.fetch_add(1, Ordering::Relaxed);
            Held(Arc::clone(self))
        })
    }

    fn try_admit(self: &Arc<Self>, max: usize) -> Result<Slot, Full> {
        // Only the accept loop of the sandbox adds to it.
        if self.connections.load(Ordering::Relaxed) >= max {
            return Err(Full::Connections);
        }
        let held = self.passage().ok_or(Full::Descriptors)?;
        self.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Slot { held })
    }

    /// Lets one connection in; when there is no room, what is kept for later gives way, and then the connection that
    /// has been idle longest.
    async fn admit(self: &Arc<Self>, max: usize, kept: &Pool) -> Result<Slot, Full> {
        let mut admitted = self.try_admit(max);
        if matches!(admitted, Err(Full::Descriptors)) {
            kept.clear();
            admitted = self.try_admit(max);
        }
        if admitted.is_ok() || self.idle.load(Ordering::Relaxed) == 0 {
            return admitted;
        }
        self.is_room_wanted.store(true, Ordering::Relaxed);
        self.make_room.notify_one();
        let room = async {
            loop {
                self.left.notified().await;
                if let Ok(slot) = self.try_admit(max) {
                    return slot;
                }
            }
        };
        let admitted = timeout(ROOM_PATIENCE, room).await.or(admitted);
        self.is_room_wanted.store(false, Ordering::Relaxed);
        admitted
    }

    /// Runs `wait`, in which a connection has nothing to do; `None` when it has to give way to another one.
    pub(super) async fn idle<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        self.idle.fetch_add(1, Ordering::Relaxed);
        let _idle = Idling(&self.idle);
        tokio::select! {
            biased;
            done = wait => Some(done),
            () = self.room_wanted() => None,
        }
    }

    /// Waits for the wish that one connection gives way, and takes it.
    async fn room_wanted(&self) {
        loop {
            self.make_room.notified().await;
            if self.is_room_wanted.swap(false, Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Waits until no connection is left; the accept loop must have ended.
    pub(super) async fn emptied(&self) {
        while self.connections.load(Ordering::Relaxed) > 0 {
            self.left.notified().await;
        }
    }
}

struct Idling<'a>(&'a AtomicUsize);

impl Drop for Idling<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Descriptors that are accounted for, until the value is dropped.
pub(super) struct Held(Arc<Admission>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
        self.0.descriptors.give_back();
        self.0.left.notify_one();
    }
}

/// The place of one connection, until the value is dropped.
struct Slot {
    held: Held,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.held.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts the clients of one sandbox, each in a task of its own.
pub(super) async fn accept_all<L: Listener>(listener: &L, client: &Arc<Client>) {
    let mut spare = Spare::default();
    loop {
        spare.refill();
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(error = &error as &dyn Error, "cannot accept a connection");
                spare.give_way(client, listener, &error).await;
                continue;
            }
        };
        let max = client.settings().limits.max_connections();
        let slot = match client.admission.admit(max, &client.pool).await {
            Ok(slot) => slot,
            Err(full) => {
                let refusal = match full {
                    Full::Connections => Refusal::overloaded(max),
                    Full::Descriptors => Refusal::exhausted(None),
                };
                turn_away(client, &stream, &refusal);
                drop(stream);
                sleep(TURN_AWAY_PAUSE).await;
                continue;
            }
        };
        let id = ConnectionId(CONNECTIONS.fetch_add(1, Ordering::Relaxed));
        let client = Arc::clone(client);
        tokio::spawn(
            async move {
                let _slot = slot;
                connection::serve(stream, client, id).await;
            }
            .instrument(tracing::info_span!("conn", client = id.0)),
        );
    }
}

/// A descriptor that is given up when there is no other one, so that a client hears that there is none.
#[derive(Default)]
struct Spare(Option<File>);

impl Spare {
    fn refill(&mut self) {
        if self.0.is_none() {
            self.0 = File::open("/dev/null").ok();
        }
    }

    /// After accepting failed for want of a descriptor, accepts one client in place of the spare and turns it away;
    /// where that does not help, the loop rests.
    async fn give_way<L: Listener>(&mut self, client: &Client, listener: &L, error: &io::Error) {
        if descriptors::ran_out(error) && self.0.take().is_some() {
            // Somebody else may have been quicker to take it.
            if let Ok(Ok(stream)) = timeout(ACCEPT_PAUSE, listener.accept()).await {
                turn_away(client, &stream, &Refusal::exhausted(None));
                drop(stream);
                self.refill();
                return sleep(TURN_AWAY_PAUSE).await;
            }
        }
        sleep(ACCEPT_PAUSE).await;
    }
}

/// Says no to a client that nothing was sent to yet: what its socket does not take at once, it does not hear.
fn turn_away(client: &Client, stream: &impl AsFd, refusal: &Refusal) {
    client.write_denial(refusal);
    let answer = refusal.render(After::Close, Show::Whole);
    // The connection ends either way; a close with bytes unread would end it with an error.
    let _ = rustix::net::send(stream, &answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    let _ = rustix::net::recv(stream, &mut [0; HEARD_BYTES], RecvFlags::DONTWAIT);
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::pin::{Pin, pin};
    use std::task::Poll;

    use tokio::sync::oneshot;

    use super::*;

    /// Goes as far as it goes at once.
    async fn begin<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
        poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
    }

    #[tokio::test(start_paused = true)]
    async fn h15_a_wish_for_room_that_is_over_closes_no_other_connection() {
        let (admission, pool) =
            (Arc::new(Admission::new(Arc::new(Descriptors::new(20_000)))), Pool::default());
        let _slot = admission.try_admit(1).unwrap();
        let (bytes, came) = oneshot::channel();
        let mut busy = pin!(admission.idle(came));
        assert!(begin(busy.as_mut()).await.is_pending());
        let mut newcomer = pin!(admission.admit(1, &pool));
        assert!(begin(newcomer.as_mut()).await.is_pending());
        // It is asked to give way just as its next request comes.
        bytes.send(()).unwrap();
        assert!(busy.await.is_some());
        assert_eq!(newcomer.await.err(), Some(Full::Connections));
        let mut next = pin!(admission.idle(pending::<()>()));
        assert!(timeout(Duration::from_mins(1), next.as_mut()).await.is_err(), "nobody wants its place");
        // It hears the next wish.
        let newcomer = admission.admit(1, &pool);
        let (gave_way, _) = tokio::join!(next, newcomer);
        assert!(gave_way.is_none());
    }
}
