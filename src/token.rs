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

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "0707070707070707070707070707070707070707070707070707070707070707";

    #[test]
    fn i4_a_hashed_token_matches_its_token_alone() {
        let token = PlainToken::from_bytes([7; 32]);
        assert_eq!(token.expose(), TEXT);
        let hashed = HashedToken::of(&token);
        assert!(hashed.matches(TEXT));
        for other in [
            "",
            "07",
            &TEXT[1..],
            &TEXT.replace('7', "8"),
            &format!("{TEXT} "),
            &hashed.to_string(),
        ] {
            assert!(!hashed.matches(other), "{other}");
        }
        assert!(!hashed.matches(PlainToken::from_bytes([8; 32]).expose()));
    }

    #[test]
    fn a_hashed_token_is_the_sha256_of_the_text() {
        // printf 07…07 | sha256sum
        let hashed = HashedToken::of(&PlainToken::from_bytes([7; 32]));
        assert_eq!(
            hashed.to_string(),
            "1967c0fdaed0b8f2618d3b1f4a9f8541ed315505acc26f5a41f382da8bdd9954"
        );
        assert_eq!(HashedToken::parse(&hashed.to_string()), Ok(hashed.clone()));
        let json = serde_json::to_string(&hashed).unwrap();
        assert_eq!(serde_json::from_str::<HashedToken>(&json).unwrap(), hashed);
    }

    #[test]
    fn only_64_lower_case_digits_are_read() {
        for text in [
            "",
            "07",
            &TEXT[1..],
            &format!("{TEXT}0"),
            &TEXT.replace('7', "A"),
            &TEXT.replace('7', "g"),
        ] {
            let error = HashedToken::parse(text).unwrap_err();
            assert_eq!(
                error.to_string(),
                "cannot read a token hash: it must be 64 lower case hexadecimal digits"
            );
            let error = ControlKey::parse(text).unwrap_err();
            assert_eq!(
                error.to_string(),
                "cannot read a control key: it must be 64 lower case hexadecimal digits"
            );
        }
    }

    #[test]
    fn i1_a_control_key_matches_itself_alone() {
        let key = ControlKey::parse(TEXT).unwrap();
        assert_eq!(key.expose(), ControlKey::from_bytes([7; 32]).expose());
        assert!(key.matches(TEXT));
        for other in ["", "07", &TEXT[1..], PlainToken::from_bytes([8; 32]).expose()] {
            assert!(!key.matches(other), "{other}");
        }
    }

    #[test]
    fn a16_debug_output_hides_secrets() {
        let shown = format!(
            "{:?} {:?}",
            PlainToken::from_bytes([7; 32]),
            ControlKey::from_bytes([7; 32])
        );
        assert_eq!(shown, "PlainToken(hidden) ControlKey(hidden)");
    }
}
