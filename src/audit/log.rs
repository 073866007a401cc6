//! The writer of the log.

use std::collections::HashMap;
use std::collections::hash_map;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, OFlags, flock};

use super::chain::{Chain, Unsynced, make_private_directory};
use super::{AuditError, CLOISTERS_FOLDER, Event, Head, Record, cloister_file, unified_file};
use crate::name::CloisterName;

/// Writes the log of all cloisters; one process holds it at a time.
///
/// An append costs one `write(2)` a file and no sync. When it fails, nothing may flow; the next append tries again, so
/// traffic comes back when the disk has room again.
#[derive(Debug)]
pub struct AuditLog {
    dir: PathBuf,
    cloister_files: CloisterFiles,
    state: Mutex<State>,
    /// Holds the lock until the log is dropped.
    _lock: File,
}

/// Tells whether every cloister gets a file of its own (`audit.per_cloister`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CloisterFiles {
    Written,
    LeftOut,
}

#[derive(Debug)]
struct State {
    unified: Chain,
    cloisters: HashMap<CloisterName, CloisterChain>,
}

#[derive(Debug)]
struct CloisterChain {
    chain: Chain,
    /// Whether the sandbox is gone, so that the file may be closed after the next sync.
    is_over: bool,
}

impl State {
    /// Takes the files that were written, and closes those whose sandbox is gone.
    fn take_unsynced(&mut self) -> Vec<Unsynced> {
        let mut unsynced = Vec::from_iter(self.unified.take_unsynced());
        self.cloisters.retain(|_, own| {
            let written = own.chain.take_unsynced();
            let is_kept = written.is_some() || !own.is_over;
            unsynced.extend(written);
            is_kept
        });
        unsynced
    }

    fn mark_dirty(&mut self) {
        self.unified.mark_dirty();
        self.cloisters.values_mut().for_each(|own| own.chain.mark_dirty());
    }
}

impl AuditLog {
    /// Opens the log in `dir`, makes what is missing, and closes a torn last line.
    ///
    /// # Errors
    /// [`AuditError::Busy`] when another process writes the log; else what can't be opened, read or recovered.
    pub fn open(dir: &Path, per_cloister: bool) -> Result<Self, AuditError> {
        make_private_directory(dir)?;
        let lock = lock(dir)?;
        if per_cloister {
            make_private_directory(&dir.join(CLOISTERS_FOLDER))?;
        }
        let unified = Chain::open(unified_file(dir), None)?;
        Ok(Self {
            dir: dir.to_owned(),
            cloister_files: if per_cloister { CloisterFiles::Written } else { CloisterFiles::LeftOut },
            state: Mutex::new(State { unified, cloisters: HashMap::new() }),
            _lock: lock,
        })
    }

    /// Appends a record to the unified file, then to its cloister's; after an error nothing may flow.
    ///
    /// When the second write fails, the record stays in the unified file: what was written is never taken back.
    pub fn append(&self, mut record: Record) -> Result<(), AuditError> {
        let mut state = self.state()?;
        let time = Timestamp::now();
        state.unified.append(&mut record, time)?;
        let Some(name) =
            record.cloister_name().filter(|_| self.cloister_files == CloisterFiles::Written).cloned()
        else {
            return Ok(());
        };
        let own = match state.cloisters.entry(name) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(entry) => {
                let chain = Chain::open(cloister_file(&self.dir, entry.key()), Some(entry.key()))?;
                entry.insert(CloisterChain { chain, is_over: false })
            }
        };
        own.chain.append(&mut record, time)?;
        own.is_over = record.event() == Event::SandboxStop;
        Ok(())
    }

    /// Returns the number and hash of the unified file's last record.
    pub fn head(&self) -> Result<Head, AuditError> {
        Ok(self.state()?.unified.head())
    }

    /// Brings to disk what was written since the last call; appends go on meanwhile.
    ///
    /// All files are tried; the first error is returned, and the next call tries all again.
    pub fn sync(&self) -> Result<(), AuditError> {
        let unsynced = self.state()?.take_unsynced();
        let outcomes: Vec<_> = unsynced.iter().map(Unsynced::sync).collect();
        let outcome: Result<(), AuditError> = outcomes.into_iter().collect();
        if outcome.is_err() {
            self.state()?.mark_dirty();
        }
        outcome
    }

    fn state(&self) -> Result<MutexGuard<'_, State>, AuditError> {
        self.state.lock().map_err(|_| AuditError::Poisoned)
    }
}

fn lock(dir: &Path) -> Result<File, AuditError> {
    let path = dir.join("audit.lock");
    let failed = |source| AuditError::Open { path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(AuditError::Busy { dir: dir.to_owned() }),
        Err(error) => Err(failed(error.into())),
    }
}
