//! What was done to make a sandbox, kept on disk so that any later process can undo it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::{Confinement, Enforcement};
use super::placeholder::Placeholder;
use crate::config::{Network, Owner};
use crate::name::{CloisterId, CloisterName, ProjectId, ProjectName};
use crate::paths::{self, PathsError};
use crate::process::{self, Handle, Identity};

/// The record of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The cloister.
    pub cloister: CloisterName,
    /// Its number.
    pub id: CloisterId,
    /// Its project.
    pub project: ProjectName,
    /// The project's number.
    pub project_id: ProjectId,
    /// The project's directory.
    pub directory: PathBuf,
    /// The branch that was checked out at the start, if any.
    pub branch: Option<String>,
    /// The backend that made it.
    pub backend: String,
    /// How far it reaches.
    pub network: Network,
    /// When it was started, in seconds since 1970.
    pub started: u64,
    /// The socket of its first process.
    pub socket: PathBuf,
    /// The process outside that waits for the sandbox.
    pub monitor: Option<Identity>,
    /// The sandbox's first process, as seen from the host.
    pub first: Option<Identity>,
    /// The inode of its process name space.
    pub pid_namespace: Option<u64>,
    /// What holds it to its limits.
    pub limits: Option<Confinement>,
    /// What a sandbox must not write although it lies in a directory that it can write.
    pub guards: Vec<Guard>,
    /// What was made to be mounted over.
    pub placeholders: Vec<Placeholder>,
    /// What takes the place of a guard that the host removes while the sandbox is up.
    #[serde(default)]
    pub spare: Vec<Placeholder>,
}

/// The receipts of a directory.
#[derive(Debug, Default)]
pub struct Receipts {
    /// Those that can be read.
    pub receipts: Vec<Receipt>,
    /// Why others can't.
    pub unreadable: Vec<ReceiptError>,
}

/// The placeholders that running sandboxes need.
#[derive(Debug, Default)]
pub struct InUse {
    /// Where they lie.
    pub paths: Vec<PathBuf>,
    /// Receipts that might name more.
    pub unreadable: Vec<ReceiptError>,
}

impl InUse {
    /// Tells whether nobody needs a placeholder: to take away what is mounted over would open what it covers.
    fn is_free(&self, path: &Path) -> bool {
        self.unreadable.is_empty() && !self.paths.iter().any(|used| used == path)
    }
}

/// A path that is read-only or hidden inside.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// Where it lies on the host.
    pub host: PathBuf,
    /// Where it is seen.
    pub inside: PathBuf,
    /// Whether it is hidden.
    pub is_hidden: bool,
}

/// Why a receipt could not be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// A file operation failed.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// The file can't be read.
    #[error("cannot read the receipt `{path}`")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is no receipt.
    #[error("cannot understand the receipt `{path}`")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Why a sandbox could not be ended or cleared away.
