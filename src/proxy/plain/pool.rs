//! Connections to upstreams that have served a request and may serve another one of the same sandbox.
//!
//! [`Pool::take`] wants a permit, as dialling does (invariant 1), and gives only what that permit covers: the same
//! authority, by the same rule of the same policy, at one of the addresses that were checked just now (D5).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::upstream::Upstream;
use crate::policy::{Authority, Permit, Rule};
use crate::proxy::admission::Held;

/// How many are kept for one sandbox; the oldest goes first.
const MAX_KEPT: usize = 32;
/// How long one is kept: servers commonly give up after 60 s, some after 5 s.
const MAX_IDLE: Duration = Duration::from_secs(15);

/// What a kept connection was permitted for.
#[derive(Debug, Clone)]
pub(in crate::proxy) struct Origin {
    authority: Authority,
    /// Another policy has other rules, even where they read the same: what was kept under it is not taken.
    rule: Arc<Rule>,
    /// How often everything had been closed by then: what was under way meanwhile is not kept.
    clearings: u64,
}

impl Origin {
    pub(in crate::proxy) fn rule(&self) -> &Arc<Rule> {
        &self.rule
    }

    fn covers(&self, permit: &Permit) -> bool {
        Arc::ptr_eq(&self.rule, permit.rule()) && self.authority == *permit.authority()
    }
}

/// The kept connections of one sandbox.
#[derive(Default)]
pub(in crate::proxy) struct Pool(Mutex<State>);

#[derive(Default)]
struct State {
    /// The oldest first.
    kept: VecDeque<Kept>,
    is_swept: bool,
    clearings: u64,
    is_closed: bool,
}

struct Kept {
    upstream: Box<Upstream>,
    address: SocketAddr,
    origin: Origin,
    until: Instant,
    _held: Held,
}

/// A connection that was kept, with the permit of the request that took it.
pub(in crate::proxy) struct Taken {
    pub(super) upstream: Box<Upstream>,
    permit: Permit,
}

impl Taken {
    /// Where the connection leads: one of the permit's addresses.
    pub(in crate::proxy) fn address(&self) -> SocketAddr {
        self.upstream.address()
    }

    /// Drops the connection, and gives the permit to dial another one.
    pub(super) fn give_up(self) -> Permit {
        self.permit
    }
}

impl Pool {
    /// Tells what a connection for `permit` may be kept for.
    pub(in crate::proxy) fn origin(&self, permit: &Permit) -> Origin {
        let (authority, rule) = (permit.authority().clone(), Arc::clone(permit.rule()));
        Origin { authority, rule, clearings: self.lock().clearings }
    }

    /// Takes a living connection that `permit` covers, or gives the permit back to dial.
    pub(in crate::proxy) fn take(&self, permit: Permit) -> Result<Taken, Permit> {
        while let Some(mut upstream) = self.pick(&permit) {
            if upstream.is_usable() {
                return Ok(Taken { upstream, permit });
            }
        }
        Err(permit)
    }

    /// The youngest that fits: it is the likeliest to live.
    fn pick(&self, permit: &Permit) -> Option<Box<Upstream>> {
        let mut state = self.lock();
        let now = Instant::now();
        let fits = |kept: &Kept| {
            kept.until > now && permit.addresses().contains(&kept.address) && kept.origin.covers(permit)
        };
        let at = state.kept.iter().rposition(fits)?;
        state.kept.remove(at).map(|kept| kept.upstream)
    }

    /// Keeps a connection on which nothing is under way; a guess at that is not enough.
    ///
    /// Its descriptor stays accounted for: nobody else does so once the client has gone (H15).
    pub(super) fn keep(self: &Arc<Self>, upstream: Box<Upstream>, origin: Origin, held: Held) {
        let address = upstream.address();
        let until = Instant::now() + MAX_IDLE;
        let mut state = self.lock();
        if state.is_closed || state.clearings != origin.clearings {
            return;
        }
        let surplus = if state.kept.len() < MAX_KEPT { None } else { state.kept.pop_front() };
        state.kept.push_back(Kept { upstream, address, origin, until, _held: held });
        if !std::mem::replace(&mut state.is_swept, true) {
            tokio::spawn(sweep(Arc::downgrade(self), until));
        }
        drop(state);
        // Closing is a system call: not under the lock.
        drop(surplus);
    }

