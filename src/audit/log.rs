//! The writer of the log.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;

pub use flood::Repeatable;
pub use lock::lock_file;
pub(super) use lock::{has_lock, is_written};
pub(super) use repair::WINDOW_BYTES;

use super::chain::{Chain, Rotation, Unsynced, Urgency, make_private_directory};
use super::entry::{FRONT_BYTES, time_text};
use super::{AuditError, CLOISTERS_FOLDER, Event, Head, Record, cloister_file, unified_file};
use crate::name::CloisterName;
use flood::{Floods, Moment, Scope};
use keeper::{FLUSH_DELAY, SYNC_DELAY};

mod flood;
mod keeper;
mod lock;
mod repair;

/// Bounds how much of the unified file may be ahead of the cloisters' own files.
const MAX_AHEAD_BYTES: usize = 512 * 1024;

/// Says how the log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    /// Whether every cloister gets a chain of its own besides the unified one.
    pub per_cloister: bool,
    /// How large a file grows before the next one is begun, in bytes.
    pub max_bytes: u64,
    /// How many full files are kept of each chain, at least 1.
    pub max_files: u32,
}

/// Tells what became of a record that may come in floods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// It was written.
    Written,
    /// It is a repetition, and was only counted.
    Counted,
}

/// How far the disk is behind what was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// How many records of the unified file are not known to be on disk.
    pub records: u64,
    /// How long the oldest of them waits.
    pub age: Duration,
}

/// Writes the log of all cloisters; one process holds it at a time.
///
/// A record stands in the unified file before [`append`](Self::append) returns, except for `proxy.close`, which tells
/// what is over: that one, and the copies in the cloisters' own files, follow within 100 ms, and within a second
/// everything is on disk. When something fails, nothing may flow; the next append tries again, so traffic comes back
/// when the disk has room again. Dropping the log writes all that is left.
#[derive(Debug)]
pub struct AuditLog {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
    /// Whether every cloister gets a chain of its own.
    per_cloister: bool,
    /// Holds the lock until the log is dropped.
    _lock: File,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug)]
struct State {
    dir: PathBuf,
    storage: Storage,
    unified: Chain,
    cloisters: HashMap<CloisterName, CloisterChain>,
    floods: Floods,
    /// How many bytes the unified file may be ahead of the cloisters' own files.
    ahead: usize,
    flush_due: Option<Instant>,
    sync_due: Option<Instant>,
    /// Whether what was done in the background failed, so that the next append has to do it.
    is_failing: bool,
    keeper_sleeps_until: Option<Instant>,
    is_ending: bool,
    on_disk: OnDisk,
}

/// What of the unified file is known to be on disk.
#[derive(Debug)]
struct OnDisk {
    seq: u64,
    /// Since when a record waits.
    waits_since: Option<Instant>,
}

/// Files that were written, and the last record in them.
struct Batch {
    files: Vec<Unsynced>,
    seq: u64,
    at: Instant,
}

#[derive(Debug)]
struct CloisterChain {
    chain: Chain,
    /// Whether the sandbox is gone, so that the file may be closed after the next sync.
    is_over: bool,
}

