//! Writes the proxy's events into the audit log.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use crate::audit::{AuditError, Event, Noted, Record, Repeatable};
use crate::guardian::control::chain;
use crate::guardian::ledger::Ledger;
use crate::name::{BranchName, ProjectName};
use crate::policy::Rule;
use crate::proxy;

/// What keeps the log from being written at present, for all sandboxes together.
#[derive(Debug, Default)]
pub(super) struct Trouble(Mutex<Option<String>>);

impl Trouble {
    fn note(&self, error: Option<&AuditError>) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if error.is_some() || current.is_some() {
            *current = error.map(|error| chain(error));
        }
    }

    pub(super) fn last(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The journal of one sandbox.
pub(super) struct SandboxJournal {
    log: Arc<Ledger>,
    trouble: Arc<Trouble>,
    project: ProjectName,
    branch: Option<BranchName>,
}

impl SandboxJournal {
    pub(super) fn new(
        log: Arc<Ledger>,
        trouble: Arc<Trouble>,
        project: ProjectName,
        branch: Option<BranchName>,
    ) -> Self {
        Self { log, trouble, project, branch }
    }

    fn record(&self, event: &proxy::Event<'_>) -> Record {
        let record = match &event.kind {
            proxy::EventKind::Allowed { rule, addresses, .. } => {
                ruled(Record::new(Event::ProxyAllow), Some(rule)).addresses(addresses)
            }
            proxy::EventKind::Denied { reason, rule, detail } => {
                let record = ruled(Record::new(Event::ProxyDeny).reason(reason.code()), *rule);
                detail.iter().fold(record, Record::detail)
            }
            proxy::EventKind::Closed { reason, bytes_up, bytes_down, duration, address, detail } => {
                let record = Record::new(Event::ProxyClose).bytes(*bytes_up, *bytes_down).duration(*duration);
                let record = address.iter().fold(record, |record, address| record.addresses(&[*address]));
                let record = detail.iter().fold(record, Record::detail);
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
        let written = match &event.kind {
            proxy::EventKind::Denied { reason, .. } => {
                let subject = event.authority.map(|authority| authority as &dyn Display);
                let what = Repeatable {
                    cloister: event.cloister,
                    event: Event::ProxyDeny,
                    reason: reason.code(),
                    subject,
                };
                self.log.append_repeatable(what, || self.record(event))
            }
            proxy::EventKind::Allowed { .. } | proxy::EventKind::Closed { .. } => {
                self.log.append(self.record(event)).map(|()| Noted::Written)
            }
        };
        match written {
            Ok(Noted::Written) => {
                self.trouble.note(None);
                Ok(())
            }
            // It says nothing about the disk.
            Ok(Noted::Counted) => Ok(()),
            Err(error) => {
                self.trouble.note(Some(&error));
                Err(proxy::JournalError(Box::new(error)))
            }
        }
    }
}
