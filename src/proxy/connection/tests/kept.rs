//! Connections to upstreams that serve one request after the other.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::harness::{Peer, Proxy, Script, Server, read_head, read_to_end};
use crate::proxy::{Descriptors, Ending};

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

struct Case {
    proxy: Proxy,
    server: Server,
    authority: String,
}

impl Case {
    async fn new() -> Self {
        Self::with(20_000).await
    }

    /// Where the guardian has so many descriptors.
    async fn with(descriptors: usize) -> Self {
        let server = Server::start().await;
        let authority = server.authority();
        let descriptors = Arc::new(Descriptors::new(descriptors));
        Self { proxy: Script { descriptors, ..Script::allowing(&authority) }.start(), server, authority }
    }

    /// Sends a request on a connection of its own.
    async fn request(&mut self, path: &str) -> Peer {
        let mut peer = self.proxy.connect();
        peer.send(self.proxy.get_head(&self.authority, path)).await;
        peer
    }

    /// Has one request served on a fresh connection, and gives the upstream's end of it.
    async fn keep_one(&mut self, answer: &str) -> (Peer, TcpStream) {
        let mut peer = self.request("/first").await;
        let mut upstream = self.server.accept().await;
        expect(&mut upstream, "/first").await;
        upstream.write_all(answer.as_bytes()).await.unwrap();
        assert!(peer.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
        self.ended("ok").await;
        (peer, upstream)
    }

    /// One request has been recorded, and ended like this.
    async fn ended(&mut self, how: &str) {
        assert!(self.proxy.event().await.starts_with(&format!("allow {} by ", self.authority)));
        let close = self.proxy.event().await;
        assert!(close.starts_with(&format!("close {} {how} ", self.authority)), "{close}");
    }

    fn kept(&self) -> usize {
        self.proxy.client.pool.count()
    }
}

async fn expect(upstream: &mut TcpStream, path: &str) {
    let head = read_head(upstream).await;
    assert!(head.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{head}");
}

#[tokio::test]
async fn n11_every_request_on_a_kept_connection_has_its_own_permit_and_record() {
    let mut case = Case::new().await;
    let (_peer, mut upstream) = case.keep_one(ANSWER).await;
    for path in ["/second", "/third"] {
        let mut peer = case.request(path).await;
        expect(&mut upstream, path).await;
        upstream.write_all(ANSWER.as_bytes()).await.unwrap();
        assert_eq!(peer.answer().await.1, "ok");
        case.ended("ok").await;
    }
    assert!(case.server.stayed_untouched());
}

#[tokio::test]
async fn bytes_are_counted_for_the_request_that_they_serve() {
    let mut case = Case::new().await;
    let (_peer, mut upstream) = case.keep_one(ANSWER).await;
    let mut peer = case.request("/2").await;
    let head = read_head(&mut upstream).await;
    upstream.write_all(ANSWER.as_bytes()).await.unwrap();
    peer.answer().await;
    case.proxy.event().await;
    let expected = format!("close {} ok {}/{}", case.authority, head.len(), ANSWER.len());
    assert_eq!(case.proxy.event().await, expected);
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_is_noticed() {
    let mut case = Case::new().await;
    let (_peer, upstream) = case.keep_one(ANSWER).await;
    drop(upstream);
    let mut peer = case.request("/second").await;
    let mut upstream = case.server.accept().await;
    expect(&mut upstream, "/second").await;
    upstream.write_all(ANSWER.as_bytes()).await.unwrap();
    assert_eq!(peer.answer().await.1, "ok");
}

#[tokio::test]
async fn a_request_that_dies_with_a_kept_connection_is_sent_once_more() {
    let mut case = Case::new().await;
    let (_peer, mut upstream) = case.keep_one(ANSWER).await;
    let mut peer = case.request("/second").await;
    expect(&mut upstream, "/second").await;
    drop(upstream);
    let mut upstream = case.server.accept().await;
    expect(&mut upstream, "/second").await;
    // Not a third time.
    drop(upstream);
    assert!(peer.answer().await.0.starts_with("HTTP/1.1 502 "));
    case.ended("upstream_reset").await;
    assert!(case.server.stayed_untouched());
}

#[tokio::test]
async fn a_request_that_dies_with_a_kept_connection_meets_a_closed_port() {
    let mut case = Case::new().await;
    let (_peer, mut upstream) = case.keep_one(ANSWER).await;
    let mut peer = case.request("/second").await;
    expect(&mut upstream, "/second").await;
    let Case { mut proxy, server, authority } = case;
    drop(server);
    drop(upstream);
    let (head, body) = peer.answer().await;
    assert!(head.contains("X-Cloister-Reason: connect_failed\r\n"), "{head}");
    assert!(body.contains("it refuses connections"), "{body}");
    assert!(proxy.event().await.starts_with(&format!("allow {authority} by ")));
    let close = proxy.event().await;
    assert!(close.starts_with(&format!("close {authority} connect_failed ")), "{close}");
    assert!(close.ends_with("Connection refused (os error 111))"), "{close}");
}

#[tokio::test]
async fn a_request_is_not_repeated_once_its_answer_has_begun() {
    let mut case = Case::new().await;
    let (_peer, mut upstream) = case.keep_one(ANSWER).await;
    let mut peer = case.request("/second").await;
    expect(&mut upstream, "/second").await;
    upstream.write_all(b"HTTP/1.1 200").await.unwrap();
    drop(upstream);
    assert!(peer.answer().await.0.starts_with("HTTP/1.1 502 "));
    assert!(case.server.stayed_untouched());
}

#[tokio::test]
async fn what_could_not_be_repeated_gets_a_fresh_connection() {
    for (method, fields, body) in
        [("POST", "Content-Length: 1\r\n", "x"), ("POST", "", ""), ("GET", "Content-Length: 1\r\n", "x")]
    {
        let mut case = Case::new().await;
        let (mut peer, _upstream) = case.keep_one(ANSWER).await;
        assert_eq!(peer.exactly(2).await, b"ok");
        let (proof, authority) = (case.proxy.proof(), case.authority.clone());
        let head =
            format!("{method} http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n{proof}{fields}\r\n");
        peer.send(head + body).await;
        read_head(&mut case.server.accept().await).await;
    }
}

#[tokio::test]
async fn h1_a_connection_with_anything_left_on_it_is_not_kept() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ] {
        let mut case = Case::new().await;
        let (_peer, _upstream) = case.keep_one(answer).await;
        assert_eq!(case.kept(), 0, "{answer}");
    }
}

#[tokio::test]
async fn h1_an_answer_that_nobody_asked_for_is_no_answer_to_the_next_request() {
    let mut case = Case::new().await;
    let (_peer, mut upstream) = case.keep_one(ANSWER).await;
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil").await.unwrap();
    let mut peer = case.request("/second").await;
    let mut fresh = case.server.accept().await;
    expect(&mut fresh, "/second").await;
    fresh.write_all(ANSWER.as_bytes()).await.unwrap();
    assert_eq!(peer.answer().await.1, "ok");
}

#[tokio::test]
async fn t10_kept_connections_end_with_the_rules_and_with_the_sandbox() {
    let mut case = Case::new().await;
    let (_peer, mut upstream) = case.keep_one(ANSWER).await;
    case.proxy.policies.replace(Some(Script::default().policy()));
    case.proxy.client.revalidate();
    assert_eq!(read_to_end(&mut upstream).await, b"");

    let mut case = Case::new().await;
    let (_peer, mut upstream) = case.keep_one(ANSWER).await;
    case.proxy.client.end(Ending::Revoked);
    assert_eq!(read_to_end(&mut upstream).await, b"");
}

#[tokio::test]
async fn t10_what_was_under_way_while_the_rules_changed_is_not_kept() {
    let mut case = Case::new().await;
    let mut peer = case.request("/first").await;
    let mut upstream = case.server.accept().await;
    expect(&mut upstream, "/first").await;
    case.proxy.policies.replace(Some(Script::allowing(&case.authority).policy()));
    assert_eq!(case.proxy.client.revalidate(), 0);
    upstream.write_all(ANSWER.as_bytes()).await.unwrap();
    peer.answer().await;
    case.ended("ok").await;
    assert_eq!(case.kept(), 0);
}

#[tokio::test]
async fn a_connection_is_not_kept_for_long() {
    let mut case = Case::new().await;
    let (_peer, mut upstream) = case.keep_one(ANSWER).await;
    assert_eq!(case.kept(), 1);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(16)).await;
    tokio::time::resume();
    assert_eq!(read_to_end(&mut upstream).await, b"");
}

