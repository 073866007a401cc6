//! The trust diff: what has changed of all that the host would execute (F7).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::class::{Rank, classify};
use super::walk::{Entry, Kind, walk};
use super::{FilesError, Walk, beneath};
use crate::name::hex;
use crate::paths;

/// Up to which size a file is hashed, in bytes. Of a larger one its size and the time of its last change count, which
/// nobody can set.
const MAX_HASHED_BYTES: u64 = 1024 * 1024;

/// How many files of one git directory are looked at.
const MAX_GIT_FILES: usize = 1000;

/// What the host would execute in a project, as it was when a sandbox was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// The project.
    pub directory: PathBuf,
    /// The git directories in which hooks and settings lie.
    git_dirs: Vec<PathBuf>,
    /// When it was taken, in nanoseconds since 1970.
    taken: u64,
    /// What was there, by path.
    files: BTreeMap<String, Print>,
}

/// What a file was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Print {
    content: String,
    is_executable: bool,
    #[serde(skip)]
    born: Option<u64>,
    #[serde(skip)]
    leads_out: bool,
}

/// How something has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// It was not there.
    Added,
    /// Its content is another.
    Changed,
    /// It is not there any more.
    Removed,
    /// It was no program.
    MadeExecutable,
}

impl Changed {
    /// The words that users read.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
            Self::MadeExecutable => "made executable",
        }
    }
}

/// One line of the trust diff.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// How soon the host executes it.
    pub rank: Rank,
    /// What happened to it.
    pub changed: Changed,
    /// Where it lies, below the project; text that a sandbox may have chosen.
    pub path: String,
    /// What executes it.
    pub why: &'static str,
}

impl Baseline {
    /// Remembers what a walk found, and what lies in the git directories.
    pub fn take(root: &Path, walk: &Walk, git_dirs: &[PathBuf]) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            directory: root.to_owned(),
            git_dirs: git_dirs.to_owned(),
            taken: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            files: prints(root, walk, git_dirs),
        }
    }

    /// Reads a baseline; `None` when there is none.
    pub fn load(path: &Path) -> Result<Option<Self>, FilesError> {
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| FilesError::Baseline { path: path.to_owned(), source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(paths::PathsError::io("read", path)(error).into()),
        }
    }

    /// Writes the baseline.
    pub fn keep(&self, path: &Path) -> Result<(), FilesError> {
        let text = serde_json::to_vec(self)
            .map_err(|source| FilesError::Baseline { path: path.to_owned(), source })?;
        Ok(paths::write_atomic(path, &text)?)
    }

    /// What has changed since, the most urgent first.
    pub fn changes(&self) -> Result<Vec<Change>, FilesError> {
        let now = prints(&self.directory, &walk(&self.directory)?, &self.git_dirs);
        let mut changes: Vec<Change> = now
            .iter()
            .filter_map(|(path, print)| {
                let changed = self.change(path, print)?;
                let (rank, why) = judge(path, print);
                Some(Change { rank, changed, path: path.clone(), why })
            })
            .collect();
        let removed = self.files.keys().filter(|path| !now.contains_key(*path));
        // A program that has gone can't be called; a hook that has gone no longer checks anything.
        changes.extend(removed.filter_map(|path| {
            let (rank, why) = classify(path)?;
            Some(Change { rank, changed: Changed::Removed, path: path.clone(), why })
        }));
        changes.sort_by(|one, other| (one.rank, &one.path).cmp(&(other.rank, &other.path)));
        Ok(changes)
    }

    fn change(&self, path: &str, now: &Print) -> Option<Changed> {
        match self.files.get(path) {
            Some(before) if before.content != now.content => Some(Changed::Changed),
            Some(before) if now.is_executable && !before.is_executable => Some(Changed::MadeExecutable),
            Some(_) => None,
            None if now.is_executable && now.born.is_some_and(|born| born < self.taken) => {
                Some(Changed::MadeExecutable)
            }
            None => Some(Changed::Added),
        }
    }
}

fn judge(path: &str, print: &Print) -> (Rank, &'static str) {
    classify(path).unwrap_or(if print.leads_out {
        (Rank::WhenCalled, "a link that leads out of the project")
    } else {
        (Rank::WhenCalled, "a program")
    })
}

