//! Where Cloister's files lie, and the only ways in which they are created, replaced and locked.
//!
//! The layout follows the XDG base directory specification. Files that another process may read at any
//! moment are replaced by [`write_atomic`]; files that two processes may write are guarded by a [`Lock`].

mod private;

pub use private::{Reach, Survey, Unseen, survey};

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

use crate::name::{CloisterId, CloisterName, ProjectId, ProjectName};

/// The longest path of a Unix socket, in bytes (`sun_path` less its closing NUL, unix(7)).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The directories of one user's Cloister.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    home: PathBuf,
    config: PathBuf,
    data: PathBuf,
    state: PathBuf,
    runtime: PathBuf,
}

/// Why a path could not be determined, created, written or locked.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    /// No home directory is known.
    #[error("cannot find the home directory: `HOME` is not set to an absolute path")]
    NoHome,
    /// The runtime directory is too deep for the sockets that live in it.
    #[error("the socket path `{path}` has {length} bytes, the system allows {MAX_SOCKET_PATH_BYTES}")]
    SocketPathTooLong {
        /// The path that does not fit.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// A directory of ours can be changed by others.
    #[error(
        "`{path}` must belong to uid {expected} and be closed to others (it has owner {owner}, mode {mode:o})"
    )]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// Who should own it.
        expected: u32,
        /// Who owns it.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// An operation on a file failed.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl PathsError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

