use super::*;

/// Decodes `bytes` in pieces of `step` bytes; what is left over belongs to the next request.
fn decode(framing: Framing, bytes: &[u8], step: usize) -> Result<(Vec<u8>, Vec<u8>, bool), BodyError> {
    let (mut decoder, mut buffer, mut body) = (Decoder::new(framing), BytesMut::new(), Vec::new());
    for piece in bytes.chunks(step) {
        buffer.extend_from_slice(piece);
        while let Step::Data(data) = decoder.decode(&mut buffer)? {
            body.extend_from_slice(&data);
        }
    }
    Ok((body, buffer.to_vec(), decoder.is_complete()))
}

#[track_caller]
fn check(framing: Framing, bytes: &str, body: &str, rest: &str) {
    for step in [1, 3, bytes.len()] {
        let decoded = decode(framing, bytes.as_bytes(), step);
        assert_eq!(decoded, Ok((body.into(), rest.into(), true)), "{bytes:?} in pieces of {step}");
    }
}

#[track_caller]
fn refuses(bytes: &str, expected: &'static str) {
    for step in [1, bytes.len()] {
        assert_eq!(
            decode(Framing::Chunked, bytes.as_bytes(), step),
            Err(BodyError::Malformed(expected)),
            "{bytes:?}"
        );
    }
}

#[test]
fn bodies_end_where_their_framing_says() {
    check(Framing::None, "GET", "", "GET");
    check(Framing::Length(3), "abcGET", "abc", "GET");
    check(Framing::Chunked, "3\r\nabc\r\n0\r\n\r\nGET", "abc", "GET");
    check(Framing::Chunked, "1\r\na\r\n0A\r\n0123456789\r\n000\r\n\r\n", "a0123456789", "");
}

#[test]
fn h6_extensions_and_trailers_are_dropped() {
    check(Framing::Chunked, "1;x=\"y\"\r\na\r\n0;z\r\nTrailer: 1\r\nX: 2\r\n\r\nGET", "a", "GET");
}

#[test]
fn h6_extensions_and_trailers_are_limited() {
    refuses(&format!("1;{}\r\na\r\n", "x".repeat(2000)), "a line of the chunked body is too long");
    refuses(&format!("1;{}\r\na\r\n", "x".repeat(900)).repeat(20), "the chunk extensions are too long");
    refuses(
        &format!("0\r\nX: {}\r\n\r\n", "x".repeat(MAX_TRAILER_BYTES)),
        "a line of the chunked body is too long",
    );
    refuses(&format!("0\r\n{}\r\n", "X: 1\r\n".repeat(5000)), "a line of the chunked body is too long");
}

#[test]
fn h1_h6_broken_chunks_are_refused() {
    let size = "the size of a chunk is not a hexadecimal number";
    for line in ["", "g", "-1", "+1", "0x1", " 1", "1 ", "1 ;x", "10000000000000000"] {
        refuses(&format!("{line}\r\na\r\n0\r\n\r\n"), size);
    }
    refuses("1\na\r\n", "a line of the chunked body ends without a carriage return");
    refuses("1\r\nab\r\n", "a line of the chunked body is too long");
    refuses("1\r\na\n0\r\n", "a line of the chunked body ends without a carriage return");
    refuses("1;\rx\r\na\r\n", "a line of the chunked body holds control characters");
}

proptest::proptest! {
    #[test]
    fn chunked_bodies_are_understood_the_same_however_they_are_split(
        text in "([0-3](;[a-z]{0,3})?(\r\n|\n)[a-c]{0,3}(\r\n|\r)?){0,4}(0\r\n\r\n)?[a-z]{0,3}",
        step in 1_usize..10,
    ) {
        let whole = decode(Framing::Chunked, text.as_bytes(), text.len().max(1));
        proptest::prop_assert_eq!(decode(Framing::Chunked, text.as_bytes(), step).ok(), whole.ok());
    }
}
