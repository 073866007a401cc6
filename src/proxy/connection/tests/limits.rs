//! How much and how long.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

use super::harness::{Proxy, Script, Server, read_head, within};
use crate::config::RateLimit;
use crate::proxy::{Limits, Outbound, Settings, connection, serve};

#[tokio::test]
async fn h15_slow_head_is_cut() {
    let limits = Limits { head_timeout: Duration::from_millis(50), ..Limits::default() };
    let mut proxy = Script { limits, ..Script::default() }.start();
    let mut peer = proxy.connect();
    peer.send("GET http://a.test/ HTTP/1.1\r\nHost: ").await;
    let answer = String::from_utf8(peer.rest().await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
    assert!(answer.contains("X-Cloister-Reason: head_timeout\r\nConnection: close\r\n"), "{answer}");
    assert!(answer.contains("within 0.05 seconds"), "{answer}");
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

#[tokio::test(start_paused = true)]
async fn h15_d3_a_name_that_does_not_get_its_turn_is_not_asked_for() {
    let mut proxy = Script::allowing("silent.test").start();
    let mut peers = Vec::new();
    for _ in 0..17 {
        let mut peer = proxy.connect();
        peer.send(proxy.connect_head("silent.test:443")).await;
        peers.push(peer);
        while proxy.client.open_tunnels() < peers.len() {
            tokio::task::yield_now().await;
        }
    }
    let (head, body) = peers[16].answer().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(head.contains("X-Cloister-Reason: overloaded\r\n"), "{head}");
    assert!(body.contains("16 names are being resolved already"), "{body}");
    assert_eq!(proxy.names.asked().len(), 16);
    assert_eq!(proxy.events(), [""; 0], "the name servers have not heard of it");
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
    let task = connection::serve(far, proxy.client, crate::proxy::admission::tunnels::ConnectionId(1));
    assert!(size_of_val(&task) <= 1536, "{} bytes", size_of_val(&task));
}

/// Long enough to begin, short enough to wait for.
const MAX_DURATION: Duration = Duration::from_secs(1);

/// Writes as long as somebody reads.
async fn flow(mut sink: impl tokio::io::AsyncWrite + Unpin) {
    while sink.write_all(&[0; 1 << 10]).await.is_ok() {}
}

#[tokio::test]
async fn h15_a_tunnel_ends_after_its_time_whatever_flows() {
    let origin = Server::start().await;
    let limits = Limits { max_duration: MAX_DURATION, ..Limits::default() };
    let mut proxy = Script { limits, ..Script::allowing(origin.authority()) }.start();
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head(&origin.authority())).await;
    peer.head().await;
    let flowing = tokio::spawn(flow(origin.accept().await));
    assert!(!peer.rest().await.is_empty(), "nothing flowed");
    within(flowing).await.unwrap();
    assert!(proxy.event().await.starts_with("allow "));
    let end = proxy.event().await;
    assert!(end.starts_with(&format!("close {} max_duration 0/", origin.authority())), "{end}");
}

#[tokio::test]
async fn h15_a_plain_exchange_ends_after_its_time_whatever_flows() {
    let origin = Server::start().await;
    let limits = Limits { max_duration: MAX_DURATION, ..Limits::default() };
    let mut proxy = Script { limits, ..Script::allowing(origin.authority()) }.start();
    let mut peer = proxy.connect();
    peer.send(proxy.get_head(&origin.authority(), "/endless")).await;
    let mut upstream = origin.accept().await;
    read_head(&mut upstream).await;
    upstream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let flowing = tokio::spawn(flow(upstream));
    assert!(peer.rest().await.starts_with(b"HTTP/1.1 200 OK"));
    within(flowing).await.unwrap();
    assert!(proxy.event().await.starts_with("allow "));
    let end = proxy.event().await;
    assert!(end.starts_with(&format!("close {} max_duration ", origin.authority())), "{end}");
}

#[tokio::test]
async fn h15_an_upstream_that_never_answers_ends_after_its_time_with_a_reason() {
    let origin = Server::start().await;
    let limits = Limits { max_duration: MAX_DURATION, ..Limits::default() };
    let mut proxy = Script { limits, ..Script::allowing(origin.authority()) }.start();
    let mut peer = proxy.connect();
    peer.send(proxy.get_head(&origin.authority(), "/")).await;
    let _upstream = origin.accept().await;
    let (head, body) = peer.answer().await;
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    assert!(body.contains("did not answer in time"), "{body}");
    assert!(proxy.event().await.starts_with("allow "));
    assert!(proxy.event().await.contains(" max_duration "));
}

#[tokio::test]
async fn h15_a_client_that_does_not_read_its_answer_is_idle() {
    let origin = Server::start().await;
    let limits = Limits { idle: Duration::from_millis(300), ..Limits::default() };
    let mut proxy = Script { limits, ..Script::allowing(origin.authority()) }.start();
    let mut peer = proxy.connect();
    peer.send(proxy.get_head(&origin.authority(), "/")).await;
    let mut upstream = origin.accept().await;
    read_head(&mut upstream).await;
    upstream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    within(flow(upstream)).await;
    assert!(proxy.event().await.starts_with("allow "));
    assert!(proxy.event().await.contains(" idle_timeout "));
}

#[tokio::test]
async fn h15_a_client_that_does_not_read_its_refusals_is_left() {
    let rate = RateLimit { per_minute: 6_000_000, burst: 1_000_000 };
    let limits = Limits { head_timeout: Duration::from_millis(100), rate, ..Limits::default() };
    let mut proxy = Script { limits, ..Script::default() }.start();
    let peer = proxy.connect();
    let heads = proxy.get_head("a.test", "/").repeat(10_000);
    let (reader, mut writer) = peer.stream.into_split();
    assert!(within(writer.write_all(heads.as_bytes())).await.is_err(), "all were taken");
    drop(reader);
}

fn raise(proxy: &Proxy, limits: Limits) {
    proxy.client.apply(Settings { limits, outbound: Outbound::Direct });
}

#[tokio::test]
async fn h15_another_number_of_tunnels_holds_at_once() {
    let origin = Server::start().await;
    let limits = Limits { max_tunnels: 1, ..Limits::default() };
    let mut proxy = Script { limits: limits.clone(), ..Script::allowing(origin.authority()) }.start();
    let (mut first, mut second) = (proxy.connect(), proxy.connect());
    first.send(proxy.connect_head(&origin.authority())).await;
    first.head().await;
    second.send(proxy.connect_head(&origin.authority())).await;
    let (head, body) = second.answer().await;
    assert!(head.starts_with("HTTP/1.1 429 ") && body.contains("proxy.max_tunnels"), "{head}{body}");
    raise(&proxy, Limits { max_tunnels: 2, ..limits.clone() });
    second.send(proxy.connect_head(&origin.authority())).await;
    assert!(second.head().await.starts_with("HTTP/1.1 200 "));
    // Fewer end nothing that is open, and let nothing more in.
    raise(&proxy, limits);
    let mut third = proxy.connect();
    third.send(proxy.connect_head(&origin.authority())).await;
    assert!(third.head().await.starts_with("HTTP/1.1 429 "));
    assert_eq!(proxy.client.open_tunnels(), 2);
}

#[tokio::test]
async fn h15_a_plain_request_in_flight_counts_as_a_tunnel() {
    let origin = Server::start().await;
    let limits = Limits { max_tunnels: 1, ..Limits::default() };
    let mut proxy = Script { limits, ..Script::allowing(origin.authority()) }.start();
    let (mut first, mut second) = (proxy.connect(), proxy.connect());
    first.send(proxy.get_head(&origin.authority(), "/")).await;
    let mut upstream = origin.accept().await;
    second.send(proxy.connect_head(&origin.authority())).await;
    assert!(second.answer().await.1.contains("too_many_tunnels"));
    upstream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    assert!(first.head().await.starts_with("HTTP/1.1 204 "));
    // The first connection is kept, and counts no more.
    second.send(proxy.connect_head(&origin.authority())).await;
    assert!(second.head().await.starts_with("HTTP/1.1 200 "));
}
