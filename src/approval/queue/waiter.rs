//! Those who wait for an answer: shown, counted, told how it ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::{End, Entry, Kind, Queue};
use crate::approval::Outcome;

/// How often it is told at most that another number waits: who waits costs nobody more than that (A6).
const COUNT_PAUSE: Duration = Duration::from_millis(50);

impl Queue {
    /// Tells how many wait, whenever that changes, but not more often than twenty times a second.
    pub async fn tell_counts(&self) {
        loop {
            self.counted.notified().await;
            self.touch();
            sleep(COUNT_PAUSE).await;
        }
    }

    /// Ends a request whose time is over, unless somebody is answering it.
    fn expire(&self, number: u64) {
        let mut state = self.lock();
        if state.pending.get(&number).is_some_and(|entry| !entry.is_claimed) {
            state.settle(number, Outcome::TimedOut, End::TimedOut);
            drop(state);
            self.touch();
        }
    }

    /// Takes one out who waited.
    fn leave(&self, number: u64, kind: Kind) {
        let mut state = self.lock();
        let Some(entry) = state.pending.get_mut(&number) else { return };
        *entry.waiting(kind) -= 1;
        if entry.connections + entry.polite > 0 || entry.is_claimed {
            self.counted.notify_one();
        } else if state.settle(number, Outcome::Withdrawn, End::TimedOut).is_some() {
            drop(state);
            self.touch();
        }
    }
}

/// One who waits for an answer; dropped, it waits no more.
#[derive(Debug)]
pub struct Waiter {
    queue: Arc<Queue>,
    number: u64,
    kind: Kind,
    deadline: Instant,
    end: watch::Receiver<Option<End>>,
}

impl Waiter {
    pub(super) fn new(queue: &Arc<Queue>, number: u64, kind: Kind, entry: &Entry) -> Self {
        let (queue, end) = (Arc::clone(queue), entry.end.subscribe());
        Self { queue, number, kind, deadline: entry.deadline, end }
    }

    /// Shows the request to those who answer.
    pub fn show(&self) {
        if let Some(entry) = self.queue.lock().pending.get_mut(&self.number) {
            entry.is_shown = true;
        }
        self.queue.touch();
    }

    /// Gives up a request that can't be shown; who joined it asks anew.
    pub fn discard(self) {
        self.queue.lock().settle(self.number, Outcome::Withdrawn, End::Judge(None));
    }

    /// Waits for the answer, or for the end of the time.
    pub async fn wait(mut self) -> End {
        tokio::select! {
            biased;
            end = ended_as(&mut self.end) => return end,
            () = sleep_until(self.deadline) => self.queue.expire(self.number),
        }
        // At once, unless somebody is answering.
        ended_as(&mut self.end).await
    }
}

async fn ended_as(end: &mut watch::Receiver<Option<End>>) -> End {
    // The sender goes only with an entry that was settled.
    let settled = end.wait_for(Option::is_some).await;
    settled.ok().and_then(|end| end.clone()).unwrap_or(End::TimedOut)
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.queue.leave(self.number, self.kind);
    }
}
