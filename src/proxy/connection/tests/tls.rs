//! Tunnels that may carry only TLS to the authorised host.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::harness::{Peer, Proxy, Script, Server, read_exactly, read_to_end};
use crate::proxy::Limits;

const ALERT: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70];

/// The handshake message of a `ClientHello` with these server names.
fn handshake(names: &[&str]) -> Vec<u8> {
    let mut extensions = Vec::new();
    if !names.is_empty() {
        let mut list = Vec::new();
        for name in names {
            list.push(0);
            push_u16(&mut list, name.len());
            list.extend_from_slice(name.as_bytes());
        }
        let mut body = Vec::new();
        push_u16(&mut body, list.len());
        body.extend(list);
        push_extension(&mut extensions, 0, &body);
    }
    push_extension(&mut extensions, 10, &[0, 2, 0, 29]);
    push_extension(&mut extensions, 13, &[0, 2, 4, 3]);
    push_extension(&mut extensions, 43, &[2, 3, 4]);
    // GREASE and padding, as browsers send them.
    push_extension(&mut extensions, 0x1a1a, &[]);
    push_extension(&mut extensions, 21, &[0; 300]);

    let mut hello = vec![3, 3];
    hello.extend([5; 32]);
    hello.push(0);
    hello.extend([0, 2, 0x13, 0x01, 1, 0]);
    push_u16(&mut hello, extensions.len());
    hello.extend(extensions);
    let mut message = vec![1, 0];
    push_u16(&mut message, hello.len());
    message.extend(hello);
    message
}

fn push_extension(out: &mut Vec<u8>, kind: u16, body: &[u8]) {
    out.extend(kind.to_be_bytes());
    push_u16(out, body.len());
    out.extend(body);
}

fn push_u16(out: &mut Vec<u8>, number: usize) {
    out.extend(u16::try_from(number).unwrap().to_be_bytes());
}

/// The message in records of at most `size` bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in message.chunks(size) {
        out.extend([0x16, 3, 1]);
        push_u16(&mut out, piece.len());
        out.extend(piece);
    }
    out
}

fn hello(name: &str) -> Vec<u8> {
    records(&handshake(&[name]), 16_000)
}

struct Case {
    proxy: Proxy,
    peer: Peer,
    server: Server,
    authority: String,
}

async fn tunnel(limits: Limits) -> Case {
    let server = Server::start().await;
    let authority = server.authority();
    let mut proxy = Script { limits, ..Script::allowing(&authority) }.start();
    let peer = proxy.connect_tls(&authority).await;
    assert!(proxy.event().await.starts_with("allow "));
    Case { proxy, peer, server, authority }
}

#[track_caller]
fn assert_denied(events: &[String], authority: &str, reason: &str, bytes: &str) {
    assert_eq!(events.len(), 2, "{events:?}");
    assert!(events[0].starts_with(&format!("deny {authority} {reason} (")), "{events:?}");
    assert_eq!(events[1], format!("close {authority} {reason} {bytes}"));
}

/// Sends `bytes`, which must be answered with `answer` and a close, and never reach the upstream.
async fn refuses(bytes: &[u8], answer: &[u8], reason: &str) {
    let Case { mut proxy, mut peer, server, authority } = tunnel(Limits::default()).await;
    peer.send(bytes).await;
    assert_eq!(peer.rest().await, answer);
    let mut upstream = server.accept().await;
    assert_eq!(read_to_end(&mut upstream).await, b"");
    let events = [proxy.event().await, proxy.event().await];
    assert_denied(&events, &authority, reason, "0/0");
}

#[tokio::test]
async fn n10_right_name_passes_unchanged_however_it_is_split() {
    let message = handshake(&["origin.test"]);
    for bytes in [
        records(&message, 16_000),
        records(&message, message.len() / 2 + 1),
        records(&message, 7),
        hello("ORIGIN.Test"),
    ] {
        for step in [1, 5, 100, bytes.len()] {
            let Case { mut peer, server, .. } = tunnel(Limits::default()).await;
            let mut upstream = server.accept().await;
            for piece in bytes.chunks(step) {
                peer.send(piece).await;
                // Lets the proxy read each piece for itself.
                tokio::task::yield_now().await;
            }
            peer.send("later").await;
            assert_eq!(read_exactly(&mut upstream, bytes.len()).await, bytes);
            upstream.write_all(b"hello").await.unwrap();
            assert_eq!(peer.exactly(5).await, b"hello");
            // What stands behind the first hello waits until the upstream has begun its answer.
            assert_eq!(read_exactly(&mut upstream, 5).await, b"later");
        }
    }
}

#[tokio::test]
async fn n10_other_name_gets_an_alert_and_the_upstream_sees_nothing() {
    for name in ["evil.test", "origin.test.evil.test", "xorigin.test", "sub.origin.test", "test"] {
        refuses(&hello(name), &ALERT, "sni_mismatch").await;
    }
}