impl Paths {
    /// Determines the directories from environment variables, which `lookup` returns by name.
    ///
    /// Relative values of the XDG variables are ignored, as the specification asks.
    pub fn from_environment(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, PathsError> {
        let absolute = |name: &str| lookup(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = absolute("HOME").ok_or(PathsError::NoHome)?;
        let base =
            |name: &str, default: &str| absolute(name).unwrap_or_else(|| home.join(default)).join("cloister");
        let state = base("XDG_STATE_HOME", ".local/state");
        let runtime =
            absolute("XDG_RUNTIME_DIR").map_or_else(|| state.join("run"), |dir| dir.join("cloister"));
        let paths = Self {
            config: base("XDG_CONFIG_HOME", ".config"),
            data: base("XDG_DATA_HOME", ".local/share"),
            state,
            runtime,
            home,
        };
        paths.check_socket_lengths()?;
        Ok(paths)
    }

    fn check_socket_lengths(&self) -> Result<(), PathsError> {
        let path = self.runtime.join("s/000000000000/request.sock");
        let length = path.as_os_str().len();
        if length > MAX_SOCKET_PATH_BYTES {
            return Err(PathsError::SocketPathTooLong { path, length });
        }
        Ok(())
    }

    /// The user's home directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The directory of settings.
    pub fn config_dir(&self) -> &Path {
        &self.config
    }

    /// The directory of data that outlives a session.
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// The directory of logs and receipts.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// The directory of sockets and keys, private to the user.
    pub fn runtime_dir(&self) -> &Path {
        &self.runtime
    }

    /// The global settings, `config.yaml`.
    pub fn config_file(&self) -> PathBuf {
        self.config.join("config.yaml")
    }

    /// The host-side settings of one project.
    pub fn project_file(&self, project: &ProjectName) -> PathBuf {
        self.config.join("projects").join(format!("{project}.yaml"))
    }

    /// The answers that hold for all projects.
    pub fn global_decisions_file(&self) -> PathBuf {
        self.config.join("decisions/global.yaml")
    }

    /// The answers that hold for one project.
    pub fn project_decisions_file(&self, project: &ProjectName) -> PathBuf {
        self.project_decisions_dir().join(format!("{project}.yaml"))
    }

    /// The directory of the answers that hold for single projects.
    pub fn project_decisions_dir(&self) -> PathBuf {
        self.config.join("decisions/projects")
    }

    /// The lock under which answers that are kept for good are changed.
    pub fn decisions_lock(&self) -> PathBuf {
        self.config.join("decisions/.lock")
    }

    /// The answers that hold for one cloister until it is stopped.
    pub fn grants_file(&self, cloister: &CloisterName) -> PathBuf {
        self.grants_dir().join(format!("{cloister}.yaml"))
    }

    /// The directory of the answers that hold for single cloisters.
    pub fn grants_dir(&self) -> PathBuf {
        self.state.join("grants")
    }

    /// The lock under which answers for one cloister are changed; no name begins with a dot.
    pub fn grants_lock(&self) -> PathBuf {
        self.state.join("grants/.lock")
    }

    /// The directory of hashed sandbox tokens.
    pub fn tokens_dir(&self) -> PathBuf {
        self.config.join("tokens")
    }

    /// The registry of projects.
    pub fn projects_file(&self) -> PathBuf {
        self.data.join("projects.json")
    }

    /// The directory of the audit log.
    pub fn audit_dir(&self) -> PathBuf {
        self.data.join("audit")
    }

    /// The persistent home of a project's sandboxes and its owner record.
    pub fn instance_dir(&self, project: &ProjectName) -> PathBuf {
        self.data.join("instances").join(project.as_str())
    }

    /// The parent of all instances.
    pub fn instances_dir(&self) -> PathBuf {
        self.data.join("instances")
    }

    /// Who is logged in at the page, and where it was.
    pub fn page_file(&self) -> PathBuf {
        self.state.join("page.json")
    }

    /// The developer's log.
    pub fn debug_log(&self) -> PathBuf {
        self.state.join("debug.log")
    }

    /// The directory of receipts of running sandboxes.
    pub fn receipts_dir(&self) -> PathBuf {
        self.state.join("receipts")
    }

    /// The receipt of one running sandbox.
    pub fn receipt_file(&self, cloister: &CloisterName) -> PathBuf {
        self.receipts_dir().join(format!("{cloister}.json"))
    }

    /// What the host would execute in a cloister's project, as it was when its sandbox was made.
    pub fn baseline_file(&self, cloister: &CloisterName) -> PathBuf {
        self.state.join("baselines").join(format!("{cloister}.json"))
    }

    /// What was hidden in a project in earlier sandboxes.
    pub fn masks_file(&self, project: &ProjectId) -> PathBuf {
        self.state.join("masks").join(format!("{project}.json"))
    }

    /// The socket on which the command line speaks to the guardian.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }

    /// The key that the control socket asks for.
    pub fn control_key(&self) -> PathBuf {
        self.runtime.join("control.key")
    }

    /// The directory of sockets that one sandbox sees at `/run/cloister`.
    pub fn sockets_dir(&self, id: &CloisterId) -> PathBuf {
        self.runtime.join("s").join(id.as_str())
    }

    /// The link to a cloister's socket directory by its name.
    pub fn by_name_link(&self, cloister: &CloisterName) -> PathBuf {
        self.runtime.join("by-name").join(cloister.as_str())
    }

    /// The host's end to the first process of a sandbox; never mounted.
    pub fn init_socket(&self, id: &CloisterId) -> PathBuf {
        self.runtime.join("i").join(format!("{id}.sock"))
    }

    /// The lock that serialises what happens under one cloister's name.
    pub fn cloister_lock(&self, name: &CloisterName) -> PathBuf {
        self.runtime.join("lock").join(format!("{name}.lock"))
    }

    /// The lock under which placeholders in repositories are made and removed: sandboxes can share a repository.
    pub fn placeholder_lock(&self) -> PathBuf {
        self.runtime.join("placeholders.lock")
    }

    /// The lock that is held by the running guardian.
    pub fn guardian_lock(&self) -> PathBuf {
        self.runtime.join("guardian.lock")
    }

    /// The lock under which a guardian is started.
    pub fn guardian_start_lock(&self) -> PathBuf {
        self.runtime.join("guardian-start.lock")
    }

    /// The directories that Cloister itself reads: no read-write mount may contain one or lie in one
    /// (invariant 5). Instances are left out: they exist to be mounted.
    pub fn own_dirs(&self) -> [&Path; 4] {
        [&self.config, &self.data, &self.state, &self.runtime]
    }

    /// The places that hold keys, credentials and histories of the user and the system, with links resolved.
    pub fn private_places(&self) -> Vec<PathBuf> {
        private::places(&self.home, self.config.parent().unwrap_or(&self.config))
    }
}

/// Creates `path` and its parents; the directories that are made are closed to other users.
///
/// # Errors
/// [`PathsError::NotPrivate`] when the directory belongs to somebody else or others may write to it.
pub fn ensure_private_dir(path: &Path) -> Result<(), PathsError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(PathsError::io("create the directory", path))?;
    let metadata = fs::metadata(path).map_err(PathsError::io("inspect", path))?;
    let expected = rustix::process::geteuid().as_raw();
    if metadata.uid() != expected || metadata.mode() & 0o022 != 0 {
        return Err(PathsError::NotPrivate {
            path: path.to_owned(),
            expected,
            owner: metadata.uid(),
            mode: metadata.mode() & 0o7777,
        });
    }
    Ok(())
}

/// Replaces `path` by `content` so that a reader sees the old or the new file, never a part.
///
/// The new file is readable by its owner alone. Nothing is left behind on failure.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<(), PathsError> {
    replace(path, content, Durability::Disk)
}

