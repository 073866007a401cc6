//! What waits for a human: one request for a cloister and an authority, however many wait for its answer.
//!
//! A request lives as long as somebody waits for it. Whoever answers it [claims](Queue::claim) it first, so that two
//! answers never meet, and settles it when the answer is kept.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::bucket::Bucket;
use super::{Breadth, Outcome, Pending, RequestId, Settled, Snapshot, Voice, pattern};
use crate::config::decisions::{Decision, Place};
use crate::name::{BranchName, CloisterName, ProjectName};
use crate::policy::{Authority, Effect, Rule};

mod waiter;

pub use waiter::Waiter;

/// How many requests of one cloister may wait at the same time (A6).
pub const MAX_PENDING: usize = 100;
/// How many that were answered are remembered, and how many others that have ended: coming and going pushes no answer
/// out.
const MAX_ANSWERED: usize = 200;
const MAX_OTHERS: usize = 20;
/// How long an answer to a polite request waits for the connection that it was asked for.
const AHEAD: Duration = Duration::from_mins(1);
/// How soon it makes sense to ask again when too many wait.
const CROWDED: Duration = Duration::from_secs(10);

/// Who wants to go where.
type Subject = (CloisterName, Authority);

/// All requests of one guardian.
#[derive(Debug)]
pub struct Queue {
    state: Mutex<State>,
    version: watch::Sender<u64>,
    /// Something was counted that the version does not tell of yet.
    counted: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// In the order in which they came.
    pending: BTreeMap<u64, Entry>,
    by_subject: HashMap<Subject, u64>,
    by_id: HashMap<RequestId, u64>,
    counts: HashMap<CloisterName, usize>,
    next: u64,
    /// The newest first.
    settled: VecDeque<Ended>,
    buckets: HashMap<CloisterName, Bucket>,
    /// What was granted before the connection came.
    ahead: HashMap<Subject, (Arc<Rule>, Instant)>,
}

/// A request that has ended, and where its answer is kept.
#[derive(Debug)]
struct Ended {
    shown: Settled,
    kept: Option<Kept>,
}

/// Where an answer is kept, and as what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The file; in memory alone where there is none.
    pub place: Option<Place>,
    /// What stands there.
    pub decision: Decision,
}

#[derive(Debug)]
struct Entry {
    shown: Pending,
    deadline: Instant,
    connections: usize,
    polite: usize,
    is_claimed: bool,
    /// Whether anybody sees it yet.
    is_shown: bool,
    end: watch::Sender<Option<End>>,
}

/// What is asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The number that a new request gets.
    pub id: RequestId,
    /// The sandbox that asks.
    pub cloister: CloisterName,
    /// Its project.
    pub project: ProjectName,
    /// What is checked out there.
    pub branch: Option<BranchName>,
    /// Where it wants to go.
    pub authority: Authority,
    /// How it asks.
    pub voice: Voice,
    /// How long it may wait.
    pub patience: Duration,
}

/// What becomes of a question.
#[derive(Debug)]
pub enum Entered {
    /// It begins a request, which nobody sees until it is [shown](Waiter::show).
    First(Waiter, Box<Pending>),
    /// It waits for the answer to a request that is there already.
    Joined(Waiter),
    /// It was granted before it was asked.
    Granted(Arc<Rule>),
}

/// Says that a sandbox asks too much (A6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests of this cloister wait, or came in a short time")]
pub struct Flood {
    /// When to try again.
    pub wait: Duration,
}

/// How the wait for an answer ended.
#[derive(Debug, Clone)]
pub enum End {
    /// The rules judge anew, together with what was granted to this request alone.
    Judge(Option<Arc<Rule>>),
    /// Nobody answered in time.
    TimedOut,
}

/// Says that a request does not wait any more, and how it ended if that is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no such request waits{}", ended(.0.as_deref()))]
pub struct Gone(pub Option<Box<Settled>>);

