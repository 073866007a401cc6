//! Calling the user when a request waits and nobody looks: a desktop notification and a program of theirs.
//!
//! A call only tells: it has no buttons, and nothing that it reaches can answer (A5). Who reports a request to a
//! [`Caller`] is never held up: what it says is noted under a lock, and tasks of their own do the rest, each with a
//! bound on what it keeps and on the time it takes. How often somebody is called is the business of `book`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::approval::{Pending, Settled};
use crate::name::CloisterName;
use book::{Book, Call};
use command::Commands;
use desktop::Wishes;

pub use bus::Bus;

mod book;
mod bus;
mod command;
mod desktop;
mod text;

/// How the user wants to be called; taken anew with every request, so that changed settings count at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ways {
    /// Whether by a notification on the desktop.
    pub desktop: bool,
    /// The program that is run, with its arguments; none where this is empty.
    pub command: Vec<String>,
    /// Where the page is, if there is one. It is shown, so it must hold no login.
    pub page: Option<String>,
}

/// How often one way of calling worked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Calls that got through.
    pub done: u64,
    /// Calls that did not.
    pub failed: u64,
}

/// What the calls came to since the guardian started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Notifications on the desktop.
    pub desktop: Count,
    /// Runs of the user's program.
    pub command: Count,
    /// Requests that called nobody, as their cloister had called for the same a short while ago (A6).
    pub held_back: u64,
}

/// Calls the user. Copies speak for the same one.
#[derive(Debug, Clone)]
pub struct Caller(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    book: Mutex<Book>,
    /// Something was written into the book.
    written: Notify,
    wishes: Arc<Wishes>,
    commands: Commands,
    /// How often each cloister has called, for those who ring a bell.
    calls: watch::Sender<BTreeMap<CloisterName, u64>>,
}

/// Somebody looks as long as it lives.
#[derive(Debug)]
pub struct Look(Caller);

impl Drop for Look {
    fn drop(&mut self) {
        self.0.book().look_away(Instant::now());
        self.0.0.written.notify_one();
    }
}

impl Caller {
    /// Starts the tasks that call; they end with the runtime.
    pub fn spawn(runtime: &Handle, bus: Bus) -> Self {
        let wishes = Arc::new(Wishes::default());
        runtime.spawn(desktop::run(bus, Arc::clone(&wishes)));
        let shared = Shared {
            book: Mutex::default(),
            written: Notify::new(),
            wishes,
            commands: Commands::on(runtime.clone()),
            calls: watch::Sender::default(),
        };
        let caller = Self(Arc::new(shared));
        runtime.spawn(caller.clone().run());
        caller
    }

    /// Tells that a request waits.
    pub fn waiting(&self, pending: &Pending, ways: &Ways) {
        self.book().waiting(pending.clone(), ways, Instant::now());
        self.0.written.notify_one();
    }

    /// Tells that a request has ended, and how many of its cloister wait still.
    pub fn settled(&self, settled: &Settled, still_waiting: usize) {
        let close = self.book().settled(settled, still_waiting);
        if close {
            self.0.wishes.close(&settled.cloister);
        }
        self.0.written.notify_one();
    }

    /// Counts one who looks: what waits calls nobody meanwhile, and shortly after.
    pub fn look(&self) -> Look {
        self.book().look();
        Look(self.clone())
    }

    /// How often each cloister has called, and when that changes.
    pub fn calls(&self) -> watch::Receiver<BTreeMap<CloisterName, u64>> {
        self.0.calls.subscribe()
    }

    /// Forgets how often a cloister that is over has called.
    pub fn forget(&self, cloister: &CloisterName) {
        self.0.calls.send_if_modified(|calls| calls.remove(cloister).is_some());
    }

    /// Tells what the calls came to.
    pub fn counts(&self) -> Counts {
        Counts {
            desktop: self.0.wishes.tally.read(),
            command: self.0.commands.tally().read(),
            held_back: self.book().held_back(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes every call when it is due.
    async fn run(self) {
        loop {
            let now = Instant::now();
            let (over, due, next) = {
                let mut book = self.book();
                (book.overdue(now), book.due(now), book.next())
            };
            for cloister in over {
                self.0.wishes.close(&cloister);
            }
            for call in due {
                self.make(call);
            }
            let written = self.0.written.notified();
            match next {
                None => written.await,
                Some(next) => tokio::select! {
                    () = written => {}
                    () = sleep_until(next) => {}
                },
            }
        }
    }

    fn make(&self, call: Call) {
        if call.is_new {
            let cloister = call.pending.cloister.clone();
            self.0.calls.send_modify(|calls| *calls.entry(cloister).or_default() += 1);
        }
        if call.ways.desktop {
            self.0.wishes.show(&call.pending.cloister, text::note(&call));
        }
        if call.is_new && !call.ways.command.is_empty() {
            let input = text::input(&call);
            self.0.commands.start(call.ways.command, input);
        }
    }
}

/// Counts of one way, to be written from anywhere.
#[derive(Debug, Default)]
struct Tally {
    done: AtomicU64,
    failed: AtomicU64,
}

impl Tally {
    fn done(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Count {
        Count { done: self.done.load(Ordering::Relaxed), failed: self.failed.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests;
