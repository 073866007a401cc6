//! Carries the conversations of the control socket: few at once, none for long, and no panic ends more than its own.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixStream as Blocking;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::{Peer, broken_off};

/// How many conversations there are at once; the next waits until one of them ends. Every session and every list that
/// follows what waits holds one all the time.
pub(super) const MAX_CONVERSATIONS: usize = 256;
/// How long a request head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller may take to ask, and to take the answer; a conversation is one of each.
const CALLER_TIMEOUT: Duration = Duration::from_mins(1);
/// The longest head.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// The most header lines.
const MAX_HEADERS: usize = 32;
/// How long the accept loop rests when the system has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long open answers may take once the guardian was told to stop.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// Serves `routes` until `told` becomes true and the open answers are written, or are overdue.
pub(super) async fn serve(
    listener: UnixListener,
    routes: Router,
    mut told: watch::Receiver<bool>,
) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(MAX_CONVERSATIONS));
    let until = told.clone();
    tokio::select! {
        // The sender outlives this: it lives with what the routes share.
        _ = told.wait_for(|is_told| *is_told) => {}
        () = accept_all(&listener, &routes, &slots, &until) => {}
    }
    drop(listener);
    let all = u32::try_from(MAX_CONVERSATIONS).unwrap_or(u32::MAX);
    // What is overdue ends with the process.
    let _ = timeout(END_PATIENCE, slots.acquire_many(all)).await;
    Ok(())
}

async fn accept_all(
    listener: &UnixListener,
    routes: &Router,
    slots: &Arc<Semaphore>,
    told: &watch::Receiver<bool>,
) {
    loop {
        // Nobody closes it.
        let Ok(slot) = Arc::clone(slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(converse(stream, routes.clone(), slot, told.clone()));
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot accept a control connection"
                );
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Takes one request and answers it.
async fn converse(
    stream: UnixStream,
    routes: Router,
    slot: OwnedSemaphorePermit,
    mut told: watch::Receiver<bool>,
) {
    let credentials = stream.peer_cred().ok();
    let peer = Peer {
        uid: credentials.map(|credentials| credentials.uid()),
        pid: credentials.and_then(|credentials| credentials.pid()),
    };
    let work = Arc::new(watch::Sender::new(false));
    let service = service_fn(|request| answer(routes.clone(), peer, Arc::clone(&work), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
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
            tracing::debug!(error = &error as &dyn std::error::Error, "a control request broke off");
        },
        () = overdue(work.subscribe()) => tracing::debug!("a control request took too long"),
    }
    drop(slot);
}

/// Waits until the caller has taken too long to ask, or to take the answer: what the guardian itself takes, and be it a
/// stop that waits for tunnels, is not held against the caller.
async fn overdue(mut work: watch::Receiver<bool>) {
    loop {
        // The sender outlives this.
        let _ = work.wait_for(|is_at_work| !is_at_work).await;
        if timeout(CALLER_TIMEOUT, work.wait_for(|is_at_work| *is_at_work)).await.is_err() {
            return;
        }
    }
}

/// Ends a task when it is dropped; one that has ended does not mind.
struct Wait(AbortHandle);

impl Drop for Wait {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Answers on a task of its own: a panic in it is an answer too, and a caller that goes away breaks nothing off that
/// changes something. One that only wants to know something waits no longer than it is there.
async fn answer(
    routes: Router,
    peer: Peer,
    work: Arc<watch::Sender<bool>>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    request.extensions_mut().insert(peer);
    work.send_replace(true);
    let changes_nothing = request.method() == Method::GET;
    let task = tokio::spawn(TowerToHyperService::new(routes).call(request));
    let _wait = changes_nothing.then(|| Wait(task.abort_handle()));
    let answered = task.await;
    work.send_replace(false);
    Ok(match answered {
        Ok(Ok(response)) => response,
        Err(_) => broken_off(),
    })
}

/// The connection of a request, once its answer gives it away; `None` when the answer could not be written.
pub(super) async fn taken(request: Request<Body>) -> Option<Blocking> {
    let upgraded = hyper::upgrade::on(request).await.ok()?;
    // Nothing was read ahead: who asks for it says nothing until it is spoken to.
    let stream = upgraded.downcast::<TokioIo<UnixStream>>().ok()?.io.into_inner();
    stream.into_std().ok()
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::mpsc;

    use super::*;

    async fn panics() -> &'static str {
        panic!("as scripted")
    }

    #[tokio::test]
    async fn a_panic_in_a_handler_is_an_answer_and_the_next_request_works() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (tell, told) = watch::channel(false);
        let routes = Router::new().route("/panic", get(panics)).route("/fine", get(|| async { "fine" }));
        let served = tokio::spawn(serve(listener, routes, told));
        let ask = async |route: &str| {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(format!("GET {route} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let broken = ask("/panic").await;
        assert!(broken.starts_with("HTTP/1.1 500") && broken.contains("broke off"), "{broken}");
        assert!(!broken.contains("as scripted"), "{broken}");
        assert!(ask("/fine").await.ends_with("fine"));
        tell.send_replace(true);
        served.await.unwrap().unwrap();
    }

    /// Says how what it belongs to ended.
    struct Told(mpsc::UnboundedSender<&'static str>, &'static str);

    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send(self.1);
        }
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_ends_its_wait_and_breaks_off_nothing_that_changes_something() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (told, mut hears) = mpsc::unbounded_channel();
        let (go_on, gate) = watch::channel(false);
        let act = |name: &'static str| {
            let (told, mut gate) = (told.clone(), gate.clone());
            async move || {
                let mut end = Told(told.clone(), "broken off");
                told.send(name).unwrap();
                let _ = gate.wait_for(|is_open| *is_open).await;
                end.1 = "done";
            }
        };
        let routes = Router::new().route("/", get(act("asked")).post(act("changes")));
        let (_tell, stop) = watch::channel(false);
        tokio::spawn(serve(listener, routes, stop));
        let mut call = async |method: &str| {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
            let begun = hears.recv().await.unwrap();
            drop(stream);
            begun
        };
        assert_eq!(call("POST").await, "changes");
        assert_eq!(call("GET").await, "asked");
        assert_eq!(hears.recv().await, Some("broken off"), "nobody waits for it");
        go_on.send_replace(true);
        assert_eq!(hears.recv().await, Some("done"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_answered_late_is_not_late_himself() {
        let work = watch::Sender::new(true);
        let overdue = tokio::spawn(overdue(work.subscribe()));
        sleep(10 * CALLER_TIMEOUT).await;
        assert!(!overdue.is_finished(), "the guardian is at work");
        work.send_replace(false);
        timeout(2 * CALLER_TIMEOUT, overdue).await.expect("nobody takes the answer").unwrap();
    }
}
