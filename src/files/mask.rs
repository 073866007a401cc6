//! Which files are hidden: those whose names say that they hold secrets, and Unix sockets (F15, K1, K2).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::kept::Kept;
use super::pattern::{is_literal, matches};
use super::walk::{Entry, Kind, Walk, look_at};
use super::{FilesError, beneath};

/// What a hidden file holds inside.
pub const MASK_TEXT: &str = "# Cloister hides this file from the sandbox (files.mask).\n";

/// How much is read of a file whose name says too little, in bytes.
const MAX_READ_BYTES: u64 = 256 * 1024;

/// How many files can be hidden; each takes a descriptor while the sandbox is made.
const MAX_MASKS: usize = 400;

/// What is hidden by default, and why. Where one of these matches what holds no secret, `!pattern` in `files.mask`
/// shows it again.
const DEFAULTS: [(&str, &str); 26] = [
    (".env", "environment of the application: passwords, keys of services"),
    (".env.*", "the same for one stage or one developer"),
    ("!.env.example", "shows what to fill in"),
    ("!.env.sample", "shows what to fill in"),
    ("!.env.template", "shows what to fill in"),
    ("!.env.dist", "shows what to fill in"),
    ("!.env.defaults", "shows what to fill in"),
    ("!.env.schema", "says what to fill in"),
    (".envrc.private", "direnv's part that is not shared"),
    ("*.pem", "private keys; certificates alone are shown"),
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
    (".npmrc", "tokens of npm's registries; settings alone are shown"),
    (".yarnrc.yml", "tokens of npm's registries; settings alone are shown"),
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

/// Tells whether the defaults hide something: by its name, and where the name says too little by what it holds.
fn is_secret(root: &Path, entry: &Entry, path: &str) -> bool {
    if judge(DEFAULTS.iter().map(|(pattern, _)| *pattern), path) != Verdict::Hidden {
        return false;
    }
    let name = path.rsplit('/').next().unwrap_or_default().to_lowercase();
    let holds: fn(&str) -> bool = match name.as_str() {
        _ if matches("*.pem", path) => |text| text.contains("PRIVATE KEY"),
        ".npmrc" | ".yarnrc.yml" => |text| text.lines().any(holds_token),
        _ => return true,
    };
    let read = beneath::open_root(root).and_then(|top| beneath::read(top, &entry.path, MAX_READ_BYTES));
    // What can't be read, a link for one, may hold anything.
    read.map_or(true, |(_, text)| holds(&String::from_utf8_lossy(&text)))
}

/// Tells whether a line of npm's settings holds a token itself, not the name of a variable.
fn holds_token(line: &str) -> bool {
    let line = line.trim();
    let is_about_tokens = line.to_lowercase().contains("auth") || line.contains("_password");
    let Some((_, value)) = line.split_once('=').or_else(|| line.split_once(": ")) else { return false };
    let value = value.trim().trim_matches(['"', '\'']);
    let says_nothing = value.is_empty() || value.starts_with("${") || matches!(value, "true" | "false");
    is_about_tokens && !says_nothing && !line.starts_with(['#', ';'])
}

/// What is known when it is chosen what is hidden in a project.
#[derive(Debug, Clone, Copy)]
pub struct Hiding<'a> {
    /// The project.
    pub root: &'a Path,
    /// What lies there.
    pub walk: &'a Walk,
    /// The user's patterns.
    pub wanted: &'a [String],
    /// What was hidden in earlier sandboxes.
    pub kept: &'a Kept,
}

/// What is hidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masks {
    /// What is hidden now.
    pub masks: Vec<Mask>,
    /// What is to be remembered.
    pub kept: Kept,
}