fn ended(settled: Option<&Settled>) -> &'static str {
    match settled.map(|settled| &settled.outcome) {
        None => "",
        Some(Outcome::Answered { .. }) => ": it was answered already",
        Some(Outcome::Ruled) => ": a rule decides it by now",
        Some(Outcome::TimedOut) => ": its time was over",
        Some(Outcome::Withdrawn) => ": nobody waits for it any more",
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self { state: Mutex::default(), version: watch::Sender::new(1), counted: Notify::new() }
    }
}

impl Queue {
    /// Enters a question: it begins a request, or joins the one that there is for the same cloister and authority.
    ///
    /// # Errors
    /// [`Flood`] when the cloister has too many requests waiting, or began too many in a short time.
    pub fn enter(self: &Arc<Self>, asked: Asked) -> Result<Entered, Flood> {
        let mut state = self.lock();
        let now = Instant::now();
        let subject = (asked.cloister.clone(), asked.authority.clone());
        let kind = Kind::of(&asked.voice);
        if kind == Kind::Connection
            && let Some((rule, until)) = state.ahead.remove(&subject)
            && now < until
        {
            return Ok(Entered::Granted(rule));
        }
        if let Some(number) = state.by_subject.get(&subject).copied()
            && let Some(entry) = state.pending.get_mut(&number)
        {
            *entry.waiting(kind) += 1;
            let waiter = Waiter::new(self, number, kind, entry);
            drop(state);
            self.counted.notify_one();
            return Ok(Entered::Joined(waiter));
        }
        if state.counts.get(&asked.cloister).is_some_and(|count| *count >= MAX_PENDING) {
            return Err(Flood { wait: CROWDED });
        }
        state.buckets.entry(asked.cloister.clone()).or_default().take(now).map_err(|wait| Flood { wait })?;
        let (number, mut entry) = (state.next, Entry::new(asked, now));
        *entry.waiting(kind) += 1;
        let (waiter, shown) = (Waiter::new(self, number, kind, &entry), entry.show(now));
        state.next += 1;
        state.by_subject.insert(subject, number);
        state.by_id.insert(shown.id.clone(), number);
        *state.counts.entry(shown.cloister.clone()).or_default() += 1;
        state.pending.insert(number, entry);
        Ok(Entered::First(waiter, Box::new(shown)))
    }

    /// Claims a request for an answer: nobody else can answer it, and it does not end, until the claim is over.
    ///
    /// # Errors
    /// [`Gone`] when it does not wait any more, or is being answered by somebody else.
    pub fn claim(self: &Arc<Self>, id: &RequestId) -> Result<Claim, Gone> {
        let mut state = self.lock();
        let gone = |state: &State| Gone(state.ended(id).map(|ended| Box::new(ended.shown.clone())));
        let Some(number) = state.by_id.get(id).copied() else { return Err(gone(&state)) };
        match state.pending.get_mut(&number).filter(|entry| !entry.is_claimed) {
            None => Err(gone(&state)),
            Some(entry) => {
                entry.is_claimed = true;
                let pending = entry.show(Instant::now());
                Ok(Claim { queue: Arc::clone(self), number, pending })
            }
        }
    }

    /// Ends the requests of a cloister that are not to be asked any more: the rules decide them.
    pub fn revisit(&self, cloister: &CloisterName, is_asked: impl Fn(&Authority) -> bool) {
        let mut state = self.lock();
        let ruled: Vec<u64> = state
            .pending
            .iter()
            .filter(|(_, entry)| entry.shown.cloister == *cloister && !entry.is_claimed)
            .filter(|(_, entry)| !is_asked(&entry.shown.authority))
            .map(|(number, _)| *number)
            .collect();
        for number in &ruled {
            state.settle(*number, Outcome::Ruled, End::Judge(None));
        }
        drop(state);
        if !ruled.is_empty() {
            self.touch();
        }
    }

