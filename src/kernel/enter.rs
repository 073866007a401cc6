//! Entering the mounts of a sandbox from outside.

#![allow(unsafe_code, reason = "system calls that no safe crate offers")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Moves this process, which has one thread, into the user name space that owns a mount name space.
///
/// There it has every capability over what belongs to the user name space, and none over anything outside. Who made
/// it, or root, may do this (`setns(2)`).
pub fn enter_owner(mounts: impl AsFd) -> io::Result<()> {
    let owner = owning_user_namespace(&mounts)?;
    Ok(move_into_link_name_space(owner.as_fd(), Some(LinkNameSpaceType::User))?)
}

/// Moves this process into a mount name space, once it is in the user name space that owns it.
pub fn enter_mounts(mounts: impl AsFd) -> io::Result<()> {
    Ok(move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?)
}

/// The user name space to which another name space belongs (`ioctl_ns(2)`).
fn owning_user_namespace(namespace: &impl AsFd) -> io::Result<OwnedFd> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: the request takes no argument, and its result is a new descriptor or an error.
    let descriptor = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
