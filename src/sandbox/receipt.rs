//! What was done to make a sandbox, kept on disk so that any later process can undo it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::limits::{Confinement, Enforcement};
use super::placeholder::Placeholder;
use crate::config::Network;
use crate::name::{CloisterId, CloisterName, ProjectId, ProjectName};
use crate::paths::{self, PathsError};
use crate::process::Identity;

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
}

/// A path that is read-only inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// Where it lies on the host.
    pub host: PathBuf,
    /// Where it is seen.
    pub inside: PathBuf,
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
    /// A control group could not be removed.
    #[error("cannot remove the sandbox's control group")]
    Group(#[source] io::Error),
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
        self.first.as_ref().is_some_and(Identity::is_alive)
    }

    /// What holds the sandbox to its limits.
    pub fn enforcement(&self) -> Enforcement {
        self.limits.as_ref().map_or(Enforcement::None, |limits| limits.by)
    }

    /// Ends the sandbox and removes what it left, going on past errors; all of them are reported.
    ///
    /// With the first process the kernel ends every process of its name space.
    /// `in_use` are placeholders that another sandbox of the same repository needs.
    pub fn tear_down(&self, in_use: &[PathBuf]) -> Vec<TeardownError> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let mut errors = Vec::new();
        for identity in self.first.iter().chain(&self.monitor) {
            let Some(process) = identity.open() else { continue };
            let pid = identity.pid();
            match process.kill(PATIENCE) {
                Ok(true) => {}
                Ok(false) => errors.push(TeardownError::Survives { pid }),
                Err(source) => errors.push(TeardownError::Signal { pid, source }),
            }
        }
        errors
            .extend(self.limits.iter().filter_map(|limits| limits.remove().err()).map(TeardownError::Group));
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
    use crate::process;

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
