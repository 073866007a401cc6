//! Repeated events: written once, then counted, and summed up once a minute.
//!
//! The table is bounded: a cloister has [`MAX_SUBJECTS`] subjects a minute, and what goes beyond is counted by event
//! and reason alone. Time comes from outside.

use std::collections::HashMap;
use std::fmt::{Display, Write};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::audit::{Event, Record};
use crate::name::CloisterName;

/// How long repetitions are counted before they are summed up.
const WINDOW: Duration = Duration::from_mins(1);
/// Bounds the subjects of one cloister that get a record of their own in one window.
const MAX_SUBJECTS: usize = 128;
/// Bounds the reasons under which the others are counted.
const MAX_OTHERS: usize = 32;

/// Says what makes two events repetitions of each other.
#[derive(Clone, Copy)]
pub struct Repeatable<'a> {
    /// Whose they are.
    pub cloister: &'a CloisterName,
    /// What happened.
    pub event: Event,
    /// The stable code of the reason.
    pub reason: &'a str,
    /// What they are about, such as an authority.
    pub subject: Option<&'a dyn Display>,
}

/// Is one point in time by both clocks: the one that never jumps, and the one that people read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) instant: Instant,
    pub(super) time: Timestamp,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self { instant: Instant::now(), time: Timestamp::now() }
    }
}

/// Chooses what is summed up.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scope<'a> {
    /// The windows that are over by now; what was repeated in them is counted on.
    Over(Instant),
    /// All of a cloister that ends.
    Of(&'a CloisterName),
    /// All.
    All,
}

/// Counts repetitions.
#[derive(Debug, Default)]
pub(super) struct Floods {
    windows: HashMap<CloisterName, Window>,
    /// When the first window is over.
    next: Option<Instant>,
    /// Where keys are put together, so that a repetition allocates nothing.
    key: String,
}

#[derive(Debug)]
struct Window {
    end: Instant,
    subjects: HashMap<String, Count>,
    others: HashMap<String, Count>,
}

#[derive(Debug)]
struct Count {
    /// The record of the first one.
    record: Record,
    left_out: u64,
    from: Timestamp,
    to: Timestamp,
    /// Whether it was repeated in the window that is summed up.
    goes_on: bool,
}

impl Count {
    const fn new(record: Record, now: Timestamp) -> Self {
        Self { record, left_out: 0, from: now, to: now, goes_on: false }
    }

    fn add(&mut self, now: Timestamp) {
        if self.left_out == 0 {
            self.from = now;
        }
        self.left_out = self.left_out.saturating_add(1);
        self.to = now;
    }

    fn summary(&self) -> Option<Record> {
        (self.left_out > 0).then(|| self.record.clone().repeated(self.left_out, self.from, self.to))
    }
}

impl Floods {
    /// Gives the record when it has to be written; a repetition is counted instead.
    pub(super) fn note(
        &mut self,
        what: Repeatable<'_>,
        record: impl FnOnce() -> Record,
        now: Moment,
    ) -> Option<Record> {
        self.key.clear();
        let written = match what.subject {
            Some(subject) => write!(self.key, "{} {} {subject}", what.event, what.reason),
            None => write!(self.key, "{} {}", what.event, what.reason),
        };
        written.expect("a text takes whatever is written");
        if let Some(window) = self.windows.get_mut(what.cloister) {
            return window.note(&self.key, what, record, now.time);
        }
        let end = now.instant + WINDOW;
        self.next = Some(self.next.map_or(end, |next| next.min(end)));
        let mut window = Window { end, subjects: HashMap::new(), others: HashMap::new() };
        let record = window.note(&self.key, what, record, now.time);
        self.windows.insert(what.cloister.clone(), window);
        record
    }

