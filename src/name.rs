//! Names and ids: each is parsed once and has one canonical form (INTERFACES 1).

use std::fmt;

use sha2::{Digest, Sha256};

/// Gives a type with `parse` and `Display` its other textual forms: `FromStr` and both directions of serde.
macro_rules! text_form {
    ($type:ty, $error:ty) => {
        impl std::str::FromStr for $type {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, $error> {
                Self::parse(text)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use text_form;

/// Declares a checked text: a newtype over `String` with `as_str` and `Display`.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Gives the canonical text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        text_form!($name, InvalidName);
    };
}

/// The longest project or cloister name, in bytes.
const MAX_NAME_BYTES: usize = 63;
/// The longest branch name, in bytes: git keeps a branch as a file name.
const MAX_BRANCH_BYTES: usize = 255;
/// Names that belong to Cloister's own containers and networks.
const RESERVED: [&str; 2] = ["guardian", "net"];
const CLOISTER_ID_DIGITS: usize = 12;
const PROJECT_ID_DIGITS: usize = 16;

/// Says why a text is not a name of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a {kind}: {flaw}", .text.escape_debug())]
pub struct InvalidName {
    text: String,
    kind: &'static str,
    flaw: Flaw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Flaw {
    #[error("it is empty")]
    Empty,
    #[error("no letter or digit is left of it")]
    NothingLeft,
    #[error("it is longer than {0} characters")]
    TooLong(usize),
    #[error("it may hold only lower case letters, digits, `-`, `_` and `.`")]
    Character,
    #[error("it must start and end with a letter or a digit")]
    Border,
    #[error("the name is reserved for Cloister itself")]
    Reserved,
    #[error("git refuses it as the name of a branch")]
    Branch,
    #[error("it must be {0} lower case hexadecimal digits")]
    Digits(usize),
}

impl InvalidName {
    fn new(kind: &'static str, text: &str, flaw: Flaw) -> Self {
        Self { text: text.to_owned(), kind, flaw }
    }
}

checked_text! {
    /// The name of a project: by default its directory's name.
    ProjectName
}
checked_text! {
    /// The name of a cloister: `<project>` or `<project>-<branch>`.
    CloisterName
}
checked_text! {
    /// The name of a git branch, as `git check-ref-format --branch` accepts it.
    BranchName
}
checked_text! {
    /// The id of a cloister: 12 hexadecimal digits that fit into a socket's path.
    CloisterId
}
checked_text! {
    /// The id of a project: 16 hexadecimal digits that stand for its path.
    ProjectId
}

impl ProjectName {
    const KIND: &str = "project name";

    /// Checks that `text` is a project name.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_name(Self::KIND, text)?;
        Ok(Self(text.to_owned()))
    }

    /// Makes a project name of a directory's name: upper case becomes lower case, other characters become `-`.
    ///
    /// # Errors
    /// When no letter or digit is left, or the result is reserved.
    pub fn from_directory(directory: &str) -> Result<Self, InvalidName> {
        let mut name = sanitised(directory);
        name.truncate(MAX_NAME_BYTES);
        let name = name.trim_matches(is_border);
        if name.is_empty() {
            return Err(InvalidName::new(Self::KIND, directory, Flaw::NothingLeft));
        }
        Self::parse(name)
    }
}

impl CloisterName {
    const KIND: &str = "cloister name";

    /// Checks that `text` is a cloister name.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_name(Self::KIND, text)?;
        Ok(Self(text.to_owned()))
    }

    /// Composes the name of the cloister for a project and, if one was asked for, a branch.
    ///
    /// # Errors
    /// When the composed name is longer than 63 characters, or the branch has no letter or digit to name it by.
    pub fn of(project: &ProjectName, branch: Option<&BranchName>) -> Result<Self, InvalidName> {
        let Some(branch) = branch else {
            return Self::parse(project.as_str());
        };
        let suffix = sanitised(branch.as_str());
        let suffix = suffix.trim_matches(is_border);
        if suffix.is_empty() {
            return Err(InvalidName::new(Self::KIND, branch.as_str(), Flaw::NothingLeft));
        }
        Self::parse(&format!("{project}-{suffix}"))
    }
}

impl BranchName {
    /// Checks that git would accept `text` as the name of a branch.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let fail = |flaw| Err(InvalidName::new("branch name", text, flaw));
        if text.is_empty() {
            fail(Flaw::Empty)
        } else if text.len() > MAX_BRANCH_BYTES {
            fail(Flaw::TooLong(MAX_BRANCH_BYTES))
        } else if is_branch(text) {
            Ok(Self(text.to_owned()))
        } else {
            fail(Flaw::Branch)
        }
    }
}