impl AuditLog {
    /// Opens the log in `dir`, makes what is missing, closes torn last lines, and gives the cloisters' own files what
    /// a crash kept from them.
    ///
    /// # Errors
    /// [`AuditError::Busy`] when another process writes the log; else what can't be opened, read or recovered.
    pub fn open(dir: &Path, storage: Storage) -> Result<Self, AuditError> {
        make_private_directory(dir)?;
        let lock = lock::lock(dir)?;
        if storage.per_cloister {
            make_private_directory(&dir.join(CLOISTERS_FOLDER))?;
        }
        let unified = Chain::open(&unified_file(dir), storage.rotation(), None)?;
        let mut state = State {
            dir: dir.to_owned(),
            storage,
            unified,
            cloisters: HashMap::new(),
            floods: Floods::default(),
            ahead: 0,
            flush_due: None,
            sync_due: None,
            is_failing: false,
            keeper_sleeps_until: None,
            is_ending: false,
            on_disk: OnDisk { seq: 0, waits_since: None },
        };
        state.repair()?;
        state.on_disk.seq = state.unified.head().seq;
        state.sync_due = state.unified.is_dirty().then(|| Instant::now() + SYNC_DELAY);
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new() });
        let keeper = keeper::spawn(Arc::clone(&shared))
            .map_err(|source| AuditError::Open { path: dir.to_owned(), source })?;
        Ok(Self { shared, keeper: Some(keeper), per_cloister: storage.per_cloister, _lock: lock })
    }

    /// Appends a record; after an error it is not in the log, and nothing may flow.
    ///
    /// A `proxy.close` is taken also while nothing can be written, for what it tells has happened: no more of them come
    /// then than there are open tunnels. Before the end of a cloister or of the guardian, the repetitions that were
    /// only counted are summed up.
    pub fn append(&self, record: Record) -> Result<(), AuditError> {
        let urgency = if record.event() == Event::ProxyClose { Urgency::Soon } else { Urgency::Now };
        self.add(record, urgency).map(|_| ())
    }

    /// Takes a record, which stands in the unified file when [`settle`](Self::settle) has been called with the number
    /// that is returned: what comes together is written together. Nothing may flow before. After an error it is not in
    /// the log.
    pub fn enter(&self, record: Record) -> Result<u64, AuditError> {
        self.add(record, Urgency::Grouped)
    }

    /// Writes the record with this number and all that came with it, unless they are written already. After an error
    /// nothing may flow, but the record stays entered: it is written when that is possible again.
    pub fn settle(&self, seq: u64) -> Result<(), AuditError> {
        let mut state = self.state()?;
        let outcome = state.unified.settle(seq);
        state.is_failing |= outcome.is_err();
        outcome
    }

    fn add(&self, mut record: Record, urgency: Urgency) -> Result<u64, AuditError> {
        record.mark_own_file(self.per_cloister);
        let shared = record.shared();
        let mut state = self.state()?;
        if urgency != Urgency::Soon {
            state.mend()?;
        }
        match (record.event(), record.cloister_name()) {
            (Event::GuardianStop, _) => {
                state.summarise(Scope::All)?;
                // A log that ends with it lacks no copy.
                state.flush_all()?;
            }
            (Event::SandboxStop | Event::TokenRevoke, Some(cloister)) => {
                state.summarise(Scope::Of(cloister))?;
            }
            _ => {}
        }
        let outcome = state.append(&record, &shared, urgency, Timestamp::now());
        self.wake(&state);
        outcome.map(|()| state.unified.head().seq)
    }

    /// Appends a record that may come in floods: a repetition within the same minute is counted, and a record with
    /// their number follows. A repetition costs no system call.
    pub fn append_repeatable(
        &self,
        what: Repeatable<'_>,
        record: impl Fn() -> Record,
    ) -> Result<Noted, AuditError> {
        let mut state = self.state()?;
        let now = Moment::now();
        let Some(mut written) = state.floods.note(what, &record, now) else { return Ok(Noted::Counted) };
        written.mark_own_file(self.per_cloister);
        let shared = written.shared();
        let outcome = state.mend().and_then(|()| state.append(&written, &shared, Urgency::Now, now.time));
        if outcome.is_err() {
            // It has no record now, so that it belongs into the summary.
            let _ = state.floods.note(what, record, now);
        }
        self.wake(&state);
        outcome.map(|()| Noted::Written)
    }

    /// Writes and syncs all that is left, and gives the head of the log that whoever opens it next will find.
    pub fn close(self) -> Result<Head, AuditError> {
        let mut state = self.state()?;
        state.mend()?;
        state.summarise(Scope::All)?;
        drop(state);
        self.sync()?;
        self.head()
    }

    /// Returns the number and hash of the unified file's last record.
    pub fn head(&self) -> Result<Head, AuditError> {
        Ok(self.state()?.unified.head())
    }

    /// Writes what waits in memory and brings all to disk; appends go on meanwhile.
    ///
    /// All files are tried; the first error is returned, and the next call tries all again.
    pub fn sync(&self) -> Result<(), AuditError> {
        let mut state = self.state()?;
        state.check_unchanged()?;
        state.flush(Instant::now())?;
        let unsynced = state.take_unsynced();
        drop(state);
        let outcome = keeper::sync_all(&unsynced.files);
        let mut state = self.state()?;
        match &outcome {
            Ok(()) => state.note_on_disk(&unsynced),
            Err(_) => state.mark_dirty(),
        }
        outcome
    }

    /// Tells how far the disk is behind.
    pub fn lag(&self) -> Result<Lag, AuditError> {
        let state = self.state()?;
        let records = state.unified.head().seq.saturating_sub(state.on_disk.seq);
        let age = state.on_disk.waits_since.map_or(Duration::ZERO, |since| since.elapsed());
        Ok(Lag { records, age })
    }

    /// Wakes the keeper when something has to be done before it would look.
    fn wake(&self, state: &State) {
        let Some(due) = state.next_due() else { return };
        if state.keeper_sleeps_until.is_none_or(|until| due < until) {
            self.shared.wake.notify_one();
        }
    }

    fn state(&self) -> Result<MutexGuard<'_, State>, AuditError> {
        self.shared.state.lock().map_err(|_| AuditError::Poisoned)
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        let Ok(mut state) = self.state() else { return };
        state.is_ending = true;
        let outcome =
            state.mend().and_then(|()| state.summarise(Scope::All)).and_then(|()| state.flush_all());
        if let Err(error) = outcome {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the end of the audit log is not written"
            );
        }
        drop(state);
        self.shared.wake.notify_one();
        if let Some(keeper) = self.keeper.take() {
            // What it had to do has been done.
            let _ = keeper.join();
        }
    }
}

