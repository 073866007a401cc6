//! Calls as a whole, and what the tests of the parts share.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use jiff::Timestamp;

use super::*;
use crate::approval::{Answer, Breadth, Outcome, RequestId, Scope, Voice, Who};
use crate::policy::Effect;

/// A request of a connection that gives no name.
pub(super) fn pending(cloister: &str, authority: &str) -> Pending {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let created: Timestamp = "2026-11-22T20:00:00Z".parse().unwrap();
    Pending {
        id: RequestId::from_bytes(number.to_be_bytes()),
        cloister: cloister.parse().unwrap(),
        project: "demo".parse().unwrap(),
        branch: None,
        authority: authority.parse().unwrap(),
        voice: Voice::Connection { user_agent: None },
        created,
        expires: created + Duration::from_mins(1),
        left_ms: 60_000,
        waiting: 1,
        exact: authority.to_owned(),
        wildcard: None,
    }
}

pub(super) fn ways() -> Ways {
    Ways { desktop: true, ..Ways::default() }
}

pub(super) fn withdrawn(pending: &Pending) -> Settled {
    let Pending { id, cloister, project, authority, created, .. } = pending.clone();
    let outcome = Outcome::Withdrawn;
    Settled { id, cloister, project, authority, outcome, at: created, problem: None, can_undo: false }
}

pub(super) fn answered(pending: &Pending) -> Settled {
    let answer = Answer { effect: Effect::Deny, scope: Scope::Once, breadth: Breadth::Exact, reason: None };
    let outcome =
        Outcome::Answered { answer, pattern: pending.exact.clone(), who: Who::Page("1a2b".to_owned()) };
    Settled { outcome, ..withdrawn(pending) }
}

/// Waits until something holds that another task or program brings about.
pub(super) async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(std::time::Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Lets the tasks do what they can.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a6_what_comes_too_soon_is_called_for_when_its_time_has_come() {
    let caller = Caller::spawn(&Handle::current(), Bus::default());
    let (ways, first) = (ways(), pending("demo-main", "a.example:443"));
    let second = pending("demo-main", "b.example:443");
    caller.waiting(&first, &ways);
    settle().await;
    let end = Instant::now() + Duration::from_millis(first.left_ms) + book::SLACK;
    assert_eq!(caller.book().next(), Some(end));
    caller.waiting(&second, &ways);
    settle().await;
    assert_eq!(caller.book().next(), Some(Instant::now() + book::PAUSE));
    tokio::time::advance(book::PAUSE).await;
    settle().await;
    assert_eq!(caller.book().next(), Some(end));
    caller.waiting(&pending("demo-main", "a.example:443"), &ways);
    assert_eq!(caller.counts(), Counts { held_back: 1, ..Counts::default() });
}

#[tokio::test]
async fn the_program_is_run_for_a_new_request_and_told_the_page() {
    let directory = tempfile::tempdir().unwrap();
    let (seen, moved) = (directory.path().join("seen"), directory.path().join("moved"));
    let script = format!("cat > {0} && mv {0} {1}", seen.display(), moved.display());
    let command = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
    let page = Some("http://127.0.0.1:9999/".to_owned());
    let ways = Ways { desktop: false, command, page };
    let caller = Caller::spawn(&Handle::current(), Bus::default());
    let request = pending("demo-main", "a.example:443");
    // A thread of a sandbox knows no runtime.
    let (speaker, told) = (caller.clone(), request.clone());
    std::thread::spawn(move || speaker.waiting(&told, &ways)).join().unwrap();
    until("it ran", || caller.counts().command == Count { done: 1, failed: 0 }).await;
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(moved).unwrap()).unwrap();
    assert_eq!((&told["page"], &told["more"]), (&"http://127.0.0.1:9999/".into(), &0.into()));
    assert_eq!(told["authority"], "a.example:443");
    assert_eq!(caller.counts().desktop, Count::default());
    caller.settled(&withdrawn(&request), 0);
}

#[tokio::test(start_paused = true)]
async fn a6_the_bell_obeys_the_rules_of_all_calls_and_a_cloister_that_is_over_is_forgotten() {
    let caller = Caller::spawn(&Handle::current(), Bus::default());
    let (calls, silent) = (caller.calls(), Ways::default());
    let cloister: CloisterName = "demo-main".parse().unwrap();
    let number = || calls.borrow().get(&cloister).copied().unwrap_or_default();
    for name in 0..100 {
        caller.waiting(&pending("demo-main", &format!("h{name}.example:443")), &silent);
        settle().await;
    }
    assert_eq!(number(), 1);
    tokio::time::advance(book::PAUSE).await;
    settle().await;
    assert_eq!(number(), 2, "one call for all that came");
    let look = caller.look();
    caller.waiting(&pending("demo-main", "seen.example:443"), &silent);
    tokio::time::advance(book::PAUSE).await;
    settle().await;
    assert_eq!(number(), 2, "somebody looks");
    drop(look);
    settle().await;
    tokio::time::advance(book::GLANCE).await;
    settle().await;
    assert_eq!(number(), 3, "nobody looks any more");
    caller.forget(&cloister);
    assert_eq!(calls.borrow().len(), 0);
}
