//! A desk without a guardian behind it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use crate::approval::{
    Answer, Breadth, Outcome, Pending, RequestId, Scope, Settled, Snapshot, Voice, Who, pattern,
};
use crate::name::{BranchName, CloisterName, ProjectName};
use crate::policy::Authority;
use crate::web::{Cloister, Desk, DeskError};

/// Answers from memory.
pub(super) struct FakeDesk {
    state: Mutex<State>,
    version: watch::Sender<u64>,
    /// Held by everybody who looks.
    lookers: Arc<()>,
    directory: PathBuf,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) pending: Vec<Pending>,
    pub(super) settled: Vec<Settled>,
    pub(super) cloisters: Vec<Cloister>,
    pub(super) problems: Vec<String>,
    /// What was asked of the desk.
    pub(super) answers: Vec<(RequestId, Answer, Who)>,
    /// What the desk says instead of doing it.
    pub(super) refusal: Option<DeskError>,
    made: u64,
}

impl FakeDesk {
    pub(super) fn new(directory: &Path) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            version: watch::Sender::new(1),
            lookers: Arc::new(()),
            directory: directory.to_owned(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Changes something, and says so.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.version.send_modify(|version| *version += 1);
        result
    }

    /// Adds a request that is a few seconds old.
    pub(super) fn ask(&self, project: &str, authority: &str, voice: Voice) -> RequestId {
        self.ask_at(project, authority, voice, Timestamp::now() - SignedDuration::from_secs(4))
    }

    pub(super) fn ask_at(
        &self,
        project: &str,
        authority: &str,
        voice: Voice,
        created: Timestamp,
    ) -> RequestId {
        self.change(|state| {
            state.made += 1;
            let pending = pending(state.made, project, authority, voice, created);
            let id = pending.id.clone();
            state.pending.insert(0, pending);
            id
        })
    }

    pub(super) fn end(&self, id: &RequestId, outcome: Outcome) {
        self.change(|state| settle(state, id, outcome, Timestamp::now()).unwrap());
    }

    /// How many look.
    pub(super) fn lookers(&self) -> usize {
        Arc::strong_count(&self.lookers) - 1
    }
}

/// A client that names itself.
pub(super) fn connection(user_agent: &str) -> Voice {
    Voice::Connection { user_agent: Some(user_agent.to_owned()) }
}

/// Somebody who gives a reason.
pub(super) fn polite(reason: &str) -> Voice {
    Voice::Polite { reason: Some(reason.to_owned()) }
}

pub(super) fn pending(
    number: u64,
    project: &str,
    authority: &str,
    voice: Voice,
    created: Timestamp,
) -> Pending {
    let authority = Authority::parse(authority).unwrap();
    let project = ProjectName::parse(project).unwrap();
    let branch = BranchName::parse("main").unwrap();
    Pending {
        id: RequestId::from_bytes(number.to_be_bytes()),
        cloister: CloisterName::of(&project, Some(&branch)).unwrap(),
        project,
        branch: Some(branch),
        voice,
        created,
        expires: created + SignedDuration::from_secs(60),
        left_ms: 56_000,
        waiting: 1,
        exact: pattern(&authority, Breadth::Exact).unwrap().to_string(),
        wildcard: pattern(&authority, Breadth::Wildcard).map(|pattern| pattern.to_string()),
        authority,
    }
}

fn settle(state: &mut State, id: &RequestId, outcome: Outcome, at: Timestamp) -> Option<Settled> {
    let place = state.pending.iter().position(|pending| pending.id == *id)?;
    let Pending { id, cloister, project, authority, .. } = state.pending.remove(place);
    let can_undo = matches!(&outcome, Outcome::Answered { answer, .. } if answer.scope != Scope::Once);
    let settled = Settled { id, cloister, project, authority, outcome, at, problem: None, can_undo };
    state.settled.insert(0, settled.clone());
    Some(settled)
}

impl Desk for FakeDesk {
    fn snapshot(&self) -> Snapshot {
        let state = self.state();
        let (pending, settled) = (state.pending.clone(), state.settled.clone());
        Snapshot { version: *self.version.borrow(), pending, settled }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn look(&self) -> Box<dyn Send + Sync> {
        Box::new(Arc::clone(&self.lookers))
    }

    fn answer(&self, id: &RequestId, answer: Answer, who: Who) -> Result<Settled, DeskError> {
        self.change(|state| {
            if let Some(refusal) = &state.refusal {
                return Err(refusal.clone());
            }
            let asked = state.pending.iter().find(|pending| pending.id == *id);
            let asked = asked.ok_or_else(|| DeskError::Gone("nobody waits for it any more".to_owned()))?;
            let pattern = match answer.breadth {
                Breadth::Exact => Some(asked.exact.clone()),
                Breadth::Wildcard => asked.wildcard.clone(),
            };
            let pattern =
                pattern.ok_or_else(|| DeskError::Unfit("no wildcard is offered here".to_owned()))?;
            state.answers.push((id.clone(), answer.clone(), who.clone()));
            let outcome = Outcome::Answered { answer, pattern, who };
            Ok(settle(state, id, outcome, Timestamp::now()).unwrap())
        })
    }

    fn undo(&self, id: &RequestId, _: Who) -> Result<(), DeskError> {
        self.change(|state| {
            let settled = state.settled.iter_mut().find(|settled| settled.id == *id);
            let settled = settled.ok_or_else(|| DeskError::Gone("there is no such answer".to_owned()))?;
            if !settled.can_undo {
                return Err(DeskError::Unfit("an answer for once is over".to_owned()));
            }
            settled.can_undo = false;
            Ok(())
        })
    }

    fn cloisters(&self) -> Vec<Cloister> {
        self.state().cloisters.clone()
    }

    fn problems(&self) -> Vec<String> {
        self.state().problems.clone()
    }

    fn audit_file(&self) -> PathBuf {
        crate::audit::unified_file(&self.directory.join("audit"))
    }

    fn written_to(&self, scope: Scope, pending: &Pending) -> String {
        match scope {
            Scope::Once => "nothing is written".to_owned(),
            Scope::Session => "kept until the cloister stops".to_owned(),
            Scope::Project => format!("decisions/projects/{}.yaml", pending.project),
            Scope::Global => "decisions/global.yaml".to_owned(),
        }
    }
}
