//! The page on which a human answers: rendered on the server, live through server-sent events.

use std::path::PathBuf;

use tokio::sync::watch;

use crate::approval::{Answer, RequestId, Settled, Snapshot, Who};

/// A cloister that runs, as the page shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloister {
    /// Its name.
    pub name: String,
    /// Its project.
    pub project: String,
    /// How far it reaches.
    pub network: String,
    /// Requests that were allowed.
    pub allowed: u64,
    /// Denials.
    pub denied: u64,
    /// Bytes from the sandbox.
    pub bytes_up: u64,
    /// Bytes to the sandbox.
    pub bytes_down: u64,
    /// Tunnels and requests that are open.
    pub tunnels: usize,
}

/// Why something that the page asked for is not done, as it tells the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeskError {
    /// The request is not there: answered by somebody else, over, or never was.
    #[error("{0}")]
    Gone(String),
    /// What was asked makes no sense here.
    #[error("{0}")]
    Unfit(String),
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

/// What the pages need of the guardian. Every method may block on the disk.
pub trait Desk: Send + Sync + 'static {
    /// What waits and what was decided.
    fn snapshot(&self) -> Snapshot;
    /// Tells of every change: the version of the snapshot.
    fn changes(&self) -> watch::Receiver<u64>;
    /// Somebody looks, as long as this is held: nobody needs to be called.
    fn look(&self) -> Box<dyn Send + Sync>;
    /// Answers a request.
    fn answer(&self, id: &RequestId, answer: Answer, who: Who) -> Result<Settled, DeskError>;
    /// Takes an answer back.
    fn undo(&self, id: &RequestId, who: Who) -> Result<(), DeskError>;
    /// The cloisters that run.
    fn cloisters(&self) -> Vec<Cloister>;
    /// What is wrong with the settings or the log, if anything is.
    fn problems(&self) -> Vec<String>;
    /// The audit log's unified file.
    fn audit_file(&self) -> PathBuf;
    /// Where an answer of this scope is written for a project, as the page tells before it is given.
    fn written_to(&self, scope: crate::approval::Scope, pending: &crate::approval::Pending) -> String;
}
