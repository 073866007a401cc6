//! The way from a port on the sandbox's loopback to a socket of the guardian.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::spawn_local;

use super::boot::Relay;

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
///
/// An end of the guardian's is passed on as an end, also where the guardian broke the connection off: its socket shows
/// no difference that could be relied on, and to reset a client that has all of its answer would be worse.
async fn forward(mut client: TcpStream, socket: String) {
    match UnixStream::connect(&socket).await {
        Ok(mut guardian) => {
            let _ = client.set_nodelay(true);
            let _ = copy_bidirectional(&mut client, &mut guardian).await;
        }
        Err(error) => drop(client.write_all(refusal(&error).as_bytes()).await),
    }
}

/// What a client reads for which there is no connection to the guardian.
fn refusal(error: &io::Error) -> String {
    let (reason, hint) = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ("shutting_down", "the guardian is not running; on the host, run `cloister guardian start`")
        }
        // Out of descriptors here, or too many wait for the guardian to take them.
        _ => ("overloaded", "this sandbox has too many connections; close some and try again in a moment"),
    };
    format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nX-Cloister-Reason: {reason}\r\n\
         Connection: close\r\n\r\n{{\"error\":\"{reason}\",\"layer\":\"relay\",\"hint\":\"{hint}\"}}\n"
    )
}

#[cfg(test)]
mod tests {
    // All of it stands in the function: a benchmark compiles this file too, and no tests.
    #[tokio::test]
    async fn a_guardian_that_is_away_is_told_from_one_that_takes_no_more() {
        use std::path::Path;

        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
        use tokio::io::AsyncReadExt as _;

        use super::*;

        /// What a client is told whose relay leads there.
        async fn told(socket: &Path) -> String {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            #[expect(clippy::disallowed_methods, reason = "this is the client")]
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            forward(listener.accept().await.unwrap().0, socket.to_str().unwrap().to_owned()).await;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        }

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("proxy.sock");
        assert!(told(&path).await.contains("X-Cloister-Reason: shutting_down\r\n"), "nothing is there");
        let guardian = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&guardian, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        // One may wait to be accepted, and no other.
        listen(&guardian, 0).unwrap();
        let _waiting = UnixStream::connect(&path).await.unwrap();
        let answer = told(&path).await;
        assert!(answer.contains("X-Cloister-Reason: overloaded\r\n"), "{answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&body["error"], &body["layer"]), (&"overloaded".into(), &"relay".into()));
        drop(guardian);
        assert!(told(&path).await.contains("X-Cloister-Reason: shutting_down\r\n"), "nobody listens there");
    }
}
