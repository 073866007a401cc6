//! What a human says on the page, brought to the desk.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Redirect, Response};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::gate::{Refusal, Visit, Wants};
use super::routes::at_desk;
use super::views::told;
use super::{Desk, DeskError, Shared};
use crate::approval::{Answer, Breadth, Outcome, RequestId, Scope, Settled, Who};
use crate::policy::Effect;

/// How old a request has to be before the page answers it: nobody has read what came in this moment (A5).
const ARMING: SignedDuration = SignedDuration::from_millis(500);
/// The longest reason, in characters.
const MAX_REASON: usize = 500;

pub(super) async fn allow(
    State(shared): State<Arc<Shared>>,
    Extension(visit): Extension<Visit>,
    Path(id): Path<String>,
) -> Response {
    decide(&shared, &visit, &id, Effect::Allow).await.unwrap_or_else(|refusal| refusal.answer(visit.wants))
}

pub(super) async fn deny(
    State(shared): State<Arc<Shared>>,
    Extension(visit): Extension<Visit>,
    Path(id): Path<String>,
) -> Response {
    decide(&shared, &visit, &id, Effect::Deny).await.unwrap_or_else(|refusal| refusal.answer(visit.wants))
}

async fn decide(shared: &Arc<Shared>, visit: &Visit, id: &str, effect: Effect) -> Result<Response, Refusal> {
    let id = request_id(id)?;
    is_seen(visit)?;
    let answer = answer(visit, effect)?;
    let who = who(visit);
    let settled = at_desk(shared, move |desk| {
        if is_too_early(desk, &id, Timestamp::now()) {
            return Err(too_early());
        }
        desk.answer(&id, answer, who).map_err(|error| refused(error, StatusCode::BAD_REQUEST))
    })
    .await??;
    let status = status(&settled);
    let (scope, pattern) = match &settled.outcome {
        Outcome::Answered { answer, pattern, .. } => (Some(answer.scope), Some(pattern.clone())),
        Outcome::Ruled | Outcome::TimedOut | Outcome::Withdrawn => (None, None),
    };
    Ok(done(shared, visit, told(&settled), |text| {
        json!({
            "status": status, "id": settled.id, "scope": scope, "pattern": pattern, "problem": settled.problem,
            "text": text, "can_undo": settled.can_undo,
        })
    }))
}

/// Denies all requests that a form names, once each.
pub(super) async fn deny_all(
    State(shared): State<Arc<Shared>>,
    Extension(visit): Extension<Visit>,
) -> Response {
    deny_named(&shared, &visit).await.unwrap_or_else(|refusal| refusal.answer(visit.wants))
}

async fn deny_named(shared: &Arc<Shared>, visit: &Visit) -> Result<Response, Refusal> {
    is_seen(visit)?;
    let ids: Vec<RequestId> = visit.fields("id").map(request_id).collect::<Result<_, _>>()?;
    let answer = answer(visit, Effect::Deny)?;
    let who = who(visit);
    let (mut denied, mut left) = (Vec::new(), 0_usize);
    let results = at_desk(shared, move |desk| {
        let now = Timestamp::now();
        let one = |id: RequestId| {
            let is_denied =
                !is_too_early(desk, &id, now) && desk.answer(&id, answer.clone(), who.clone()).is_ok();
            (id, is_denied)
        };
        ids.into_iter().map(one).collect::<Vec<_>>()
    })
    .await?;
    for (id, is_denied) in results {
        if is_denied { denied.push(id) } else { left += 1 }
    }
    let text = match (denied.len(), left) {
        (0, 0) => "Nothing was denied: no request was named.".to_owned(),
        (1, 0) => "1 request was denied.".to_owned(),
        (count, 0) => format!("{count} requests were denied."),
        (count, left) => {
            format!("{count} denied; {left} could not be: they are over, or too new to be answered.")
        }
    };
    Ok(done(
        shared,
        visit,
        text,
        |text| json!({ "status": "denied", "ids": denied, "left": left, "text": text }),
    ))
}

/// Takes an answer back.
pub(super) async fn undo(
    State(shared): State<Arc<Shared>>,
    Extension(visit): Extension<Visit>,
    Path(id): Path<String>,
) -> Response {
    take_back(&shared, &visit, &id).await.unwrap_or_else(|refusal| refusal.answer(visit.wants))
}