    /// Tells when there is something to sum up.
    pub(super) const fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Writes the summaries; after an error, those that were not written are still there.
    pub(super) fn summarise<E>(
        &mut self,
        scope: Scope<'_>,
        mut write: impl FnMut(Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut outcome = Ok(());
        self.windows.retain(|name, window| {
            let is_chosen = match scope {
                Scope::Over(now) => window.end <= now,
                Scope::Of(cloister) => cloister == name,
                Scope::All => true,
            };
            if !is_chosen || outcome.is_err() {
                return true;
            }
            outcome = window.summarise(&mut write);
            match (&outcome, scope) {
                (Err(_), _) => true,
                (Ok(()), Scope::Over(now)) => {
                    window.end = now + WINDOW;
                    !window.subjects.is_empty()
                }
                (Ok(()), Scope::Of(_) | Scope::All) => false,
            }
        });
        self.next = self.windows.values().map(|window| window.end).min();
        outcome
    }
}

impl Window {
    fn note(
        &mut self,
        key: &str,
        what: Repeatable<'_>,
        record: impl FnOnce() -> Record,
        now: Timestamp,
    ) -> Option<Record> {
        if let Some(count) = self.subjects.get_mut(key) {
            count.add(now);
            return None;
        }
        if self.subjects.len() < MAX_SUBJECTS {
            let record = record();
            self.subjects.insert(key.to_owned(), Count::new(record.clone(), now));
            return Some(record);
        }
        let mut key = format!("{} {}", what.event, what.reason);
        if !self.others.contains_key(&key) && self.others.len() >= MAX_OTHERS {
            key.clear();
        }
        let others = self.others.entry(key);
        others.or_insert_with(|| Count::new(record().of_others(), now)).add(now);
        None
    }

