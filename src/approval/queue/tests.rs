use std::time::Duration;

use tokio::time::{advance, timeout};

use super::*;
use crate::approval::{Answer, Breadth, Scope, Who};
use crate::policy::{Origin, OriginKind, Pattern};

const PATIENCE: Duration = Duration::from_mins(1);

/// A queue whose requests are numbered one after the other.
struct Desk {
    queue: Arc<Queue>,
    next: std::cell::Cell<u64>,
}

impl Desk {
    fn new() -> Self {
        Self { queue: Arc::default(), next: std::cell::Cell::new(1) }
    }

    fn enter_as(&self, cloister: &str, authority: &str, voice: Voice) -> Result<Entered, Flood> {
        let number = self.next.replace(self.next.get() + 1);
        let entered = self.queue.enter(Asked {
            id: RequestId::from_bytes(number.to_be_bytes()),
            cloister: CloisterName::parse(cloister).unwrap(),
            project: ProjectName::parse("demo").unwrap(),
            branch: None,
            authority: Authority::parse(authority).unwrap(),
            voice,
            patience: PATIENCE,
        })?;
        if let Entered::First(waiter, _) = &entered {
            waiter.show();
        }
        Ok(entered)
    }

    fn enter(&self, cloister: &str, authority: &str) -> Waiter {
        match self.enter_as(cloister, authority, Voice::Connection { user_agent: None }).unwrap() {
            Entered::First(waiter, _) | Entered::Joined(waiter) => waiter,
            Entered::Granted(_) => panic!("it was granted before"),
        }
    }

    fn ask_politely(&self, authority: &str) -> Waiter {
        match self.enter_as("a", authority, Voice::Polite { reason: Some("docs".into()) }).unwrap() {
            Entered::First(waiter, _) | Entered::Joined(waiter) => waiter,
            Entered::Granted(_) => panic!("only a connection takes what was granted"),
        }
    }

    fn pending(&self) -> Vec<(String, usize)> {
        let pending = self.queue.snapshot().pending;
        pending.into_iter().map(|pending| (pending.authority.to_string(), pending.waiting)).collect()
    }

    fn only(&self) -> RequestId {
        self.queue.snapshot().pending[0].id.clone()
    }

    fn last(&self) -> Outcome {
        self.queue.snapshot().settled[0].outcome.clone()
    }
}

fn answered(effect: Effect) -> Outcome {
    let answer = Answer { effect, scope: Scope::Once, breadth: Breadth::Exact, reason: None };
    Outcome::Answered { answer, pattern: "a.test:443".into(), who: Who::Terminal(1000) }
}

fn kept() -> Kept {
    let pattern = Pattern::parse("a.test:443").unwrap();
    let decision =
        Decision { effect: Effect::Allow, pattern, at: None, who: None, cloister: None, reason: None };
    Kept { place: Some(Place::Global), decision }
}

fn grant() -> Arc<Rule> {
    Arc::new(Rule::allow(Pattern::parse("a.test:443").unwrap(), Origin::new(OriginKind::Session)))
}

#[tokio::test(start_paused = true)]
async fn row58_one_request_however_many_wait_and_one_answer_for_all() {
    let desk = Desk::new();
    let (one, two) = (desk.enter("a", "a.test:443"), desk.enter("a", "A.test.:443"));
    let other = desk.enter("b", "a.test:443");
    let port = desk.enter("a", "a.test:8443");
    let expected = [("a.test:8443", 1), ("a.test:443", 1), ("a.test:443", 2)];
    assert_eq!(desk.pending(), expected.map(|(authority, waiting)| (authority.to_owned(), waiting)));
    let first = desk.queue.snapshot().pending[2].id.clone();
    let claim = desk.queue.claim(&first).unwrap();
    assert_eq!((claim.pending().exact.as_str(), &claim.pending().wildcard), ("a.test:443", &None));
    claim.settle(answered(Effect::Allow), Some(&grant()), None, Some(kept())).unwrap();
    for waiter in [one, two] {
        assert!(matches!(waiter.wait().await, End::Judge(Some(rule)) if rule == grant()));
    }
    drop((other, port));
    assert_eq!(desk.pending(), []);
    assert_eq!(desk.queue.take_back(&first).unwrap().1, kept());
    assert_eq!(desk.queue.take_back(&first), None, "once");
    desk.queue.give_answer_back(&first);
    desk.queue.close(|own| *own == kept());
    assert_eq!(desk.queue.take_back(&first), None, "it is forgotten");
    // The next one asks anew.
    let _again = desk.enter("a", "a.test:443");
    assert_ne!(desk.only(), first);
}

