//! Writes the proxy's events into the audit log.

use std::sync::Arc;

use crate::audit::{AuditLog, Event, Record};
use crate::name::{BranchName, ProjectName};
use crate::policy::Rule;
use crate::proxy;

/// The journal of one sandbox.
pub(super) struct SandboxJournal {
    log: Arc<AuditLog>,
    project: ProjectName,
    branch: Option<BranchName>,
}

impl SandboxJournal {
    pub(super) fn new(log: Arc<AuditLog>, project: ProjectName, branch: Option<BranchName>) -> Self {
        Self { log, project, branch }
    }

    fn record(&self, event: &proxy::Event<'_>) -> Record {
        let record = match &event.kind {
            proxy::EventKind::Allowed { rule, .. } => ruled(Record::new(Event::ProxyAllow), Some(rule)),
            proxy::EventKind::Denied { reason, rule, detail } => {
                let record = ruled(Record::new(Event::ProxyDeny).reason(reason.code()), *rule);
                detail.iter().fold(record, Record::detail)
            }
            proxy::EventKind::Closed { reason, bytes_up, bytes_down, duration } => {
                let record = Record::new(Event::ProxyClose).bytes(*bytes_up, *bytes_down).duration(*duration);
                reason.iter().fold(record, |record, reason| record.reason(reason.code()))
            }
        };
        let record = record.cloister(event.cloister).project(&self.project);
        let record = self.branch.iter().fold(record, Record::branch);
        match event.authority {
            Some(authority) => record.host(authority.host()).port(authority.port()),
            None => record,
        }
    }
}

fn ruled(record: Record, rule: Option<&Rule>) -> Record {
    match rule {
        Some(rule) => record.rule(rule).origin(rule.origin()),
        None => record,
    }
}

impl proxy::Journal for SandboxJournal {
    fn write(&self, event: &proxy::Event<'_>) -> Result<(), proxy::JournalError> {
        self.log.append(self.record(event)).map_err(|error| proxy::JournalError(Box::new(error)))
    }
}
