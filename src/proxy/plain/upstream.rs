//! One HTTP/1.1 connection to an upstream: hyper speaks, and the bytes are counted for the request that they serve.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::Upload;
use crate::proxy::dial::upstream::Upstream as Dialled;
use crate::proxy::journal::Meter;

/// What is read of an answer before it goes on, and so the longest head of one.
const MAX_BUFFER_BYTES: usize = 64 << 10;

/// A connection to an upstream, for one request after the other.
pub(in crate::proxy) struct Upstream {
    sender: SendRequest<Upload>,
    connection: Connection<TokioIo<Metered>, Upload>,
    /// Whether `connection` has come to its end: it may not be asked any more then.
    has_ended: bool,
    link: Arc<Link>,
    address: SocketAddr,
}

impl Upstream {
    /// Begins to speak HTTP on a fresh connection to `address`.
    pub(super) async fn new(
        stream: Dialled,
        address: SocketAddr,
        meter: &Arc<Meter>,
    ) -> hyper::Result<Box<Self>> {
        let state = State { meter: Arc::clone(meter), probes: false };
        let link = Arc::new(Link(Mutex::new(state)));
        let metered = Metered { stream, link: Arc::clone(&link) };
        let mut speaker = http1::Builder::new();
        speaker.max_buf_size(MAX_BUFFER_BYTES);
        let (sender, connection) = speaker.handshake(TokioIo::new(metered)).await?;
        Ok(Box::new(Self { sender, connection, has_ended: false, link, address }))
    }

    /// Where it leads.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Counts for another request from now on.
    pub(super) fn count_for(&self, meter: &Arc<Meter>) {
        self.link.lock().meter = Arc::clone(meter);
    }

    /// Whether the connection is still there, and nothing but a new request is awaited on it.
    ///
    /// The system is asked: that the upstream has closed it may not have been noticed yet.
    pub(super) fn is_usable(&mut self) -> bool {
        self.link.lock().probes = true;
        let usable = self.is_idle(&mut Context::from_waker(Waker::noop()));
        self.link.lock().probes = false;
        usable
    }

    /// Whether the last exchange has ended on the wire in both directions, and left nothing behind.
    pub(super) async fn is_settled(&mut self) -> bool {
        poll_fn(|cx| Poll::Ready(self.is_idle(cx))).await
    }

    fn is_idle(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        !self.has_ended && self.sender.is_ready()
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.has_ended && Pin::new(&mut self.connection).poll(cx).is_ready() {
            self.has_ended = true;
        }
    }

    /// Sends a request; the answer comes while [`Self::alongside`] drives the connection.
    pub(super) fn send(
        &mut self,
        request: http::Request<Upload>,
    ) -> impl Future<Output = hyper::Result<http::Response<Incoming>>> + use<> {
        self.sender.send_request(request)
    }

    /// Drives the connection as long as `main` runs: its own end says nothing that `main` does not see.
    pub(super) async fn alongside<M: Future>(&mut self, main: M) -> M::Output {
        let mut main = pin!(main);
        poll_fn(|cx| {
            if let Poll::Ready(output) = main.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            self.drive(cx);
            Poll::Pending
        })
        .await
    }

    /// Takes the connection out of HTTP after a `101`, with what came behind it.
    pub(super) async fn into_stream(mut self: Box<Self>) -> (Dialled, Bytes) {
        if !self.has_ended {
            // However it ends: what is left of it is told apart by reading.
            let _ = (&mut self.connection).await;
        }
        let parts = self.connection.into_parts();
        (parts.io.into_inner().stream, parts.read_buf)
    }
}

/// What a connection and its owner share.
struct Link(Mutex<State>);

struct State {
    meter: Arc<Meter>,
    /// Whether the next read asks the system whether there is anything.
    probes: bool,
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Single assignments are all that happens under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection to an upstream, with its bytes counted.
struct Metered {
    stream: Dialled,
    link: Arc<Link>,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.link.lock().probes {
            // On a connection where nothing is awaited, whatever there is makes it useless.
            match recv(&self.stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Ok(_) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.link.lock().meter.add_down(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.link.lock().meter.add_up(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        self.link.lock().meter.add_up(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
