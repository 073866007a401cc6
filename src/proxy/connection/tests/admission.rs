//! The accept loop, the connections, the buckets of requests, the descriptors.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::harness::{Proxy, Script, Server, read_head, within};
use crate::config::RateLimit;
use crate::proxy::connection::Stream;
use crate::proxy::{Descriptors, Ending, Limits, Listener, Outbound, Settings, Spliceable, serve};

const NO_CREDENTIALS: &str = "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// A proxy that listens.
struct Served {
    proxy: Proxy,
    path: PathBuf,
    serving: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Served {
    fn start(script: Script) -> Self {
        Self::through(script, |listener| listener)
    }

    fn through<L: Listener + Sync>(script: Script, listener: impl FnOnce(UnixListener) -> L) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("proxy.sock");
        let proxy = script.start();
        let listener = listener(UnixListener::bind(&path).unwrap());
        let serving = tokio::spawn(serve(listener, Arc::clone(&proxy.client)));
        Self { proxy, path, serving, _directory: directory }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    /// A connection, and the head of the answer to what it sent.
    async fn ask(&self, bytes: &str) -> (UnixStream, String) {
        let mut stream = self.connect().await;
        // One that is turned away may be gone already.
        let _ = stream.write_all(bytes.as_bytes()).await;
        let head = read_head(&mut stream).await;
        (stream, head)
    }
}

fn rated(rate: RateLimit) -> Script {
    Script { limits: Limits { rate, ..Limits::default() }, ..Script::default() }
}

#[tokio::test]
async fn h15_requests_beyond_the_burst_are_refused_and_recorded() {
    let mut proxy = rated(RateLimit { per_minute: 1, burst: 2 }).start();
    let mut peer = proxy.connect();
    // Both forms count, whatever the verdict; the first challenge does not.
    peer.send(NO_CREDENTIALS).await;
    assert!(peer.answer().await.0.starts_with("HTTP/1.1 407 "));
    peer.send(proxy.connect_head("a.test:443")).await;
    assert!(peer.answer().await.0.starts_with("HTTP/1.1 403 "));
    peer.send(proxy.get_head("a.test", "/")).await;
    assert!(peer.answer().await.0.starts_with("HTTP/1.1 403 "));
    for head in [proxy.connect_head("a.test:443"), proxy.get_head("a.test", "/")] {
        peer.send(head).await;
        let (head, body) = peer.answer().await;
        assert!(head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{head}");
        assert!(head.contains("X-Cloister-Reason: rate_limited\r\nRetry-After: "), "{head}");
        let seconds = head.split_once("Retry-After: ").unwrap().1.lines().next().unwrap();
        assert!((30..=60).contains(&seconds.parse::<u32>().unwrap()), "{head}");
        assert!(head.ends_with("Connection: keep-alive\r\n\r\n"), "{head}");
        assert!(body.contains(r#""host":"a.test""#) && body.contains("proxy.rate_limit"), "{body}");
    }
    // A connection of its own gains nothing.
    let mut other = proxy.connect();
    other.send(proxy.connect_head("a.test:443")).await;
    assert!(other.head().await.starts_with("HTTP/1.1 429 "));
    let mut expected =
        vec!["deny a.test:443 not_allowed".to_owned(), "deny a.test:80 not_allowed".to_owned()];
    expected.extend(vec!["deny - rate_limited".to_owned(); 3]);
    assert_eq!(proxy.events(), expected);
    // Another rate holds at once.
    let rate = RateLimit { per_minute: 6_000_000, burst: 1 };
    let limits = Limits { rate, ..Limits::default() };
    proxy.client.apply(Settings { limits, outbound: Outbound::Direct });
    peer.send(proxy.get_head("a.test", "/")).await;
    assert!(peer.head().await.starts_with("HTTP/1.1 403 "));
}

#[tokio::test]
async fn h15_strangers_are_bounded_apart() {
    let mut proxy = rated(RateLimit { per_minute: 1, burst: 3 }).start();
    let wrong = "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nProxy-Authorization: Bearer x\r\n\r\n";
    for (bytes, status) in [(NO_CREDENTIALS, 407), (wrong, 407), ("nonsense\r\n\r\n", 400)] {
        let mut peer = proxy.connect();
        peer.send(bytes).await;
        let head = peer.head().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    }
    for bytes in [NO_CREDENTIALS, wrong, "nonsense\r\n\r\n"] {
        let mut peer = proxy.connect();
        peer.send(bytes).await;
        let (head, body) = peer.answer().await;
        assert!(head.starts_with("HTTP/1.1 429 ") && head.contains("Retry-After: "), "{head}");
        assert!(body.contains(r#""host":null"#), "{body}");
    }
    // Whoever proves who he is, is served.
    let mut peer = proxy.connect();
    peer.send(proxy.get_head("a.test", "/")).await;
    assert!(peer.head().await.starts_with("HTTP/1.1 403 "));
    let mut expected = vec!["deny - unauthenticated"];
    expected.extend(["deny - rate_limited"; 3]);
    expected.push("deny a.test:80 not_allowed");
    assert_eq!(proxy.events(), expected);
}

/// A request, and the beginning of another one: behind its answer the connection is not idle.
fn busy_head() -> String {
    format!("{NO_CREDENTIALS}GET")
}

/// With one tunnel there may be 18 connections.
fn narrow() -> Limits {
    Limits { max_tunnels: 1, ..Limits::default() }
}

#[tokio::test]
async fn h15_one_connection_too_many_is_turned_away_until_one_ends() {
    let served = Served::start(Script { limits: narrow(), ..Script::default() });
    let mut busy = Vec::new();
    for _ in 0..narrow().max_connections() {
        busy.push(served.ask(&busy_head()).await.0);
    }
    let (mut stream, head) = served.ask(NO_CREDENTIALS).await;
    assert!(
        head.starts_with("HTTP/1.1 503 ") && head.contains("X-Cloister-Reason: overloaded\r\n"),
        "{head}"
    );
    let mut body = String::new();
    within(stream.read_to_string(&mut body)).await.unwrap();
    assert!(body.contains("18 connections") && body.contains("proxy.max_tunnels"), "{body}");
    // More tunnels are more connections, at once.
    let limits = Limits { max_tunnels: 2, ..Limits::default() };
    served.proxy.client.apply(Settings { limits, outbound: Outbound::Direct });
    let (_more, head) = served.ask(NO_CREDENTIALS).await;
    assert!(head.starts_with("HTTP/1.1 407 "), "{head}");

    served.proxy.client.end(Ending::ShuttingDown);
    drop(busy);
    within(served.serving).await.unwrap();
    assert!(UnixStream::connect(&served.path).await.is_err(), "the listener is closed");
}

#[tokio::test]
async fn h15_idle_connections_give_way_the_oldest_first() {
    let served = Served::start(Script { limits: narrow(), ..Script::default() });
    let mut idle = Vec::new();
    for _ in 0..narrow().max_connections() {
        idle.push(served.ask(NO_CREDENTIALS).await.0);
    }
    for oldest in 0..3 {
        let (newcomer, head) = served.ask(NO_CREDENTIALS).await;
        assert!(head.starts_with("HTTP/1.1 407 "), "{head}");
        idle.push(newcomer);
        // The body of its answer is still to be read.
        within(idle[oldest].read_to_end(&mut Vec::new())).await.unwrap();
    }
    let (last, head) = (idle.last_mut().unwrap(), "HTTP/1.1 407 ");
    last.write_all(NO_CREDENTIALS.as_bytes()).await.unwrap();
    let mut answers = String::new();
    last.shutdown().await.unwrap();
    within(last.read_to_string(&mut answers)).await.unwrap();
    assert!(answers.contains(head), "{answers}");
}

/// Fails as a process without free descriptors does, before it gives connections.
struct Exhausted {
    inner: UnixListener,
    failures: usize,
    calls: Arc<AtomicUsize>,
}

impl Listener for Exhausted {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        if self.calls.fetch_add(1, Ordering::Relaxed) < self.failures {
            return Err(Errno::MFILE.into());
        }
        Listener::accept(&self.inner).await
    }
}

/// A proxy whose first client waits already when accepting fails so often.
fn exhausted(failures: usize) -> (Served, UnixStream, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let (counted, mut first) = (Arc::clone(&calls), None);
    let served = Served::through(Script::default(), |inner| {
        let address = inner.local_addr().unwrap();
        first = Some(std::os::unix::net::UnixStream::connect(address.as_pathname().unwrap()).unwrap());
        Exhausted { inner, failures, calls: counted }
    });
    let first = first.unwrap();
    first.set_nonblocking(true).unwrap();
    (served, UnixStream::from_std(first).unwrap(), calls)
}

#[tokio::test]
async fn h15_accepting_goes_on_after_descriptors_ran_out() {
    // The first failure and that of the spare.
    let (_served, mut first, _) = exhausted(2);
    first.write_all(NO_CREDENTIALS.as_bytes()).await.unwrap();
    assert!(read_head(&mut first).await.starts_with("HTTP/1.1 407 "));
}

#[tokio::test]
async fn h15_the_spare_descriptor_tells_one_client_that_there_is_none() {
    let (served, mut first, _) = exhausted(1);
    let head = read_head(&mut first).await;
    assert!(
        head.starts_with("HTTP/1.1 503 ") && head.contains("X-Cloister-Reason: overloaded\r\n"),
        "{head}"
    );
    let mut body = String::new();
    within(first.read_to_string(&mut body)).await.unwrap();
    assert!(body.contains("ulimit -n"), "{body}");
    assert!(served.ask(NO_CREDENTIALS).await.1.starts_with("HTTP/1.1 407 "));
}

#[tokio::test(start_paused = true)]
async fn h15_an_accept_loop_without_descriptors_does_not_spin() {
    let (served, _first, calls) = exhausted(usize::MAX);
    assert!(timeout(Duration::from_secs(1), served.serving).await.is_err());
    let calls = calls.load(Ordering::Relaxed);
    assert!((20..=42).contains(&calls), "{calls} calls in a second");
}

#[tokio::test]
async fn h15_a_sandbox_that_takes_all_descriptors_leaves_some_to_another() {
    let descriptors = Arc::new(Descriptors::new(128));
    let script = || Script { descriptors: Arc::clone(&descriptors), ..Script::default() };
    let (greedy, modest) = (Served::start(script()), Served::start(script()));
    // Both are counted as soon as they serve.
    assert!(modest.ask(NO_CREDENTIALS).await.1.starts_with("HTTP/1.1 407 "));
    let mut taken = Vec::new();
    loop {
        let (stream, head) = greedy.ask(&busy_head()).await;
        if head.starts_with("HTTP/1.1 503 ") {
            break;
        }
        taken.push(stream);
    }
    assert!(taken.len() >= 8, "{}", taken.len());
    let (_modest, head) = modest.ask(NO_CREDENTIALS).await;
    assert!(head.starts_with("HTTP/1.1 407 "), "{head}");
    drop(taken);
    while !greedy.ask(NO_CREDENTIALS).await.1.starts_with("HTTP/1.1 407 ") {}
}

#[tokio::test]
async fn h15_kept_connections_give_way_to_a_client_before_idle_ones_do() {
    let origin = Server::start().await;
    // The descriptors of one connection and its passage.
    let descriptors = Arc::new(Descriptors::new(60));
    let mut served = Served::start(Script { descriptors, ..Script::allowing(origin.authority()) });
    let mut first = served.connect().await;
    first.write_all(served.proxy.get_head(&origin.authority(), "/").as_bytes()).await.unwrap();
    let mut upstream = origin.accept().await;
    read_head(&mut upstream).await;
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    read_head(&mut first).await;
    assert!(served.proxy.event().await.starts_with("allow "));
    assert!(served.proxy.event().await.starts_with("close "));
    let (_second, head) = served.ask(NO_CREDENTIALS).await;
    assert!(head.starts_with("HTTP/1.1 407 "), "{head}");
    assert_eq!(within(upstream.read(&mut [0])).await.unwrap(), 0, "it is still kept");
    first.write_all(NO_CREDENTIALS.as_bytes()).await.unwrap();
    assert!(read_head(&mut first).await.starts_with("HTTP/1.1 407 "));
}

#[tokio::test]
async fn h15_a_request_without_a_descriptor_left_is_not_the_destinations_fault() {
    let origin = Server::start().await;
    let descriptors = Arc::new(Descriptors::new(0));
    let mut proxy = Script { descriptors, ..Script::allowing(origin.authority()) }.start();
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head(&origin.authority())).await;
    let (head, body) = peer.answer().await;
    assert!(
        head.starts_with("HTTP/1.1 503 ") && head.contains("X-Cloister-Reason: overloaded\r\n"),
        "{head}"
    );
    assert!(body.contains(r#""host":"origin.test""#), "{body}");
    assert!(origin.stayed_untouched());
    assert_eq!((proxy.client.open_tunnels(), proxy.events()), (0, vec![]));
}

#[tokio::test]
async fn h19_panic_in_one_connection_harms_no_other() {
    let origin = Server::start().await;
    let allow = vec!["panic.test".to_owned(), origin.authority()];
    // The descriptors of one connection and its passage, and of one more.
    let descriptors = Arc::new(Descriptors::new(62));
    let script = Script { allow, descriptors, limits: narrow(), ..Script::default() };
    let served = Served::start(script);
    for _ in 0..2 * narrow().max_connections() {
        let mut unlucky = served.connect().await;
        unlucky.write_all(served.proxy.connect_head("panic.test:443").as_bytes()).await.unwrap();
        assert_eq!(within(unlucky.read(&mut [0])).await.unwrap(), 0);
    }
    // Its places are free again.
    assert_eq!(served.proxy.client.open_tunnels(), 0);
    let (_next, head) = served.ask(&served.proxy.connect_head(&origin.authority())).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}

/// Gives one connection that panics as soon as a tunnel is told to stand, then good ones.
struct Unlucky {
    inner: UnixListener,
    was_bad: AtomicBool,
}

impl Listener for Unlucky {
    type Stream = Fragile;

    async fn accept(&self) -> io::Result<Fragile> {
        let stream = Listener::accept(&self.inner).await?;
        Ok(Fragile { stream, is_bad: !self.was_bad.swap(true, Ordering::Relaxed) })
    }
}

struct Fragile {
    stream: UnixStream,
    is_bad: bool,
}

impl AsFd for Fragile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Spliceable for Fragile {}

impl Stream for Fragile {
    fn abort(self) {}
}

impl AsyncRead for Fragile {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Fragile {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        assert!(!self.is_bad, "as scripted");
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn h19_panic_behind_the_record_closes_it_as_aborted_and_frees_the_upstream() {
    let origin = Server::start().await;
    let script = Script { limits: narrow(), ..Script::allowing(origin.authority()) };
    let mut served = Served::through(script, |inner| Unlucky { inner, was_bad: AtomicBool::new(false) });
    let head = served.proxy.connect_head(&origin.authority());
    let mut unlucky = served.connect().await;
    unlucky.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(within(unlucky.read(&mut [0])).await.unwrap(), 0);
    assert_eq!(within(origin.accept().await.read(&mut [0])).await.unwrap(), 0);
    assert!(served.proxy.event().await.starts_with("allow "));
    assert_eq!(served.proxy.event().await, format!("close {} aborted 0/0", origin.authority()));
    let (_next, answer) = served.ask(&head).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(served.proxy.client.open_tunnels(), 1);
}
