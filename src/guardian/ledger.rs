//! Where the guardian's records go: into the audit log that it owns, or to the guardian that took over from it.
//!
//! One process writes the log. While it changes hands, who has something to record waits: nothing flows unrecorded, and
//! nothing is refused because of a handover.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};

use super::handover::Successor;
use crate::audit::{AuditError, AuditLog, Event, Head, Lag, Noted, Record, Repeatable, unified_file};
use crate::paths::Paths;
use crate::proxy::Ticket;

/// How long a record waits for a log that changes hands; longer than a handover may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Opens the log of this user.
type Open = dyn Fn() -> Result<AuditLog, AuditError> + Send + Sync;

/// Takes every record of this process.
pub(super) struct Ledger {
    file: PathBuf,
    open: Box<Open>,
    state: RwLock<State>,
    /// How many logs were opened one after the other, and which of them could not be closed in order: at most so many
    /// of the first.
    opened: AtomicU64,
    broken: AtomicU64,
    /// Whether the log changes hands; those who wait are told when it has.
    is_moving: Mutex<bool>,
    moved: Condvar,
}

enum State {
    /// This process writes the log.
    Own(AuditLog),
    /// The log is closed, and belongs to whoever opens it.
    Closed,
    /// Another guardian writes it, and takes this one's records.
    Passed(Arc<Successor>),
}

impl Ledger {
    /// Opens the log.
    pub(super) fn open(
        paths: &Paths,
        open: impl Fn() -> Result<AuditLog, AuditError> + Send + Sync + 'static,
    ) -> Result<Self, AuditError> {
        let state = RwLock::new(State::Own(open()?));
        let file = unified_file(&paths.audit_dir());
        let (opened, broken) = (AtomicU64::new(1), AtomicU64::new(0));
        let (is_moving, moved) = (Mutex::new(false), Condvar::new());
        Ok(Self { file, open: Box::new(open), state, opened, broken, is_moving, moved })
    }