impl State {
    /// Appends a record to the unified file, then to its cloister's. After an error it is in none of them; what fails
    /// when it is taken reaches the next one through [`mend`](Self::mend).
    fn append(
        &mut self,
        record: &Record,
        shared: &[u8],
        urgency: Urgency,
        time: Timestamp,
    ) -> Result<(), AuditError> {
        // Before anything is written: what can't be opened, or not be begun, leaves no record without its copy.
        let mut own = match record.cloister_name().filter(|_| self.storage.per_cloister) {
            Some(name) => Some(own_chain(&mut self.cloisters, &self.dir, self.storage, name)?),
            None => None,
        };
        if urgency != Urgency::Soon {
            make_room(&mut self.unified, own.as_deref_mut(), shared)?;
        } else if !self.is_failing {
            // A file may grow past its size while the next one can't be begun.
            self.is_failing = make_room(&mut self.unified, own.as_deref_mut(), shared).is_err();
        }
        let time = time_text(time);
        self.unified.append(shared, &time, urgency)?;
        self.ahead += FRONT_BYTES + shared.len();
        if let Some(own) = own {
            own.take(record.event(), shared, &time, self.unified.head().seq);
            if own.chain.is_full() && !self.is_failing {
                self.is_failing = write_own(&mut self.unified, own).is_err();
            }
        }
        if (self.ahead > MAX_AHEAD_BYTES || self.unified.is_full()) && !self.is_failing {
            // The next append says what failed.
            let _ = self.flush_all();
        }
        let now = Instant::now();
        self.flush_due.get_or_insert(now + FLUSH_DELAY);
        self.sync_due.get_or_insert(now + SYNC_DELAY);
        self.on_disk.waits_since.get_or_insert(now);
        Ok(())
    }

    /// Does what failed in the background, so that its error reaches the caller of an append.
    fn mend(&mut self) -> Result<(), AuditError> {
        if !self.is_failing {
            return Ok(());
        }
        self.flush_all()?;
        let unsynced = self.take_unsynced();
        keeper::sync_all(&unsynced.files).inspect_err(|_| self.mark_dirty())?;
        self.note_on_disk(&unsynced);
        self.is_failing = false;
        Ok(())
    }

    /// Sums up the minutes that are over, and writes what is pending.
    fn flush(&mut self, now: Instant) -> Result<(), AuditError> {
        if self.floods.next().is_some_and(|next| next <= now) {
            self.summarise(Scope::Over(now))?;
        }
        self.flush_all()
    }

    fn summarise(&mut self, scope: Scope<'_>) -> Result<(), AuditError> {
        let mut floods = std::mem::take(&mut self.floods);
        let outcome = floods.summarise(scope, |mut record| {
            record.mark_own_file(self.storage.per_cloister);
            self.append(&record, &record.shared(), Urgency::Now, Timestamp::now())
        });
        self.floods = floods;
        outcome
    }

    /// Writes what is pending, the copies only behind what they repeat; of these all are tried. The first error is given.
    fn flush_all(&mut self) -> Result<(), AuditError> {
        let mut owns = self.cloisters.values_mut().map(|own| &mut own.chain).filter(|own| own.is_pending());
        let copy = |()| owns.by_ref().map(Chain::flush).fold(Ok(()), Result::and);
        let outcome = self.unified.flush().and_then(copy);
        if outcome.is_ok() {
            self.ahead = 0;
            self.flush_due = None;
        }
        self.is_failing |= outcome.is_err();
        outcome
    }

