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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn refused<T: fmt::Debug>(result: Result<T, InvalidName>, message: &str) {
        assert_eq!(result.unwrap_err().to_string(), message);
    }

    #[track_caller]
    fn from_directory(directory: &str, name: &str) {
        assert_eq!(
            ProjectName::from_directory(directory),
            Ok(ProjectName(name.to_owned()))
        );
    }

    #[track_caller]
    fn cloister(project: &str, branch: &str, name: &str) {
        let (project, branch) = (
            ProjectName::parse(project).unwrap(),
            BranchName::parse(branch).unwrap(),
        );
        assert_eq!(
            CloisterName::of(&project, Some(&branch)),
            Ok(CloisterName(name.to_owned()))
        );
    }

    #[test]
    fn a_project_name_is_kept_as_it_is() {
        for name in [
            "a",
            "7",
            "my-app",
            "my_app.v2",
            "net-tools",
            "guardian2",
            &"x".repeat(63),
        ] {
            assert_eq!(ProjectName::parse(name).unwrap().as_str(), name);
            assert_eq!(CloisterName::parse(name).unwrap().to_string(), name);
        }
    }

    #[test]
    fn a_text_that_is_no_project_name_is_refused_with_the_reason() {
        let border = "it must start and end with a letter or a digit";
        let character = "it may hold only lower case letters, digits, `-`, `_` and `.`";
        for (text, flaw) in [
            ("", "it is empty"),
            (".", border),
            ("..", border),
            ("-p", border),
            ("_a", border),
            ("a.", border),
            ("a/b", character),
            ("A", character),
            ("a b", character),
            ("ä", character),
            ("guardian", "the name is reserved for Cloister itself"),
            ("net", "the name is reserved for Cloister itself"),
        ] {
            refused(
                ProjectName::parse(text),
                &format!("`{text}` is not a project name: {flaw}"),
            );
            refused(
                CloisterName::parse(text),
                &format!("`{text}` is not a cloister name: {flaw}"),
            );
        }
        let long = "x".repeat(64);
        refused(
            ProjectName::parse(&long),
            &format!("`{long}` is not a project name: it is longer than 63 characters"),
        );
    }

    #[test]
    fn a_refusal_shows_control_characters_escaped() {
        refused(
            ProjectName::parse("a\x1b[31m\u{202e}"),
            "`a\\u{1b}[31m\\u{202e}` is not a project name: it may hold only lower case letters, digits, `-`, `_` \
             and `.`",
        );
    }

    #[test]
    fn a_directory_gives_a_project_name() {
        from_directory("cloister", "cloister");
        from_directory("MyApp", "myapp");
        from_directory("my app", "my-app");
        from_directory(".dotfiles", "dotfiles");
        from_directory("--(x)--", "x");
        from_directory("café", "caf");
        from_directory(&"y".repeat(80), &"y".repeat(63));
        from_directory(&format!("{}.{}", "y".repeat(62), "z"), &"y".repeat(62));
    }

    #[test]
    fn a_directory_that_leaves_no_name_is_refused() {
        for directory in ["", ".", "..", "日本", "---"] {
            refused(
                ProjectName::from_directory(directory),
                &format!("`{directory}` is not a project name: no letter or digit is left of it"),
            );
        }
        refused(
            ProjectName::from_directory("Guardian"),
            "`guardian` is not a project name: the name is reserved for Cloister itself",
        );
    }

    #[test]
    fn a_cloister_is_named_after_project_and_branch() {
        cloister("app", "main", "app-main");
        cloister("app", "feature/Login", "app-feature-login");
        cloister("app", "fix_#12", "app-fix_-12");
        let project = ProjectName::parse("app").unwrap();
        assert_eq!(
            CloisterName::of(&project, None),
            Ok(CloisterName("app".to_owned()))
        );
        let branch = BranchName::parse("日本").unwrap();
        refused(
            CloisterName::of(&project, Some(&branch)),
            "`日本` is not a cloister name: no letter or digit is left of it",
        );
        let branch = BranchName::parse(&"b".repeat(60)).unwrap();
        refused(
            CloisterName::of(&project, Some(&branch)),
            &format!("`app-{branch}` is not a cloister name: it is longer than 63 characters"),
        );
    }

    #[test]
    fn a_branch_is_what_git_accepts() {
        for name in ["main", "feature/login", "v1.2", "a@b", "ärger", "a-", "lock"] {
            assert_eq!(BranchName::parse(name).unwrap().as_str(), name);
        }
        refused(BranchName::parse(""), "`` is not a branch name: it is empty");
        for name in [
            "-d", "a..b", "../x", "a/../b", "/a", "a/", "a//b", ".a", "a/.b", "a.lock", "a.lock/b", "a.",
            "a b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "@", "a@{1}", "HEAD", "a\u{7f}", "a\n",
        ] {
            let message = format!(
                "`{}` is not a branch name: git refuses it as the name of a branch",
                name.escape_debug()
            );
            refused(BranchName::parse(name), &message);
        }
    }

    #[test]
    fn ids_are_the_first_digits_of_a_hash() {
        // printf 'app\0/home/u/app' | sha256sum; printf /home/u/app | sha256sum
        let name = CloisterName::parse("app").unwrap();
        assert_eq!(
            CloisterId::of(&name, "/home/u/app"),
            CloisterId("46f4d90b6a8f".to_owned())
        );
        assert_eq!(
            ProjectId::of("/home/u/app"),
            ProjectId("2bf7c3a66bb61232".to_owned())
        );
        refused(
            CloisterId::parse("0123456789AB"),
            "`0123456789AB` is not a cloister id: it must be 12 lower case hexadecimal digits",
        );
        refused(
            ProjectId::parse("0123456789ab"),
            "`0123456789ab` is not a project id: it must be 16 lower case hexadecimal digits",
        );
    }

    #[test]
    fn serde_goes_through_the_same_parser() {
        let name: ProjectName = serde_json::from_str("\"my-app\"").unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"my-app\"");
        let error = serde_json::from_str::<ProjectName>("\"../x\"").unwrap_err();
        assert!(
            error.to_string().starts_with("`../x` is not a project name"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn what_a_directory_gives_is_a_project_name(directory in "\\PC{0,100}") {
            if let Ok(name) = ProjectName::from_directory(&directory) {
                prop_assert_eq!(ProjectName::parse(name.as_str()), Ok(name));
            }
        }

        #[test]
        fn ids_parse_as_they_are_shown(name in "[a-z0-9]{1,63}", path in "\\PC*") {
            if let Ok(name) = CloisterName::parse(&name) {
                let id = CloisterId::of(&name, &path);
                prop_assert_eq!(CloisterId::parse(id.as_str()), Ok(id));
            }
            let id = ProjectId::of(&path);
            prop_assert_eq!(ProjectId::parse(id.as_str()), Ok(id));
        }
    }
}
