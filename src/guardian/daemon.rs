//! The guardian's process: from its lock to its last record.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener as Bound;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::approvals::Approvals;
use super::control::{self, Control, Held};
use super::handover::{Link, Offer, Sockets, TakeError, check_head};
use super::ledger::Ledger;
use super::notify::{Bus, Caller};
use super::registry::tokens::{self, TokenError};
use super::registry::{Registry, RegistryError};
use crate::audit::{AuditError, AuditLog, Event, Record, Storage};
use crate::config::{Audit, Config, ConfigError};
use crate::paths::{self, Lock, Paths, PathsError};
use crate::process;
use crate::proxy::{Resolve, SystemResolver};
use crate::token::ControlKey;
use crate::web::{Desk, Page};

/// How long a guardian waits for an earlier one to end.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(3);
/// How often it looks whether it has.
const LOOK: Duration = Duration::from_millis(5);
/// How often it looks whether it can still be reached.
const REACH: Duration = Duration::from_secs(1);

/// How long a guardian that takes over waits for the page's port.
const PAGE_PATIENCE: Duration = Duration::from_secs(3);

/// How long a guardian that was replaced may carry its tunnels.
const MAX_DRAIN: Duration = Duration::from_hours(24);

/// How a guardian comes to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// There must be no other.
    Only,
    /// It takes over from the one that runs, if one does.
    Successor,
}

/// Why the guardian did not start or ended in disorder.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another one serves this user.
    #[error("a guardian is running already")]
    Running,
    /// A file, directory or lock could not be had.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// The settings are wrong: nothing is served by rules that nobody wrote.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Without an audit log there is no traffic.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A token that an earlier guardian gave out can't be read.
    #[error("cannot serve the running cloisters")]
    Token(#[source] TokenError),
    /// The sandboxes of an earlier guardian could not be taken over.
    #[error("cannot serve the running cloisters: {0}")]
    Restore(String),
    /// The running guardian could not be replaced.
    #[error(transparent)]
    Take(#[from] TakeError),
    /// Something else of the system.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::Io { action, source }
}

impl From<RegistryError> for DaemonError {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Config(error) => Self::Config(error),
            RegistryError::Audit(error) => Self::Audit(error),
            RegistryError::Paths(error) => Self::Paths(error),
            RegistryError::Token(error) => Self::Token(error),
            other => Self::Restore(control::chain(&other)),
        }
    }
}

