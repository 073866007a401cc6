//! The body of a client's request: its framing is undone here, and hyper frames it anew for the upstream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;

use crate::proxy::head::Framing;

/// The longest line that begins a chunk, in bytes, with its extensions (H6).
const MAX_SIZE_LINE_BYTES: usize = 1 << 10;
/// The most bytes that the extensions of all chunks may have together (H6).
const MAX_EXTENSION_BYTES: usize = 16 << 10;
/// The most bytes that the trailer section may have; it is dropped (H6).
const MAX_TRAILER_BYTES: usize = 16 << 10;
/// What is read at once, and so the largest piece that waits for the upstream.
const READ_BYTES: usize = 16 << 10;

/// Why a body can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyError {
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the client left before the body was complete")]
    Gone,
}

/// What the decoder made of the bytes so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Data(Bytes),
    /// More bytes have to come.
    More,
    End,
}

/// Undoes the framing of a body; it never takes a byte that belongs to the next request.
#[derive(Debug)]
pub(super) enum Decoder {
    /// So many bytes are left.
    Length(u64),
    Chunked(Chunked),
}

impl Decoder {
    pub(super) fn new(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Length(0),
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunked::default()),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.state == State::Done,
        }
    }

    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Step, BodyError> {
        match self {
            Self::Length(0) => Ok(Step::End),
            Self::Length(left) => Ok(take(left, buffer)),
            Self::Chunked(chunked) => chunked.decode(buffer),
        }
    }
}

/// At most `left` bytes out of `buffer`.
fn take(left: &mut u64, buffer: &mut BytesMut) -> Step {
    if buffer.is_empty() {
        return Step::More;
    }
    let length = usize::try_from(*left).map_or(buffer.len(), |left| left.min(buffer.len()));
    *left -= length as u64;
    Step::Data(buffer.split_to(length).freeze())
}

/// The chunked coding (RFC 9112, 7.1), strictly: no white space, CRLF everywhere.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    state: State,
    extension_bytes: usize,
    trailer_bytes: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    Done,
}

impl Chunked {
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Step, BodyError> {
        loop {
            match &mut self.state {
                State::Size => {
                    let Some(line) = take_line(buffer, MAX_SIZE_LINE_BYTES)? else {
                        return Ok(Step::More);
                    };
                    let size = self.parse_size(&line)?;
                    self.state = if size == 0 { State::Trailers } else { State::Data(size) };
                }
                State::Data(0) => self.state = State::DataEnd,
                State::Data(left) => return Ok(take(left, buffer)),
                State::DataEnd => {
                    let Some(line) = take_line(buffer, 0)? else {
                        return Ok(Step::More);
                    };
                    if !line.is_empty() {
                        return Err(BodyError::Malformed("a chunk is longer than its size"));
                    }
                    self.state = State::Size;
                }
                State::Trailers => {
                    let left = MAX_TRAILER_BYTES - self.trailer_bytes;
                    let Some(line) = take_line(buffer, left)? else {
                        return Ok(Step::More);
                    };
                    self.trailer_bytes += line.len();
                    if line.is_empty() {
                        self.state = State::Done;
                    }
                }
                State::Done => return Ok(Step::End),
            }
        }
    }

    fn parse_size(&mut self, line: &[u8]) -> Result<u64, BodyError> {
        let (digits, extension) = match line.iter().position(|byte| *byte == b';') {
            Some(at) => line.split_at(at),
            None => (line, &[][..]),
        };
        self.extension_bytes += extension.len();
        if self.extension_bytes > MAX_EXTENSION_BYTES {
            return Err(BodyError::Malformed("the chunk extensions are too long"));
        }
        let digits =
            std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        digits
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .ok_or(BodyError::Malformed("the size of a chunk is not a hexadecimal number"))
    }
}

