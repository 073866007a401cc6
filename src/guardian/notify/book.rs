//! When somebody is called (A6): a cloister calls once in ten seconds, and for one authority once in ten minutes
//! unless the user answered it in between.
//!
//! What comes sooner waits for the next call, which speaks of all of it. Nobody is called while somebody looks; when the
//! last one has gone, what waits still is called for.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Ways;
use crate::approval::{Outcome, Pending, Settled};
use crate::name::CloisterName;
use crate::policy::Authority;

/// How long a cloister is silent after a call.
pub(super) const PAUSE: Duration = Duration::from_secs(10);
/// How long an authority is silent after a call for it.
pub(super) const MEMORY: Duration = Duration::from_mins(10);
/// How long a request whose time is up may be reported as ended; then it is taken for that.
pub(super) const SLACK: Duration = Duration::from_secs(5);
/// How long it counts as looking when the last one went: a page that is loaded anew is back by then, and so is a list
/// that asks for the next change.
pub(super) const GLANCE: Duration = Duration::from_secs(3);
/// How many requests of a cloister are kept, and how many authorities are remembered: more are let go.
const MAX_KEPT: usize = 256;

/// What one call tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    /// The newest request that it is about.
    pub(super) pending: Pending,
    /// How many others of the cloister wait.
    pub(super) more: usize,
    /// Whether it tells of a request that no call told of yet; else it only corrects what is shown.
    pub(super) is_new: bool,
    /// How the user is called.
    pub(super) ways: Ways,
}

/// What waits, and who was called when.
#[derive(Debug, Default)]
pub(super) struct Book {
    cloisters: BTreeMap<CloisterName, Page>,
    held_back: u64,
    /// How many look.
    lookers: usize,
    /// Until when it counts as looking that somebody did.
    seen_until: Option<Instant>,
}

/// What is known of one cloister.
#[derive(Debug, Default)]
struct Page {
    /// The oldest first.
    waiting: Vec<Waiting>,
    ways: Ways,
    last_call: Option<Instant>,
    /// When it was called for what, as far as that counts still.
    remembered: BTreeMap<Authority, Instant>,
    /// What the last call named, while its notification may be open.
    shown: Option<Pending>,
}

#[derive(Debug)]
struct Waiting {
    pending: Pending,
    since: Instant,
    /// Whether it still has to call.
    calls: bool,
}

impl Book {
    /// Notes a request.
    pub(super) fn waiting(&mut self, pending: Pending, ways: &Ways, now: Instant) {
        let is_seen = self.is_seen();
        let page = self.cloisters.entry(pending.cloister.clone()).or_default();
        page.ways = ways.clone();
        if page.waiting.iter().any(|known| known.pending.id == pending.id) {
            return;
        }
        let calls = !is_seen && !remembers(&page.remembered, &pending.authority, now);
        if (!calls && !is_seen) || page.waiting.len() >= MAX_KEPT {
            self.held_back += 1;
        }
        if page.waiting.len() < MAX_KEPT {
            page.waiting.push(Waiting { pending, since: now, calls });
        }
    }

    /// Notes that a request has ended; tells whether a notification may be open that has to go.
    pub(super) fn settled(&mut self, settled: &Settled, still_waiting: usize) -> bool {
        let Some(page) = self.cloisters.get_mut(&settled.cloister) else { return false };
        page.waiting.retain(|known| known.pending.id != settled.id);
        match settled.outcome {
            Outcome::Answered { .. } | Outcome::Ruled => {
                page.remembered.remove(&settled.authority);
            }
            Outcome::TimedOut | Outcome::Withdrawn => {}
        }
        if still_waiting == 0 {
            page.waiting.clear();
        }
        page.waiting.is_empty() && page.shown.take().is_some()
    }

    /// Notes that somebody looks: what waits needs no call.
    pub(super) fn look(&mut self) {
        self.lookers += 1;
        self.seen_until = None;
        for waiting in self.cloisters.values_mut().flat_map(|page| &mut page.waiting) {
            waiting.calls = false;
        }
    }

    /// Notes that one who looked has gone.
    pub(super) fn look_away(&mut self, now: Instant) {
        self.lookers -= 1;
        if self.lookers == 0 {
            self.seen_until = Some(now + GLANCE);
        }
    }

    fn is_seen(&self) -> bool {
        self.lookers > 0 || self.seen_until.is_some()
    }