/// Runs a guardian until it is told to stop, or another one has taken over and its last tunnel has ended; `ready` is
/// called as soon as it serves.
pub fn run(paths: &Paths, role: Role, ready: impl FnOnce(&Path)) -> Result<(), DaemonError> {
    // In the foreground it heads its session already, and stays in it.
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::from_raw_mode(0o077));
    raise_descriptor_limit();
    let begun = match role {
        Role::Only => None,
        Role::Successor => take_over(paths)?,
    };
    let begun = match begun {
        Some(begun) => begun,
        None => begin(paths)?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(io_error("start the event loop"))?;
    let result = runtime.block_on(serve(paths, begun, ready));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// How many threads serve the control socket and ask the name servers; every sandbox has one of its own.
const WORKERS: usize = 2;

/// What a guardian has before it serves.
struct Begun {
    lock: Lock,
    ledger: Arc<Ledger>,
    taken: Option<Taken>,
}

/// What it has from another one.
struct Taken {
    link: Link,
    pid: u32,
    sockets: Sockets,
}

/// Begins as the only guardian.
fn begin(paths: &Paths) -> Result<Begun, DaemonError> {
    let Some(lock) = lock(paths)? else { return Err(DaemonError::Running) };
    let config = Config::load_for(paths, None)?;
    Ok(Begun { lock, ledger: open_ledger(paths, config.audit)?, taken: None })
}

/// Begins in the place of the guardian that runs; `None` when there is none, or none any more.
fn take_over(paths: &Paths) -> Result<Option<Begun>, DaemonError> {
    let Some(Offer { link, pid, lock, sockets }) = Offer::ask(paths)? else { return Ok(None) };
    let config = Config::load_for(paths, None)?;
    Registry::check(paths)?;
    let Some(head) = link.accept()? else { return Ok(None) };
    let ledger = open_ledger(paths, config.audit)?;
    check_head(&head, ledger.head()?)?;
    Ok(Some(Begun { lock, ledger, taken: Some(Taken { link, pid, sockets }) }))
}

/// Takes as many descriptors as the system gives: with the usual soft limit, one sandbox could use up all.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Where it can't be raised, what there is has to do.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Takes the lock of the one guardian, with patience for one that is about to end.
fn lock(paths: &Paths) -> Result<Option<Lock>, PathsError> {
    let end = Instant::now() + PREDECESSOR_PATIENCE;
    loop {
        let lock = Lock::try_acquire(&paths.guardian_lock())?;
        if lock.is_some() || Instant::now() > end {
            return Ok(lock);
        }
        std::thread::sleep(LOOK);
    }
}

/// Opens the audit log, and knows how to do it again.
fn open_ledger(paths: &Paths, audit: Audit) -> Result<Arc<Ledger>, AuditError> {
    let directory = paths.audit_dir();
    Ok(Arc::new(Ledger::open(paths, move || open_log(&directory, &audit))?))
}

/// Opens the audit log. The guardian's lock is held: who still holds the log is a predecessor that was killed, whose
/// descriptors the kernel is about to close.
fn open_log(directory: &Path, audit: &Audit) -> Result<AuditLog, AuditError> {
    let &Audit { per_cloister, max_bytes, max_files } = audit;
    let end = Instant::now() + PREDECESSOR_PATIENCE;
    loop {
        match AuditLog::open(directory, Storage { per_cloister, max_bytes, max_files }) {
            Err(AuditError::Busy { .. }) if Instant::now() < end => std::thread::sleep(LOOK),
            other => return other,
        }
    }
}

async fn serve(paths: &Paths, begun: Begun, ready: impl FnOnce(&Path)) -> Result<(), DaemonError> {
    let Begun { lock, ledger, taken } = begun;
    let resolver: Arc<dyn Resolve> = Arc::new(SystemResolver::on(Handle::current()));
    let caller = Caller::spawn(&Handle::current(), Bus::from_environment(process::environment));
    let approvals = Arc::new(Approvals::new(Arc::clone(&ledger), caller));
    let registry = Registry::new(paths.clone(), Arc::clone(&ledger), resolver, Arc::clone(&approvals));
    let registry = Arc::new(registry.map_err(io_error("watch over files"))?);
    let version = env!("CARGO_PKG_VERSION");
    let detail = taken.as_ref().map_or_else(
        || version.to_owned(),
        |taken| format!("{version}, in the place of process {}", taken.pid),
    );
    ledger.append(Record::new(Event::GuardianStart).detail(detail))?;
    let (link, given, sockets) = match taken {
        Some(Taken { link, sockets: Sockets { key, control, listeners }, .. }) => {
            (Some(link), Some((key, Bound::from(control))), Some(listeners))
        }
        None => (None, None, None),
    };
    registry.restore(sockets)?;
    let is_successor = link.is_some();
    let (listener, control) = open_control(paths, Arc::clone(&registry), lock, given)?;
    let door = Arc::new(Door::of(paths));
    tokio::spawn(obey_signals(Arc::clone(&door), Arc::clone(&control))?);
    if let Some(link) = link
        && let Some(predecessor) = link.complete(ledger)?
    {
        registry.follow(predecessor);
        // What changed while the two were busy holds here and there.
        registry.refresh();
    }
    registry.publish();
    tokio::spawn(Arc::clone(&approvals).follow());
    open_page(paths, &registry, approvals, is_successor);
    registry.guard_the_rest();
    registry.follow_settings().map_err(io_error("follow the settings"))?;
    ready(&paths.control_socket());
    let served = control::serve(listener, Arc::clone(&control)).await;
    if control.is_replaced() {
        carry_to_the_end(&registry).await;
        return Ok(());
    }
    let removed = door.remove();
    served.map_err(io_error("serve the control socket"))?;
    Ok(removed?)
}

/// Opens the page on which a human answers; without one, the command line still does. The page of a guardian before is
/// about to end: nobody but the page waits for its port.
fn open_page(paths: &Paths, registry: &Arc<Registry>, approvals: Arc<Approvals>, is_successor: bool) {
    let (file, registry) = (paths.page_file(), Arc::clone(registry));
    let desk = Arc::clone(&registry) as Arc<dyn Desk>;
    let show = move |bound: io::Result<Page>| match bound {
        Ok(page) => {
            let page = Arc::new(page);
            approvals.open(&page);
            registry.keep_from_page();
            tokio::spawn(async move { approvals.serve_page(page).await });
        }
        Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "there is no page"),
    };
    if is_successor {
        tokio::spawn(async move { show(Page::bind_after(&file, desk, PAGE_PATIENCE).await) });
    } else {
        show(Page::bind(&file, desk));
    }
}

