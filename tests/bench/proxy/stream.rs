//! Connections of both kinds.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Where something listens.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    /// A word with a slash is a path.
    pub(crate) fn parse(text: &str) -> Self {
        if text.contains('/') {
            Self::Unix(text.into())
        } else {
            Self::Tcp(text.parse().expect("an address is given"))
        }
    }

    pub(crate) async fn connect(&self) -> io::Result<Stream> {
        #[expect(clippy::disallowed_methods, reason = "the benchmark is a client of proxies")]
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        }
    }
}

/// Bytes both ways.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Duplex for T {}

pub(crate) type Stream = Box<dyn Duplex>;
