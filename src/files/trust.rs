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
use super::inside_git::{self, runs_commands};
use super::walk::{Entry, Kind, look_at, walk};
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
    /// The repositories in the tree that the index names.
    nested: Vec<String>,
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
    special: Option<Special>,
}

/// What is dangerous whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Special {
    LeadsOut,
    Bare,
    Buried,
    Nested,
    Closed,
    LinkInGit,
    SetId,
    CutShort,
}

impl Special {
    fn judge(self) -> (Rank, &'static str) {
        match self {
            Self::LeadsOut => (Rank::WhenCalled, "a link that leads out of the project"),
            Self::Bare => (Rank::ByItself, "git takes it for a bare repository and obeys its settings"),
            Self::Buried => (Rank::ByItself, "a repository of its own: git obeys its settings"),
            Self::Nested => (Rank::ByItself, "the index names it as a repository: git obeys its settings"),
            Self::Closed => (Rank::ByItself, "can't be looked into: see what it is before you open it"),
            Self::LinkInGit => (Rank::ByItself, "git makes no links there, and writes through them"),
            Self::SetId => (Rank::ByItself, "runs with the rights of its owner, whoever calls it"),
            Self::CutShort => (Rank::ByItself, "too large: what lies deep in it was not compared"),
        }
    }
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
    /// It can't be told.
    Unknown,
}