async fn take_back(shared: &Arc<Shared>, visit: &Visit, id: &str) -> Result<Response, Refusal> {
    let (id, who) = (request_id(id)?, who(visit));
    is_seen(visit)?;
    let named = id.clone();
    let undone = at_desk(shared, move |desk| desk.undo(&id, who)).await?;
    undone.map_err(|error| refused(error, StatusCode::CONFLICT))?;
    let text = "The answer was taken back: the next request is asked about again.".to_owned();
    Ok(done(shared, visit, text, |text| json!({ "status": "undone", "id": named, "text": text })))
}

/// Tells how it went: as JSON, or on the page to which the browser goes back.
fn done(
    shared: &Shared,
    visit: &Visit,
    text: String,
    json: impl FnOnce(&str) -> serde_json::Value,
) -> Response {
    match visit.wants {
        Wants::Json => Json(json(&text)).into_response(),
        Wants::Page => {
            shared.sessions.set_flash(&visit.visitor.hash, text);
            Redirect::to("/").into_response()
        }
    }
}

fn who(visit: &Visit) -> Who {
    Who::Page(visit.visitor.number())
}

fn request_id(text: &str) -> Result<RequestId, Refusal> {
    RequestId::parse(text).map_err(|_| gone("There is no such request.".to_owned()))
}

fn answer(visit: &Visit, effect: Effect) -> Result<Answer, Refusal> {
    let unfit = |text: String| Refusal::new(StatusCode::BAD_REQUEST, "unfit", "Not possible", text);
    let scope = match visit.field("scope") {
        Some(text) => {
            text.parse().map_err(|error: crate::approval::UnknownScope| unfit(error.to_string()))?
        }
        None => Scope::Once,
    };
    let breadth = match visit.field("breadth") {
        Some("exact") | None => Breadth::Exact,
        Some("wildcard") => Breadth::Wildcard,
        Some(_) => return Err(unfit("An answer is about `exact` or `wildcard`.".to_owned())),
    };
    let reason = visit.field("reason").map(str::trim).filter(|reason| !reason.is_empty());
    if reason.is_some_and(|reason| reason.chars().count() > MAX_REASON) {
        return Err(unfit(format!("A reason has at most {MAX_REASON} characters.")));
    }
    Ok(Answer { effect, scope, breadth, reason: reason.map(str::to_owned) })
}

pub(super) fn is_too_early(desk: &dyn Desk, id: &RequestId, now: Timestamp) -> bool {
    let snapshot = desk.snapshot();
    let pending = snapshot.pending.iter().find(|pending| pending.id == *id);
    pending.is_some_and(|pending| is_fresh(pending.created, now))
}

/// Refuses a form of a page that came in this moment, maybe under a hand that was about to click on the one before.
/// Forms that the script has armed don't say when they came.
fn is_seen(visit: &Visit) -> Result<(), Refusal> {
    let Some(shown) = visit.field("shown") else { return Ok(()) };
    let shown = shown.parse().ok().and_then(|shown| Timestamp::from_millisecond(shown).ok());
    if shown.is_none_or(|shown| is_fresh(shown, Timestamp::now())) {
        let text = "The page came less than half a second ago. Read what stands there, then answer again.";
        return Err(Refusal::new(StatusCode::CONFLICT, "too_early", "Too early", text));
    }
    Ok(())
}

/// Tells whether something came in this moment; a clock that was set back makes nothing fresh.
fn is_fresh(came: Timestamp, now: Timestamp) -> bool {
    let age = now.duration_since(came);
    age >= SignedDuration::ZERO && age < ARMING
}

fn too_early() -> Refusal {
    let text = "This request came less than half a second ago. Read what it asks for, then answer again.";
    Refusal::new(StatusCode::CONFLICT, "too_early", "Too early", text)
}

fn gone(text: String) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "gone", "No longer there", text)
}

/// Tells the desk's error; `unfit` is the status of what makes no sense.
fn refused(error: DeskError, unfit: StatusCode) -> Refusal {
    match error {
        DeskError::Gone(text) => gone(text),
        DeskError::Unfit(text) => Refusal::new(unfit, "unfit", "Not possible", text),
        DeskError::Failed(text) => {
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", "Not done", text)
        }
    }
}

/// How a request ended, in one word.
pub(super) fn status(settled: &Settled) -> &'static str {
    match &settled.outcome {
        Outcome::Answered { answer, .. } => match answer.effect {
            Effect::Allow => "allowed",
            Effect::Deny => "denied",
        },
        Outcome::Ruled => "ruled",
        Outcome::TimedOut => "timeout",
        Outcome::Withdrawn => "withdrawn",
    }
}