impl CloisterId {
    /// Checks that `text` is 12 lower case hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_digits("cloister id", text, CLOISTER_ID_DIGITS)?;
        Ok(Self(text.to_owned()))
    }

    /// Derives the id of the cloister `name` of the project at `path`.
    pub fn of(name: &CloisterName, path: &str) -> Self {
        let digest =
            Sha256::new().chain_update(name.as_str()).chain_update([0]).chain_update(path).finalize();
        Self(leading_digits(&digest, CLOISTER_ID_DIGITS))
    }
}

impl ProjectId {
    /// Checks that `text` is 16 lower case hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_digits("project id", text, PROJECT_ID_DIGITS)?;
        Ok(Self(text.to_owned()))
    }

    /// Derives the id of the project at `path`.
    pub fn of(path: &str) -> Self {
        Self(leading_digits(&Sha256::digest(path), PROJECT_ID_DIGITS))
    }
}

fn check_name(kind: &'static str, text: &str) -> Result<(), InvalidName> {
    let fail = |flaw| Err(InvalidName::new(kind, text, flaw));
    if text.is_empty() {
        return fail(Flaw::Empty);
    }
    if text.len() > MAX_NAME_BYTES {
        return fail(Flaw::TooLong(MAX_NAME_BYTES));
    }
    if !text.chars().all(is_name_character) {
        return fail(Flaw::Character);
    }
    if text.starts_with(is_border) || text.ends_with(is_border) {
        return fail(Flaw::Border);
    }
    if RESERVED.contains(&text) {
        return fail(Flaw::Reserved);
    }
    Ok(())
}

fn check_digits(kind: &'static str, text: &str, count: usize) -> Result<(), InvalidName> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() == count && text.bytes().all(is_digit) {
        Ok(())
    } else {
        Err(InvalidName::new(kind, text, Flaw::Digits(count)))
    }
}

fn is_name_character(character: char) -> bool {
    matches!(character, 'a'..='z' | '0'..='9' | '-' | '_' | '.')
}

/// Tells the characters that a name may hold, but neither start nor end with.
fn is_border(character: char) -> bool {
    matches!(character, '-' | '_' | '.')
}

fn sanitised(text: &str) -> String {
    text.chars()
        .map(|character| character.to_ascii_lowercase())
        .map(|character| if is_name_character(character) { character } else { '-' })
        .collect()
}

/// Follows `git check-ref-format --branch`, and refuses `HEAD` as `git branch` does.
fn is_branch(text: &str) -> bool {
    let is_forbidden =
        |c: char| c.is_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\');
    let is_component =
        |part: &str| !part.is_empty() && !part.starts_with('.') && part.strip_suffix(".lock").is_none();
    !text.starts_with('-')
        && !text.ends_with('.')
        && !text.contains("..")
        && !text.contains("@{")
        && !text.contains(is_forbidden)
        && !matches!(text, "@" | "HEAD")
        && text.split('/').all(is_component)
}

fn leading_digits(digest: &[u8], count: usize) -> String {
    let mut digits = hex(digest);
    digits.truncate(count);
    digits
}

/// Writes bytes as lower case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}
