//! What the guardian is measured against: a bare relay, and a bare hyper server with a client behind it. Neither
//! has rules, limits or a log.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt, Empty, combinators::BoxBody};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Mutex;

use super::stream::{Address, Duplex};

/// As many may wait to be accepted as in the guardian.
const BACKLOG: u32 = 1024;

/// What is done with a client's connection.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Relay,
    Hyper,
}

/// A TCP listener that takes an address which was in use a moment ago.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until the process is killed.
pub(crate) async fn serve(kind: Kind, address: Address) -> io::Result<()> {
    match address {
        Address::Tcp(address) => {
            let listener = listen(address)?;
            super::say_ready(&listener.local_addr()?.to_string());
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                tokio::spawn(converse(kind, stream));
            }
        }
        Address::Unix(path) => {
            let listener = UnixListener::bind(path)?;
            super::say_ready("");
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(converse(kind, stream));
            }
        }
    }
}

async fn converse(kind: Kind, stream: impl Duplex) {
    // A client that leaves is no error here.
    match kind {
        Kind::Relay => drop(relay(stream).await),
        Kind::Hyper => drop(answer(stream).await),
    }
}

/// Reads one CONNECT, dials its target and joins the two.
async fn relay(mut client: impl Duplex) -> io::Result<()> {
    let (mut buffer, mut filled) = ([0; 2048], 0);
    let (target, head_bytes) = loop {
        match client.read(&mut buffer[filled..]).await? {
            0 => return Ok(()),
            read => filled += read,
        }
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut head = httparse::Request::new(&mut fields);
        if let Ok(httparse::Status::Complete(bytes)) = head.parse(&buffer[..filled]) {
            break (head.path.unwrap_or_default().to_owned(), bytes);
        }
    };
    let mut upstream = dial(&target).await?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    upstream.write_all(&buffer[head_bytes..filled]).await?;
    copy_bidirectional(&mut client, &mut upstream).await.map(drop)
}

#[expect(clippy::disallowed_methods, reason = "the benchmark goes to its own origin")]
async fn dial(target: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

type Body = BoxBody<Bytes, hyper::Error>;
type Upstream = Arc<Mutex<Option<SendRequest<Incoming>>>>;

/// Serves a client; CONNECT is refused, for that is what this server is asked about.
async fn answer(client: impl Duplex) -> hyper::Result<()> {
    let upstream = Upstream::default();
    let service = service_fn(move |request| forward(request, Arc::clone(&upstream)));
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(client), service)
        .await
}

/// Passes a request on, over one upstream connection for each client's.
async fn forward(mut request: Request<Incoming>, upstream: Upstream) -> hyper::Result<Response<Body>> {
    let authority = request.uri().authority().filter(|_| request.method() != hyper::Method::CONNECT);
    let Some(authority) = authority.map(ToString::to_string) else {
        let mut refused = Response::new(Empty::new().map_err(|never| match never {}).boxed());
        *refused.status_mut() = StatusCode::FORBIDDEN;
        return Ok(refused);
    };
    request.headers_mut().remove(hyper::header::PROXY_AUTHORIZATION);
    let mut kept = upstream.lock().await;
    if let Some(sender) = kept.as_mut()
        && sender.ready().await.is_ok()
    {
        return Ok(sender.send_request(request).await?.map(BodyExt::boxed));
    }
    let stream = dial(&authority).await.expect("the origin of the benchmark listens");
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let sender = kept.insert(sender);
    Ok(sender.send_request(request).await?.map(BodyExt::boxed))
}
