//! Making paths read-only once more in a sandbox that runs.
//!
//! When a program of the host replaces a file that is mounted read-only in a sandbox (`git config` renames a new
//! `.git/config` into place), the kernel drops that mount, and the new file could be written from inside. This part
//! runs outside, as a process of its own, and enters the sandbox's mounts to cover the new file like the old one.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use serde::{Deserialize, Serialize};

use crate::kernel::{self, Trees};
use crate::process::Identity;

/// What is to be sealed again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reseal {
    /// The sandbox's first process.
    pub first: Identity,
    /// The paths inside.
    pub paths: Vec<PathBuf>,
}

/// Seals what standard input names; tells on success how many paths had lost their seal.
///
/// # Errors
/// When the sandbox has ended, can't be entered, or a path can't be sealed. Paths that are gone are passed over:
/// there is nothing to write.
pub fn reseal() -> io::Result<usize> {
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text)?;
    let Reseal { first, paths } = serde_json::from_slice(&text)?;
    let mounts = File::open(format!("/proc/{}/ns/mnt", first.pid()))?;
    // Opened first, then looked at: if the number was given to another process, it is another one now.
    if !first.is_alive() {
        return Err(io::Error::other("the sandbox has ended"));
    }
    kernel::enter_mounts(&mounts)?;
    paths.iter().try_fold(0, |sealed, path| Ok(sealed + usize::from(seal(path)?)))
}

/// Covers a path with itself, read-only; false when it still is covered, or gone.
fn seal(path: &PathBuf) -> io::Result<bool> {
    let found = match statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE) {
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        other => other?,
    };
    if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(false);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = open_tree(CWD, path, flags)?;
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    kernel::set_tree_attributes(rustix::fd::AsFd::as_fd(&tree), Trees::One, attributes, None)?;
    move_mount(&tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(true)
}
