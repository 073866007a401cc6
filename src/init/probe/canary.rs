//! What attacks are aimed at: listeners of every kind that greet whoever reaches them.

use std::io::{self, BufRead, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::path::PathBuf;
use std::thread;

use serde::{Deserialize, Serialize};

use crate::kernel::attempt;

/// Which canaries are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// What they say.
    pub greeting: String,
    /// Addresses on which a TCP and a UDP port are opened.
    pub addresses: Vec<IpAddr>,
    /// Unix sockets in the file tree.
    pub sockets: Vec<PathBuf>,
    /// Unix sockets by name.
    pub names: Vec<String>,
}

/// Where they listen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canaries {
    /// The TCP ports, in the order of the addresses.
    pub tcp: Vec<SocketAddr>,
    /// The UDP ports, likewise.
    pub udp: Vec<SocketAddr>,
}

/// Reads a line with an order from standard input, listens, answers with a line, and greets until the input ends.
pub(super) fn serve() -> io::Result<()> {
    attempt::allow_tracers();
    let mut lines = io::stdin().lock().lines();
    let order: Order = serde_json::from_str(&lines.next().unwrap_or_else(|| Ok(String::new()))?)?;
    let mut canaries = Canaries::default();
    for address in &order.addresses {
        // An address can go away, or not be ready yet.
        let (Ok(listener), Ok(socket)) = (TcpListener::bind((*address, 0)), UdpSocket::bind((*address, 0)))
        else {
            continue;
        };
        canaries.tcp.push(listener.local_addr()?);
        let greeting = order.greeting.clone();
        thread::spawn(move || greet(listener.incoming(), &greeting));
        canaries.udp.push(socket.local_addr()?);
        let greeting = order.greeting.clone();
        thread::spawn(move || echo(&socket, &greeting));
    }
    let by_path = order.sockets.iter().map(UnixListener::bind);
    let by_name =
        order.names.iter().map(|name| UnixListener::bind_addr(&UnixAddress::from_abstract_name(name)?));
    for listener in by_path.chain(by_name) {
        let (listener, greeting) = (listener?, order.greeting.clone());
        thread::spawn(move || greet(listener.incoming(), &greeting));
    }
    let mut output = io::stdout().lock();
    serde_json::to_writer(&mut output, &canaries)?;
    writeln!(output)?;
    output.flush()?;
    // What comes is nothing; that it ends is the sign to go.
    for line in lines {
        line?;
    }
    Ok(())
}

fn greet<S: Write>(connections: impl Iterator<Item = io::Result<S>>, greeting: &str) {
    for mut stream in connections.flatten() {
        // Who has left already wants no greeting.
        let _ = stream.write_all(greeting.as_bytes());
    }
}

fn echo(socket: &UdpSocket, greeting: &str) {
    let mut buffer = [0; 1024];
    while let Ok((_, from)) = socket.recv_from(&mut buffer) {
        // As above.
        let _ = socket.send_to(greeting.as_bytes(), from);
    }
}
