//! A bucket of requests with a burst, as the generic cell rate algorithm (ITU-T I.371): one number, no timer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::RateLimit;

/// How full a bucket is; every taker tells it the time and the rate that holds now.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// When it will be full again, in nanoseconds.
    full_again: AtomicU64,
}

impl Bucket {
    /// Takes one, or says how long it takes until there is one. A refused taker takes nothing.
    pub(super) fn take(&self, rate: RateLimit, now: Duration) -> Result<(), Duration> {
        let now = nanoseconds(now);
        let one = nanoseconds(Duration::from_mins(1)) / u64::from(rate.per_minute.max(1));
        let all = one.saturating_mul(u64::from(rate.burst.max(1)));
        let mut wait = 0;
        // What was taken at another rate is never a debt of more than one whole bucket.
        let debt = |full_again: u64| full_again.clamp(now, now.saturating_add(all));
        let _ = self.full_again.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_again| {
            let after = debt(full_again).saturating_add(one);
            wait = after.saturating_sub(now.saturating_add(all));
            Some(if wait == 0 { after } else { debt(full_again) })
        });
        if wait == 0 { Ok(()) } else { Err(Duration::from_nanos(wait)) }
    }

    /// Makes it full, for another rate.
    pub(super) fn fill(&self) {
        self.full_again.store(0, Ordering::Relaxed);
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    // 584 years of them fit.
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: RateLimit = RateLimit { per_minute: 60, burst: 3 };

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    /// How many can be taken at once.
    fn drain(bucket: &Bucket, rate: RateLimit, now: Duration) -> usize {
        (0..10_000).take_while(|_| bucket.take(rate, now).is_ok()).count()
    }

    #[test]
    fn h15_a_burst_and_then_the_rate() {
        let bucket = Bucket::default();
        assert_eq!(drain(&bucket, RATE, seconds(5)), 3);
        assert_eq!(bucket.take(RATE, seconds(5)), Err(seconds(1)));
        assert_eq!(bucket.take(RATE, seconds(5)), Err(seconds(1)), "a refusal takes nothing");
        assert_eq!(bucket.take(RATE, Duration::from_millis(5_400)), Err(Duration::from_millis(600)));
        assert_eq!(drain(&bucket, RATE, seconds(6)), 1);
        assert_eq!(drain(&bucket, RATE, seconds(8)), 2);
        assert_eq!(drain(&bucket, RATE, seconds(1_000)), 3, "silence saves up a burst, and no more");
    }

    #[test]
    fn h15_a_minute_holds_a_burst_and_the_rate_and_no_more() {
        for rate in [RATE, RateLimit::default(), RateLimit { per_minute: 7, burst: 1 }] {
            let bucket = Bucket::default();
            let taken =
                (0..60_000).filter(|now| bucket.take(rate, Duration::from_millis(*now)).is_ok()).count();
            let allowed = (rate.per_minute + rate.burst) as usize;
            assert!((allowed - 1..=allowed).contains(&taken), "{rate:?}: {taken}");
        }
    }

    #[test]
    fn h15_another_rate_holds_at_once() {
        let slow = RateLimit { per_minute: 1, burst: 600 };
        let bucket = Bucket::default();
        assert_eq!(drain(&bucket, slow, seconds(0)), 600);
        bucket.fill();
        assert_eq!(drain(&bucket, RATE, seconds(0)), 3);
        // A request that was on its way when the rate changed.
        assert_eq!(drain(&bucket, slow, seconds(0)), 599);
        // Ten hours of debt do not outlive the rate that made them.
        assert_eq!(bucket.take(RATE, seconds(0)), Err(seconds(1)));
        assert_eq!(drain(&bucket, RATE, seconds(3)), 3);
        // And a smaller bucket does not hand out what the larger one held.
        let bucket = Bucket::default();
        assert_eq!(drain(&bucket, RateLimit { per_minute: 60, burst: 1 }, seconds(0)), 1);
    }

    #[test]
    fn the_ends_of_the_range_do_not_overflow() {
        let fastest = RateLimit { per_minute: 6_000_000, burst: 1_000_000 };
        assert_eq!(drain(&Bucket::default(), fastest, Duration::MAX), 10_000);
        let slowest = RateLimit { per_minute: 1, burst: 1_000_000 };
        assert_eq!(drain(&Bucket::default(), slowest, seconds(0)), 10_000);
    }
}
