use std::fmt::Write as _;

use bytes::BytesMut;

use super::*;

mod differential;
mod payloads;

/// Parses `text` at once, which must take all of it.
fn parse(text: &str) -> Result<Head, HeadError> {
    let mut buffer = BytesMut::from(text);
    let head = Parser::default().parse(&mut buffer)?.expect("the head is complete");
    assert_eq!(buffer, "", "bytes are left over");
    Ok(head)
}

/// A short form of what was understood.
fn render(head: &Head) -> String {
    let mut out = match &head.target {
        Target::Connect(authority) => format!("CONNECT {authority}"),
        Target::Plain(plain) => {
            let fields: Vec<_> = plain
                .fields
                .iter()
                .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
                .collect();
            format!("{} {} {} [{}]", plain.method, plain.authority, plain.path, fields.join(" "))
        }
    };
    if head.framing != Framing::None {
        write!(out, " {:?}", head.framing).unwrap();
    }
    if head.version == Version::Http10 {
        out += " 1.0";
    }
    if !head.keep_alive {
        out += " close";
    }
    if head.expects_continue {
        out += " expects";
    }
    out
}

#[track_caller]
fn accepts(text: &str, expected: &str) {
    assert_eq!(parse(text).map(|head| render(&head)).as_deref(), Ok(expected), "{text:?}");
}

#[track_caller]
fn refuses(text: &str, expected: &str) {
    let error = parse(text).expect_err(text);
    assert_eq!(error.to_string(), expected, "{text:?}");
    assert!(matches!(error, HeadError::Malformed(_)), "{error:?}");
}

/// A GET with these fields besides the right Host.
fn get(fields: &str) -> String {
    format!("GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")
}

