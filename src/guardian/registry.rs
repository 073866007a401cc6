//! The sandboxes that this guardian serves: registered, restored after a crash, reloaded, revoked.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::net::UnixListener;

use super::control::api::{API_VERSION, CloisterStatus, Registered, Registration, Reloaded, Revoked, Status};
use super::guards::{Guards, Report};
use crate::audit::{AuditError, AuditLog, Event, Record};
use crate::config::{Config, ConfigError, Network};
use crate::name::{CloisterName, ProjectId, ProjectName};
use crate::paths::{self, Paths, PathsError};
use crate::policy::Policy;
use crate::proxy::{
    self, Client, Descriptors, Ending, Identity, Limits, Outbound, Resolve, Services, Settings,
};
use crate::sandbox::Receipt;
use crate::token::{HashedToken, PlainToken};
use journal::{SandboxJournal, Trouble};
use policies::CurrentPolicy;
use tokens::{Kept, TokenError};

mod journal;
mod policies;
pub(super) mod tokens;

/// All sandboxes of one guardian.
pub(super) struct Registry {
    paths: Paths,
    log: Arc<AuditLog>,
    resolver: Arc<dyn Resolve>,
    descriptors: Arc<Descriptors>,
    started: Instant,
    served: Mutex<BTreeMap<CloisterName, Served>>,
    is_closed: AtomicBool,
    trouble: Arc<Trouble>,
    guards: Arc<Guards>,
}

/// One sandbox that is served.
struct Served {
    kept: Kept,
    client: Arc<Client>,
    policy: Arc<CurrentPolicy>,
}

