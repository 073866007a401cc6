//! The parsers that read what a sandbox sends, for the fuzz targets in `tests/fuzz`.

use bytes::BytesMut;

use super::head::{Parser, field_lines};
use super::{connect, plain};

/// A head as another parser reads it, too: method, target, and the fields in their order with lower-case names.
pub type RawHead = (String, String, Vec<(String, Vec<u8>)>);

/// Reads a request head as the proxy does, and gives what stands in it when the proxy takes it.
///
/// It asserts that the head is understood the same however it is cut into pieces, and that what follows is left.
pub fn request_head(bytes: &[u8]) -> Option<RawHead> {
    let mut whole = BytesMut::from(bytes);
    let head = Parser::default().parse(&mut whole);
    let taken = bytes.len() - whole.len();
    assert_eq!(whole[..], bytes[taken..], "what follows a head is left as it is");
    let (mut buffer, mut parser, mut split) = (BytesMut::new(), Parser::default(), Ok(None));
    for byte in bytes {
        buffer.extend_from_slice(&[*byte]);
        split = parser.parse(&mut buffer);
        if !matches!(split, Ok(None)) {
            break;
        }
    }
    let (head, split) = (head.ok().flatten(), split.ok().flatten());
    assert_eq!(format!("{head:?}"), format!("{split:?}"), "the pieces do not matter");
    head.map(|_| field_lines(&bytes[..taken]))
}

/// Undoes the chunked coding as the proxy does, in pieces whose length the first byte gives.
///
/// It asserts that the body is understood the same as in one piece, and that it never takes what follows.
pub fn chunked_body(bytes: &[u8]) {
    plain::fuzz_chunked(bytes);
}

/// Reads a `ClientHello` as the proxy does at the beginning of a tunnel.
///
/// It asserts that whoever accepts the hello besides the proxy finds the same name in it.
pub fn client_hello(bytes: &[u8]) {
    connect::fuzz_hello(bytes);
}
