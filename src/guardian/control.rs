//! The control socket: what the command line may ask, and how the guardian knows that it is the command line.
//!
//! Two things must hold of a caller: the kernel says that it is this user's (or root's) process, and it presents
//! the key from a file that no mount contains. A sandbox's process passes the first check on some hosts, and so
//! the second one is what counts.

use std::io;
use std::os::unix::net::UnixListener as Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, Semaphore, watch};
use tokio::time::timeout;

use super::handover::{self, PROTOCOL};
use super::registry::{METRICS_TYPE, Registry, RegistryError};
use crate::name::CloisterName;
use crate::paths::Lock;
use crate::policy::Authority;
use crate::process::Identity;
/// The other side has only the text.
pub(super) use crate::text::with_causes as chain;
use crate::token::ControlKey;
use api::{API_VERSION, Failure, Registration, Stop, StopReceipt, Version};

pub(super) mod api;
mod approvals;
pub(super) mod judgement;
mod serve;

/// The longest body of a request.
const MAX_BODY_BYTES: usize = 64 << 10;
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a new guardian waits for the requests before its own.
const TURN_PATIENCE: Duration = Duration::from_secs(5);

/// What the routes share.
pub(super) struct Control {
    pub(super) registry: Arc<Registry>,
    pub(super) key: ControlKey,
    pub(super) shutdown: watch::Sender<bool>,
    /// Held by every request, and by a handover alone.
    changes: Arc<RwLock<()>>,
    /// Whether another guardian has taken over.
    pub(super) is_replaced: AtomicBool,
    held: Mutex<Option<Held>>,
    /// The places of those who wait for something new.
    polls: Semaphore,
}

/// What makes a process the guardian; given up when another has taken over.
pub(super) struct Held {
    pub(super) lock: Lock,
    pub(super) listener: Bound,
}

impl Control {
    pub(super) fn new(registry: Arc<Registry>, key: ControlKey, held: Held) -> Self {
        Self {
            registry,
            key,
            shutdown: watch::Sender::new(false),
            changes: Arc::default(),
            is_replaced: AtomicBool::new(false),
            held: Mutex::new(Some(held)),
            polls: Semaphore::new(approvals::MAX_POLLS),
        }
    }

    /// Shows what makes this process the guardian.
    pub(super) fn lend<T>(&self, show: impl FnOnce(&Held) -> io::Result<T>) -> io::Result<T> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into()).and_then(show)
    }

    /// Takes what makes this process the guardian.
    pub(super) fn held(&self) -> Option<Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits while the guardian is being replaced, and keeps it from being so.
    pub(super) async fn turn(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.changes).read_owned().await
    }

    pub(super) fn is_replaced(&self) -> bool {
        self.is_replaced.load(Ordering::SeqCst)
    }
}

/// Whom a connection belongs to; `None` when the kernel does not say.
#[derive(Debug, Clone, Copy)]
struct Peer {
    uid: Option<u32>,
    pid: Option<i32>,
}

/// Serves the control socket until it is told to stop and the open answers are written, or are overdue.
pub(super) async fn serve(listener: UnixListener, control: Arc<Control>) -> std::io::Result<()> {
    let told = control.shutdown.subscribe();
    serve::serve(listener, routes(control), told).await
}

fn routes(control: Arc<Control>) -> Router {
    Router::new()
        .route("/version", get(version))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/judgements/{cloister}/{authority}", get(judge))
        .route("/reload", post(reload))
        .route("/shutdown", post(shutdown))
        .route("/tokens", post(register))
        .route("/tokens/{cloister}", delete(revoke))
        .route("/tokens/{cloister}/started", post(confirm))
        .merge(approvals::routes())
        .layer(middleware::from_fn_with_state(Arc::clone(&control), wait_for_turn))
        .merge(approvals::waiting_routes())
        .route("/handover", post(hand_over))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is no such request") })
        .method_not_allowed_fallback(|| async {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "this is not asked in this way")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&control), authorise))
        .with_state(control)
}

async fn authorise(
    State(control): State<Arc<Control>>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let own = rustix::process::geteuid().as_raw();
    let presented = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let key = presented.and_then(|value| value.strip_prefix("Bearer "));
    let is_known = peer.uid.is_some_and(|uid| uid == own || uid == 0);
    if is_known && key.is_some_and(|key| control.key.matches(key)) {
        match whole(request).await {
            Ok(request) => next.run(request).await,
            Err((status, what)) => refuse(status, what),
        }
    } else {
        refuse(StatusCode::FORBIDDEN, "the control key is missing or wrong")
    }
}

