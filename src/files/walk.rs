//! One bounded walk over a project, from the top downwards, following no link.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, OFlags, statat};

use super::{FilesError, beneath};

/// How deep directories are entered.
const MAX_DEPTH: usize = 12;

/// How many directories are entered, the upper ones first. Each is read to its end: a sandbox that fills one must not
/// hide what lies beside it.
const MAX_DIRECTORIES: usize = 10_000;

/// How many directories are entered below the skipped ones, where only repositories are looked for.
const MAX_SKIPPED_DIRECTORIES: usize = 5_000;

/// Directories that hold what tools fetched or built, and that are rebuilt rather than trusted.
const SKIPPED: [&str; 17] = [
    ".cache",
    ".direnv",
    ".gradle",
    ".mypy_cache",
    ".next",
    ".nox",
    ".nuxt",
    ".pytest_cache",
    ".ruff_cache",
    ".terraform",
    ".tox",
    ".turbo",
    ".venv",
    "__pycache__",
    "node_modules",
    "target",
    "venv",
];

/// What something in a project is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An ordinary file.
    File,
    /// A directory.
    Directory,
    /// A link.
    Link,
    /// A Unix socket.
    Socket,
    /// A pipe or device.
    Other,
}

/// Something in a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it lies, below the project.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Its permission bits.
    pub mode: u32,
    /// How many names it has.
    pub names: u64,
    /// The number of its file system, and its number there.
    pub identity: (u64, u64),
}

/// What a walk found.
#[derive(Debug, Default)]
pub struct Walk {
    /// Everything but what lies in a skipped directory.
    pub entries: Vec<Entry>,
    /// Further `.git` below the project's own, which is not entered either.
    pub repositories: Vec<PathBuf>,
    /// What git would take for a repository in a skipped directory.
    pub buried: Vec<PathBuf>,
    /// Directories that git would take for bare repositories, the project itself among them.
    pub bare: Vec<PathBuf>,
    /// Directories that can't be looked into: what lies there can be opened again from inside.
    pub closed: Vec<PathBuf>,
    /// Whether a limit ended the walk early.
    pub is_cut_short: bool,
}

/// A directory that is still to be entered.
struct Waiting {
    path: PathBuf,
    depth: usize,
}

/// Walks over a project.
pub fn walk(root: &Path) -> Result<Walk, FilesError> {
    let failed = |source| FilesError::Walk { path: root.to_owned(), source };
    let top = beneath::open_root(root).map_err(failed)?;
    let mut walk = Walk::default();
    let mut waiting = VecDeque::from([Waiting { path: PathBuf::new(), depth: 0 }]);
    let mut skipped = VecDeque::new();
    let (mut entered, mut entered_skipped) = (0, 0);
    while let Some(directory) = waiting.pop_front() {
        if entered == MAX_DIRECTORIES {
            walk.is_cut_short = true;
            break;
        }
        entered += 1;
        walk.enter(&top, &directory, &mut waiting, &mut skipped).map_err(failed)?;
    }
    while let Some(directory) = skipped.pop_front().filter(|_| entered_skipped < MAX_SKIPPED_DIRECTORIES) {
        entered_skipped += 1;
        walk.enter_skipped(&top, &directory, &mut skipped);
    }
    Ok(walk)
}

impl Walk {
    fn enter(
        &mut self,
        top: &OwnedFd,
        directory: &Waiting,
        waiting: &mut VecDeque<Waiting>,
        skipped: &mut VecDeque<Waiting>,
    ) -> io::Result<()> {
        let entries = beneath::open(top, &directory.path, OFlags::DIRECTORY)
            .and_then(|opened| entries(&opened, &directory.path));
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) if directory.depth == 0 => return Err(error),
            // It has gone since it was seen.
            Err(error) if has_gone(&error) => return Ok(()),
            Err(_) => {
                self.closed.push(directory.path.clone());
                return Ok(());
            }
        };
        let names = entries.iter().filter_map(|entry| entry.path.file_name());
        if looks_bare(names) {
            self.bare.push(directory.path.clone());
        }
        for entry in entries {
            self.take(entry, directory.depth, waiting, skipped);
        }
        Ok(())
    }

    fn take(
        &mut self,
        entry: Entry,
        depth: usize,
        waiting: &mut VecDeque<Waiting>,
        skipped: &mut VecDeque<Waiting>,
    ) {
        let name = entry.path.file_name().unwrap_or_default();
        if name == ".git" {
            if depth > 0 {
                self.repositories.push(entry.path);
            }
            return;
        }
        if entry.kind == Kind::Directory {
            let next = Waiting { path: entry.path.clone(), depth: depth + 1 };
            if SKIPPED.iter().any(|skipped| name == *skipped) {
                skipped.push_back(next);
                return;
            }
            if depth + 1 < MAX_DEPTH {
                waiting.push_back(next);
            } else {
                self.is_cut_short = true;
            }
        }
        self.entries.push(entry);
    }

    /// Looks for repositories alone: what tools fetched or built is not compared.
    fn enter_skipped(&mut self, top: &OwnedFd, directory: &Waiting, skipped: &mut VecDeque<Waiting>) {
        let Ok(opened) = beneath::open(top, &directory.path, OFlags::DIRECTORY) else {
            return self.closed.push(directory.path.clone());
        };
        let Ok(list) = Dir::read_from(&opened) else { return self.closed.push(directory.path.clone()) };
        let list: Vec<_> = list.flatten().collect();
        if looks_bare(list.iter().map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()))) {
            self.bare.push(directory.path.clone());
        }
        for entry in &list {
            let name = entry.file_name().to_bytes();
            let path = directory.path.join(OsStr::from_bytes(name));
            if name == b".git" {
                self.buried.push(path);
            } else if entry.file_type() == FileType::Directory && name != b"." && name != b".." {
                skipped.push_back(Waiting { path, depth: directory.depth + 1 });
            }
        }
    }
}

