//! The link of a chain: hashes of lines, and the head to compare a chain with.

use std::fmt::{self, Debug, Display, Formatter};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Holds the SHA-256 of one line without its line feed.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct LineHash([u8; 32]);

impl LineHash {
    /// Stands for the line before the first one: 64 zeros.
    pub const START: Self = Self([0; 32]);

    /// Hashes a line, given without its line feed.
    pub fn of(line: &[u8]) -> Self {
        Self(Sha256::digest(line).into())
    }

    pub(super) fn from_digest(digest: Sha256) -> Self {
        Self(digest.finalize().into())
    }
}

impl Display for LineHash {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        formatter.write_str(str::from_utf8(&text).expect("hexadecimal digits are ASCII"))
    }
}

impl Debug for LineHash {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "LineHash({self})")
    }
}

impl FromStr for LineHash {
    type Err = InvalidHead;

    /// Parses 64 lower-case hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, InvalidHead> {
        if text.len() != 64 {
            return Err(InvalidHead);
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
        }
        Ok(Self(hash))
    }
}

fn hex_digit(digit: u8) -> Result<u8, InvalidHead> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(InvalidHead),
    }
}

impl From<LineHash> for String {
    fn from(hash: LineHash) -> Self {
        hash.to_string()
    }
}

impl TryFrom<String> for LineHash {
    type Error = InvalidHead;

    fn try_from(text: String) -> Result<Self, InvalidHead> {
        text.parse()
    }
}

/// Names the last record of a chain; noted elsewhere, it shows later whether the chain's end was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Head {
    /// The number of the last record; 0 before the first.
    pub seq: u64,
    /// The hash of its line.
    pub hash: LineHash,
}

impl Head {
    /// Is the head of an empty chain.
    pub const START: Self = Self { seq: 0, hash: LineHash::START };
}

impl Display for Head {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.seq, self.hash)
    }
}

impl From<Head> for String {
    fn from(head: Head) -> Self {
        head.to_string()
    }
}

impl TryFrom<String> for Head {
    type Error = InvalidHead;

    fn try_from(text: String) -> Result<Self, InvalidHead> {
        text.parse()
    }
}

impl FromStr for Head {
    type Err = InvalidHead;

    /// Parses what [`Display`] writes: `SEQ:HASH`.
    fn from_str(text: &str) -> Result<Self, InvalidHead> {
        let (seq, hash) = text.trim().split_once(':').ok_or(InvalidHead)?;
        if seq.is_empty() || !seq.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidHead);
        }
        Ok(Self { seq: seq.parse().map_err(|_| InvalidHead)?, hash: hash.parse()? })
    }
}

/// Says that a text is no head of an audit chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot read the audit head: expected `NUMBER:HASH` with 64 hexadecimal digits, as `cloister audit head` prints it"
)]
pub struct InvalidHead;

#[cfg(test)]
mod tests {
    use super::{Head, InvalidHead, LineHash};

    #[test]
    fn a_head_is_read_back() {
        let head = Head { seq: 7, hash: LineHash::of(b"line") };
        assert_eq!(head.to_string().parse(), Ok(head));
        assert_eq!(Head::START.to_string(), format!("0:{}", "0".repeat(64)));
    }

    #[test]
    fn the_hash_is_sha256_in_hexadecimal() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(LineHash::of(b"").to_string(), empty);
        assert_eq!(empty.parse(), Ok(LineHash::of(b"")));
    }

    #[test]
    fn what_is_no_head_is_refused() {
        let zeros = "0".repeat(64);
        for text in [
            "",
            "7",
            "7:",
            ":7",
            "7:abc",
            &format!("+7:{zeros}"),
            &format!(":{zeros}"),
            &format!("x:{zeros}"),
        ] {
            assert_eq!(text.parse::<Head>(), Err(InvalidHead), "{text}");
        }
        assert_eq!(format!("1:{}", "A".repeat(64)).parse::<Head>(), Err(InvalidHead));
        assert_eq!(format!("1:{}é", "a".repeat(62)).parse::<Head>(), Err(InvalidHead));
        assert_eq!(format!("99999999999999999999999:{zeros}").parse::<Head>(), Err(InvalidHead));
    }
}
