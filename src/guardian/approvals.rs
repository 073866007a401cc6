//! Where the parts of an approval meet: the proxy that holds a client, the queue, the audit log, the human.
//!
//! A [`Counsel`] asks for one sandbox. What a human says is kept and made a rule by `answer`, from the page (`desk`), the
//! control socket, and for polite requests (`asks`) alike.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;

use super::ledger::Ledger;
use super::notify::{Caller, Counts, Look, Ways};
use super::registry::tokens;
use crate::approval::queue::{Asked, End, Entered, Queue};
use crate::approval::{Pending, RequestId, Voice};
use crate::audit::{Event, Record};
use crate::config::Approvals as Wishes;
use crate::name::{BranchName, CloisterName, ProjectName};
use crate::policy::{Decision, Question, Request};
use crate::proxy::{Decider, Deciding, Policies, Verdict};
use crate::web::Page;

pub(super) mod answer;
pub(super) mod asks;
pub(super) mod desk;

/// What the log says of what no connection asked for.
const POLITELY: &str = "asked politely";

/// All that waits for a human, and the ways to reach one.
pub(super) struct Approvals {
    pub(super) queue: Arc<Queue>,
    log: Arc<Ledger>,
    caller: Caller,
    /// Whether nothing is asked here any more.
    is_over: watch::Sender<bool>,
    /// The page, unless no port was free.
    page: Mutex<Option<Arc<Page>>>,
}

impl Approvals {
    pub(super) fn new(log: Arc<Ledger>, caller: Caller) -> Self {
        Self {
            queue: Arc::default(),
            log,
            caller,
            is_over: watch::Sender::new(false),
            page: Mutex::default(),
        }
    }

    /// Counts one who looks at what waits.
    pub(super) fn look(&self) -> Look {
        self.caller.look()
    }

    /// How often somebody was called for each cloister, and when that changes.
    pub(super) fn calls(&self) -> watch::Receiver<BTreeMap<CloisterName, u64>> {
        self.caller.calls()
    }

    /// Forgets what is known of a cloister that is over.
    pub(super) fn forget(&self, cloister: &CloisterName) {
        self.queue.forget(cloister);
        self.caller.forget(cloister);
    }

    /// How often somebody was called, and by what.
    pub(super) fn called(&self) -> Counts {
        self.caller.counts()
    }

    /// Has somebody called when nobody looks.
    fn call(&self, pending: &Pending, wishes: &Wishes) {
        let page = self.page_address();
        let command = wishes.notify_command.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        self.caller.waiting(pending, &Ways { desktop: wishes.notify, command, page });
    }

    fn page(&self) -> Option<Arc<Page>> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the page listens.
    pub(super) fn page_socket(&self) -> Option<SocketAddr> {
        self.page().map(|page| page.address())
    }

    /// Where the page is; it lets nobody in by itself.
    pub(super) fn page_address(&self) -> Option<String> {
        self.page().map(|page| format!("http://{}/", page.address()))
    }

    /// Makes a link that logs a browser in; `None` without a page.
    pub(super) fn page_link(&self) -> Option<io::Result<String>> {
        self.page().map(|page| page.login_link())
    }

    /// Has a page.
    pub(super) fn open(&self, page: &Arc<Page>) {
        *self.page.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(page));
    }

    /// Serves the page until nothing is asked here any more; then its port is free.
    pub(super) async fn serve_page(&self, page: Arc<Page>) {
        let served = page.serve(self.over()).await;
        if let Err(error) = served {
            tracing::error!(error = &error as &dyn std::error::Error, "the page is not served");
        }
        *self.page.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Asks nothing any more: what waits here is told to ask again elsewhere.
    pub(super) fn close(&self) {
        self.is_over.send_replace(true);
    }

    /// Whether nothing is asked here any more.
    pub(super) fn is_over(&self) -> bool {
        *self.is_over.borrow()
    }

    /// Waits until nothing is asked here any more.
    pub(super) fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut is_over = self.is_over.subscribe();
        async move {
            // The sender ends with the process.
            let _ = is_over.wait_for(|is_over| *is_over).await;
        }
    }

    /// Tells those who were called what has ended, and those who look how many wait; runs as long as the guardian.
    pub(super) async fn follow(self: Arc<Self>) {
        tokio::join!(self.tell_ends(), self.queue.tell_counts());
    }

    async fn tell_ends(&self) {
        let mut changes = self.queue.changes();
        let mut last = None;
        while changes.changed().await.is_ok() {
            let settled = self.queue.settled_after(last.as_ref());
            for ended in &settled {
                self.caller.settled(ended, self.queue.count(&ended.cloister));
            }
            last = settled.into_iter().next().map(|newest| newest.id).or(last);
        }
    }
}