/// Chooses what is hidden in a project. `known` tells which of the files that the defaults name hold only what git
/// keeps anyway: those stay visible. What was hidden once is hidden again, whatever the walk reached and git says:
/// a sandbox writes the index, and the host's `commit -a` then keeps the file.
///
/// # Errors
/// [`FilesError::TooMany`] when it is more than can be hidden.
pub fn masks(
    hiding: &Hiding<'_>,
    known: impl FnOnce(Vec<PathBuf>) -> BTreeSet<PathBuf>,
) -> Result<Masks, FilesError> {
    let Hiding { root, walk, wanted, kept } = *hiding;
    let (mut hidden, mut by_default) = (BTreeSet::new(), Vec::new());
    let literal = wanted.iter().filter(|pattern| !pattern.starts_with('!') && is_literal(pattern));
    let named = literal.filter_map(|pattern| look_at(root, Path::new(pattern.trim_matches('/'))));
    let named: Vec<Entry> = named.collect();
    for entry in walk.entries.iter().chain(&named) {
        // A name that is no text is matched as far as it is.
        let path = &*entry.path.to_string_lossy();
        match hiding.judge(&entry.path) {
            Verdict::Hidden => hidden.extend(mask(root, entry, true)),
            Verdict::Unsaid if entry.kind == Kind::Socket => hidden.extend(mask(root, entry, false)),
            Verdict::Unsaid if is_secret(root, entry, path) => {
                by_default.extend(mask(root, entry, false));
            }
            Verdict::Shown | Verdict::Unsaid => {}
        }
    }
    if !by_default.is_empty() {
        let known = known(by_default.iter().map(|mask| mask.path.clone()).collect());
        hidden.extend(by_default.into_iter().filter(|mask| !known.contains(&mask.path)));
    }
    // What the user shows by now, or no longer hides, is forgotten.
    let earlier = || {
        kept.masks().filter(|(mask, is_users)| match hiding.judge(&mask.path) {
            Verdict::Hidden => true,
            Verdict::Shown => false,
            Verdict::Unsaid => !is_users,
        })
    };
    hidden.extend(earlier().map(|(mask, _)| mask).filter(|mask| is_there(root, mask)));
    let masks = with_second_names(walk, &hidden);
    let is_users = |mask: &Mask| hiding.judge(&mask.path) == Verdict::Hidden;
    let remembered = masks.iter().map(|mask| (mask.clone(), is_users(mask))).collect();
    let kept = Kept::of(remembered, earlier());
    Ok(Masks { masks: hiding.mountable(masks)?, kept })
}

impl Hiding<'_> {
    fn judge(&self, path: &Path) -> Verdict {
        judge(self.wanted.iter().map(String::as_str), &path.to_string_lossy())
    }

    /// What can be mounted to hide all this, and what can't be looked into.
    fn mountable(&self, masks: BTreeSet<Mask>) -> Result<Vec<Mask>, FilesError> {
        let directory = |path: PathBuf| Mask { path, is_directory: true };
        let closed = self.walk.closed.iter().filter(|path| self.judge(path) != Verdict::Shown);
        let closed = closed.cloned().map(directory);
        // A directory whose name is no text can't be pinned, and what is hidden in it could be moved: it is hidden whole.
        let unnamed = |mask: Mask| {
            let above = mask.path.ancestors().skip(1).filter(|above| above.to_str().is_none()).last();
            above.map(Path::to_owned).map_or(mask, directory)
        };
        let mut masks: BTreeSet<Mask> = masks.into_iter().map(unnamed).chain(closed).collect();
        let directories: BTreeSet<PathBuf> =
            masks.iter().filter(|mask| mask.is_directory).map(|mask| mask.path.clone()).collect();
        // What lies in a hidden directory can't be mounted over any more.
        masks.retain(|mask| !mask.path.ancestors().skip(1).any(|above| directories.contains(above)));
        if masks.len() > MAX_MASKS {
            return Err(FilesError::TooMany { count: masks.len(), max: MAX_MASKS });
        }
        Ok(masks.into_iter().collect())
    }
}

