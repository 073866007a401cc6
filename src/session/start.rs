//! `start`: one sandbox a project, made by whoever comes first and entered by all.
//!
//! Everything that can be checked is checked before the first change. What is then done in order (registration,
//! sandbox, receipt) is undone when a later part fails, under a lock that lets one start at a time near a cloister.

mod guards;
mod host;

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

use super::environment;
use crate::config::{Backend, Config, ConfigError, Network};
use crate::files::{Baseline, FilesError, Kept};
use crate::guardian::client::{ClientError, Guardian};
use crate::init::wire::Start;
use crate::name::{CloisterId, CloisterName, ProjectName};
use crate::paths::{Lock, Paths, PathsError, resolve_existing};
use crate::process;
use crate::project::{GitNeed, Project, ProjectError, SharesError};
use crate::sandbox::{
    ClosureError, Diagnosis, HostUser, LaunchError, Placeholder, Plan, Receipt, ReceiptError, Spec,
    StageError, TeardownError, Wanted, diagnose, find_bwrap,
};
use guards::{Guarding, HIDDEN};
use host::{Host, Look};

/// Whether root may start a sandbox whose processes are root's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootConsent {
    /// It was said on the command line.
    Given,
    /// It was not.
    Withheld,
}

/// What is to be started.
#[derive(Debug, Clone)]
pub struct StartRequest<'a> {
    /// Where the user stands: this process's current directory.
    pub directory: &'a Path,
    /// The project's name, if not its directory's.
    pub name: Option<ProjectName>,
    /// Whether a repository is needed.
    pub git: GitNeed,
    /// Whether root's consent was given.
    pub root: RootConsent,
    /// How far the sandbox reaches, if not as the settings say.
    pub network: Option<Network>,
}