/// Replaces `path` like [`write_atomic`], without waiting for the disk: for what a crash of the machine may lose.
pub fn write_volatile(path: &Path, content: &[u8]) -> Result<(), PathsError> {
    replace(path, content, Durability::Memory)
}

/// What a file that was written outlives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// The end of this process.
    Memory,
    /// A crash of the machine.
    Disk,
}

fn replace(path: &Path, content: &[u8], durability: Durability) -> Result<(), PathsError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let directory = path.parent().unwrap_or(Path::new("."));
    ensure_private_dir(directory)?;
    let unique = format!(
        ".{}.{}.{}.tmp",
        path.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    );
    let temporary = directory.join(unique);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        if durability == Durability::Memory {
            return fs::rename(&temporary, path);
        }
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|source| {
        // The temporary file may not exist; its absence is what is wanted.
        let _ = fs::remove_file(&temporary);
        PathsError::Io { action: "write", path: path.to_owned(), source }
    })
}

/// Tells whether a name is one that [`write_atomic`] gives to a file that is not yet whole.
pub fn is_temporary_name(name: &str) -> bool {
    let parts = name.strip_prefix('.').and_then(|rest| rest.strip_suffix(".tmp"));
    let numbers = parts.map(|parts| parts.rsplitn(3, '.').take(2));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|mut numbers| {
        numbers.next().is_some_and(is_number) && numbers.next().is_some_and(is_number)
    })
}

/// Removes a file; one that is absent is as good as removed.
pub fn remove_if_present(path: &Path) -> Result<(), PathsError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PathsError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a directory with all that is in it; one that is absent is as good as removed.
pub fn remove_directory(path: &Path) -> Result<(), PathsError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PathsError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// An exclusive lock between processes; it ends with the value or with the process, whatever ends it.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// The lock belongs to the open file: whoever is given the descriptor holds it too.
impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Takes over a lock from another process.
impl From<OwnedFd> for Lock {
    fn from(descriptor: OwnedFd) -> Self {
        Self { file: descriptor.into() }
    }
}

impl Lock {
    /// Waits until the lock is free and takes it.
    pub fn acquire(path: &Path) -> Result<Self, PathsError> {
        let file = Self::open(path)?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self { file }),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(PathsError::io("lock", path)(error.into())),
            }
        }
    }

    /// Takes the lock if it is free; `None` when another process holds it.
    pub fn try_acquire(path: &Path) -> Result<Option<Self>, PathsError> {
        let file = Self::open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(PathsError::io("lock", path)(error.into())),
        }
    }

    fn open(path: &Path) -> Result<File, PathsError> {
        if let Some(directory) = path.parent() {
            ensure_private_dir(directory)?;
        }
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(PathsError::io("open the lock", path))
    }
}