    /// Has all call that waits still, once nobody has looked for a while.
    fn miss(&mut self, now: Instant) {
        if self.seen_until.is_none_or(|until| until > now) {
            return;
        }
        self.seen_until = None;
        for page in self.cloisters.values_mut() {
            let Page { waiting, remembered, .. } = page;
            for waiting in waiting {
                waiting.calls = !remembers(remembered, &waiting.pending.authority, now);
            }
        }
    }

    /// Takes what is to be called now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Call> {
        self.miss(now);
        let calls = self.cloisters.values_mut().filter_map(|page| page.call(now)).collect();
        self.cloisters.retain(|_, page| page.is_needed(now));
        calls
    }

    /// Forgets the requests whose time is up, though nobody said so: one that was answered before it was noted here
    /// would be called for and shown for ever. Gives the cloisters whose notification has to go with them.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<CloisterName> {
        let mut closed = Vec::new();
        for (name, page) in &mut self.cloisters {
            page.waiting.retain(|waiting| waiting.end() > now);
            if page.waiting.is_empty() && page.shown.take().is_some() {
                closed.push(name.clone());
            }
        }
        closed
    }

    /// When there is something to do, if nothing changes.
    pub(super) fn next(&self) -> Option<Instant> {
        let calls = self.cloisters.values().filter(|page| page.has_to_call()).filter_map(Page::free_at);
        let ends = self.cloisters.values().flat_map(|page| &page.waiting).map(Waiting::end);
        calls.chain(ends).chain(self.seen_until).min()
    }

    /// How many requests called nobody.
    pub(super) fn held_back(&self) -> u64 {
        self.held_back
    }
}

impl Waiting {
    fn end(&self) -> Instant {
        self.since + Duration::from_millis(self.pending.left_ms) + SLACK
    }
}

impl Page {
    fn free_at(&self) -> Option<Instant> {
        self.last_call.map(|last| last + PAUSE)
    }

    fn has_to_call(&self) -> bool {
        self.waiting.iter().any(|waiting| waiting.calls) || self.shows_what_is_over()
    }

    /// Whether the open notification names a request that waits no more, though others do.
    fn shows_what_is_over(&self) -> bool {
        let waits = |shown: &Pending| self.waiting.iter().any(|waiting| waiting.pending.id == shown.id);
        self.shown.as_ref().is_some_and(|shown| !waits(shown))
    }

    fn call(&mut self, now: Instant) -> Option<Call> {
        if !self.has_to_call() || self.free_at().is_some_and(|free| free > now) {
            return None;
        }
        let is_new = self.waiting.iter().any(|waiting| waiting.calls);
        let newest = self.waiting.iter().rfind(|waiting| waiting.calls == is_new)?;
        let mut pending = newest.pending.clone();
        let passed = now.duration_since(newest.since).as_millis();
        pending.left_ms = pending.left_ms.saturating_sub(u64::try_from(passed).unwrap_or(u64::MAX));
        self.remember(now);
        self.last_call = Some(now);
        self.shown = Some(pending.clone());
        Some(Call { pending, more: self.waiting.len() - 1, is_new, ways: self.ways.clone() })
    }

    /// Remembers that all that waits was called for.
    fn remember(&mut self, now: Instant) {
        self.remembered.retain(|_, called| now.duration_since(*called) < MEMORY);
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.calls) {
            waiting.calls = false;
            self.remembered.insert(waiting.pending.authority.clone(), now);
        }
        while self.remembered.len() > MAX_KEPT {
            let oldest = self.remembered.iter().min_by_key(|(_, called)| **called);
            let Some(oldest) = oldest.map(|(authority, _)| authority.clone()) else { return };
            self.remembered.remove(&oldest);
        }
    }

    fn is_needed(&self, now: Instant) -> bool {
        !self.waiting.is_empty()
            || self.shown.is_some()
            || self.free_at().is_some_and(|free| free > now)
            || self.remembered.values().any(|called| now.duration_since(*called) < MEMORY)
    }
}

/// Tells whether a call for an authority counts still.
fn remembers(remembered: &BTreeMap<Authority, Instant>, authority: &Authority, now: Instant) -> bool {
    remembered.get(authority).is_some_and(|called| now.duration_since(*called) < MEMORY)
}

#[cfg(test)]
mod tests;
