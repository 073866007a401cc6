//! Tunnels that may carry only TLS to the authorised host.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

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
            let mut expected = bytes.clone();
            expected.extend(b"later");
            assert_eq!(read_exactly(&mut upstream, expected.len()).await, expected);
            upstream.write_all(b"hello").await.unwrap();
            assert_eq!(peer.exactly(5).await, b"hello");
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