    /// Forgets what was granted to a cloister that is over.
    pub fn forget(&self, cloister: &CloisterName) {
        let mut state = self.lock();
        state.ahead.retain(|(of, _), _| of != cloister);
        state.buckets.remove(cloister);
    }

    /// Everything that waits and has ended.
    pub fn snapshot(&self) -> Snapshot {
        // Before the look: what changes after it has another version.
        let version = *self.version.borrow();
        let (state, now) = (self.lock(), Instant::now());
        let shown = state.pending.values().rev().filter(|entry| entry.is_shown);
        Snapshot {
            version,
            pending: shown.map(|entry| entry.show(now)).collect(),
            settled: state.settled.iter().map(|ended| ended.shown.clone()).collect(),
        }
    }

    /// How many requests of a cloister wait.
    pub fn count(&self, cloister: &CloisterName) -> usize {
        self.lock().counts.get(cloister).copied().unwrap_or_default()
    }

    /// Takes the answer to a request back, once: nobody else can. Gives where it is kept.
    pub fn take_back(&self, id: &RequestId) -> Option<(Settled, Kept)> {
        let mut state = self.lock();
        let ended = state.settled.iter_mut().find(|ended| ended.shown.id == *id && ended.shown.can_undo)?;
        let kept = ended.kept.clone()?;
        ended.shown.can_undo = false;
        let taken = (ended.shown.clone(), kept);
        drop(state);
        self.touch();
        Some(taken)
    }

    /// Gives an answer back that could not be taken back after all.
    pub fn give_answer_back(&self, id: &RequestId) {
        if let Some(ended) = self.lock().settled.iter_mut().find(|ended| ended.shown.id == *id) {
            ended.shown.can_undo = true;
        }
        self.touch();
    }

    /// The requests that have ended after this one, the newest first.
    pub fn settled_after(&self, last: Option<&RequestId>) -> Vec<Settled> {
        let state = self.lock();
        let new = state.settled.iter().map(|ended| &ended.shown).take_while(|ended| Some(&ended.id) != last);
        new.cloned().collect()
    }

    /// Notes that answers can't be taken back any more, for they are forgotten.
    pub fn close(&self, is_forgotten: impl Fn(&Kept) -> bool) {
        for ended in &mut self.lock().settled {
            ended.shown.can_undo &= !ended.kept.as_ref().is_some_and(&is_forgotten);
        }
        self.touch();
    }

    /// Tells of every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Tells everybody that something changed that is shown beside the requests.
    pub fn touch(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves it whole: no step of a change can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a claimed request back that was not answered after all.
    fn give_back(&self, number: u64) {
        let mut state = self.lock();
        let Some(entry) = state.pending.get_mut(&number) else { return };
        entry.is_claimed = false;
        if entry.connections + entry.polite == 0 {
            state.settle(number, Outcome::Withdrawn, End::TimedOut);
        } else if Instant::now() >= entry.deadline {
            state.settle(number, Outcome::TimedOut, End::TimedOut);
        }
        drop(state);
        self.touch();
    }
}

impl State {
    /// Takes a request out, tells those who wait, and remembers how it ended.
    fn settle(&mut self, number: u64, outcome: Outcome, end: End) -> Option<&mut Ended> {
        let entry = self.pending.remove(&number)?;
        let Pending { id, cloister, project, authority, .. } = entry.shown;
        self.by_id.remove(&id);
        self.by_subject.remove(&(cloister.clone(), authority.clone()));
        if let Some(count) = self.counts.get_mut(&cloister) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&cloister);
            }
        }
        entry.end.send_replace(Some(end));
        if !entry.is_shown {
            return None;
        }
        let (at, problem, can_undo) = (Timestamp::now(), None, false);
        let shown = Settled { id, cloister, project, authority, outcome, at, problem, can_undo };
        self.settled.push_front(Ended { shown, kept: None });
        self.forget_the_oldest();
        self.settled.front_mut()
    }

    /// Keeps what is remembered within its bounds, answers and others apart.
    fn forget_the_oldest(&mut self) {
        for (is_answer, most) in [(true, MAX_ANSWERED), (false, MAX_OTHERS)] {
            let is_meant =
                |ended: &Ended| matches!(ended.shown.outcome, Outcome::Answered { .. }) == is_answer;
            if self.settled.iter().filter(|ended| is_meant(ended)).count() > most
                && let Some(oldest) = self.settled.iter().rposition(is_meant)
            {
                self.settled.remove(oldest);
            }
        }
    }

    fn ended(&self, id: &RequestId) -> Option<&Ended> {
        self.settled.iter().find(|ended| ended.shown.id == *id)
    }
}