/// Resolves links in the part of `path` that exists and keeps the rest, so that a path that will be
/// created can be compared with one that exists.
pub fn resolve_existing(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    let mut current = path;
    loop {
        if let Ok(resolved) = fs::canonicalize(current) {
            return missing.iter().rev().fold(resolved, |path, part| path.join(part));
        }
        match (current.parent(), current.components().next_back()) {
            (Some(parent), Some(Component::Normal(part))) => {
                missing.push(part.to_owned());
                current = parent;
            }
            _ => return path.to_owned(),
        }
    }
}

/// Tells whether one of two paths contains the other or both are the same, after resolving links.
pub fn overlap(one: &Path, other: &Path) -> bool {
    let (one, other) = (resolve_existing(one), resolve_existing(other));
    one.starts_with(&other) || other.starts_with(&one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn paths(variables: &[(&str, &str)]) -> Result<Paths, PathsError> {
        let variables: Vec<(String, OsString)> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect();
        Paths::from_environment(|name| {
            variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
        })
    }

    #[test]
    fn defaults_follow_the_xdg_specification() {
        let paths = paths(&[("HOME", "/home/u")]).unwrap();
        assert_eq!(paths.config_file(), Path::new("/home/u/.config/cloister/config.yaml"));
        assert_eq!(paths.data_dir(), Path::new("/home/u/.local/share/cloister"));
        assert_eq!(paths.control_socket(), Path::new("/home/u/.local/state/cloister/run/control.sock"));
    }

    #[test]
    fn xdg_variables_win_and_relative_ones_are_ignored() {
        let paths =
            paths(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/run/user/5"), ("XDG_DATA_HOME", "relative")])
                .unwrap();
        assert_eq!(paths.runtime_dir(), Path::new("/run/user/5/cloister"));
        assert_eq!(paths.data_dir(), Path::new("/h/.local/share/cloister"));
    }

    #[test]
    fn a_missing_home_and_a_deep_runtime_directory_are_refused() {
        assert!(matches!(paths(&[]), Err(PathsError::NoHome)));
        assert!(matches!(paths(&[("HOME", "relative")]), Err(PathsError::NoHome)));
        let deep = format!("/{}", "d".repeat(100));
        assert!(matches!(
            paths(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", &deep)]),
            Err(PathsError::SocketPathTooLong { .. })
        ));
    }

    #[test]
    fn a_file_is_replaced_whole_and_closed_to_others() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sub/file");
        write_atomic(&file, b"one").unwrap();
        write_atomic(&file, b"two").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn temporary_files_are_known_by_their_names() {
        assert!(is_temporary_name(".demo.json.123.0.tmp"));
        for other in ["demo.json", ".tmp", ".a.tmp", ".a.1.tmp.", ".a.b.1.tmp", "a.1.2.tmp", ".a.1..tmp"] {
            assert!(!is_temporary_name(other), "{other}");
        }
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("file");
        fs::create_dir(&target).unwrap();
        assert!(matches!(write_atomic(&target, b"x"), Err(PathsError::Io { action: "write", .. })));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(ensure_private_dir(&open), Err(PathsError::NotPrivate { mode: 0o777, .. })));
    }

    #[test]
    fn a_lock_is_held_once_and_freed_by_drop() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = Lock::acquire(&path).unwrap();
        assert!(Lock::try_acquire(&path).unwrap().is_none());
        drop(held);
        assert!(Lock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn overlap_sees_through_links() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("real");
        fs::create_dir(&real).unwrap();
        let link = directory.path().join("link");
        symlink(&real, &link).unwrap();
        assert!(overlap(&link.join("not/yet"), &real));
        assert!(overlap(&real, &link));
        assert!(overlap(directory.path(), &link));
        assert!(!overlap(&directory.path().join("other"), &real));
        assert!(!overlap(&directory.path().join("real-not"), &real));
    }
}
