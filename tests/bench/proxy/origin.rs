//! The server behind the proxies: a small page, bulk bytes, a sink, events, an echo, and what looks like TLS.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{self, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// The line that turns a connection into an echo.
pub(crate) const ECHO_LINE: &[u8] = b"ECHO\n";
/// The beginning of a `ServerHello`, which is all that a proxy may look at.
pub(crate) const SERVER_HELLO: &[u8] = &{
    let mut hello = [0; 49];
    let head = [0x16, 3, 3, 0, 44, 2, 0, 0, 40, 3, 3];
    let mut at = 0;
    while at < head.len() {
        hello[at] = head[at];
        at += 1;
    }
    hello
};
const PAGE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n";
const EVENT: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n";
const CHUNK_BYTES: usize = 256 << 10;
/// How long the second event lets wait for itself; nobody stays for it.
const NEXT_EVENT: Duration = Duration::from_secs(5);

/// Serves until the process is killed.
pub(crate) async fn serve(address: SocketAddr) -> io::Result<()> {
    let listener = super::reference::listen(address)?;
    super::say_ready(&listener.local_addr()?.to_string());
    accept(listener).await
}

async fn accept(listener: TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // A client that leaves is no error here.
        tokio::spawn(async move { drop(converse(stream).await) });
    }
}

async fn converse(stream: TcpStream) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(2048, stream);
    loop {
        match stream.fill_buf().await?.first() {
            None => return Ok(()),
            Some(0x16) => {
                stream.get_mut().write_all(SERVER_HELLO).await?;
                return io::copy(&mut stream, &mut io::sink()).await.map(drop);
            }
            Some(_) => {}
        }
        let mut line = Vec::new();
        stream.read_until(b'\n', &mut line).await?;
        if line == ECHO_LINE {
            return echo(stream).await;
        }
        let length = skip_fields(&mut stream).await?;
        let line = String::from_utf8_lossy(&line);
        if line.starts_with("PUT") {
            io::copy(&mut (&mut stream).take(length), &mut io::sink()).await?;
            stream.get_mut().write_all(PAGE).await?;
        } else if line.contains("/events") {
            stream.get_mut().write_all(EVENT).await?;
            tokio::time::sleep(NEXT_EVENT).await;
            return Ok(());
        } else if let Some((_, rest)) = line.split_once("/bulk/") {
            let bytes = rest.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
            send_bulk(stream.get_mut(), bytes).await?;
        } else {
            stream.get_mut().write_all(PAGE).await?;
        }
    }
}

/// Skips the header fields and gives the `Content-Length` among them, or 0.
async fn skip_fields(stream: &mut BufReader<TcpStream>) -> io::Result<u64> {
    let (mut length, mut line) = (0, String::new());
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 || line == "\r\n" {
            return Ok(length);
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
}

async fn echo(mut stream: BufReader<TcpStream>) -> io::Result<()> {
    let mut buffer = [0; 512];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.get_mut().shutdown().await,
            read => stream.get_mut().write_all(&buffer[..read]).await?,
        }
    }
}

async fn send_bulk(stream: &mut TcpStream, mut left: usize) -> io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let chunk = vec![b'x'; CHUNK_BYTES];
    while left > 0 {
        let now = left.min(CHUNK_BYTES);
        stream.write_all(&chunk[..now]).await?;
        left -= now;
    }
    Ok(())
}
