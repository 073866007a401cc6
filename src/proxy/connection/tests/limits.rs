//! How much and how long, and the accept loop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::harness::{Script, Server, read_head, within};
use crate::policy::ConnectionId;
use crate::proxy::{Ending, Limits, Listener, ResolveError, connection, serve};

#[tokio::test]
async fn h15_slow_head_is_cut() {
    let limits = Limits { head_timeout: Duration::from_millis(50), ..Limits::default() };
    let mut proxy = Script { limits, ..Script::default() }.start();
    let mut peer = proxy.connect();
    peer.send("GET http://a.test/ HTTP/1.1\r\nHost: ").await;
    let answer = String::from_utf8(peer.rest().await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
    assert!(answer.contains("X-Cloister-Reason: head_timeout\r\nConnection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn h15_dripping_a_head_gains_no_time() {
    let limits = Limits { head_timeout: Duration::from_millis(100), ..Limits::default() };
    let mut proxy = Script { limits, ..Script::default() }.start();
    let peer = proxy.connect();
    let (mut reader, mut writer) = peer.stream.into_split();
    let drip = async {
        let mut beat = tokio::time::interval(Duration::from_millis(5));
        while writer.write_all(b"a").await.is_ok() {
            beat.tick().await;
        }
    };
    let mut answer = String::new();
    let (read, ()) = within(async { tokio::join!(reader.read_to_string(&mut answer), drip) }).await;
    read.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[tokio::test]
async fn silent_connection_is_closed_without_a_word() {
    let limits = Limits { keep_alive: Duration::from_millis(30), ..Limits::default() };
    let mut proxy = Script { limits, ..Script::default() }.start();
    let mut peer = proxy.connect();
    assert_eq!(peer.rest().await, b"");
}

#[tokio::test]
async fn h15_a_sandbox_asks_for_few_names_at_a_time_and_for_none_once_it_has_gone() {
    let mut proxy = Script::allowing("silent.test").start();
    let mut peers = Vec::new();
    for _ in 0..40 {
        let mut peer = proxy.connect();
        peer.send(proxy.connect_head("silent.test:443")).await;
        peers.push(peer);
    }
    within(async {
        while proxy.client.open_tunnels() < 40 || proxy.names.asked().len() < 16 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(proxy.names.asked().len(), 16);
    drop(peers);
    within(async {
        while proxy.client.open_tunnels() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn one_tunnel_too_many_is_refused() {
    let origin = Server::start().await;
    let limits = Limits { max_tunnels: 1, ..Limits::default() };
    let mut proxy = Script { limits, ..Script::allowing(origin.authority()) }.start();
    let mut first = proxy.connect();
    first.send(proxy.connect_head(&origin.authority())).await;
    first.head().await;
    let mut upstream = origin.accept().await;

    let mut second = proxy.connect();
    second.send(proxy.connect_head(&origin.authority())).await;
    let (head, body) = second.answer().await;
    assert!(head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{head}");
    assert!(body.contains(r#""error":"too_many_tunnels""#), "{body}");

    drop(first);
    assert_eq!(within(upstream.read(&mut [0])).await.unwrap(), 0);
    drop(upstream);
    assert!(proxy.event().await.starts_with("allow "));
    assert!(proxy.event().await.starts_with("deny "));
    assert!(proxy.event().await.starts_with("close "));
    second.send(proxy.connect_head(&origin.authority())).await;
    assert_eq!(second.head().await, "HTTP/1.1 200 Connection established\r\n\r\n");
}

#[tokio::test]
async fn one_connection_too_many_is_turned_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("proxy.sock");
    let limits = Limits { max_connections: 1, ..Limits::default() };
    let proxy = Script { limits, ..Script::default() }.start();
    let serving = tokio::spawn(serve(UnixListener::bind(&path).unwrap(), Arc::clone(&proxy.client)));

    let mut first = UnixStream::connect(&path).await.unwrap();
    first.write_all(b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
    assert!(read_head(&mut first).await.starts_with("HTTP/1.1 407 "));
    let mut second = UnixStream::connect(&path).await.unwrap();
    assert!(read_head(&mut second).await.starts_with("HTTP/1.1 503 "));

    proxy.client.end(Ending::ShuttingDown);
    within(serving).await.unwrap();
    assert!(UnixStream::connect(&path).await.is_err(), "the listener is closed");
}

/// Fails as a process without free descriptors does, before it gives connections.
struct Exhausted {
    inner: UnixListener,
    failures: AtomicUsize,
}

impl Listener for Exhausted {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        if self.failures.fetch_sub(1, Ordering::Relaxed) > 1 {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()));
        }
        Listener::accept(&self.inner).await
    }
}

#[tokio::test]
async fn accepting_goes_on_after_descriptors_ran_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("proxy.sock");
    let proxy = Script::default().start();
    let listener = Exhausted { inner: UnixListener::bind(&path).unwrap(), failures: AtomicUsize::new(3) };
    tokio::spawn(serve(listener, Arc::clone(&proxy.client)));
    let mut client = UnixStream::connect(&path).await.unwrap();
    client.write_all(b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 407 "));
}

#[tokio::test]
async fn h19_panic_in_one_connection_harms_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("proxy.sock");
    let limits = Limits { max_connections: 1, max_tunnels: 1, ..Limits::default() };
    let answers = vec![Err(ResolveError::Timeout)];
    let allow = vec!["panic.test".to_owned(), "a.test".to_owned()];
    let proxy = Script { allow, answers, limits, ..Script::default() }.start();
    tokio::spawn(serve(UnixListener::bind(&path).unwrap(), Arc::clone(&proxy.client)));

    let mut unlucky = UnixStream::connect(&path).await.unwrap();
    unlucky.write_all(proxy.connect_head("panic.test:443").as_bytes()).await.unwrap();
    assert_eq!(within(unlucky.read(&mut [0])).await.unwrap(), 0);
    // Its places are free again.
    let mut next = UnixStream::connect(&path).await.unwrap();
    next.write_all(proxy.connect_head("a.test:443").as_bytes()).await.unwrap();
    assert!(read_head(&mut next).await.contains("X-Cloister-Reason: dns_timeout\r\n"));
}

#[tokio::test]
async fn upstream_reset_reaches_a_client_on_tcp_as_a_reset() {
    let origin = Server::start().await;
    let proxy = Script::allowing(origin.authority()).start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, Arc::clone(&proxy.client)));
    #[expect(clippy::disallowed_methods, reason = "this is the client")]
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    client.write_all(proxy.connect_head(&origin.authority()).as_bytes()).await.unwrap();
    read_head(&mut client).await;
    let upstream = origin.accept().await;
    upstream.set_zero_linger().unwrap();
    drop(upstream);
    let error = within(client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn idle_tunnel_needs_little_memory() {
    // What a connection's task holds while its tunnel is idle, besides the two sockets.
    let proxy = Script::default().start();
    let (_near, far) = UnixStream::pair().unwrap();
    let task = connection::serve(far, proxy.client, ConnectionId::new(1));
    assert!(size_of_val(&task) <= 1536, "{} bytes", size_of_val(&task));
}
