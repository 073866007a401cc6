//! The flood rules, with a clock in the test's hand.

use super::super::tests::{answered, pending, ways, withdrawn};
use super::*;

const START: Duration = Duration::from_hours(1);

/// What each due call says, as `cloister authority +more`, with `again` for one that only corrects.
fn told(book: &mut Book, now: Instant) -> Vec<String> {
    let calls = book.due(now).into_iter();
    calls
        .map(|call| {
            let Call { pending, more, is_new, .. } = call;
            let again = if is_new { "" } else { " again" };
            format!("{} {} +{more}{again}", pending.cloister, pending.authority)
        })
        .collect()
}

/// When the book calls next, as nobody ends what waits.
fn next_call(book: &Book) -> Option<Instant> {
    let first_end = book.cloisters.values().flat_map(|page| &page.waiting).map(Waiting::end).min();
    book.next().filter(|next| Some(*next) != first_end)
}

fn start() -> (Book, Instant) {
    (Book::default(), Instant::now() + START)
}

#[test]
fn a6_a_cloister_calls_once_in_ten_seconds_and_then_for_all_that_came() {
    let (mut book, now) = start();
    book.waiting(pending("demo-main", "a.example:443"), &ways(), now);
    assert_eq!(told(&mut book, now), ["demo-main a.example:443 +0"]);
    for host in ["b.example:443", "c.example:443", "d.example:80"] {
        book.waiting(pending("demo-main", host), &ways(), now + Duration::from_secs(1));
    }
    assert_eq!(next_call(&book), Some(now + PAUSE));
    assert_eq!(told(&mut book, now + PAUSE.saturating_sub(Duration::from_millis(1))), [] as [&str; 0]);
    assert_eq!(told(&mut book, now + PAUSE), ["demo-main d.example:80 +3"]);
    assert_eq!(next_call(&book), None);
    assert_eq!(told(&mut book, now + PAUSE * 3), [] as [&str; 0]);
}

#[test]
fn a6_cloisters_do_not_silence_each_other() {
    let (mut book, now) = start();
    book.waiting(pending("demo-main", "a.example:443"), &ways(), now);
    assert_eq!(told(&mut book, now).len(), 1);
    book.waiting(pending("other-main", "a.example:443"), &ways(), now);
    assert_eq!(told(&mut book, now), ["other-main a.example:443 +0"]);
}

#[test]
fn a6_an_authority_calls_once_in_ten_minutes() {
    let (mut book, mut now) = start();
    let first = pending("demo-main", "a.example:443");
    book.waiting(first.clone(), &ways(), now);
    assert_eq!(told(&mut book, now).len(), 1);
    assert!(book.settled(&withdrawn(&first), 0));
    now += MEMORY.saturating_sub(Duration::from_secs(1));
    let second = pending("demo-main", "a.example:443");
    book.waiting(second.clone(), &ways(), now);
    assert_eq!((told(&mut book, now), next_call(&book), book.held_back()), (vec![], None, 1));
    // Its notification is not there, so there is none to close.
    assert!(!book.settled(&withdrawn(&second), 0));
    // Another port is another authority.
    book.waiting(pending("demo-main", "a.example:80"), &ways(), now);
    assert_eq!(told(&mut book, now), ["demo-main a.example:80 +0"]);
    now += PAUSE;
    book.waiting(pending("demo-main", "a.example:443"), &ways(), now);
    assert_eq!(told(&mut book, now), ["demo-main a.example:443 +1"]);
}

#[test]
fn what_was_answered_may_call_again() {
    let (mut book, now) = start();
    let first = pending("demo-main", "a.example:443");
    book.waiting(first.clone(), &ways(), now);
    assert_eq!(told(&mut book, now).len(), 1);
    assert!(book.settled(&answered(&first), 0));
    book.waiting(pending("demo-main", "a.example:443"), &ways(), now);
    assert_eq!(told(&mut book, now), [] as [&str; 0]);
    assert_eq!(told(&mut book, now + PAUSE), ["demo-main a.example:443 +0"]);
}

#[test]
fn what_ends_before_its_turn_calls_nobody() {
    let (mut book, now) = start();
    let [first, second] = ["a.example:443", "b.example:443"].map(|host| pending("demo-main", host));
    book.waiting(first.clone(), &ways(), now);
    assert_eq!(told(&mut book, now).len(), 1);
    book.waiting(second.clone(), &ways(), now);
    assert!(!book.settled(&withdrawn(&second), 1));
    assert_eq!(next_call(&book), None);
    assert_eq!(told(&mut book, now + PAUSE), [] as [&str; 0]);
    assert!(book.settled(&withdrawn(&first), 0));
    assert!(!book.settled(&withdrawn(&first), 0));
}

