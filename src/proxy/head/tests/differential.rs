//! Heads beside a second parser: what is accepted here is accepted there, and means the same.

use super::*;

/// What a real client sends.
const REAL_HEADS: [&str; 7] = [
    "GET http://a.test/x?y=%20 HTTP/1.1\r\nHost: a.test\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\nProxy-Connection: Keep-Alive\r\n\r\n",
    "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nUser-Agent: git/2.43.0\r\nProxy-Connection: Keep-Alive\r\n\r\n",
    "CONNECT a.test:443 HTTP/1.0\r\nProxy-Authorization: Basic eDp5\r\n\r\n",
    "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nUser-Agent: python-requests/2.31.0\r\nAccept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n",
    "POST http://a.test:8080/v1/x HTTP/1.1\r\nhost: a.test:8080\r\nconnection: keep-alive\r\ncontent-type: application/json\r\naccept: */*\r\naccept-language: *\r\nsec-fetch-mode: cors\r\nuser-agent: node\r\ncontent-length: 17\r\n\r\n",
    "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nUser-Agent: Wget/1.21.3\r\nAccept: */*\r\nAccept-Encoding: identity\r\nConnection: Keep-Alive\r\nProxy-Connection: Keep-Alive\r\n\r\n",
    "PUT http://a.test/ HTTP/1.1\r\nHost: a.test\r\nUser-Agent: Go-http-client/1.1\r\nTransfer-Encoding: chunked\r\nAccept-Encoding: gzip\r\n\r\n",
];

/// What stands in a head: its fields in order of their lower-case names.
#[derive(Debug, PartialEq)]
struct Opinion {
    method: String,
    target: String,
    version: u8,
    fields: Vec<(String, Vec<u8>)>,
}

/// A head as httparse reads it.
fn second_opinion(head: &[u8]) -> Option<Opinion> {
    let mut fields = [httparse::EMPTY_HEADER; 2 * MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(length) = request.parse(head).ok()? else { return None };
    assert_eq!(length, head.len(), "the heads end at different places");
    let mut fields: Vec<_> = request
        .headers
        .iter()
        .map(|field| (field.name.to_ascii_lowercase(), field.value.trim_ascii().to_vec()))
        .collect();
    fields.sort();
    let (method, target) = (request.method?.to_owned(), request.path?.to_owned());
    Some(Opinion { method, target, version: request.version?, fields })
}

/// Whatever is accepted here must be accepted, and understood the same, by the other parser; tells whether it was.
fn agree(bytes: &[u8]) -> Result<bool, String> {
    let mut buffer = BytesMut::from(bytes);
    let Ok(Some(head)) = Parser::default().parse(&mut buffer) else { return Ok(false) };
    let taken = &bytes[..bytes.len() - buffer.len()];
    let (method, target, mut fields) = field_lines(taken);
    fields.sort();
    let version = u8::from(head.version == Version::Http11);
    let other = second_opinion(taken);
    if other != Some(Opinion { method, target, version, fields: fields.clone() }) {
        return Err(format!("{:?}: {other:?}", String::from_utf8_lossy(taken)));
    }
    // What goes on is among what came.
    if let Target::Plain(plain) = &head.target {
        for (name, value) in &plain.fields {
            let field = (name.as_str().to_owned(), value.as_bytes().to_vec());
            if !fields.contains(&field) && name != "max-forwards" {
                return Err(format!("{field:?} was not sent"));
            }
        }
    }
    Ok(true)
}

#[test]
fn h2_real_clients_are_understood_by_two_parsers() {
    for head in REAL_HEADS {
        assert_eq!(agree(head.as_bytes()), Ok(true), "{head}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]

    #[test]
    fn h2_no_mutation_of_a_real_head_is_read_in_two_ways(
        which in 0..REAL_HEADS.len(),
        cuts in proptest::collection::vec(
            (proptest::num::usize::ANY, 0_usize..3, "[ -~]{0,2}|[\r\n\t\0\x0b\x0c:, ]{1,2}|\u{e9}|(\r\nX: )"),
            0..4,
        ),
    ) {
        let mut head = REAL_HEADS[which].as_bytes().to_vec();
        for (at, removed, inserted) in cuts {
            let at = at % (head.len() + 1);
            let end = (at + removed).min(head.len());
            head.splice(at..end, inserted.bytes());
        }
        proptest::prop_assert!(agree(&head).is_ok(), "{:?}", agree(&head));
    }

    #[test]
    fn h2_no_composed_head_is_read_in_two_ways(
        method in "GET|POST|CONNECT|OPTIONS|M-S|G@T| GET|",
        target in "http://a.test(:80)?(/[a-z%|^{}<>\"\\\\]{0,4})?|a.test:443|\\*|/|http://\u{e9}/",
        version in "HTTP/1.[0-2]|HTTP/2.0|http/1.1|",
        fields in proptest::collection::vec(
            "(Host|host|HOST): a.test|(X|[!-~]{1,3}|[ -~]{0,2}) ?:[ \t]{0,2}[ -~\t\u{80}-\u{ff}]{0,6}|(Content-Length: [0-9]{1,3})|(Connection: [a-z, ]{0,9})",
            0..5,
        ),
        host in proptest::bool::ANY,
    ) {
        let host = if host { "Host: a.test\r\n" } else { "" };
        let fields = fields.join("\r\n") + if fields.is_empty() { "" } else { "\r\n" };
        let head = format!("{method} {target} {version}\r\n{host}{fields}\r\n");
        proptest::prop_assert!(agree(head.as_bytes()).is_ok(), "{:?}", agree(head.as_bytes()));
    }

    #[test]
    fn heads_are_understood_the_same_however_they_are_split(
        lines in proptest::collection::vec("[ -~\t]{0,20}|(Host: a.test)|(Content-Length: [0-9]{1,3})|(Transfer-Encoding: chunked)", 0..5),
        line in "(GET|POST|CONNECT|M) (http://a.test/[a-z?#]{0,3}|a.test:443|/|\\*) HTTP/1.[012]",
        end in "\r\n|\n|\r",
        step in 1_usize..50,
    ) {
        let text = format!("{line}{end}{}{end}{end}", lines.join(&end));
        let summary = |parsed: Result<Option<Head>, HeadError>| parsed.map(|head| head.map(|head| render(&head)));
        let whole = summary(Parser::default().parse(&mut BytesMut::from(&text[..])));
        let (mut buffer, mut parser, mut split) = (BytesMut::new(), Parser::default(), Ok(None));
        for piece in text.as_bytes().chunks(step) {
            buffer.extend_from_slice(piece);
            split = summary(parser.parse(&mut buffer));
            if !matches!(split, Ok(None)) {
                break;
            }
        }
        // Which flaw is found first may depend on the pieces; whether there is one may not.
        proptest::prop_assert_eq!(split.as_ref().ok(), whole.as_ref().ok());
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let mut head = b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n".to_vec();
        head.extend(bytes);
        head.extend(b"\r\n\r\n");
        let _ = Parser::default().parse(&mut BytesMut::from(&head[..]));
    }
}
