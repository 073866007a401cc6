//! Payloads that made other parsers disagree, as tables.

use super::*;

#[test]
fn h1_published_smuggling_payloads_are_refused() {
    // A field, or several, that makes one parser see a body where another sees none.
    for fields in [
        "Transfer-Encoding: chunked\x0b",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding:\x0cchunked",
        "Transfer-Encoding: chunked\0",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunk",
        "Transfer-Encoding: 'chunked'",
        "Transfer-Encoding: chunked;",
        "Transfer-Encoding: chunked x",
        "Transfer-Encoding: \u{ff}chunked",
        "Transfer-Encoding: cow\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
        "Transfer-Encoding: chunked\r\ntransfer-encoding: chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding\r\n: chunked",
        " Transfer-Encoding: chunked",
        "\tTransfer-Encoding: chunked",
        "X: X\r\n\tTransfer-Encoding: chunked",
        "X: X\nTransfer-Encoding: chunked",
        "X: X\rTransfer-Encoding: chunked",
        "X: X\n\rTransfer-Encoding: chunked",
        "X: X\r\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r",
        "Transfer\0-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "Content-Length: 5, 5",
        "Content-Length: 5,5",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length: 5.0",
        "Content-Length: 5e0",
        "Content-Length: 5;",
        "Content-Length: \"5\"",
        "Content-Length: 5\x0b",
        "Content-Length: 99999999999999999999",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\ncontent-length: 6",
        "Content-Length : 5",
        "Content-Length\x0b: 5",
        " Content-Length: 5",
        "Content_Length : 5",
        "Content-Length: 5\r\n ,6",
        "Host: a.test",
        "Host : b.test",
        "X: 1\0",
        "X: 1\x08",
        "X: 1\x7f",
        "X\u{2028}: 1",
        "(X): 1",
        "X@: 1",
        "\"X\": 1",
        "X",
        ":",
        ": X",
    ] {
        let text = get(&format!("{fields}\r\n"));
        let mut buffer = BytesMut::from(&text[..]);
        assert!(Parser::default().parse(&mut buffer).is_err(), "{text:?}");
    }
    // White space around a value means the same to everybody.
    for space in ["", " ", "\t", " \t "] {
        accepts(&get(&format!("Transfer-Encoding:{space}chunked{space}\r\n")), "GET a.test:80 / [] Chunked");
        accepts(&get(&format!("Content-Length:{space}7{space}\r\n")), "GET a.test:80 / [] Length(7)");
    }
    // Look-alikes are fields like any other.
    accepts(&get("Content_Length: 5\r\n"), "GET a.test:80 / [content_length=5]");
    accepts(&get("X-Transfer-Encoding: chunked\r\n"), "GET a.test:80 / [x-transfer-encoding=chunked]");
}

#[test]
fn h2_every_other_first_line_is_refused() {
    for line in [
        "GET http://a.test/",
        "GET /",
        "GET http://a.test/ HTTP/0.9",
        "GET http://a.test/ HTTP/1.2",
        "GET http://a.test/ HTTP/1.10",
        "GET http://a.test/ HTTP/01.1",
        "GET http://a.test/ HTTP/1",
        "GET http://a.test/ HTTP/1.",
        "GET http://a.test/ HTTP/2",
        "GET http://a.test/ HTTP/2.0",
        "GET http://a.test/ HTTP/3.0",
        "GET http://a.test/ HTTPS/1.1",
        "GET http://a.test/ Http/1.1",
        "GET http://a.test/ HTTP/1.1\t",
        "GET http://a.test/ HTTP/1.1 x",
        "GET http://a.test/\tHTTP/1.1",
        "GET\thttp://a.test/ HTTP/1.1",
        "GET http://a.test/\x0bHTTP/1.1",
        "GET\0 http://a.test/ HTTP/1.1",
        " GET http://a.test/ HTTP/1.1",
        "\tGET http://a.test/ HTTP/1.1",
        "G:T http://a.test/ HTTP/1.1",
        "GET http://a.test/%zz\x7f HTTP/1.1",
        "PRI * HTTP/2.0",
    ] {
        let mut buffer = BytesMut::from(&format!("{line}\r\nHost: a.test\r\n\r\n")[..]);
        assert!(Parser::default().parse(&mut buffer).is_err(), "{line:?}");
    }
}

#[test]
fn n3_n4_n7_every_doubtful_authority_is_refused() {
    for authority in [
        "",
        ":80",
        "a.test:",
        "a.test:0",
        "a.test:65536",
        "a.test:080",
        "a.test:+80",
        "a.test:80:80",
        "u@a.test",
        "u:p@a.test",
        "@a.test",
        "a.test@b.test",
        "a.test\\b.test",
        "a.test%00",
        "a%2etest",
        "a..test",
        ".a.test",
        "a.test..",
        "a,b.test",
        "[::1",
        "::1",
        "[::1%25eth0]",
        "[::1%eth0]",
        "[fe80::1%1]:80",
        "[127.0.0.1]",
        "[a.test]",
        "127.1",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "2130706433",
        "127.0.0.1.1",
        "256.0.0.1",
    ] {
        for text in [
            format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n"),
            format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"),
        ] {
            assert!(parse(&text).is_err(), "{text:?}");
        }
    }
    for target in
        ["http:/a.test/", "http:a.test", "//a.test/", "http:///", "http://?q", "http://#", "ftp://a.test/"]
    {
        let text = format!("GET {target} HTTP/1.1\r\nHost: a.test\r\n\r\n");
        assert!(parse(&text).is_err(), "{text:?}");
    }
    refuses("GET http://a.test/#f HTTP/1.1\r\nHost: a.test\r\n\r\n", "the target holds a fragment (`#`)");
}
