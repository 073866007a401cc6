//! A client's socket while an exchange reads from it, writes to it and watches it, all in one task.
//!
//! A client that has gone in both directions leaves nobody to hear an answer (H15); one that has only ended its own
//! direction still listens.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::sleep;

use super::beat::{BEAT, Beat};
use crate::proxy::connect::relay::Idle;
use crate::proxy::connection::Stream;
use crate::proxy::refusal::Reason;

/// The socket, whose reader and writer belong to one task: the lock is never waited for.
pub(super) struct Shared<'a, S>(Mutex<&'a mut S>);

/// Why nobody waits for the end of an exchange any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    Client,
    Patience(Reason),
}

impl<'a, S: Stream> Shared<'a, S> {
    pub(super) fn new(stream: &'a mut S) -> Self {
        Self(Mutex::new(stream))
    }

    fn lock(&self) -> MutexGuard<'_, &'a mut S> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the client has gone, or a limit of time is reached.
    pub(super) async fn lost(&self, idle: Idle<'_>, beat: &Arc<Beat>) -> Lost {
        loop {
            match idle.left() {
                Ok(left) if left < BEAT => sleep(left).await,
                Ok(_) => beat.next().await,
                Err(reason) => return Lost::Patience(reason),
            }
            if has_hung_up(&**self.lock()) {
                return Lost::Client;
            }
        }
    }
}

/// Tells whether the client has gone. It is asked now and then: readiness would tell the end of one direction again and
/// again.
pub(in crate::proxy) fn has_hung_up(socket: &impl AsFd) -> bool {
    shows(socket, PollFlags::empty())
}

/// Tells whether the client has gone, or says no more.
pub(in crate::proxy) fn has_ended(socket: &impl AsFd) -> bool {
    shows(socket, PollFlags::RDHUP)
}

fn shows(socket: &impl AsFd, sign: PollFlags) -> bool {
    let mut asked = [PollFd::new(socket, sign)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let signs = PollFlags::HUP | PollFlags::ERR | sign;
    poll(&mut asked, Some(&now)).is_ok() && asked[0].revents().intersects(signs)
}

impl<S: Stream> AsyncRead for &Shared<'_, S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.lock()).poll_read(cx, buffer)
    }
}

impl<S: Stream> AsyncWrite for &Shared<'_, S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self.lock()).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.lock()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn h15_only_a_client_that_left_in_both_directions_has_gone() {
        let (mut client, proxy) = UnixStream::pair().unwrap();
        assert!(!has_hung_up(&proxy));
        client.write_all(b"bytes that nobody has read").unwrap();
        assert!(!has_hung_up(&proxy));
        assert!(!has_ended(&proxy));
        client.shutdown(Shutdown::Write).unwrap();
        assert!(!has_hung_up(&proxy) && has_ended(&proxy));
        drop(client);
        assert!(has_hung_up(&proxy));
    }
}
