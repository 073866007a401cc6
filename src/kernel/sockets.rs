//! A socket's wish to be sent no descriptors.

#![allow(unsafe_code, reason = "system calls that no safe crate offers")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `SO_PASSRIGHTS`, since Linux 6.16; the C library does not name it yet.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Has the kernel refuse descriptors that somebody sends to this Unix socket, or to one accepted from it: the sender
/// gets `EPERM`. Otherwise a receiver that does not even take them closes them in its own name, and some descriptors
/// take as long to close as their sender likes.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 6.16.
pub fn refuse_descriptors(socket: &impl AsFd) -> io::Result<()> {
    let off: libc::c_int = 0;
    let length = libc::socklen_t::try_from(size_of_val(&off)).map_err(io::Error::other)?;
    // SAFETY: the option is a `c_int`, which lives for the call and whose size is given; the descriptor is borrowed.
    let set = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const off).cast(),
            length,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
