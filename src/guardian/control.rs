//! The control socket: what the command line may ask, and how the guardian knows that it is the command line.
//!
//! Two things must hold of a caller: the kernel says that it is this user's (or root's) process, and it presents
//! the key from a file that no mount contains. A sandbox's process passes the first check on some hosts, and so
//! the second one is what counts.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener as Bound, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::sync::{RwLock, watch};
use tokio::time::{sleep, timeout};

use super::handover::{self, PROTOCOL};
use super::registry::{Registry, RegistryError};
use crate::name::CloisterName;
use crate::paths::Lock;
use crate::process::Identity;
use crate::token::ControlKey;
use api::{API_VERSION, Failure, Registration, Stop, StopReceipt, Version};

pub(super) mod api;

/// How long open answers may take once the guardian was told to stop.
const END_PATIENCE: Duration = Duration::from_secs(3);

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

    fn is_replaced(&self) -> bool {
        self.is_replaced.load(Ordering::SeqCst)
    }
}

/// Whom a connection belongs to; `None` when the kernel does not say.
#[derive(Debug, Clone)]
struct Peer {
    uid: Option<u32>,
    pid: Option<i32>,
    /// The connection itself, for a handover.
    stream: Option<Arc<OwnedFd>>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Self {
            uid: credentials.map(|credentials| credentials.uid()),
            pid: credentials.and_then(|credentials| credentials.pid()),
            stream: stream.io().as_fd().try_clone_to_owned().ok().map(Arc::new),
        }
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
        .layer(middleware::from_fn_with_state(Arc::clone(&control), wait_for_turn))
        .route("/handover", post(hand_over))
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
    let is_known = peer.uid.is_some_and(|uid| uid == own || uid == 0);
    if is_known && key.is_some_and(|key| control.key.matches(key)) {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, failure("the control key is missing or wrong")).into_response()
    }
}

/// Has a request wait while the guardian is being replaced; afterwards it is the other's to answer.
async fn wait_for_turn(State(control): State<Arc<Control>>, request: Request, next: Next) -> Response {
    let _turn = control.changes.read().await;
    if control.is_replaced() {
        return (StatusCode::MISDIRECTED_REQUEST, failure("another guardian has taken over")).into_response();
    }
    next.run(request).await
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

async fn shutdown(State(control): State<Arc<Control>>, body: Bytes) -> Response {
    let stop = if body.is_empty() { Ok(Stop { drain_ms: 0 }) } else { serde_json::from_slice(&body) };
    let grace = match stop {
        Ok(Stop { drain_ms }) => Duration::from_millis(drain_ms),
        Err(error) => return (StatusCode::BAD_REQUEST, failure(error.to_string())).into_response(),
    };
    let closed = control.registry.close(grace).await;
    // It ends also when its last record can't be written: nothing passes any more.
    control.shutdown.send_replace(true);
    match closed {
        Ok(audit_head) => Json(StopReceipt { audit_head }).into_response(),
        Err(error) => error.into_response(),
    }
}

/// Gives the connection to a new guardian that asks to take over.
async fn hand_over(
    State(control): State<Arc<Control>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
) -> Response {
    let asked = request.headers().get(header::UPGRADE).and_then(|protocol| protocol.to_str().ok());
    if asked != Some(PROTOCOL) {
        return (StatusCode::UPGRADE_REQUIRED, failure(format!("this guardian speaks {PROTOCOL}")))
            .into_response();
    }
    let refuse = |why: &str| (StatusCode::CONFLICT, failure(why)).into_response();
    let Some(taker) = peer.pid.and_then(Identity::of) else { return refuse("it can't see who asks") };
    let Some(stream) = peer.stream.and_then(|stream| stream.try_clone().ok()) else {
        return refuse("it can't use the connection");
    };
    let Ok(changes) = timeout(TURN_PATIENCE, Arc::clone(&control.changes).write_owned()).await else {
        return refuse("it is busy");
    };
    if control.registry.is_closed() {
        return refuse("it is stopping, or another has taken over");
    }
    let runtime = Handle::current();
    tokio::spawn(async move {
        // The answer is on its way then, and what follows belongs to the two guardians.
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        drop(upgraded);
        let stream = UnixStream::from(stream);
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
