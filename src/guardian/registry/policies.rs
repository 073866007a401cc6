//! The rules of one sandbox as they hold now: those of the settings, and what was answered for it alone.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Registry, Served, settings};
use crate::approval::Pending;
use crate::config::decisions::Place;
use crate::config::{Config, Owner};
use crate::guardian::control::judgement::usual_way;
use crate::name::CloisterName;
use crate::policy::{Authority, Decision, Effect, Pattern, Policy, Request, Rule};
use crate::proxy::Policies;

/// A policy that is replaced as a whole.
pub(super) struct CurrentPolicy(RwLock<Arc<Policy>>);

impl CurrentPolicy {
    pub(super) fn new(policy: Policy) -> Self {
        Self(RwLock::new(Arc::new(policy)))
    }

    pub(super) fn replace(&self, policy: Policy) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }
}

impl Policies for CurrentPolicy {
    fn current(&self) -> Option<Arc<Policy>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// An answer that holds although its file does not say it.
pub(super) struct InMemory {
    pub(super) rule: Rule,
    /// The file that would say it, could it be read.
    pub(super) place: Option<Place>,
}

/// Makes the policy of a sandbox of its settings and what was answered for it alone; no pin leads to where the guardian
/// itself listens.
pub(super) fn policy<'a>(
    config: &Config,
    listening: Option<SocketAddr>,
    answers: impl IntoIterator<Item = &'a Rule>,
) -> Policy {
    let mut input = config.policy_input(Vec::from_iter(listening));
    input.rules.extend(answers.into_iter().cloned());
    Policy::new(input)
}

impl Served {
    /// Whose settings and decisions are its own.
    pub(super) fn owner(&self) -> Owner {
        self.kept.registration.owner()
    }

    /// Has the proxy obey what the settings and the answers say now.
    pub(super) fn obey(&self) {
        let listening = self.asks.counsel.approvals.page_socket();
        self.policy.replace(policy(
            &self.config,
            listening,
            self.grants.iter().chain(self.in_memory.iter().map(|own| &own.rule)),
        ));
    }

    /// Takes other settings.
    pub(super) fn take(&mut self, config: &Arc<Config>) {
        self.config = Arc::clone(config);
        let (settings, terms) = settings(config);
        self.client.apply(settings);
        self.asks.counsel.adopt(terms);
    }

    /// Forgets what held in memory while a file could not be read that says by now what holds.
    pub(super) fn forget_what_is_read(&mut self, is_read: impl Fn(&Place) -> bool) -> bool {
        let before = self.in_memory.len();
        self.in_memory.retain(|own| !own.place.as_ref().is_some_and(&is_read));
        self.in_memory.len() < before
    }

    /// What the rules say of a destination at present.
    fn decision(&self, authority: &Authority) -> Option<Decision> {
        let cloister = &self.kept.registration.cloister;
        let request = Request { cloister, authority, via: usual_way(authority), grant: None };
        Some(self.policy.current()?.evaluate(&request))
    }

    /// How many of its requests wait for a human.
    pub(super) fn waiting(&self) -> usize {
        self.asks.counsel.approvals.queue.count(&self.kept.registration.cloister)
    }

    /// Whether a human is to be asked about a destination.
    pub(super) fn is_asked(&self, authority: &Authority) -> bool {
        matches!(self.decision(authority), Some(Decision::Ask(_)))
    }
}

impl Registry {
    /// Keeps every cloister from the page, which has come to listen.
    pub(in crate::guardian) fn keep_from_page(&self) {
        for served in self.served().values() {
            served.obey();
            served.client.revalidate();
        }
    }

    /// Whose settings and decisions are a cloister's own.
    pub(in crate::guardian) fn owner_of(&self, cloister: &CloisterName) -> Option<Owner> {
        self.served().get(cloister).map(Served::owner)
    }

    /// Where the answers for a cloister alone are kept.
    pub(in crate::guardian) fn session_place(&self, cloister: &CloisterName) -> Option<Place> {
        let served = self.served();
        served.get(cloister).map(|served| Place::Session(cloister.clone(), served.kept.id()))
    }

    /// Makes sure that an answer holds that was kept at `place`; where the files do not say it (they are broken, or could
    /// not be written), it holds in memory, and the problem says so.
    pub(in crate::guardian) fn make_sure(
        &self,
        pending: &Pending,
        rule: Rule,
        place: Option<&Place>,
        problem: Option<String>,
    ) -> Option<String> {
        let mut served = self.served();
        let Some(served) = served.get_mut(&pending.cloister) else { return problem };
        let holds = match (served.decision(&pending.authority), rule.effect()) {
            // What is denied by now stays so, whatever was answered.
            (Some(Decision::Allow(_)), Effect::Allow) | (Some(Decision::Deny(_)), _) => true,
            (Some(Decision::Allow(_)), Effect::Deny) | (Some(Decision::Ask(_)) | None, _) => false,
        };
        if holds {
            return problem;
        }
        served.in_memory.push(InMemory { rule, place: place.cloned() });
        served.obey();
        served.client.revalidate();
        self.revisit(served);
        Some(problem.unwrap_or_else(|| {
            "it is kept, but a file of the settings is broken; until that is mended, it holds for this cloister alone"
                .to_owned()
        }))
    }

    /// Ends the requests of a cloister that its rules decide by now.
    pub(super) fn revisit(&self, served: &Served) {
        let cloister = &served.kept.registration.cloister;
        self.approvals.queue.revisit(cloister, |authority| served.is_asked(authority));
    }

    /// Ends the requests of a cloister that its rules decide by now.
    pub(in crate::guardian) fn revisit_cloister(&self, cloister: &CloisterName) {
        if let Some(served) = self.served().get(cloister) {
            self.revisit(served);
        }
    }

    /// Forgets answers that hold in memory, of one cloister or of all; says whose they were.
    pub(in crate::guardian) fn forget_in_memory(
        &self,
        cloister: Option<&CloisterName>,
        pattern: &Pattern,
        effect: Effect,
    ) -> Vec<CloisterName> {
        let mut forgotten = Vec::new();
        for (name, served) in self.served().iter_mut() {
            let is_meant = |own: &InMemory| own.rule.pattern() == pattern && own.rule.effect() == effect;
            if cloister.is_some_and(|wanted| wanted != name) || !served.in_memory.iter().any(is_meant) {
                continue;
            }
            served.in_memory.retain(|own| !is_meant(own));
            served.obey();
            served.client.revalidate();
            forgotten.push(name.clone());
        }
        forgotten
    }
}
