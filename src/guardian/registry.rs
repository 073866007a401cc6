//! The sandboxes that this guardian serves: registered, restored after a crash, reloaded, revoked.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener as Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{OnceCell, watch};

use super::approvals::asks::Asks;
use super::approvals::{Approvals, Counsel, Terms};
use super::control::api::{Registered, Registration, Revoked};
use super::guards::{Guards, Report};
use super::handover::{Order, Predecessor};
use super::ledger::Ledger;
use crate::audit::{AuditError, Event, Record};
use crate::config::{Config, ConfigError, Network, decisions};
use crate::name::{CloisterName, ProjectId};
use crate::paths::{self, Paths, PathsError};
use crate::policy::Rule;
use crate::proxy::{
    self, Client, Descriptors, Ending, Identity, Limits, Outbound, Resolve, Services, Settings,
};
use crate::token::{HashedToken, PlainToken};
use counters::{Counters, Latencies};
use journal::{SandboxJournal, Trouble};
use live::Live;
use policies::{CurrentPolicy, InMemory};
use tokens::{Kept, TokenError};

mod counters;
mod ending;
mod follow;
mod guarding;
mod journal;
mod live;
mod metrics;
mod policies;
mod status;
pub(super) mod tokens;

pub(super) use metrics::CONTENT_TYPE as METRICS_TYPE;

/// All sandboxes of one guardian.
pub(super) struct Registry {
    pub(super) paths: Paths,
    pub(super) approvals: Arc<Approvals>,
    log: Arc<Ledger>,
    /// Sockets for polite requests that lie where nobody looks for them yet.
    unpublished: Mutex<Vec<PathBuf>>,
    resolver: Arc<dyn Resolve>,
    descriptors: Arc<Descriptors>,
    started: Instant,
    served: Mutex<BTreeMap<CloisterName, Served>>,
    is_closed: AtomicBool,
    trouble: Arc<Trouble>,
    guards: Arc<Guards>,
    /// How many sandboxes' connections are carried, those of revoked ones and of earlier tokens included.
    carried: Arc<watch::Sender<usize>>,
    /// The guardian before this one, as long as it carries tunnels of its own.
    predecessor: OnceLock<Arc<Predecessor>>,
    /// The head of the log at the end.
    stopped: OnceCell<String>,
    /// Locked before `served`, wherever both are.
    live: Mutex<Live>,
    latencies: Arc<Latencies>,
}

