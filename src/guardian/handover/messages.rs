//! What the two guardians say to each other.

use serde::{Deserialize, Serialize};

use crate::audit::Record;
use crate::name::CloisterName;

/// What the old guardian says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum FromOld {
    /// What it is, and how many sockets follow.
    Offer { pid: u32, version: String, listeners: usize },
    /// With the descriptor of the guardian's lock.
    Lock,
    /// With the descriptor of the listening control socket.
    Control,
    /// With the descriptor of a sandbox's listening socket.
    Listener { cloister: CloisterName },
    /// The log is closed and ends here.
    Yours { head: String },
    /// It is not the guardian any more; only now may the other answer the command line.
    Done,
    /// Something to write into the log; a number asks for an answer.
    Record { number: Option<u64>, record: Box<Record> },
    /// How many tunnels it still carries.
    Carries { tunnels: usize },
}

/// What the new guardian says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum FromNew {
    /// It could serve.
    Ready,
    /// It serves.
    Serving,
    /// What became of a record.
    Written { number: u64, error: Option<String> },
    /// What is left to do.
    Order(Order),
}

/// What becomes of the tunnels that the old guardian carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub(in crate::guardian) enum Order {
    /// Those of a sandbox end.
    Revoke { cloister: CloisterName },
    /// Those that no rule allows any more end.
    Reload,
    /// All end.
    End,
}