/// Why a sandbox could not be registered, reloaded or revoked.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistryError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Paths(#[from] PathsError),
    #[error("cannot listen on `{path}`")]
    Listen {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the cloister name `{name}` belongs to `{}`", owner.display())]
    NameTaken { name: CloisterName, owner: PathBuf },
    #[error("the guardian is stopping")]
    Closed,
    #[error("the cloister `{0}` is not registered")]
    Unknown(CloisterName),
    #[error("the sandbox's guards can't be kept: {0}")]
    Watch(String),
    #[error("cannot make a random token")]
    Random(#[source] io::Error),
}

impl Registry {
    pub(super) fn new(paths: Paths, log: Arc<AuditLog>, resolver: Arc<dyn Resolve>) -> io::Result<Self> {
        let guards = Guards::new(report(Arc::clone(&log)))?;
        Ok(Self {
            guards,
            paths,
            log,
            resolver,
            descriptors: Arc::new(Descriptors::of_this_process()),
            started: Instant::now(),
            served: Mutex::default(),
            is_closed: AtomicBool::new(false),
            trouble: Arc::default(),
        })
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<CloisterName, Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves again what an earlier guardian served.
    pub(super) fn restore(&self) -> Result<(), RegistryError> {
        let mut served = self.served();
        for kept in Kept::read_all(&self.paths)? {
            let name = kept.registration.cloister.clone();
            self.guard(&name);
            served.insert(name, self.serve(kept)?);
        }
        Ok(())
    }

    /// Registers a sandbox and gives out its token; an earlier one of the same directory is replaced.
    pub(super) fn register(&self, registration: Registration) -> Result<Registered, RegistryError> {
        let mut served = self.served();
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(RegistryError::Closed);
        }
        let name = registration.cloister.clone();
        if let Some(other) = served.get(&name)
            && other.kept.registration.directory != registration.directory
        {
            let owner = other.kept.registration.directory.clone();
            return Err(RegistryError::NameTaken { name, owner });
        }
        let token = PlainToken::from_bytes(random()?);
        let kept = Kept {
            token: HashedToken::of(&token),
            project_id: ProjectId::of(&registration.directory.to_string_lossy()),
            created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            registration,
        };
        self.log.append(about(Event::TokenIssue, &kept))?;
        kept.write(&self.paths)?;
        if let Some(earlier) = served.remove(&name) {
            earlier.client.end(Ending::Revoked);
        }
        match self.serve(kept) {
            Ok(new) => drop(served.insert(name, new)),
            Err(error) => {
                // The token was told to nobody; a file that can't be removed now is replaced by the next start.
                let _ = tokens::forget(&self.paths, &name);
                return Err(error);
            }
        }
        Ok(Registered { token: token.expose().to_owned() })
    }

    /// Opens the sandbox's socket and serves it.
    fn serve(&self, kept: Kept) -> Result<Served, RegistryError> {
        let Registration { cloister, project, branch, .. } = &kept.registration;
        let (policy, settings) = load(&self.paths, project)?;
        let policy = Arc::new(CurrentPolicy::new(policy));
        let journal = SandboxJournal::new(
            Arc::clone(&self.log),
            Arc::clone(&self.trouble),
            project.clone(),
            branch.clone(),
        );
        let identity =
            Identity { cloister: cloister.clone(), project: project.clone(), token: kept.token.clone() };
        let services = Services {
            policies: Arc::clone(&policy) as Arc<dyn proxy::Policies>,
            journal: Arc::new(journal),
            resolver: Arc::clone(&self.resolver),
            descriptors: Arc::clone(&self.descriptors),
        };
        let client = Arc::new(Client::new(identity, services, settings));
        let directory = self.paths.sockets_dir(&kept.id());
        // The first process's binary is mounted here; the directory itself is read-only inside.
        paths::ensure_private_dir(&directory.join("bin"))?;
        link(&self.paths, &kept)?;
        match kept.registration.network {
            // No way out, and so nothing that listens.
            Network::None => {}
            Network::Guarded | Network::Inet | Network::Full => {
                let listener = listen(&directory.join("proxy.sock"))?;
                tokio::spawn(proxy::serve(listener, Arc::clone(&client)));
            }
        }
        Ok(Served { kept, client, policy })
    }

    /// Watches over a registered sandbox that runs, and records it; one that is watched over already is left alone.
    ///
    /// # Errors
    /// When it can't be watched over: then it must not run.
    pub(super) fn confirm(&self, cloister: &CloisterName) -> Result<(), RegistryError> {
        let served = self.served();
        let served = served.get(cloister).ok_or_else(|| RegistryError::Unknown(cloister.clone()))?;
        let failed = |reason: String| RegistryError::Watch(reason);
        let receipt =
            Receipt::load(&self.paths.receipt_file(cloister)).map_err(|error| failed(error.to_string()))?;
        let Some(receipt) = receipt.filter(|receipt| !self.guards.watch_over(receipt)) else { return Ok(()) };
        self.guards.remove(cloister);
        self.guards.take_over(&receipt).map_err(failed)?;
        Ok(self.log.append(about(Event::SandboxStart, &served.kept))?)
    }

    /// Watches over a sandbox that an earlier guardian served; what can't be watched is told in the log.
    fn guard(&self, cloister: &CloisterName) {
        let receipt = Receipt::load(&self.paths.receipt_file(cloister)).map_err(|error| error.to_string());
        let taken_over = receipt.and_then(|receipt| {
            receipt
                .iter()
                .filter(|receipt| receipt.is_running())
                .try_for_each(|receipt| self.guards.take_over(receipt))
        });
        if let Err(reason) = taken_over {
            report(Arc::clone(&self.log))(cloister, Event::SandboxReseal, &reason);
        }
    }

    /// Ends a sandbox's way out: its tunnels close, its token is forgotten. The way is closed first; what fails
    /// after that is reported and leaves nothing open.
    pub(super) fn revoke(&self, cloister: &CloisterName) -> Result<Revoked, RegistryError> {
        let removed = self.served().remove(cloister);
        self.guards.remove(cloister);
        if let Some(served) = &removed {
            served.client.end(Ending::Revoked);
        }
        let forgotten = tokens::forget(&self.paths, cloister);
        if let Some(Served { kept, .. }) = &removed {
            let link = self.paths.by_name_link(cloister);
            let sockets = self.paths.sockets_dir(&kept.id());
            let swept = [paths::remove_if_present(&link), paths::remove_directory(&sockets)];
            for event in [Event::TokenRevoke, Event::SandboxStop] {
                self.log.append(about(event, kept))?;
            }
            swept.into_iter().collect::<Result<(), _>>()?;
        }
        forgotten?;
        Ok(Revoked { existed: removed.is_some() })
    }

    /// Reads all rules again and applies them; when one file is bad, all stays as it was.
    pub(super) fn reload(&self) -> Result<Reloaded, RegistryError> {
        let served = self.served();
        let loaded = served
            .values()
            .map(|served| Ok((served, load(&self.paths, &served.kept.registration.project)?)))
            .collect::<Result<Vec<_>, RegistryError>>()?;
        let mut closed_tunnels = 0;
        for (served, (policy, settings)) in loaded {
            served.client.apply(settings);
            served.policy.replace(policy);
            closed_tunnels += served.client.revalidate();
        }
        Ok(Reloaded { cloisters: served.len(), closed_tunnels })
    }

    pub(super) fn status(&self) -> Status {
        let (audit_head, sync_problem) = match self.log.sync().and_then(|()| self.log.head()) {
            Ok(head) => (head.to_string(), None),
            Err(error) => (String::new(), Some(error.to_string())),
        };
        let audit_problem = self.trouble.last().or(sync_problem);
        let cloisters = self.served().values().map(Served::status).collect();
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            api: API_VERSION,
            uptime_s: self.started.elapsed().as_secs(),
            audit_head,
            audit_problem,
            cloisters,
        }
    }

    /// Lets nothing through any more and closes the audit log; gives its head.
    pub(super) fn close(&self) -> Result<String, RegistryError> {
        let mut served = self.served();
        self.is_closed.store(true, Ordering::SeqCst);
        for (_, served) in std::mem::take(&mut *served) {
            served.client.end(Ending::ShuttingDown);
        }
        drop(served);
        self.log.append(Record::new(Event::GuardianStop))?;
        self.log.sync()?;
        Ok(self.log.head()?.to_string())
    }
}

