//! Repeated events: written once, then counted, and summed up once a minute.
//!
//! The table is bounded: each reason of a cloister has [`MAX_SUBJECTS`] subjects a minute, so that a flood of one
//! reason hides no other; what goes beyond is counted by event and reason alone, with a few of the subjects. Time comes
//! from outside.

use std::collections::HashMap;
use std::fmt::{Display, Write};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::audit::{Event, Record};
use crate::name::CloisterName;

/// How long repetitions are counted before they are summed up.
const WINDOW: Duration = Duration::from_mins(1);
/// Bounds the subjects of one reason of a cloister that get a record of their own in one window.
const MAX_SUBJECTS: usize = 128;
/// Bounds the reasons of a cloister that have subjects; what has another one is counted together.
const MAX_REASONS: usize = 32;
/// Bounds the subjects that a summary of others names.
const MAX_SAMPLES: usize = 5;
/// Bounds such a subject, in bytes.
const MAX_SAMPLE_BYTES: usize = 100;

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
    /// Where subjects and reasons are put together, so that a repetition allocates nothing.
    key: Key,
}

/// Is an event's reason and subject as texts.
#[derive(Debug, Default)]
struct Key {
    reason: String,
    subject: String,
}

impl Key {
    fn set(&mut self, what: Repeatable<'_>) {
        self.reason.clear();
        self.subject.clear();
        let written = write!(self.reason, "{} {}", what.event, what.reason);
        let written = written.and_then(|()| match what.subject {
            Some(subject) => write!(self.subject, "{subject}"),
            None => Ok(()),
        });
        written.expect("a text takes whatever is written");
    }
}

#[derive(Debug)]
struct Window {
    end: Instant,
    /// By event and reason; the empty one has no subjects.
    reasons: HashMap<String, Reason>,
}

#[derive(Debug, Default)]
struct Reason {
    subjects: HashMap<String, Count>,
    others: Option<Others>,
}

/// Counts what goes beyond the budget.
#[derive(Debug)]
struct Others {
    count: Count,
    samples: Vec<String>,
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
        self.key.set(what);
        if let Some(window) = self.windows.get_mut(what.cloister) {
            return window.note(&self.key, record, now.time);
        }
        let end = now.instant + WINDOW;
        self.next = Some(self.next.map_or(end, |next| next.min(end)));
        let mut window = Window { end, reasons: HashMap::new() };
        let record = window.note(&self.key, record, now.time);
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
                    !window.reasons.is_empty()
                }
                (Ok(()), Scope::Of(_) | Scope::All) => false,
            }
        });
        self.next = self.windows.values().map(|window| window.end).min();
        outcome
    }
}

impl Window {
    fn note(&mut self, key: &Key, record: impl FnOnce() -> Record, now: Timestamp) -> Option<Record> {
        if let Some(reason) = self.reasons.get_mut(&key.reason) {
            return reason.note(&key.subject, record, now);
        }
        if self.reasons.len() < MAX_REASONS {
            return self.reasons.entry(key.reason.clone()).or_default().note(&key.subject, record, now);
        }
        self.reasons.entry(String::new()).or_default().count_other(&key.subject, record, now);
        None
    }

    fn summarise<E>(&mut self, write: &mut impl FnMut(Record) -> Result<(), E>) -> Result<(), E> {
        for reason in self.reasons.values_mut() {
            reason.summarise(write)?;
        }
        // What was repeated is counted on; what was not is written again when it comes again.
        self.reasons.retain(|_, reason| {
            reason.subjects.retain(|_, count| std::mem::take(&mut count.goes_on));
            !reason.subjects.is_empty()
        });
        Ok(())
    }
}

impl Reason {
    fn note(&mut self, subject: &str, record: impl FnOnce() -> Record, now: Timestamp) -> Option<Record> {
        if let Some(count) = self.subjects.get_mut(subject) {
            count.add(now);
            return None;
        }
        if self.subjects.len() < MAX_SUBJECTS {
            let record = record();
            self.subjects.insert(subject.to_owned(), Count::new(record.clone(), now));
            return Some(record);
        }
        self.count_other(subject, record, now);
        None
    }

    fn count_other(&mut self, subject: &str, record: impl FnOnce() -> Record, now: Timestamp) {
        let others = self.others.get_or_insert_with(|| Others {
            count: Count::new(record().of_others(), now),
            samples: Vec::new(),
        });
        others.count.add(now);
        let sample = &subject[..subject.floor_char_boundary(MAX_SAMPLE_BYTES)];
        if others.samples.len() < MAX_SAMPLES
            && !sample.is_empty()
            && !others.samples.iter().any(|one| one == sample)
        {
            others.samples.push(sample.to_owned());
        }
    }

    /// Writes the summaries; one that is written is not counted again when a later one fails.
    fn summarise<E>(&mut self, write: &mut impl FnMut(Record) -> Result<(), E>) -> Result<(), E> {
        for count in self.subjects.values_mut() {
            if let Some(summary) = count.summary() {
                write(summary)?;
                (count.left_out, count.goes_on) = (0, true);
            }
        }
        if let Some(summary) = self.others.as_ref().and_then(Others::summary) {
            write(summary)?;
        }
        self.others = None;
        Ok(())
    }
}

impl Others {
    fn summary(&self) -> Option<Record> {
        let summary = self.count.summary()?;
        if self.samples.is_empty() {
            return Some(summary);
        }
        Some(summary.detail(format_args!("other destinations, such as {}", self.samples.join(", "))))
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
        assert_eq!(floods.windows[&demo].reasons["proxy.deny not_allowed"].subjects.len(), MAX_SUBJECTS);
        assert!(
            deny(&mut floods, &cloister("other"), "h.test", &clock).is_some(),
            "each has a budget of its own"
        );
        clock.go(60);
        let others = Record::new(Event::ProxyDeny).cloister(&demo).reason("not_allowed").of_others();
        let others = others
            .detail("other destinations, such as h128.test, h129.test, h130.test, h131.test, h132.test");
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
        let window = &floods.windows[&demo];
        assert_eq!(window.reasons.len(), MAX_REASONS + 1);
        let counted = window.reasons[""].others.as_ref().unwrap().count.left_out;
        assert_eq!(counted, 10_000 - MAX_REASONS as u64);
    }

    #[test]
    fn a15_a_flood_of_one_reason_hides_no_denial_of_another() {
        let (mut floods, clock, demo) = (Floods::default(), Clock::new(), cloister("demo"));
        for number in 0..10 * MAX_SUBJECTS {
            deny(&mut floods, &demo, &format!("h{number}.test"), &clock);
        }
        for reason in ["address_forbidden", "sni_mismatch"] {
            let host = "target.test";
            let what = Repeatable { cloister: &demo, event: Event::ProxyDeny, reason, subject: Some(&host) };
            let record = || Record::new(Event::ProxyDeny).cloister(&demo).host(host).reason(reason);
            assert_eq!(floods.note(what, record, clock.0), Some(record()));
        }
    }

    #[test]
    fn a15_the_subjects_that_a_summary_names_are_few_and_short() {
        let (mut floods, clock, demo) = (Floods::default(), Clock::new(), cloister("demo"));
        for number in 0..2 * MAX_SUBJECTS {
            deny(&mut floods, &demo, &format!("{number:03}{}", "é".repeat(5000)), &clock);
        }
        let summaries = summaries(&mut floods, Scope::All);
        let line = serde_json::to_string(&summaries[0]).unwrap();
        assert_eq!(summaries.len(), 1);
        assert!(line.contains("such as 128é") && line.len() < 1000, "{line}");
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
