//! Carries the conversations with browsers: few at once, none that stalls, and no panic ends more than its own.
//!
//! A connection is one request and its answer. An event stream may last for hours; what counts is that somebody takes
//! what is written.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// How many connections there are at once; the next waits until one of them ends.
const MAX_CONNECTIONS: usize = 64;
/// How long a request head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a browser may take nothing of what is written to it.
const STALL_TIMEOUT: Duration = Duration::from_secs(40);
/// The longest head.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// The most header lines.
const MAX_HEADERS: usize = 64;
/// How long the accept loop rests when the system has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long open answers may take once the page is to end.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// Serves `routes` until `told` becomes true and the open answers are written, or are overdue.
pub(super) async fn serve(listener: TcpListener, routes: Router, mut told: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let until = told.clone();
    tokio::select! {
        // The sender outlives this: it lives with what the routes share.
        _ = told.wait_for(|is_told| *is_told) => {}
        () = accept_all(&listener, &routes, &slots, &until) => {}
    }
    drop(listener);
    let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
    // What is overdue ends with the process.
    let _ = timeout(END_PATIENCE, slots.acquire_many(all)).await;
}

async fn accept_all(
    listener: &TcpListener,
    routes: &Router,
    slots: &Arc<Semaphore>,
    told: &watch::Receiver<bool>,
) {
    loop {
        // Nobody closes it.
        let Ok(slot) = Arc::clone(slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                // Events are small and wanted at once.
                let _ = stream.set_nodelay(true);
                tokio::spawn(converse(stream, routes.clone(), slot, told.clone()));
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot accept a browser's connection"
                );
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// When the browser took something last; nothing while the page itself is at work.
type Pulse = watch::Sender<Option<Instant>>;

/// Takes one request and answers it.
async fn converse(
    stream: TcpStream,
    routes: Router,
    slot: OwnedSemaphorePermit,
    mut told: watch::Receiver<bool>,
) {
    let pulse = Arc::new(Pulse::new(Some(Instant::now())));
    let service = service_fn(|request| answer(routes.clone(), Arc::clone(&pulse), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let told = async move { drop(told.wait_for(|is_told| *is_told).await) };
    let conversation = async {
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = told => {
                connection.as_mut().graceful_shutdown();
                connection.as_mut().await
            }
        }
    };
    tokio::select! {
        ended = conversation => if let Err(error) = ended {
            tracing::debug!(error = &error as &dyn std::error::Error, "a browser's request broke off");
        },
        () = stalled(pulse.subscribe()) => tracing::debug!("a browser took nothing for too long"),
    }
    drop(slot);
}

/// Waits until the browser has taken nothing for too long. An event stream writes a heartbeat more often than that, and
/// its next event is asked for only when there is room for it.
async fn stalled(mut pulse: watch::Receiver<Option<Instant>>) {
    loop {
        let beat = *pulse.borrow_and_update();
        let changed = match beat {
            Some(at) => timeout_at(at + STALL_TIMEOUT, pulse.changed()).await,
            None => Ok(pulse.changed().await),
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Answers on a task of its own: a panic in it is an answer too, and a browser that goes away breaks nothing off.
async fn answer(
    routes: Router,
    pulse: Arc<Pulse>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    pulse.send_replace(None);
    let answered = tokio::spawn(TowerToHyperService::new(routes).call(request)).await;
    pulse.send_replace(Some(Instant::now()));
    let response = match answered {
        Ok(Ok(response)) => response,
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the page broke off").into_response(),
    };
    Ok(response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            pulse.send_replace(Some(Instant::now()));
            frame
        }))
    }))
}
