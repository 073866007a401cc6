//! One line of the log as a value.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Event, LineHash};
use crate::name::{BranchName, CloisterName, ProjectName};

/// Holds one line of the log; the order of the fields is their order in the line.
///
/// Texts may come from a sandbox: `Display` escapes them, other users show them through [`crate::text::Untrusted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The number of the record in its chain, from 1.
    pub seq: u64,
    /// When it was written, in UTC with microseconds.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// The hash of the line before.
    pub prev: LineHash,
    /// What happened.
    pub event: Event,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloister: Option<CloisterName>,
    /// The project it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
    /// The branch of a worktree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<BranchName>,
    /// The host asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The port asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The stable code of a refusal or an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Where that rule comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// How far a human's answer reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The pattern a human's answer allows or denies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Who decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// Bytes from the sandbox to the upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_up: Option<u64>,
    /// Bytes from the upstream to the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_down: Option<u64>,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// A command on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// How that command ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// More, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// In `audit.recovered`: the hash of the last whole line before the remains that it closes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovers: Option<LineHash>,
}

/// Holds what the chain needs of a line; an event of a newer version does not break it.
#[derive(Debug, Deserialize)]
pub(super) struct Link {
    pub(super) seq: u64,
    pub(super) prev: LineHash,
    pub(super) event: String,
    #[serde(default)]
    pub(super) recovers: Option<LineHash>,
}

impl Link {
    /// Reads the chain's part of a line, or nothing when the line is no record.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// Tells whether this record closes the remains of a torn line.
    pub(super) fn is_recovery(&self) -> bool {
        self.event == Event::AuditRecovered.name()
    }
}

mod rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{time:.6}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