/// Waits for the whole body, but neither long nor for a long one: no handler runs on half a request.
async fn whole(request: Request) -> Result<Request, (StatusCode, &'static str)> {
    let (parts, body) = request.into_parts();
    match timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY_BYTES)).await {
        Ok(Ok(bytes)) => Ok(Request::from_parts(parts, Body::from(bytes))),
        Ok(Err(_)) => Err((StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than 64 KiB, or broken")),
        Err(_) => Err((StatusCode::REQUEST_TIMEOUT, "the body did not come within 5 seconds")),
    }
}

/// The answer when a handler broke off.
fn broken_off() -> Response {
    refuse(StatusCode::INTERNAL_SERVER_ERROR, "the guardian broke off in the middle of this; see its log")
}

fn refuse(status: StatusCode, what: &str) -> Response {
    (status, failure(what)).into_response()
}

/// Has a request wait while the guardian is being replaced; afterwards it is the other's to answer.
async fn wait_for_turn(State(control): State<Arc<Control>>, request: Request, next: Next) -> Response {
    let _turn = control.turn().await;
    if control.is_replaced() {
        return refuse(StatusCode::MISDIRECTED_REQUEST, "another guardian has taken over");
    }
    next.run(request).await
}

fn failure(error: impl Into<String>) -> Json<Failure> {
    Json(Failure { error: error.into() })
}

/// Why a request is not done.
enum Refusal {
    /// It can't be understood.
    Request(String),
    /// It failed.
    Failed(RegistryError),
    /// The guardian has stopped, and not in order.
    Stopped(RegistryError),
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        Self::Failed(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Request(what) => refuse(StatusCode::BAD_REQUEST, &what),
            Self::Failed(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &chain(&error)),
            Self::Stopped(error) => {
                let why = chain(&error);
                let what = format!(
                    "the guardian has stopped, but its last record is not written: {why}; mend that, then run \
                     `cloister guardian start`"
                );
                refuse(StatusCode::INTERNAL_SERVER_ERROR, &what)
            }
        }
    }
}

async fn version(State(control): State<Arc<Control>>) -> Json<Version> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Json(Version { version, api: API_VERSION, is_stopping: control.registry.is_closed() })
}

async fn status(State(control): State<Arc<Control>>) -> Response {
    Json(control.registry.status()).into_response()
}

async fn metrics(State(control): State<Arc<Control>>) -> Response {
    match control.registry.metrics() {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

async fn judge(
    State(control): State<Arc<Control>>,
    Path((cloister, authority)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let cloister = name(&cloister)?;
    let authority = Authority::parse(&authority).map_err(|error| Refusal::Request(error.to_string()))?;
    Ok(Json(control.registry.judge(&cloister, &authority)?).into_response())
}

async fn reload(State(control): State<Arc<Control>>) -> Result<Response, Refusal> {
    Ok(Json(control.registry.reload()?).into_response())
}

async fn register(State(control): State<Arc<Control>>, body: Bytes) -> Result<Response, Refusal> {
    // Whatever type the caller names: what counts is what the body holds.
    let registration: Registration = serde_json::from_slice(&body)
        .map_err(|error| Refusal::Request(format!("this is no registration: {error}")))?;
    Ok((StatusCode::CREATED, Json(control.registry.register(registration)?)).into_response())
}

async fn confirm(
    State(control): State<Arc<Control>>,
    Path(cloister): Path<String>,
) -> Result<Response, Refusal> {
    let cloister = name(&cloister)?;
    control.registry.confirm(&cloister)?;
    Ok(Json(()).into_response())
}

async fn revoke(
    State(control): State<Arc<Control>>,
    Path(cloister): Path<String>,
) -> Result<Response, Refusal> {
    let cloister = name(&cloister)?;
    Ok(Json(control.registry.revoke(&cloister)?).into_response())
}

fn name(text: &str) -> Result<CloisterName, Refusal> {
    CloisterName::parse(text).map_err(|error| Refusal::Request(error.to_string()))
}

async fn shutdown(State(control): State<Arc<Control>>, body: Bytes) -> Result<Response, Refusal> {
    let stop = if body.is_empty() { Ok(Stop { drain_ms: 0 }) } else { serde_json::from_slice(&body) };
    let Stop { drain_ms } =
        stop.map_err(|error| Refusal::Request(format!("this is no way to stop: {error}")))?;
    let closed = control.registry.close(Duration::from_millis(drain_ms)).await;
    // It ends also when its last record can't be written: nothing passes any more.
    control.shutdown.send_replace(true);
    Ok(Json(StopReceipt { audit_head: closed.map_err(Refusal::Stopped)? }).into_response())
}

/// Gives the connection to a new guardian that asks to take over.
async fn hand_over(
    State(control): State<Arc<Control>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response {
    let asked = request.headers().get(header::UPGRADE).and_then(|protocol| protocol.to_str().ok());
    if asked != Some(PROTOCOL) {
        return refuse(StatusCode::UPGRADE_REQUIRED, &format!("this guardian speaks {PROTOCOL}"));
    }
    let conflict = |why: &str| refuse(StatusCode::CONFLICT, why);
    let Some(taker) = peer.pid.and_then(Identity::of) else { return conflict("it can't see who asks") };
    let Ok(changes) = timeout(TURN_PATIENCE, Arc::clone(&control.changes).write_owned()).await else {
        return conflict("it is busy");
    };
    if control.registry.is_closed() {
        return conflict("it is stopping, or another has taken over");
    }
    let runtime = Handle::current();
    tokio::spawn(async move {
        // The answer is on its way then, and what follows belongs to the two guardians.
        let Some(stream) = serve::taken(request).await else { return };
        let given = std::thread::Builder::new().name("handover".to_owned()).spawn(move || {
            if stream.set_nonblocking(false).is_ok() {
                handover::give(stream, &taker, &control, changes, &runtime);
            }
        });
        if let Err(error) = given {
            tracing::error!(%error, "the guardian can't be replaced");
        }
    });
    (StatusCode::SWITCHING_PROTOCOLS, [(header::CONNECTION, "upgrade"), (header::UPGRADE, PROTOCOL)])
        .into_response()
}
