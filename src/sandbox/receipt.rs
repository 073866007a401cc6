//! What was done to make a sandbox, kept on disk so that any later process can undo it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::placeholder::Placeholder;
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
    pub network: String,
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
    /// What was made to be mounted over.
    pub placeholders: Vec<Placeholder>,
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

    /// Reads all receipts of a directory, in the order of their names.
    pub fn load_all(directory: &Path) -> Result<Vec<Self>, ReceiptError> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
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
        files.iter().filter_map(|file| Self::load(file).transpose()).collect()
    }

    /// The placeholders that sandboxes need that run now, the named one apart.
    pub fn placeholders_in_use(directory: &Path, but: &CloisterName) -> Result<Vec<PathBuf>, ReceiptError> {
        let others = Self::load_all(directory)?
            .into_iter()
            .filter(|other| other.cloister != *but && other.is_running());
        Ok(others
            .flat_map(|other| other.placeholders)
            .map(|placeholder| placeholder.path().to_owned())
            .collect())
    }

    /// Writes the receipt.
    pub fn keep(&self, path: &Path) -> Result<(), ReceiptError> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|source| ReceiptError::Parse { path: path.to_owned(), source })?;
        text.push(b'\n');
        Ok(paths::write_atomic(path, &text)?)
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

    /// Ends the sandbox and removes what it left, going on past errors; all of them are reported.
    ///
    /// With the first process the kernel ends every process of its name space.
    /// `in_use` are placeholders that another sandbox of the same repository needs.
    pub fn tear_down(&self, in_use: &[PathBuf]) -> Vec<TeardownError> {
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
        let own = self
            .placeholders
            .iter()
            .filter(|placeholder| !in_use.iter().any(|path| path == placeholder.path()));
        let removed = own.map(Placeholder::remove);
        let removed = removed.chain([paths::remove_if_present(&self.socket)]);
        errors.extend(removed.filter_map(Result::err).map(TeardownError::Paths));
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
            network: "guarded".to_owned(),
            started: 1,
            socket,
            monitor: None,
            first,
            pid_namespace: None,
            placeholders: Vec::new(),
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
        assert_eq!(Receipt::load_all(directory.path()).unwrap(), [receipt]);
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
        assert!(receipt.tear_down(&[]).is_empty());
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
        assert!(receipt.tear_down(&[]).is_empty());
        child.wait().unwrap();
        assert!(!receipt.is_running() && !socket.exists());
        assert!(receipt.tear_down(&[]).is_empty(), "a second teardown finds nothing to do");
    }
}
