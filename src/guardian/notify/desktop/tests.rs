//! A bus that is not there, or hangs. One that works is real, in `tests/it/system/desktop.rs`.

use std::os::unix::net::UnixListener;
use std::path::Path;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::super::tests::{pending, until, ways, withdrawn};
use super::super::{Caller, Count};
use super::*;

/// A caller whose bus is at this path.
fn caller(socket: &Path) -> Caller {
    let address = format!("unix:path={}", socket.display());
    let bus =
        Bus::from_environment(|name| (name == "DBUS_SESSION_BUS_ADDRESS").then(|| address.clone().into()));
    Caller::spawn(&Handle::current(), bus)
}

#[tokio::test]
async fn without_a_bus_nothing_is_shown_and_nothing_failed() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus");
    let caller = caller(&socket);
    let request = pending("demo-main", "a.example:443");
    caller.waiting(&request, &ways());
    until("it was called", || {
        caller.0.wishes.lock().is_empty() && caller.book().due(Instant::now()).is_empty()
    })
    .await;
    caller.settled(&withdrawn(&request), 0);
    // A socket at which nobody listens any more is a failure.
    drop(UnixListener::bind(&socket).unwrap());
    caller.waiting(&pending("other-main", "a.example:443"), &ways());
    until("it failed", || caller.counts().desktop == Count { done: 0, failed: 1 }).await;
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_never_answers_holds_up_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus");
    let listener = UnixListener::bind(&socket).unwrap();
    let caller = caller(&socket);
    let begun = Instant::now();
    for number in 0..1000 {
        let request = pending(&format!("demo-b{}", number % 5), &format!("h{number}.example:443"));
        caller.waiting(&request, &ways());
    }
    assert_eq!(Instant::now(), begun);
    while caller.counts().desktop.failed < 5 {
        tokio::time::sleep(PATIENCE).await;
        assert!(caller.0.wishes.lock().len() <= 5);
    }
    assert_eq!(caller.counts().desktop, Count { done: 0, failed: 5 });
    drop(listener);
}

#[tokio::test]
async fn a_bus_that_talks_nonsense_is_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // It may be gone by then.
        let _ = std::io::Write::write_all(&mut stream, &[0xff; 4096]);
    });
    let caller = caller(&socket);
    caller.waiting(&pending("demo-main", "a.example:443"), &ways());
    until("it failed", || caller.counts().desktop == Count { done: 0, failed: 1 }).await;
    server.join().unwrap();
}

#[tokio::test]
async fn a_later_wish_takes_the_place_of_an_earlier_one() {
    let wishes = Wishes::default();
    let cloister = "demo-main".parse().unwrap();
    let note = |summary: &str| Note { summary: summary.to_owned(), body: String::new(), left_ms: 1 };
    wishes.show(&cloister, note("first"));
    wishes.show(&cloister, note("second"));
    assert!(matches!(wishes.take(), Some((_, Wish::Show(shown))) if shown.summary == "second"));
    wishes.show(&cloister, note("third"));
    wishes.close(&cloister);
    assert!(matches!(wishes.take(), Some((_, Wish::Close))));
    assert!(wishes.take().is_none());
}
