//! How often a cloister may do something (A6): begin a request, or ask for one politely. Some at once, and then one after
//! the other.

use std::time::Duration;

use tokio::time::Instant;

/// How many may begin at once, after a time of silence.
pub(super) const BURST: u32 = 120;
/// How long it takes until one more may begin.
const REFILL: Duration = Duration::from_secs(1);

/// What a cloister has left.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    /// Until when what was taken is not yet made good.
    owed_until: Option<Instant>,
}

impl Bucket {
    /// Takes one of the requests that may begin, or tells how long to wait for it.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.take_one_of(BURST, REFILL, now)
    }

    /// Takes one where so many may be taken at once and one more after every `refill`, or tells how long to wait for it.
    pub(crate) fn take_one_of(&mut self, burst: u32, refill: Duration, now: Instant) -> Result<(), Duration> {
        let owed_until = self.owed_until.filter(|until| *until > now).unwrap_or(now);
        let wait = (owed_until + refill).saturating_duration_since(now + refill * burst);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        self.owed_until = Some(owed_until + refill);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a6_a_burst_and_then_one_a_second() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        assert!((0..BURST).all(|_| bucket.take(start).is_ok()));
        assert_eq!(bucket.take(start), Err(REFILL));
        assert_eq!(bucket.take(start + REFILL / 2), Err(REFILL / 2));
        assert_eq!(bucket.take(start + REFILL), Ok(()));
        assert_eq!(bucket.take(start + REFILL), Err(REFILL));
        let later = start + REFILL * BURST * 3;
        assert!((0..BURST).all(|_| bucket.take(later).is_ok()));
        assert!(bucket.take(later).is_err());
    }
}