    fn check_unchanged(&mut self) -> Result<(), AuditError> {
        let own = self.cloisters.values_mut().map(|own| &mut own.chain);
        std::iter::once(&mut self.unified).chain(own).try_for_each(Chain::check_unchanged)
    }

    /// Takes the files that were written, and closes those whose sandbox is gone.
    fn take_unsynced(&mut self) -> Batch {
        self.sync_due = None;
        let mut unsynced = Vec::from_iter(self.unified.take_unsynced());
        self.cloisters.retain(|_, own| {
            let written = own.chain.take_unsynced();
            let is_kept = written.is_some() || !own.is_over || own.chain.is_pending();
            unsynced.extend(written);
            is_kept
        });
        Batch { files: unsynced, seq: self.unified.head().seq, at: Instant::now() }
    }

    /// Remembers what was brought to disk.
    fn note_on_disk(&mut self, batch: &Batch) {
        if batch.files.is_empty() {
            // Another sync may be at what was written.
            return;
        }
        self.on_disk.seq = self.on_disk.seq.max(batch.seq);
        let is_whole = self.unified.head().seq == self.on_disk.seq;
        self.on_disk.waits_since = if is_whole { None } else { Some(batch.at) };
    }

    fn mark_dirty(&mut self) {
        self.is_failing = true;
        self.unified.mark_dirty();
        self.cloisters.values_mut().for_each(|own| own.chain.mark_dirty());
    }

    /// Remembers how a sync in the background went.
    fn note_sync(&mut self, batch: &Batch, synced: Result<(), AuditError>) {
        let Err(error) = synced else { return self.note_on_disk(batch) };
        tracing::error!(error = &error as &dyn std::error::Error, "the audit log is not on disk");
        self.mark_dirty();
        self.sync_due = Some(Instant::now() + SYNC_DELAY);
    }

    /// Remembers whether what was due failed, and when to try it again.
    fn note_failure(&mut self, has_failed: bool, again: Instant) {
        if has_failed {
            self.is_failing = true;
            self.flush_due = Some(again);
        }
    }

    /// Tells when the keeper has something to do. While the disk fails, the summaries wait with the rest.
    fn next_due(&self) -> Option<Instant> {
        if self.is_failing && self.flush_due.is_some() {
            return self.flush_due;
        }
        [self.flush_due, self.sync_due, self.floods.next()].into_iter().flatten().min()
    }
}

impl CloisterChain {
    /// Takes the copy of a record. Only what a living sandbox does opens its life again: a tunnel's end may come after
    /// the sandbox's.
    fn take(&mut self, event: Event, shared: &[u8], time: &str, unified: u64) {
        match event {
            Event::SandboxStop => self.is_over = true,
            Event::TokenIssue | Event::SandboxStart | Event::ProxyAllow => self.is_over = false,
            _ => {}
        }
        self.chain.take_own(shared, time, unified);
    }
}

/// Begins the next files of both chains where the record has no place in these.
fn make_room(unified: &mut Chain, own: Option<&mut CloisterChain>, shared: &[u8]) -> Result<(), AuditError> {
    unified.make_room(shared)?;
    match own {
        Some(own) if !own.chain.has_room(shared) => {
            write_own(unified, own)?;
            own.chain.make_room(shared)
        }
        _ => Ok(()),
    }
}

/// Writes a cloister's own file, and before it the records that it repeats: after a crash no copy is without them.
fn write_own(unified: &mut Chain, own: &mut CloisterChain) -> Result<(), AuditError> {
    unified.flush().and_then(|()| own.chain.flush())
}

/// Gives the open chain of a cloister's own file; one that is opened now is closed again after the next sync, unless
/// its sandbox turns out to live.
fn own_chain<'a>(
    cloisters: &'a mut HashMap<CloisterName, CloisterChain>,
    dir: &Path,
    storage: Storage,
    name: &CloisterName,
) -> Result<&'a mut CloisterChain, AuditError> {
    if !cloisters.contains_key(name) {
        let chain = Chain::open(&cloister_file(dir, name), storage.rotation(), Some(name.clone()))?;
        cloisters.insert(name.clone(), CloisterChain { chain, is_over: true });
    }
    Ok(cloisters.get_mut(name).expect("it is there by now"))
}

impl Storage {
    fn rotation(self) -> Rotation {
        Rotation { max_bytes: self.max_bytes, max_files: self.max_files.max(1) as usize }
    }
}
