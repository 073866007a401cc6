//! The page on which a human answers: rendered on the server, live through server-sent events.
//!
//! A [`Page`] listens on the loopback interface alone, and every request passes the gate: the right `Host`, a login
//! session, and for whatever changes something the session's own token and the page's own origin. What a sandbox wrote
//! is escaped twice, for eyes and for HTML. Nothing that a sandbox holds opens anything here.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep};

use crate::approval::{Answer, RequestId, Settled, Snapshot, Who};

use sessions::Sessions;

mod answers;
mod assets;
mod gate;
mod live;
mod log;
mod routes;
mod serve;
mod sessions;
#[cfg(test)]
mod tests;
mod views;

/// The first port that is tried.
const FIRST_PORT: u16 = 9999;
/// How many ports are tried from there.
const PORTS: u16 = 100;
/// How often it is looked whether a port has become free.
const LOOK: Duration = Duration::from_millis(10);
/// How many event streams there are at once.
const MAX_STREAMS: usize = 16;

/// A cloister that runs, as the page shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloister {
    /// Its name.
    pub name: String,
    /// Its project.
    pub project: String,
    /// How far it reaches.
    pub network: String,
    /// Requests that were allowed.
    pub allowed: u64,
    /// Denials.
    pub denied: u64,
    /// Bytes from the sandbox.
    pub bytes_up: u64,
    /// Bytes to the sandbox.
    pub bytes_down: u64,
    /// Tunnels and requests that are open.
    pub tunnels: usize,
}

/// Why something that the page asked for is not done, as it tells the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeskError {
    /// The request is not there: answered by somebody else, over, or never was.
    #[error("{0}")]
    Gone(String),
    /// What was asked makes no sense here.
    #[error("{0}")]
    Unfit(String),
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

/// What the pages need of the guardian. Every method may block on the disk.
pub trait Desk: Send + Sync + 'static {
    /// What waits and what was decided.
    fn snapshot(&self) -> Snapshot;
    /// Tells of every change: the version of the snapshot.
    fn changes(&self) -> watch::Receiver<u64>;
    /// Somebody looks, as long as this is held: nobody needs to be called.
    fn look(&self) -> Box<dyn Send + Sync>;
    /// Answers a request.
    fn answer(&self, id: &RequestId, answer: Answer, who: Who) -> Result<Settled, DeskError>;
    /// Takes an answer back.
    fn undo(&self, id: &RequestId, who: Who) -> Result<(), DeskError>;
    /// The cloisters that run.
    fn cloisters(&self) -> Vec<Cloister>;
    /// What is wrong with the settings or the log, if anything is.
    fn problems(&self) -> Vec<String>;
    /// The audit log's unified file.
    fn audit_file(&self) -> PathBuf;
    /// Where an answer of this scope is written for a project, as the page tells before it is given.
    fn written_to(&self, scope: crate::approval::Scope, pending: &crate::approval::Pending) -> String;
}

/// The page, bound to its port.
pub struct Page {
    /// Whoever serves has it, and drops it first of all: the next guardian waits for the port.
    listener: Mutex<Option<TcpListener>>,
    shared: Arc<Shared>,
}

/// What all requests share.
struct Shared {
    desk: Arc<dyn Desk>,
    sessions: Sessions,
    streams: Arc<Semaphore>,
    /// Becomes true when the page is to end.
    ending: watch::Sender<bool>,
}

impl Page {
    /// Listens on 127.0.0.1: on the port that `state_file` names, else on the first free one from 9999. A state file
    /// that can't be read means that nobody is logged in.
    pub fn bind(state_file: &Path, desk: Arc<dyn Desk>) -> io::Result<Self> {
        let kept = sessions::load(state_file);
        let listener = listen(kept.port)?;
        listener.set_nonblocking(true)?;
        let sessions = Sessions::new(state_file.to_owned(), listener.local_addr()?.port(), kept);
        let streams = Arc::new(Semaphore::new(MAX_STREAMS));
        let shared = Arc::new(Shared { desk, sessions, streams, ending: watch::Sender::new(false) });
        Ok(Self { listener: Mutex::new(Some(listener)), shared })
    }

    /// Like [`bind`](Self::bind), but waits as long as `patience` for the port that it had before: another guardian is
    /// about to let it go, and writes the state file once more.
    pub async fn bind_after(state_file: &Path, desk: Arc<dyn Desk>, patience: Duration) -> io::Result<Self> {
        let end = Instant::now() + patience;
        while let Some(port) = sessions::load(state_file).port
            && Instant::now() < end
            && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err()
        {
            sleep(LOOK).await;
        }
        Self::bind(state_file, desk)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.shared.sessions.port()))
    }

    /// Makes a link that logs one browser in, once, within five minutes.
    pub fn login_link(&self) -> io::Result<String> {
        let code = self.shared.sessions.make_code()?;
        Ok(format!("http://{}/login/{code}", self.address()))
    }

    /// Serves, once, until `shutdown` ends and the open answers are written, or are overdue. The port is free, and event
    /// streams end, as soon as `shutdown` does.
    pub async fn serve(&self, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let taken = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let listener = taken.ok_or_else(|| io::Error::other("the page was served already"))?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let routes = routes::router(&self.shared);
        let served = serve::serve(listener, routes, self.shared.ending.subscribe());
        tokio::pin!(served);
        tokio::select! {
            () = &mut served => {}
            () = shutdown => {
                self.shared.ending.send_replace(true);
                served.await;
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Page {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Page").field("address", &self.address()).finish_non_exhaustive()
    }
}

/// Listens on the first free port, the preferred one first.
fn listen(preferred: Option<u16>) -> io::Result<TcpListener> {
    let ports = preferred.into_iter().chain(FIRST_PORT..FIRST_PORT + PORTS);
    let mut last = io::ErrorKind::AddrInUse.into();
    for port in ports {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}
