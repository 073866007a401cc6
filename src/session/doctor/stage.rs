//! What the probe needs and takes away again: two throw-away sandboxes, their projects, and canaries outside.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tokio::net::UnixStream;

use super::attacks::{Aim, Neighbour, Place};
use super::run::{hear, in_sandbox, open, say};
use super::{DoctorError, host, io_error};
use crate::config::Limits;
use crate::guardian::client::{ClientError, Guardian};
use crate::init::probe::{Canaries, Order};
use crate::init::wire::{FromHost, FromSandbox};
use crate::name::{CloisterName, ProjectName, hex};
use crate::paths::{self, Paths};
use crate::process;
use crate::project::{self, GitNeed};
use crate::sandbox::{BINARY, Receipt};
use crate::session::{RootConsent, Sandbox, StartRequest, StopError, start, stop};

/// The limits of the throw-away sandboxes: small, so that whatever ends at them ends soon.
pub(super) const LIMITS: Limits = Limits { memory_bytes: 128 * 1024 * 1024, cpus_milli: 2000, pids: 256 };

/// The name under which the throw-away project may reach the canary, to show that its way out works.
pub(super) const ALLOWED_NAME: &str = "canary.cloister.test";

/// What was made, to be cleared away.
pub(super) struct Stage<'a> {
    paths: &'a Paths,
    root: PathBuf,
    mark: String,
    had_guardian: bool,
    projects: Vec<ProjectName>,
    sandboxes: Vec<Sandbox>,
    host: Option<Child>,
    neighbour: Option<UnixStream>,
    terminal: OwnedFd,
    open_canary: File,
}