    /// Closes all that is kept now.
    pub(in crate::proxy) fn clear(&self) {
        let mut state = self.lock();
        state.clearings += 1;
        let kept = std::mem::take(&mut state.kept);
        drop(state);
        drop(kept);
    }

    /// Closes all that is kept, and keeps nothing from now on.
    pub(in crate::proxy) fn close(&self) {
        self.lock().is_closed = true;
        self.clear();
    }

    #[cfg(test)]
    pub(in crate::proxy) fn count(&self) -> usize {
        self.lock().kept.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock leaves the queue whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes what was kept for long enough, as long as there is anything.
async fn sweep(pool: Weak<Pool>, mut next: Instant) {
    loop {
        sleep_until(next).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut state = pool.lock();
        let now = Instant::now();
        let expired = state.kept.partition_point(|kept| kept.until <= now);
        let expired: Vec<_> = state.kept.drain(..expired).collect();
        state.is_swept = !state.kept.is_empty();
        let first = state.kept.front().map(|kept| kept.until);
        drop(state);
        drop(expired);
        match first {
            Some(first) => next = first,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::name::CloisterName;
    use crate::policy::{
        Decision, Origin as RuleOrigin, OriginKind, Pattern, Policy, PolicyInput, Request, Via,
    };
    use crate::proxy::admission::Admission;
    use crate::proxy::admission::descriptors::Descriptors;
    use crate::proxy::dial::upstream::Upstream as Dialled;
    use crate::proxy::journal::Meter;

    fn policy() -> Policy {
        let rule = |text| Rule::allow(Pattern::parse(text).unwrap(), RuleOrigin::new(OriginKind::Global));
        Policy::new(PolicyInput {
            rules: vec![rule("a.test:80"), rule("b.test:80")],
            ..PolicyInput::default()
        })
    }

    fn permit(policy: &Policy, host: &str, answers: &[&str]) -> Permit {
        let cloister = CloisterName::parse("demo-main").unwrap();
        let authority = Authority::parse(&format!("{host}:80")).unwrap();
        let request = Request { cloister: &cloister, authority: &authority, via: Via::Plain, grant: None };
        let Decision::Allow(allowed) = policy.evaluate(&request) else { panic!("it is not allowed") };
        let answers: Vec<IpAddr> = answers.iter().map(|text| text.parse().unwrap()).collect();
        allowed.permit(&answers, |_| false).unwrap()
    }

    #[tokio::test]
    async fn d5_only_what_the_new_permit_covers_is_taken() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "the address is the test's own")]
        let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let _peer = listener.accept().await.unwrap();
        let address = "8.8.8.8:80".parse().unwrap();
        let mut upstream =
            Upstream::new(Dialled::plain(stream), address, &Arc::new(Meter::new(Arc::default())))
                .await
                .unwrap();
        assert!(upstream.is_settled().await);

        let admission = Arc::new(Admission::new(Arc::new(Descriptors::new(128))));
        let held = admission.passage().unwrap();
        let (policy, pool) = (policy(), Pool::default());
        let first = permit(&policy, "a.test", &["8.8.8.8", "8.8.4.4"]);
        let (origin, until) = (pool.origin(&first), Instant::now() + MAX_IDLE);
        pool.lock().kept.push_back(Kept { upstream, address, origin, until, _held: held });

        let other = pool.take(permit(&policy, "b.test", &["8.8.8.8"]));
        assert!(other.is_err(), "another authority at the same address");
        let moved = pool.take(permit(&policy, "a.test", &["8.8.4.4"]));
        assert!(moved.is_err(), "the name stands for another address now");
        let again = pool.take(permit(&self::policy(), "a.test", &["8.8.8.8"]));
        assert!(again.is_err(), "the policy was read anew");
        let taken = pool.take(permit(&policy, "a.test", &["8.8.4.4", "8.8.8.8"]));
        assert!(taken.is_ok());
        assert_eq!(pool.count(), 0, "nobody else gets it");
    }
}