impl Served {
    fn status(&self) -> CloisterStatus {
        CloisterStatus {
            cloister: self.kept.registration.cloister.clone(),
            project: self.kept.registration.project.clone(),
            tunnels: self.client.open_tunnels(),
        }
    }
}

/// Reads the rules of a project from its files.
fn load(paths: &Paths, project: &ProjectName) -> Result<(Policy, Settings), RegistryError> {
    let config = Config::load_for(paths, Some(project))?;
    let proxy = &config.proxy;
    let limits = Limits {
        idle: proxy.idle_timeout,
        max_duration: proxy.max_duration,
        max_tunnels: proxy.max_tunnels as usize,
        rate: proxy.rate_limit,
        ..Limits::default()
    };
    let outbound = proxy.upstream.clone().map_or(Outbound::Direct, Outbound::Through);
    // The guardian listens on Unix sockets alone: there is no address of its own to keep sandboxes from.
    Ok((Policy::new(config.policy_input(Vec::new())), Settings { limits, outbound }))
}

/// Writes down what became of the guards of a sandbox.
fn report(log: Arc<AuditLog>) -> Box<Report> {
    Box::new(move |cloister, event, what| {
        let record = Record::new(event).cloister(cloister).detail(what);
        if let Err(error) = log.append(record) {
            tracing::error!(error = &error as &dyn std::error::Error, what, "the record of a guard is lost");
        }
    })
}

fn about(event: Event, kept: &Kept) -> Record {
    let record = Record::new(event).cloister(&kept.registration.cloister).project(&kept.registration.project);
    kept.registration.branch.iter().fold(record, Record::branch)
}

fn random() -> Result<[u8; 32], RegistryError> {
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| RegistryError::Random(error.into()))?;
    Ok(bytes)
}

fn listen(path: &Path) -> Result<UnixListener, RegistryError> {
    paths::remove_if_present(path)?;
    UnixListener::bind(path).map_err(|source| RegistryError::Listen { path: path.to_owned(), source })
}

/// Names a sandbox's socket directory for people.
fn link(paths: &Paths, kept: &Kept) -> Result<(), RegistryError> {
    let link = paths.by_name_link(&kept.registration.cloister);
    if let Some(directory) = link.parent() {
        paths::ensure_private_dir(directory)?;
    }
    paths::remove_if_present(&link)?;
    let target = Path::new("../s").join(kept.id().as_str());
    Ok(symlink(target, &link).map_err(PathsError::io("make the link", &link))?)
}
