//! Which files are hidden: those whose names say that they hold secrets, and Unix sockets (F15, K1, K2).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::FilesError;
use super::pattern::{is_literal, matches};
use super::walk::{Entry, Kind, Walk, look_at};

/// What a hidden file holds inside.
pub const MASK_TEXT: &str = "# Cloister hides this file from the sandbox (files.mask).\n";

/// How many files can be hidden; each takes a descriptor while the sandbox is made.
const MAX_MASKS: usize = 400;

/// What is hidden by default, and why. Certificates and settings without a secret are not meant; where one of these
/// matches them, `!pattern` in `files.mask` shows them again.
const DEFAULTS: [(&str, &str); 24] = [
    (".env", "environment of the application: passwords, keys of services"),
    (".env.*", "the same for one stage or one developer"),
    ("!.env.example", "shows what to fill in"),
    ("!.env.sample", "shows what to fill in"),
    ("!.env.template", "shows what to fill in"),
    ("!.env.dist", "shows what to fill in"),
    ("!.env.defaults", "shows what to fill in"),
    ("!.env.schema", "says what to fill in"),
    (".envrc.private", "direnv's part that is not shared"),
    ("*.pem", "private keys (certificates often lie in it too)"),
    ("*.key", "private keys"),
    ("*.p12", "private keys with their certificates"),
    ("*.pfx", "private keys with their certificates"),
    ("*.jks", "Java key stores"),
    ("*.keystore", "Android and Java key stores"),
    ("id_rsa", "SSH keys"),
    ("id_ecdsa", "SSH keys"),
    ("id_ed25519", "SSH keys"),
    (".netrc", "passwords by host"),
    (".git-credentials", "passwords by host, of git"),
    (".pypirc", "tokens to publish Python packages"),
    ("credentials.json", "OAuth and cloud clients"),
    ("service-account*.json", "keys of cloud accounts"),
    ("*.tfstate*", "Terraform's state: every secret in clear text"),
];

/// Something that is hidden.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mask {
    /// Where it lies, below the project.
    pub path: PathBuf,
    /// Whether an empty directory takes its place, not a file.
    pub is_directory: bool,
}

/// What a list of patterns says about a path; the last one that matches decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Hidden,
    Shown,
    Unsaid,
}

fn judge<'a>(patterns: impl DoubleEndedIterator<Item = &'a str>, path: &str) -> Verdict {
    let mut reversed = patterns.rev().map(|pattern| match pattern.strip_prefix('!') {
        Some(pattern) => (pattern, Verdict::Shown),
        None => (pattern, Verdict::Hidden),
    });
    reversed.find(|(pattern, _)| matches(pattern, path)).map_or(Verdict::Unsaid, |(_, verdict)| verdict)
}

/// Chooses what is hidden in a project. `wanted` are the user's patterns; `known` tells which of the files that the
/// defaults name hold only what git keeps anyway: those stay visible.
///
/// # Errors
/// [`FilesError::TooMany`] when it is more than can be hidden.
pub fn masks(
    root: &Path,
    walk: &Walk,
    wanted: &[String],
    known: impl FnOnce(Vec<PathBuf>) -> BTreeSet<PathBuf>,
) -> Result<Vec<Mask>, FilesError> {
    let (mut hidden, mut by_default) = (BTreeSet::new(), Vec::new());
    let literal = wanted.iter().filter(|pattern| !pattern.starts_with('!') && is_literal(pattern));
    let named = literal.filter_map(|pattern| look_at(root, Path::new(pattern.trim_matches('/'))));
    let named: Vec<Entry> = named.collect();
    for entry in walk.entries.iter().chain(&named) {
        let Some(path) = entry.path.to_str() else { continue };
        match judge(wanted.iter().map(String::as_str), path) {
            Verdict::Hidden => hidden.extend(mask(root, entry, true)),
            Verdict::Unsaid if entry.kind == Kind::Socket => hidden.extend(mask(root, entry, false)),
            Verdict::Unsaid
                if judge(DEFAULTS.iter().map(|(pattern, _)| *pattern), path) == Verdict::Hidden =>
            {
                by_default.extend(mask(root, entry, false));
            }
            Verdict::Shown | Verdict::Unsaid => {}
        }
    }
    if !by_default.is_empty() {
        let known = known(by_default.iter().map(|mask| mask.path.clone()).collect());
        hidden.extend(by_default.into_iter().filter(|mask| !known.contains(&mask.path)));
    }
    let mut masks = with_second_names(walk, &hidden);
    let directories: Vec<PathBuf> =
        masks.iter().filter(|mask| mask.is_directory).map(|mask| mask.path.clone()).collect();
    // What lies in a hidden directory can't be mounted over any more.
    masks.retain(|mask| {
        !directories.iter().any(|directory| mask.path != *directory && mask.path.starts_with(directory))
    });
    if masks.len() > MAX_MASKS {
        return Err(FilesError::TooMany { count: masks.len(), max: MAX_MASKS });
    }
    Ok(masks.into_iter().collect())
}

