//! Bytes from one socket to another without a copy: through a pipe, by splice(2).
//!
//! Pipes cost descriptors and memory of the kernel, so there are few, and only flows that are worth it hold one, for
//! as long as it takes: an idle tunnel has none. Who gets none copies.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use rustix::process::{Resource, getrlimit};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// How many pipes there are at most, for all tunnels together: a sandbox that reads nothing can hold them all, and
/// what it takes from others is only speed.
const MAX_PIPES: usize = 64;
/// One pipe for so many descriptors of this process: two each are little of what is kept for other things.
const DESCRIPTORS_FOR_A_PIPE: u64 = 256;
/// How large a pipe should be. All together stay within what an ordinary user gets (pipe(7), `pipe-user-pages-soft`).
const PIPE_BYTES: usize = 256 << 10;
/// How large a pipe is that can't be made larger.
const USUAL_PIPE_BYTES: usize = 64 << 10;

static PIPES: LazyLock<Pool> = LazyLock::new(|| {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let most = usize::try_from(descriptors / DESCRIPTORS_FOR_A_PIPE).unwrap_or(MAX_PIPES);
    Pool::new(most.min(MAX_PIPES))
});

/// What may be the end of a tunnel whose bytes the kernel can move.
pub trait Spliceable {
    /// The socket itself, as long as every byte of it comes and goes as it is.
    fn socket(&self) -> Option<Socket<'_>> {
        None
    }
}

impl Spliceable for TcpStream {
    fn socket(&self) -> Option<Socket<'_>> {
        Some(Socket::Tcp(self))
    }
}

impl Spliceable for UnixStream {
    fn socket(&self) -> Option<Socket<'_>> {
        Some(Socket::Unix(self))
    }
}

/// A socket that splice(2) takes.
#[derive(Debug, Clone, Copy)]
pub enum Socket<'a> {
    /// One of TCP.
    Tcp(&'a TcpStream),
    /// One of this machine.
    Unix(&'a UnixStream),
}

impl Socket<'_> {
    pub(super) fn poll_readable(self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Unix(stream) => stream.poll_read_ready(cx),
        }
    }

    fn poll_writable(self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(cx),
            Self::Unix(stream) => stream.poll_write_ready(cx),
        }
    }

    /// Does `step` now; when it would have to wait, the socket counts as not ready until the system says otherwise.
    fn attempt(
        self,
        interest: Interest,
        step: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_io(interest, || Ok(step(stream.as_fd())?)),
            Self::Unix(stream) => stream.try_io(interest, || Ok(step(stream.as_fd())?)),
        }
    }
}

/// The pipes that nobody uses now, and how many are in use.
struct Pool {
    most: usize,
    pipes: Mutex<Pipes>,
}

#[derive(Default)]
struct Pipes {
    spare: Vec<Pipe>,
    lent: usize,
}

impl Pool {
    fn new(most: usize) -> Self {
        Self { most, pipes: Mutex::default() }
    }

    /// Gives an empty pipe, or `None` when all are in use or the system makes no more.
    fn take(&'static self) -> Option<Lent> {
        let mut pipes = self.lock();
        if pipes.lent == self.most {
            return None;
        }
        let pipe = pipes.spare.pop().map_or_else(Pipe::new, Ok).ok()?;
        pipes.lent += 1;
        Some(Lent { pipe: Some(pipe), inside: 0, pool: self })
    }

    fn give_back(&self, pipe: Option<Pipe>) {
        let mut pipes = self.lock();
        pipes.lent -= 1;
        pipes.spare.extend(pipe);
    }

    fn lock(&self) -> MutexGuard<'_, Pipes> {
        // Every change is a single step: a panic elsewhere leaves it whole.
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    bytes: usize,
}

impl Pipe {
    fn new() -> rustix::io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A user who has many pipes gets small ones.
        let bytes = fcntl_setpipe_size(&write, PIPE_BYTES).unwrap_or(USUAL_PIPE_BYTES);
        Ok(Self { read, write, bytes })
    }
}

