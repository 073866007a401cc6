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

/// How long it is waited before a guardian that is away is asked again: at first, and at most.
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
        // A new guardian counts anew.
        before != UNKNOWN && number > before
    }
}

async fn listen(paths: Paths, cloister: CloisterName, called: Arc<Notify>) {
    let mut pause = PAUSE;
    loop {
        let mut heard = Heard(UNKNOWN);
        let Err(error) = hear(&paths, &cloister, &mut heard, &called).await;
        tracing::debug!(%error, "nobody can call");
        // It has been there: it may only have been replaced.
        pause = if heard.0 == UNKNOWN { (pause * 2).min(MAX_PAUSE) } else { PAUSE };
        sleep(pause).await;
    }
}

async fn hear(
    paths: &Paths,
    cloister: &CloisterName,
    heard: &mut Heard,
    called: &Notify,
) -> Result<std::convert::Infallible, ClientError> {
    let guardian = Guardian::connect(paths).await?;
    loop {
        let number = guardian.calls(cloister, heard.0).await?;
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
        assert!(!heard.take(0), "a guardian that was started anew");
        assert!(heard.take(2));
    }
}
