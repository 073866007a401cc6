//! Links in git directories: git on the host would write through them, and git itself never makes one there (C3).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, openat2, readlinkat, statat, unlinkat};
use rustix::io::Errno;

/// How many entries of one directory are looked at.
const MAX_ENTRIES: usize = 4096;

/// What was found in a directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The links that were removed, and what they led to.
    pub(super) removed: Vec<(OsString, PathBuf)>,
    /// The directories in it.
    pub(super) directories: Vec<OsString>,
}

/// Opens a directory without following a link anywhere.
fn open(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(CWD, directory, flags, Mode::empty(), resolve)?)
}

/// Removes an entry if it is a link; gives what it led to.
pub(super) fn remove(directory: &Path, name: &OsStr) -> io::Result<Option<PathBuf>> {
    remove_in(&open(directory)?, name)
}

fn remove_in(directory: &OwnedFd, name: &OsStr) -> io::Result<Option<PathBuf>> {
    let target = match readlinkat(directory, name, Vec::new()) {
        Err(Errno::INVAL | Errno::NOENT) => return Ok(None),
        other => other?,
    };
    match unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(Some(PathBuf::from(OsString::from_vec(target.into_bytes())))),
    }
}

/// Removes the links of a directory that were made since a time, in seconds since 1970, and lists its directories. The
/// kernel alone sets the time that counts; what the user had linked before stays.
pub(super) fn sweep(directory: &Path, since: u64) -> io::Result<Found> {
    let opened = open(directory)?;
    let mut found = Found::default();
    for entry in Dir::read_from(&opened)?.take(MAX_ENTRIES) {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let Ok(seen) = statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let kind = rustix::fs::FileType::from_raw_mode(seen.st_mode);
        let is_new = u64::try_from(seen.st_ctime).is_ok_and(|changed| changed >= since);
        if kind.is_dir() {
            found.directories.push(name.to_owned());
        } else if kind.is_symlink()
            && is_new
            && let Some(target) = remove_in(&opened, name)?
        {
            found.removed.push((name.to_owned(), target));
        }
    }
    Ok(found)
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
        let directories = vec![OsString::from("directory")];
        let later = sweep(&top, u64::MAX).unwrap();
        assert_eq!(later, Found { removed: Vec::new(), directories: directories.clone() });
        let removed = vec![("link".into(), "x".into())];
        assert_eq!(sweep(&top, 0).unwrap(), Found { removed, directories });
    }
}
