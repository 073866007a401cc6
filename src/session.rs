//! What people do with sandboxes: start, enter, stop, list. Each use case is a function over the parts.

mod anchors;
pub mod doctor;
mod environment;
mod gc;
mod launch;
mod list;
mod start;
mod stop;
mod sweep;
mod terminal;

pub use gc::{Collected, GcProblem, Leftover, Mode, gc};
pub use list::{Listing, Running, directory_of, running};
pub use start::{Preview, RootConsent, Sandbox, StartError, StartRequest, enter, preview, start};
pub use stop::{StopError, StopProblem, Stopped, stop, stop_all};
pub use sweep::sweep;
pub use terminal::{SessionError, run};
