//! Guards that the host removed: the kernel took what covered them, and a sandbox could put something of its own there,
//! at any time later. What a start would have made is put in their place, read-only; `stop` takes it away again.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::table::Task;
use super::{Guards, Table};
use crate::audit::Event;
use crate::guardian::control::chain;
use crate::name::CloisterName;
use crate::paths::{Lock, PathsError};
use crate::process::Identity;
use crate::sandbox::{Guard, Receipt, ReceiptError};

/// How long the host is waited for: most of what is removed is made anew at once, by an editor or by git, which would
/// stumble over what takes its place.
const GRACE: Duration = Duration::from_millis(200);

/// How often is looked what is missing that another thread has found, which takes a sandbox over.
const LOOK: Duration = Duration::from_secs(1);

/// Why nothing was put in the place of a guard.
#[derive(Debug, thiserror::Error)]
enum RefillError {
    #[error(transparent)]
    Paths(#[from] PathsError),
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
}

impl Guard {
    /// Tells whether nothing is where it lies on the host, which a sandbox could fill.
    pub(super) fn is_missing(&self) -> bool {
        let is_absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        !self.is_hidden && self.host.symlink_metadata().as_ref().is_err_and(is_absent)
    }
}

impl Table {
    /// Remembers that a guard is missing.
    pub(super) fn miss(&mut self, cloister: &CloisterName, host: PathBuf) {
        self.missing.insert((cloister.clone(), host), Instant::now() + GRACE);
    }
}

impl Guards {
    /// Puts something in the place of the guards that have been missing for long enough; tells when to look again.
    pub(super) fn refill(&self) -> Duration {
        let now = Instant::now();
        let due: Vec<_> = self.table().missing.extract_if(.., |_, due| *due <= now).collect();
        for ((cloister, host), _) in due {
            match self.refill_one(&cloister, &host) {
                Ok(true) => {}
                // A command is at work under this name, and may be about to do the same.
                Ok(false) => self.table().miss(&cloister, host),
                Err(error) => {
                    let why = chain(&error);
                    let what = format!("{} was removed, and the sandbox can make it: {why}", host.display());
                    self.report(&cloister, Event::SandboxReseal, &what);
                }
            }
        }
        let next = self.table().missing.values().min().copied();
        next.map_or(LOOK, |next| next.saturating_duration_since(Instant::now()))
    }

    /// Tells whether it is dealt with, for now or for good.
    fn refill_one(&self, cloister: &CloisterName, host: &Path) -> Result<bool, RefillError> {
        let first = self.table().sandboxes.get(cloister).map(|sandbox| sandbox.first.clone());
        let Some(first) = first.filter(Identity::is_alive) else { return Ok(true) };
        let Some(_shared) = Lock::try_acquire(&self.paths.placeholder_lock())? else { return Ok(false) };
        let Some(_lock) = Lock::try_acquire(&self.paths.cloister_lock(cloister))? else { return Ok(false) };
        let file = self.paths.receipt_file(cloister);
        let receipt = Receipt::load(&file)?.filter(|receipt| receipt.first.as_ref() == Some(&first));
        let Some(mut receipt) = receipt else { return Ok(true) };
        let guard = receipt.guards.iter().find(|guard| guard.host == host && guard.is_missing()).cloned();
        let spare = receipt.spare.iter().find(|spare| spare.path() == host).cloned();
        let (Some(guard), Some(spare)) = (guard, spare) else { return Ok(true) };
        if let Some(above) = host.parent().filter(|above| !above.is_dir()) {
            self.end_replaced(cloister, above);
            return Ok(true);
        }
        if !receipt.placeholders.contains(&spare) {
            receipt.placeholders.push(spare.clone());
            // Whatever kills this guardian, what it is about to make is known.
            receipt.keep(&file)?;
        }
        spare.make()?;
        let what = format!("{} was removed on the host: something empty takes its place", host.display());
        self.report(cloister, Event::SandboxReseal, &what);
        self.perform(vec![(cloister.clone(), Task::Cover(guard))]);
        Ok(true)
    }
}