#[tokio::test]
async fn h15_only_so_many_are_kept() {
    let mut case = Case::new().await;
    let mut open = Vec::new();
    for _ in 0..34 {
        let peer = case.request("/").await;
        let mut upstream = case.server.accept().await;
        expect(&mut upstream, "/").await;
        open.push((peer, upstream));
    }
    for (peer, upstream) in &mut open {
        upstream.write_all(ANSWER.as_bytes()).await.unwrap();
        peer.answer().await;
    }
    let mut closed = 0;
    while closed < open.len() {
        closed += usize::from(case.proxy.event().await.starts_with("close "));
    }
    assert_eq!(case.kept(), 32);
}

#[tokio::test]
async fn h15_a_kept_connection_is_accounted_for_and_gives_way_to_a_request() {
    // Enough for one passage.
    let mut case = Case::with(50).await;
    let (peer, mut upstream) = case.keep_one(ANSWER).await;
    drop(peer);
    assert_eq!(case.kept(), 1);
    assert!(case.proxy.client.admission.passage().is_none(), "nobody accounts for it");
    let mut peer = case.request("/second").await;
    let mut second = case.server.accept().await;
    assert_eq!(read_to_end(&mut upstream).await, b"");
    expect(&mut second, "/second").await;
    second.write_all(ANSWER.as_bytes()).await.unwrap();
    assert_eq!(peer.answer().await.1, "ok");
    case.ended("ok").await;
    case.proxy.client.revalidate();
    assert!(case.proxy.client.admission.passage().is_some(), "it is closed and still accounted for");
}
