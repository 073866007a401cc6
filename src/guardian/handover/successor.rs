//! The guardian that took over, as the one before it sees it: it writes its records.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::CARRY_PATIENCE;
use super::messages::FromOld;
use super::wire::Wire;
use crate::audit::Record;
use crate::guardian::ledger::is_awaited;

/// Takes the records of this process.
pub(in crate::guardian) struct Successor {
    wire: Mutex<Wire>,
    next: AtomicU64,
    /// Who waits for an answer; `None` once there will be none any more.
    waiting: Mutex<Option<HashMap<u64, SyncSender<Option<String>>>>>,
}

impl Successor {
    pub(super) fn new(wire: Wire) -> Self {
        Self { wire: Mutex::new(wire), next: AtomicU64::new(0), waiting: Mutex::new(Some(HashMap::new())) }
    }

    /// Has a record written. What can't be sent, or is not answered, breaks the connection off: then all tunnels end.
    pub(in crate::guardian) fn append(&self, record: Record) -> io::Result<()> {
        let record = Box::new(record);
        if !is_awaited(record.event()) {
            return self.send(&FromOld::Record { number: None, record });
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = sync_channel(1);
        match self.waiting().as_mut() {
            Some(waiting) => drop(waiting.insert(number, sender)),
            None => return Err(gone()),
        }
        self.send(&FromOld::Record { number: Some(number), record })?;
        match answer.recv_timeout(CARRY_PATIENCE) {
            Ok(None) => Ok(()),
            Ok(Some(error)) => Err(io::Error::other(error)),
            Err(_) => {
                self.cut();
                Err(gone())
            }
        }
    }

    /// Says how many tunnels this process still carries.
    pub(super) fn carries(&self, tunnels: usize) -> io::Result<()> {
        self.send(&FromOld::Carries { tunnels })
    }

    /// Tells who waits what became of a record.
    pub(super) fn answered(&self, number: u64, error: Option<String>) {
        let sender = self.waiting().as_mut().and_then(|waiting| waiting.remove(&number));
        // Who has waited for too long is gone.
        let _ = sender.map(|sender| sender.send(error));
    }

    /// Tells all who wait that there will be no answer.
    pub(super) fn cut(&self) {
        self.waiting().take();
        self.wire.lock().unwrap_or_else(PoisonError::into_inner).cut();
    }

    fn send(&self, message: &FromOld) -> io::Result<()> {
        let sent = self.wire.lock().unwrap_or_else(PoisonError::into_inner).send(message);
        if sent.is_err() {
            self.cut();
        }
        sent
    }

    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, SyncSender<Option<String>>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the guardian that took over is gone")
}
