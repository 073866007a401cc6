//! Mounts with other owners (`mount_setattr(2)`), and what it takes to make them.

#![allow(unsafe_code, reason = "system calls that no safe crate offers")]

use std::fs::{self, File};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// A range of user or group numbers, and what they become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first number on the disk.
    pub on_disk: u32,
    /// What it becomes.
    pub seen: u32,
    /// How many numbers follow each other.
    pub count: u32,
}

/// Whether the mounts below a mount are meant too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trees {
    /// The one mount.
    One,
    /// All mounts below it too.
    All,
}

/// Gives this process, which has one thread, a mount table of its own.
pub fn unshare_mounts() -> io::Result<()> {
    // SAFETY: only the mount name space is unshared, which affects no memory and no descriptor table.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?)
}

/// Puts an empty session keyring in the place of the one that this process was started with.
pub fn forget_keys() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the call takes a name or a null pointer, for a keyring without a name.
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets attributes (`MOUNT_ATTR_*`) of a mount that is attached nowhere; with a user name space, its files are seen
/// with the owners that the name space maps them to.
pub fn set_tree_attributes(
    tree: BorrowedFd<'_>,
    trees: Trees,
    attributes: u64,
    owners: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let userns_fd = owners.map_or(0, |owners| u64::try_from(owners.as_raw_fd()).unwrap_or(u64::MAX));
    let attr_set = attributes | if owners.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 };
    let wanted = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd };
    let flags = libc::AT_EMPTY_PATH | if trees == Trees::All { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, and the structure is passed with its size and outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a user name space that maps numbers on the disk to others; nothing runs in it.
pub fn user_namespace(users: &[IdRange], groups: &[IdRange]) -> io::Result<OwnedFd> {
    let (wait, go_on) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: without a stack, `clone` returns twice like `fork`. The child only calls `close`, `read` and `_exit`,
    // which are async-signal-safe; it allocates nothing and returns to no caller.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::CLONE_NEWUSER | libc::SIGCHLD,
            0_usize,
            0_usize,
            0_usize,
            0_usize,
        )
    };
    if pid == 0 {
        // SAFETY: both descriptors are open in the child, and nothing after this uses them.
        unsafe {
            libc::close(go_on.as_raw_fd());
            let mut byte = 0_u8;
            libc::read(wait.as_raw_fd(), (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let made = open_mapped(pid, users, groups);
    drop((wait, go_on));
    // The child ends as its pipe is closed, and has nothing to say.
    let _ = retry_on_intr(|| waitpid(i32::try_from(pid).ok().and_then(Pid::from_raw), WaitOptions::empty()));
    made
}

fn open_mapped(pid: libc::c_long, users: &[IdRange], groups: &[IdRange]) -> io::Result<OwnedFd> {
    fs::write(format!("/proc/{pid}/uid_map"), lines(users))?;
    fs::write(format!("/proc/{pid}/gid_map"), lines(groups))?;
    let opened = File::open(format!("/proc/{pid}/ns/user"))?;
    opened.as_fd().try_clone_to_owned()
}

fn lines(ranges: &[IdRange]) -> String {
    let line = |IdRange { on_disk, seen, count }: &IdRange| format!("{on_disk} {seen} {count}\n");
    ranges.iter().map(line).collect::<Vec<_>>().concat()
}
