//! The guardian's process: from its lock to its last record.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use super::control::{self, Control};
use super::registry::{Registry, RegistryError};
use crate::audit::{AuditError, AuditLog, Event, Record};
use crate::config::{Config, ConfigError};
use crate::paths::{self, Lock, Paths, PathsError};
use crate::proxy::{Resolve, SystemResolver};
use crate::token::ControlKey;

/// How often written records are brought to the disk.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// How long a guardian waits for an earlier one to end.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(3);
/// How often it looks whether it has.
const LOOK: Duration = Duration::from_millis(5);

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
    /// The sandboxes of an earlier guardian could not be taken over.
    #[error("cannot serve the running cloisters: {0}")]
    Restore(String),
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
            other => Self::Restore(control::chain(&other)),
        }
    }
}

/// Runs a guardian until it is told to stop; `ready` is called as soon as it serves.
pub fn run(paths: &Paths, ready: impl FnOnce(&Path)) -> Result<(), DaemonError> {
    // In the foreground it heads its session already, and stays in it.
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::from_raw_mode(0o077));
    raise_descriptor_limit();
    let Some(_lock) = lock(paths)? else { return Err(DaemonError::Running) };
    Config::load_for(paths, None)?;
    let log = Arc::new(open_log(paths)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(io_error("start the event loop"))?;
    let result = runtime.block_on(serve(paths, log, ready));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
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

/// Opens the audit log. The guardian's lock is held: who still holds the log is a predecessor that was killed, whose
/// descriptors the kernel is about to close.
fn open_log(paths: &Paths) -> Result<AuditLog, AuditError> {
    let end = Instant::now() + PREDECESSOR_PATIENCE;
    loop {
        match AuditLog::open(&paths.audit_dir(), true) {
            Err(AuditError::Busy { .. }) if Instant::now() < end => std::thread::sleep(LOOK),
            other => return other,
        }
    }
}

async fn serve(paths: &Paths, log: Arc<AuditLog>, ready: impl FnOnce(&Path)) -> Result<(), DaemonError> {
    let resolver: Arc<dyn Resolve> = Arc::new(SystemResolver::default());
    let registry = Arc::new(
        Registry::new(paths.clone(), Arc::clone(&log), resolver).map_err(io_error("watch over files"))?,
    );
    log.append(Record::new(Event::GuardianStart).detail(env!("CARGO_PKG_VERSION")))?;
    registry.restore()?;
    registry.follow_settings().map_err(io_error("follow the settings"))?;
    let (listener, control) = open_control(paths, Arc::clone(&registry))?;
    tokio::spawn(sync_regularly(Arc::clone(&registry)));
    tokio::spawn(obey_signals(Arc::clone(&control))?);
    ready(&paths.control_socket());
    let served = control::serve(listener, control).await;
    let removed = [paths.control_socket(), paths.control_key()].map(|path| paths::remove_if_present(&path));
    served.map_err(io_error("serve the control socket"))?;
    removed.into_iter().collect::<Result<(), _>>()?;
    Ok(())
}

/// Makes the control socket and the key that it asks for; both are new with every guardian.
fn open_control(paths: &Paths, registry: Arc<Registry>) -> Result<(UnixListener, Arc<Control>), DaemonError> {
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| io_error("make a random key")(error.into()))?;
    let key = ControlKey::from_bytes(bytes);
    paths::write_atomic(&paths.control_key(), key.expose().as_bytes())?;
    let path: PathBuf = paths.control_socket();
    // The guardian's lock is held: whatever lies here was left by one that is gone.
    paths::remove_if_present(&path)?;
    let listener = UnixListener::bind(&path).map_err(io_error("listen on the control socket"))?;
    Ok((listener, Arc::new(Control { registry, key, shutdown: tokio::sync::watch::Sender::new(false) })))
}

async fn sync_regularly(registry: Arc<Registry>) {
    let mut tick = tokio::time::interval(SYNC_INTERVAL);
    loop {
        tick.tick().await;
        let registry = Arc::clone(&registry);
        let synced = tokio::task::spawn_blocking(move || registry.sync()).await;
        if let Ok(Err(error)) = synced {
            tracing::error!(error = &error as &dyn std::error::Error, "the audit log is not on disk");
        }
    }
}

/// Stops in order on INT and TERM, reads the settings again on HUP.
fn obey_signals(control: Arc<Control>) -> Result<impl Future<Output = ()>, DaemonError> {
    let watch = |kind| signal(kind).map_err(io_error("watch for signals"));
    let (mut interrupt, mut terminate, mut hang_up) =
        (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?, watch(SignalKind::hangup())?);
    Ok(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                _ = hang_up.recv() => if let Err(error) = control.registry.reload() {
                    tracing::error!(error = &error as &dyn std::error::Error, "the old rules stay in force");
                },
            }
        }
        if let Err(error) = control.registry.close() {
            tracing::error!(error = &error as &dyn std::error::Error, "the end is not recorded");
        }
        control.shutdown.send_replace(true);
    })
}