/// A pipe for one direction of one tunnel. It goes back when it is dropped, unless there are bytes in it: those
/// belong to nobody else.
pub(super) struct Lent {
    /// There until it is dropped.
    pipe: Option<Pipe>,
    inside: usize,
    pool: &'static Pool,
}

impl Lent {
    /// Takes a pipe for a flow that is worth one.
    pub(super) fn take() -> Option<Self> {
        PIPES.take()
    }

    /// How many bytes are in it.
    pub(super) fn inside(&self) -> usize {
        self.inside
    }

    /// Moves what there is from the socket into the empty pipe; 0 is the end of what comes.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, from: Socket<'_>) -> Poll<io::Result<usize>> {
        debug_assert_eq!(self.inside, 0, "a full pipe looks like a socket without bytes");
        let Some(pipe) = &self.pipe else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(from.poll_readable(cx))?;
            let step = |socket: BorrowedFd<'_>| move_bytes(socket, pipe.write.as_fd(), pipe.bytes);
            match from.attempt(Interest::READABLE, step) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(moved) => {
                    self.inside = moved;
                    return Poll::Ready(Ok(moved));
                }
            }
        }
    }

    /// Moves what is in the pipe to the socket, as far as that takes it.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, to: Socket<'_>) -> Poll<io::Result<usize>> {
        let Some(pipe) = &self.pipe else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(to.poll_writable(cx))?;
            // No more than there is: for the rest, the kernel would hold the last segment back.
            let step = |socket: BorrowedFd<'_>| move_bytes(pipe.read.as_fd(), socket, self.inside);
            match to.attempt(Interest::WRITABLE, step) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Err(error) => return Poll::Ready(Err(error)),
                Ok(moved) => {
                    self.inside -= moved;
                    return Poll::Ready(Ok(moved));
                }
            }
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.give_back(self.pipe.take().filter(|_| self.inside == 0));
    }
}

fn move_bytes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> rustix::io::Result<usize> {
    rustix::io::retry_on_intr(|| {
        splice(from, None, to, None, most, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)
    })
}

/// Whether the system can't splice here at all.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    [Errno::INVAL, Errno::NOSYS].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn pool() -> &'static Pool {
        Box::leak(Box::new(Pool::new(3)))
    }

    #[test]
    fn a_pipe_comes_back_only_when_it_is_empty() {
        let pool = pool();
        let spare_and_lent = || {
            let pipes = pool.lock();
            (pipes.spare.len(), pipes.lent)
        };
        drop(pool.take().unwrap());
        assert_eq!(spare_and_lent(), (1, 0));
        let mut lent = pool.take().unwrap();
        lent.inside = 1;
        drop(lent);
        assert_eq!(spare_and_lent(), (0, 0));
    }

    #[test]
    fn there_are_so_many_pipes_and_no_more() {
        let pool = pool();
        let all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(all.len(), 3);
        drop(all);
        assert!(pool.take().is_some());
    }

    #[tokio::test]
    async fn bytes_pass_through_in_their_order() {
        let (near, from) = UnixStream::pair().unwrap();
        let (to, far) = UnixStream::pair().unwrap();
        let mut near = near.into_std().unwrap();
        near.write_all(b"through a pipe").unwrap();
        let mut lent = pool().take().unwrap();
        let filled = std::future::poll_fn(|cx| lent.poll_fill(cx, Socket::Unix(&from))).await;
        assert_eq!((filled.unwrap(), lent.inside()), (14, 14));
        let drained = std::future::poll_fn(|cx| lent.poll_drain(cx, Socket::Unix(&to))).await;
        assert_eq!((drained.unwrap(), lent.inside()), (14, 0));
        let mut got = [0; 14];
        far.readable().await.unwrap();
        assert_eq!(far.try_read(&mut got).unwrap(), 14);
        assert_eq!(&got, b"through a pipe");
        drop(near);
        let end = std::future::poll_fn(|cx| lent.poll_fill(cx, Socket::Unix(&from))).await;
        assert_eq!(end.unwrap(), 0);
    }
}