/// Tells whether what was hidden earlier still is there, and is what it was.
fn is_there(root: &Path, mask: &Mask) -> bool {
    look_at(root, &mask.path).is_some_and(|found| match found.kind {
        Kind::File | Kind::Socket => !mask.is_directory,
        Kind::Directory => mask.is_directory,
        Kind::Link | Kind::Other => false,
    })
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
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

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
            self.masks_after(&Kept::default(), wanted, known).0
        }

        fn masks_after(&self, kept: &Kept, wanted: &[&str], known: &[&str]) -> (Vec<String>, Kept) {
            let wanted: Vec<String> = wanted.iter().map(|&pattern| pattern.to_owned()).collect();
            let known = known.iter().map(PathBuf::from).collect();
            let walk = walk(&self.root()).unwrap();
            let hiding = Hiding { root: &self.root(), walk: &walk, wanted: &wanted, kept };
            let masks = masks(&hiding, |_| known).unwrap();
            let paths = masks.masks.iter().map(|mask| mask.path.to_string_lossy().into_owned()).collect();
            (paths, masks.kept)
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
        fs::write(project.root().join("certs/server.pem"), "-----BEGIN RSA PRIVATE KEY-----").unwrap();
        fs::write(project.root().join("ca.pem"), "-----BEGIN CERTIFICATE-----").unwrap();
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
    fn f15_npms_settings_are_hidden_when_they_hold_a_token() {
        let check = |line: &str, expected: bool| assert_eq!(holds_token(line), expected, "{line}");
        check("//registry.example.com/:_authToken=npm_abc", true);
        check("_auth = \"abc==\"", true);
        check("//r/:_password=abc", true);
        check("  npmAuthToken: abc", true);
        check("//registry.example.com/:_authToken=${NPM_TOKEN}", false);
        check("npmAuthToken: \"${NPM_TOKEN}\"", false);
        check("always-auth=true", false);
        check("registry=https://registry.example.com/", false);
        check("# _authToken=x", false);
    }

    #[test]
    fn f15_what_git_keeps_is_shown_unless_the_user_says_so() {
        let project = Project::new(&[".env", "a.key"]);
        assert_eq!(project.masks(&[], &[".env"]), ["a.key"]);
        assert_eq!(project.masks(&[".env"], &[".env"]), [".env", "a.key"]);
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

    #[test]
    fn f15_what_was_hidden_once_stays_hidden_unless_the_user_shows_it() {
        let project = Project::new(&[".env", "node_modules/x/.env", "deep/token"]);
        let file = project.root().join("kept/masks.json");
        let (_, kept) = project.masks_after(&Kept::default(), &["deep/*", "node_modules/x/.env"], &[]);
        kept.keep(&file).unwrap();
        let kept = Kept::load(&file).unwrap();
        let after = |wanted: &[&str]| project.masks_after(&kept, wanted, &[".env"]);
        // Git says that it keeps `.env` now; the user's patterns are gone.
        assert_eq!(after(&[]).0, [".env"]);
        assert_eq!(after(&["!.env"]).0, [] as [&str; 0]);
        assert_eq!(after(&["**/.env"]).0, [".env", "node_modules/x/.env"]);
        fs::rename(project.root().join(".env"), project.root().join("x")).unwrap();
        symlink("x", project.root().join(".env")).unwrap();
        let (paths, again) = after(&[]);
        assert_eq!(paths, ["x"]);
        fs::rename(project.root().join("x"), project.root().join(".env")).unwrap();
        assert_eq!(
            project.masks_after(&again, &[], &[".env"]).0,
            [".env"],
            "it is remembered while it is away"
        );
    }

    #[test]
    fn f15_directories_that_cannot_be_listed_are_hidden_whole() {
        if rustix::process::geteuid().is_root() {
            return;
        }
        for mode in [0o311, 0, 0o644] {
            let project = Project::new(&["app/.env", "open/.env"]);
            let app = project.root().join("app");
            fs::set_permissions(&app, fs::Permissions::from_mode(mode)).unwrap();
            let masks = project.masks(&[], &[]);
            let shown = project.masks(&["!app"], &[]);
            fs::set_permissions(&app, fs::Permissions::from_mode(0o755)).unwrap();
            assert_eq!(masks, ["app", "open/.env"], "{mode:o}");
            assert_eq!(shown, ["open/.env"], "{mode:o}");
        }
    }

    #[test]
    fn f15_names_that_are_no_text_are_hidden() {
        let project = Project::new(&[]);
        let name = |bytes: &[u8]| project.root().join(std::ffi::OsStr::from_bytes(bytes));
        fs::write(name(b".env.\xff"), "").unwrap();
        fs::create_dir(name(b"a\xff")).unwrap();
        fs::write(name(b"a\xff/.env"), "").unwrap();
        assert_eq!(project.masks(&[], &[]), [".env.\u{fffd}", "a\u{fffd}"]);
    }
}
