//! What the command line and the guardian say to each other on the control socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::approval::Scope;
use crate::config::{Network, Owner};
use crate::name::{BranchName, CloisterName, ProjectName};

/// The version of the control interface; both sides must speak the same.
pub const API_VERSION: u32 = 4;

/// What a guardian is. Every version must understand every other's, and so more than this may stand there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "every version calls it so")]
pub(in crate::guardian) struct Version {
    pub(in crate::guardian) version: String,
    pub(in crate::guardian) api: u32,
    /// Whether it serves nothing new any more.
    #[serde(default)]
    pub(in crate::guardian) is_stopping: bool,
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

impl Registration {
    /// Whose settings and decisions are its own.
    pub(in crate::guardian) fn owner(&self) -> Owner {
        Owner { name: self.project.clone(), directory: self.directory.clone() }
    }
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
    /// Whether what it holds in memory of the audit log can't be written at present, though nobody else has changed
    /// the files: the cloisters' own files may be behind then.
    #[serde(default)]
    pub audit_waits: bool,
    /// Records that are written and not yet known to be on disk.
    pub audit_unsynced: u64,
    /// The tunnels that the guardian before it still carries.
    pub draining: usize,
    /// The files of settings that can't be used; the rules before them hold.
    pub settings_problems: Vec<SettingsProblem>,
    /// Kept answers that are of no effect, for they belong to another.
    #[serde(default)]
    pub foreign: Vec<String>,
    /// Where the page is on which a human answers.
    #[serde(default)]
    pub page: Option<String>,
    /// How often settings were read since it started.
    pub reloads: Reloads,
    /// The name servers of the system.
    pub name_servers: Vec<String>,
    /// What of the system it uses.
    pub process: ProcessStatus,
    /// All cloisters together, since it started to serve each.
    pub totals: Totals,
    /// The cloisters that it serves.
    pub cloisters: Vec<CloisterStatus>,
}

/// A file of settings that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsProblem {
    /// The file.
    pub path: String,
    /// The line of the first problem, where it has one.
    pub line: Option<usize>,
    /// All that is wrong, with path, line and repair.
    pub problems: Vec<String>,
    /// When it was noticed, in RFC 3339.
    pub since: String,
    /// Seconds since then.
    pub since_s: u64,
}

/// How often settings were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reloads {
    /// And all was good.
    pub good: u64,
    /// And a file was broken.
    pub bad: u64,
    /// When settings changed last, in RFC 3339.
    pub changed: Option<String>,
}

/// What the guardian's process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessStatus {
    /// Open descriptors.
    pub descriptors: u64,
    /// How many may be open; none when that is not bounded.
    pub max_descriptors: Option<u64>,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
}

/// What the cloisters have in sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Tunnels and requests that are open.
    pub tunnels: usize,
    /// Connections of clients.
    pub connections: usize,
    /// Requests that were allowed.
    pub allowed: u64,
    /// Denials in the audit log.
    pub denied: u64,
    /// Bytes from the sandboxes.
    pub bytes_up: u64,
    /// Bytes to the sandboxes.
    pub bytes_down: u64,
}

/// How one cloister is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloisterStatus {
    /// Its name.
    pub cloister: CloisterName,
    /// Its project.
    pub project: ProjectName,
    /// How far it reaches.
    pub network: Network,
    /// Tunnels and requests that are open.
    pub tunnels: usize,
    /// How many may be.
    pub max_tunnels: usize,
    /// Connections of its clients.
    pub connections: usize,
    /// How many there may be.
    pub max_connections: usize,
    /// Requests that were allowed, since the guardian serves it.
    pub allowed: u64,
    /// Denials in the audit log.
    pub denied: u64,
    /// Requests that wait for a human.
    #[serde(default)]
    pub pending: usize,
    /// Requests that came too fast.
    pub rate_limited: u64,
    /// Requests for which it had too many tunnels or connections open.
    pub too_many: u64,
    /// Bytes from the sandbox.
    pub bytes_up: u64,
    /// Bytes to the sandbox.
    pub bytes_down: u64,
    /// The way out: `direct`, or the upstream proxy without its credentials.
    pub way_out: String,
    /// Whether a file of its settings is broken, so that the rules before it hold.
    pub is_stale: bool,
    /// Why its guards can't be watched, if they can't: it has no way out then.
    pub unguarded: Option<String>,
    /// What was denied last.
    pub last_denial: Option<LastDenial>,
}

/// A denial; the texts come from a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastDenial {
    /// What was asked for; none when the sandbox did not prove who it is.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<u16>,
    /// The code of the reason.
    pub reason: String,
    /// How many seconds ago.
    pub ago_s: u64,
}

/// Why the guardian did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::guardian) struct Failure {
    pub(in crate::guardian) error: String,
}

/// A remembered answer that is to be taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forget {
    /// Its pattern, such as `api.example.org:443`.
    pub rule: String,
    /// Where it is remembered, if that has to be said.
    pub scope: Option<Scope>,
    /// Whose it is, where it is a session's or a project's.
    pub cloister: Option<CloisterName>,
}

/// The answers that were taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forgotten {
    /// One for each place.
    pub forgotten: Vec<ForgottenRule>,
}

/// An answer that was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForgottenRule {
    /// How far it reached.
    pub scope: Scope,
    /// What it was about.
    pub pattern: String,
    /// Whether it was an `allow` or a `deny`.
    pub effect: String,
    /// Where it stood.
    pub place: String,
}

/// The answer to who wants to see the page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::guardian) struct PageLink {
    /// It logs one browser in, once.
    pub(in crate::guardian) url: String,
}

/// The answer to who wants to know whether somebody is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::guardian) struct Calls {
    /// Grows with every request that nobody looks at.
    pub(in crate::guardian) number: u64,
}
