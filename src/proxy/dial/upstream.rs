//! The connection to an upstream: plain, or inside of TLS to the company's proxy.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::proxy::{Socket, Spliceable};

/// A dialled connection, with what it has said already.
pub(in crate::proxy) struct Upstream {
    link: Link,
    /// What came behind the answer of the company's proxy: it is read first.
    early: Bytes,
    /// How many bytes TLS has taken but not yet sent.
    unsent: usize,
}

/// What carries the bytes.
pub(super) enum Link {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Upstream {
    pub(super) fn new(link: Link, early: Bytes) -> Self {
        Self { link, early, unsent: 0 }
    }

    /// A connection of a test's own.
    #[cfg(test)]
    pub(in crate::proxy) fn plain(stream: TcpStream) -> Self {
        Self::new(Link::Tcp(stream), Bytes::new())
    }

    /// The same connection, with bytes in front that were read from it already.
    pub(super) fn behind(self, early: Bytes) -> Self {
        Self { early, ..self }
    }

    /// Closes so that the upstream does not take what it received for the whole.
    pub(in crate::proxy) fn abort(self) {
        // Without it the peer sees an orderly end: worse, but no reason to keep the connection.
        let _ = self.bare().set_zero_linger();
    }

    fn bare(&self) -> &TcpStream {
        match &self.link {
            Link::Tcp(stream) => stream,
            Link::Tls(stream) => stream.get_ref().0,
        }
    }
}

impl AsFd for Upstream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bare().as_fd()
    }
}

impl Spliceable for Upstream {
    fn socket(&self) -> Option<Socket<'_>> {
        match &self.link {
            Link::Tcp(stream) if self.early.is_empty() => Some(Socket::Tcp(stream)),
            Link::Tcp(_) | Link::Tls(_) => None,
        }
    }
}

impl AsyncRead for Upstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let bytes = self.early.len().min(buffer.remaining());
            buffer.put_slice(&self.early[..bytes]);
            self.early.advance(bytes);
            return Poll::Ready(Ok(()));
        }
        match &mut self.link {
            Link::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Link::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Upstream {
    /// Inside of TLS, bytes count as written once they are sent: who only writes, as a relay does, would otherwise
    /// leave the last ones behind. So a write that waits has to be repeated with the same bytes.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { link, unsent, .. } = &mut *self;
        let stream = match link {
            Link::Tcp(stream) => return Pin::new(stream).poll_write(cx, bytes),
            Link::Tls(stream) => stream,
        };
        if *unsent == 0 {
            *unsent = ready!(Pin::new(&mut *stream).poll_write(cx, bytes))?;
        }
        if *unsent > bytes.len() {
            return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
        }
        ready!(Pin::new(stream).poll_flush(cx))?;
        Poll::Ready(Ok(std::mem::take(unsent)))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Link::Tcp(stream) = &mut self.link {
            return Pin::new(stream).poll_write_vectored(cx, slices);
        }
        let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
        self.poll_write(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.link {
            Link::Tcp(stream) => stream.is_write_vectored(),
            Link::Tls(_) => false,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.link {
            Link::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Link::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.link {
            Link::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Link::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
