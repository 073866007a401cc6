//! `start`: one sandbox a project, made by whoever comes first and entered by all.
//!
//! Everything that can be checked is checked before the first change. What is then done in order (registration,
//! sandbox, receipt) is undone when a later part fails, under a lock that lets one start at a time near a cloister.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::environment;
use crate::config::{Backend, Config, ConfigError};
use crate::guardian::client::{self, ClientError, Guardian, Registration};
use crate::init::Boot;
use crate::init::wire::{FromHost, FromSandbox, Start};
use crate::name::{BranchName, CloisterId, CloisterName, ProjectName};
use crate::paths::{self, Lock, Paths, PathsError};
use crate::process;
use crate::project::{GitNeed, Project, ProjectError};
use crate::sandbox::{
    Diagnosis, Facts, Launch, LaunchError, Launched, Monitor, Plan, Receipt, ReceiptError, Spec,
    TeardownError, Wanted, diagnose, find_bwrap,
};

/// How long a new sandbox may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

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
    /// Where the user stands.
    pub directory: &'a Path,
    /// The project's name, if not its directory's.
    pub name: Option<ProjectName>,
    /// Whether a repository is needed.
    pub git: GitNeed,
    /// Whether root's consent was given.
    pub root: RootConsent,
}

/// A sandbox that runs, and what a session in it needs.
#[derive(Debug)]
pub struct Sandbox {
    /// Its name.
    pub name: CloisterName,
    /// Whether it was made just now.
    pub is_new: bool,
    socket: PathBuf,
    config: Config,
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Root did not consent.
    #[error("as root, the sandbox's processes would be root's on this host (kernel uid 0)")]
    Root,
    /// The backend is not there.
    #[error("this version has no backend `docker`")]
    NoDocker,
    /// The directory can't be opened.
    #[error(transparent)]
    Project(#[from] ProjectError),
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
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
    /// There is no such sandbox.
    #[error("no cloister `{0}` is running")]
    NotRunning(CloisterName),
    /// The settings can't be sent to it.
    #[error("cannot write the settings of the sandbox's first process")]
    Boot(#[source] serde_json::Error),
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

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Io { action, source }
}

impl From<LaunchError> for StartError {
    fn from(error: LaunchError) -> Self {
        let LaunchError::Refused(complaint) = &error else { return Self::Launch(error) };
        match diagnose(complaint, Path::new("/")) {
            Some(diagnosis) => Self::Forbidden { diagnosis, source: error },
            None => Self::Launch(error),
        }
    }
}

/// Everything that is known before the first change.
struct Prepared<'a> {
    paths: &'a Paths,
    project: Project,
    name: CloisterName,
    id: CloisterId,
    spec: Spec,
    plan: Plan,
    config: Config,
}

/// Starts the sandbox of a directory, or finds the one that runs.
pub async fn start(request: StartRequest<'_>, paths: &Paths) -> Result<Sandbox, StartError> {
    let prepared = Prepared::new(request, paths)?;
    let _lock = Lock::acquire(&paths.cloister_lock(&prepared.id))?;
    prepared.project.register(paths)?;
    let guardian = Guardian::ensure(paths).await?;
    let receipt = Receipt::load(&paths.receipt_file(&prepared.name))?;
    if let Some(running) = receipt.as_ref().filter(|receipt| receipt.is_running()) {
        return Ok(prepared.entered(running.socket.clone(), false));
    }
    if let Some(error) = receipt.map(|stale| stale.tear_down()).and_then(|errors| errors.into_iter().next()) {
        return Err(StartError::Teardown(error));
    }
    let socket = prepared.launch(&guardian).await?;
    Ok(prepared.entered(socket, true))
}

/// Finds a running sandbox by its name.
pub async fn enter(name: &CloisterName, paths: &Paths) -> Result<Sandbox, StartError> {
    let receipt = Receipt::load(&paths.receipt_file(name))?.filter(Receipt::is_running);
    let receipt = receipt.ok_or_else(|| StartError::NotRunning(name.clone()))?;
    let config = Config::load_for(paths, Some(&receipt.project))?;
    // A session without a guardian has no way out; the sandbox itself needs none.
    Guardian::ensure(paths).await?;
    Ok(Sandbox { name: name.clone(), is_new: false, socket: receipt.socket, config })
}

/// What would be started: the spec, and the command that makes it.
pub fn preview(request: StartRequest<'_>, paths: &Paths) -> Result<(Spec, Vec<String>), StartError> {
    let prepared = Prepared::new(request, paths)?;
    Ok((prepared.spec, prepared.plan.display()))
}

impl<'a> Prepared<'a> {
    fn new(request: StartRequest<'_>, paths: &'a Paths) -> Result<Self, StartError> {
        if rustix::process::geteuid().is_root() && request.root == RootConsent::Withheld {
            return Err(StartError::Root);
        }
        let binary = process::own_binary().map_err(io_error("find the binary of Cloister"))?;
        let project = Project::find(request.directory, request.name, request.git, paths, &binary)?;
        let (name, id) = project.cloister()?;
        let config = Config::load_for(paths, Some(&project.name))?;
        match config.backend {
            Backend::Auto | Backend::Bubblewrap => {}
            Backend::Docker => return Err(StartError::NoDocker),
        }
        let wanted = Wanted {
            name: &name,
            id: &id,
            work: &project.directory,
            repository: project.outside_repository(),
            protected: &project.protected(),
            home: &paths.instance_dir(&project.name).join("home"),
            sockets: &paths.sockets_dir(&id),
            binary: &binary,
        };
        let spec = Spec::new(&wanted, &Facts::gather());
        let plan = find_bwrap(&process::environment("PATH").unwrap_or_default())?.plan(&spec)?;
        Ok(Self { paths, project, name, id, spec, plan, config })
    }

