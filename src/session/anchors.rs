//! What was checked on the host, by its number: the first process compares it with what it finds.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use crate::init::Anchor;
use crate::project::{Project, Share};
use crate::sandbox::Spec;

/// The anchors of everything that is mounted from the project and of what the settings share.
///
/// # Errors
/// When one of the paths leads through a link by now, or is gone, or when the project's directory is not the one
/// in which this process stands: its path may have been made to lead elsewhere before it was first read.
pub(super) fn anchors(project: &Project, shares: &[Share], spec: &Spec) -> io::Result<Vec<Anchor>> {
    check_standing(&project.directory, &project.standing, &fs::metadata(".")?)?;
    let roots: Vec<&Path> = [project.directory.as_path()]
        .into_iter()
        .chain(project.outside_repository())
        .chain(shares.iter().map(|share| share.source.as_path()))
        .collect();
    spec.mounts_from(&roots).map(|(source, target)| anchor(source, target)).collect()
}

/// Checks that the directory `actual` is what the path `standing` leads to, below `root`.
fn check_standing(root: &Path, standing: &Path, actual: &Metadata) -> io::Result<()> {
    let below = standing.strip_prefix(root).map_err(io::Error::other)?;
    let root = open(CWD, root)?;
    let found = if below.as_os_str().is_empty() { root } else { open(root, below)? };
    if identity(found)? == (actual.dev(), actual.ino()) {
        Ok(())
    } else {
        Err(io::Error::other("the current directory is not what its path leads to"))
    }
}

fn anchor(source: &Path, target: &Path) -> io::Result<Anchor> {
    let (device, inode) = identity(open(CWD, source)?)?;
    Ok(Anchor { target: target.to_string_lossy().into_owned(), device, inode })
}

/// Opens what a path leads to without any link.
fn open(directory: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(openat2(directory, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?)
}

/// The numbers of a file system and of a thing in it.
fn identity(descriptor: OwnedFd) -> io::Result<(u64, u64)> {
    let metadata = File::from(descriptor).metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn f10_a_path_that_leads_elsewhere_by_now_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(directory.path()).unwrap();
        let (root, inside, victim) = (top.join("root"), top.join("root/inside"), top.join("victim"));
        fs::create_dir_all(&inside).unwrap();
        fs::create_dir(&victim).unwrap();
        let actual = || fs::metadata(&inside).unwrap();
        check_standing(&root, &inside, &actual()).unwrap();
        check_standing(&inside, &inside, &actual()).unwrap();
        let stood = actual();
        fs::rename(&inside, top.join("away")).unwrap();
        symlink(&victim, &inside).unwrap();
        assert!(check_standing(&root, &inside, &stood).is_err(), "a link");
        // What reading the path through the link would have made of it.
        assert!(check_standing(&victim, &victim, &stood).is_err(), "the link's target");
    }
}