#[tokio::test]
async fn n10_missing_or_doubtful_name_gets_an_alert() {
    refuses(&records(&handshake(&[]), 16_000), &ALERT, "sni_mismatch").await;
    // An address is no name; it counts as none.
    refuses(&hello("127.0.0.1"), &ALERT, "sni_mismatch").await;
    refuses(&hello("origin test"), &ALERT, "sni_mismatch").await;
    refuses(&records(&handshake(&["origin.test", "evil.test"]), 16_000), &ALERT, "sni_mismatch").await;
}

#[tokio::test]
async fn t8_what_is_not_tls_is_closed_without_a_word() {
    for bytes in [
        &b"SSH-2.0-OpenSSH_9.6\r\n"[..],
        b"GET / HTTP/1.1\r\nHost: origin.test\r\n\r\n",
        // TLS, but not a hello: an alert, a record of application data, a ServerHello.
        &[0x15, 3, 3, 0, 2, 2, 40],
        &[0x17, 3, 3, 0, 2, 0, 0],
        &[0x16, 3, 3, 0, 4, 2, 0, 0, 0],
    ] {
        refuses(bytes, b"", "not_tls").await;
    }
}

#[tokio::test]
async fn t8_hello_without_end_is_closed() {
    // Claims to have 16 MiB.
    let endless = [vec![1, 0xff, 0xff, 0xff], vec![0; 80_000]].concat();
    refuses(&records(&endless, 16_000), b"", "not_tls").await;
}

#[tokio::test]
async fn t8_client_that_says_nothing_is_closed() {
    let limits = Limits { hello_timeout: Duration::from_millis(30), ..Limits::default() };
    let Case { mut proxy, mut peer, server, authority } = tunnel(limits).await;
    let mut upstream = server.accept().await;
    assert_eq!(peer.rest().await, b"");
    assert_eq!(read_to_end(&mut upstream).await, b"");
    let events = [proxy.event().await, proxy.event().await];
    assert_denied(&events, &authority, "not_tls", "0/0");
}

#[tokio::test]
async fn client_that_leaves_before_its_hello_is_no_denial() {
    let Case { mut proxy, mut peer, authority, .. } = tunnel(Limits::default()).await;
    peer.send(&hello("origin.test")[..20]).await;
    drop(peer);
    assert_eq!(proxy.event().await, format!("close {authority} ok 0/0"));
}

#[tokio::test]
async fn n10_unknown_types_of_names_get_an_alert() {
    let named = handshake(&["origin.test"]);
    let entry = named.windows(11).position(|bytes| bytes == b"origin.test").unwrap() - 3;
    let mut other_type = named.clone();
    other_type[entry] = 1;
    refuses(&records(&other_type, 16_000), &ALERT, "sni_mismatch").await;
    let mut besides = handshake(&["origin.test", "evil.test"]);
    besides[entry + 3 + 11] = 7;
    refuses(&records(&besides, 16_000), &ALERT, "sni_mismatch").await;
}

/// The random of a `HelloRetryRequest`.
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
const CHANGE_CIPHER_SPEC: [u8; 6] = [20, 3, 3, 0, 1, 1];
const EARLY_DATA: [u8; 8] = [23, 3, 3, 0, 3, 1, 2, 3];

fn server_hello(random: [u8; 32]) -> Vec<u8> {
    [&[2, 0, 0, 44, 3, 3][..], &random, &[0, 0x13, 1, 0, 0, 4, 0, 43, 0, 0]].concat()
}

/// How an upstream in compatibility mode asks for another hello (RFC 8446, D.4), in records of at most `size` bytes.
fn retry_request(size: usize) -> Vec<u8> {
    [&records(&server_hello(RETRY), size)[..], &CHANGE_CIPHER_SPEC].concat()
}