    fn entered(self, socket: PathBuf, is_new: bool) -> Sandbox {
        Sandbox { name: self.name, is_new, socket, config: self.config }
    }

    /// Registers, makes and probes the sandbox; when one part fails, the earlier ones are undone.
    async fn launch(&self, guardian: &Guardian) -> Result<PathBuf, StartError> {
        self.prepare_home()?;
        let branch = self.project.repository.as_ref().and_then(|repository| repository.branch.as_deref());
        let registration = Registration {
            cloister: self.name.clone(),
            project: self.project.name.clone(),
            directory: self.project.directory.clone(),
            branch: branch.map(BranchName::parse).transpose().map_err(StartError::Branch)?,
        };
        let token = guardian.register(&registration).await?;
        let boot = environment::boot(&self.spec, &self.project.name, &token);
        match self.make(&boot, branch, guardian).await {
            Ok(socket) => Ok(socket),
            Err(error) => {
                self.undo(guardian).await;
                Err(error)
            }
        }
    }

    /// Makes the persistent home. A sandbox may have opened it to others by `chmod`; that is taken back.
    fn prepare_home(&self) -> Result<(), StartError> {
        let instance = self.paths.instance_dir(&self.project.name);
        paths::ensure_private_dir(&instance)?;
        let home = instance.join("home");
        let made = fs::create_dir(&home).or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        });
        made.and_then(|()| fs::set_permissions(&home, fs::Permissions::from_mode(0o700)))
            .map_err(io_error("make the sandbox's home"))
    }

    async fn make(
        &self,
        boot: &Boot,
        branch: Option<&str>,
        guardian: &Guardian,
    ) -> Result<PathBuf, StartError> {
        let boot = serde_json::to_vec(boot).map_err(StartError::Boot)?;
        let socket = self.paths.init_socket(&self.id);
        let launch = Launch { socket: &socket, boot: &boot };
        let monitor = self.plan.apply(&launch, |launched| {
            self.receipt(launched, &socket, branch).keep(&self.paths.receipt_file(&self.name))
        })?;
        probe(&socket, monitor).await?;
        guardian.confirm(&self.name).await?;
        Ok(socket)
    }

    fn receipt(&self, launched: &Launched, socket: &Path, branch: Option<&str>) -> Receipt {
        Receipt {
            cloister: self.name.clone(),
            id: self.id.clone(),
            project: self.project.name.clone(),
            project_id: self.project.id.clone(),
            directory: self.project.directory.clone(),
            branch: branch.map(str::to_owned),
            backend: "bubblewrap".to_owned(),
            network: self.spec.network.as_str().to_owned(),
            started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            socket: socket.to_owned(),
            monitor: Some(launched.monitor.clone()),
            first: Some(launched.first.clone()),
            pid_namespace: Some(launched.pid_namespace),
        }
    }

    /// Takes back what a failed start did; the failure itself is what is reported.
    async fn undo(&self, guardian: &Guardian) {
        let receipt = self.paths.receipt_file(&self.name);
        if let Ok(Some(receipt)) = Receipt::load(&receipt) {
            drop(receipt.tear_down());
        }
        let _ = paths::remove_if_present(&receipt);
        if guardian.revoke(&self.name).await.is_err() {
            let _ = client::forget_token(self.paths, &self.name);
        }
    }
}

/// Waits until the first process of a new sandbox answers; when it ends instead, tells what was said.
async fn probe(socket: &Path, monitor: Monitor) -> Result<(), StartError> {
    let answer = timeout(PATIENCE, async {
        let mut stream = UnixStream::connect(socket).await?;
        FromHost::Probe.write(&mut stream).await?;
        FromSandbox::read(&mut stream).await
    });
    match answer.await {
        Ok(Ok(Some(FromSandbox::Started))) => Ok(()),
        Ok(Ok(_) | Err(_)) | Err(_) => Err(monitor.abandon().into()),
    }
}

impl Sandbox {
    /// The user's shell inside.
    pub fn shell(&self) -> String {
        self.config.shell.display().to_string()
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
