//! A beat for those who look at a socket now and then: one timer for all of them, and none while nobody looks.
//!
//! A timer for each would be the earliest of the runtime again and again, and setting it would wake a sleeping worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

/// The time between two beats.
pub(in crate::proxy) const BEAT: Duration = Duration::from_millis(250);

/// Who waits for the next beat of one sandbox.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Beat {
    beats: Notify,
    waiting: AtomicUsize,
    is_beating: AtomicBool,
}

impl Beat {
    /// Waits for the next beat, which comes within [`BEAT`].
    pub(in crate::proxy) async fn next(self: &Arc<Self>) {
        // Before anything else: it hears every beat from here on.
        let beat = self.beats.notified();
        let _waiting = Waiting::new(&self.waiting);
        if !self.is_beating.swap(true, Ordering::SeqCst) {
            tokio::spawn(Arc::clone(self).run());
        }
        beat.await;
    }

    async fn run(self: Arc<Self>) {
        loop {
            sleep(BEAT).await;
            self.beats.notify_waiters();
            if self.waiting.load(Ordering::SeqCst) > 0 {
                continue;
            }
            self.is_beating.store(false, Ordering::SeqCst);
            // Who came in between has relied on this one, unless it began another.
            if self.waiting.load(Ordering::SeqCst) == 0 || self.is_beating.swap(true, Ordering::SeqCst) {
                return;
            }
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_beat_comes_as_long_as_somebody_waits_and_again_for_the_next() {
        let beat = Arc::new(Beat::default());
        let start = Instant::now();
        for _ in 0..3 {
            tokio::join!(beat.next(), beat.next());
        }
        assert_eq!(start.elapsed().as_millis(), 750);
        // Nobody waits: it stops, and starts anew.
        sleep(BEAT * 4).await;
        assert!(!beat.is_beating.load(Ordering::SeqCst));
        let start = Instant::now();
        beat.next().await;
        assert_eq!(start.elapsed(), BEAT);
    }
}
