//! What is done from outside to the mounts of a sandbox that runs.
//!
//! When a program of the host replaces a file that is mounted read-only in a sandbox (an editor renames a new one
//! into place), the kernel drops that mount, and the new file could be written from inside: it is covered like the
//! old one. And `bwrap` can bound what a directory in memory holds, but not how many files. This part runs outside, as
//! a process of its own with one thread, and enters the sandbox's mounts.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount_remount, move_mount, open_tree};
use serde::{Deserialize, Serialize};

use crate::kernel::{self, Trees};
use crate::process::{self, Identity};

/// What is to be done to the mounts of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adjustment {
    /// The sandbox's first process.
    pub first: Identity,
    /// The directories inside that can't be renamed or replaced; what is in them is as it was.
    pub pinned: Vec<PathBuf>,
    /// The paths inside that are read-only.
    pub sealed: Vec<PathBuf>,
    /// The paths inside that are hidden.
    pub hidden: Vec<PathBuf>,
    /// Directories in memory, with the most bytes and files that they may hold.
    pub bounded: Vec<(PathBuf, u64, u64)>,
}

/// What was done to the mounts of one sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adjusted {
    /// The paths inside that were covered: they had not been, or not any more.
    pub covered: Vec<PathBuf>,
    /// The paths that could not be covered, and why.
    pub failed: Vec<(PathBuf, String)>,
}

impl Adjustment {
    /// An adjustment that does nothing yet.
    pub fn new(first: Identity) -> Self {
        Self { first, pinned: Vec::new(), sealed: Vec::new(), hidden: Vec::new(), bounded: Vec::new() }
    }

    /// Has a process of its own do it, and waits.
    pub fn perform(&self) -> io::Result<Adjusted> {
        let mut command = process::command(process::own_binary()?);
        command.args(["sandbox-init", "adjust"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(&serde_json::to_vec(self)?)?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// Does what standard input says, going on past paths that can't be covered; gives the answer to be printed.
///
/// # Errors
/// When the sandbox has ended or can't be entered. Paths that are gone are passed over: there is nothing to write.
pub fn adjust() -> io::Result<String> {
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text)?;
    let Adjustment { first, pinned, sealed, hidden, bounded } = serde_json::from_slice(&text)?;
    let mounts = File::open(format!("/proc/{}/ns/mnt", first.pid()))?;
    // Opened first, then looked at: if the number was given to another process, it is another one now.
    if !first.is_alive() {
        return Err(io::Error::other("the sandbox has ended"));
    }
    kernel::enter_owner(&mounts)?;
    bound_watches()?;
    kernel::enter_mounts(&mounts)?;
    for (directory, bytes, files) in bounded {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount_remount(&directory, flags, format!("size={bytes},nr_inodes={files}"))?;
    }
    // Nothing can be read of a device on a mount without devices.
    let nothing = Path::new("/dev/null");
    let pinned = pinned.iter().map(|path| (path, path.as_path(), 0));
    let sealed = sealed.iter().map(|path| (path, path.as_path(), libc::MOUNT_ATTR_RDONLY));
    let hidden = hidden.iter().map(|path| (path, nothing, libc::MOUNT_ATTR_RDONLY));
    let mut done = Adjusted::default();
    // A directory is pinned before something in it is sealed: laid over it later, it would cover the seal.
    for (path, cover, attributes) in pinned.chain(sealed).chain(hidden) {
        match lay(path, cover, attributes) {
            Ok(true) => done.covered.push(path.clone()),
            Ok(false) => {}
            Err(error) => done.failed.push((path.clone(), error.to_string())),
        }
    }
    Ok(serde_json::to_string(&done)?)
}

/// What is bounded of watching, and what a sandbox has of it at least.
const WATCHES: [(&str, u64); 2] = [("max_inotify_instances", 8), ("max_inotify_watches", 1024)];

/// The part of what the host's user may watch that one sandbox can take.
const PART: u64 = 8;

/// Takes an eighth at most of what the host's user may watch: inside counts against it too, and what watches over the
/// guards must not find everything taken, not even by several sandboxes (`user_namespaces(7)`, `/proc/sys/user`).
fn bound_watches() -> io::Result<()> {
    for (name, least) in WATCHES {
        // The files of the user name space in which this process is by now.
        let file = format!("/proc/sys/user/{name}");
        let most: u64 = fs::read_to_string(&file)?.trim().parse().map_err(io::Error::other)?;
        let on_host =
            fs::read_to_string(format!("/proc/sys/fs/inotify/{}", name.replace("max_inotify", "max_user")))?;
        let on_host: u64 = on_host.trim().parse().map_err(io::Error::other)?;
        // Of very little, half is left all the same.
        let share = (on_host / PART).max(least.min(on_host / 2));
        if most > share {
            fs::write(&file, share.to_string())?;
        }
    }
    Ok(())
}

/// Covers a path, with itself or with nothing; false when it still is covered, or gone.
fn lay(path: &Path, cover: &Path, attributes: u64) -> io::Result<bool> {
    let found = match statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(false),
        other => other?,
    };
    if found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(false);
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = open_tree(CWD, cover, flags)?;
    let attributes = attributes | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    kernel::set_tree_attributes(rustix::fd::AsFd::as_fd(&tree), Trees::One, attributes, None)?;
    move_mount(&tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(true)
}