fn prints(root: &Path, walk: &Walk, git_dirs: &[PathBuf]) -> BTreeMap<String, Print> {
    let mut prints = BTreeMap::new();
    if let Ok(top) = beneath::open_root(root) {
        let found = walk.entries.iter().filter_map(|entry| print(&top, root, entry));
        prints.extend(found);
    }
    for path in &walk.repositories {
        let content = "a repository".to_owned();
        let print = Print { content, is_executable: false, born: None, leads_out: false };
        prints.insert(path.to_string_lossy().into_owned(), print);
    }
    for git_dir in git_dirs {
        prints.extend(in_git_dir(root, git_dir));
    }
    prints
}

/// What is remembered of an entry: nothing unless the host would execute it.
fn print(top: &std::os::fd::OwnedFd, root: &Path, entry: &Entry) -> Option<(String, Print)> {
    let path = entry.path.to_string_lossy().into_owned();
    let is_known = classify(&path).is_some();
    match entry.kind {
        Kind::File => {
            let is_executable = entry.mode & 0o111 != 0;
            if !is_known && !is_executable {
                return None;
            }
            let (content, born) = content(top, &entry.path).ok()?;
            Some((path, Print { content, is_executable, born, leads_out: false }))
        }
        Kind::Link => {
            let target = fs::read_link(root.join(&entry.path)).ok()?;
            let leads_out = leads_out(&entry.path, &target);
            let content = format!("link to {}", target.display());
            (is_known || leads_out)
                .then_some((path, Print { content, is_executable: false, born: None, leads_out }))
        }
        Kind::Directory | Kind::Socket | Kind::Other => None,
    }
}

/// Tells whether a link below the project names something outside, by its words.
fn leads_out(link: &Path, target: &Path) -> bool {
    let mut depth = link.components().count() - 1;
    for part in target.components() {
        match part {
            Component::Prefix(_) | Component::RootDir => return true,
            Component::ParentDir if depth == 0 => return true,
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
        }
    }
    false
}

/// What stands for a file's content, and when the file was made.
fn content(top: &std::os::fd::OwnedFd, path: &Path) -> io::Result<(String, Option<u64>)> {
    let (file, content) = beneath::read(top, path, MAX_HASHED_BYTES + 1)?;
    let metadata = file.metadata()?;
    let born = metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let born = born.and_then(|born| u64::try_from(born.as_nanos()).ok());
    if metadata.len() > MAX_HASHED_BYTES {
        let mark = format!("{} bytes, {}.{:09}", metadata.len(), metadata.ctime(), metadata.ctime_nsec());
        return Ok((mark, born));
    }
    Ok((hex(&Sha256::digest(&content)), born))
}

/// The hooks and settings of a git directory, and an interrupted rebase that would run commands.
fn in_git_dir(root: &Path, git_dir: &Path) -> BTreeMap<String, Print> {
    let mut prints = BTreeMap::new();
    let Ok(top) = beneath::open_root(git_dir) else { return prints };
    let shown = git_dir.strip_prefix(root).unwrap_or(git_dir);
    let mut names: BTreeSet<PathBuf> =
        ["config", "config.worktree", "commondir", "info/attributes"].iter().map(PathBuf::from).collect();
    names.extend(listed(git_dir, "hooks").filter(|path| path.extension().is_none_or(|it| it != "sample")));
    names.extend(listed(git_dir, "remotes").chain(listed(git_dir, "branches")));
    for worktree in listed(git_dir, "worktrees") {
        names.extend(["config.worktree", "rebase-merge/git-rebase-todo"].map(|name| worktree.join(name)));
    }
    names.insert("rebase-merge/git-rebase-todo".into());
    for name in names {
        let Ok((_, text)) = beneath::read(&top, &name, MAX_HASHED_BYTES) else { continue };
        // What stands in for an absent file, and an ordinary rebase, run nothing.
        let is_harmless = if name.ends_with("git-rebase-todo") {
            let lines = String::from_utf8_lossy(&text).into_owned();
            !lines.lines().any(|line| line.starts_with("exec ") || line.starts_with("x "))
        } else {
            text.is_empty() || (name.ends_with("commondir") && text == b"./\n")
        };
        if is_harmless {
            continue;
        }
        if let Ok((content, born)) = content(&top, &name) {
            let path = shown.join(&name).to_string_lossy().into_owned();
            prints.insert(path, Print { content, is_executable: false, born, leads_out: false });
        }
    }
    prints
}

