//! An answer: claimed, recorded, kept as far as it was wished, made a rule, told to whoever waits; and taken back.
//!
//! The record comes first: what is killed in between leaves a record of an answer that does not hold, never one that
//! holds without a record. What comes to hold instead of what was wished has a second record.

use std::error::Error;

use jiff::Timestamp;

use super::about;
use crate::approval::queue::{Claim, Gone, Kept};
use crate::approval::{Answer, Breadth, Outcome, Pending, RequestId, Scope, Settled, Who, pattern};
use crate::audit::{AuditError, Event, Record};
use crate::config::decisions::{self, Decision, DecisionsError, Place};
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
    #[error("the audit log can't be written")]
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
    kept: Option<Kept>,
    /// What holds instead of what was wished, and why.
    problem: Option<String>,
}

impl Registry {
    /// Answers a request: the answer is recorded and kept, and holds when this returns.
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
        let pending = claim.pending().clone();
        let begun = self.begin(&pending, &answer, who);
        let begun = begun.and_then(|(pattern, place)| {
            self.append(decided(&pending, &answer, &pattern, who))?;
            Ok((pattern, place))
        });
        match begun {
            Ok((pattern, place)) => {
                let holds = self.keep(&pending, &answer, decision(&pending, &answer, pattern, who), place);
                Ok(self.conclude(claim, answer, holds, who))
            }
            Err(error) => {
                drop(claim);
                // Rules that came while it was claimed have not looked at it.
                self.revisit_cloister(&pending.cloister);
                Err(error)
            }
        }
    }

    /// What an answer is about, and where it is to be kept.
    fn begin(
        &self,
        pending: &Pending,
        answer: &Answer,
        who: &Who,
    ) -> Result<(Pattern, Option<Place>), AnswerError> {
        tracing::debug!(id = %pending.id, %who, "an answer");
        let pattern = wished_pattern(pending, answer)?;
        let (Some(owner), Some(session)) =
            (self.owner_of(&pending.cloister), self.session_place(&pending.cloister))
        else {
            return Err(Gone(None).into());
        };
        let place = match answer.scope {
            Scope::Once => None,
            Scope::Session => Some(session),
            Scope::Project => Some(Place::Project(owner)),
            Scope::Global => Some(Place::Global),
        };
        Ok((pattern, place))
    }

    /// Keeps an answer where it was wished; where that fails, for the cloister, in its file or in memory.
    fn keep(&self, pending: &Pending, answer: &Answer, decision: Decision, wished: Option<Place>) -> Holds {
        let Some(wished) = wished else {
            return Holds { scope: Scope::Once, kept: None, problem: None };
        };
        let remember = |place: &Place| decisions::remember(&self.paths, place, decision.clone());
        let failed = match remember(&wished) {
            Ok(_) => {
                let kept = Some(Kept { place: Some(wished), decision });
                return Holds { scope: answer.scope, kept, problem: None };
            }
            Err(error) => with_causes(&error),
        };
        let session = self.session_place(&pending.cloister).filter(|place| *place != wished);
        let place = session.filter(|place| remember(place).is_ok());
        let until = match place {
            Some(_) => "until the cloister is stopped",
            None => "until the cloister is stopped or the guardian is restarted",
        };
        let problem = format!("it could not be kept, and holds {until}: {failed}");
        let answer = Answer { scope: Scope::Session, ..answer.clone() };
        let who = decision.who.clone().unwrap_or_default();
        let record = decided(pending, &answer, &decision.pattern, who).detail(&problem);
        if let Err(error) = self.append(record) {
            tracing::error!(error = &error as &dyn Error, "that an answer holds for less is not recorded");
        }
        Holds { scope: Scope::Session, kept: Some(Kept { place, decision }), problem: Some(problem) }
    }

    /// Makes the rule hold, and tells whoever waits.
    fn conclude(&self, claim: Claim, answer: Answer, holds: Holds, who: &Who) -> Settled {
        let Holds { scope, kept, problem } = holds;
        let answer = Answer { scope, ..answer };
        let pending = claim.pending().clone();
        let mut grant = None;
        let (pattern, problem) = match &kept {
            None => {
                let pattern = Pattern::exactly(&pending.authority);
                let origin = Origin::new(OriginKind::Session).at(format!("once, {who}"));
                grant = Some(rule(answer.effect, &pattern, origin).into());
                (pattern, problem)
            }
            Some(kept) => {
                self.refresh();
                let pattern = kept.decision.pattern.clone();
                let origin = Origin::new(OriginKind::Session).at(format!("in memory, {who}"));
                let in_memory = rule(answer.effect, &pattern, origin);
                (pattern, self.make_sure(&pending, in_memory, kept.place.as_ref(), problem))
            }
        };
        let outcome = Outcome::Answered { answer, pattern: pattern.to_string(), who: who.clone() };
        let can_undo = kept.is_some();
        let settled = claim.settle(outcome.clone(), grant.as_ref(), problem.clone(), kept);
        // A claim is the only one that settles what it claims.
        settled.unwrap_or_else(|| {
            let Pending { id, cloister, project, authority, .. } = pending;
            Settled { id, cloister, project, authority, outcome, at: Timestamp::now(), problem, can_undo }
        })
    }

    /// Takes an answer back: what it let through is closed, what it refused is asked again.
    ///
    /// # Errors
    /// [`AnswerError::Unfit`] when there is nothing to take back; [`AnswerError::Decisions`] when it can't be taken out
    /// of its file: then it holds as before.
    pub(in crate::guardian) fn undo(&self, id: &RequestId, who: &Who) -> Result<(), AnswerError> {
        let Some((settled, kept)) = self.approvals.queue.take_back(id) else {
            return Err(AnswerError::Unfit(
                "this answer can't be taken back: it held once, it was taken back already, or it is not remembered \
                 here; see `cloister config show --origins`"
                    .to_owned(),
            ));
        };
        let Decision { pattern, effect, .. } = &kept.decision;
        if let Some(place) = &kept.place {
            let taken_out = self.take_out(place, &kept.decision);
            if let Err(error) = taken_out {
                self.approvals.queue.give_answer_back(id);
                return Err(error);
            }
        }
        self.forget_in_memory(None, pattern, *effect);
        self.refresh();
        let record =
            Record::new(Event::ApprovalForgotten).cloister(&settled.cloister).project(&settled.project);
        let record = record.host(settled.authority.host()).port(settled.authority.port());
        let scope = kept.place.as_ref().map_or(Scope::Session, scope_of);
        Ok(self.append(record.pattern(pattern).scope(scope).reason(said(*effect)).who(who))?)
    }

    /// Takes exactly this answer out of its file; one that was given later stays.
    fn take_out(&self, place: &Place, decision: &Decision) -> Result<(), AnswerError> {
        let loaded = decisions::load(&self.paths, place).map_err(DecisionsError::from)?;
        let same = loaded.kept.iter().find(|kept| kept.decision.pattern == decision.pattern);
        match same {
            None => Ok(()),
            Some(kept) if kept.decision == *decision => {
                decisions::forget(&self.paths, place, &decision.pattern, Some(decision.effect))?;
                Ok(())
            }
            Some(kept) => Err(AnswerError::Unfit(format!(
                "another answer about `{}` was given since ({}); take that one back",
                decision.pattern, kept.location
            ))),
        }
    }

    /// Takes remembered answers back, by their pattern.
    ///
    /// # Errors
    /// When there is none, when it has to be said which is meant, or when one can't be taken out of its file: those
    /// that were, are recorded.
    pub(in crate::guardian) fn forget(&self, forget: &Forget, who: &Who) -> Result<Forgotten, AnswerError> {
        let pattern = Pattern::parse_for(Effect::Deny, &forget.rule)?;
        let found = decisions::find(&self.paths, &pattern);
        // What can't be read is no concern of a rule that was found elsewhere.
        let problems = found.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let found: Vec<_> =
            found.kept.into_iter().filter(|(place, _)| self.is_meant(forget, place)).collect();
        let mut forgotten = Vec::new();
        if let Some((first, _)) = found.first()
            && found.iter().any(|(place, _)| place != first)
        {
            let places: Vec<&str> = found.iter().map(|(_, kept)| kept.location.as_str()).collect();
            let places = places.join(", ");
            return Err(AnswerError::Unfit(format!(
                "it stands in several places: {places}; say `--scope SCOPE` or `--cloister NAME`"
            )));
        }
        for (place, kept) in found {
            let effect = kept.decision.effect;
            decisions::forget(&self.paths, &place, &pattern, Some(effect))?;
            let scope = scope_of(&place);
            let record = Record::new(Event::ApprovalForgotten).pattern(&pattern).scope(scope);
            let record = record.reason(said(effect)).origin(&kept.location).who(who);
            let recorded = self.append(match &place {
                Place::Global => record,
                Place::Project(owner) => record.project(&owner.name),
                Place::Session(cloister, _) => record.cloister(cloister),
            });
            self.approvals
                .queue
                .close(|own| own.decision.pattern == pattern && own.place.as_ref() == Some(&place));
            let (pattern, place) = (pattern.to_string(), kept.location);
            forgotten.push(ForgottenRule { scope, pattern, effect: effect.name().to_owned(), place });
            self.refresh();
            recorded?;
        }
        for effect in [Effect::Allow, Effect::Deny] {
            for cloister in self.forget_in_memory(forget.cloister.as_ref(), &pattern, effect) {
                let record = Record::new(Event::ApprovalForgotten).pattern(&pattern).cloister(&cloister);
                self.append(record.scope(Scope::Session).reason(said(effect)).who(who))?;
                let (pattern, place) = (pattern.to_string(), "memory".to_owned());
                let effect = effect.name().to_owned();
                forgotten.push(ForgottenRule { scope: Scope::Session, pattern, effect, place });
            }
        }
        if forgotten.is_empty() {
            let rule = forget.rule.escape_debug();
            let unread = if problems.is_empty() { String::new() } else { format!(" (not read: {problems})") };
            return Err(AnswerError::Unfit(format!(
                "no remembered answer is about `{rule}`; see `cloister config show --origins`{unread}"
            )));
        }
        Ok(Forgotten { forgotten })
    }

    /// Whether a place is one of those that are meant.
    fn is_meant(&self, forget: &Forget, place: &Place) -> bool {
        let of_cloister = |wanted| match place {
            Place::Global => forget.scope == Some(Scope::Global),
            Place::Project(owner) => self.owner_of(wanted).is_none_or(|own| own == *owner),
            Place::Session(cloister, _) => cloister == wanted,
        };
        forget.scope.is_none_or(|wanted| wanted == scope_of(place))
            && forget.cloister.as_ref().is_none_or(of_cloister)
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

/// An answer as it is kept.
fn decision(pending: &Pending, answer: &Answer, pattern: Pattern, who: &Who) -> Decision {
    let now = Timestamp::now();
    Decision {
        effect: answer.effect,
        pattern,
        // People read it: no fractions of a second.
        at: Some(Timestamp::from_second(now.as_second()).unwrap_or(now)),
        who: Some(who.to_string()),
        cloister: Some(pending.cloister.clone()),
        reason: answer.reason.clone(),
    }
}

fn rule(effect: Effect, pattern: &Pattern, origin: Origin) -> Rule {
    match effect {
        Effect::Allow => Rule::allow(pattern.clone(), origin),
        Effect::Deny => Rule::deny(pattern.clone(), origin),
    }
}

/// The record of an answer.
fn decided(pending: &Pending, answer: &Answer, pattern: &Pattern, who: impl std::fmt::Display) -> Record {
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
pub(in crate::guardian) fn scope_of(place: &Place) -> Scope {
    match place {
        Place::Global => Scope::Global,
        Place::Project(_) => Scope::Project,
        Place::Session(..) => Scope::Session,
    }
}