/// The next line without its CRLF, which must be at most `max` bytes long; `None` while it is not complete.
fn take_line(buffer: &mut BytesMut, max: usize) -> Result<Option<BytesMut>, BodyError> {
    let end = buffer.iter().position(|byte| *byte == b'\n');
    if end.unwrap_or(buffer.len()) > max + 1 {
        return Err(BodyError::Malformed("a line of the chunked body is too long"));
    }
    let Some(end) = end else { return Ok(None) };
    let mut line = buffer.split_to(end);
    buffer.advance(1);
    if line.last() != Some(&b'\r') {
        return Err(BodyError::Malformed("a line of the chunked body ends without a carriage return"));
    }
    line.truncate(end - 1);
    if line.iter().any(|byte| *byte < b' ' && *byte != b'\t') {
        return Err(BodyError::Malformed("a line of the chunked body holds control characters"));
    }
    Ok(Some(line))
}

/// Reads a body from the client and hands it to the upstream, piece by piece, no faster than that takes it.
pub(super) async fn upload<R>(
    decoder: &mut Decoder,
    client: &mut R,
    buffer: &mut BytesMut,
    upstream: Option<mpsc::Sender<Piece>>,
) -> Result<(), BodyError>
where
    R: AsyncRead + Unpin,
{
    let Some(upstream) = upstream else { return Ok(()) };
    loop {
        let piece = match decoder.decode(buffer)? {
            Step::Data(bytes) => Piece::Data(bytes),
            Step::End => Piece::End,
            Step::More => {
                buffer.reserve(READ_BYTES);
                match client.read_buf(buffer).await {
                    Ok(0) | Err(_) => return Err(BodyError::Gone),
                    Ok(_) => continue,
                }
            }
        };
        let is_end = matches!(piece, Piece::End);
        // An upstream that has answered early takes no more: the rest of the body is left unread.
        if upstream.send(piece).await.is_err() || is_end {
            return Ok(());
        }
    }
}

/// A piece of a body on its way to the upstream.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    /// The body is complete. Without it the upstream sees an upload that was broken off.
    End,
}

/// The body as hyper reads it.
#[derive(Debug)]
pub(super) struct Upload {
    /// None when there is no body, or no more of it.
    pieces: Option<mpsc::Receiver<Piece>>,
    size: SizeHint,
}

/// The client's body was not complete.
#[derive(Debug, thiserror::Error)]
#[error("the body was broken off")]
pub(super) struct BrokenOff;

impl Upload {
    /// Makes a body, and where its pieces go in, if it has any.
    pub(super) fn new(framing: Framing) -> (Option<mpsc::Sender<Piece>>, Self) {
        let size = match framing {
            Framing::None => {
                return (None, Self { pieces: None, size: SizeHint::with_exact(0) });
            }
            Framing::Length(length) => SizeHint::with_exact(length),
            Framing::Chunked => SizeHint::new(),
        };
        let (sender, pieces) = mpsc::channel(1);
        (Some(sender), Self { pieces: Some(pieces), size })
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let Some(pieces) = &mut self.pieces else { return Poll::Ready(None) };
        let piece = ready!(pieces.poll_recv(cx));
        if !matches!(piece, Some(Piece::Data(_))) {
            self.pieces = None;
        }
        Poll::Ready(match piece {
            Some(Piece::Data(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Piece::End) => None,
            None => Some(Err(BrokenOff)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

/// Undoes the chunked coding in pieces and at once, and compares.
#[cfg(fuzzing)]
pub(in crate::proxy) fn fuzz(bytes: &[u8]) {
    let Some((step, bytes)) = bytes.split_first() else { return };
    let run = |step: usize| {
        let (mut chunked, mut buffer, mut body) = (Chunked::default(), BytesMut::new(), Vec::new());
        for piece in bytes.chunks(step) {
            buffer.extend_from_slice(piece);
            loop {
                match chunked.decode(&mut buffer)? {
                    Step::Data(data) => body.extend_from_slice(&data),
                    Step::More | Step::End => break,
                }
            }
        }
        Ok::<_, BodyError>((body, buffer, chunked.state))
    };
    let (whole, pieces) = (run(bytes.len().max(1)).ok(), run(usize::from(*step).max(1)).ok());
    assert_eq!(whole, pieces, "the pieces do not matter");
    if let Some((body, rest, state)) = whole {
        assert!(body.len() + rest.len() <= bytes.len() && bytes.ends_with(&rest));
        assert!(state == State::Done || rest.len() <= MAX_TRAILER_BYTES + 1, "a line is limited");
    }
}

#[cfg(test)]
mod tests;
