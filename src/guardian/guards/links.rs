//! Links in git directories: git on the host would write through them, and git itself never makes one there (C3).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, chmod, fstat, openat2, readlinkat, statat,
    unlinkat,
};
use rustix::io::Errno;

/// How many entries of one directory are looked at; many more than there are branches.
const MAX_ENTRIES: usize = 1 << 20;

/// What was found in a directory.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The links that were removed, and what they led to.
    pub(super) removed: Vec<(OsString, PathBuf)>,
    /// The directories in it.
    pub(super) directories: Vec<OsString>,
    /// Why there may be further links in it.
    pub(super) failed: Option<io::Error>,
}

/// Does something in a directory; what its permissions deny is tried once more when its owner has them back. A sandbox
/// can take them away from whatever it made.
pub(super) fn insist<T>(directory: &Path, act: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
    match act() {
        Err(Errno::ACCESS) => {
            let opened = reach(directory, OFlags::PATH)?;
            let mode = Mode::from_raw_mode(fstat(&opened)?.st_mode) | Mode::RWXU;
            // Through the number, for no link can be laid there.
            chmod(format!("/proc/self/fd/{}", opened.as_raw_fd()), mode)?;
            act()
        }
        other => other,
    }
}

/// Opens a directory without following a link anywhere.
pub(super) fn reach(directory: &Path, access: OFlags) -> Result<OwnedFd, Errno> {
    let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(CWD, directory, flags, Mode::empty(), resolve)
}

fn open(directory: &Path) -> Result<OwnedFd, Errno> {
    insist(directory, || reach(directory, OFlags::RDONLY))
}

/// Removes an entry if it is a link; gives what it led to.
pub(super) fn remove(directory: &Path, name: &OsStr) -> io::Result<Option<PathBuf>> {
    let opened = open(directory)?;
    Ok(insist(directory, || remove_in(&opened, name))?)
}

fn remove_in(directory: &OwnedFd, name: &OsStr) -> Result<Option<PathBuf>, Errno> {
    let target = match readlinkat(directory, name, Vec::new()) {
        Err(Errno::INVAL | Errno::NOENT) => return Ok(None),
        other => other?,
    };
    match unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes())))),
    }
}

/// Removes the links of a directory that were made since a time, in seconds since 1970, and lists its directories. The
/// kernel alone sets the time that counts; what the user had linked before stays. What can't be looked at or removed
/// is passed over, and told.
pub(super) fn sweep(directory: &Path, since: u64) -> io::Result<Found> {
    let opened = open(directory)?;
    let mut found = Found::default();
    for (number, entry) in insist(directory, || Dir::read_from(&opened))?.enumerate() {
        let entry = entry?;
        if number == MAX_ENTRIES {
            found.failed = Some(io::Error::other("there are more entries than can be looked at"));
            break;
        }
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let is_told =
            !matches!(entry.file_type(), FileType::Directory | FileType::Symlink | FileType::Unknown);
        if is_told || name == "." || name == ".." {
            continue;
        }
        match insist(directory, || look(&opened, name, since)) {
            Ok(Entry::Directory) => found.directories.push(name.to_owned()),
            Ok(Entry::Removed(target)) => found.removed.push((name.to_owned(), target)),
            Ok(Entry::Other) | Err(Errno::NOENT) => {}
            Err(error) => found.failed = Some(error.into()),
        }
    }
    Ok(found)
}

/// What an entry is, or was.
enum Entry {
    Directory,
    /// A link that led here.
    Removed(PathBuf),
    Other,
}

fn look(directory: &OwnedFd, name: &OsStr, since: u64) -> Result<Entry, Errno> {
    let seen = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(seen.st_mode);
    let is_new = u64::try_from(seen.st_ctime).is_ok_and(|changed| changed >= since);
    if kind.is_dir() {
        return Ok(Entry::Directory);
    }
    let target = if kind.is_symlink() && is_new { remove_in(directory, name)? } else { None };
    Ok(target.map_or(Entry::Other, Entry::Removed))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn c3_links_alone_are_removed_and_never_through_a_link() {
        let keep = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(keep.path()).unwrap();
        fs::write(top.join("file"), "mine").unwrap();
        symlink("file", top.join("link")).unwrap();
        fs::create_dir(top.join("directory")).unwrap();
        assert_eq!(remove(&top, OsStr::new("file")).unwrap(), None);
        assert_eq!(remove(&top, OsStr::new("absent")).unwrap(), None);
        assert_eq!(remove(&top, OsStr::new("directory")).unwrap(), None);
        assert_eq!(remove(&top, OsStr::new("link")).unwrap(), Some("file".into()));
        assert_eq!(fs::read_to_string(top.join("file")).unwrap(), "mine");
        symlink(&top, top.join("round")).unwrap();
        symlink("file", top.join("link")).unwrap();
        assert!(remove(&top.join("round"), OsStr::new("link")).is_err());
        assert!(top.join("link").is_symlink());
    }

    #[test]
    fn c3_a_sweep_removes_what_is_new_and_leaves_what_was_there() {
        let keep = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(keep.path()).unwrap();
        symlink("x", top.join("link")).unwrap();
        fs::create_dir(top.join("directory")).unwrap();
        for number in 0..5000 {
            fs::write(top.join(format!("branch{number}")), "").unwrap();
        }
        let swept = |since| {
            let found = sweep(&top, since).unwrap();
            assert!(found.failed.is_none() && found.directories == ["directory"], "{found:?}");
            found.removed
        };
        assert_eq!(swept(u64::MAX), []);
        let late: Vec<_> = (0..5).map(|number| format!("late{number}")).collect();
        for name in &late {
            symlink("x", top.join(name)).unwrap();
        }
        let mut removed = swept(0);
        removed.sort();
        let links = late.iter().map(String::as_str).chain(["link"]);
        assert_eq!(removed, links.map(|name| (name.into(), "x".into())).collect::<Vec<_>>());
    }
}