/// What hides an entry: a link is left, and what it leads to inside the project is hidden.
fn mask(root: &Path, entry: &Entry, with_directories: bool) -> Option<Mask> {
    let path = entry.path.clone();
    match entry.kind {
        Kind::File | Kind::Socket => Some(Mask { path, is_directory: false }),
        Kind::Directory if with_directories => Some(Mask { path, is_directory: true }),
        Kind::Directory | Kind::Other => None,
        Kind::Link => {
            let target = fs::canonicalize(root.join(path)).ok()?;
            let found = look_at(root, target.strip_prefix(root).ok()?)?;
            (found.kind == Kind::File).then_some(Mask { path: found.path, is_directory: false })
        }
    }
}

/// Adds the other names of what is hidden.
fn with_second_names(walk: &Walk, hidden: &BTreeSet<Mask>) -> BTreeSet<Mask> {
    let is_hidden = |entry: &&Entry| hidden.iter().any(|mask| mask.path == entry.path);
    let shared: Vec<_> = walk
        .entries
        .iter()
        .filter(|entry| entry.kind == Kind::File && entry.names > 1)
        .filter(is_hidden)
        .map(|entry| entry.identity)
        .collect();
    let others = walk.entries.iter().filter(|entry| shared.contains(&entry.identity));
    others.map(|entry| Mask { path: entry.path.clone(), is_directory: false }).chain(hidden.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::walk;
    use std::os::unix::fs::symlink;

    struct Project(tempfile::TempDir);

    impl Project {
        fn new(files: &[&str]) -> Self {
            let project = Self(tempfile::tempdir().unwrap());
            for file in files {
                let path = project.root().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, file).unwrap();
            }
            project
        }

        fn root(&self) -> PathBuf {
            fs::canonicalize(self.0.path()).unwrap()
        }

        fn masks(&self, wanted: &[&str], known: &[&str]) -> Vec<String> {
            let wanted: Vec<String> = wanted.iter().map(|&pattern| pattern.to_owned()).collect();
            let known = known.iter().map(PathBuf::from).collect();
            let walk = walk(&self.root()).unwrap();
            let masks = masks(&self.root(), &walk, &wanted, |_| known).unwrap();
            masks.iter().map(|mask| mask.path.to_str().unwrap().to_owned()).collect()
        }
    }

    #[test]
    fn f15_secrets_are_known_by_their_names() {
        let secret = [
            ".env",
            ".env.local",
            "a/.env.production",
            "certs/server.pem",
            "id_ed25519",
            "infra/x.tfstate.backup",
        ];
        let open = [
            ".env.example",
            ".envrc",
            "id_ed25519.pub",
            "environment.ts",
            "key.rs",
            "monkey",
            "package.json",
        ];
        let project = Project::new(&[&secret[..], &open[..]].concat());
        let mut expected = secret.map(str::to_owned);
        expected.sort();
        assert_eq!(project.masks(&[], &[]), expected);
    }

    #[test]
    fn f15_what_the_user_says_decides() {
        let project =
            Project::new(&[".env", "config/prod.json", "config/dev.json", "secrets/a", "secrets/b/c"]);
        assert_eq!(project.masks(&["config/p*.json"], &[]), [".env", "config/prod.json"]);
        assert_eq!(project.masks(&["!.env"], &[]), [] as [&str; 0]);
        assert_eq!(project.masks(&["secrets/", "secrets/a"], &[]), [".env", "secrets"]);
        assert_eq!(project.masks(&["*.json", "!config/dev.json"], &[]), [".env", "config/prod.json"]);
    }

    #[test]
    fn f15_what_git_keeps_is_shown_unless_the_user_says_so() {
        let project = Project::new(&[".env", "a.pem"]);
        assert_eq!(project.masks(&[], &[".env"]), ["a.pem"]);
        assert_eq!(project.masks(&[".env"], &[".env"]), [".env", "a.pem"]);
    }

    #[test]
    fn f15_a_name_without_a_star_is_hidden_wherever_it_lies() {
        let project = Project::new(&["node_modules/private/token"]);
        assert_eq!(project.masks(&["node_modules/private/token"], &[]), ["node_modules/private/token"]);
    }

    #[test]
    fn f12_second_names_and_what_links_lead_to_are_hidden_too() {
        let project = Project::new(&[".env", "settings", "other"]);
        fs::hard_link(project.root().join(".env"), project.root().join("harmless")).unwrap();
        symlink("settings", project.root().join(".env.local")).unwrap();
        symlink("/etc/passwd", project.root().join(".env.etc")).unwrap();
        assert_eq!(project.masks(&[], &[]), [".env", "harmless", "settings"]);
    }

    #[test]
    fn k1_k2_sockets_are_hidden() {
        let project = Project::new(&["a"]);
        let _socket = std::os::unix::net::UnixListener::bind(project.root().join("docker.sock")).unwrap();
        assert_eq!(project.masks(&[], &[]), ["docker.sock"]);
        assert_eq!(project.masks(&["!docker.sock"], &[]), [] as [&str; 0]);
    }
}
