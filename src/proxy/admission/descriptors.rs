//! The descriptors of this process, shared out between the sandboxes (H15): all of them together leave enough for the
//! control socket, the audit log, the DNS and the watchers, and none of them takes what another one's first
//! connections need.

use std::error::Error;
use std::io;
use std::iter::successors;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// What one connection may need: a socket to the client, and one to the upstream.
const EACH: usize = 2;
/// What is kept for everything but connections: a part of the whole, within these bounds.
const RESERVE_PART: usize = 32;
const MIN_RESERVE: usize = 48;
const MAX_RESERVE: usize = 512;
/// What every sandbox needs besides: its listener, a spare one, its audit file, its guards.
const RESERVE_PER_SANDBOX: usize = 8;
/// The first connections of a sandbox: who has them already leaves those of all others alone, also of the next one
/// that starts.
const FIRST: usize = 8;
/// What is left alone at most: so much, or a part of the whole where that is more, and never more than half.
const MAX_LEFT_ALONE: usize = 64;
const LEFT_ALONE_PART: usize = 64;

/// How many connections all sandboxes together may have.
#[derive(Debug)]
pub struct Descriptors {
    limit: usize,
    sandboxes: AtomicUsize,
    /// In connections.
    used: AtomicUsize,
}

impl Descriptors {
    /// Shares out what the system allows this process now.
    pub fn of_this_process() -> Self {
        let limit = getrlimit(Resource::Nofile).current;
        Self::new(limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX))
    }

    /// Shares out so many descriptors.
    pub fn new(limit: usize) -> Self {
        Self { limit, sandboxes: AtomicUsize::new(0), used: AtomicUsize::new(0) }
    }

    fn capacity(&self, sandboxes: usize) -> usize {
        let reserve = (self.limit / RESERVE_PART).clamp(MIN_RESERVE, MAX_RESERVE);
        self.limit.saturating_sub(reserve + RESERVE_PER_SANDBOX * sandboxes) / EACH
    }

    /// Counts one more sandbox, until the value is dropped.
    pub(in crate::proxy) fn join(self: &Arc<Self>) -> Share {
        self.sandboxes.fetch_add(1, Ordering::Relaxed);
        Share(Arc::clone(self))
    }

    /// Takes what one connection needs, for a sandbox that holds `own` of them; says whether there was enough.
    pub(super) fn take(&self, own: usize) -> bool {
        let sandboxes = self.sandboxes.load(Ordering::Relaxed);
        let capacity = self.capacity(sandboxes);
        let left_alone =
            (FIRST * sandboxes.max(1)).min(MAX_LEFT_ALONE.max(capacity / LEFT_ALONE_PART)).min(capacity / 2);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            let free = capacity.saturating_sub(used);
            (free > 0 && (own < FIRST || free > left_alone)).then_some(used + 1)
        });
        taken.is_ok()
    }

    /// Gives back what was taken.
    pub(super) fn give_back(&self) {
        self.used.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The proof that a sandbox is counted.
pub(in crate::proxy) struct Share(Arc<Descriptors>);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.sandboxes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether this machine or process had no descriptor or memory left for what failed; the destination is not to blame.
pub(in crate::proxy) fn ran_out(error: &(dyn Error + 'static)) -> bool {
    successors(Some(error), |&error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>().and_then(Errno::from_io_error))
        .any(|errno| matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes for one sandbox until there is nothing more for it.
    fn drain(descriptors: &Descriptors) -> usize {
        let mut own = 0;
        while descriptors.take(own) {
            own += 1;
        }
        own
    }

    fn shared_by(sandboxes: usize, limit: usize) -> (Arc<Descriptors>, Vec<Share>) {
        let descriptors = Arc::new(Descriptors::new(limit));
        let shares = (0..sandboxes).map(|_| descriptors.join()).collect();
        (descriptors, shares)
    }

    #[test]
    fn h15_a_reserve_is_left_whatever_the_limit() {
        for (limit, connections) in [(0, 0), (56, 0), (58, 1), (256, 92), (1_024, 476), (20_000, 9_732)] {
            let (descriptors, _shares) = shared_by(1, limit);
            assert_eq!(drain(&descriptors), connections, "of {limit}");
            if connections > 0 {
                descriptors.give_back();
                assert!(descriptors.take(connections - 1), "what was given back can be taken");
            }
        }
    }

    #[test]
    fn h15_one_that_takes_all_it_gets_leaves_the_first_connections_of_others() {
        for (sandboxes, limit) in [(2, 256), (3, 1_024), (8, 1_024), (18, 20_000), (100, 1_048_576)] {
            let (descriptors, mut shares) = shared_by(sandboxes - 1, limit);
            let (first, capacity) = (drain(&descriptors), descriptors.capacity(sandboxes));
            assert!(first >= capacity * 3 / 4, "{first} of {capacity}");
            // Also one that starts only now.
            shares.push(descriptors.join());
            for other in 1..sandboxes.min(4) {
                assert!(drain(&descriptors) > 0, "{other} of {sandboxes} with {limit}");
            }
        }
    }

    #[test]
    fn h15_many_moderate_sandboxes_may_have_9500_tunnels_with_20000_descriptors() {
        let (descriptors, _shares) = shared_by(20, 20_000);
        for own in 0..475 {
            for _sandbox in 0..20 {
                assert!(descriptors.take(own), "after {own} each");
            }
        }
    }

    #[test]
    fn a_sandbox_that_ended_is_not_counted() {
        let (descriptors, mut shares) = shared_by(2, 256);
        shares.pop();
        assert_eq!(drain(&descriptors), 92);
    }

    #[test]
    fn only_what_this_machine_lacks_is_its_own_fault() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert!(ran_out(&crate::proxy::JournalError(Box::new(io::Error::from(errno)))), "{errno}");
            assert!(ran_out(&io::Error::from(errno)), "{errno}");
        }
        assert!(!ran_out(&io::Error::from(Errno::CONNREFUSED)));
        assert!(!ran_out(&io::Error::from(io::ErrorKind::TimedOut)));
    }
}
