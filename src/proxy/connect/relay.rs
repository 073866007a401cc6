//! The bytes of a tunnel, both ways, without a buffer while nothing moves.
//!
//! Small messages are copied through a buffer of the thread. Where a read fills that buffer, more is on its way: from
//! then on the bytes stay in the kernel, until only few come at once again.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::splice::{Lent, Socket, Spliceable, is_unsupported};
use crate::proxy::Limits;
use crate::proxy::journal::Meter;
use crate::proxy::refusal::Reason;

const SCRATCH_BYTES: usize = 64 << 10;
/// What comes at once in a flow that is worth a pipe.
const LEAST_SPLICED_BYTES: usize = 16 << 10;

thread_local! {
    /// One buffer for all tunnels that a thread serves: it is empty again before the thread turns to another.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// How a tunnel ended; `Err` carries why it did not end in order.
pub(super) type End = Result<(), Reason>;

/// Copies between `client` and `upstream` until both have ended their direction, one breaks off, or a limit
/// of time is reached. `early` was read from the client already and goes first.
pub(super) async fn relay<C, U>(client: &mut C, upstream: &mut U, early: Vec<u8>, idle: Idle<'_>) -> End
where
    C: AsyncRead + AsyncWrite + Spliceable + Unpin,
    U: AsyncRead + AsyncWrite + Spliceable + Unpin,
{
    let meter = idle.meter;
    let mut up = Direction { rest: early, ..Direction::default() };
    let mut down = Direction::default();
    let mut timer = pin!(idle.timer());
    poll_fn(|cx| {
        let poll_up = up.poll_copy(cx, client, upstream, |bytes| meter.add_up(bytes));
        let poll_down = down.poll_copy(cx, upstream, client, |bytes| meter.add_down(bytes));
        match (poll_up, poll_down) {
            // An upstream that takes no more may still have something to say: that is delivered first.
            (_, Poll::Ready(Err(Side::From))) | (Poll::Ready(Err(Side::To)), Poll::Ready(Ok(()))) => {
                Poll::Ready(Err(Reason::UpstreamReset))
            }
            (_, Poll::Ready(Err(Side::To))) | (Poll::Ready(Err(Side::From)), _) => {
                Poll::Ready(Err(Reason::ClientReset))
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            (_, Poll::Pending) | (Poll::Pending, _) => idle.poll(cx, timer.as_mut()).map(Err),
        }
    })
    .await
}

/// The limits on the time in which nothing moves, and on the time whatever moves.
#[derive(Clone, Copy)]
pub(in crate::proxy) struct Idle<'a> {
    pub(in crate::proxy) meter: &'a Meter,
    limit: Duration,
    max_duration: Duration,
}

impl<'a> Idle<'a> {
    pub(in crate::proxy) fn new(meter: &'a Meter, limits: &Limits) -> Self {
        Self { meter, limit: limits.idle, max_duration: limits.max_duration }
    }

    /// How long nothing has to happen, or the limit that was reached.
    pub(in crate::proxy) fn left(&self) -> Result<Duration, Reason> {
        let left = |limit: Duration, spent, reason| {
            limit.checked_sub(spent).filter(|left| !left.is_zero()).ok_or(reason)
        };
        let whole = left(self.max_duration, self.meter.elapsed(), Reason::MaxDuration)?;
        left(self.limit, self.meter.idle(), Reason::IdleTimeout).map(|silent| silent.min(whole))
    }

    /// The timer for `poll`.
    fn timer(&self) -> Sleep {
        sleep(self.left().unwrap_or_default())
    }

    /// Ready when a limit is reached. The timer is set anew only when it fires, not for every byte.
    fn poll(&self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<Reason> {
        loop {
            ready!(timer.as_mut().poll(cx));
            match self.left() {
                Ok(left) => timer.as_mut().reset(Instant::now() + left),
                Err(reason) => return Poll::Ready(reason),
            }
        }
    }

    /// Waits until a limit is reached, and says which.
    pub(in crate::proxy) async fn wait(self) -> Reason {
        let mut timer = pin!(self.timer());
        poll_fn(|cx| self.poll(cx, timer.as_mut())).await
    }
}

/// One direction of a tunnel.
#[derive(Default)]
struct Direction {
    /// Read but not yet written: empty and without memory except while the receiver is slower than the sender.
    rest: Vec<u8>,
    /// How much of `rest` is written.
    sent: usize,
    /// The same, where the bytes stay in the kernel. At most one of the two holds any.
    pipe: Option<Lent>,
    flow: Flow,
    state: State,
}

/// How much comes at once.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Flow {
    #[default]
    Small,
    /// So much that a pipe is worth it.
    Bulk,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The sender has ended; the receiver is being told.
    Ending,
    Done,
    /// The receiver takes nothing more.
    Deaf,
}

/// Which side of a direction broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    From,
    To,
}

impl Direction {
    /// Whether the next bytes go through a pipe, or some are in one still.
    fn is_spliced(&self) -> bool {
        self.flow == Flow::Bulk || self.pipe.is_some()
    }

    fn poll_copy<F, T>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        count: impl Fn(usize),
    ) -> Poll<Result<(), Side>>
    where
        F: AsyncRead + Spliceable + Unpin,
        T: AsyncWrite + Spliceable + Unpin,
    {
        loop {
            let sockets = from.socket().zip(to.socket());
            let step = match self.state {
                State::Open if !self.rest.is_empty() => self.poll_rest(cx, to, &count),
                State::Open
                    if self.is_spliced()
                        && let Some((from, to)) = sockets =>
                {
                    self.poll_splice(cx, from, to, &count)
                }
                State::Open => self.poll_through(cx, from, to, &count),
                State::Ending => Pin::new(&mut *to).poll_shutdown(cx).map(|ended| match ended {
                    Ok(()) => {
                        self.state = State::Done;
                        Ok(())
                    }
                    Err(_) => Err(Side::To),
                }),
                State::Done => return Poll::Ready(Ok(())),
                State::Deaf => return Poll::Ready(Err(Side::To)),
            };
            match ready!(step) {
                Ok(()) => {}
                Err(Side::To) => {
                    *self = Self { state: State::Deaf, ..Self::default() };
                }
                Err(Side::From) => return Poll::Ready(Err(Side::From)),
            }
        }
    }

    /// Moves bytes within the kernel. While the sender is silent the pipe is empty, and somebody else can have it.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: Socket<'_>,
        to: Socket<'_>,
        count: &impl Fn(usize),
    ) -> Poll<Result<(), Side>> {
        if let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.inside() > 0) {
            let moved = ready!(pipe.poll_drain(cx, to)).map_err(|_| Side::To)?;
            count(moved);
            self.pipe.take_if(|pipe| pipe.inside() == 0 && self.flow == Flow::Small);
            return Poll::Ready(Ok(()));
        }
        let Some(mut pipe) = self.pipe.take().or_else(Lent::take) else {
            self.flow = Flow::Small;
            return Poll::Ready(Ok(()));
        };
        match ready!(pipe.poll_fill(cx, from)) {
            Ok(0) => self.state = State::Ending,
            Ok(moved) => {
                // What is in the pipe goes out, whatever comes after it.
                self.pipe = Some(pipe);
                if moved < LEAST_SPLICED_BYTES {
                    self.flow = Flow::Small;
                }
            }
            Err(error) if is_unsupported(&error) => self.flow = Flow::Small,
            Err(_) => return Poll::Ready(Err(Side::From)),
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what an earlier read left over.
    fn poll_rest<T: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut T,
        count: &impl Fn(usize),
    ) -> Poll<Result<(), Side>> {
        let written = ready!(poll_write(cx, to, &self.rest[self.sent..])).map_err(|_| Side::To)?;
        count(written);
        self.sent += written;
        if self.sent == self.rest.len() {
            self.rest = Vec::new();
            self.sent = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads into the thread's buffer and writes at once; only what the receiver does not take is kept.
    ///
    /// `poll_read` knows that a short read has drained the socket, which saves the read that would find nothing.
    fn poll_through<F, T>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        count: &impl Fn(usize),
    ) -> Poll<Result<(), Side>>
    where
        F: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(SCRATCH_BYTES, 0);
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(from).poll_read(cx, &mut buffer)).map_err(|_| Side::From)?;
            let read = buffer.filled();
            if read.is_empty() {
                self.state = State::Ending;
                return Poll::Ready(Ok(()));
            }
            if read.len() == SCRATCH_BYTES {
                self.flow = Flow::Bulk;
            }
            let written = match poll_write(cx, to, read) {
                Poll::Ready(written) => written.map_err(|_| Side::To)?,
                Poll::Pending => 0,
            };
            count(written);
            self.rest.extend_from_slice(&read[written..]);
            Poll::Ready(Ok(()))
        })
    }
}

/// A writer that takes nothing will never take anything.
fn poll_write<T: AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    to: &mut T,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(to).poll_write(cx, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(Ok(written)),
    }
}

#[cfg(test)]
mod tests;