/// One sandbox that is served.
struct Served {
    kept: Kept,
    client: Arc<Client>,
    policy: Arc<CurrentPolicy>,
    /// Where it connects, to be shared with another guardian.
    listener: Option<Bound>,
    /// Why its guards can't be watched: it has no way out then.
    unguarded: Option<String>,
    counters: Arc<Counters>,
    /// What its rules were made of.
    config: Arc<Config>,
    /// What was answered for it alone, as its file says.
    grants: Vec<Rule>,
    /// What was answered and could not be kept.
    in_memory: Vec<InMemory>,
    asks: Arc<Asks>,
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
    #[error(
        "the cloister name `{name}` belongs to `{}`: run `cloister stop {name}` if that one is over, or choose another \
         name: `cloister start -p NAME`",
        owner.display()
    )]
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
    pub(super) fn new(
        paths: Paths,
        log: Arc<Ledger>,
        resolver: Arc<dyn Resolve>,
        approvals: Arc<Approvals>,
    ) -> io::Result<Self> {
        let reported = Arc::clone(&log);
        let report: Box<Report> =
            Box::new(move |cloister, event, what| report(&reported, cloister, event, what));
        let guards = Guards::new(paths.clone(), report)?;
        Ok(Self {
            guards,
            live: Mutex::default(),
            latencies: Arc::default(),
            paths,
            approvals,
            unpublished: Mutex::default(),
            log,
            resolver,
            descriptors: Arc::new(Descriptors::of_this_process()),
            started: Instant::now(),
            served: Mutex::default(),
            is_closed: AtomicBool::new(false),
            trouble: Arc::default(),
            carried: Arc::new(watch::Sender::new(0)),
            predecessor: OnceLock::new(),
            stopped: OnceCell::new(),
        })
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<CloisterName, Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a record; whether it can be is remembered for those who ask.
    pub(super) fn append(&self, record: Record) -> Result<(), AuditError> {
        let written = self.log.append(record);
        self.trouble.note(written.as_ref().err());
        written
    }

    /// Records the end of a sandbox.
    fn append_end(&self, kept: &Kept) -> Result<(), AuditError> {
        let events = [Event::TokenRevoke, Event::SandboxStop];
        events.into_iter().try_for_each(|event| self.append(about(event, kept)))
    }

    /// Makes sure that everything that an earlier guardian serves could be served by this one.
    pub(super) fn check(paths: &Paths) -> Result<(), RegistryError> {
        for kept in Kept::read_all(paths)? {
            decisions::load_grants(paths, &kept.registration.cloister, &kept.id())?;
            Config::load_for(paths, Some(&kept.registration.owner()))?;
        }
        Ok(())
    }

    /// Serves again what an earlier guardian served, on the sockets that it gave; without any, there is none left. A
    /// sandbox whose guards can't be watched is not given its way out.
    ///
    /// # Errors
    /// Also when the kernel has no watch left while an earlier guardian still watches: then that one goes on.
    pub(super) fn restore(
        &self,
        given: Option<BTreeMap<CloisterName, OwnedFd>>,
    ) -> Result<(), RegistryError> {
        let is_watched_by_another = given.is_some();
        let mut given = given.unwrap_or_default();
        let mut all = Vec::new();
        for kept in Kept::read_all(&self.paths)? {
            let cloister = &kept.registration.cloister;
            let unguarded = self.guard(cloister).err();
            if let Some(unwatched) = &unguarded {
                if is_watched_by_another && unwatched.is_exhausted {
                    return Err(RegistryError::Watch(unwatched.to_string()));
                }
                self.tell_of_guards(cloister, &guarding::no_way_out(&unwatched.to_string()));
            }
            all.push((kept, unguarded.map(|unwatched| unwatched.to_string())));
        }
        let mut served = self.served();
        for (kept, unguarded) in all {
            let (grants, _) = decisions::load_grants(&self.paths, &kept.registration.cloister, &kept.id())?;
            let name = kept.registration.cloister.clone();
            let config = Config::load_for(&self.paths, Some(&kept.registration.owner()))?;
            let listener = given.remove(&name).map(Bound::from);
            let mut restored = self.prepare(kept, Arc::new(config), grants)?;
            restored.unguarded = unguarded;
            if restored.unguarded.is_none() {
                self.open(&mut restored, listener)?;
            }
            served.insert(name, restored);
        }
        Ok(())
    }

    /// Registers a sandbox and gives out its token; an earlier one of the same directory is replaced.
    pub(super) fn register(&self, registration: Registration) -> Result<Registered, RegistryError> {
        // Nobody reads the settings between their being read here and the sandbox's being one of those they reach.
        let _live = self.live();
        let mut served = self.served();
        if self.is_closed() {
            return Err(RegistryError::Closed);
        }
        let name = registration.cloister.clone();
        if let Some(other) = served.get(&name)
            && other.kept.registration.directory != registration.directory
            // A project that was moved leaves its name to whoever comes.
            && other.kept.registration.directory.exists()
        {
            let owner = other.kept.registration.directory.clone();
            return Err(RegistryError::NameTaken { name, owner });
        }
        // Before anything changes: with broken settings, an earlier sandbox keeps its way out.
        let config = Arc::new(Config::load_for(&self.paths, Some(&registration.owner()))?);
        let token = PlainToken::from_bytes(tokens::random().map_err(RegistryError::Random)?);
        let kept = Kept {
            token: HashedToken::of(&token),
            project_id: ProjectId::of(&registration.directory.to_string_lossy()),
            created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            registration,
        };
        let void = about(Event::TokenRevoke, &kept);
        if let Some(earlier) = served.get(&name) {
            self.append_end(&earlier.kept)?;
        }
        self.append(about(Event::TokenIssue, &kept))?;
        if let Some(earlier) = served.remove(&name) {
            earlier.client.end(Ending::Revoked);
            self.approvals.queue.forget(&name);
            self.order(Order::Revoke { cloister: name.clone() });
        }
        // What was answered holds until the cloister is stopped, also when it ended in another way.
        let begun = decisions::remove_grants(&self.paths, &name).map_err(RegistryError::from);
        let begun = begun.and_then(|()| kept.write(&self.paths).map_err(RegistryError::from));
        let begun = begun.and_then(|()| self.prepare(kept, config, Vec::new()));
        let opened = begun.and_then(|mut new| self.open(&mut new, None).map(|()| new));
        self.publish();
        match opened {
            Ok(new) => drop(served.insert(name, new)),
            Err(error) => {
                // The token was told to nobody; a file that can't be removed now is replaced by the next start.
                let _ = tokens::forget(&self.paths, &name);
                // The first error is what counts.
                let _ = self.append(void);
                return Err(error);
            }
        }
        Ok(Registered { token: token.expose().to_owned() })
    }

    /// Makes everything that a sandbox is served with, but for its socket.
    fn prepare(&self, kept: Kept, config: Arc<Config>, grants: Vec<Rule>) -> Result<Served, RegistryError> {
        let Registration { cloister, project, branch, .. } = &kept.registration;
        let (settings, terms) = settings(&config);
        let policy =
            Arc::new(CurrentPolicy::new(policies::policy(&config, self.approvals.page_socket(), &grants)));
        let counsel = Arc::new(Counsel {
            approvals: Arc::clone(&self.approvals),
            cloister: cloister.clone(),
            project: project.clone(),
            branch: branch.clone(),
            policy: Arc::clone(&policy) as Arc<dyn proxy::Policies>,
            terms: RwLock::new(terms),
        });
        let asks = Arc::new(Asks::new(Arc::clone(&counsel), kept.token.clone()));
        let counters = Arc::new(Counters::default());
        let journal = SandboxJournal {
            log: Arc::clone(&self.log),
            trouble: Arc::clone(&self.trouble),
            project: project.clone(),
            branch: branch.clone(),
            counters: Arc::clone(&counters),
            latencies: Arc::clone(&self.latencies),
        };
        let identity =
            Identity { cloister: cloister.clone(), project: project.clone(), token: kept.token.clone() };
        let services = Services {
            policies: Arc::clone(&policy) as Arc<dyn proxy::Policies>,
            decider: counsel,
            journal: Arc::new(journal),
            resolver: Arc::clone(&self.resolver),
            descriptors: Arc::clone(&self.descriptors),
        };
        let client = Arc::new(Client::new(identity, services, settings));
        let directory = self.paths.sockets_dir(&kept.id());
        // The first process's binary is mounted here; the directory itself is read-only inside.
        paths::ensure_private_dir(&directory.join("bin"))?;
        link(&self.paths, &kept)?;
        let (listener, unguarded, in_memory) = (None, None, Vec::new());
        Ok(Served { kept, client, policy, listener, unguarded, counters, config, grants, in_memory, asks })
    }

    /// Opens the sandbox's socket, unless it was given, and serves it.
    fn open(&self, served: &mut Served, given: Option<Bound>) -> Result<(), RegistryError> {
        served.listener = match served.kept.registration.network {
            // No way out, and so nothing that listens.
            Network::None => None,
            Network::Guarded | Network::Inet | Network::Full => {
                let path = self.paths.sockets_dir(&served.kept.id()).join("proxy.sock");
                let bound = given.filter(|_| path.exists()).map_or_else(|| listen(&path), Ok)?;
                // It is not handed over, for who asks politely can ask again; the path is taken when all is certain.
                let path = path.with_file_name("request.new");
                let polite = listen(&path)?;
                self.spawn(&bound, polite, served)
                    .map_err(|source| RegistryError::Listen { path: path.clone(), source })?;
                self.unpublished.lock().unwrap_or_else(PoisonError::into_inner).push(path);
                Some(bound)
            }
        };
        Ok(())
    }

    /// Takes polite requests from now on: what was opened comes to lie where sandboxes look for it.
    pub(super) fn publish(&self) {
        let opened = std::mem::take(&mut *self.unpublished.lock().unwrap_or_else(PoisonError::into_inner));
        for new in opened {
            // Who can't ask politely is asked about when it connects.
            if let Err(error) = fs::rename(&new, new.with_file_name("request.sock")) {
                tracing::error!(%error, path = %new.display(), "polite requests can't be taken");
            }
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
        self.order(Order::Revoke { cloister: cloister.clone() });
        self.approvals.forget(cloister);
        let forgotten = tokens::forget(&self.paths, cloister);
        let grants = decisions::remove_grants(&self.paths, cloister);
        if let Some(Served { kept, .. }) = &removed {
            let link = self.paths.by_name_link(cloister);
            let sockets = self.paths.sockets_dir(&kept.id());
            let swept = [paths::remove_if_present(&link), paths::remove_directory(&sockets)];
            self.append_end(kept)?;
            swept.into_iter().collect::<Result<(), _>>()?;
        }
        forgotten?;
        grants?;
        Ok(Revoked { existed: removed.is_some() })
    }
}

/// Makes of settings what the proxy obeys besides its rules, and how a human is asked.
fn settings(config: &Config) -> (Settings, Terms) {
    let proxy = &config.proxy;
    let limits = Limits {
        idle: proxy.idle_timeout,
        max_duration: proxy.max_duration,
        max_tunnels: proxy.max_tunnels as usize,
        rate: proxy.rate_limit,
        ..Limits::default()
    };
    let outbound = proxy.upstream.clone().map_or(Outbound::Direct, Outbound::Through);
    let terms = Terms { patience: proxy.approval_timeout, wishes: config.approvals.clone() };
    (Settings { limits, outbound }, terms)
}

/// Writes down what became of the guards of a sandbox.
fn report(log: &Ledger, cloister: &CloisterName, event: Event, what: &str) {
    let record = Record::new(event).cloister(cloister).detail(what);
    if let Err(error) = log.append(record) {
        tracing::error!(error = &error as &dyn std::error::Error, what, "the record of a guard is lost");
    }
}

fn about(event: Event, kept: &Kept) -> Record {
    let record = Record::new(event).cloister(&kept.registration.cloister).project(&kept.registration.project);
    kept.registration.branch.iter().fold(record, Record::branch)
}

fn listen(path: &Path) -> Result<Bound, RegistryError> {
    paths::remove_if_present(path)?;
    Bound::bind(path).map_err(|source| RegistryError::Listen { path: path.to_owned(), source })
}

/// Names a sandbox's socket directory for people.
fn link(paths: &Paths, kept: &Kept) -> Result<(), RegistryError> {
    let link = paths.by_name_link(&kept.registration.cloister);
    if let Some(directory) = link.parent() {
        paths::ensure_private_dir(directory)?;
    }
    let target = Path::new("../s").join(kept.id().as_str());
    if fs::read_link(&link).is_ok_and(|found| found == target) {
        // A guardian that is killed in the place of another must not leave that one without it.
        return Ok(());
    }
    paths::remove_if_present(&link)?;
    Ok(symlink(target, &link).map_err(PathsError::io("make the link", &link))?)
}
