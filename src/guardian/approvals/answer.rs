//! An answer: claimed, kept as far as it was wished, recorded, made a rule, told to whoever waits; and taken back.

use std::error::Error;

use jiff::Timestamp;

use super::about;
use crate::approval::queue::{Claim, Gone};
use crate::approval::{Answer, Breadth, Outcome, Pending, RequestId, Scope, Settled, Who, pattern};
use crate::audit::{AuditError, Event, Record};
use crate::config::decisions::{self, Decision, DecisionsError, Place, Remembered};
use crate::guardian::control::api::{Forget, Forgotten, ForgottenRule};
use crate::guardian::registry::Registry;
use crate::policy::{Effect, InvalidPattern, Origin, OriginKind, Pattern, Rule};
use crate::text::with_causes;

/// Why an answer is not taken, or not taken back.
#[derive(Debug, thiserror::Error)]
pub(in crate::guardian) enum AnswerError {
    #[error(transparent)]
    Gone(#[from] Gone),
    #[error("{0}")]
    Unfit(String),
    #[error("nothing has changed, for the audit log can't be written")]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Decisions(#[from] DecisionsError),
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
}

/// What became of an answer.
struct Holds {
    /// How far it reaches.
    scope: Scope,
    place: Option<Place>,
    /// What holds instead of what was wished, and why.
    problem: Option<String>,
}

impl Registry {
    /// Answers a request: the answer is kept, recorded, and holds when this returns.
    ///
    /// # Errors
    /// Then the request waits as before.
    pub(in crate::guardian) fn answer(
        &self,
        id: &RequestId,
        answer: Answer,
        who: &Who,
    ) -> Result<Settled, AnswerError> {
        let claim = self.approvals.queue.claim(id)?;
        let pattern = wished_pattern(claim.pending(), &answer)?;
        let holds = self.keep(claim.pending(), &answer, &pattern, who);
        let answer = Answer { scope: holds.scope, ..answer };
        let record = decided(claim.pending(), &answer, &pattern, who);
        let record = holds.problem.iter().fold(record, Record::detail);
        if let Err(error) = self.append(record) {
            self.take_out(claim.pending(), &holds, &pattern);
            return Err(error.into());
        }
        Ok(self.conclude(claim, (answer, pattern), holds, who))
    }

    /// Makes the rule hold, and tells whoever waits.
    fn conclude(&self, claim: Claim, said: (Answer, Pattern), holds: Holds, who: &Who) -> Settled {
        let (answer, pattern) = said;
        let Holds { scope, problem, .. } = holds;
        let rule = |at: String| {
            let origin = Origin::new(OriginKind::Session).at(at);
            match answer.effect {
                Effect::Allow => Rule::allow(pattern.clone(), origin),
                Effect::Deny => Rule::deny(pattern.clone(), origin),
            }
        };
        let grant = (scope == Scope::Once).then(|| rule(format!("once, {who}")).into());
        let pending = claim.pending().clone();
        let problem = if scope == Scope::Once {
            problem
        } else {
            self.refresh();
            self.make_sure(&pending, answer.effect, || rule(format!("in memory, {who}")), problem)
        };
        let outcome = Outcome::Answered { answer, pattern: pattern.to_string(), who: who.clone() };
        let can_undo = scope != Scope::Once;
        let settled = claim.settle(outcome.clone(), grant.as_ref(), problem.clone(), can_undo);
        // A claim is the only one that settles what it claims.
        settled.unwrap_or_else(|| {
            let Pending { id, cloister, project, authority, .. } = pending;
            Settled { id, cloister, project, authority, outcome, at: Timestamp::now(), problem, can_undo }
        })
    }

    /// Keeps an answer where it was wished; where that fails, as long as the cloister runs.
    fn keep(&self, pending: &Pending, answer: &Answer, pattern: &Pattern, who: &Who) -> Holds {
        let Some(owner) = self.owner_of(&pending.cloister) else {
            return Holds { scope: Scope::Once, place: None, problem: None };
        };
        let session = || self.session_place(&pending.cloister);
        let wished = match answer.scope {
            Scope::Once => None,
            Scope::Session => session(),
            Scope::Project => Some(Place::Project(owner)),
            Scope::Global => Some(Place::Global),
        };
        let Some(wished) = wished else { return Holds { scope: Scope::Once, place: None, problem: None } };
        let decision = Decision {
            effect: answer.effect,
            pattern: pattern.clone(),
            at: Some(whole_seconds(Timestamp::now())),
            who: Some(who.to_string()),
            cloister: Some(pending.cloister.clone()),
            reason: answer.reason.clone(),
        };
        let remember = |place: &Place| decisions::remember(&self.paths, place, decision.clone());
        let failed = match remember(&wished) {
            Ok(Remembered { .. }) => {
                return Holds { scope: answer.scope, place: Some(wished), problem: None };
            }
            Err(error) => with_causes(&error),
        };
        let problem = format!("it could not be kept, and holds until the cloister is stopped: {failed}");
        match session().filter(|place| *place != wished) {
            Some(place) if remember(&place).is_ok() => {
                Holds { scope: Scope::Session, place: Some(place), problem: Some(problem) }
            }
            _ => Holds { scope: Scope::Session, place: None, problem: Some(problem) },
        }
    }

    /// Takes out again what was kept of an answer that can't be recorded.
    fn take_out(&self, pending: &Pending, holds: &Holds, pattern: &Pattern) {
        let Some(place) = &holds.place else { return };
        if let Err(error) = decisions::forget(&self.paths, place, pattern, None) {
            tracing::error!(
                error = &error as &dyn Error,
                cloister = %pending.cloister,
                "an answer that is not recorded stays in its file"
            );
        }
        self.refresh();
    }