#[test]
fn a_notification_that_names_what_is_over_is_corrected_without_a_new_call() {
    let (mut book, now) = start();
    let [first, second] = ["a.example:443", "b.example:443"].map(|host| pending("demo-main", host));
    book.waiting(first, &ways(), now);
    book.waiting(second.clone(), &ways(), now);
    assert_eq!(told(&mut book, now), ["demo-main b.example:443 +1"]);
    assert!(!book.settled(&answered(&second), 1));
    assert_eq!(next_call(&book), Some(now + PAUSE));
    assert_eq!(told(&mut book, now + PAUSE), ["demo-main a.example:443 +0 again"]);
    assert_eq!(next_call(&book), None);
}

#[test]
fn what_somebody_sees_calls_nobody() {
    let (mut book, now) = start();
    book.waiting(pending("demo-main", "a.example:443"), &ways(), now);
    assert_eq!(told(&mut book, now).len(), 1);
    book.waiting(pending("demo-main", "b.example:443"), &ways(), now);
    book.look();
    assert_eq!((next_call(&book), told(&mut book, now + PAUSE)), (None, vec![]));
    book.waiting(pending("demo-main", "c.example:443"), &ways(), now + PAUSE);
    assert_eq!((next_call(&book), told(&mut book, now + PAUSE * 2), book.held_back()), (None, vec![], 0));
}

#[test]
fn a6_what_waits_still_is_called_for_when_the_last_one_has_looked_away() {
    let (mut book, now) = start();
    let seen = pending("demo-main", "a.example:443");
    book.look();
    book.look();
    book.waiting(seen.clone(), &ways(), now);
    book.waiting(pending("demo-main", "b.example:443"), &ways(), now);
    book.look_away(now);
    assert_eq!((next_call(&book), told(&mut book, now + GLANCE)), (None, vec![]), "one looks still");
    book.look_away(now + PAUSE);
    // Whoever asks for the next change is back soon.
    assert_eq!(told(&mut book, now + PAUSE), [] as [&str; 0]);
    book.look();
    assert_eq!(told(&mut book, now + PAUSE + GLANCE), [] as [&str; 0]);
    book.settled(&withdrawn(&seen), 1);
    let gone = now + PAUSE * 2;
    book.look_away(gone);
    book.waiting(pending("demo-main", "c.example:443"), &ways(), gone);
    assert_eq!((book.next(), told(&mut book, gone)), (Some(gone + GLANCE), vec![]));
    assert_eq!(told(&mut book, gone + GLANCE), ["demo-main c.example:443 +1"]);
    assert_eq!((next_call(&book), told(&mut book, gone + GLANCE * 2)), (None, vec![]), "once");
}

#[test]
fn what_nobody_ends_is_over_when_its_time_is_up() {
    let (mut book, now) = start();
    let first = pending("demo-main", "a.example:443");
    // Its end was told before it was noted.
    assert!(!book.settled(&answered(&first), 0));
    book.waiting(first, &ways(), now);
    assert_eq!(told(&mut book, now).len(), 1);
    let end = now + Duration::from_mins(1) + SLACK;
    assert_eq!(book.next(), Some(end));
    assert_eq!(book.overdue(end.checked_sub(Duration::from_millis(1)).unwrap()), []);
    assert_eq!(book.overdue(end), ["demo-main".parse().unwrap()]);
    assert_eq!((book.overdue(end), book.next()), (vec![], None));
}

#[test]
fn the_time_that_passed_is_taken_off_and_the_newest_ways_count() {
    let (mut book, now) = start();
    let first = pending("demo-main", "a.example:443");
    book.waiting(first.clone(), &ways(), now);
    assert_eq!(told(&mut book, now).len(), 1);
    let second = pending("demo-main", "b.example:443");
    let silent = Ways::default();
    book.waiting(second.clone(), &silent, now + Duration::from_secs(4));
    let call = book.due(now + PAUSE).remove(0);
    assert_eq!((call.pending.left_ms, call.ways), (second.left_ms - 6000, silent));
}

#[test]
fn a6_a_flood_is_bounded() {
    let (mut book, mut now) = start();
    for number in 0..5000 {
        book.waiting(pending("demo-main", &format!("h{number}.example:443")), &ways(), now);
        // The same one twice is one.
        let known = book.cloisters.values().next().unwrap().waiting.last().unwrap().pending.clone();
        book.waiting(known, &ways(), now);
    }
    assert_eq!(told(&mut book, now), ["demo-main h255.example:443 +255"]);
    let mut calls = 0;
    for number in 0..3000 {
        now += Duration::from_secs(1);
        let request = pending("demo-main", &format!("i{number}.example:443"));
        book.settled(&withdrawn(&request), 0);
        book.waiting(request, &ways(), now);
        calls += told(&mut book, now).len();
        assert!(book.cloisters.values().all(|page| page.remembered.len() <= MAX_KEPT));
    }
    assert_eq!(calls, 300);
}

#[test]
fn nothing_is_kept_of_a_cloister_that_is_long_silent() {
    let (mut book, now) = start();
    let first = pending("demo-main", "a.example:443");
    book.waiting(first.clone(), &ways(), now);
    book.due(now);
    book.settled(&withdrawn(&first), 0);
    book.due(now + MEMORY);
    assert!(book.cloisters.is_empty());
}
