//! What the guardian forwards is what another parser reads in the client's bytes: one request, with the same method,
//! path and body. The heads are the seeds of the fuzz target, most of them from real clients, and those with a byte
//! too many somewhere.

use std::fs;
use std::path::Path;

use super::{Cloister, Guardian, Recorder, Request};

/// A request as a parser of somebody else's reads it.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    method: String,
    path: String,
    body: Vec<u8>,
}

impl Expected {
    /// Reads the request at the beginning of these bytes; `None` when it is none, or not whole.
    fn read(bytes: &[u8], authority: &str) -> Option<Self> {
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut request = httparse::Request::new(&mut fields);
        let httparse::Status::Complete(end) = request.parse(bytes).ok()? else { return None };
        let (method, target) = (request.method?.to_owned(), request.path?);
        let (scheme, rest) = target.split_at_checked("http://".len())?;
        let (named, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if !scheme.eq_ignore_ascii_case("http://") || !named.eq_ignore_ascii_case(authority) {
            return None;
        }
        let path = match path {
            "" if method == "OPTIONS" => "*".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            query => format!("/{query}"),
        };
        let value = |name: &str| {
            let found = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(found.value).ok()
        };
        let body = match (value("content-length"), value("transfer-encoding")) {
            (Some(length), None) => bytes.get(end..end + length.parse::<usize>().ok()?)?.to_vec(),
            (None, Some(_)) => dechunked(&bytes[end..])?,
            (None, None) => Vec::new(),
            (Some(_), Some(_)) => return None,
        };
        Some(Self { method, path, body })
    }

    fn is_what_came(&self, came: &Request) -> bool {
        (&self.method, &self.path, &self.body) == (&came.method, &came.target, &came.body)
    }
}

/// The body in chunks at the beginning of these bytes.
fn dechunked(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let httparse::Status::Complete((start, size)) = httparse::parse_chunk_size(bytes).ok()? else {
            return None;
        };
        let end = start + usize::try_from(size).ok()?;
        body.extend(bytes.get(start..end)?);
        if size == 0 {
            return Some(body);
        }
        bytes = bytes.get(end + 2..)?;
    }
}

/// The seeds, for this origin and with this cloister's token; tunnels are left out.
fn corpus(authority: &str, cloister: &Cloister) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/request_head");
    let mut seeds: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    // What fuzzing found lies in a folder of its own.
    seeds.retain(|path| path.is_file());
    seeds.sort();
    let named = seeds.into_iter().map(|path| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, adapted(&fs::read(path).unwrap(), authority, cloister))
    });
    named.filter(|(_, bytes)| !bytes.starts_with(b"CONNECT")).collect()
}

/// One seed: where it goes and who asks are this test's, and a body that it tells of follows.
fn adapted(seed: &[u8], authority: &str, cloister: &Cloister) -> Vec<u8> {
    // Bytes of a field that are no text stay what they are.
    let text: String = seed.iter().map(|byte| char::from(*byte)).collect();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines: Vec<String> = head
        .split("\r\n")
        .filter(|line| !line.to_ascii_lowercase().starts_with("proxy-authorization:"))
        .map(|line| replace_ignoring_case(line, "origin.test", authority))
        .collect();
    lines.insert(1.min(lines.len()), cloister.proof().trim_end().to_owned());
    let lower = head.to_ascii_lowercase();
    let length = lower.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
    let body = match length {
        _ if !body.is_empty() => body.to_owned(),
        Some(length) => "x".repeat(length),
        None if lower.contains("transfer-encoding: chunked") => "3\r\nabc\r\n0\r\n\r\n".to_owned(),
        None => String::new(),
    };
    let whole =
        format!("{}\r\n\r\n{}", lines.join("\r\n"), replace_ignoring_case(&body, "origin.test", authority));
    whole.chars().map(|character| u8::try_from(u32::from(character)).unwrap()).collect()
}

fn replace_ignoring_case(text: &str, from: &str, to: &str) -> String {
    match text.to_ascii_lowercase().find(from) {
        Some(at) => {
            let rest = replace_ignoring_case(&text[at + from.len()..], from, to);
            format!("{}{to}{rest}", &text[..at])
        }
        None => text.to_owned(),
    }
}

/// Sends bytes on a connection of their own, and checks that the origin was asked what they say and nothing else.
/// True when it was asked.
fn compare(name: &str, bytes: &[u8], origin: &Recorder, cloister: &Cloister) -> bool {
    let before = origin.count();
    let mut wire = cloister.connect();
    let _ = wire.try_send(bytes);
    wire.end();
    let heard = String::from_utf8_lossy(&wire.rest()).into_owned();
    let answered = heard.matches("HTTP/1.1 200 OK\r\n").count();
    let came = origin.since(before);
    let shown = bytes.escape_ascii();
    assert_eq!(answered, came.len(), "{name}: {shown}: {heard}");
    let mut rest = bytes;
    for request in &came {
        let expected = Expected::read(rest, &origin.authority());
        assert!(
            expected.is_some_and(|expected| expected.is_what_came(request)),
            "{name}: {shown}: {request:?}"
        );
        // What follows was asked behind it.
        rest = &rest[rest
            .windows(8)
            .skip(1)
            .position(|bytes| bytes == b"\r\nGET ht")
            .map_or(rest.len(), |at| at + 3)..];
    }
    !came.is_empty()
}

#[test]
fn h1_h2_h3_h6_another_parser_reads_what_the_origin_gets() {
    let origin = Recorder::start();
    let guardian = Guardian::before(&origin);
    let cloister = guardian.register("demo");
    let corpus = corpus(&origin.authority(), &cloister);
    let passed: Vec<_> = corpus
        .iter()
        .filter(|(name, bytes)| compare(name, bytes, &origin, &cloister))
        .map(|(name, _)| name.as_str())
        .collect();
    for name in [
        "curl_get",
        "curl_post",
        "curl_chunked",
        "curl_head",
        "curl_http10",
        "delete_body",
        "chunked_trailer",
        "git_plain",
        "node_2",
        "npm_plain",
        "obs_text",
        "odd_path",
        "options_star",
        "python_urllib",
        "wget",
    ] {
        assert!(passed.contains(&name), "{name} is refused: {passed:?}");
    }
    for name in ["cl_te", "folded", "h2_preface", "curl_ipv6"] {
        assert!(!passed.contains(&name), "{name} is forwarded");
    }
    let total = origin.count();
    drop(guardian);
    assert_eq!(origin.requests().len(), total, "nothing came later");
}

#[test]
fn h1_h2_h7_one_byte_too_many_anywhere_never_makes_another_request() {
    const EXTRA: [&[u8]; 10] = [b" ", b"\t", b"\0", b"\r", b"\n", b":", b"\r\n", b"\r\n ", b"\x0b", b"\xa0"];
    let origin = Recorder::start();
    let guardian = Guardian::before(&origin);
    let cloister = guardian.register("demo");
    let mut passed = 0;
    for (name, bytes) in corpus(&origin.authority(), &cloister) {
        if !["curl_post", "chunked_trailer", "hop_by_hop", "delete_body", "pipelined"]
            .contains(&name.as_str())
        {
            continue;
        }
        for at in 0..bytes.len() {
            let mutated = [&bytes[..at], EXTRA[at * 7 % EXTRA.len()], &bytes[at..]].concat();
            passed += usize::from(compare(&name, &mutated, &origin, &cloister));
        }
    }
    assert!(passed > 0, "white space around a value, say, harms nobody");
    let total = origin.count();
    drop(guardian);
    assert_eq!(origin.requests().len(), total, "nothing came later");
}
