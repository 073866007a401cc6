//! The way of a request, from its path to what answers it.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, Path, State};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{HeaderName, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::{get, post};

use jiff::Timestamp;

use super::gate::{Refusal, Visit, Wants};
use super::sessions::LoginError;
use super::views::{self, Board, Home};
use super::{Desk, Shared, answers, assets, gate, live, log};
use crate::text::JsonText;

/// How long a browser keeps the cookie; the session may end before.
const COOKIE_SECONDS: u32 = 7 * 24 * 3600;

pub(super) fn router(shared: &Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(home))
        .route("/login/{code}", get(log_in))
        .route("/logout", post(log_out))
        .route("/log", get(log::page))
        .route("/log/events", get(log::events))
        .route("/pending", get(pending))
        .route("/session", get(session))
        .route("/events", get(live::events))
        .route("/approve-domain/{id}", post(answers::allow))
        .route("/deny-domain/{id}", post(answers::deny))
        .route("/approve/{id}", post(answers::allow))
        .route("/deny/{id}", post(answers::deny))
        .route("/deny-all", post(answers::deny_all))
        .route("/undo/{id}", post(answers::undo))
        .route("/assets/{name}", get(assets::asset))
        .fallback(nothing)
        .layer(from_fn_with_state(Arc::clone(shared), gate::keep))
        .with_state(Arc::clone(shared))
}

/// Calls the desk where it may block.
pub(super) async fn at_desk<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&dyn Desk) -> T + Send + 'static,
) -> Result<T, Refusal> {
    let desk = Arc::clone(&shared.desk);
    tokio::task::spawn_blocking(move || work(&*desk)).await.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "the desk of the approval page broke off");
        let text = "The guardian could not answer; its log says more.";
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", "Failed", text)
    })
}

/// A page whose forms say where they come from: with `no-referrer` a browser writes `Origin: null`.
pub(super) fn with_forms(page: Response) -> Response {
    ([(header::REFERRER_POLICY, HeaderValue::from_static("same-origin"))], page).into_response()
}

async fn home(State(shared): State<Arc<Shared>>, Extension(visit): Extension<Visit>) -> Response {
    let flash = shared.sessions.take_flash(&visit.visitor.hash);
    match at_desk(&shared, Board::of).await {
        Ok(board) => with_forms(views::html(&Home {
            count: board.snapshot.pending.len(),
            list: board.list(&board.crowded()),
            decisions: board.decisions(),
            cloisters: board.cloisters,
            problems: board.problems,
            csrf: &visit.visitor.csrf,
            shown: Some(Timestamp::now().as_millisecond()),
            flash,
        })),
        Err(refusal) => refusal.answer(visit.wants),
    }
}

/// What waits and was decided, as JSON.
async fn pending(State(shared): State<Arc<Shared>>, Extension(visit): Extension<Visit>) -> Response {
    match at_desk(&shared, |desk| serde_json::to_string(&desk.snapshot())).await {
        Ok(Ok(json)) => {
            ([(header::CONTENT_TYPE, "application/json")], JsonText(&json).to_string()).into_response()
        }
        Ok(Err(error)) => {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot encode what waits");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
        Err(refusal) => refusal.answer(visit.wants),
    }
}

/// Tells a page that lost its events whether it is still logged in: the gate has seen to that.
async fn session() -> StatusCode {
    StatusCode::OK
}

/// Takes a login code and gives a cookie for it (A18).
async fn log_in(State(shared): State<Arc<Shared>>, Path(code): Path<String>, headers: HeaderMap) -> Response {
    if let Err(refusal) = is_visit(&headers) {
        return refusal.answer(Wants::Page);
    }
    let sessions = Arc::clone(&shared);
    let login = tokio::task::spawn_blocking(move || sessions.sessions.log_in(&code)).await;
    let refusal = match login {
        Ok(Ok(Ok(secret))) => {
            let name = shared.sessions.cookie_name();
            let cookie =
                format!("{name}={secret}; HttpOnly; SameSite=Strict; Path=/; Max-Age={COOKIE_SECONDS}");
            return ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response();
        }
        Ok(Ok(Err(LoginError::Unknown))) => {
            let text =
                "A login link works once, within five minutes. `cloister approvals open` gives a new one.";
            Refusal::new(StatusCode::FORBIDDEN, "bad_code", "This link is used up", text)
        }
        Ok(Ok(Err(LoginError::TooMany))) => {
            let text = "Too many wrong links were tried; wait a minute, then run `cloister approvals open`.";
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, "too_many", "Too many attempts", text)
        }
        Ok(Err(_)) | Err(_) => {
            let text = "The guardian could not make a session.";
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", "Failed", text)
        }
    };
    refusal.answer(Wants::Page)
}

/// Sees that a human opens the link: a browser that loads it ahead, or another page that embeds it, would use it up.
fn is_visit(headers: &HeaderMap) -> Result<(), Refusal> {
    let says = |name: &'static str, wanted: &str| {
        headers.get(HeaderName::from_static(name)).is_none_or(|value| value == wanted)
    };
    let is_ahead = headers.contains_key("sec-purpose") || headers.contains_key("purpose");
    if !is_ahead && says("sec-fetch-dest", "document") && says("sec-fetch-mode", "navigate") {
        return Ok(());
    }
    let text = "A login link is opened as a page, by you.";
    Err(Refusal::new(StatusCode::FORBIDDEN, "foreign", "Not opened as a page", text))
}

async fn log_out(State(shared): State<Arc<Shared>>, Extension(visit): Extension<Visit>) -> Response {
    let name = shared.sessions.cookie_name();
    let sessions = Arc::clone(&shared);
    // A panic there has said so itself; the cookie goes in any case.
    let _ = tokio::task::spawn_blocking(move || sessions.sessions.log_out(&visit.visitor.hash)).await;
    let cookie = format!("{name}=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0");
    ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
}

async fn nothing() -> Response {
    let text = "There is no such page.";
    Refusal::new(StatusCode::NOT_FOUND, "not_found", "Not found", text).answer(Wants::Page)
}
