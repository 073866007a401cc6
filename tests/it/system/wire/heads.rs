//! Request heads at the proxy's socket: what is refused, and that nothing of it reaches an origin.

use super::{Cloister, Guardian, Recorder};

/// A guardian, a cloister of it, and the one origin that the cloister may reach.
fn stage() -> (Recorder, Guardian, Cloister) {
    let origin = Recorder::start();
    let guardian = Guardian::before(&origin);
    let cloister = guardian.register("demo");
    (origin, guardian, cloister)
}

/// Sends each text, with `A` for the origin's authority and `P` for the proof, on a connection of its own: each is
/// answered with this status and a close, and the origin hears of none.
#[track_caller]
fn refused(status: u16, texts: &[&str]) {
    let (origin, guardian, cloister) = stage();
    for text in texts {
        let bytes = fill(text, &origin, &cloister);
        let mut wire = cloister.connect();
        // A refusal may come before all is said.
        let _ = wire.try_send(&bytes);
        let answer = wire.answer();
        assert_eq!(answer.status, status, "{text:?}: {answer:?}");
        assert_eq!(answer.reason(), if status == 431 { "head_too_large" } else { "bad_request" }, "{text:?}");
        assert_eq!(answer.field("connection"), Some("close"), "{text:?}");
        wire.end();
        assert_eq!(wire.rest(), b"", "{text:?}: one answer and no more");
    }
    assert!(!guardian.audit().contains(&cloister.token), "a token in the audit log");
    drop(guardian);
    assert_eq!(origin.requests(), []);
    assert_eq!(origin.connections(), 0);
}

fn fill(text: &str, origin: &Recorder, cloister: &Cloister) -> String {
    text.replace("{A}", &origin.authority()).replace("{P}", &cloister.proof())
}

#[test]
fn n3_n4_n7_a_target_that_is_no_plain_host_is_refused() {
    refused(
        400,
        &[
            "CONNECT origin.test%00.evil:443 HTTP/1.1\r\nHost: x\r\n{P}\r\n",
            "CONNECT origin.test\\.evil:443 HTTP/1.1\r\nHost: x\r\n{P}\r\n",
            "CONNECT origin.test\0:443 HTTP/1.1\r\nHost: x\r\n{P}\r\n",
            "CONNECT origin.test@evil.test:443 HTTP/1.1\r\nHost: x\r\n{P}\r\n",
            "CONNECT evil.test#origin.test:443 HTTP/1.1\r\nHost: x\r\n{P}\r\n",
            "CONNECT origin.test HTTP/1.1\r\nHost: origin.test\r\n{P}\r\n",
            "CONNECT origin.test:443x HTTP/1.1\r\nHost: origin.test\r\n{P}\r\n",
            "CONNECT origin.test:0 HTTP/1.1\r\nHost: origin.test:0\r\n{P}\r\n",
            "CONNECT origin.test:65536 HTTP/1.1\r\nHost: origin.test\r\n{P}\r\n",
            "CONNECT 2130706433:443 HTTP/1.1\r\nHost: 2130706433:443\r\n{P}\r\n",
            "CONNECT 0x7f.1:443 HTTP/1.1\r\nHost: 0x7f.1:443\r\n{P}\r\n",
            "CONNECT 127.1:443 HTTP/1.1\r\nHost: 127.1:443\r\n{P}\r\n",
            "CONNECT 0177.0.0.1:443 HTTP/1.1\r\nHost: 0177.0.0.1:443\r\n{P}\r\n",
            "CONNECT [fe80::1%25eth0]:443 HTTP/1.1\r\nHost: x\r\n{P}\r\n",
            "CONNECT ::1:443 HTTP/1.1\r\nHost: x\r\n{P}\r\n",
            "GET http://origin.test@evil.test/ HTTP/1.1\r\nHost: evil.test\r\n{P}\r\n",
            "GET http://u:p@{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET http://{A}%2f@evil.test/ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET http://{A}\\@evil.test/ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET http:\\\\{A}\\ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET http:///path HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET http:/{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET https://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET ftp://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET file:///etc/passwd HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET {A} HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET * HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
        ],
    );
}