    /// Takes a record that is written when its ticket has been [settled](Self::settle).
    pub(super) fn enter(&self, record: Record) -> Result<Ticket, AuditError> {
        if let State::Own(log) = &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            let log_number = self.opened.load(Ordering::SeqCst);
            return log.enter(record).map(|record| Ticket { log: log_number, record });
        }
        self.append(record).map(|()| Ticket::default())
    }

    /// Makes sure that the record of a ticket is written.
    pub(super) fn settle(&self, ticket: Ticket) -> Result<(), AuditError> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Own(log) if ticket.log == self.opened.load(Ordering::SeqCst) => log.settle(ticket.record),
            // Without a log's number it was appended, and a log that was closed in order has written all.
            _ if ticket.log == 0 || ticket.log > self.broken.load(Ordering::SeqCst) => Ok(()),
            _ => Err(self.failed(std::io::ErrorKind::NotConnected.into())),
        }
    }

    /// Appends a record; after an error nothing may flow.
    pub(super) fn append(&self, record: Record) -> Result<(), AuditError> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Own(log) => return log.append(record),
            State::Passed(successor) => {
                let successor = Arc::clone(successor);
                drop(state);
                return blocking(|| successor.append(record)).map_err(|source| self.failed(source));
            }
            State::Closed => drop(state),
        }
        blocking(|| self.wait());
        self.reopen()?;
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Own(log) => log.append(record),
            State::Passed(successor) => successor.append(record).map_err(|source| self.failed(source)),
            State::Closed => Err(self.failed(std::io::ErrorKind::NotConnected.into())),
        }
    }

    /// Appends a record that may come in floods; see [`AuditLog::append_repeatable`].
    pub(super) fn append_repeatable(
        &self,
        what: Repeatable<'_>,
        record: impl Fn() -> Record,
    ) -> Result<Noted, AuditError> {
        if let State::Own(log) = &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            return log.append_repeatable(what, record);
        }
        self.append(record()).map(|()| Noted::Written)
    }

    /// Returns the number and hash of the last record.
    pub(super) fn head(&self) -> Result<Head, AuditError> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Own(log) => log.head(),
            State::Closed | State::Passed(_) => Err(self.failed(std::io::ErrorKind::NotConnected.into())),
        }
    }

    /// Brings to disk what was written; what another guardian writes is its own concern.
    pub(super) fn sync(&self) -> Result<(), AuditError> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Own(log) => log.sync(),
            State::Closed | State::Passed(_) => Ok(()),
        }
    }

    /// Tells how far the disk is behind what this process has written.
    pub(super) fn lag(&self) -> Result<Lag, AuditError> {
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Own(log) => log.lag(),
            State::Closed | State::Passed(_) => Ok(Lag::default()),
        }
    }

    /// Tells whether this process writes the log.
    pub(super) fn is_own(&self) -> bool {
        matches!(&*self.state.read().unwrap_or_else(PoisonError::into_inner), State::Own(_))
    }

    /// Tells whether another guardian writes the log, which has taken over from this one.
    pub(super) fn is_passed(&self) -> bool {
        matches!(&*self.state.read().unwrap_or_else(PoisonError::into_inner), State::Passed(_))
    }

    /// Closes the log for another guardian, and gives its head. Records wait until it [`passes`](Self::pass), or is
    /// [`taken back`](Self::take_back).
    pub(super) fn close(&self) -> Result<Head, AuditError> {
        let mut state = self.write();
        match std::mem::replace(&mut *state, State::Closed) {
            State::Own(log) => {
                let number = self.opened.load(Ordering::SeqCst);
                let head = log.close().inspect_err(|_| self.broken.store(number, Ordering::SeqCst))?;
                *self.is_moving.lock().unwrap_or_else(PoisonError::into_inner) = true;
                Ok(head)
            }
            other => {
                *state = other;
                Err(self.failed(std::io::ErrorKind::NotConnected.into()))
            }
        }
    }

    /// Opens the log again, because nobody took it. When that fails, every later record tries it again.
    pub(super) fn take_back(&self) {
        if let Err(error) = self.reopen() {
            tracing::error!(error = &error as &dyn std::error::Error, "the audit log can't be taken back");
        }
        self.end_move();
    }

    /// Sends all records to another guardian from now on.
    pub(super) fn pass(&self, successor: Arc<Successor>) {
        *self.write() = State::Passed(successor);
        self.end_move();
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn reopen(&self) -> Result<(), AuditError> {
        let mut state = self.write();
        if matches!(&*state, State::Closed) {
            *state = State::Own((self.open)()?);
            self.opened.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    fn wait(&self) {
        let is_moving = self.is_moving.lock().unwrap_or_else(PoisonError::into_inner);
        // Who waited for too long finds the log locked.
        drop(self.moved.wait_timeout_while(is_moving, PATIENCE, |is_moving| *is_moving));
    }

    fn end_move(&self) {
        *self.is_moving.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.moved.notify_all();
    }

    fn failed(&self, source: std::io::Error) -> AuditError {
        AuditError::Write { path: self.file.clone(), source }
    }
}

/// Waits for something while other tasks of this thread go on.
fn blocking<T>(wait: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
        _ => wait(),
    }
}

/// Tells whether somebody waits until a record is written: for the end of a tunnel nobody does.
pub(super) fn is_awaited(event: Event) -> bool {
    event != Event::ProxyClose
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    use super::*;
    use crate::audit::{Storage, verify};

    /// A ledger in a home of its own.
    fn ledger(home: &std::path::Path) -> Ledger {
        let home = OsString::from(home);
        let paths = Paths::from_environment(|name| (name == "HOME").then(|| home.clone())).unwrap();
        let directory = paths.audit_dir();
        fs::create_dir_all(&directory).unwrap();
        let storage = Storage { per_cloister: true, max_bytes: 1 << 20, max_files: 4 };
        Ledger::open(&paths, move || AuditLog::open(&directory, storage)).unwrap()
    }

    fn enter(ledger: &Ledger) -> Ticket {
        ledger.enter(Record::new(Event::ProxyAllow)).unwrap()
    }

    #[test]
    fn a7_what_was_entered_is_settled_when_the_log_was_closed_in_order() {
        let home = tempfile::tempdir().unwrap();
        let ledger = ledger(home.path());
        let ticket = enter(&ledger);
        let head = ledger.close().unwrap();
        ledger.settle(ticket).unwrap();
        assert_eq!(verify(&ledger.file, Some(head)).unwrap().records, 1);
        ledger.take_back();
        ledger.settle(ticket).unwrap();
        ledger.settle(enter(&ledger)).unwrap();
        assert_eq!(verify(&ledger.file, Some(ledger.head().unwrap())).unwrap().records, 2);
    }

    #[test]
    fn a7_what_was_entered_is_not_settled_when_a_log_could_not_be_closed() {
        let home = tempfile::tempdir().unwrap();
        let ledger = ledger(home.path());
        let mut lost = Vec::new();
        for _ in 0..2 {
            lost.push(enter(&ledger));
            OpenOptions::new().append(true).open(&ledger.file).unwrap().write_all(b"x\n").unwrap();
            assert!(matches!(ledger.close(), Err(AuditError::Changed { .. })));
            assert!(lost.iter().all(|ticket| ledger.settle(*ticket).is_err()));
            ledger.take_back();
            assert!(lost.iter().all(|ticket| ledger.settle(*ticket).is_err()));
        }
        ledger.settle(enter(&ledger)).unwrap();
    }
}