/// A tunnel whose first hello is upstream, which has asked for another, in pieces of `step` bytes; the last one holds
/// what stands behind the request, too.
async fn asked_again(step: usize, size: usize, behind_hello: &[u8]) -> (Case, TcpStream) {
    let mut case = tunnel(Limits { hello_timeout: Duration::from_secs(1), ..Limits::default() }).await;
    let mut upstream = case.server.accept().await;
    let first = hello("origin.test");
    case.peer.send([&first, behind_hello].concat()).await;
    assert_eq!(read_exactly(&mut upstream, first.len()).await, first);
    let retry = retry_request(size);
    let (begin, end) = retry.split_at(retry.len() - CHANGE_CIPHER_SPEC.len() - 1);
    for piece in begin.chunks(step).chain([end]) {
        upstream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(case.peer.exactly(retry.len()).await, retry);
    (case, upstream)
}

#[tokio::test]
async fn n10_a_second_hello_with_the_same_name_passes_however_it_is_split() {
    let second = [&CHANGE_CIPHER_SPEC[..], &records(&handshake(&["origin.test"]), 100)].concat();
    for (step, size) in [(1, 16_000), (7, 5), (1000, 1), (1000, 16_000)] {
        let (Case { mut peer, .. }, mut upstream) = asked_again(step, size, &[]).await;
        for piece in second.chunks(step.max(3)) {
            peer.send(piece).await;
            tokio::task::yield_now().await;
        }
        peer.send("later").await;
        assert_eq!(read_exactly(&mut upstream, second.len() + 5).await, [&second[..], b"later"].concat());
        upstream.write_all(b"done").await.unwrap();
        assert_eq!(peer.exactly(4).await, b"done");
    }
}

#[tokio::test]
async fn n10_early_data_before_the_second_hello_passes() {
    let early = [&CHANGE_CIPHER_SPEC[..], &EARLY_DATA, &EARLY_DATA].concat();
    let (Case { mut peer, .. }, mut upstream) = asked_again(100, 16_000, &early).await;
    assert_eq!(read_exactly(&mut upstream, early.len()).await, early);
    peer.send(hello("origin.test")).await;
    let second = hello("origin.test");
    assert_eq!(read_exactly(&mut upstream, second.len()).await, second);
}

#[tokio::test]
async fn n10_a_second_hello_with_another_name_gets_an_alert_and_never_goes_upstream() {
    for (second, reason, answer) in [
        (hello("evil.test"), "sni_mismatch", &ALERT[..]),
        (records(&handshake(&[]), 16_000), "sni_mismatch", &ALERT),
        (records(&handshake(&["evil.test"]), 3), "sni_mismatch", &ALERT),
        (records(&[2, 0, 0, 0], 4), "not_tls", &[]),
        (b"GET / HTTP/1.1\r\n".to_vec(), "not_tls", &[]),
    ] {
        // In time, and too early: before it was asked for.
        for too_early in [false, true] {
            let behind: &[u8] = if too_early { &second } else { &[] };
            let (mut case, mut upstream) = asked_again(11, 16_000, behind).await;
            if !too_early {
                case.peer.send(&second).await;
            }
            assert_eq!(case.peer.rest().await, answer);
            assert_eq!(read_to_end(&mut upstream).await, b"");
            let bytes = format!("{}/{}", hello("origin.test").len(), retry_request(16_000).len());
            let events = [case.proxy.event().await, case.proxy.event().await];
            assert_denied(&events, &case.authority, reason, &bytes);
        }
    }
}

#[tokio::test]
async fn n10_a_second_hello_that_does_not_come_is_not_waited_for() {
    let (mut case, mut upstream) = asked_again(11, 16_000, &hello("origin.test")[..30]).await;
    assert_eq!(case.peer.rest().await, b"");
    assert_eq!(read_to_end(&mut upstream).await, b"");
    assert!(case.proxy.event().await.starts_with(&format!("deny {} not_tls ", case.authority)));
}

#[tokio::test]
async fn n10_a_request_for_a_second_hello_that_never_ends_is_broken_off() {
    let Case { mut proxy, mut peer, server, authority } = tunnel(Limits::default()).await;
    let mut upstream = server.accept().await;
    let first = hello("origin.test");
    peer.send([&first[..], &hello("evil.test")].concat()).await;
    assert_eq!(read_exactly(&mut upstream, first.len()).await, first);
    let mut endless = server_hello(RETRY);
    // Claims to have 16 MiB.
    endless[1..4].fill(0xff);
    endless.resize(80_000, 0);
    // Nobody takes all of it.
    let answer = records(&endless, 16_000);
    let (_, heard) = tokio::join!(upstream.write_all(&answer), peer.rest());
    assert!(answer.starts_with(&heard) && heard.len() > 64 << 10, "{} bytes", heard.len());
    assert_eq!(
        proxy.event().await,
        format!("close {authority} upstream_reset {}/{}", first.len(), heard.len())
    );
    assert!(upstream.read_u8().await.is_err(), "the second hello went upstream");
}

#[tokio::test]
async fn n10_an_upstream_that_says_nothing_ends_at_the_idle_limit() {
    let limits = Limits { idle: Duration::from_millis(50), ..Limits::default() };
    let Case { mut proxy, mut peer, server, authority } = tunnel(limits).await;
    let mut upstream = server.accept().await;
    let first = hello("origin.test");
    peer.send([&first[..], &EARLY_DATA].concat()).await;
    assert_eq!(read_to_end(&mut upstream).await, first);
    assert_eq!(peer.rest().await, b"");
    assert_eq!(proxy.event().await, format!("close {authority} idle_timeout {}/0", first.len()));
}

#[tokio::test]
async fn n10_a_client_that_ends_behind_its_hello_still_hears_the_answer() {
    let Case { mut peer, server, .. } = tunnel(Limits::default()).await;
    let mut upstream = server.accept().await;
    let first = hello("origin.test");
    peer.send(&first).await;
    peer.stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut upstream).await, first);
    upstream.write_all(b"answer").await.unwrap();
    drop(upstream);
    assert_eq!(peer.rest().await, b"answer");
}