#[test]
fn h1_a_body_that_could_end_in_two_places_is_refused() {
    const SMUGGLED: &str = "GET http://{A}/smuggled HTTP/1.1\r\nHost: {A}\r\n{P}\r\n";
    let framings = [
        "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "Content-Length: 5\r\ncontent-length: 5\r\n\r\nhello",
        "Content-Length: 5, 5\r\n\r\nhello",
        "Content-Length: +5\r\n\r\nhello",
        "Content-Length: -1\r\n\r\n",
        "Content-Length: 0x5\r\n\r\nhello",
        "Content-Length: 5 5\r\n\r\nhello",
        "Content-Length:\r\n\r\nhello",
        "Content-Length: 18446744073709551616\r\n\r\nhello",
        "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: identity\r\n\r\n",
        "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding:\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "Transfer\u{b}-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
    let texts: Vec<String> = framings
        .iter()
        .map(|framing| format!("POST http://{{A}}/first HTTP/1.1\r\nHost: {{A}}\r\n{{P}}{framing}{SMUGGLED}"))
        .collect();
    refused(400, &texts.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn h1_old_versions_and_connect_carry_no_framed_body() {
    refused(
        400,
        &[
            "POST http://{A}/ HTTP/1.0\r\nHost: {A}\r\n{P}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "CONNECT {A} HTTP/1.1\r\nHost: {A}\r\n{P}Content-Length: 5\r\n\r\nhello",
            "CONNECT {A} HTTP/1.1\r\nHost: {A}\r\n{P}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ],
    );
}

#[test]
fn h2_broken_lines_are_refused() {
    refused(
        400,
        &[
            "GET http://{A}/ HTTP/1.1\nHost: {A}\n\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}X: a\r\n folded\r\n\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}X: a\r\n\tfolded\r\n\r\n",
            "GET http://{A}/ HTTP/1.1\r\n Host: {A}\r\n{P}\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost : {A}\r\n{P}\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}no colon\r\n\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}: no name\r\n\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}X: a\0b\r\n\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}X: a\rb\r\n\r\n",
            "GET http://{A}/ HTTP/1.2\r\nHost: {A}\r\n{P}\r\n",
            "GET http://{A}/ HTTP/11\r\nHost: {A}\r\n{P}\r\n",
            "GET http://{A}/ http/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET http://{A}/\r\nHost: {A}\r\n{P}\r\n",
            "GET  http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET\thttp://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET http://{A}/ HTTP/1.1 \r\nHost: {A}\r\n{P}\r\n",
            " GET http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "\r\n\r\nGET http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "G(T http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET http://{A}/\u{e9} HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
        ],
    );
}

#[test]
fn h3_h4_h5_a_host_field_that_is_not_the_target_is_refused() {
    refused(
        400,
        &[
            "GET http://{A}/ HTTP/1.1\r\nHost: evil.test\r\n{P}\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}.evil.test\r\n{P}\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: origin.test\r\n{P}\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: u@{A}\r\n{P}\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}, evil.test\r\n{P}\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}\r\nHost: {A}\r\n{P}\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}\r\nhost: evil.test\r\n{P}\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost:\r\n{P}\r\n",
            "GET http://{A}/ HTTP/1.1\r\n{P}\r\n",
            "CONNECT {A} HTTP/1.1\r\nHost: evil.test:443\r\n{P}\r\n",
            "CONNECT {A} HTTP/1.1\r\nHost: {A}\r\nHost: {A}\r\n{P}\r\n",
            "CONNECT {A} HTTP/1.1\r\n{P}\r\n",
            "CONNECT {A} HTTP/1.1\r\nHost: origin.test:1\r\n{P}\r\n",
        ],
    );
}

#[test]
fn h7_what_would_be_a_line_of_its_own_upstream_is_refused() {
    refused(
        400,
        &[
            "GET http://{A}/%0d%0aX:\ty HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET http://{A}/\rX HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET http://{A}/\u{7f} HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}X-A: a\u{1}b\r\n\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}X\u{e9}: b\r\n\r\n",
        ],
    );
}

#[test]
fn t7_http2_is_refused_in_every_disguise() {
    refused(
        400,
        &[
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0",
            "GET http://{A}/ HTTP/2.0\r\nHost: {A}\r\n{P}\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
             HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}Connection: Upgrade\r\nUpgrade: websocket, H2C\r\n\r\n",
            "GET http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}HTTP2-Settings: AAMAAABk\r\n\r\n",
        ],
    );
}

#[test]
fn h9_trace_is_refused_at_the_socket() {
    refused(
        405,
        &[
            "TRACE http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "TRACK http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "trace http://{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
        ],
    );
}

#[test]
fn i6_nothing_but_a_proxy_answers_at_its_socket() {
    refused(
        404,
        &[
            "GET / HTTP/1.1\r\nHost: 127.0.0.1:3128\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET /metrics HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET /proxy.pac HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
            "GET /wpad.dat HTTP/1.0\r\n{P}\r\n",
            "GET /status HTTP/1.1\r\nHost: guardian\r\n{P}\r\n",
            "POST /tokens HTTP/1.1\r\nHost: guardian\r\n{P}Content-Length: 0\r\n\r\n",
            "POST /open?url=http://{A}/ HTTP/1.1\r\nHost: guardian\r\n{P}\r\n",
            "GET //{A}/ HTTP/1.1\r\nHost: {A}\r\n{P}\r\n",
        ],
    );
}

#[test]
fn t8_t9_other_protocols_are_closed_at_once() {
    let (origin, guardian, cloister) = stage();
    for bytes in [
        // SOCKS 4, 4a and 5: CONNECT, BIND and UDP ASSOCIATE.
        &b"\x04\x01\x01\xbb\x7f\0\0\x01user\0"[..],
        b"\x04\x01\x01\xbb\0\0\0\x01user\0origin.test\0",
        b"\x05\x01\0",
        b"\x05\x02\0\x02\x05\x01\0\x03\x0borigin.test\x01\xbb",
        b"\x05\x01\0\x05\x02\0\x01\x7f\0\0\x01\0\x16",
        b"\x05\x01\0\x05\x03\0\x01\0\0\0\0\0\0",
        // A TLS hello, and the greeting of another proxy.
        b"\x16\x03\x01\0\x05\x01\0\0\x01\0",
        b"\0\x01\xff\x02",
    ] {
        let mut wire = cloister.connect();
        let _ = wire.try_send(bytes);
        let answer = wire.answer();
        assert_eq!((answer.status, answer.reason()), (400, "bad_request"), "{bytes:?}");
        assert_eq!(wire.rest(), b"", "{bytes:?}");
    }
    // What looks like a method is read up to the end of its line.
    let mut wire = cloister.connect();
    let _ = wire.try_send("SSH-2.0-OpenSSH_9.2\r\nx\r\n\r\n");
    assert_eq!(wire.answer().status, 400);
    drop(guardian);
    assert_eq!(origin.connections(), 0);
}

#[test]
fn h15_large_heads_are_refused() {
    let long = "x".repeat(20_000);
    let many = "X: y\r\n".repeat(101);
    refused(
        431,
        &[
            &format!("GET http://{{A}}/{long} HTTP/1.1\r\nHost: {{A}}\r\n{{P}}\r\n"),
            &format!("GET http://{{A}}/ HTTP/1.1\r\nHost: {{A}}\r\n{{P}}X: {long}\r\n\r\n"),
            &format!("GET http://{{A}}/ HTTP/1.1\r\nHost: {{A}}\r\n{{P}}{many}\r\n"),
        ],
    );
}

#[test]
fn h15_a_slow_head_is_cut() {
    let (origin, _guardian, cloister) = stage();
    let mut wire = cloister.connect();
    wire.send(format!("GET http://{}/ HTTP/1.1\r\n", origin.authority()));
    // The limit is 10 s; an answer within the patience of every step is early enough.
    let answer = wire.answer();
    assert_eq!((answer.status, answer.reason()), (408, "head_timeout"));
    assert_eq!(wire.rest(), b"");
    assert_eq!(origin.connections(), 0);
}

#[test]
fn h1_h10_requests_behind_each_other_reach_the_origin_one_by_one() {
    let (origin, guardian, cloister) = stage();
    let mut wire = cloister.connect();
    let authority = origin.authority();
    let head = |method: &str, path: &str, framing: &str| {
        format!(
            "{method} http://{authority}{path} HTTP/1.1\r\nHost: {authority}\r\n{}{framing}\r\n",
            cloister.proof()
        )
    };
    // A body on GET and DELETE is a body, and never the next request (H10).
    let inner = "GET /inner HTTP/1.1\r\nHost: x\r\n\r\n";
    let bodies = [
        head("GET", "/1", ""),
        head("GET", "/2", &format!("Content-Length: {}\r\n", inner.len())) + inner,
        head("POST", "/3", "Transfer-Encoding: chunked\r\n")
            + &format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len()),
        head("DELETE", "/4", "Transfer-Encoding: chunked\r\n")
            + "3;x=\"y\"\r\nabc\r\n0\r\nTrailer: t\r\n\r\n",
        head("POST", "/5", "Content-Length: 0\r\n"),
        head("GET", "/6", ""),
    ];
    wire.send(bodies.concat());
    for _ in &bodies {
        assert_eq!(wire.answer().body, b"ok");
    }
    drop(wire);
    drop(guardian);
    let seen: Vec<_> = origin
        .requests()
        .iter()
        .map(|request| format!("{} {} {}", request.method, request.target, request.body.len()))
        .collect();
    let length = inner.len();
    assert_eq!(
        seen,
        [
            "GET /1 0".to_owned(),
            format!("GET /2 {length}"),
            format!("POST /3 {length}"),
            "DELETE /4 3".into(),
            "POST /5 0".into(),
            "GET /6 0".into()
        ]
    );
}

#[test]
fn h1_h6_a_chunked_body_that_breaks_off_is_no_request_and_no_bytes_behind_it_are_one() {
    let (origin, guardian, cloister) = stage();
    let next = cloister.get_head(&origin.authority(), "/smuggled");
    let extension = "x".repeat(2000);
    let trailers = "T: t\r\n".repeat(9000);
    for body in [
        "-1\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "3\nabc\n0\n\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "10000000000000000\r\n",
        "\r\n3\r\nabc\r\n0\r\n\r\n",
        "g\r\n",
        &format!("3;{extension}\r\nabc\r\n0\r\n\r\n"),
        &format!("3\r\nabc\r\n0\r\n{trailers}\r\n"),
    ] {
        let mut wire = cloister.connect();
        let authority = origin.authority();
        wire.send(format!(
            "POST http://{authority}/broken HTTP/1.1\r\nHost: {authority}\r\n{}Transfer-Encoding: chunked\r\n\r\n",
            cloister.proof()
        ));
        let _ = wire.try_send(format!("{body}{next}"));
        wire.end();
        let heard = String::from_utf8(wire.rest()).unwrap();
        assert!(
            heard.starts_with("HTTP/1.1 400 ") && !heard.contains("HTTP/1.1 200"),
            "{body:.80?}: {heard}"
        );
    }
    drop(guardian);
    let seen: Vec<_> = origin.requests().iter().map(|request| request.target.clone()).collect();
    assert_eq!(seen, [""; 0]);
}
