//! What was checked on the host, by its number: the first process compares it with what it finds.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use crate::init::Anchor;
use crate::project::Project;
use crate::sandbox::Spec;

/// The anchors of everything that is mounted from the project.
///
/// # Errors
/// When one of the paths leads through a link by now, or is gone.
pub(super) fn anchors(project: &Project, spec: &Spec) -> io::Result<Vec<Anchor>> {
    let roots: Vec<&Path> =
        [project.directory.as_path()].into_iter().chain(project.outside_repository()).collect();
    spec.mounts_from(&roots).map(|(source, target)| anchor(source, target)).collect()
}

fn anchor(source: &Path, target: &Path) -> io::Result<Anchor> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let opened = openat2(CWD, source, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let metadata = File::from(opened).metadata()?;
    Ok(Anchor {
        target: target.to_string_lossy().into_owned(),
        device: metadata.dev(),
        inode: metadata.ino(),
    })
}
