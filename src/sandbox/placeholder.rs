//! Files that have to exist so that something can be mounted over them, and that go away with the sandbox.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, linkat, mkdirat, openat, openat2,
    unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::paths::PathsError;

/// A file or directory that is made where nothing is, and removed as long as it is what was made.
///
/// What existed before is none: a start names in its receipt what it is about to make ([`Placeholder::to_make`]), and
/// only that is removed again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placeholder {
    path: PathBuf,
    /// What the file holds; a directory without it.
    content: Option<String>,
}

impl Placeholder {
    /// Describes a file with this content, or an empty directory.
    pub fn new(path: &Path, content: Option<&str>) -> Self {
        Self { path: path.to_owned(), content: content.map(str::to_owned) }
    }

    /// Those of the wanted ones that a start has to answer for: what does not exist, what another sandbox has made
    /// (`shared`), and what an earlier start of its own left (`left`).
    pub fn to_make(wanted: &[Self], shared: &[PathBuf], left: &[Self]) -> Vec<Self> {
        let is_ours = |one: &&Self| {
            one.path.symlink_metadata().is_err() || shared.contains(&one.path) || left.contains(one)
        };
        wanted.iter().filter(is_ours).cloned().collect()
    }

    /// Makes it; what exists already stays as it is. No link is followed: a sandbox may have laid one.
    pub fn make(&self) -> Result<(), PathsError> {
        let made = self.parent().and_then(|(parent, name)| {
            match &self.content {
                None => mkdirat(&parent, name, Mode::from_raw_mode(0o755))?,
                Some(content) => make_file(&parent, name, content)?,
            }
            give_to_owner(&parent, name)
        });
        match made {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(PathsError::io("make the placeholder", &self.path)(error.into())),
        }
    }

    /// Removes it, unless something else has taken its place.
    pub fn remove(&self) -> Result<(), PathsError> {
        let removed = self.parent().and_then(|(parent, name)| match &self.content {
            None => unlinkat(&parent, name, AtFlags::REMOVEDIR),
            Some(content) if holds(&parent, name, content)? => unlinkat(&parent, name, AtFlags::empty()),
            Some(_) => Ok(()),
        });
        match removed {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(error) => Err(PathsError::io("remove the placeholder", &self.path)(error.into())),
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory in which it lies, reached through no link, and its name there.
    fn parent(&self) -> Result<(OwnedFd, &OsStr), Errno> {
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Err(Errno::INVAL);
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok((openat2(CWD, parent, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?, name))
    }
}

/// Makes a file that is there with all of its content or not at all: git stops at half a `commondir`.
fn make_file(parent: &OwnedFd, name: &OsStr, content: &str) -> Result<(), Errno> {
    let (mode, flags) = (Mode::from_raw_mode(0o644), OFlags::WRONLY | OFlags::CLOEXEC);
    let file = match openat(parent, ".", flags | OFlags::TMPFILE, mode) {
        // Not every file system can make a file without a name.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
            let file = openat(parent, name, flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, mode)?;
            return rustix::io::write(file, content.as_bytes()).map(drop);
        }
        other => other?,
    };
    rustix::io::write(&file, content.as_bytes())?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, path, parent, name, AtFlags::SYMLINK_FOLLOW)
}

/// What root makes in somebody's project belongs to them, like all that lies beside it.
fn give_to_owner(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = fstat(parent)?;
    let (user, group) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
    chownat(parent, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
}

/// Tells whether an ordinary file holds exactly this, or as much of it as a command wrote that was killed then.
fn holds(parent: &OwnedFd, name: &OsStr, content: &str) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(parent, name, flags, Mode::empty())?;
    // One byte more than what is looked for.
    let mut found = vec![0; content.len() + 1];
    let count = rustix::io::read(file, &mut found)?;
    Ok(content.as_bytes().starts_with(&found[..count]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn f10_nothing_is_made_or_removed_through_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (victim, link) = (directory.path().join("victim"), directory.path().join("link"));
        fs::create_dir(&victim).unwrap();
        symlink(&victim, &link).unwrap();
        let placeholder = Placeholder::new(&link.join("file"), Some("x"));
        assert!(placeholder.make().is_err());
        fs::write(victim.join("file"), "x").unwrap();
        placeholder.remove().unwrap();
        assert!(victim.join("file").exists());
    }

    #[test]
    fn what_was_made_by_half_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("commondir");
        let placeholder = Placeholder::new(&file, Some(".\n"));
        for (half, is_left) in [("", false), (".", false), (".\n", false), (".\nx", true)] {
            fs::write(&file, half).unwrap();
            placeholder.remove().unwrap();
            assert_eq!(file.exists(), is_left, "{half:?}");
        }
    }

    #[test]
    fn what_existed_before_is_not_answered_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let wanted = ["own", "absent", "shared", "left"].map(|name| Placeholder::new(&path(name), None));
        for existing in ["own", "shared", "left"] {
            fs::create_dir(path(existing)).unwrap();
        }
        let made = Placeholder::to_make(&wanted, &[path("shared")], &[Placeholder::new(&path("left"), None)]);
        assert_eq!(made, wanted[1..]);
    }

    #[test]
    fn what_was_made_is_removed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let (file, folder) = (directory.path().join("file"), directory.path().join("folder"));
        let placeholders = [Placeholder::new(&file, Some(".\n")), Placeholder::new(&folder, None)];
        let make = || placeholders.iter().try_for_each(Placeholder::make).unwrap();
        let remove = || placeholders.iter().try_for_each(Placeholder::remove).unwrap();
        make();
        make();
        assert_eq!(fs::read_to_string(&file).unwrap(), ".\n");
        remove();
        remove();
        assert!(!file.exists() && !folder.exists());
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("hook"), "").unwrap();
        fs::write(&file, "mine").unwrap();
        make();
        remove();
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
        assert!(folder.join("hook").exists());
    }
}