/// The paths of what lies in a directory of a git directory.
fn listed(git_dir: &Path, name: &'static str) -> impl Iterator<Item = PathBuf> {
    let directory = git_dir.join(name);
    let is_directory = fs::symlink_metadata(&directory).is_ok_and(|found| found.is_dir());
    let entries = is_directory.then(|| fs::read_dir(directory).ok()).flatten();
    entries
        .into_iter()
        .flatten()
        .flatten()
        .take(MAX_GIT_FILES)
        .map(move |entry| Path::new(name).join(entry.file_name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    struct Project(tempfile::TempDir);

    impl Project {
        fn new() -> Self {
            let project = Self(tempfile::tempdir().unwrap());
            project.write("Makefile", "all:\n");
            project.write("src/main.rs", "");
            project.write("run.sh", "");
            project.write(".git/hooks/pre-commit", "old");
            project.write(".git/config", "[core]\n");
            project
        }

        fn root(&self) -> PathBuf {
            fs::canonicalize(self.0.path()).unwrap()
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.root().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn baseline(&self) -> Baseline {
            let root = self.root();
            Baseline::take(&root, &walk(&root).unwrap(), &[root.join(".git")])
        }
    }

    #[track_caller]
    fn check(act: impl FnOnce(&Project), expected: &[(u8, &str, &str)]) {
        let project = Project::new();
        let file =
            project.root().join("../").join(project.root().file_name().unwrap()).join("target/baseline.json");
        project.baseline().keep(&file).unwrap();
        let baseline = Baseline::load(&file).unwrap().unwrap();
        act(&project);
        let changes = baseline.changes().unwrap();
        let seen: Vec<_> = changes
            .iter()
            .map(|change| (change.rank.number(), change.changed.as_str(), change.path.as_str()))
            .collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn f7_nothing_changed_is_nothing_said() {
        check(|_| {}, &[]);
        check(|project| project.write("src/main.rs", "fn main() {}"), &[]);
    }

    #[test]
    fn f7_changes_are_ranked() {
        check(
            |project| {
                project.write("Makefile", "all: evil\n");
                project.write("package.json", "{}");
                project.write(".envrc", "evil");
                project.write(".git/hooks/pre-commit", "new");
                project.write("vendor/.git/config", "evil");
                fs::set_permissions(project.root().join("run.sh"), fs::Permissions::from_mode(0o755))
                    .unwrap();
            },
            &[
                (1, "added", ".envrc"),
                (1, "changed", ".git/hooks/pre-commit"),
                (1, "added", "vendor/.git"),
                (2, "changed", "Makefile"),
                (2, "added", "package.json"),
                (3, "made executable", "run.sh"),
            ],
        );
    }

    #[test]
    fn f7_what_has_gone_is_named_and_programs_are_not() {
        check(
            |project| {
                fs::remove_file(project.root().join("Makefile")).unwrap();
                fs::remove_file(project.root().join("run.sh")).unwrap();
            },
            &[(2, "removed", "Makefile")],
        );
    }

    #[test]
    fn f7_f10_links_out_of_the_project_are_named_and_not_followed() {
        check(
            |project| {
                symlink("/etc/passwd", project.root().join("out")).unwrap();
                symlink("../../x", project.root().join("src/up")).unwrap();
                symlink("../run.sh", project.root().join("src/inside")).unwrap();
                fs::remove_file(project.root().join("Makefile")).unwrap();
                symlink("run.sh", project.root().join("Makefile")).unwrap();
            },
            &[(2, "changed", "Makefile"), (3, "added", "out"), (3, "added", "src/up")],
        );
    }

    #[test]
    fn f7_an_interrupted_rebase_counts_when_it_runs_commands() {
        let todo = ".git/rebase-merge/git-rebase-todo";
        check(|project| project.write(todo, "pick 123 x\n"), &[]);
        check(|project| project.write(todo, "pick 123 x\nexec evil\n"), &[(1, "added", todo)]);
    }
}
