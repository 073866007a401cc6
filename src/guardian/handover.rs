//! Replacing the running guardian by another binary, without breaking a tunnel.
//!
//! ```text
//! new                                 old
//!  │ POST /handover (control key)  →   │  no other request is answered from here on; they wait
//!  │ ← 101, and the connection is theirs
//!  │ ← offer, lock, control socket,    │
//!  │   a listening socket a sandbox    │
//!  │ reads settings, tokens, rules     │
//!  │ ready                         →   │  closes the audit log: what is to be recorded waits
//!  │ ← yours, with the log's head      │
//!  │ opens the log, compares the head, │
//!  │ watches over the guards, serves   │
//!  │ serving                       →   │  the handover is done: accepts no more, watches no more
//!  │ ← done                            │
//!  │ answers the command line          │
//!  │ ← records of its tunnels          │  carries its tunnels to their end
//!  │ revoke, reload, end           →   │
//! ```
//!
//! - Until `serving` has arrived the old guardian is the guardian. Whatever goes wrong or takes too long, it kills the
//!   new one, opens its log again and answers what has waited. It never gave up its lock: the descriptor is shared.
//! - Listening sockets are shared too, and so no connection is refused: it waits in the queue until one of the two
//!   accepts it.
//! - When the old one dies before `yours`, the new one starts as if there had been none; after that, it has all it needs.
//! - The old one carries its tunnels only as long as the connection between the two holds: without the new one nobody
//!   writes the log, and everything ends at once (invariant 7).
//! - Only the newest one follows the files of settings and tells of them in the log. Each time it reads them it orders the
//!   one before to do so too, once also right after the handover: the two may have read them at different times.
//! - What was handed over once can be handed over again while older guardians still carry tunnels: each passes on
//!   records and orders.

mod give;
mod messages;
mod predecessor;
mod successor;
mod take;
mod wire;

pub(super) use give::give;
pub(super) use messages::Order;
pub(super) use predecessor::Predecessor;
pub(super) use successor::Successor;
pub use take::TakeError;
pub(super) use take::{Link, Offer, Sockets, check_head};

use std::time::Duration;

/// What the two speak; both must speak the same.
pub(super) const PROTOCOL: &str = "cloister-handover/1";

/// How long the one waits for the other before the handover is done.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a message may take to be written once it is.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);
/// How long the old one waits for the new one once the handover is done: longer than the new one may have to wait for the
/// log itself (20 s), which it can be handing on to a third.
const CARRY_PATIENCE: Duration = Duration::from_secs(25);
