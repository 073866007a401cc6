//! Secrets that prove who speaks: a sandbox's token towards the guardian, the user's key towards the control socket.
//!
//! The two are different types on purpose: a sandbox's token opens nothing on the control socket (invariant 3).

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::name::{hex, text_form};

const SECRET_BYTES: usize = 32;
const HASH_BYTES: usize = 32;

/// Says that a text is not a token's hash or a control key; the text itself is never shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot read a {0}: it must be 64 lower case hexadecimal digits")]
pub struct InvalidToken(&'static str);

/// The token of one sandbox in clear: shown once, to that sandbox.
pub struct PlainToken(SecretString);

impl PlainToken {
    /// Makes a token of random bytes.
    pub fn from_bytes(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(SecretString::from(hex(&bytes)))
    }

    /// Gives the text that the sandbox presents: 64 lower case hexadecimal digits.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for PlainToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlainToken(hidden)")
    }
}

/// The SHA-256 of a sandbox's token: what is kept at rest.
#[derive(Clone, PartialEq, Eq)]
pub struct HashedToken([u8; HASH_BYTES]);

impl HashedToken {
    /// Hashes a token.
    pub fn of(token: &PlainToken) -> Self {
        Self(Sha256::digest(token.expose()).into())
    }

    /// Reads a hash from its 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, InvalidToken> {
        parse_hex(text).map(Self).ok_or(InvalidToken("token hash"))
    }

    /// Tells in constant time whether `presented` is the token that was hashed.
    pub fn matches(&self, presented: &str) -> bool {
        Sha256::digest(presented).ct_eq(&self.0).into()
    }
}

impl fmt::Display for HashedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for HashedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashedToken({self})")
    }
}

text_form!(HashedToken, InvalidToken);

/// The key that opens the control socket, kept in a file that no sandbox sees.
pub struct ControlKey(SecretString);

impl ControlKey {
    /// Makes a key of random bytes.
    pub fn from_bytes(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(SecretString::from(hex(&bytes)))
    }

    /// Reads a key from its 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, InvalidToken> {
        parse_hex(text).map(Self::from_bytes).ok_or(InvalidToken("control key"))
    }

    /// Gives the text that is written to the key file and presented on the socket.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Tells in constant time whether `presented` is this key.
    pub fn matches(&self, presented: &str) -> bool {
        // Hashing both sides makes the comparison independent of the presented length, too.
        Sha256::digest(presented).ct_eq(&Sha256::digest(self.expose())).into()
    }
}

impl fmt::Debug for ControlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ControlKey(hidden)")
    }
}

/// Reads exactly 64 lower case hexadecimal digits.
fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let bytes: Vec<u8> =
        pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect::<Option<_>>()?;
    bytes.try_into().ok()
}
