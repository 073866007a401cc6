//! Writes the proxy's events into the audit log.

use std::fmt::{self, Display};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::counters::{Counters, Latencies};
use crate::audit::{AuditError, Event, Noted, Record, Repeatable};
use crate::guardian::ledger::Ledger;
use crate::name::{BranchName, ProjectName};
use crate::policy::{Authority, Rule};
use crate::proxy;
use crate::text::with_causes;

/// What keeps the log from being written at present, for all sandboxes together.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    current: Mutex<Option<String>>,
    /// Whether there is any: asked for every record.
    is_there: AtomicBool,
    failed: AtomicU64,
}

impl Trouble {
    pub(super) fn note(&self, error: Option<&AuditError>) {
        if error.is_some() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        } else if !self.is_there.load(Ordering::Relaxed) {
            return;
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = error.map(|error| with_causes(error));
        self.is_there.store(error.is_some(), Ordering::Relaxed);
    }

    pub(super) fn last(&self) -> Option<String> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many records could not be written.
    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// The journal of one sandbox.
pub(super) struct SandboxJournal {
    pub(super) log: Arc<Ledger>,
    pub(super) trouble: Arc<Trouble>,
    pub(super) project: ProjectName,
    pub(super) branch: Option<BranchName>,
    pub(super) counters: Arc<Counters>,
    pub(super) latencies: Arc<Latencies>,
}

impl SandboxJournal {
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

/// What a refusal is about: other details, such as the other name in a hello, are no repetition.
struct Subject<'a> {
    authority: &'a Authority,
    detail: Option<&'a str>,
}

impl Display for Subject<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.authority)?;
        self.detail.map_or(Ok(()), |detail| write!(formatter, " {detail}"))
    }
}

fn ruled(record: Record, rule: Option<&Rule>) -> Record {
    match rule {
        Some(rule) => record.rule(rule).origin(rule.origin()),
        None => record,
    }
}

impl SandboxJournal {
    /// Notes how writing went.
    fn conclude(&self, written: Result<Noted, AuditError>) -> Result<(), proxy::JournalError> {
        match written {
            Ok(Noted::Written) => {
                self.trouble.note(None);
                Ok(())
            }
            // It says nothing about the disk.
            Ok(Noted::Counted) => Ok(()),
            Err(error) => Err(self.fail(error)),
        }
    }

    fn fail(&self, error: AuditError) -> proxy::JournalError {
        self.trouble.note(Some(&error));
        proxy::JournalError(Box::new(error))
    }
}

impl proxy::Journal for SandboxJournal {
    fn write(&self, event: &proxy::Event<'_>) -> Result<(), proxy::JournalError> {
        let written = match &event.kind {
            proxy::EventKind::Denied { reason, detail, .. } => {
                let subject = event.authority.map(|authority| Subject { authority, detail: *detail });
                let what = Repeatable {
                    cloister: event.cloister,
                    event: Event::ProxyDeny,
                    reason: reason.code(),
                    subject: subject.as_ref().map(|subject| subject as &dyn Display),
                };
                self.log.append_repeatable(what, || self.record(event))
            }
            proxy::EventKind::Allowed { .. } | proxy::EventKind::Closed { .. } => {
                self.log.append(self.record(event)).map(|()| Noted::Written)
            }
        };
        // What could not be recorded did not pass.
        if written.is_ok() || !matches!(event.kind, proxy::EventKind::Allowed { .. }) {
            self.counters.count(event);
        }
        self.conclude(written)
    }

    fn enter(&self, event: &proxy::Event<'_>) -> Result<proxy::Ticket, proxy::JournalError> {
        let ticket = self.log.enter(self.record(event)).map_err(|error| self.fail(error))?;
        // From here on the log tells of it, and so does its end, also when that comes before it is written.
        self.counters.count(event);
        Ok(ticket)
    }

    fn settle(&self, ticket: proxy::Ticket) -> Result<(), proxy::JournalError> {
        self.conclude(self.log.settle(ticket).map(|()| Noted::Written))
    }

    fn measure(&self, sample: proxy::Sample) {
        if let Some((step, took)) = self.counters.measure(sample) {
            self.latencies.add(step, took);
        }
    }

    fn traffic(&self) -> Arc<proxy::Traffic> {
        self.counters.traffic()
    }
}