/// Tells whether git would take a directory of these names for a repository.
fn looks_bare<'a>(names: impl Iterator<Item = &'a OsStr>) -> bool {
    let (mut head, mut objects, mut refs, mut elsewhere) = (false, false, false, false);
    for name in names {
        match name.as_bytes() {
            b"HEAD" => head = true,
            b"objects" => objects = true,
            b"refs" => refs = true,
            b"commondir" => elsewhere = true,
            _ => {}
        }
    }
    head && (elsewhere || objects && refs)
}

fn has_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// What lies in a directory, in the order of the names.
fn entries(opened: &OwnedFd, directory: &Path) -> io::Result<Vec<Entry>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(opened)? {
        names.push(entry?.file_name().to_bytes().to_vec());
    }
    names.retain(|name| name != b"." && name != b"..");
    names.sort_unstable();
    let found = names.iter().map(|name| entry(opened, directory, OsStr::from_bytes(name)));
    found.filter(|found| !found.as_ref().is_err_and(has_gone)).collect()
}

fn entry(opened: impl AsFd, directory: &Path, name: &OsStr) -> io::Result<Entry> {
    let found = statat(opened, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Link,
        FileType::Socket => Kind::Socket,
        _ => Kind::Other,
    };
    Ok(Entry {
        path: directory.join(name),
        kind,
        mode: found.st_mode & 0o7777,
        #[allow(clippy::useless_conversion, reason = "the type differs between processors")]
        names: u64::from(found.st_nlink),
        identity: (found.st_dev, found.st_ino),
    })
}

/// Describes one path below a project; `None` when there is nothing, or a link leads there.
pub(super) fn look_at(root: &Path, path: &Path) -> Option<Entry> {
    let top = beneath::open_root(root).ok()?;
    let parent = path.parent().unwrap_or(Path::new(""));
    let opened = beneath::open(&top, parent, OFlags::DIRECTORY).ok()?;
    entry(File::from(opened), parent, path.file_name()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn f10_a_walk_follows_no_link_and_enters_no_repository() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for folder in ["a/b", ".git/hooks", "sub/.git", "node_modules/x"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for file in ["a/b/one", "node_modules/x/no", ".git/no", "sub/.git/no"] {
            fs::write(root.join(file), "").unwrap();
        }
        symlink("/etc", root.join("a/link")).unwrap();
        let walk = walk(root).unwrap();
        let paths: Vec<_> = walk.entries.iter().map(|entry| entry.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["a", "sub", "a/b", "a/link", "a/b/one"]);
        assert_eq!(walk.repositories, [PathBuf::from("sub/.git")]);
        assert!(!walk.is_cut_short);
    }

    #[test]
    fn a_walk_ends_in_the_depth() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("d/".repeat(MAX_DEPTH + 3))).unwrap();
        let walk = walk(directory.path()).unwrap();
        assert_eq!((walk.entries.len(), walk.is_cut_short), (MAX_DEPTH, true));
    }

    #[test]
    fn f15_a_directory_full_of_names_hides_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("aaa")).unwrap();
        for number in 0..21_000 {
            fs::write(root.join(format!("aaa/{number}")), "").unwrap();
        }
        fs::create_dir_all(root.join("app")).unwrap();
        fs::write(root.join("app/.env"), "").unwrap();
        let walk = walk(root).unwrap();
        assert!(walk.entries.iter().any(|entry| entry.path == Path::new("app/.env")));
        assert!(!walk.is_cut_short);
    }

    #[test]
    fn c1_c2_repositories_are_found_where_nothing_else_is_looked_for() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for folder in
            ["node_modules/a/.git", "node_modules/b/objects", "node_modules/b/refs", "objects", "refs"]
        {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for file in ["HEAD", "node_modules/b/HEAD"] {
            fs::write(root.join(file), "").unwrap();
        }
        let walk = walk(root).unwrap();
        assert_eq!(walk.buried, [PathBuf::from("node_modules/a/.git")]);
        assert_eq!(walk.bare, ["", "node_modules/b"].map(PathBuf::from));
    }
}