    fn summarise<E>(&mut self, write: &mut impl FnMut(Record) -> Result<(), E>) -> Result<(), E> {
        for count in self.subjects.values_mut().chain(self.others.values_mut()) {
            if let Some(summary) = count.summary() {
                write(summary)?;
                // What was repeated is counted on; what was not is written again when it comes again.
                (count.left_out, count.goes_on) = (0, true);
            }
        }
        self.subjects.retain(|_, count| std::mem::take(&mut count.goes_on));
        self.others.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ProjectName;

    fn cloister(name: &str) -> CloisterName {
        CloisterName::of(&ProjectName::parse(name).unwrap(), None).unwrap()
    }

    struct Clock(Moment);

    impl Clock {
        fn new() -> Self {
            Self(Moment { instant: Instant::now(), time: Timestamp::UNIX_EPOCH })
        }

        fn go(&mut self, seconds: u64) {
            self.0.instant += Duration::from_secs(seconds);
            self.0.time += Duration::from_secs(seconds);
        }
    }

    fn deny(floods: &mut Floods, name: &CloisterName, host: &str, clock: &Clock) -> Option<Record> {
        let what = Repeatable {
            cloister: name,
            event: Event::ProxyDeny,
            reason: "not_allowed",
            subject: Some(&host),
        };
        let record = || Record::new(Event::ProxyDeny).cloister(name).host(host).reason("not_allowed");
        floods.note(what, record, clock.0)
    }

    fn summaries(floods: &mut Floods, scope: Scope<'_>) -> Vec<Record> {
        let mut written = Vec::new();
        let outcome: Result<(), ()> = floods.summarise(scope, |record| {
            written.push(record);
            Ok(())
        });
        outcome.unwrap();
        written
    }

    fn second(number: i64) -> Timestamp {
        Timestamp::from_second(number).unwrap()
    }

    #[test]
    fn a_repetition_is_counted_and_summed_up_after_a_minute() {
        let (mut floods, mut clock, demo) = (Floods::default(), Clock::new(), cloister("demo"));
        let first = deny(&mut floods, &demo, "a.test", &clock).unwrap();
        assert!(deny(&mut floods, &demo, "b.test", &clock).is_some(), "another host is no repetition");
        assert!(deny(&mut floods, &cloister("other"), "a.test", &clock).is_some(), "nor another cloister");
        for _ in 0..1000 {
            clock.go(0);
            assert_eq!(deny(&mut floods, &demo, "a.test", &clock), None);
        }
        clock.go(30);
        assert_eq!(deny(&mut floods, &demo, "a.test", &clock), None);
        assert_eq!(summaries(&mut floods, Scope::Over(clock.0.instant)), [], "the minute is not over");
        clock.go(30);
        assert_eq!(floods.next(), Some(clock.0.instant));
        let summary = first.repeated(1001, second(0), second(30));
        assert_eq!(summaries(&mut floods, Scope::Over(clock.0.instant)), [summary]);
    }

    #[test]
    fn a_flood_that_goes_on_gets_one_record_a_minute_and_is_forgotten_after_a_quiet_one() {
        let (mut floods, mut clock, demo) = (Floods::default(), Clock::new(), cloister("demo"));
        let first = deny(&mut floods, &demo, "a.test", &clock).unwrap();
        for minute in 0..5 {
            assert_eq!(deny(&mut floods, &demo, "a.test", &clock), None);
            clock.go(60);
            let summary = first.clone().repeated(1, second(minute * 60), second(minute * 60));
            assert_eq!(summaries(&mut floods, Scope::Over(clock.0.instant)), [summary]);
        }
        clock.go(60);
        assert_eq!(summaries(&mut floods, Scope::Over(clock.0.instant)), []);
        assert_eq!(floods.next(), None);
        assert!(floods.windows.is_empty());
        assert!(deny(&mut floods, &demo, "a.test", &clock).is_some());
    }

    #[test]
    fn a_million_hosts_leave_a_bounded_table_and_no_one_is_lost() {
        let (mut floods, mut clock, demo) = (Floods::default(), Clock::new(), cloister("demo"));
        let records = (0..1_000_000)
            .filter(|number| deny(&mut floods, &demo, &format!("h{number}.test"), &clock).is_some())
            .count();
        assert_eq!(records, MAX_SUBJECTS);
        assert_eq!(floods.windows[&demo].subjects.len(), MAX_SUBJECTS);
        assert!(
            deny(&mut floods, &cloister("other"), "h.test", &clock).is_some(),
            "each has a budget of its own"
        );
        clock.go(60);
        let others = Record::new(Event::ProxyDeny).cloister(&demo).reason("not_allowed").of_others();
        let others = others.repeated(1_000_000 - MAX_SUBJECTS as u64, second(0), second(0));
        assert_eq!(summaries(&mut floods, Scope::Over(clock.0.instant)), [others]);
        assert!(deny(&mut floods, &demo, "new.test", &clock).is_some(), "the next minute has a new budget");
    }

    #[test]
    fn the_reasons_of_the_others_are_bounded_too() {
        let (mut floods, clock, demo) = (Floods::default(), Clock::new(), cloister("demo"));
        for number in 0..10_000 {
            let reason = format!("reason_{number}");
            let what = Repeatable { cloister: &demo, event: Event::ProxyAsk, reason: &reason, subject: None };
            floods.note(what, || Record::new(Event::ProxyAsk).cloister(&demo).reason(&reason), clock.0);
        }
        assert_eq!(floods.windows[&demo].others.len(), MAX_OTHERS + 1);
        let counted: u64 = floods.windows[&demo].others.values().map(|count| count.left_out).sum();
        assert_eq!(counted, 10_000 - MAX_SUBJECTS as u64);
    }

    #[test]
    fn an_end_sums_up_at_once_and_an_error_loses_nothing() {
        let (mut floods, clock) = (Floods::default(), Clock::new());
        for name in ["one", "two"] {
            (0..3).for_each(|_| drop(deny(&mut floods, &cloister(name), "a.test", &clock)));
        }
        assert_eq!(floods.summarise(Scope::All, |_| Err("full")), Err("full"));
        let one = summaries(&mut floods, Scope::Of(&cloister("one")));
        assert_eq!(one.len(), 1);
        assert_eq!(one[0].cloister_name(), Some(&cloister("one")));
        assert_eq!(summaries(&mut floods, Scope::All).len(), 1);
        assert_eq!(summaries(&mut floods, Scope::All), []);
        assert_eq!(floods.next(), None);
    }
}
