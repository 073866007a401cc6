//! What the command line asks and answers about approvals.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use tokio::time::timeout;

use super::api::{Calls, Forget, PageLink};
use super::serve::MAX_CONVERSATIONS;
use super::{Control, Peer, chain, refuse};
use crate::approval::{Answer, RequestId, Who};
use crate::guardian::approvals::answer::AnswerError;
use crate::guardian::registry::Registry;
use crate::name::CloisterName;

/// How long an answer waits for something new.
const LONG_POLL: Duration = Duration::from_secs(20);
/// How many may wait for something new; the others of the conversations belong to those who ask for something else.
pub(super) const MAX_POLLS: usize = MAX_CONVERSATIONS / 4 * 3;

pub(super) fn routes() -> Router<Arc<Control>> {
    Router::new()
        .route("/approvals/{id}", post(answer))
        .route("/approvals/{id}/undo", post(undo))
        .route("/forget", post(forget))
        .route("/page/link", post(link))
}

/// Those that wait while nothing is new: they must not keep a handover from happening.
pub(super) fn waiting_routes() -> Router<Arc<Control>> {
    Router::new().route("/approvals", get(list)).route("/approvals/calls", get(calls))
}

/// Which version the caller has.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Since {
    since: Option<u64>,
}

/// Whose calls the caller wants to hear of.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    cloister: CloisterName,
    since: u64,
}

async fn list(State(control): State<Arc<Control>>, Query(Since { since }): Query<Since>) -> Response {
    let approvals = &control.registry.approvals;
    if let Some(since) = since {
        let Ok(_slot) = control.polls.try_acquire() else { return crowded() };
        let _look = approvals.look();
        let mut changes = approvals.queue.changes();
        tokio::select! {
            // Its sender lives with the queue.
            _ = timeout(LONG_POLL, changes.wait_for(|version| *version != since)) => {}
            () = approvals.over() => {}
        }
    }
    as_guardian(&control, || Json(approvals.queue.snapshot()).into_response())
}

/// Answers, unless nothing is asked here any more: whoever waits for news must not ask again at once then. When another
/// guardian has taken over, it is that one's to answer.
fn as_guardian(control: &Control, answer: impl FnOnce() -> Response) -> Response {
    if control.is_replaced() {
        return refuse(StatusCode::MISDIRECTED_REQUEST, "another guardian has taken over");
    }
    if control.registry.approvals.is_over() {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "the guardian is stopping");
    }
    answer()
}

/// The answer when too many wait for news already.
fn crowded() -> Response {
    refuse(StatusCode::SERVICE_UNAVAILABLE, "too many wait for news of the guardian already")
}

async fn calls(
    State(control): State<Arc<Control>>,
    Query(Whose { cloister, since }): Query<Whose>,
) -> Response {
    let Ok(_slot) = control.polls.try_acquire() else { return crowded() };
    let approvals = &control.registry.approvals;
    let mut calls = approvals.calls();
    let number = |calls: &std::collections::BTreeMap<CloisterName, u64>| {
        calls.get(&cloister).copied().unwrap_or_default()
    };
    tokio::select! {
        _ = timeout(LONG_POLL, calls.wait_for(|calls| number(calls) != since)) => {}
        () = approvals.over() => {}
    }
    let number = number(&approvals.calls().borrow());
    as_guardian(&control, || Json(Calls { number }).into_response())
}

/// Who asks at the control socket.
fn who(peer: Peer) -> Who {
    // The kernel says it, or the caller would not have come so far.
    Who::Terminal(peer.uid.unwrap_or_default())
}

async fn answer(
    State(control): State<Arc<Control>>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    body: Bytes,
) -> Response {
    let (id, answer) = match (RequestId::parse(&id), serde_json::from_slice::<Answer>(&body)) {
        (Ok(id), Ok(answer)) => (id, answer),
        (Err(error), _) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
        (_, Err(error)) => return refuse(StatusCode::BAD_REQUEST, &format!("this is no answer: {error}")),
    };
    with_registry(control, move |registry| registry.answer(&id, answer, &who(peer))).await
}

async fn undo(
    State(control): State<Arc<Control>>,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
) -> Response {
    match RequestId::parse(&id) {
        Ok(id) => with_registry(control, move |registry| registry.undo(&id, &who(peer))).await,
        Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

async fn forget(
    State(control): State<Arc<Control>>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Response {
    match serde_json::from_slice::<Forget>(&body) {
        Ok(meant) => with_registry(control, move |registry| registry.forget(&meant, &who(peer))).await,
        Err(error) => refuse(StatusCode::BAD_REQUEST, &format!("this names no rule: {error}")),
    }
}

async fn link(State(control): State<Arc<Control>>) -> Response {
    match control.registry.approvals.page_link() {
        Some(Ok(url)) => Json(PageLink { url }).into_response(),
        Some(Err(error)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &chain(&error)),
        None => {
            let why = "the guardian has no page: no port from 9999 on was free when it started; free one and run \
                       `cloister guardian start --upgrade`";
            refuse(StatusCode::SERVICE_UNAVAILABLE, why)
        }
    }
}

/// Does what may wait for the disk, off the event loop.
async fn with_registry<T: serde::Serialize + Send + 'static>(
    control: Arc<Control>,
    act: impl FnOnce(&Registry) -> Result<T, AnswerError> + Send + 'static,
) -> Response {
    match tokio::task::spawn_blocking(move || act(&control.registry)).await {
        Ok(Ok(done)) => Json(done).into_response(),
        Ok(Err(error)) => {
            let status = match &error {
                AnswerError::Gone(_) => StatusCode::NOT_FOUND,
                AnswerError::Unfit(_) | AnswerError::Pattern(_) => StatusCode::BAD_REQUEST,
                AnswerError::Audit(_) | AnswerError::Decisions(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            refuse(status, &chain(&error))
        }
        Err(_) => super::broken_off(),
    }
}