#[tokio::test(start_paused = true)]
async fn row63_who_joins_late_waits_no_longer_than_the_first() {
    let desk = Desk::new();
    let first = desk.enter("a", "a.test:443");
    advance(PATIENCE / 2).await;
    let second = desk.enter("a", "a.test:443");
    assert_eq!(desk.queue.snapshot().pending[0].left_ms, 30_000);
    let both = async { (first.wait().await, second.wait().await) };
    let (one, two) = timeout(PATIENCE / 2 + Duration::from_millis(1), both).await.unwrap();
    assert!(matches!((one, two), (End::TimedOut, End::TimedOut)));
    assert_eq!((desk.pending(), desk.last()), (Vec::new(), Outcome::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn row64_a_request_is_withdrawn_with_the_last_who_waits() {
    let desk = Desk::new();
    let (one, two) = (desk.enter("a", "a.test:443"), desk.enter("a", "a.test:443"));
    drop(one);
    assert_eq!(desk.pending(), [("a.test:443".to_owned(), 1)]);
    drop(two);
    assert_eq!((desk.pending(), desk.last()), (Vec::new(), Outcome::Withdrawn));
}

#[tokio::test(start_paused = true)]
async fn row62_nobody_answers_twice_and_a_claim_that_fails_leaves_all_as_it_was() {
    let desk = Desk::new();
    let waiter = desk.enter("a", "a.test:443");
    let id = desk.only();
    let claim = desk.queue.claim(&id).unwrap();
    assert_eq!(desk.queue.claim(&id).unwrap_err(), Gone(None));
    drop(claim);
    let claim = desk.queue.claim(&id).unwrap();
    claim.settle(answered(Effect::Deny), None, Some("full".into()), None).unwrap();
    let gone = desk.queue.claim(&id).unwrap_err();
    assert_eq!(gone.to_string(), "no such request waits: it was answered already");
    assert_eq!(gone.0.unwrap().problem.as_deref(), Some("full"));
    assert!(matches!(waiter.wait().await, End::Judge(None)));
    let unknown = RequestId::parse("00000000000000ff").unwrap();
    assert_eq!(desk.queue.claim(&unknown).unwrap_err().to_string(), "no such request waits");
}

#[tokio::test(start_paused = true)]
async fn a_request_does_not_end_while_somebody_answers_it() {
    let desk = Desk::new();
    let late = tokio::spawn(desk.enter("a", "a.test:443").wait());
    let claim = desk.queue.claim(&desk.only()).unwrap();
    advance(2 * PATIENCE).await;
    tokio::task::yield_now().await;
    assert!(!late.is_finished());
    claim.settle(answered(Effect::Allow), Some(&grant()), None, None);
    assert!(matches!(late.await.unwrap(), End::Judge(Some(_))));
    // An answer that fails after all ends what is over by then.
    let late = tokio::spawn(desk.enter("a", "a.test:443").wait());
    let claim = desk.queue.claim(&desk.only()).unwrap();
    advance(2 * PATIENCE).await;
    drop(claim);
    assert!(matches!(late.await.unwrap(), End::TimedOut));
    let gone = desk.enter("a", "a.test:443");
    let claim = desk.queue.claim(&desk.only()).unwrap();
    drop(gone);
    assert_eq!(desk.pending().len(), 1);
    drop(claim);
    assert_eq!((desk.pending(), desk.last()), (Vec::new(), Outcome::Withdrawn));
}

#[tokio::test(start_paused = true)]
async fn what_rules_decide_meanwhile_is_asked_no_more() {
    let desk = Desk::new();
    let (ruled, asked) = (desk.enter("a", "a.test:443"), desk.enter("a", "b.test:443"));
    let other = desk.enter("b", "a.test:443");
    let cloister = CloisterName::parse("a").unwrap();
    desk.queue.revisit(&cloister, |authority| authority.to_string() != "a.test:443");
    assert!(matches!(ruled.wait().await, End::Judge(None)));
    assert_eq!(desk.pending().len(), 2);
    drop((asked, other));
}

#[tokio::test(start_paused = true)]
async fn a_polite_request_that_is_granted_once_lets_one_connection_pass_for_a_minute() {
    let connection = || Voice::Connection { user_agent: None };
    let desk = Desk::new();
    let settle = |waiter: Waiter| async {
        let claim = desk.queue.claim(&desk.only()).unwrap();
        claim.settle(answered(Effect::Allow), Some(&grant()), None, None);
        assert!(matches!(waiter.wait().await, End::Judge(Some(_))));
    };
    settle(desk.ask_politely("a.test:443")).await;
    let entered = desk.enter_as("b", "a.test:443", connection()).unwrap();
    assert!(matches!(entered, Entered::First(..)), "another cloister");
    let entered = desk.enter_as("a", "a.test:443", connection()).unwrap();
    assert!(matches!(entered, Entered::Granted(rule) if rule == grant()));
    assert!(matches!(desk.enter_as("a", "a.test:443", connection()).unwrap(), Entered::First(..)), "once");
    settle(desk.ask_politely("a.test:443")).await;
    advance(AHEAD).await;
    assert!(matches!(desk.enter_as("a", "a.test:443", connection()).unwrap(), Entered::First(..)), "late");
    // A connection that waits has its own, and who asked politely has the next one.
    let (polite, held) = (desk.ask_politely("a.test:443"), desk.enter("a", "a.test:443"));
    settle(polite).await;
    assert!(matches!(held.wait().await, End::Judge(Some(_))));
    assert!(matches!(desk.enter_as("a", "a.test:443", connection()).unwrap(), Entered::Granted(_)));
    settle(desk.ask_politely("a.test:443")).await;
    desk.queue.forget(&CloisterName::parse("a").unwrap());
    let entered = desk.enter_as("a", "a.test:443", connection()).unwrap();
    assert!(matches!(entered, Entered::First(..)), "invariant 10: another cloister may have the name");
}

#[tokio::test(start_paused = true)]
async fn a6_a_flood_is_bounded_by_cloister() {
    let desk = Desk::new();
    let mut waiting: Vec<Waiter> =
        (0..MAX_PENDING).map(|host| desk.enter("a", &format!("h{host}.test:443"))).collect();
    let one_more = |cloister| desk.enter_as(cloister, "more.test:443", Voice::Polite { reason: None });
    assert_eq!(one_more("a").unwrap_err(), Flood { wait: CROWDED });
    // What waits can be joined, and others are not concerned.
    waiting.push(desk.enter("a", "h0.test:443"));
    waiting.push(desk.enter("b", "h0.test:443"));
    drop(waiting);
    assert_eq!(desk.queue.count(&CloisterName::parse("a").unwrap()), 0);
    // Coming and going is bounded, too.
    let mut refused = None;
    for host in 0..MAX_PENDING {
        match desk.enter_as("a", &format!("g{host}.test:443"), Voice::Polite { reason: None }) {
            Ok(_) => {}
            Err(flood) => refused = refused.or(Some(flood.wait)),
        }
    }
    assert_eq!(refused, Some(Duration::from_secs(1)));
    assert_eq!(desk.queue.snapshot().settled.len(), MAX_OTHERS);
    advance(Duration::from_secs(1)).await;
    assert!(one_more("a").is_ok());
}

#[tokio::test(start_paused = true)]
async fn a6_coming_and_going_pushes_no_answer_out() {
    let desk = Desk::new();
    let _waiter = desk.enter("a", "a.test:443");
    let id = desk.only();
    desk.queue.claim(&id).unwrap().settle(answered(Effect::Deny), None, None, Some(kept()));
    for host in 0..MAX_PENDING {
        drop(desk.enter("b", &format!("h{host}.test:443")));
    }
    assert!(desk.queue.take_back(&id).is_some());
    assert_eq!(desk.queue.snapshot().settled.len(), 1 + MAX_OTHERS);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_requests_wait_and_end() {
    let desk = Desk::new();
    let waiting: Vec<Waiter> = (0..100)
        .flat_map(|cloister| (0..100).map(move |host| (format!("c{cloister}"), format!("h{host}.test:443"))))
        .map(|(cloister, authority)| desk.enter(&cloister, &authority))
        .collect();
    assert_eq!(desk.queue.snapshot().pending.len(), 10_000);
    let ends = waiting.into_iter().map(|waiter| tokio::spawn(waiter.wait()));
    for end in ends.collect::<Vec<_>>() {
        assert!(matches!(end.await.unwrap(), End::TimedOut));
    }
    let snapshot = desk.queue.snapshot();
    assert_eq!((snapshot.pending.len(), snapshot.settled.len()), (0, MAX_OTHERS));
}

#[tokio::test(start_paused = true)]
async fn every_change_has_a_version_of_its_own() {
    let desk = Desk::new();
    let mut changes = desk.queue.changes();
    changes.mark_unchanged();
    let mut versions = vec![desk.queue.snapshot().version];
    let waiter = desk.enter("a", "a.test:443");
    assert!(changes.has_changed().unwrap());
    versions.push(desk.queue.snapshot().version);
    drop(waiter);
    versions.push(desk.queue.snapshot().version);
    assert!(versions.is_sorted_by(|earlier, later| earlier < later), "{versions:?}");
}

#[tokio::test(start_paused = true)]
async fn nobody_sees_a_request_before_it_is_shown_and_who_joined_one_that_never_is_asks_anew() {
    let queue = Arc::<Queue>::default();
    let asked = || Asked {
        id: RequestId::from_bytes([7; 8]),
        cloister: CloisterName::parse("a").unwrap(),
        project: ProjectName::parse("demo").unwrap(),
        branch: None,
        authority: Authority::parse("a.test:443").unwrap(),
        voice: Voice::Connection { user_agent: None },
        patience: PATIENCE,
    };
    let enter = || match queue.enter(asked()).unwrap() {
        Entered::First(waiter, _) => (waiter, true),
        Entered::Joined(waiter) => (waiter, false),
        Entered::Granted(_) => panic!("nobody granted it"),
    };
    let mut changes = queue.changes();
    changes.mark_unchanged();
    let ((first, true), (joined, false)) = (enter(), enter()) else { panic!("the second one joins") };
    let is_seen = || queue.snapshot().pending.len() == 1;
    assert!(!is_seen() && !changes.has_changed().unwrap());
    first.discard();
    assert!(matches!(joined.wait().await, End::Judge(None)));
    assert!(!changes.has_changed().unwrap() && queue.snapshot().settled.is_empty());
    let (again, is_first) = enter();
    again.show();
    assert!(is_first && is_seen() && changes.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a6_a_crowd_that_joins_and_leaves_wakes_nobody_more_than_twenty_times_a_second() {
    let desk = Desk::new();
    let queue = Arc::clone(&desk.queue);
    tokio::spawn(async move { queue.tell_counts().await });
    let _first = desk.enter("a", "a.test:443");
    let (before, mut last) = (desk.queue.snapshot().version, None);
    for _ in 0..1000 {
        for _ in 0..10 {
            last = Some(desk.enter("a", "a.test:443"));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!((1..=21).contains(&(desk.queue.snapshot().version - before)));
    let version = desk.queue.snapshot().version;
    drop(last);
    tokio::time::sleep(Duration::from_millis(51)).await;
    assert!(desk.queue.snapshot().version > version, "the last one is told, too");
}
