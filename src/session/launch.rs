//! Making a sandbox: what is done in order, and undone when a later part fails.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::anchors::anchors;
use super::environment;
use super::start::{Prepared, StartError, io_error};
use crate::files::{Baseline, FilesError};
use crate::guardian::client::{self, Guardian, Registration};
use crate::init::Adjustment;
use crate::init::wire::{FromHost, FromSandbox};
use crate::name::{BranchName, ProjectId};
use crate::paths;
use crate::process::Identity;
use crate::sandbox::{Enforcement, Guard, LaunchError, Launched, Monitor, Placeholder, Receipt, WORK};

/// How long a new sandbox may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

impl Prepared<'_> {
    /// Registers, makes and probes the sandbox; when one part fails, the earlier ones are undone.
    pub(super) async fn launch(&self, guardian: &Guardian) -> Result<PathBuf, StartError> {
        self.prepare_home()?;
        let registration = Registration {
            cloister: self.name.clone(),
            project: self.project.name.clone(),
            directory: self.project.directory.clone(),
            branch: self.branch().map(BranchName::parse).transpose().map_err(StartError::Branch)?,
            network: self.spec.network,
        };
        let is_first = self.is_first()?;
        let token = guardian.register(&registration).await?;
        match self.make(&token, is_first, guardian).await {
            Ok(socket) => Ok(socket),
            Err(error) => {
                self.undo(is_first, guardian).await;
                Err(error)
            }
        }
    }

    fn branch(&self) -> Option<&str> {
        self.project.repository.as_ref().and_then(|repository| repository.branch.as_deref())
    }

    /// Makes the persistent home of this project. What another directory kept under the same name is moved aside
    /// (invariant 10); what a sandbox opened to others by `chmod` is closed again.
    fn prepare_home(&self) -> Result<(), StartError> {
        let instance = self.paths.instance_dir(&self.project.name);
        paths::ensure_private_dir(&instance)?;
        let owner = instance.join("owner");
        let kept = fs::read_to_string(&owner).ok().and_then(|id| ProjectId::parse(id.trim()).ok());
        let is_own = kept.as_ref() == Some(&self.project.id);
        if let Some(other) = kept.filter(|_| !is_own) {
            fs::rename(&instance, instance.with_added_extension(other.as_str()))
                .map_err(io_error("move the home of another project aside"))?;
            paths::ensure_private_dir(&instance)?;
        }
        if !is_own {
            paths::write_atomic(&owner, self.project.id.as_str().as_bytes())?;
        }
        let home = instance.join("home");
        let made = fs::create_dir(&home).or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        });
        made.and_then(|()| fs::set_permissions(&home, fs::Permissions::from_mode(0o700)))
            .map_err(io_error("make the sandbox's home"))
    }

    async fn make(&self, token: &str, is_first: bool, guardian: &Guardian) -> Result<PathBuf, StartError> {
        let file = self.paths.receipt_file(&self.name);
        let socket = self.paths.init_socket(&self.id);
        // Whatever kills this start from here on, what it is about to make is known.
        self.receipt(None, &socket).keep(&file)?;
        self.kept.keep(&self.paths.masks_file(&self.project.id))?;
        if is_first {
            self.baseline.keep(&self.paths.baseline_file(&self.name))?;
        }
        self.placeholders.iter().try_for_each(Placeholder::make)?;
        let mut boot = environment::boot(&self.spec, &self.project.name, token, &self.host.tools);
        let anchors = anchors(&self.project, &self.host.shares, &self.spec);
        boot.anchors = anchors.map_err(io_error("look at the project and what is shared again"))?;
        let mut made = None;
        let monitor = self.plan.apply(&socket, |launched| {
            made = Some((launched.first.clone(), launched.confinement.by));
            let receipt = self.receipt(Some(launched), &socket);
            receipt.keep(&file).map_err(LaunchError::Receipt)?;
            let is_counted_inside = launched.confinement.by == Enforcement::Rlimit;
            boot.max_processes = is_counted_inside.then_some(self.spec.limits.pids);
            serde_json::to_vec(&boot).map_err(LaunchError::Settings)
        })?;
        probe(&socket, monitor).await?;
        // Beside the guardian's own work on the new mounts: each takes a process of its own.
        let bounded = made.map(|(first, enforcement)| {
            let bounds = self.bounds(first, enforcement);
            tokio::task::spawn_blocking(move || bounds.perform())
        });
        let confirmed = guardian.confirm(&self.name).await;
        // A `bwrap` that root installed setuid keeps its name spaces to itself; `doctor --probe` tells.
        if let Some(bounded) = bounded
            && let Ok(Err(error)) = bounded.await
        {
            tracing::warn!(%error, "what the sandbox may watch and keep in memory is not bounded");
        }
        confirmed?;
        Ok(socket)
    }

    /// What bounds what neither `bwrap` nor a control group bounds: how much of what the host's user may watch is watched
    /// inside, and, where no group counts the kernel's memory, how many files directories in memory hold (K14).
    fn bounds(&self, first: Identity, enforcement: Enforcement) -> Adjustment {
        let bounded = match enforcement {
            Enforcement::Cgroup2 | Enforcement::Cgroup1 => Vec::new(),
            Enforcement::Rlimit | Enforcement::None => {
                self.spec.bounded().map(|(path, bytes, files)| (path.to_owned(), bytes, files)).collect()
            }
        };
        Adjustment { bounded, ..Adjustment::new(first) }
    }

    /// Tells whether what the host would execute is to be remembered. What an earlier sandbox of the directory changed
    /// and no `stop` has shown must not become what is compared with.
    fn is_first(&self) -> Result<bool, FilesError> {
        let earlier = Baseline::load(&self.paths.baseline_file(&self.name))?;
        Ok(earlier.is_none_or(|earlier| earlier.directory != self.project.directory))
    }

    /// The record of this start: without processes, of what it is about to do.
    fn receipt(&self, launched: Option<&Launched>, socket: &Path) -> Receipt {
        Receipt {
            cloister: self.name.clone(),
            id: self.id.clone(),
            project: self.project.name.clone(),
            project_id: self.project.id.clone(),
            directory: self.project.directory.clone(),
            branch: self.branch().map(str::to_owned),
            backend: "bubblewrap".to_owned(),
            network: self.spec.network,
            started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            socket: socket.to_owned(),
            monitor: launched.map(|launched| launched.monitor.clone()),
            first: launched.map(|launched| launched.first.clone()),
            pid_namespace: launched.map(|launched| launched.pid_namespace),
            limits: launched.map(|launched| launched.confinement.clone()),
            guards: self.guards(),
            placeholders: self.placeholders.clone(),
            spare: self.spare.clone(),
        }
    }

    /// What is read-only inside directories of the project that can be written.
    fn guards(&self) -> Vec<Guard> {
        let outside = self.project.outside_repository();
        let roots: Vec<&Path> = [self.project.directory.as_path()].into_iter().chain(outside).collect();
        let guards = self.spec.guards(&roots);
        let read_only = guards.map(|(host, inside)| (host, inside, false));
        // A hidden directory is no file that a program of the host would replace.
        // A receipt holds text alone; the host's programs save no such names.
        let is_text = |path: &Path| path.to_str().is_some();
        let files = self.masked.iter().filter(|(path, is_directory)| !is_directory && is_text(path));
        let hidden = files.filter_map(|(host, _)| {
            let below = host.strip_prefix(&self.project.directory).ok()?;
            Some((host.as_path(), Path::new(WORK).join(below)))
        });
        let all = read_only.map(|(host, inside, is_hidden)| (host, inside.to_owned(), is_hidden));
        all.chain(hidden.map(|(host, inside)| (host, inside, true)))
            .map(|(host, inside, is_hidden)| Guard { host: host.to_owned(), inside, is_hidden })
            .collect()
    }

    /// Takes back what a failed start did; the failure itself is what is reported.
    async fn undo(&self, is_first: bool, guardian: &Guardian) {
        let file = self.paths.receipt_file(&self.name);
        let in_use = Receipt::placeholders_in_use(&self.paths.receipts_dir(), &self.name);
        if let (Ok(Some(receipt)), Ok(in_use)) = (Receipt::load(&file), in_use)
            && receipt.tear_down(&in_use).is_empty()
            && in_use.unreadable.is_empty()
        {
            // What could not be removed stays on record, and the next command looks again.
            let _ = paths::remove_if_present(&file);
            // An earlier sandbox's changes that no `stop` has shown stay known.
            if is_first {
                let _ = paths::remove_if_present(&self.paths.baseline_file(&self.name));
            }
        }
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