impl<'a> Stage<'a> {
    /// Makes the directory of everything else.
    pub(super) fn new(paths: &'a Paths) -> Result<Self, DoctorError> {
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| io_error("draw a random name")(error.into()))?;
        let mark = hex(&bytes);
        let top = fs::canonicalize(std::env::temp_dir()).map_err(io_error("find the temporary directory"))?;
        let root = top.join(format!("cloister-probe-{mark}"));
        fs::DirBuilder::new().mode(0o700).create(&root).map_err(io_error("make a temporary directory"))?;
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .and_then(|master| grantpt(&master).and_then(|()| unlockpt(&master)).map(|()| master))
            .map_err(|error| io_error("open a terminal")(error.into()))?;
        let canary = root.join("canary");
        fs::write(&canary, greeting(&mark)).map_err(io_error("write the canary"))?;
        let open_canary = File::open(&canary).map_err(io_error("open the canary"))?;
        Ok(Self {
            paths,
            root,
            mark,
            had_guardian: paths.control_key().exists(),
            projects: Vec::new(),
            sandboxes: Vec::new(),
            host: None,
            neighbour: None,
            terminal,
            open_canary,
        })
    }

    /// Makes canaries and sandboxes, and tells where everything is.
    pub(super) async fn set(&mut self) -> Result<Aim, DoctorError> {
        let addresses: Vec<IpAddr> = host::addresses(Path::new("/"));
        let sockets = ["docker.sock", "bus", "agent"].map(|name| self.root.join(name));
        let names = vec![format!("cloister-probe-{}/.X11-unix/X0", self.mark)];
        let order = Order {
            greeting: greeting(&self.mark),
            addresses,
            sockets: sockets.to_vec(),
            names: names.clone(),
        };
        let (canaries, pid) = self.spawn_canary(&order)?;
        self.had_guardian = Guardian::connect(self.paths).await.is_ok();
        self.start("a", &canaries).await?;
        self.start("b", &canaries).await?;
        let neighbour = self.neighbour().await?;
        let token = self.token().await?;
        let receipt = self.receipt("a")?;
        let key = fs::read_to_string(self.paths.control_key()).map_err(io_error("read the control key"))?;
        Ok(Aim {
            greeting: greeting(&self.mark),
            canaries,
            abstract_name: names.into_iter().next().unwrap_or_default(),
            sockets,
            file: self.root.join("canary"),
            terminal: self.terminal_name()?,
            canary_pid: pid,
            token,
            control_socket: self.paths.control_socket(),
            control_key: (self.paths.control_key(), key.trim().to_owned()),
            tokens: self.paths.tokens_dir(),
            processes: [receipt.monitor, receipt.first].into_iter().flatten().map(|one| one.pid()).collect(),
            neighbour,
            may_trace: may_trace(Path::new("/")),
            roots_own: self.sandbox(Place::Sandbox)?.roots_own.as_ref().map(ToString::to_string),
        })
    }

    /// The canary process on the host; its number, its arguments and its environment are canaries too.
    fn spawn_canary(&mut self, order: &Order) -> Result<(Canaries, i32), DoctorError> {
        let failed = || io_error("start the canary");
        let mut command = process::command(process::own_binary().map_err(failed())?);
        command.args(["sandbox-init", "canary", &greeting(&self.mark)]).current_dir("/");
        command.env("CLOISTER_CANARY", greeting(&self.mark));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = self.host.insert(command.spawn().map_err(failed())?);
        let pid = i32::try_from(child.id()).unwrap_or_default();
        let mut line = serde_json::to_vec(order).map_err(answer("the host"))?;
        line.push(b'\n');
        if let Some(stdin) = child.stdin.as_mut() {
            stdin.write_all(&line).map_err(failed())?;
        }
        let mut told = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut told).map_err(failed())?;
        }
        Ok((serde_json::from_str(&told).map_err(answer("the canary"))?, pid))
    }

    fn project(&self, letter: &str) -> Result<ProjectName, DoctorError> {
        Ok(ProjectName::parse(&format!("probe-{}-{letter}", self.mark))?)
    }

    fn receipt(&self, letter: &str) -> Result<Receipt, DoctorError> {
        let name = CloisterName::of(&self.project(letter)?, None)?;
        let missing = || io_error("find the receipt")(std::io::ErrorKind::NotFound.into());
        Receipt::load(&self.paths.receipt_file(&name))?.ok_or_else(missing)
    }

    /// Starts a sandbox of a directory of its own, with settings of its own.
    async fn start(&mut self, letter: &str, canaries: &Canaries) -> Result<(), DoctorError> {
        let name = self.project(letter)?;
        let directory = self.root.join(letter);
        fs::DirBuilder::new().mode(0o700).create(&directory).map_err(io_error("make a temporary project"))?;
        // Whatever comes now, there is something to clear away.
        self.projects.push(name.clone());
        paths::write_atomic(&self.paths.project_file(&name), settings(canaries).as_bytes())?;
        let sandbox = self.enter(letter, name).await?;
        self.sandboxes.push(sandbox);
        Ok(())
    }

    /// Tells whether the first sandbox has ended, or does so soon.
    pub(super) fn has_ended(&self) -> Result<bool, DoctorError> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let first = self.receipt("a")?.first;
        first
            .and_then(|first| first.open())
            .map_or(Ok(true), |first| first.wait(PATIENCE))
            .map_err(io_error("watch the sandbox"))
    }

    /// Starts the first sandbox anew: whatever an attack left in it is gone.
    pub(super) async fn restart(&mut self) -> Result<(), DoctorError> {
        let project = self.project("a")?;
        let stopped = stop(&CloisterName::of(&project, None)?, self.paths).await?;
        if let Some(problem) = stopped.problems.into_iter().next() {
            return Err(DoctorError::Leftover(problem));
        }
        let sandbox = self.enter("a", project).await?;
        if let Some(first) = self.sandboxes.first_mut() {
            *first = sandbox;
        }
        Ok(())
    }

    async fn enter(&self, letter: &str, name: ProjectName) -> Result<Sandbox, DoctorError> {
        let directory = self.root.join(letter);
        // A sandbox is started from where its user stands.
        std::env::set_current_dir(&directory).map_err(io_error("enter the temporary project"))?;
        let request = StartRequest {
            directory: &directory,
            name: Some(name),
            git: GitNeed::Optional,
            network: None,
            root: RootConsent::Given,
        };
        Ok(start(request, self.paths).await?)
    }

    /// Makes the second sandbox's canaries.
    async fn neighbour(&mut self) -> Result<Neighbour, DoctorError> {
        let greeting = format!("{}-neighbour", greeting(&self.mark));
        let order = Order {
            greeting: greeting.clone(),
            addresses: vec![IpAddr::from([127, 0, 0, 1])],
            sockets: Vec::new(),
            names: vec![format!("cloister-probe-{}-neighbour", self.mark)],
        };
        let mut stream =
            open(self.sandbox(Place::Neighbour)?, &[BINARY, "sandbox-init", "canary", &greeting]).await?;
        let mut line = serde_json::to_vec(&order).map_err(answer("the neighbour"))?;
        line.push(b'\n');
        say(&mut stream, FromHost::Input(line)).await?;
        let mut told = Vec::new();
        while !told.ends_with(b"\n") {
            match hear(&mut stream).await? {
                Some(FromSandbox::Output(bytes)) => told.extend(bytes),
                Some(FromSandbox::Taken(_) | FromSandbox::ErrorOutput(_)) => {}
                other => return Err(DoctorError::Garbage(other)),
            }
        }
        let canaries = serde_json::from_slice(&told).map_err(answer("the neighbour"))?;
        self.neighbour = Some(stream);
        let receipt = self.receipt("b")?;
        Ok(Neighbour {
            greeting,
            canaries,
            abstract_name: order.names.into_iter().next().unwrap_or_default(),
            sockets: vec![self.paths.sockets_dir(&receipt.id).join("proxy.sock"), receipt.socket],
        })
    }

    /// The first sandbox's token, as its processes have it.
    async fn token(&self) -> Result<String, DoctorError> {
        let print = ["/bin/sh", "-c", "printf %s \"$CLOISTER_TOKEN\""];
        let (_, output) = in_sandbox(self.sandbox(Place::Sandbox)?, &print, b"").await?;
        let token = String::from_utf8_lossy(&output).trim().to_owned();
        // An empty text would be found everywhere.
        if token.is_empty() { Err(DoctorError::Garbage(None)) } else { Ok(token) }
    }

    /// One of the throw-away sandboxes.
    pub(super) fn sandbox(&self, place: Place) -> Result<&Sandbox, DoctorError> {
        let number = usize::from(place == Place::Neighbour);
        self.sandboxes.get(number).ok_or(DoctorError::Garbage(None))
    }

    /// Variables that would lead a program in a sandbox to the host's services.
    pub(super) fn betraying_variables(&self) -> Vec<(&'static str, PathBuf)> {
        let path = |name: &str| self.root.join(name);
        vec![
            ("DOCKER_HOST", path("docker.sock")),
            ("DBUS_SESSION_BUS_ADDRESS", path("bus")),
            ("SSH_AUTH_SOCK", path("agent")),
        ]
    }

    /// A file that this process has open.
    pub(super) fn open_canary(&self) -> BorrowedFd<'_> {
        self.open_canary.as_fd()
    }

    fn terminal_name(&self) -> Result<PathBuf, DoctorError> {
        let name =
            ptsname(&self.terminal, Vec::new()).map_err(|error| io_error("name a terminal")(error.into()))?;
        Ok(PathBuf::from(name.to_string_lossy().into_owned()))
    }

    /// Ends and removes everything that was made; goes on past errors and reports the first.
    pub(super) async fn clear(mut self) -> Result<(), DoctorError> {
        let mut problems: Vec<DoctorError> = Vec::new();
        drop(self.neighbour.take());
        if let Some(mut host) = self.host.take() {
            // It ends with its input; whether it has already does not matter.
            let _ = host.kill();
            let _ = host.wait();
        }
        problems
            .extend(std::env::set_current_dir("/").map_err(io_error("leave the temporary project")).err());
        for project in std::mem::take(&mut self.projects) {
            problems.extend(self.clear_project(&project).await);
        }
        problems.extend(paths::remove_directory(&self.root).err().map(DoctorError::from));
        if !self.had_guardian {
            problems.extend(self.dismiss_guardian().await.err());
        }
        problems.into_iter().next().map_or(Ok(()), Err)
    }

    async fn clear_project(&self, project: &ProjectName) -> Vec<DoctorError> {
        let name = match CloisterName::of(project, None) {
            Ok(name) => name,
            Err(error) => return vec![error.into()],
        };
        let mut problems: Vec<DoctorError> = Vec::new();
        match stop(&name, self.paths).await {
            Ok(stopped) => problems.extend(stopped.problems.into_iter().map(DoctorError::Leftover)),
            Err(StopError::NotRunning(_)) => {}
            Err(error) => problems.push(error.into()),
        }
        problems.extend(paths::remove_directory(&self.paths.instance_dir(project)).err().map(Into::into));
        problems.extend(paths::remove_if_present(&self.paths.project_file(project)).err().map(Into::into));
        problems.extend(paths::remove_if_present(&self.paths.cloister_lock(&name)).err().map(Into::into));
        let registered = project::all_registered(self.paths);
        let own = registered.map(|all| all.into_iter().find(|one| one.name == *project));
        let forgotten = own.and_then(|own| own.map_or(Ok(()), |own| project::unregister(&own, self.paths)));
        problems.extend(forgotten.err().map(Into::into));
        problems
    }

    /// Stops the guardian that was started for the probe, unless others have come to need it.
    async fn dismiss_guardian(&self) -> Result<(), DoctorError> {
        match Guardian::connect(self.paths).await {
            Err(ClientError::NotRunning) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(guardian) if guardian.status().await?.cloisters.is_empty() => {
                guardian.shut_down(self.paths, Duration::ZERO).await?;
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }
}

fn answer(place: &'static str) -> impl FnOnce(serde_json::Error) -> DoctorError {
    move |source| DoctorError::Answer { place, source }
}

/// What the canaries say.
fn greeting(mark: &str) -> String {
    format!("cloister-canary-{mark}")
}

/// The canary that a name is pinned to; of the host's addresses, loopback's alone can be pinned everywhere.
pub(super) fn allowed_canary(canaries: &Canaries) -> Option<&SocketAddr> {
    canaries.tcp.iter().find(|address| address.ip().is_loopback())
}

/// The settings of a throw-away project: the usual tier, one host allowed, small limits.
fn settings(canaries: &Canaries) -> String {
    let proxy = allowed_canary(canaries).map_or_else(String::new, |target| {
        format!(
            "proxy:\n  allow: [\"{ALLOWED_NAME}:{}\"]\n  hosts: {{\"{ALLOWED_NAME}\": [\"{}\"]}}\n",
            target.port(),
            target.ip()
        )
    });
    let Limits { memory_bytes, cpus_milli, pids } = LIMITS;
    format!(
        "network: guarded\n{proxy}limits: {{memory: {}MiB, cpus: {}, pids: {pids}}}\n",
        memory_bytes / (1024 * 1024),
        cpus_milli / 1000
    )
}

/// Tells whether a process of this user may trace one that asks for it (Yama's levels 0 and 1).
fn may_trace(root: &Path) -> bool {
    fs::read_to_string(root.join("proc/sys/kernel/yama/ptrace_scope"))
        .map_or(true, |level| matches!(level.trim(), "0" | "1"))
}
