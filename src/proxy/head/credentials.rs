//! What a client shows to prove which sandbox it speaks for.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret as _, SecretString};

use crate::token::HashedToken;

/// The content of `Proxy-Authorization`: the token is the password of `Basic`, or the value of `Bearer`.
#[derive(Default)]
pub(in crate::proxy) enum Credentials {
    /// The field was not sent: many clients wait for the challenge.
    #[default]
    Missing,
    /// The field holds no token.
    Unusable,
    /// The field holds a token, right or wrong.
    Presented(SecretString),
}

impl Credentials {
    /// Takes the value of one field in.
    ///
    /// # Errors
    /// A second field is refused: two readers could pick different ones.
    pub(super) fn present(&mut self, value: &[u8]) -> Result<(), &'static str> {
        if !matches!(self, Self::Missing) {
            return Err("there is more than one Proxy-Authorization field");
        }
        *self = token(value).map_or(Self::Unusable, Self::Presented);
        Ok(())
    }

    pub(in crate::proxy) fn are_missing(&self) -> bool {
        matches!(self, Self::Missing)
    }

    pub(in crate::proxy) fn match_token(&self, token: &HashedToken) -> bool {
        match self {
            Self::Presented(presented) => token.matches(presented.expose_secret()),
            Self::Missing | Self::Unusable => false,
        }
    }
}

fn token(value: &[u8]) -> Option<SecretString> {
    let (scheme, rest) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    let rest = rest.trim_start_matches(' ');
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(SecretString::from(rest));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = SecretString::from(String::from_utf8(BASE64_STANDARD.decode(rest).ok()?).ok()?);
    let (_user, password) = pair.expose_secret().split_once(':')?;
    Some(SecretString::from(password))
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Missing => "Missing",
            Self::Unusable => "Unusable",
            Self::Presented(_) => "Presented(…)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &str, expected: Option<&str>) {
        let token = token(value.as_bytes());
        assert_eq!(token.as_ref().map(secrecy::ExposeSecret::expose_secret), expected, "{value}");
    }

    #[test]
    fn i4_token_is_the_password_of_basic_or_the_value_of_bearer() {
        check("Basic Y2xvaXN0ZXI6YWJj", Some("abc"));
        check("bAsIc Om5vLXVzZXI=", Some("no-user"));
        check("Basic dTphOmI=", Some("a:b"));
        check("Bearer abc", Some("abc"));
        check("BEARER  abc", Some("abc"));
        check("Basic ???", None);
        check("Basic bm9jb2xvbg==", None);
        check("Digest abc", None);
        check("Negotiate", None);
        check("", None);
    }

    #[test]
    fn i3_token_stays_out_of_debug_output() {
        let mut credentials = Credentials::default();
        credentials.present(b"Bearer verysecret").unwrap();
        assert_eq!(format!("{credentials:?}"), "Presented(…)");
    }
}