/// What the settings say about asking; they may change while a sandbox runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    /// How long a request may wait.
    pub(super) patience: Duration,
    /// How somebody is called.
    pub(super) wishes: Wishes,
}

/// Asks for one sandbox.
pub(super) struct Counsel {
    pub(super) approvals: Arc<Approvals>,
    pub(super) cloister: CloisterName,
    pub(super) project: ProjectName,
    pub(super) branch: Option<BranchName>,
    pub(super) policy: Arc<dyn Policies>,
    pub(super) terms: RwLock<Terms>,
}

impl Counsel {
    /// Takes other settings; what waits already keeps those that it was asked with.
    pub(super) fn adopt(&self, terms: Terms) {
        *self.terms.write().unwrap_or_else(PoisonError::into_inner) = terms;
    }

    /// Asks a human, and waits for the answer.
    pub(super) async fn ask(&self, question: &Question, voice: Voice) -> Verdict {
        let Terms { patience, wishes } = self.terms.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Ok(bytes) = tokens::random::<8>() else { return Verdict::Unrecorded };
        let request = question.request();
        let asked = Asked {
            id: RequestId::from_bytes(bytes),
            cloister: self.cloister.clone(),
            project: self.project.clone(),
            branch: self.branch.clone(),
            authority: request.authority.clone(),
            voice,
            patience,
        };
        let waiter = match self.approvals.queue.enter(asked) {
            Err(flood) => return Verdict::TooMany(flood.wait),
            Ok(Entered::Granted(rule)) => return Verdict::Judge(Some(rule)),
            Ok(Entered::Joined(waiter)) => waiter,
            Ok(Entered::First(waiter, pending)) => {
                if let Err(error) = self.approvals.log.append(asking(&pending)) {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "nobody is asked without a record"
                    );
                    waiter.discard();
                    return Verdict::Unrecorded;
                }
                waiter.show();
                self.approvals.call(&pending, &wishes);
                waiter
            }
        };
        // An answer that came between the verdict and the question has not seen this one.
        if !self.is_asked(&request) {
            return Verdict::Judge(None);
        }
        match waiter.wait().await {
            End::Judge(grant) => Verdict::Judge(grant),
            End::TimedOut => Verdict::TimedOut(patience),
        }
    }

    fn is_asked(&self, request: &Request<'_>) -> bool {
        let policy = self.policy.current();
        policy.is_some_and(|policy| matches!(policy.evaluate(request), Decision::Ask(_)))
    }
}

impl Decider for Counsel {
    fn decide<'a>(&'a self, question: &'a Question, user_agent: Option<&'a str>) -> Deciding<'a> {
        Box::pin(self.ask(question, Voice::Connection { user_agent: user_agent.map(str::to_owned) }))
    }
}

/// The record of a request, written before anybody sees it.
fn asking(pending: &Pending) -> Record {
    let record = about(Event::ProxyAsk, pending);
    match &pending.voice {
        Voice::Connection { user_agent: Some(said) } => record.said("client", said),
        Voice::Polite { reason: Some(said) } => record.said(POLITELY, said),
        Voice::Connection { user_agent: None } => record,
        Voice::Polite { reason: None } => record.detail(POLITELY),
    }
}

/// Begins a record about a request.
fn about(event: Event, pending: &Pending) -> Record {
    let record = Record::new(event).cloister(&pending.cloister).project(&pending.project);
    let record = pending.branch.iter().fold(record, Record::branch);
    record.host(pending.authority.host()).port(pending.authority.port())
}
