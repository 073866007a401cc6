//! Pipes and terminals as the event loop sees them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::{Receiver, Sender};

/// The end from which a command's output is read.
#[derive(Debug)]
pub(super) struct Output(Receiver);

impl Output {
    /// Takes a pipe's reading end or a terminal's master.
    pub(super) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        make_nonblocking(&descriptor)?;
        Ok(Self(Receiver::from_owned_fd_unchecked(descriptor)?))
    }

    /// Reads what is there, waiting for the first byte; 0 at the end.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        end_of_terminal(self.0.read(buffer).await)
    }

    /// Reads what is there without waiting; `None` when nothing is, 0 at the end.
    pub(super) fn read_now(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        // Not through the event loop's own `try_read`: it trusts a readiness that may not have been seen yet.
        match rustix::io::read(self.0.as_fd(), buffer) {
            Err(Errno::WOULDBLOCK) => Ok(None),
            result => end_of_terminal(result.map_err(io::Error::from)).map(Some),
        }
    }
}

/// Takes the end into which a command's input is written: a pipe's or a terminal's master.
pub(super) fn input(descriptor: OwnedFd) -> io::Result<Sender> {
    make_nonblocking(&descriptor)?;
    Sender::from_owned_fd_unchecked(descriptor)
}

fn make_nonblocking(descriptor: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(descriptor, fcntl_getfl(descriptor)? | OFlags::NONBLOCK)?)
}

/// A terminal whose last user has gone answers `EIO`, which is its end of file (pty(7)).
fn end_of_terminal(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(0),
        other => other,
    }
}
