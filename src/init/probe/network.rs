//! Attacks that go through a socket.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::time::Duration;

use super::Endpoint;

/// How long a connection or an answer may take: all that is reachable lies on this machine.
const PATIENCE: Duration = Duration::from_secs(4);
/// How much of an answer is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 16 * 1024;

/// Connects, sends the request if there is one, and looks for `expect` in what comes back.
pub(super) fn connect(to: &Endpoint, request: Option<&str>, expect: &str) -> io::Result<String> {
    match to {
        Endpoint::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            converse(stream, request, expect)
        }
        Endpoint::Unix(path) => local(UnixStream::connect(path)?, request, expect),
        Endpoint::Abstract(name) => {
            let address = UnixAddress::from_abstract_name(name)?;
            local(UnixStream::connect_addr(&address)?, request, expect)
        }
    }
}

fn local(stream: UnixStream, request: Option<&str>, expect: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    converse(stream, request, expect)
}

fn converse(mut stream: impl Read + Write, request: Option<&str>, expect: &str) -> io::Result<String> {
    // Who greets and hangs up at once may do so before this arrives: what counts is what can be read.
    let sent = request.map_or(Ok(()), |request| stream.write_all(request.as_bytes()));
    if expect.is_empty() {
        return Ok("connected".to_owned());
    }
    let mut answer = Vec::new();
    let mut chunk = [0; 1024];
    let mut left = MAX_ANSWER_BYTES;
    while left > 0 && !contains(&answer, expect) && !is_refusal(&answer) {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                answer.extend_from_slice(&chunk[..count]);
                left = left.saturating_sub(count as u64);
            }
            Err(error) if answer.is_empty() => return sent.and(Err(error)),
            Err(_) => break,
        }
    }
    if contains(&answer, expect) {
        return Ok("the expected answer came".to_owned());
    }
    let text = String::from_utf8_lossy(&answer);
    Err(io::Error::other(format!("another answer: {}", text.lines().next().unwrap_or_default())))
}

/// Tells whether an HTTP server has said no: nothing more is to come, also where it keeps the connection.
fn is_refusal(answer: &[u8]) -> bool {
    let is_whole = answer.windows(4).any(|end| end == b"\r\n\r\n");
    is_whole && (answer.starts_with(b"HTTP/1.1 4") || answer.starts_with(b"HTTP/1.1 5"))
}

fn contains(answer: &[u8], expect: &str) -> bool {
    answer.windows(expect.len()).any(|window| window == expect.as_bytes())
}

/// Sends a datagram and waits for the canary's answer.
pub(super) fn datagram(to: SocketAddr, expect: &str) -> io::Result<String> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    // A connected socket hears that nobody listens.
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"probe")?;
    let mut answer = [0; 1024];
    let count = socket.recv(&mut answer)?;
    if contains(&answer[..count], expect) {
        Ok("the canary answered".to_owned())
    } else {
        Err(io::Error::other("another answered"))
    }
}
