//! Tunnels: what flows, how they end, what the journal says.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::harness::{Peer, Proxy, Script, Server, read_exactly, read_to_end, within};
use crate::proxy::{Ending, Limits};

/// A tunnel to an origin that has accepted it.
struct Open {
    proxy: Proxy,
    peer: Peer,
    upstream: TcpStream,
    authority: String,
}

async fn open(limits: Limits) -> Open {
    let origin = Server::start().await;
    let authority = origin.authority();
    let mut proxy = Script { limits, ..Script::allowing(&authority) }.start();
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head(&authority)).await;
    assert_eq!(peer.head().await, "HTTP/1.1 200 Connection established\r\n\r\n");
    let upstream = origin.accept().await;
    assert_eq!(
        proxy.event().await,
        format!("allow {authority} by {authority} at [127.0.0.1:{}]", origin.port)
    );
    Open { proxy, peer, upstream, authority }
}

#[tokio::test]
async fn bytes_flow_both_ways_and_are_counted() {
    let Open { mut proxy, mut peer, mut upstream, authority } = open(Limits::default()).await;
    peer.send("ping").await;
    assert_eq!(read_exactly(&mut upstream, 4).await, b"ping");
    upstream.write_all(b"pong!").await.unwrap();
    assert_eq!(peer.exactly(5).await, b"pong!");
    assert_eq!(proxy.client.open_tunnels(), 1);
    drop(peer);
    assert_eq!(read_to_end(&mut upstream).await, b"");
    drop(upstream);
    assert_eq!(proxy.event().await, format!("close {authority} ok 4/5"));
    assert_eq!(proxy.client.open_tunnels(), 0);
}

#[tokio::test]
async fn bytes_sent_right_behind_connect_arrive() {
    let origin = Server::start().await;
    let mut proxy = Script::allowing(origin.authority()).start();
    let mut peer = proxy.connect();
    let both = proxy.connect_head(&origin.authority()) + "early";
    peer.send(both).await;
    let mut upstream = origin.accept().await;
    assert_eq!(read_exactly(&mut upstream, 5).await, b"early");
    assert_eq!(peer.head().await, "HTTP/1.1 200 Connection established\r\n\r\n");
}

#[tokio::test]
async fn client_that_ends_its_direction_still_reads() {
    let Open { mut proxy, mut peer, mut upstream, authority } = open(Limits::default()).await;
    peer.send("question").await;
    peer.stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut upstream).await, b"question");
    upstream.write_all(b"answer").await.unwrap();
    drop(upstream);
    assert_eq!(peer.rest().await, b"answer");
    assert_eq!(proxy.event().await, format!("close {authority} ok 8/6"));
}

#[tokio::test]
async fn upstream_that_ends_its_direction_still_reads() {
    let Open { mut proxy, mut peer, mut upstream, authority } = open(Limits::default()).await;
    upstream.write_all(b"banner").await.unwrap();
    upstream.shutdown().await.unwrap();
    assert_eq!(peer.rest().await, b"banner");
    peer.send("more").await;
    peer.stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut upstream).await, b"more");
    assert_eq!(proxy.event().await, format!("close {authority} ok 4/6"));
}

#[tokio::test]
async fn large_transfers_arrive_whole_with_a_slow_reader() {
    let Open { peer, upstream, .. } = open(Limits::default()).await;
    let data: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let (mut from_peer, mut to_peer) = peer.stream.into_split();
    let (mut from_upstream, mut to_upstream) = upstream.into_split();
    let (up, down) = (data.clone(), data.clone());
    tokio::spawn(async move { to_peer.write_all(&up).await.unwrap() });
    tokio::spawn(async move { to_upstream.write_all(&down).await.unwrap() });
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    let both =
        async { tokio::join!(from_upstream.read_to_end(&mut got_up), from_peer.read_to_end(&mut got_down)) };
    let (read_up, read_down) = within(both).await;
    assert_eq!((read_up.unwrap(), read_down.unwrap()), (data.len(), data.len()));
    assert!(got_up == data && got_down == data);
}

#[tokio::test]
async fn upstream_that_resets_is_no_orderly_end() {
    let Open { mut proxy, mut peer, upstream, authority } = open(Limits::default()).await;
    upstream.set_zero_linger().unwrap();
    drop(upstream);
    assert_eq!(peer.rest().await, b"");
    assert_eq!(proxy.event().await, format!("close {authority} upstream_reset 0/0"));
}

