//! The bell of a session's terminal: somebody waits for an answer, and nobody looks.
//!
//! It rings between frames of output and never inside a sequence of the program's; nothing is ever drawn. Whatever
//! goes wrong here is no concern of the session.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use super::escape::Follower;
use super::raw;
use crate::guardian::client::{ClientError, Guardian};
use crate::name::CloisterName;
use crate::paths::Paths;

/// How long it is waited before a guardian that is away or stops is asked again: at first, and at most.
const PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_mins(2);
/// Other than every number, so that the present one is answered at once.
const UNKNOWN: u64 = u64::MAX;

/// What may ring, and when.
#[derive(Debug)]
pub(super) struct Bell {
    called: Arc<Notify>,
    follower: Follower,
    is_due: bool,
    calls: tokio::task::JoinHandle<()>,
}

impl Bell {
    /// Listens for calls of a cloister.
    pub(super) fn new(paths: Paths, cloister: CloisterName) -> Self {
        let called = Arc::new(Notify::new());
        let calls = tokio::spawn(listen(paths, cloister, Arc::clone(&called)));
        Self { called, follower: Follower::default(), is_due: false, calls }
    }

    /// Comes back when somebody has called.
    pub(super) async fn called(&self) {
        self.called.notified().await;
    }

    /// Rings, now or as soon as the program's output allows.
    pub(super) fn call(&mut self) {
        self.is_due = true;
        self.ring_if_due();
    }

    /// Takes what the program has written.
    pub(super) fn pass(&mut self, output: &[u8]) {
        self.follower.pass(output);
        self.ring_if_due();
    }

    fn ring_if_due(&mut self) {
        // One that can't ring now rings later.
        if self.is_due && self.follower.is_between() {
            self.is_due = !raw::ring();
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.calls.abort();
    }
}

/// What is known of the calls of a cloister.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heard(u64);

impl Heard {
    /// Takes the present number; tells whether somebody has called since the last.
    fn take(&mut self, number: u64) -> bool {
        let before = std::mem::replace(&mut self.0, number);
        // A new guardian counts anew: what it counts are calls, too.
        before != UNKNOWN && number != before && number > 0
    }
}

async fn listen(paths: Paths, cloister: CloisterName, called: Arc<Notify>) {
    let (mut pause, mut heard) = (PAUSE, Heard(UNKNOWN));
    loop {
        let answered = || pause = PAUSE;
        let Err(error) = hear(&paths, &cloister, &mut heard, answered, &called).await;
        tracing::debug!(%error, "nobody can call");
        sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

async fn hear(
    paths: &Paths,
    cloister: &CloisterName,
    heard: &mut Heard,
    mut answered: impl FnMut(),
    called: &Notify,
) -> Result<std::convert::Infallible, ClientError> {
    let guardian = Guardian::connect(paths).await?;
    loop {
        let number = guardian.calls(cloister, heard.0).await?;
        // It is there: when it is away next, it may only be replaced.
        answered();
        if heard.take(number) {
            called.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_after_the_first_look_is_a_call() {
        let mut heard = Heard(UNKNOWN);
        assert!(!heard.take(7));
        assert!(!heard.take(7));
        assert!(heard.take(8));
    }

    #[test]
    fn i9_a_guardian_that_took_over_counts_anew_and_is_heard() {
        let mut heard = Heard(8);
        assert!(!heard.take(0), "nobody has called it");
        assert!(heard.take(2));
        let mut heard = Heard(8);
        assert!(heard.take(1), "it was called before it was asked");
        assert!(!heard.take(1));
    }
}
