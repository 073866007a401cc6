//! The first process of a sandbox: relay to the guardian, sessions, reaping.
//!
//! It is this binary, started as `cloister sandbox-init first` with a listening socket as standard input and
//! its settings on a pipe as standard output. Nothing else in the sandbox can reach either: the process is
//! undumpable, and its socket lies in no mount. When its settings do not arrive whole, the command that started
//! it has died, and it ends.

mod boot;
mod child;
mod connect;
mod mounts;
pub mod probe;
mod relay;
mod serve;
mod session;
mod stream;
pub mod wire;

pub use boot::{Anchor, Boot, Relay};
pub use connect::{Allowed, AskError, Asker, ConnectError, ask, connect};
pub use mounts::{Adjusted, Adjustment, adjust};

use std::io;

/// Why the first process gave up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The settings did not arrive.
    #[error("cannot read the settings of the first process")]
    Boot(#[source] io::Error),
    /// The settings are not what this version writes.
    #[error("cannot understand the settings of the first process")]
    Settings(#[source] serde_json::Error),
    /// A path led elsewhere when it was mounted than when it was checked.
    #[error("`{0}` is not what was checked before the start: somebody exchanged it")]
    Exchanged(String),
    /// Something that the first process needs could not be set up.
    #[error("cannot {action}")]
    Setup {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl InitError {
    fn setup(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Setup { action, source }
    }
}

/// Runs the first process until it is told to stop.
pub fn first() -> Result<(), InitError> {
    let (listener, boot) = boot::take_over()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(InitError::setup("start the event loop"))?;
    tokio::task::LocalSet::new().block_on(&runtime, serve::serve(listener, boot))
}

/// What the command of a session has for its input and output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// A terminal of the sandbox's own, which it takes for itself.
    Terminal,
    /// Pipes.
    Pipes,
}

/// Becomes the command of a session; returns only when that fails, with the exit code and the reason.
pub fn become_command(console: Console, argv: &[std::ffi::OsString]) -> (u8, String) {
    child::become_command(console, argv)
}