#[test]
fn accepted_heads_have_one_canonical_form() {
    accepts("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n", "CONNECT a.test:443");
    accepts("CONNECT A.Test.:443 HTTP/1.1\r\nhost: a.TEST\r\n\r\n", "CONNECT a.test:443");
    accepts("CONNECT a.test:8443 HTTP/1.0\r\n\r\n", "CONNECT a.test:8443 1.0 close");
    accepts("CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: 192.0.2.1:443\r\n\r\n", "CONNECT 192.0.2.1:443");
    accepts(
        "CONNECT [2001:DB8::1]:443 HTTP/1.1\r\nHost: [2001:db8:0::1]:443\r\n\r\n",
        "CONNECT [2001:db8::1]:443",
    );
    accepts(
        "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nContent-Length: 0\r\n\r\n",
        "CONNECT a.test:443",
    );
    accepts("GET http://a.test HTTP/1.1\r\nHost: a.test\r\n\r\n", "GET a.test:80 / []");
    accepts("GET http://a.test?q=1 HTTP/1.1\r\nHost: a.test\r\n\r\n", "GET a.test:80 /?q=1 []");
    accepts("GET HTTP://A.test:80/P?Q HTTP/1.1\r\nHost: a.test\r\n\r\n", "GET a.test:80 /P?Q []");
    accepts("GET http://a.test:8080/ HTTP/1.1\r\nHost: a.test:8080\r\n\r\n", "GET a.test:8080 / []");
    accepts("OPTIONS http://a.test HTTP/1.1\r\nHost: a.test\r\n\r\n", "OPTIONS a.test:80 * []");
    accepts("M-SEARCH http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "M-SEARCH a.test:80 / []");
    accepts("GET http://a.test/ HTTP/1.0\r\n\r\n", "GET a.test:80 / [] 1.0 close");
    accepts(&get("X-A:\t1 2 \r\nx-a: \r\n"), "GET a.test:80 / [x-a=1 2 x-a=]");
    accepts(&get("Content-Length: 12\r\n"), "GET a.test:80 / [] Length(12)");
    accepts(&get("Transfer-Encoding: Chunked\r\n"), "GET a.test:80 / [] Chunked");
    accepts(&get("Expect: 100-Continue\r\nContent-Length: 1\r\n"), "GET a.test:80 / [] Length(1) expects");
    accepts(&get("Connection: close\r\n"), "GET a.test:80 / [] close");
    accepts(&get("Proxy-Connection: close\r\n"), "GET a.test:80 / [] close");
}

#[test]
fn h11_hop_by_hop_fields_and_credentials_never_go_upstream() {
    accepts(
        &get(
            "Proxy-Authorization: Basic eDp5\r\nAuthorization: kept\r\nConnection: keep-alive, X-Drop\r\nX-Drop: 1\r\n\
              Connection: x-also\r\nX-Also: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\nTrailer: X\r\nProxy-Foo: 1\r\n\
              Proxy-Connection: keep-alive\r\nAccept: */*\r\n",
        ),
        "GET a.test:80 / [authorization=kept accept=*/*]",
    );
}

#[test]
fn h2_broken_lines_are_refused() {
    refuses("GET http://a.test/ HTTP/1.1\nHost: a.test\n\n", "a line feed stands without a carriage return");
    refuses(&get("X: 1\nY: 2\r\n"), "a line feed stands without a carriage return");
    refuses(&get("X: 1\rY: 2\r\n"), "a carriage return stands without a line feed");
    refuses(&get("X: 1\r\r\n"), "a carriage return stands without a line feed");
    refuses(&get("X: 1\r\n folded\r\n"), "a header field is folded over two lines");
    refuses(&get("X: 1\r\n\tfolded\r\n"), "a header field is folded over two lines");
    refuses(&get("X : 1\r\n"), "a header field's name is not a token");
    refuses(&get("X\u{e9}: 1\r\n"), "a header field's name is not a token");
    refuses(&get(": 1\r\n"), "a header field has no name");
    refuses(&get("X\r\n"), "a header field has no colon");
    refuses(&get("X: a\0b\r\n"), "a header field's value holds control characters");
    refuses(&get("X: \x0ba\r\n"), "a header field's value holds control characters");
    refuses(&get("X:\x0c\r\n"), "a header field's value holds control characters");
    refuses(&get("X: a\x7f\r\n"), "a header field's value holds control characters");
    refuses("\r\nGET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "a request begins with a method");
    refuses("\x16\x03\x01", "a request begins with a method");
}

#[test]
fn h2_broken_request_lines_are_refused() {
    let shape = "a request line is a method, a target and a version, one space apart";
    let version = "the version is neither HTTP/1.1 nor HTTP/1.0";
    refuses("GET  http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", shape);
    refuses("GET http://a.test/ HTTP/1.1 \r\nHost: a.test\r\n\r\n", shape);
    refuses("GET http://a.test/\r\nHost: a.test\r\n\r\n", shape);
    refuses("GET\r\n\r\n", shape);
    refuses("GET http://a.test/ b HTTP/1.1\r\nHost: a.test\r\n\r\n", shape);
    refuses(
        "G\tET http://a.test/ HTTP/1.1\r\n\r\n",
        "the request line holds bytes that are not printable ASCII",
    );
    refuses(
        "GET http://a.test/\u{e9} HTTP/1.1\r\n\r\n",
        "the request line holds bytes that are not printable ASCII",
    );
    refuses("G@T http://a.test/ HTTP/1.1\r\n\r\n", "the method is not a token");
    refuses("GET http://a.test/ HTTP/1.2\r\nHost: a.test\r\n\r\n", version);
    refuses("GET http://a.test/ http/1.1\r\nHost: a.test\r\n\r\n", version);
    refuses("GET http://a.test/ HTTP/0.9\r\nHost: a.test\r\n\r\n", version);
    refuses("GET http://a.test/ HTTP/1.10\r\nHost: a.test\r\n\r\n", version);
}

#[test]
fn targets_that_name_no_upstream_are_refused() {
    let https = "an `https://` target is refused; ask with CONNECT and speak TLS through it";
    let neither = "the target is neither `http://host/path` nor, for CONNECT, `host:port`";
    let encoding = "the path of the target holds characters that must be percent-encoded";
    refuses(
        "OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "the target `*` names no host; write an `http://` target",
    );
    refuses("GET https://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", https);
    refuses("GET ftp://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "only `http://` targets are forwarded");
    refuses("GET a.test:80 HTTP/1.1\r\nHost: a.test\r\n\r\n", neither);
    refuses("GET http://a.test/#x HTTP/1.1\r\nHost: a.test\r\n\r\n", "the target holds a fragment (`#`)");
    refuses("GET http://a.test/<> HTTP/1.1\r\nHost: a.test\r\n\r\n", encoding);
}

#[test]
fn i6_origin_form_is_not_found() {
    for target in ["/", "/version", "//a.test/"] {
        let error = parse(&format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n\r\n")).unwrap_err();
        assert_eq!(error, HeadError::NotForAProxy);
    }
}

#[test]
fn n3_n7_hosts_that_are_none_are_refused() {
    for target in [
        "a.test",
        "a.test:",
        "a.test:0",
        "a.test:65536",
        "a.test:+1",
        ":443",
        "a_%00b:443",
        "a\\b:443",
        "2130706433:443",
        "0x7f.1:443",
        "a..b:443",
        "[::1%25lo]:443",
    ] {
        let error = parse(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")).unwrap_err();
        assert!(matches!(error, HeadError::Authority(_)), "{target}: {error:?}");
    }
}

#[test]
fn n4_user_information_is_refused() {
    let message = "a user name or `@` in the target is refused";
    refuses("GET http://allowed.test@evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", message);
    refuses("CONNECT allowed.test@evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n", message);
    accepts("GET http://a.test/@x HTTP/1.1\r\nHost: a.test\r\n\r\n", "GET a.test:80 /@x []");
}

#[test]
fn h1_ambiguous_framing_is_refused() {
    let number = "the Content-Length is not a number";
    let chunked = "the only Transfer-Encoding taken is `chunked`";
    let lengths = "there is more than one Content-Length field";
    refuses(
        &get("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"),
        "Content-Length and Transfer-Encoding stand together",
    );
    refuses(&get("Content-Length: 1\r\nContent-Length: 1\r\n"), lengths);
    refuses(&get("Content-Length: 1\r\nContent-Length: 2\r\n"), lengths);
    for length in ["1, 1", "+1", "-1", "1 ", "0x1", "", "1_0", "18446744073709551616", "\u{661}"] {
        let text = get(&format!("Content-Length:{length}\r\n"));
        if length == "1 " {
            accepts(&text, "GET a.test:80 / [] Length(1)");
        } else {
            refuses(&text, number);
        }
    }
    for coding in
        ["gzip, chunked", "chunked, chunked", "identity", "chunked;q=1", "xchunked", "", "\"chunked\""]
    {
        refuses(&get(&format!("Transfer-Encoding: {coding}\r\n")), chunked);
    }
    refuses(
        &get("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        "there is more than one Transfer-Encoding field",
    );
    refuses(
        "POST http://a.test/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.0 has no Transfer-Encoding",
    );
    refuses(
        "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nContent-Length: 3\r\n\r\n",
        "a CONNECT request has no body",
    );
    refuses(
        "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nTransfer-Encoding: chunked\r\n\r\n",
        "a CONNECT request has no body",
    );
}

#[test]
fn h3_h5_host_field_is_compared_in_its_canonical_form() {
    for host in ["a.test", "A.TEST", "a.test.", "a.test:80", "A.Test.:80"] {
        accepts(&format!("GET http://a.test/ HTTP/1.1\r\nHost: {host}\r\n\r\n"), "GET a.test:80 / []");
    }
    for host in
        ["", "b.test", "a.test:81", "a.test:080", "a.test, b.test", "a.test b.test", "u@a.test", "a.test/"]
    {
        refuses(
            &format!("GET http://a.test/ HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            "the Host field differs from the target",
        );
    }
}

#[test]
fn h3_h4_host_field_must_be_the_target() {
    let message = "the Host field differs from the target";
    refuses("GET http://a.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n", message);
    refuses("GET http://a.test/ HTTP/1.1\r\nHost: a.test:8080\r\n\r\n", message);
    refuses("GET http://a.test:8080/ HTTP/1.1\r\nHost: a.test\r\n\r\n", message);
    refuses("GET http://a.test/ HTTP/1.0\r\nHost: b.test\r\n\r\n", message);
    refuses("CONNECT a.test:443 HTTP/1.1\r\nHost: b.test:443\r\n\r\n", message);
    refuses("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:80\r\n\r\n", message);
    refuses("CONNECT a.test:443 HTTP/1.1\r\nHost: x@a.test:443\r\n\r\n", message);
}

#[test]
fn h5_host_field_stands_exactly_once() {
    refuses(&get("Host: a.test\r\n"), "there is more than one Host field");
    refuses("GET http://a.test/ HTTP/1.1\r\n\r\n", "the Host field is missing");
    refuses("GET http://a.test/ HTTP/1.1\r\nHost:\r\n\r\n", "the Host field differs from the target");
    refuses("CONNECT a.test:443 HTTP/1.1\r\n\r\n", "the Host field is missing");
}

#[test]
fn h9_trace_is_refused_in_any_letter_case() {
    for method in ["TRACE", "TRACK", "trace", "Track", "tRaCe", "TRACk"] {
        let error = parse(&format!("{method} http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n")).unwrap_err();
        assert_eq!(error, HeadError::MethodRefused);
    }
}

#[test]
fn h9_connect_in_another_letter_case_is_refused() {
    for method in ["connect", "Connect", "CONNECt"] {
        for target in ["a.test:443", "http://a.test/"] {
            refuses(
                &format!("{method} {target} HTTP/1.1\r\nHost: a.test\r\n\r\n"),
                "the method `CONNECT` is written in capitals",
            );
        }
    }
}

#[test]
fn t7_http2_is_refused_in_every_disguise() {
    refuses("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2 is not spoken here; use HTTP/1.1");
    let upgrade = "the only Upgrade taken is `websocket`; open a tunnel with CONNECT instead";
    let settings = "HTTP2-Settings is refused; HTTP/2 is spoken only inside of TLS";
    refuses(&get("Connection: Upgrade\r\nUpgrade: h2c\r\n"), upgrade);
    for protocols in ["h2c, websocket", "websocket, h2c", "TLS/1.2", "websocket/13", "h2c", "", "foo"] {
        refuses(&websocket("Connection: upgrade\r\n", protocols), upgrade);
    }
    refuses(&websocket("Connection: upgrade\r\nUpgrade: websocket\r\n", "websocket"), upgrade);
    refuses(
        &get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"),
        settings,
    );
    refuses("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nUpgrade: h2c\r\n\r\n", upgrade);
}

/// A WebSocket handshake with these fields and this protocol.
fn websocket(fields: &str, protocol: &str) -> String {
    get(&format!(
        "{fields}Upgrade: {protocol}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    ))
}

#[test]
fn t6_a_websocket_is_asked_for_in_one_way() {
    for fields in ["Connection: upgrade\r\n", "Connection: keep-alive, Upgrade\r\n"] {
        for protocol in ["websocket", "WebSocket"] {
            let head = parse(&websocket(fields, protocol)).unwrap();
            assert!(head.wants_websocket);
            // The two hop-by-hop fields are not among those that go on as they came.
            assert_eq!(
                render(&head),
                "GET a.test:80 / [sec-websocket-key=dGhlIHNhbXBsZSBub25jZQ== sec-websocket-version=13]"
            );
        }
    }
    assert!(!parse(&get("Connection: upgrade\r\n")).unwrap().wants_websocket);
    let needs =
        "a WebSocket needs `Connection: upgrade`, one Sec-WebSocket-Key and one Sec-WebSocket-Version";
    refuses(&websocket("", "websocket"), needs);
    refuses(&websocket("Connection: close\r\n", "websocket"), needs);
    refuses(&websocket("Connection: upgrade, sec-websocket-key\r\n", "websocket"), needs);
    refuses(&websocket("Connection: upgrade\r\nSec-WebSocket-Key: x\r\n", "websocket"), needs);
    refuses(&websocket("Connection: upgrade\r\nSec-WebSocket-Version: 8\r\n", "websocket"), needs);
    refuses(&get("Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"), needs);
    let begins = "a WebSocket begins with a GET of HTTP/1.1 without a body";
    let good = websocket("Connection: upgrade\r\n", "websocket");
    refuses(&good.replacen("GET", "POST", 1), begins);
    refuses(&good.replacen("HTTP/1.1", "HTTP/1.0", 1), begins);
    refuses(&good.replacen("GET http://a.test/", "CONNECT a.test:80", 1), begins);
    refuses(&websocket("Connection: upgrade\r\nContent-Length: 1\r\n", "websocket"), begins);
    refuses(&websocket("Connection: upgrade\r\nTransfer-Encoding: chunked\r\n", "websocket"), begins);
}

#[test]
fn h9_hops_of_an_options_are_counted() {
    let options = |fields: &str| get(fields).replacen("GET", "OPTIONS", 1);
    accepts(&options("Max-Forwards: 3\r\n"), "OPTIONS a.test:80 / [max-forwards=2]");
    accepts(&options("Max-Forwards: 1\r\n"), "OPTIONS a.test:80 / [max-forwards=0]");
    accepts(&get("Max-Forwards: 0\r\n"), "GET a.test:80 / [max-forwards=0]");
    for limit in ["0", "", "-1", "+1", "1, 2", "x"] {
        refuses(
            &options(&format!("Max-Forwards: {limit}\r\n")),
            "Max-Forwards is no number of hops from 1 on; this is one",
        );
    }
    refuses(&options("Max-Forwards: 1\r\nMax-Forwards: 1\r\n"), "there is more than one Max-Forwards field");
}

#[test]
fn i4_credentials_stand_at_most_once() {
    refuses(
        &get("Proxy-Authorization: Bearer a\r\nProxy-Authorization: Bearer a\r\n"),
        "there is more than one Proxy-Authorization field",
    );
}

#[test]
fn other_doubtful_fields_are_refused() {
    refuses(&get("Expect: 200-ok\r\n"), "the only expectation known is `100-continue`");
    refuses(&get("Connection: a b\r\n"), "the Connection field does not list field names");
}

#[test]
fn h15_large_heads_are_refused() {
    let many = "X: 1\r\n".repeat(MAX_FIELDS);
    assert_eq!(parse(&get(&many)).unwrap_err(), HeadError::TooLarge);
    accepts(
        &get(&"X: 1\r\n".repeat(MAX_FIELDS - 1)),
        &format!("GET a.test:80 / [{}]", ["x=1"; MAX_FIELDS - 1].join(" ")),
    );
    assert_eq!(
        parse(&get(&format!("X: {}\r\n", "a".repeat(MAX_HEAD_BYTES)))).unwrap_err(),
        HeadError::TooLarge
    );
    // Also without an end.
    assert_eq!(parse(&"a".repeat(MAX_HEAD_BYTES)).unwrap_err(), HeadError::TooLarge);
}

#[test]
fn heads_come_in_any_pieces_and_leave_what_follows() {
    let text = get("X: 1\r\n");
    let whole = format!("{text}rest");
    let (mut buffer, mut parser) = (BytesMut::new(), Parser::default());
    for byte in &text.as_bytes()[..text.len() - 1] {
        buffer.extend_from_slice(&[*byte]);
        assert!(parser.parse(&mut buffer).unwrap().is_none());
    }
    buffer.extend_from_slice(&whole.as_bytes()[text.len() - 1..]);
    assert_eq!(render(&parser.parse(&mut buffer).unwrap().unwrap()), "GET a.test:80 / [x=1]");
    assert_eq!(buffer, "rest");
}

#[test]
fn h2_broken_lines_are_refused_before_the_head_is_complete() {
    for text in ["GET http://a.test/ HTTP/1.1\n", "GET\rX", "G\r\r", "\n", " GET"] {
        let mut buffer = BytesMut::from(text);
        assert!(Parser::default().parse(&mut buffer).is_err(), "{text:?}");
    }
}
