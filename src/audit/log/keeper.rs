//! The thread that does in time what no append waits for: flushes, summaries, group syncs.

use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Batch, Shared, State};
use crate::audit::AuditError;
use crate::audit::chain::Unsynced;

/// How long a line that is not urgent may stay in memory.
pub(super) const FLUSH_DELAY: Duration = Duration::from_millis(100);
/// How long written lines may stay away from the disk: syncs are grouped.
pub(super) const SYNC_DELAY: Duration = Duration::from_secs(1);
/// How soon what failed is tried again without an append.
const RETRY: Duration = Duration::from_secs(1);

/// Starts the thread; it ends when the state says so.
pub(super) fn spawn(shared: Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    thread::Builder::new().name("audit".to_owned()).spawn(move || keep(&shared))
}

fn keep(shared: &Shared) {
    // After a panic elsewhere every append fails; there is nothing to keep.
    let Ok(mut state) = shared.state.lock() else { return };
    loop {
        if state.is_ending {
            return;
        }
        let now = Instant::now();
        let due = state.next_due();
        state.keeper_sleeps_until = due;
        let woken = match due {
            None => shared.wake.wait(state),
            Some(due) if due > now => {
                let waited = shared.wake.wait_timeout(state, due - now);
                waited.map(|(state, _)| state).map_err(|error| PoisonError::new(error.into_inner().0))
            }
            Some(_) => {
                let unsynced = run(&mut state, now);
                drop(state);
                let synced = unsynced.map(|batch| (sync_all(&batch.files), batch));
                let locked = shared.state.lock();
                locked.map(|mut state| {
                    if let Some((synced, batch)) = synced {
                        state.note_sync(&batch, synced);
                    }
                    state
                })
            }
        };
        let Ok(locked) = woken else { return };
        state = locked;
    }
}

/// Does what is due, and gives what has to be brought to disk.
fn run(state: &mut State, now: Instant) -> Option<Batch> {
    let outcome = state.flush(now);
    if let Err(error) = &outcome {
        tracing::error!(error = error as &dyn std::error::Error, "the audit log can't be written");
    }
    state.note_failure(outcome.is_err(), now + RETRY);
    let is_due = outcome.is_ok() && state.sync_due.is_some_and(|due| due <= now);
    is_due.then(|| state.take_unsynced())
}

/// Brings all files to disk; all are tried, and the first error is given.
pub(super) fn sync_all(unsynced: &[Unsynced]) -> Result<(), AuditError> {
    let outcomes: Vec<_> = unsynced.iter().map(Unsynced::sync).collect();
    outcomes.into_iter().collect()
}