/// A sandbox that runs, and what a session in it needs.
#[derive(Debug)]
pub struct Sandbox {
    /// Its name.
    pub name: CloisterName,
    /// Whether it was made just now.
    pub is_new: bool,
    /// Why its processes are root's on the host, where root consented to that.
    pub roots_own: Option<StageError>,
    /// How far it reaches.
    pub network: Network,
    /// What the user should know about it.
    pub notes: Vec<String>,
    socket: PathBuf,
    config: Config,
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// They can't be an unprivileged user's, and root did not consent to the other.
    #[error("as root, the sandbox's processes would be root's on this host")]
    Root(#[source] StageError),
    /// The backend is not there.
    #[error("this version has no backend `docker`")]
    NoDocker,
    /// The tier is not there.
    #[error("this version has no network tier `{}`", .0.as_str())]
    NoTier(Network),
    /// The sandbox that runs reaches further, or less far.
    #[error("the cloister `{name}` is running with network `{}`, not `{}`", running.as_str(), wanted.as_str())]
    OtherNetwork {
        /// The name.
        name: CloisterName,
        /// How far it reaches.
        running: Network,
        /// What is wanted.
        wanted: Network,
    },
    /// The directory can't be opened.
    #[error(transparent)]
    Project(#[from] ProjectError),
    /// Its files can't be guarded.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The settings share what can't be shared.
    #[error(transparent)]
    Shares(#[from] SharesError),
    /// The tools that the settings name can't be had.
    #[error(transparent)]
    Tools(#[from] ClosureError),
    /// The guardian can't be had.
    #[error(transparent)]
    Guardian(#[from] ClientError),
    /// A file or lock can't be had.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// The record of an earlier sandbox can't be read.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
    /// The sandbox can't be made.
    #[error(transparent)]
    Launch(LaunchError),
    /// The host forbids what a sandbox is made of.
    #[error("{diagnosis}")]
    Forbidden {
        /// Which of the causes.
        diagnosis: Diagnosis,
        /// What `bwrap` said.
        #[source]
        source: LaunchError,
    },
    /// What an earlier sandbox left can't be cleared away.
    #[error("cannot clear away the earlier sandbox")]
    Teardown(#[source] TeardownError),
    /// The branch's name is none.
    #[error("cannot use the checked-out branch")]
    Branch(#[source] crate::name::InvalidName),
    /// The sandbox that runs under this name belongs to another directory.
    #[error("the cloister `{name}` is running for `{}`", owner.display())]
    OtherDirectory {
        /// The name.
        name: CloisterName,
        /// Whose sandbox it is.
        owner: PathBuf,
    },
    /// There is no such sandbox.
    #[error("no cloister `{0}` is running")]
    NotRunning(CloisterName),
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

pub(super) fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Io { action, source }
}

impl From<LaunchError> for StartError {
    fn from(error: LaunchError) -> Self {
        let complaint = match error {
            LaunchError::Stage(error) => return Self::Root(error),
            LaunchError::Refused(ref complaint) => complaint,
            _ => return Self::Launch(error),
        };
        match diagnose(complaint, Path::new("/")) {
            Some(diagnosis) => Self::Forbidden { diagnosis, source: error },
            None => Self::Launch(error),
        }
    }
}

/// Everything that is known before the first change.
pub(super) struct Prepared<'a> {
    pub(super) paths: &'a Paths,
    pub(super) project: Project,
    pub(super) name: CloisterName,
    pub(super) id: CloisterId,
    pub(super) spec: Spec,
    /// What is hidden, and whether it is a directory.
    pub(super) masked: Vec<(PathBuf, bool)>,
    /// What is hidden, to be remembered.
    pub(super) kept: Kept,
    pub(super) plan: Plan,
    roots_own: Option<StageError>,
    /// What this start has to make, and to remove again.
    pub(super) placeholders: Vec<Placeholder>,
    pub(super) spare: Vec<Placeholder>,
    pub(super) host: Host,
    pub(super) baseline: Baseline,
    notes: Vec<String>,
    config: Config,
}

/// What is to be started, before its files are looked at.
#[derive(Debug)]
struct Draft<'a> {
    paths: &'a Paths,
    project: Project,
    name: CloisterName,
    id: CloisterId,
    binary: PathBuf,
    network: Network,
    root: RootConsent,
    config: Config,
}

/// Starts the sandbox of a directory, or finds the one that runs.
pub async fn start(request: StartRequest<'_>, paths: &Paths) -> Result<Sandbox, StartError> {
    let draft = Draft::new(request, paths)?;
    let file = paths.receipt_file(&draft.name);
    let _lock = Lock::acquire(&paths.cloister_lock(&draft.name))?;
    draft.project.check_name(paths)?;
    let receipt = Receipt::load(&file)?;
    if let Some(running) = receipt.as_ref().filter(|receipt| receipt.is_running()) {
        if running.directory != draft.project.directory {
            return Err(StartError::OtherDirectory { name: draft.name, owner: running.directory.clone() });
        }
        if running.network != draft.network {
            let (running, wanted) = (running.network, draft.network);
            return Err(StartError::OtherNetwork { name: draft.name, running, wanted });
        }
        // Also one whose start was killed before the guardian watched over it.
        Guardian::ensure(paths).await?.confirm(&draft.name).await?;
        let Draft { name, network, config, .. } = draft;
        let socket = running.socket.clone();
        return Ok(Sandbox {
            name,
            is_new: false,
            roots_own: None,
            network,
            notes: Vec::new(),
            socket,
            config,
        });
    }
    // Sandboxes can share a repository: none may take a placeholder away that another is about to mount over.
    let shared = Lock::acquire(&paths.placeholder_lock())?;
    let in_use = Receipt::placeholders_in_use(&paths.receipts_dir(), &draft.name)?;
    let left = receipt.as_ref().map(|stale| stale.tear_down(&in_use)).unwrap_or_default();
    let (stays, failed): (Vec<_>, Vec<_>) = left.into_iter().partition(TeardownError::is_users);
    if let Some(error) = failed.into_iter().next() {
        return Err(StartError::Teardown(error));
    }
    let stale = receipt.map(|stale| stale.placeholders).unwrap_or_default();
    // Under the locks, and without what an earlier sandbox left: what is seen here is what is mounted. All that can be
    // refused is refused before anything is changed.
    let mut prepared = draft.prepare()?;
    prepared.project.register(paths)?;
    prepared.placeholders = Placeholder::to_make(&prepared.placeholders, &in_use.paths, &stale);
    prepared.notes.extend(stays.iter().map(ToString::to_string));
    prepared.notes.extend(in_use.unreadable.iter().map(ToString::to_string));
    let guardian = Guardian::ensure(paths).await?;
    let socket = prepared.launch(&guardian).await?;
    drop(shared);
    let Prepared { name, spec, roots_own, notes, config, .. } = prepared;
    Ok(Sandbox { name, is_new: true, roots_own, network: spec.network, notes, socket, config })
}

/// Finds a running sandbox by its name.
pub async fn enter(name: &CloisterName, paths: &Paths) -> Result<Sandbox, StartError> {
    let receipt = Receipt::load(&paths.receipt_file(name))?.filter(Receipt::is_running);
    let receipt = receipt.ok_or_else(|| StartError::NotRunning(name.clone()))?;
    let config = Config::load_for(paths, Some(&receipt.owner()))?;
    // A session without a guardian has no way out; the sandbox itself needs none.
    Guardian::ensure(paths).await?.confirm(name).await?;
    Ok(Sandbox {
        name: name.clone(),
        is_new: false,
        roots_own: None,
        network: receipt.network,
        notes: Vec::new(),
        socket: receipt.socket,
        config,
    })
}

/// What would be started, and why its processes would be root's where they would.
#[derive(Debug)]
pub struct Preview {
    /// The sandbox.
    pub spec: Spec,
    /// What is laid out first, for a person.
    pub stage: Vec<String>,
    /// The command that makes it, for a person.
    pub command: Vec<String>,
    /// Why its processes would be root's on the host, where root consented to that.
    pub roots_own: Option<StageError>,
}

/// Tells what would be started, and starts nothing.
pub fn preview(request: StartRequest<'_>, paths: &Paths) -> Result<Preview, StartError> {
    let Prepared { spec, plan, roots_own, .. } = Draft::new(request, paths)?.prepare()?;
    Ok(Preview { spec, stage: plan.display_stage(), command: plan.display(), roots_own })
}

impl<'a> Draft<'a> {
    fn new(request: StartRequest<'_>, paths: &'a Paths) -> Result<Self, StartError> {
        let binary = process::own_binary().map_err(io_error("find the binary of Cloister"))?;
        let project = Project::find(request.directory, request.name, request.git, paths, &binary)?;
        let (name, id) = project.cloister()?;
        let config = Config::load_for(paths, Some(&project.owner()))?;
        match config.backend {
            Backend::Auto | Backend::Bubblewrap => {}
            Backend::Docker => return Err(StartError::NoDocker),
        }
        let network = request.network.unwrap_or(config.network);
        match network {
            Network::None | Network::Guarded => {}
            Network::Inet | Network::Full => return Err(StartError::NoTier(network)),
        }
        Ok(Self { paths, project, name, id, binary, network, root: request.root, config })
    }

    /// Looks at the project's files, and plans the sandbox.
    fn prepare(self) -> Result<Prepared<'a>, StartError> {
        let Self { paths, project, name, id, binary, network, root, config } = self;
        let earlier = Kept::load(&paths.masks_file(&project.id))?;
        let Guarding { guarded, masked, kept, occupied, placeholders, spare, baseline, notes } =
            Guarding::of(&project, &config, &earlier)?;
        let look = Look { config: &config, project: &project, paths, binary: &binary, guarded: &occupied };
        let host = Host::gather(&look)?;
        let wanted = Wanted {
            name: &name,
            id: &id,
            work: &project.directory,
            repository: project.outside_repository(),
            guarded: &guarded,
            masked: &masked,
            mask_text: HIDDEN,
            home: &resolve_existing(&paths.instance_dir(&project.name).join("home")),
            sockets: &resolve_existing(&paths.sockets_dir(&id)),
            binary: &binary,
            network,
            limits: config.limits,
            tools: &host.tools.mounts,
            shared: &host.shared(),
        };
        let spec = Spec::new(&wanted, &host.facts);
        let (plan, roots_own) = plan(&spec, root)?;
        Ok(Prepared {
            paths,
            project,
            name,
            id,
            spec,
            masked,
            kept,
            plan,
            roots_own,
            placeholders,
            spare,
            host,
            baseline,
            notes,
            config,
        })
    }
}

/// Plans a sandbox whose processes are not root's on the host. Where that can't be, root has to consent; then the
/// reason comes with the plan.
fn plan(spec: &Spec, consent: RootConsent) -> Result<(Plan, Option<StageError>), StartError> {
    let bwrap = find_bwrap(&process::environment("PATH").unwrap_or_default())?;
    if !rustix::process::geteuid().is_root() {
        return Ok((bwrap.plan(spec, HostUser::Caller)?, None));
    }
    let plan = bwrap.plan(spec, HostUser::Unprivileged)?;
    match (plan.probe(), consent) {
        (Ok(()), _) => Ok((plan, None)),
        (Err(reason), RootConsent::Given) => Ok((bwrap.plan(spec, HostUser::Caller)?, Some(reason))),
        (Err(reason), RootConsent::Withheld) => Err(StartError::Root(reason)),
    }
}

impl Sandbox {
    /// The user's shell inside.
    pub fn shell(&self) -> String {
        self.config.shell.display().to_string()
    }

    /// Whether the bell of a session's terminal may ring when somebody is needed.
    pub fn rings(&self) -> bool {
        true
    }

    /// Opens a connection for one session.
    pub async fn connect(&self) -> Result<UnixStream, StartError> {
        UnixStream::connect(&self.socket).await.map_err(io_error("reach the sandbox's first process"))
    }

    /// Describes a session that runs a command at `/work`.
    pub fn session(&self, argv: Vec<String>, terminal: Option<crate::init::wire::TerminalSize>) -> Start {
        Start {
            argv,
            environment: environment::session(&self.config, process::environment),
            directory: crate::sandbox::WORK.to_owned(),
            terminal,
        }
    }
}
