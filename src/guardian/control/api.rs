//! What the command line and the guardian say to each other on the control socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Network;
use crate::name::{BranchName, CloisterName, ProjectName};

/// The version of the control interface; both sides must speak the same.
pub const API_VERSION: u32 = 3;

/// What a guardian is. Every version must understand every other's, and so more than this may stand there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::guardian) struct Version {
    pub(in crate::guardian) version: String,
    pub(in crate::guardian) api: u32,
}

/// A sandbox that is about to be started. Its numbers follow from name and directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registration {
    /// Its name.
    pub cloister: CloisterName,
    /// Its project.
    pub project: ProjectName,
    /// The project's directory.
    pub directory: PathBuf,
    /// What is checked out there.
    pub branch: Option<BranchName>,
    /// How far it reaches.
    pub network: Network,
}

/// The answer to a registration.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::guardian) struct Registered {
    /// The new token, shown this once.
    pub(in crate::guardian) token: String,
}

/// The answer to a revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::guardian) struct Revoked {
    /// Whether there was such a token.
    pub(in crate::guardian) existed: bool,
}

/// The answer to a reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reloaded {
    /// How many cloisters have new rules.
    pub cloisters: usize,
    /// How many tunnels were closed because no rule allows them any more.
    pub closed_tunnels: usize,
}

/// How a guardian is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::guardian) struct Stop {
    /// For how many milliseconds open tunnels may go on.
    pub(in crate::guardian) drain_ms: u64,
}

/// The answer to a shutdown. Every version understands every other's: a guardian can always be stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::guardian) struct StopReceipt {
    /// The head of the audit log at the end.
    pub(in crate::guardian) audit_head: String,
}

/// How the guardian is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Its process number.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The version of its control interface.
    pub api: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// The head of the audit log.
    pub audit_head: String,
    /// What keeps the audit log from being written, if anything does.
    pub audit_problem: Option<String>,
    /// The tunnels that the guardian before it still carries.
    pub draining: usize,
    /// The cloisters that it serves.
    pub cloisters: Vec<CloisterStatus>,
}

/// How one cloister is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloisterStatus {
    /// Its name.
    pub cloister: CloisterName,
    /// Its project.
    pub project: ProjectName,
    /// Tunnels and requests that are open.
    pub tunnels: usize,
}

/// Why the guardian did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::guardian) struct Failure {
    pub(in crate::guardian) error: String,
}