#[tokio::test]
async fn client_that_resets_has_the_upstream_reset() {
    let Open { mut proxy, mut peer, mut upstream, authority } = open(Limits::default()).await;
    // A Unix socket that is closed with bytes unread resets its peer.
    upstream.write_all(b"unread").await.unwrap();
    within(peer.stream.readable()).await.unwrap();
    peer.send("x").await;
    assert_eq!(read_exactly(&mut upstream, 1).await, b"x");
    drop(peer);
    let error = within(upstream.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(proxy.event().await, format!("close {authority} client_reset 1/6"));
}

/// Lets the upstream send until nobody takes more: bytes wait everywhere on the way.
async fn fill_the_way(upstream: &TcpStream) {
    let bytes = vec![b'x'; 256 << 10];
    let mut sent = 0;
    while sent < 64 << 20 {
        match tokio::time::timeout(Duration::from_millis(300), upstream.writable()).await {
            Ok(ready) => ready.unwrap(),
            Err(_) => return,
        }
        sent += upstream.try_write(&bytes).unwrap_or(0);
    }
    panic!("somebody holds 64 MiB");
}

#[tokio::test]
async fn client_that_leaves_a_large_flow_has_the_upstream_reset() {
    let Open { mut proxy, peer, mut upstream, .. } = open(Limits::default()).await;
    fill_the_way(&upstream).await;
    drop(peer);
    let error = within(upstream.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let event = proxy.event().await;
    assert!(event.contains(" client_reset 0/"), "{event}");
}

#[tokio::test]
async fn upstream_that_resets_a_large_flow_is_no_orderly_end() {
    let Open { mut proxy, mut peer, upstream, .. } = open(Limits::default()).await;
    fill_the_way(&upstream).await;
    upstream.set_zero_linger().unwrap();
    drop(upstream);
    assert!(!peer.rest().await.is_empty());
    let event = proxy.event().await;
    assert!(event.contains(" upstream_reset 0/"), "{event}");
}

#[tokio::test]
async fn idle_tunnel_is_closed() {
    let limits = Limits { idle: Duration::from_millis(50), ..Limits::default() };
    let Open { mut proxy, mut peer, upstream: _upstream, authority } = open(limits).await;
    assert_eq!(peer.rest().await, b"");
    assert_eq!(proxy.event().await, format!("close {authority} idle_timeout 0/0"));
}

#[tokio::test]
async fn idle_limit_is_one_for_both_directions() {
    let idle = Duration::from_secs(1);
    let Open { mut proxy, mut peer, mut upstream, authority } =
        open(Limits { idle, ..Limits::default() }).await;
    // Only the upstream talks, for twice the limit: the silence of the client closes nothing.
    let mut beat = tokio::time::interval(idle / 20);
    for _ in 0..40 {
        beat.tick().await;
        upstream.write_all(b".").await.unwrap();
        assert_eq!(peer.exactly(1).await, b".");
    }
    assert_eq!(proxy.events(), [""; 0]);
    assert_eq!(peer.rest().await, b"");
    assert_eq!(proxy.event().await, format!("close {authority} idle_timeout 0/40"));
}

#[tokio::test]
async fn t10_withdrawn_rule_closes_its_tunnel_and_no_other() {
    let (origin, other) = (Server::start().await, Server::start().await);
    let script = Script { allow: vec![origin.authority(), other.authority()], ..Script::default() };
    let narrower = Script::allowing(other.authority()).policy();
    let mut proxy = script.start();
    let mut peers = Vec::new();
    for server in [&origin, &other] {
        let mut peer = proxy.connect();
        peer.send(proxy.connect_head(&server.authority())).await;
        peer.head().await;
        peers.push((peer, server.accept().await));
    }
    proxy.events();
    assert_eq!(proxy.client.revalidate(), 0, "nothing has changed");

    proxy.policies.replace(Some(narrower));
    assert_eq!(proxy.client.revalidate(), 1);
    let (mut withdrawn, _upstream) = peers.remove(0);
    assert_eq!(withdrawn.rest().await, b"");
    assert_eq!(proxy.event().await, format!("close {} rule_withdrawn 0/0", origin.authority()));

    let (mut kept, mut upstream) = peers.remove(0);
    kept.send("still").await;
    assert_eq!(read_exactly(&mut upstream, 5).await, b"still");
}

#[tokio::test]
async fn t10_withdrawn_pin_closes_its_tunnel() {
    let Open { mut proxy, mut peer, upstream: _upstream, authority } = open(Limits::default()).await;
    // The rule is still there; what it stood for is not.
    proxy.policies.replace(Some(Script { pins: Vec::new(), ..Script::allowing(&authority) }.policy()));
    assert_eq!(proxy.client.revalidate(), 1);
    assert_eq!(peer.rest().await, b"");
    assert_eq!(proxy.event().await, format!("close {authority} rule_withdrawn 0/0"));
}

#[tokio::test]
async fn i4_revoked_token_closes_everything() {
    let Open { mut proxy, mut peer, upstream: _upstream, authority } = open(Limits::default()).await;
    let mut waiting = proxy.connect();
    proxy.client.end(Ending::Revoked);
    assert_eq!(peer.rest().await, b"");
    assert_eq!(waiting.rest().await, b"");
    assert_eq!(proxy.event().await, format!("close {authority} token_revoked 0/0"));
    // And nothing comes in any more.
    let mut late = proxy.connect();
    assert_eq!(late.rest().await, b"");
}