/// Carries the tunnels that are left after another guardian has taken over: it owns all paths.
async fn carry_to_the_end(registry: &Registry) {
    if timeout(MAX_DRAIN, registry.finished()).await.is_err() {
        registry.end_all();
        registry.finished().await;
    }
}

/// Makes the control socket and the key that it asks for, both new, unless they were given by another guardian.
fn open_control(
    paths: &Paths,
    registry: Arc<Registry>,
    lock: Lock,
    given: Option<(ControlKey, Bound)>,
) -> Result<(UnixListener, Arc<Control>), DaemonError> {
    let path: PathBuf = paths.control_socket();
    let given = given.filter(|_| path.exists() && paths.control_key().exists());
    let (key, bound) = match given {
        Some(given) => given,
        None => (make_key(paths)?, bind(&path)?),
    };
    let listen = || {
        bound.set_nonblocking(true)?;
        UnixListener::from_std(bound.try_clone()?)
    };
    let listener = listen().map_err(io_error("listen on the control socket"))?;
    let held = Held { lock, listener: bound };
    Ok((listener, Arc::new(Control::new(registry, key, held))))
}

fn make_key(paths: &Paths) -> Result<ControlKey, DaemonError> {
    let key = ControlKey::from_bytes(tokens::random().map_err(io_error("make a random key"))?);
    paths::write_atomic(&paths.control_key(), key.expose().as_bytes())?;
    Ok(key)
}

/// The guardian's lock is held: whatever lies at the path was left by one that is gone.
fn bind(path: &Path) -> Result<Bound, DaemonError> {
    paths::remove_if_present(path)?;
    Bound::bind(path).map_err(io_error("listen on the control socket"))
}

/// The control socket and its key as this guardian has them: what else comes to lie there is another one's.
struct Door([(PathBuf, Option<(u64, u64)>); 2]);

impl Door {
    fn of(paths: &Paths) -> Self {
        Self([paths.control_socket(), paths.control_key()].map(|path| {
            let identity = identity(&path);
            (path, identity)
        }))
    }

    /// Waits until nobody can come in any more: a cleaner, or the end of the login, took the socket or the key.
    async fn shut(&self) {
        while self.0.iter().all(|(path, own)| identity(path) == *own) {
            sleep(REACH).await;
        }
    }

    /// Removes what is still this guardian's.
    fn remove(&self) -> Result<(), PathsError> {
        let mut own = self.0.iter().filter(|(path, own)| own.is_some() && identity(path) == *own);
        own.try_for_each(|(path, _)| paths::remove_if_present(path))
    }
}

/// Which file stands at a path, if any.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// Stops in order on INT and TERM, and when nobody can reach this guardian: the next one could not open the log. Reads
/// the settings again on HUP.
fn obey_signals(door: Arc<Door>, control: Arc<Control>) -> Result<impl Future<Output = ()>, DaemonError> {
    let watch = |kind| signal(kind).map_err(io_error("watch for signals"));
    let (mut interrupt, mut terminate, mut hang_up) =
        (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?, watch(SignalKind::hangup())?);
    Ok(async move {
        let mut shut = pin!(door.shut());
        let _turn = loop {
            let is_told = tokio::select! {
                _ = interrupt.recv() => true,
                _ = terminate.recv() => true,
                () = &mut shut, if !control.is_replaced() => false,
                _ = hang_up.recv() => {
                    if let Err(error) = control.registry.reload() {
                        tracing::error!(error = &error as &dyn std::error::Error, "the old rules stay in force");
                    }
                    continue;
                }
            };
            // Like every request: who takes over in this moment keeps the socket and the log.
            let turn = control.turn().await;
            if !control.is_replaced() {
                break turn;
            }
            if is_told {
                control.registry.end_all();
            }
        };
        if let Err(error) = control.registry.close(Duration::ZERO).await {
            tracing::error!(error = &error as &dyn std::error::Error, "the end is not recorded");
        }
        control.shutdown.send_replace(true);
    })
}