#[derive(Debug, thiserror::Error)]
pub enum TeardownError {
    /// The first process did not end.
    #[error("the sandbox's first process (pid {pid}) does not end")]
    Survives {
        /// Its process number.
        pid: i32,
    },
    /// A process could not be signalled.
    #[error("cannot signal the sandbox's first process (pid {pid})")]
    Signal {
        /// Its process number.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file could not be removed.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// What lies in a directory that was closed to us stays.
    #[error("`{path}` stays: run `chmod u+rwx {directory}`, and remove it")]
    Closed {
        /// What stays.
        path: PathBuf,
        /// What is closed.
        directory: PathBuf,
    },
    /// A control group could not be removed.
    #[error("cannot remove the sandbox's control group")]
    Group(#[source] io::Error),
}

impl TeardownError {
    /// Tells whether only the user can mend it: a sandbox took the permissions of its own directories away. It must
    /// not keep every later command from ending in order.
    pub fn is_users(&self) -> bool {
        matches!(self, Self::Closed { .. })
    }

    fn of_placeholder(placeholder: &Placeholder, error: PathsError) -> Self {
        let is_denied = matches!(&error, PathsError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied);
        let path = placeholder.path();
        let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
        above.reverse();
        // The first directory whose content can't be reached; the last one, when only writing is denied.
        let closed = above.windows(2).find(|pair| pair[1].symlink_metadata().is_err()).map(|pair| pair[0]);
        match closed.or(path.parent()).filter(|_| is_denied) {
            Some(directory) => Self::Closed { path: path.to_owned(), directory: directory.to_owned() },
            None => Self::Paths(error),
        }
    }
}

impl Receipt {
    /// Reads a receipt; `None` when there is none.
    pub fn load(path: &Path) -> Result<Option<Self>, ReceiptError> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(ReceiptError::Read { path: path.to_owned(), source });
            }
            Ok(text) => text,
        };
        let parsed = serde_json::from_slice(&text);
        parsed.map(Some).map_err(|source| ReceiptError::Parse { path: path.to_owned(), source })
    }

    /// Reads all receipts of a directory, in the order of their names; one that can't be read hides no other.
    pub fn load_all(directory: &Path) -> Result<Receipts, ReceiptError> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Receipts::default()),
            Err(source) => {
                return Err(ReceiptError::Read { path: directory.to_owned(), source });
            }
            Ok(entries) => entries,
        };
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .collect();
        files.sort();
        let mut found = Receipts::default();
        for result in files.iter().filter_map(|file| Self::load(file).transpose()) {
            match result {
                Ok(receipt) => found.receipts.push(receipt),
                Err(error) => found.unreadable.push(error),
            }
        }
        Ok(found)
    }

    /// The placeholders that sandboxes need that run now, the named one apart.
    pub fn placeholders_in_use(directory: &Path, but: &CloisterName) -> Result<InUse, ReceiptError> {
        let found = Self::load_all(directory)?;
        let others = found.receipts.into_iter().filter(|other| other.cloister != *but && other.is_running());
        let placeholders = others.flat_map(|other| other.placeholders);
        let paths = placeholders.map(|placeholder| placeholder.path().to_owned()).collect();
        Ok(InUse { paths, unreadable: found.unreadable })
    }

    /// Writes the receipt.
    pub fn keep(&self, path: &Path) -> Result<(), ReceiptError> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|source| ReceiptError::Parse { path: path.to_owned(), source })?;
        text.push(b'\n');
        Ok(paths::write_atomic(path, &text)?)
    }

    /// Whose settings and decisions are the sandbox's.
    pub fn owner(&self) -> Owner {
        Owner { name: self.project.clone(), directory: self.directory.clone() }
    }

    /// Tells whether the sandbox still runs.
    pub fn is_running(&self) -> bool {
        self.open_first().is_some()
    }

    /// Opens the first process if it still is the one that was made: by its number, its start, and its name space.
    fn open_first(&self) -> Option<Handle> {
        let first = self.first.as_ref()?;
        let handle = first.open()?;
        // Read after the descriptor was taken: another process under the number would show another name space.
        let seen = process::pid_namespace(first.pid());
        let is_other = seen.zip(self.pid_namespace).is_some_and(|(seen, made)| seen != made);
        (!is_other).then_some(handle)
    }

    /// What holds the sandbox to its limits.
    pub fn enforcement(&self) -> Enforcement {
        self.limits.as_ref().map_or(Enforcement::None, |limits| limits.by)
    }

    /// Ends the sandbox and removes what it left, going on past errors; all of them are reported.
    ///
    /// With the first process the kernel ends every process of its name space.
    /// `in_use` are placeholders that another sandbox of the same repository needs.
    pub fn tear_down(&self, in_use: &InUse) -> Vec<TeardownError> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let mut errors = Vec::new();
        let first = self.first.iter().map(|identity| (identity.pid(), self.open_first()));
        let monitor = self.monitor.iter().map(|identity| (identity.pid(), identity.open()));
        for (pid, process) in first.chain(monitor) {
            let Some(process) = process else { continue };
            match process.kill(PATIENCE) {
                Ok(true) => {}
                Ok(false) => errors.push(TeardownError::Survives { pid }),
                Err(source) => errors.push(TeardownError::Signal { pid, source }),
            }
        }
        errors
            .extend(self.limits.iter().filter_map(|limits| limits.remove().err()).map(TeardownError::Group));
        errors.extend(self.remove_placeholders(in_use));
        errors.extend(paths::remove_if_present(&self.socket).err().map(TeardownError::Paths));
        errors
    }

    /// Removes the placeholders that nobody else needs, those first that lie in others.
    pub fn remove_placeholders(&self, in_use: &InUse) -> Vec<TeardownError> {
        let free = self.placeholders.iter().rev().filter(|placeholder| in_use.is_free(placeholder.path()));
        let mut errors: Vec<TeardownError> = Vec::new();
        for placeholder in free {
            let Err(error) = placeholder.remove() else { continue };
            let error = TeardownError::of_placeholder(placeholder, error);
            let directory = |error: &TeardownError| match error {
                TeardownError::Closed { directory, .. } => Some(directory.clone()),
                _ => None,
            };
            // One line for each closed directory.
            let is_said = directory(&error).is_some_and(|new| {
                errors.iter().any(|earlier| directory(earlier).is_some_and(|known| known == new))
            });
            if !is_said {
                errors.push(error);
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(socket: PathBuf, first: Option<Identity>) -> Receipt {
        let cloister = CloisterName::parse("demo").unwrap();
        Receipt {
            id: CloisterId::of(&cloister, "/src/demo"),
            cloister,
            project: ProjectName::parse("demo").unwrap(),
            project_id: ProjectId::of("/src/demo"),
            directory: "/src/demo".into(),
            branch: Some("main".to_owned()),
            backend: "bubblewrap".to_owned(),
            network: Network::Guarded,
            started: 1,
            socket,
            monitor: None,
            first,
            pid_namespace: None,
            limits: None,
            guards: Vec::new(),
            placeholders: Vec::new(),
            spare: Vec::new(),
        }
    }

    #[test]
    fn a_receipt_survives_the_disk_and_garbage_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("demo.json");
        assert_eq!(Receipt::load(&path).unwrap(), None);
        let receipt = receipt("/nowhere".into(), None);
        receipt.keep(&path).unwrap();
        assert_eq!(Receipt::load(&path).unwrap(), Some(receipt.clone()));
        fs::write(directory.path().join("another.json"), "{").unwrap();
        let found = Receipt::load_all(directory.path()).unwrap();
        assert_eq!((found.receipts, found.unreadable.len()), (vec![receipt], 1));
        fs::write(&path, "{").unwrap();
        assert!(matches!(Receipt::load(&path), Err(ReceiptError::Parse { .. })));
    }

    #[test]
    fn a_process_of_another_name_space_is_neither_the_sandbox_nor_killed() {
        let mut child = process::command("/bin/sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let mut receipt = receipt("/nowhere".into(), Identity::of(pid));
        receipt.pid_namespace = process::pid_namespace(pid);
        assert!(receipt.pid_namespace.is_some() && receipt.is_running());
        receipt.pid_namespace = Some(1);
        assert!(!receipt.is_running());
        assert!(receipt.tear_down(&InUse::default()).is_empty());
        assert!(child.try_wait().unwrap().is_none(), "a stranger was killed");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn teardown_kills_the_process_it_knows_and_removes_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("x.sock");
        fs::write(&socket, "").unwrap();
        let mut child = process::command("/bin/sleep").arg("1000").spawn().unwrap();
        let receipt = receipt(socket.clone(), Identity::of(i32::try_from(child.id()).unwrap()));
        assert!(receipt.is_running());
        assert!(receipt.tear_down(&InUse::default()).is_empty());
        child.wait().unwrap();
        assert!(!receipt.is_running() && !socket.exists());
        assert!(receipt.tear_down(&InUse::default()).is_empty(), "a second teardown finds nothing to do");
    }
}