impl Changed {
    /// The words that users read.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
            Self::MadeExecutable => "made executable",
            Self::Unknown => "unknown",
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
    /// Remembers what a walk found, what lies in the git directories, and which repositories the index names.
    pub fn take(root: &Path, walk: &Walk, git_dirs: &[PathBuf], nested: &[PathBuf]) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            directory: root.to_owned(),
            git_dirs: git_dirs.to_owned(),
            taken: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            nested: nested.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
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
        Ok(paths::write_volatile(path, &text)?)
    }

    /// What has changed since, the most urgent first. `nested` are the repositories that the index names by now; an
    /// index that can't be read may name any.
    pub fn changes(&self, nested: Option<&[PathBuf]>) -> Result<Vec<Change>, FilesError> {
        let walk = walk(&self.directory)?;
        let mut now = prints(&self.directory, &walk, &self.git_dirs);
        self.look_again(&mut now);
        if walk.is_cut_short {
            now.insert(".".to_owned(), special(Special::CutShort, String::new()));
        }
        match nested {
            None => drop(now.insert(".git/index".to_owned(), special(Special::Closed, String::new()))),
            Some(nested) => {
                let names = nested.iter().map(|path| path.to_string_lossy().into_owned());
                let new = names.filter(|name| !self.nested.contains(name));
                now.extend(new.map(|name| (name, special(Special::Nested, String::new()))));
            }
        }
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

    /// Looks at what the walk did not reach by now.
    fn look_again(&self, now: &mut BTreeMap<String, Print>) {
        let Ok(top) = beneath::open_root(&self.directory) else { return };
        let in_git = |path: &&String| Path::new(path).components().any(|part| part.as_os_str() == ".git");
        let missed: Vec<_> =
            self.files.keys().filter(|path| !now.contains_key(*path)).filter(|path| !in_git(path)).collect();
        let entries = missed.into_iter().filter_map(|path| look_at(&self.directory, Path::new(path)));
        now.extend(entries.filter_map(|entry| print(&top, &self.directory, &entry)));
    }

    fn change(&self, path: &str, now: &Print) -> Option<Changed> {
        match self.files.get(path) {
            None if matches!(now.special, Some(Special::Closed | Special::CutShort)) => {
                Some(Changed::Unknown)
            }
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
    let special = print.special.map(Special::judge);
    let urgent = special.filter(|(rank, _)| *rank == Rank::ByItself);
    urgent.or_else(|| classify(path)).or(special).unwrap_or((Rank::WhenCalled, "a program"))
}

/// What is remembered of something by its kind alone.
fn special(special: Special, content: String) -> Print {
    Print { content, is_executable: false, born: None, special: Some(special) }
}

fn prints(root: &Path, walk: &Walk, git_dirs: &[PathBuf]) -> BTreeMap<String, Print> {
    let mut prints = BTreeMap::new();
    if let Ok(top) = beneath::open_root(root) {
        let found = walk.entries.iter().filter_map(|entry| print(&top, root, entry));
        prints.extend(found);
    }
    for path in &walk.repositories {
        let content = "a repository".to_owned();
        let print = Print { content, is_executable: false, born: None, special: None };
        prints.insert(path.to_string_lossy().into_owned(), print);
    }
    let name = |path: &Path| {
        let is_root = path.as_os_str().is_empty();
        if is_root { "HEAD".to_owned() } else { path.to_string_lossy().into_owned() }
    };
    let of = |special_kind, path: &Path, config: &Path| {
        let settings = beneath::open_root(root).and_then(|top| content(&top, config));
        (name(path), special(special_kind, settings.map(|(text, _)| text).unwrap_or_default()))
    };
    prints.extend(walk.bare.iter().map(|path| of(Special::Bare, path, &path.join("config"))));
    prints.extend(walk.buried.iter().map(|path| of(Special::Buried, path, &path.join("config"))));
    prints.extend(walk.closed.iter().map(|path| (name(path), special(Special::Closed, String::new()))));
    for git_dir in git_dirs {
        prints.extend(in_git_dir(root, git_dir));
        let found = inside_git::look(git_dir);
        let shown = |path: &Path| path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
        prints
            .extend(found.links.iter().map(|path| (shown(path), special(Special::LinkInGit, String::new()))));
        prints.extend(found.closed.iter().map(|path| (shown(path), special(Special::Closed, String::new()))));
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
            let is_set_id = entry.mode & 0o6000 != 0;
            let special = is_set_id.then_some(Special::SetId);
            let mark = if is_set_id { "set-id " } else { "" };
            if !is_known && !is_executable && !is_set_id {
                return None;
            }
            // What can't be read must not pass for what has gone.
            let (content, born) =
                content(top, &entry.path).unwrap_or_else(|_| ("can't be read".to_owned(), None));
            let content = format!("{mark}{content}");
            Some((path, Print { content, is_executable, born, special }))
        }
        Kind::Link => {
            let target = fs::read_link(root.join(&entry.path)).ok()?;
            let leads_out = leads_out(&entry.path, &target);
            let content = format!("link to {}", target.display());
            let special = leads_out.then_some(Special::LeadsOut);
            (is_known || leads_out)
                .then_some((path, Print { content, is_executable: false, born: None, special }))
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
        names.extend(
            ["config.worktree", "commondir", "gitdir", "rebase-merge/git-rebase-todo"]
                .map(|name| worktree.join(name)),
        );
    }
    names.insert("rebase-merge/git-rebase-todo".into());
    for name in names {
        let Ok((_, text)) = beneath::read(&top, &name, MAX_HASHED_BYTES) else { continue };
        // What stands in for an absent file, and an ordinary rebase, run nothing.
        let is_harmless = if name.ends_with("git-rebase-todo") {
            !runs_commands(&String::from_utf8_lossy(&text))
        } else {
            text.is_empty() || (name.ends_with("commondir") && (text == b"./\n" || text == b"../..\n"))
        };
        if is_harmless {
            continue;
        }
        if let Ok((content, born)) = content(&top, &name) {
            let path = shown.join(&name).to_string_lossy().into_owned();
            prints.insert(path, Print { content, is_executable: false, born, special: None });
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
            Baseline::take(&root, &walk(&root).unwrap(), &[root.join(".git")], &[])
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
        let changes = baseline.changes(Some(&[])).unwrap();
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

    #[test]
    fn c1_c2_c3_h3_what_passes_for_something_of_gits_is_named() {
        check(
            |project| {
                for path in ["HEAD", "objects/x", "refs/x", "node_modules/a/.git/config"] {
                    project.write(path, "");
                }
                project.write(".git/logs/HEAD", "");
                symlink("/etc/passwd", project.root().join(".git/COMMIT_EDITMSG")).unwrap();
                project.write("tool", "");
                fs::set_permissions(project.root().join("tool"), fs::Permissions::from_mode(0o4755)).unwrap();
            },
            &[
                (1, "added", ".git/COMMIT_EDITMSG"),
                (1, "added", "HEAD"),
                (1, "added", "node_modules/a/.git"),
                (1, "added", "tool"),
            ],
        );
    }

    #[test]
    fn c1_a_repository_that_the_index_names_is_named() {
        let project = Project::new();
        let changes = project.baseline().changes(Some(&["deep/er".into()])).unwrap();
        assert_eq!((changes.len(), changes[0].path.as_str(), changes[0].rank.number()), (1, "deep/er", 1));
        let changes = project.baseline().changes(None).unwrap();
        assert_eq!((changes[0].path.as_str(), changes[0].changed), (".git/index", Changed::Unknown));
    }
}
