//! How many requests a cloister may begin (A6): some at once, and then so many a minute.

use std::time::Duration;

use tokio::time::Instant;

/// How many may begin at once, after a time of silence.
pub(super) const BURST: u32 = 120;
/// How long it takes until one more may begin.
const REFILL: Duration = Duration::from_secs(1);

/// What a cloister has left.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// Until when what was taken is not yet made good.
    owed_until: Option<Instant>,
}

impl Bucket {
    /// Takes one, or tells how long to wait for it.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let owed_until = self.owed_until.filter(|until| *until > now).unwrap_or(now);
        let wait = (owed_until + REFILL).saturating_duration_since(now + REFILL * BURST);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        self.owed_until = Some(owed_until + REFILL);
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
