//! The guardian: one process a user, through which every byte of every sandbox goes.
//!
//! It wires the parts together and owns none of their decisions: `policy` judges, `proxy` carries, `audit`
//! writes. Sandboxes come to it through a socket each; the command line through [`client`], which needs a key
//! that no sandbox can read.

mod approvals;
pub mod client;
mod control;
mod daemon;
#[cfg(fuzzing)]
pub mod fuzz;
mod guards;
mod handover;
mod ledger;
pub mod notify;
mod registry;

pub use daemon::{DaemonError, Role, run};
pub use handover::TakeError;
