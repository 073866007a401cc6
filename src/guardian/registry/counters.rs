//! What is counted of one sandbox, and how long the steps of all requests take: atomics, cheap enough for every one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::policy::Authority;
use crate::proxy::{Event, EventKind, Reason, Sample, Step, Traffic};

/// The upper bounds of the latencies that are told apart.
const BOUNDS: [Duration; 17] = [
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
];

/// The counters of one sandbox, since it was registered or the guardian started.
#[derive(Debug, Default)]
pub(super) struct Counters {
    allowed: AtomicU64,
    denied: AtomicU64,
    connections: AtomicUsize,
    traffic: Arc<Traffic>,
    /// Every refusal by its code, also those that are not in the audit log.
    refusals: Tally,
    /// Every end of what was allowed, by its code.
    ends: Tally,
    last_denial: Mutex<Option<Denial>>,
}

/// A denial, as it is shown.
#[derive(Debug, Clone)]
pub(super) struct Denial {
    pub(super) authority: Option<Authority>,
    pub(super) reason: &'static str,
    pub(super) at: Instant,
}

impl Counters {
    /// Counts an event.
    pub(super) fn count(&self, event: &Event<'_>) {
        match &event.kind {
            EventKind::Allowed { .. } => {
                self.allowed.fetch_add(1, Ordering::Relaxed);
            }
            EventKind::Denied { reason, .. } => {
                self.denied.fetch_add(1, Ordering::Relaxed);
                self.refusals.add(reason.code());
                let denial =
                    Denial { authority: event.authority.cloned(), reason: reason.code(), at: Instant::now() };
                *self.last_denial.lock().unwrap_or_else(PoisonError::into_inner) = Some(denial);
            }
            EventKind::Closed { reason, .. } => self.ends.add(reason.map_or("none", Reason::code)),
        }
    }

    /// Counts what no event tells; gives back what is measured for all sandboxes together.
    pub(super) fn measure(&self, sample: Sample) -> Option<(Step, Duration)> {
        match sample {
            Sample::Connected => {
                self.connections.fetch_add(1, Ordering::Relaxed);
            }
            Sample::Disconnected => {
                self.connections.fetch_sub(1, Ordering::Relaxed);
            }
            Sample::Refused(reason) => self.refusals.add(reason.code()),
            Sample::Took(step, took) => return Some((step, took)),
        }
        None
    }

    pub(super) fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }

    pub(super) fn allowed(&self) -> u64 {
        self.allowed.load(Ordering::Relaxed)
    }

    /// The denials that the audit log has.
    pub(super) fn denied(&self) -> u64 {
        self.denied.load(Ordering::Relaxed)
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Bytes up and down.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.traffic.up.load(Ordering::Relaxed), self.traffic.down.load(Ordering::Relaxed))
    }

    pub(super) fn refusals(&self) -> Vec<(&'static str, u64)> {
        self.refusals.counts()
    }

    pub(super) fn ends(&self) -> Vec<(&'static str, u64)> {
        self.ends.counts()
    }

    pub(super) fn last_denial(&self) -> Option<Denial> {
        self.last_denial.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Counts by a code of the program: never by what a sandbox says, so it stays small.
#[derive(Debug, Default)]
struct Tally(RwLock<BTreeMap<&'static str, AtomicU64>>);

impl Tally {
    fn add(&self, code: &'static str) {
        let counts = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get(code) {
            count.fetch_add(1, Ordering::Relaxed);
            return;
        }
        drop(counts);
        let mut counts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        counts.entry(code).or_default().fetch_add(1, Ordering::Relaxed);
    }

    fn counts(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.read().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(code, count)| (*code, count.load(Ordering::Relaxed))).collect()
    }
}

/// How long the steps of requests take, for all sandboxes together.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    resolve: Histogram,
    decide: Histogram,
    dial: Histogram,
    open: Histogram,
    refuse: Histogram,
}

impl Latencies {
    pub(super) fn add(&self, step: Step, took: Duration) {
        let histogram = match step {
            Step::Resolve => &self.resolve,
            Step::Decide => &self.decide,
            Step::Dial => &self.dial,
            Step::Open => &self.open,
            Step::Refuse => &self.refuse,
        };
        histogram.add(took);
    }

    /// Every step by its name.
    pub(super) fn read(&self) -> [(&'static str, Distribution); 5] {
        [
            ("dns", self.resolve.read()),
            ("decision", self.decide.read()),
            ("connect", self.dial.read()),
            ("open", self.open.read()),
            ("refusal", self.refuse.read()),
        ]
    }
}

/// Counts durations by [`BOUNDS`]; the last count is of those above all.
#[derive(Debug, Default)]
struct Histogram {
    counts: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

/// What a histogram holds at one time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Distribution {
    pub(super) seconds: f64,
    pub(super) count: u64,
    /// Upper bounds in seconds, and how many lie between each and the one before.
    pub(super) buckets: Vec<(f64, u64)>,
}

impl Histogram {
    fn add(&self, took: Duration) {
        let bucket = BOUNDS.partition_point(|bound| *bound < took);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    fn read(&self) -> Distribution {
        let bounds = BOUNDS.iter().map(Duration::as_secs_f64).chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        Distribution {
            seconds: Duration::from_micros(self.micros.load(Ordering::Relaxed)).as_secs_f64(),
            count: buckets.iter().map(|(_, count)| count).sum(),
            buckets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_at_the_first_bound_that_holds_it() {
        let histogram = Histogram::default();
        for took in [0, 50, 51, 31_000_000] {
            histogram.add(Duration::from_micros(took));
        }
        let read = histogram.read();
        assert_eq!((read.count, read.seconds), (4, 31.000_101));
        assert_eq!((read.buckets[0].1, read.buckets[1].1), (2, 1));
        assert_eq!(read.buckets.last(), Some(&(f64::INFINITY, 1)));
        assert!(BOUNDS.is_sorted());
    }

    #[test]
    fn refusals_without_an_event_are_counted_by_code() {
        let counters = Counters::default();
        for reason in [Reason::Overloaded, Reason::Overloaded, Reason::BadRequest] {
            assert_eq!(counters.measure(Sample::Refused(reason)), None);
        }
        assert_eq!(counters.refusals(), [("bad_request", 1), ("overloaded", 2)]);
        assert_eq!(counters.denied(), 0);
    }
}
