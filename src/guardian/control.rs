//! The control socket: what the command line may ask, and how the guardian knows that it is the command line.
//!
//! Two things must hold of a caller: the kernel says that it is this user's (or root's) process, and it presents
//! the key from a file that no mount contains. A sandbox's process passes the first check on some hosts, and so
//! the second one is what counts.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::sleep;

use super::registry::{Registry, RegistryError};
use crate::name::CloisterName;
use crate::token::ControlKey;
use api::{API_VERSION, Failure, Registration, StopReceipt, Version};

pub(super) mod api;

/// How long open answers may take once the guardian was told to stop.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// What the routes share.
pub(super) struct Control {
    pub(super) registry: Arc<Registry>,
    pub(super) key: ControlKey,
    pub(super) shutdown: watch::Sender<bool>,
}

/// The user that a connection belongs to; `None` when the kernel does not say.
#[derive(Debug, Clone, Copy)]
struct Peer(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|credentials| credentials.uid()))
    }
}

/// Serves the control socket until it is told to stop and the open answers are written, or are overdue.
pub(super) async fn serve(listener: UnixListener, control: Arc<Control>) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/version", get(version))
        .route("/status", get(status))
        .route("/reload", post(reload))
        .route("/shutdown", post(shutdown))
        .route("/tokens", post(register))
        .route("/tokens/{cloister}", delete(revoke))
        .route("/tokens/{cloister}/started", post(confirm))
        .fallback(|| async { (StatusCode::NOT_FOUND, failure("there is no such request")) })
        .layer(middleware::from_fn_with_state(Arc::clone(&control), authorise))
        .with_state(Arc::clone(&control));
    let service = routes.into_make_service_with_connect_info::<Peer>();
    let (mut told, mut overdue) = (control.shutdown.subscribe(), control.shutdown.subscribe());
    // The sender lives in `control`, which outlives both.
    let until = async move { drop(told.wait_for(|is_told| *is_told).await) };
    let overdue = async move {
        drop(overdue.wait_for(|is_told| *is_told).await);
        sleep(END_PATIENCE).await;
    };
    tokio::select! {
        served = axum::serve(listener, service).with_graceful_shutdown(until) => served,
        () = overdue => Ok(()),
    }
}

async fn authorise(
    State(control): State<Arc<Control>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let own = rustix::process::geteuid().as_raw();
    let presented = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let key = presented.and_then(|value| value.strip_prefix("Bearer "));
    let is_known = peer.0.is_some_and(|uid| uid == own || uid == 0);
    if is_known && key.is_some_and(|key| control.key.matches(key)) {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, failure("the control key is missing or wrong")).into_response()
    }
}

fn failure(error: impl Into<String>) -> Json<Failure> {
    Json(Failure { error: error.into() })
}

impl IntoResponse for RegistryError {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, failure(chain(&self))).into_response()
    }
}

/// The message with all its causes: the other side has only the text.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION").to_owned(), api: API_VERSION })
}

async fn status(State(control): State<Arc<Control>>) -> Response {
    Json(control.registry.status()).into_response()
}

async fn reload(State(control): State<Arc<Control>>) -> Result<Response, RegistryError> {
    Ok(Json(control.registry.reload()?).into_response())
}

async fn register(
    State(control): State<Arc<Control>>,
    Json(registration): Json<Registration>,
) -> Result<Response, RegistryError> {
    Ok((StatusCode::CREATED, Json(control.registry.register(registration)?)).into_response())
}

async fn confirm(
    State(control): State<Arc<Control>>,
    Path(cloister): Path<CloisterName>,
) -> Result<Response, RegistryError> {
    control.registry.confirm(&cloister)?;
    Ok(Json(()).into_response())
}

async fn revoke(
    State(control): State<Arc<Control>>,
    Path(cloister): Path<CloisterName>,
) -> Result<Response, RegistryError> {
    Ok(Json(control.registry.revoke(&cloister)?).into_response())
}

async fn shutdown(State(control): State<Arc<Control>>) -> Result<Response, RegistryError> {
    let closed = control.registry.close();
    // It ends also when its last record can't be written: nothing passes any more.
    control.shutdown.send_replace(true);
    Ok(Json(StopReceipt { audit_head: closed? }).into_response())
}