impl Entry {
    fn new(asked: Asked, now: Instant) -> Self {
        let Asked { id, cloister, project, branch, authority, voice, patience } = asked;
        let created = Timestamp::now();
        let expires = SignedDuration::try_from(patience).ok().and_then(|wait| created.checked_add(wait).ok());
        let shown_as = |breadth| pattern(&authority, breadth).map(|pattern| pattern.to_string());
        let (exact, wildcard) = (shown_as(Breadth::Exact).unwrap_or_default(), shown_as(Breadth::Wildcard));
        let shown = Pending {
            id,
            cloister,
            project,
            branch,
            voice,
            created,
            expires: expires.unwrap_or(Timestamp::MAX),
            left_ms: 0,
            waiting: 0,
            exact,
            wildcard,
            authority,
        };
        let end = watch::Sender::new(None);
        Self {
            shown,
            deadline: now + patience,
            connections: 0,
            polite: 0,
            is_claimed: false,
            is_shown: false,
            end,
        }
    }

    fn waiting(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Connection => &mut self.connections,
            Kind::Polite => &mut self.polite,
        }
    }

    fn show(&self, now: Instant) -> Pending {
        let left = self.deadline.saturating_duration_since(now);
        Pending {
            left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            waiting: self.connections + self.polite,
            ..self.shown.clone()
        }
    }
}

/// What of a [`Voice`] is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Connection,
    Polite,
}

impl Kind {
    fn of(voice: &Voice) -> Self {
        match voice {
            Voice::Connection { .. } => Self::Connection,
            Voice::Polite { .. } => Self::Polite,
        }
    }
}

/// A request that somebody is answering; dropped, it waits on as if nobody had.
#[derive(Debug)]
pub struct Claim {
    queue: Arc<Queue>,
    number: u64,
    pending: Pending,
}

impl Claim {
    /// The request.
    pub fn pending(&self) -> &Pending {
        &self.pending
    }

    /// Ends the request with an answer. Whoever waits in this moment gets `grant`, and for one who asked politely it waits
    /// a minute for the connection. What is kept can be taken back.
    pub fn settle(
        self,
        outcome: Outcome,
        grant: Option<&Arc<Rule>>,
        problem: Option<String>,
        kept: Option<Kept>,
    ) -> Option<Settled> {
        let mut state = self.queue.lock();
        if let Some(rule) = grant.filter(|rule| rule.effect() == Effect::Allow)
            && state.pending.get(&self.number).is_some_and(|entry| entry.polite > 0)
        {
            let subject = (self.pending.cloister.clone(), self.pending.authority.clone());
            let now = Instant::now();
            state.ahead.retain(|_, (_, until)| now < *until);
            state.ahead.insert(subject, (Arc::clone(rule), now + AHEAD));
        }
        let ended = state.settle(self.number, outcome, End::Judge(grant.map(Arc::clone)))?;
        (ended.shown.problem, ended.shown.can_undo, ended.kept) = (problem, kept.is_some(), kept);
        let settled = ended.shown.clone();
        drop(state);
        self.queue.touch();
        Some(settled)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.queue.give_back(self.number);
    }
}

#[cfg(test)]
mod tests;
