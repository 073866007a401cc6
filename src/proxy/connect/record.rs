//! TLS records and the handshake messages in them, as far as they are not encrypted (RFC 8446, 4 and 5.1).
//!
//! Pure: bytes in. Whether these are good TLS is judged elsewhere; here is read only what stands there once.

/// The types of records.
pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const APPLICATION_DATA: u8 = 23;

/// A record's type, version and length.
const HEADER_BYTES: usize = 5;
/// A handshake message's type and length.
pub(super) const MESSAGE_HEADER_BYTES: usize = 4;

/// A record, or its beginning.
pub(super) struct Record<'a> {
    pub(super) kind: u8,
    /// How long its body will be.
    pub(super) length: usize,
    /// What of its body is there.
    pub(super) body: &'a [u8],
}

impl Record<'_> {
    pub(super) fn is_whole(&self) -> bool {
        self.body.len() == self.length
    }

    /// How many bytes it takes, with its header, once it is whole.
    pub(super) fn whole_bytes(&self) -> usize {
        HEADER_BYTES + self.length
    }
}

/// Reads the first record of `bytes`, and gives what follows it; `None` while not even its header is there.
pub(super) fn split(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    let (body, rest) = rest.split_at(length.min(rest.len()));
    Some((Record { kind: header[0], length, body }, rest))
}

/// The length of a handshake message with its header, once that is there.
pub(super) fn message_bytes(message: &[u8]) -> Option<usize> {
    match message {
        [_, high, middle, low, ..] => {
            let length = u32::from_be_bytes([0, *high, *middle, *low]);
            Some(MESSAGE_HEADER_BYTES + usize::try_from(length).ok()?)
        }
        _ => None,
    }
}

/// Puts the handshake message at the beginning of `bytes` together, and tells how many bytes its records take;
/// `None` unless it is whole and its records hold nothing else.
pub(super) fn message(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut message, mut rest) = (Vec::new(), bytes);
    loop {
        let (record, after) = split(rest)?;
        if record.kind != HANDSHAKE || !record.is_whole() {
            return None;
        }
        message.extend_from_slice(record.body);
        rest = after;
        if let Some(whole) = message_bytes(&message)
            && message.len() >= whole
        {
            return (message.len() == whole).then(|| (message, bytes.len() - rest.len()));
        }
    }
}
