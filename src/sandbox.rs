//! What a sandbox is, and how it is made: [`Spec`] (wanted) → plan (ordered steps) → [`Receipt`] (done).
//!
//! The spec is a plain value: everything that the sandbox will see stands in it, and nothing else will be
//! seen. A backend turns it into a plan without touching the system; applying the plan writes a receipt, from
//! which any later process can tear the sandbox down.

mod bubblewrap;
mod diagnose;
mod facts;
mod limits;
mod placeholder;
mod receipt;
mod seccomp;
mod spec;
mod stage;
mod tools;

pub use bubblewrap::{Bubblewrap, HostUser, LaunchError, Launched, Monitor, Plan, find_bwrap};
pub use diagnose::{Diagnosis, diagnose};
pub use facts::{Facts, Store};
pub use limits::{Confinement, Enforcement};
pub use placeholder::Placeholder;
pub use receipt::{Guard, Receipt, ReceiptError, TeardownError};
pub use seccomp::{Answer, Call, FilterError, RULES, Rule as SeccompRule, When, filter};
pub use spec::{BINARY, HOME, Mount, SOCKETS, Spec, User, WORK, Wanted};
pub use stage::{StageError, perform as perform_stage};
pub use tools::{ClosureError, Search, Tools, closure};