    /// Takes an answer back: what it let through is closed, what it refused is asked again.
    ///
    /// # Errors
    /// Then it holds as before.
    pub(in crate::guardian) fn undo(&self, id: &RequestId, who: &Who) -> Result<(), AnswerError> {
        let settled = self.approvals.queue.settled(id).filter(|settled| settled.can_undo);
        let Some(Settled {
            cloister,
            project,
            authority,
            outcome: Outcome::Answered { answer, pattern, .. },
            ..
        }) = settled
        else {
            return Err(AnswerError::Unfit(
                "this answer can't be taken back: it held once, it was taken back already, or it is not remembered \
                 here; see `cloister config show --origins`"
                    .to_owned(),
            ));
        };
        let pattern = Pattern::parse_for(answer.effect, &pattern)?;
        let place = match answer.scope {
            Scope::Once => None,
            Scope::Session => self.session_place(&cloister),
            Scope::Project => self.owner_of(&cloister).map(Place::Project),
            Scope::Global => Some(Place::Global),
        };
        let record = Record::new(Event::ApprovalForgotten).cloister(&cloister).project(&project);
        let record = record.host(authority.host()).port(authority.port());
        self.append(record.pattern(&pattern).scope(answer.scope).reason(said(answer.effect)).who(who))?;
        if let Some(place) = place {
            decisions::forget(&self.paths, &place, &pattern, Some(answer.effect))?;
        }
        self.forget_in_memory(&cloister, &pattern);
        self.refresh();
        self.approvals.queue.close(id);
        Ok(())
    }

    /// Takes remembered answers back, by their pattern.
    ///
    /// # Errors
    /// When there is none, or when it has to be said which is meant.
    pub(in crate::guardian) fn forget(&self, forget: &Forget, who: &Who) -> Result<Forgotten, AnswerError> {
        let pattern = Pattern::parse_for(Effect::Deny, &forget.rule)?;
        let mut found = Vec::new();
        for place in self.places(forget) {
            let loaded = decisions::load(&self.paths, &place).map_err(DecisionsError::from)?;
            let is_meant = |decision: &Decision| decision.pattern == pattern;
            found.extend(
                loaded
                    .kept
                    .into_iter()
                    .filter(|kept| is_meant(&kept.decision))
                    .map(|kept| (place.clone(), kept)),
            );
        }
        let scopes: Vec<Scope> = found.iter().map(|(place, _)| scope_of(place)).collect();
        if found.is_empty() {
            let rule = &forget.rule;
            return Err(AnswerError::Unfit(format!(
                "no remembered answer is about `{}`; see `cloister config show --origins`",
                rule.escape_debug()
            )));
        }
        if forget.scope.is_none() && scopes.iter().any(|scope| *scope != scopes[0]) {
            let places: Vec<&str> = found.iter().map(|(_, kept)| kept.location.as_str()).collect();
            let places = places.join(", ");
            return Err(AnswerError::Unfit(format!(
                "it stands in several places: {places}; say `--scope SCOPE`"
            )));
        }
        let mut forgotten = Vec::new();
        for (place, kept) in found {
            let effect = kept.decision.effect;
            let scope = scope_of(&place);
            let record = Record::new(Event::ApprovalForgotten).pattern(&pattern).scope(scope);
            let record = record.reason(said(effect)).origin(&kept.location).who(who);
            self.append(match &place {
                Place::Global => record,
                Place::Project(owner) => record.project(&owner.name),
                Place::Session(cloister, _) => record.cloister(cloister),
            })?;
            decisions::forget(&self.paths, &place, &pattern, Some(effect))?;
            if let Place::Session(cloister, _) = &place {
                self.forget_in_memory(cloister, &pattern);
            }
            let (pattern, place) = (pattern.to_string(), kept.location);
            forgotten.push(ForgottenRule { scope, pattern, effect: effect.name().to_owned(), place });
        }
        self.refresh();
        self.approvals.queue.touch();
        Ok(Forgotten { forgotten })
    }
}

/// The pattern that an answer wishes for.
fn wished_pattern(pending: &Pending, answer: &Answer) -> Result<Pattern, AnswerError> {
    if answer.breadth == Breadth::Wildcard && answer.scope == Scope::Once {
        let what = "an answer for once is about what waits, and no wildcard; choose another scope";
        return Err(AnswerError::Unfit(what.to_owned()));
    }
    pattern(&pending.authority, answer.breadth).ok_or_else(|| {
        AnswerError::Unfit(format!(
            "no wildcard is offered for `{}`: the names beside it belong to others",
            pending.authority
        ))
    })
}

/// The record of an answer.
fn decided(pending: &Pending, answer: &Answer, pattern: &Pattern, who: &Who) -> Record {
    let record = about(Event::ApprovalDecided, pending).scope(answer.scope).pattern(pattern).who(who);
    let record = record.reason(said(answer.effect));
    answer.reason.iter().fold(record, |record, reason| record.detail(format!("because: {reason}")))
}

/// What an answer says, as a code.
fn said(effect: Effect) -> &'static str {
    match effect {
        Effect::Allow => "allowed",
        Effect::Deny => "denied",
    }
}

/// The scope of what stands in a place.
pub(super) fn scope_of(place: &Place) -> Scope {
    match place {
        Place::Global => Scope::Global,
        Place::Project(_) => Scope::Project,
        Place::Session(..) => Scope::Session,
    }
}

/// People read it: no fractions of a second.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
