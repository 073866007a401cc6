//! WebSocket: a request becomes a tunnel, if the upstream agrees (T6).

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::harness::{Peer, Proxy, Script, Server, read_exactly, read_head, read_to_end};
use crate::proxy::Ending;

const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A short text in one frame; what a client sends is masked (RFC 6455, 5.3).
fn frame(text: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let masked = u8::from(mask.is_some()) << 7;
    let mut frame = vec![0x81, masked | u8::try_from(text.len()).unwrap()];
    frame.extend(mask.iter().flatten());
    let mask = mask.unwrap_or_default();
    frame.extend(text.bytes().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

struct Case {
    proxy: Proxy,
    peer: Peer,
    upstream: TcpStream,
    authority: String,
}

fn head(proxy: &Proxy, authority: &str) -> String {
    proxy.get_head(authority, "/chat").replace(
        "\r\n\r\n",
        "\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\nOrigin: http://a.test\r\n\r\n",
    )
}

/// Asks for a WebSocket, with `early` right behind the request, and has the request come to the upstream.
async fn ask(early: &[u8]) -> Case {
    let server = Server::start().await;
    let authority = server.authority();
    let mut proxy = Script::allowing(&authority).start();
    let mut peer = proxy.connect();
    peer.send([head(&proxy, &authority).as_bytes(), early].concat()).await;
    let mut upstream = server.accept().await;
    let head = read_head(&mut upstream).await.to_ascii_lowercase();
    assert_eq!(
        head,
        format!(
            "get /chat http/1.1\r\nhost: {authority}\r\nsec-websocket-key: dghlihnhbxbszsbub25jzq==\r\n\
             sec-websocket-version: 13\r\norigin: http://a.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        )
    );
    Case { proxy, peer, upstream, authority }
}

impl Case {
    /// Has the upstream agree.
    async fn agree(&mut self) {
        self.upstream.write_all(AGREED.as_bytes()).await.unwrap();
        assert_eq!(
            self.peer.head().await,
            "HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
             upgrade: websocket\r\nconnection: upgrade\r\n\r\n"
        );
    }

    async fn ended(&mut self, how: &str) {
        assert!(self.proxy.event().await.starts_with(&format!("allow {} by ", self.authority)));
        let close = self.proxy.event().await;
        assert!(close.starts_with(&format!("close {} {how} ", self.authority)), "{close}");
    }
}

#[tokio::test]
async fn t6_frames_flow_both_ways_after_the_upstream_agreed() {
    let mut case = ask(b"").await;
    case.agree().await;
    assert_eq!(case.proxy.client.open_tunnels(), 1);
    for text in ["one", "two"] {
        let sent = frame(text, Some([1, 2, 3, 4]));
        case.peer.send(&sent).await;
        assert_eq!(read_exactly(&mut case.upstream, sent.len()).await, sent);
        let answer = frame(text, None);
        case.upstream.write_all(&answer).await.unwrap();
        assert_eq!(case.peer.exactly(answer.len()).await, answer);
    }
    // One side ends its direction; the other goes on.
    case.peer.stream.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut case.upstream).await, b"");
    let last = frame("bye", None);
    case.upstream.write_all(&last).await.unwrap();
    case.upstream.shutdown().await.unwrap();
    assert_eq!(case.peer.rest().await, last);
    case.ended("ok").await;
    assert_eq!(case.proxy.client.pool.count(), 0);
}

#[tokio::test]
async fn t6_bytes_sent_too_early_wait_for_the_upstream_to_agree() {
    let early = frame("early", Some([9, 8, 7, 6]));
    let mut case = ask(&early).await;
    let nothing = case.upstream.try_read(&mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    // The upstream, too, may say something at once.
    let hello = frame("hello", None);
    case.upstream.write_all(&[AGREED.as_bytes(), &hello].concat()).await.unwrap();
    assert!(case.peer.head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(case.peer.exactly(hello.len()).await, hello);
    assert_eq!(read_exactly(&mut case.upstream, early.len()).await, early);
}

#[tokio::test]
async fn t6_h1_bytes_behind_a_refused_upgrade_are_no_request() {
    for early in [&b""[..], b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n"] {
        for status in ["200 OK", "426 Upgrade Required", "401 Unauthorized"] {
            let mut case = ask(early).await;
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno");
            case.upstream.write_all(answer.as_bytes()).await.unwrap();
            let expected = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno");
            assert_eq!(String::from_utf8(case.peer.rest().await).unwrap(), expected);
            case.ended("ok").await;
            assert_eq!(case.proxy.events(), [""; 0], "nothing else was asked");
        }
        // The same where the proxy itself says no.
        let mut proxy = Script::default().start();
        let mut peer = proxy.connect();
        peer.send([head(&proxy, "denied.test:80").as_bytes(), early].concat()).await;
        let answer = String::from_utf8(peer.rest().await).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 403 ") && answer.contains("\r\nConnection: close\r\n"),
            "{answer}"
        );
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
        assert_eq!(proxy.events(), ["deny denied.test:80 not_allowed"]);
    }
}

#[tokio::test]
async fn t6_t7_only_the_agreement_that_was_asked_for_counts() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket, h2c\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.0 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ] {
        let mut case = ask(b"early").await;
        case.upstream.write_all(answer.as_bytes()).await.unwrap();
        let (head, _) = case.peer.answer().await;
        assert!(head.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}: {head}");
        assert_eq!(read_to_end(&mut case.upstream).await, b"", "no byte of the client's came");
        case.ended("connect_failed").await;
    }
}

#[tokio::test]
async fn t6_t10_a_websocket_ends_with_its_rule_and_its_sandbox() {
    for (revoked, how) in [(true, "token_revoked"), (false, "rule_withdrawn")] {
        let mut case = ask(b"").await;
        case.agree().await;
        case.peer.send(frame("one", Some([0; 4]))).await;
        read_exactly(&mut case.upstream, 9).await;
        if revoked {
            case.proxy.client.end(Ending::Revoked);
        } else {
            case.proxy.policies.replace(Some(Script::default().policy()));
            assert_eq!(case.proxy.client.revalidate(), 1);
        }
        assert_eq!(case.peer.rest().await, b"");
        case.ended(how).await;
    }
}
