//! What the page sees of the guardian, and does in it.

use std::path::PathBuf;

use tokio::sync::watch;

use super::answer::AnswerError;
use crate::approval::{Answer, Pending, RequestId, Scope, Settled, Snapshot, Who};
use crate::audit::unified_file;
use crate::guardian::registry::Registry;
use crate::text::{Untrusted, with_causes};
use crate::web::{Cloister, Desk, DeskError};

impl From<AnswerError> for DeskError {
    fn from(error: AnswerError) -> Self {
        let text = with_causes(&error);
        match error {
            AnswerError::Gone(_) => Self::Gone(text),
            AnswerError::Unfit(_) | AnswerError::Pattern(_) => Self::Unfit(text),
            AnswerError::Audit(_) | AnswerError::Decisions(_) => Self::Failed(text),
        }
    }
}

impl Desk for Registry {
    fn snapshot(&self) -> Snapshot {
        self.approvals.queue.snapshot()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.approvals.queue.changes()
    }

    fn look(&self) -> Box<dyn Send + Sync> {
        Box::new(self.approvals.look())
    }

    fn answer(&self, id: &RequestId, answer: Answer, who: Who) -> Result<Settled, DeskError> {
        Ok(Self::answer(self, id, answer, &who)?)
    }

    fn undo(&self, id: &RequestId, who: Who) -> Result<(), DeskError> {
        Ok(Self::undo(self, id, &who)?)
    }

    fn cloisters(&self) -> Vec<Cloister> {
        let cloisters = self.cloister_statuses().into_iter().map(|status| Cloister {
            name: status.cloister.to_string(),
            project: status.project.to_string(),
            network: status.network.as_str().to_owned(),
            allowed: status.allowed,
            denied: status.denied,
            bytes_up: status.bytes_up,
            bytes_down: status.bytes_down,
            tunnels: status.tunnels,
        });
        cloisters.collect()
    }

    fn problems(&self) -> Vec<String> {
        self.problem_texts().iter().map(|problem| Untrusted(problem).to_string()).collect()
    }

    fn audit_file(&self) -> PathBuf {
        unified_file(&self.paths.audit_dir())
    }

    fn written_to(&self, scope: Scope, pending: &Pending) -> String {
        match scope {
            Scope::Once => "nowhere: for what waits now".to_owned(),
            Scope::Session => format!("grants/{}.yaml, until it is stopped", pending.cloister),
            Scope::Project => format!("decisions/projects/{}.yaml", pending.project),
            Scope::Global => "decisions/global.yaml".to_owned(),
        }
    }
}
