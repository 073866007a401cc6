//! One bounded walk over a project, from the top downwards, following no link.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, OFlags, statat};

use super::{FilesError, beneath};

/// How deep directories are entered.
const MAX_DEPTH: usize = 12;

/// How many entries are looked at; the upper ones come first.
const MAX_ENTRIES: usize = 20_000;

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
    /// Whether a limit ended the walk early.
    pub is_cut_short: bool,
}

/// Walks over a project.
pub fn walk(root: &Path) -> Result<Walk, FilesError> {
    let top =
        beneath::open_root(root).map_err(|source| FilesError::Walk { path: root.to_owned(), source })?;
    let mut walk = Walk::default();
    let mut waiting = VecDeque::from([(PathBuf::new(), 0)]);
    while let Some((directory, depth)) = waiting.pop_front() {
        // A directory that is closed to us or has gone is closed to the sandbox too.
        let Ok(opened) = beneath::open(&top, &directory, OFlags::DIRECTORY) else { continue };
        for entry in entries(&opened, &directory) {
            if walk.entries.len() >= MAX_ENTRIES {
                walk.is_cut_short = true;
                return Ok(walk);
            }
            walk.take(entry, depth, &mut waiting);
        }
    }
    Ok(walk)
}

impl Walk {
    fn take(&mut self, entry: Entry, depth: usize, waiting: &mut VecDeque<(PathBuf, usize)>) {
        let name = entry.path.file_name().unwrap_or_default();
        if name == ".git" {
            if depth > 0 {
                self.repositories.push(entry.path);
            }
            return;
        }
        if entry.kind == Kind::Directory {
            if SKIPPED.iter().any(|skipped| name == *skipped) {
                return;
            }
            if depth + 1 < MAX_DEPTH {
                waiting.push_back((entry.path.clone(), depth + 1));
            } else {
                self.is_cut_short = true;
            }
        }
        self.entries.push(entry);
    }
}

/// What lies in a directory, in the order of the names.
fn entries(opened: &OwnedFd, directory: &Path) -> Vec<Entry> {
    let Ok(list) = Dir::read_from(opened) else { return Vec::new() };
    let mut names: Vec<Vec<u8>> = list.flatten().map(|entry| entry.file_name().to_bytes().to_vec()).collect();
    names.retain(|name| name != b"." && name != b"..");
    names.sort_unstable();
    names.iter().filter_map(|name| entry(opened, directory, OsStr::from_bytes(name))).collect()
}

fn entry(opened: impl AsFd, directory: &Path, name: &OsStr) -> Option<Entry> {
    let found = statat(opened, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let kind = match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Link,
        FileType::Socket => Kind::Socket,
        _ => Kind::Other,
    };
    Some(Entry {
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
    entry(File::from(opened), parent, path.file_name()?)
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
}
