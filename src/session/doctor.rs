//! `doctor`: what this host lacks for sandboxes, and whether a sandbox holds.
//!
//! The probe makes two throw-away sandboxes and canaries outside of them, and runs one list of attacks in several
//! places: in the first sandbox, where each has to be stopped, and outside, where the same attack has to succeed. What
//! can't be shown to succeed outside proves nothing by failing inside.

mod attacks;
mod checks;
mod host;
mod judge;
mod kernel;
mod run;
mod stage;

pub use checks::{Check, State, check_host};
pub use judge::{Row, Verdict};

use std::io;

use tokio::signal::unix::{SignalKind, signal};

use crate::guardian::client::ClientError;
use crate::init::wire::FromSandbox;
use crate::name::InvalidName;
use crate::paths::{Paths, PathsError};
use crate::project::ProjectError;
use crate::sandbox::{LaunchError, ReceiptError};
use crate::session::{StartError, StopError, StopProblem};

/// Why the probe came to no result.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// A sandbox can't be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A sandbox can't be stopped.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// The guardian can't be asked.
    #[error(transparent)]
    Guardian(#[from] ClientError),
    /// A file of Cloister's can't be used.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// The registry can't be used.
    #[error(transparent)]
    Project(#[from] ProjectError),
    /// Something of a throw-away sandbox stays.
    #[error("cannot clear away what was made for the probe")]
    Leftover(#[source] StopProblem),
    /// A receipt can't be read.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
    /// There is no `bwrap`.
    #[error(transparent)]
    Bubblewrap(#[from] LaunchError),
    /// The throw-away name is none.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// What the probe in the sandbox said is no result.
    #[error("cannot understand what the probe in {place} said")]
    Answer {
        /// Where it ran.
        place: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The sandbox's first process said something that it may not say.
    #[error("the sandbox's first process does not keep to the format")]
    Garbage(Option<FromSandbox>),
    /// The user wants no more of it.
    #[error("interrupted; what was made for the probe is cleared away")]
    Interrupted,
    /// Something else of the system.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> DoctorError {
    move |source| DoctorError::Io { action, source }
}

/// Starts throw-away sandboxes, tries to break out of one, and clears everything away again, also after a failure.
pub async fn probe(paths: &Paths) -> Result<Vec<Row>, DoctorError> {
    let mut stage = stage::Stage::new(paths)?;
    let result = tokio::select! {
        result = attack(&mut stage) => result,
        ended = asked_to_end() => Err(ended.err().unwrap_or(DoctorError::Interrupted)),
    };
    let cleared = stage.clear().await;
    let rows = result?;
    cleared.map(|()| rows)
}

/// Waits for a signal that asks this process to end.
async fn asked_to_end() -> Result<(), DoctorError> {
    let watch = |kind| signal(kind).map_err(io_error("watch for signals"));
    let mut interrupt = watch(SignalKind::interrupt())?;
    let mut terminate = watch(SignalKind::terminate())?;
    let mut hang_up = watch(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    Ok(())
}

async fn attack(stage: &mut stage::Stage<'_>) -> Result<Vec<Row>, DoctorError> {
    let aim = stage.set().await?;
    let probes = attacks::probes(&aim);
    let findings = run::everywhere(stage, &probes).await?;
    Ok(judge::rows(&probes, &findings, &aim))
}
