//! The way from a port on the sandbox's loopback to a socket of the guardian.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::spawn_local;

use super::boot::Relay;

/// What a client reads while the guardian is away.
const AWAY: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nX-Cloister-Reason: shutting_down\r\n",
    "Connection: close\r\n\r\n",
    r#"{"error":"shutting_down","layer":"relay","hint":"the guardian is not running; on the host, run `cloister guardian start`"}"#,
    "\n",
);

/// Opens the port and forwards every connection until the process ends.
pub(super) async fn open(relay: Relay) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, relay.port)).await?;
    spawn_local(async move {
        loop {
            match listener.accept().await {
                Ok((client, _)) => drop(spawn_local(forward(client, relay.socket.clone()))),
                // Out of descriptors: those that are open will end.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    Ok(())
}

/// Forwards one connection; its errors are seen by both ends as a close.
async fn forward(mut client: TcpStream, socket: String) {
    match UnixStream::connect(&socket).await {
        Ok(mut guardian) => {
            let _ = client.set_nodelay(true);
            let _ = copy_bidirectional(&mut client, &mut guardian).await;
        }
        Err(_) => drop(client.write_all(AWAY.as_bytes()).await),
    }
}
