//! Absolute-form: what goes upstream, what comes back, and when.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::harness::{Peer, Proxy, Script, Server, read_exactly, read_head, read_to_end};
use crate::proxy::Limits;

struct Case {
    proxy: Proxy,
    peer: Peer,
    server: Server,
    authority: String,
}

async fn case() -> Case {
    case_with(Limits::default()).await
}

async fn case_with(limits: Limits) -> Case {
    let server = Server::start().await;
    let authority = server.authority();
    let mut proxy = Script { limits, ..Script::allowing(&authority) }.start();
    let peer = proxy.connect();
    Case { proxy, peer, server, authority }
}

impl Case {
    /// Sends a request with these fields, and gives the upstream's end of it with the head that came there.
    async fn request(&mut self, method: &str, fields: &str) -> (TcpStream, String) {
        let authority = &self.authority;
        let proof = self.proxy.proof();
        self.peer
            .send(format!(
                "{method} http://{authority}/p HTTP/1.1\r\nHost: {authority}\r\n{proof}{fields}\r\n"
            ))
            .await;
        let mut upstream = self.server.accept().await;
        let head = read_head(&mut upstream).await.to_ascii_lowercase();
        (upstream, head)
    }
}

async fn reply(upstream: &mut TcpStream, answer: &str) {
    upstream.write_all(answer.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn h3_h11_head_is_written_anew_in_both_directions() {
    let mut case = case().await;
    let fields = "Accept: a\r\nConnection: x-drop\r\nX-Drop: 1\r\nTE: trailers\r\nCookie: c\r\n";
    let (mut upstream, head) = case.request("GET", fields).await;
    assert_eq!(
        head,
        format!("get /p http/1.1\r\nhost: {}\r\naccept: a\r\ncookie: c\r\n\r\n", case.authority)
    );
    reply(
        &mut upstream,
        "HTTP/1.1 200 Fine\r\nServer: s\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Authenticate: Basic\r\nX-Cloister-Reason: forged\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\
         Content-Length: 2\r\n\r\nok",
    )
    .await;
    let (head, body) = case.peer.answer().await;
    assert_eq!(
        head,
        "HTTP/1.1 200 Fine\r\nserver: s\r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 2\r\n\r\n"
    );
    assert_eq!(body, "ok");
    assert!(case.proxy.event().await.starts_with(&format!("allow {} by ", case.authority)));
    let close = case.proxy.event().await;
    assert!(close.starts_with(&format!("close {} ok ", case.authority)), "{close}");
}

#[tokio::test]
async fn second_request_on_a_connection_is_judged_anew() {
    let mut case = case().await;
    let (mut upstream, _) = case.request("GET", "").await;
    reply(&mut upstream, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1").await;
    assert_eq!(case.peer.answer().await.1, "1");
    drop(upstream);
    let denied = case.proxy.get_head("denied.test", "/");
    case.peer.send(denied).await;
    assert!(case.peer.answer().await.0.starts_with("HTTP/1.1 403 "));
    let authority = case.authority.clone();
    case.peer.send(format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n")).await;
    assert!(case.peer.answer().await.0.starts_with("HTTP/1.1 407 "), "the token is needed every time");
    let (mut upstream, _) = case.request("GET", "").await;
    reply(&mut upstream, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2").await;
    assert_eq!(case.peer.answer().await.1, "2");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let mut case = case().await;
    let both = case.proxy.get_head(&case.authority, "/1") + &case.proxy.get_head(&case.authority, "/2");
    case.peer.send(both).await;
    for number in ["1", "2"] {
        let mut upstream = case.server.accept().await;
        assert!(read_head(&mut upstream).await.starts_with(&format!("GET /{number} ")));
        reply(&mut upstream, &format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}")).await;
        assert_eq!(case.peer.answer().await.1, number);
    }
}

#[tokio::test]
async fn body_with_a_length_is_streamed() {
    let mut case = case().await;
    let (mut upstream, head) = case.request("POST", "Content-Length: 6\r\n").await;
    assert!(head.contains("\r\ncontent-length: 6\r\n") && !head.contains("transfer-encoding"), "{head}");
    // The upstream has the first half before the client sends the second.
    case.peer.send("abc").await;
    assert_eq!(read_exactly(&mut upstream, 3).await, b"abc");
    case.peer.send("def").await;
    assert_eq!(read_exactly(&mut upstream, 3).await, b"def");
    reply(&mut upstream, "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
    let (head, _) = case.peer.answer().await;
    assert_eq!(head, "HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n");
}

#[tokio::test]
async fn h1_h6_chunked_body_is_framed_anew() {
    for method in ["POST", "GET", "DELETE"] {
        let mut case = case().await;
        let (mut upstream, head) = case.request(method, "Transfer-Encoding: chunked\r\n").await;
        assert!(
            head.contains("\r\ntransfer-encoding: chunked\r\n") && !head.contains("content-length"),
            "{head}"
        );
        case.peer.send("3;ext=1\r\nabc\r\n").await;
        assert_eq!(read_exactly(&mut upstream, 8).await, b"3\r\nabc\r\n");
        case.peer.send("2\r\nde\r\n0\r\nTrailer: dropped\r\n\r\n").await;
        assert_eq!(read_exactly(&mut upstream, 12).await, b"2\r\nde\r\n0\r\n\r\n");
        reply(&mut upstream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(case.peer.answer().await.1, "ok");
        drop(upstream);
        // The connection is clean for another request.
        let (_upstream, head) = case.request("GET", "").await;
        assert!(head.starts_with("get /p "));
    }
}

#[tokio::test]
async fn h1_broken_body_ends_in_a_refusal_and_no_whole_request_upstream() {
    let mut case = case().await;
    let (mut upstream, _) = case.request("POST", "Transfer-Encoding: chunked\r\n").await;
    case.peer.send("zz\r\n").await;
    let (head, body) = case.peer.answer().await;
    assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
    assert!(body.contains("the size of a chunk is not a hexadecimal number"), "{body}");
    assert_eq!(read_to_end(&mut upstream).await, b"", "no final chunk");
    assert!(case.proxy.event().await.starts_with("allow "));
    assert!(case.proxy.event().await.starts_with(&format!("close {} bad_request ", case.authority)));
}

#[tokio::test]
async fn client_that_leaves_in_its_body_completes_nothing() {
    for (fields, sent) in [("Transfer-Encoding: chunked\r\n", "1\r\na\r\n"), ("Content-Length: 9\r\n", "a")] {
        let mut case = case().await;
        let (mut upstream, _) = case.request("POST", fields).await;
        case.peer.send(sent).await;
        read_exactly(&mut upstream, sent.len()).await;
        drop(case.peer);
        assert_eq!(read_to_end(&mut upstream).await, b"", "no final chunk");
        assert!(case.proxy.event().await.starts_with("allow "));
        assert!(case.proxy.event().await.starts_with(&format!("close {} client_reset ", case.authority)));
    }
}

#[tokio::test]
async fn first_event_of_a_stream_comes_at_once() {
    let mut case = case().await;
    let (mut upstream, _) = case.request("GET", "").await;
    reply(
        &mut upstream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    )
    .await;
    let head = case.peer.head().await;
    assert_eq!(
        head,
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    for event in ["data: 1\n\n", "data: 22\n\n"] {
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        reply(&mut upstream, &chunk).await;
        assert_eq!(case.peer.exactly(chunk.len()).await, chunk.as_bytes());
    }
    reply(&mut upstream, "0\r\nTrailer: dropped\r\n\r\n").await;
    assert_eq!(case.peer.exactly(5).await, b"0\r\n\r\n");
}

#[tokio::test]
async fn answer_that_ends_with_its_connection_is_chunked() {
    let mut case = case().await;
    let (mut upstream, _) = case.request("GET", "").await;
    reply(&mut upstream, "HTTP/1.0 200 OK\r\n\r\nabc").await;
    assert_eq!(case.peer.head().await, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
    assert_eq!(case.peer.exactly(8).await, b"3\r\nabc\r\n");
    drop(upstream);
    assert_eq!(case.peer.exactly(5).await, b"0\r\n\r\n");
}

#[tokio::test]
async fn client_of_http_1_0_gets_no_chunks() {
    let mut case = case().await;
    let proof = case.proxy.proof();
    case.peer.send(format!("GET http://{}/ HTTP/1.0\r\n{proof}\r\n", case.authority)).await;
    let mut upstream = case.server.accept().await;
    read_head(&mut upstream).await;
    reply(&mut upstream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
    assert_eq!(case.peer.rest().await, b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc");
}

#[tokio::test]
async fn answers_without_a_body_keep_their_framing() {
    for (method, answer, expected) in [
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n",
        ),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\nETag: e\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\netag: e\r\n\r\n",
        ),
        (
            "OPTIONS",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        ),
    ] {
        let mut case = case().await;
        for _ in 0..2 {
            let (mut upstream, _) = case.request(method, "").await;
            reply(&mut upstream, answer).await;
            assert_eq!(case.peer.head().await, expected);
        }
    }
}

#[tokio::test]
async fn interim_answers_are_not_passed_on() {
    let mut case = case().await;
    let (mut upstream, _) = case.request("GET", "").await;
    reply(
        &mut upstream,
        "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    assert_eq!(case.peer.head().await, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
}

#[tokio::test]
async fn client_that_waits_is_told_to_continue() {
    let mut case = case().await;
    let (mut upstream, head) = case.request("POST", "Expect: 100-continue\r\nContent-Length: 2\r\n").await;
    assert!(!head.contains("expect"), "{head}");
    assert_eq!(case.peer.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    case.peer.send("ab").await;
    assert_eq!(read_exactly(&mut upstream, 2).await, b"ab");
    reply(&mut upstream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert!(case.peer.head().await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn early_answer_ends_the_connection() {
    let mut case = case().await;
    let (mut upstream, _) = case.request("POST", "Content-Length: 1000000\r\n").await;
    reply(&mut upstream, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno").await;
    assert_eq!(case.peer.answer().await.1, "no");
    assert_eq!(case.peer.rest().await, b"", "what is left of the body is no request");
}

#[tokio::test]
async fn cut_answer_is_not_taken_for_the_whole() {
    for (answer, begin) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ),
    ] {
        let mut case = case().await;
        let (mut upstream, _) = case.request("GET", "").await;
        reply(&mut upstream, answer).await;
        drop(upstream);
        assert_eq!(String::from_utf8(case.peer.rest().await).unwrap(), begin);
        assert!(case.proxy.event().await.starts_with("allow "));
        assert!(case.proxy.event().await.starts_with(&format!("close {} upstream_reset ", case.authority)));
    }
}

#[tokio::test]
async fn upstream_without_an_answer_is_a_failed_connection() {
    let no_http = Some("what it answers is not HTTP");
    let too_large = Some("the head of its answer is too large");
    let long_field = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(150_000));
    let many_fields = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(101));
    for (answer, wrong) in [
        ("", None),
        ("HTTP/1.1 200 OK\r\nX", None),
        ("SSH-2.0-OpenSSH_9.6\r\n", no_http),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            Some("it changes the protocol unasked"),
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            Some("it uses a transfer coding other than `chunked`"),
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", no_http),
        (&long_field, too_large),
        (&many_fields, too_large),
    ] {
        let mut case = case().await;
        let (mut upstream, _) = case.request("GET", "").await;
        reply(&mut upstream, answer).await;
        drop(upstream);
        let (head, body) = case.peer.answer().await;
        assert!(head.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{head}");
        assert!(body.contains(r#""error":"connect_failed""#), "{body}");
        assert!(
            body.contains(wrong.unwrap_or("it broke the connection off before it had answered")),
            "{body}"
        );
        // What the sandbox is told stands in the audit log.
        assert!(case.proxy.event().await.starts_with("allow "));
        let close = case.proxy.event().await;
        let reason = if wrong.is_some() { "connect_failed" } else { "upstream_reset" };
        assert!(close.starts_with(&format!("close {} {reason} ", case.authority)), "{close}");
        assert!(wrong.is_none_or(|wrong| close.ends_with(&format!(" ({wrong})"))), "{close}");
    }
}

#[tokio::test]
async fn silent_upstream_is_given_up() {
    let mut case = case_with(Limits { idle: Duration::from_millis(300), ..Limits::default() }).await;
    let (_upstream, _) = case.request("GET", "").await;
    let (head, body) = case.peer.answer().await;
    assert!(head.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{head}");
    assert!(body.contains("it did not answer in time"), "{body}");
    assert!(case.proxy.event().await.starts_with("allow "));
    assert!(case.proxy.event().await.starts_with(&format!("close {} idle_timeout ", case.authority)));
}

#[tokio::test]
async fn t10_withdrawn_rule_cuts_a_running_answer() {
    let mut case = case().await;
    let (mut upstream, _) = case.request("GET", "").await;
    reply(&mut upstream, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").await;
    case.peer.head().await;
    case.proxy.policies.replace(Some(Script::default().policy()));
    assert_eq!(case.proxy.client.revalidate(), 1);
    assert_eq!(case.peer.rest().await, b"abc");
    assert_eq!(read_to_end(&mut upstream).await, b"");
}

#[tokio::test]
async fn t10_withdrawn_rule_refuses_what_has_no_answer_yet_and_ends_its_record_once() {
    let mut case = case().await;
    let (mut upstream, _) = case.request("GET", "").await;
    case.proxy.policies.replace(Some(Script::default().policy()));
    assert_eq!(case.proxy.client.revalidate(), 1);
    let (head, body) = case.peer.answer().await;
    assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
    assert!(head.contains("X-Cloister-Reason: not_allowed\r\n"), "{head}");
    assert!(body.contains("was withdrawn meanwhile; try again"), "{body}");
    assert_eq!(read_to_end(&mut upstream).await, b"");
    let events = case.proxy.events();
    assert_eq!(events.len(), 2, "{events:?}");
    assert!(events[1].starts_with(&format!("close {} rule_withdrawn ", case.authority)), "{events:?}");
}

#[tokio::test]
async fn h15_a_client_that_has_gone_frees_its_place_while_the_upstream_is_silent() {
    let mut case = case().await;
    let (mut upstream, _) = case.request("GET", "").await;
    let Case { mut proxy, peer, authority, .. } = case;
    drop(peer);
    assert_eq!(read_to_end(&mut upstream).await, b"");
    assert!(proxy.event().await.starts_with(&format!("allow {authority} ")));
    assert!(proxy.event().await.starts_with(&format!("close {authority} client_reset ")));
    assert_eq!(proxy.client.open_tunnels(), 0);
}

#[tokio::test]
async fn h15_a_client_that_ended_only_its_own_direction_gets_its_answer() {
    let mut case = case().await;
    let (mut upstream, _) = case.request("GET", "").await;
    case.peer.stream.shutdown().await.unwrap();
    reply(&mut upstream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(case.peer.answer().await.1, "ok");
}

type Sent = Vec<(String, Vec<u8>)>;

/// What comes to the upstream when these fields are sent, as another parser reads it.
async fn seen_upstream(path: &str, fields: &Sent) -> (String, String, Sent) {
    let Case { proxy, mut peer, server, authority } = case().await;
    let (method, proof) = ("GET", proxy.proof());
    let mut head =
        format!("{method} http://{authority}{path} HTTP/1.1\r\nHost: {authority}\r\n{proof}").into_bytes();
    for (name, value) in fields {
        head.extend([name.as_bytes(), b":", value, b"\r\n"].concat());
    }
    head.extend(b"\r\n");
    peer.send(head).await;
    let mut upstream = server.accept().await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(read_exactly(&mut upstream, 1).await);
    }
    let mut slots = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut slots);
    assert_eq!(request.parse(&head), Ok(httparse::Status::Complete(head.len())));
    let host =
        request.headers.iter().filter(|field| field.name == "host" && field.value == authority.as_bytes());
    assert_eq!(host.count(), 1);
    let others = request.headers.iter().filter(|field| field.name != "host");
    let mut others: Vec<_> = others.map(|field| (field.name.to_owned(), field.value.to_vec())).collect();
    others.sort();
    (request.method.unwrap().to_owned(), request.path.unwrap().to_owned(), others)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn h7_no_value_becomes_another_field_upstream(
        path in "/[a-zA-Z0-9?&=%._~-]{0,12}",
        fields in proptest::collection::vec(
            ("[xX]-[a-zA-Z0-9!#$&'*+.^_`|~-]{1,3}", proptest::collection::vec(b'\t'..=255, 0..16)),
            0..5,
        ),
    ) {
        // What the parser of heads lets through.
        let fields: Sent = fields
            .into_iter()
            .map(|(name, mut value)| {
                value.retain(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f));
                (name, value)
            })
            .collect();
        let mut expected: Vec<_> =
            fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.trim_ascii().to_vec())).collect();
        expected.sort();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen = runtime.block_on(seen_upstream(&path, &fields));
        proptest::prop_assert_eq!(seen, ("GET".to_owned(), path, expected));
    }
}
