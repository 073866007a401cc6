//! Bodies of any size, no faster than the slower side takes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::harness::{Peer, Script, Server, read_head, within};

const WHOLE: usize = 128 << 20;
/// More than all buffers of the system and of the proxy take on the way.
const BUFFERED: usize = 48 << 20;
const PIECE: usize = 64 << 10;

/// Writes the whole, and counts what is taken.
async fn pour(to: &mut (impl AsyncWrite + Unpin), taken: &AtomicUsize) {
    let piece = vec![7; PIECE];
    for _ in 0..WHOLE / PIECE {
        to.write_all(&piece).await.unwrap();
        taken.fetch_add(PIECE, Ordering::Relaxed);
    }
}

/// Reads the whole.
async fn drain(from: &mut (impl AsyncRead + Unpin)) {
    let (mut left, mut piece) = (WHOLE, vec![0; PIECE]);
    while left > 0 {
        let read = within(from.read(&mut piece)).await.unwrap();
        assert!(read > 0 && piece[..read].iter().all(|byte| *byte == 7));
        left -= read;
    }
}

/// Gives everything else the chance to run until nothing more can move.
async fn let_flow() {
    for _ in 0..20_000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn h15_an_upload_waits_for_an_upstream_that_reads_slowly() {
    let server = Server::start().await;
    let authority = server.authority();
    let mut proxy = Script::allowing(&authority).start();
    let Peer { stream, .. } = proxy.connect();
    let (mut answer, mut upload) = stream.into_split();
    let proof = proxy.proof();
    let head = format!(
        "PUT http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n{proof}Content-Length: {WHOLE}\r\n\r\n"
    );
    upload.write_all(head.as_bytes()).await.unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let pouring = tokio::spawn({
        let taken = Arc::clone(&taken);
        async move {
            pour(&mut upload, &taken).await;
            upload
        }
    });
    let mut upstream = server.accept().await;
    read_head(&mut upstream).await;
    let_flow().await;
    assert!(taken.load(Ordering::Relaxed) < BUFFERED, "{taken:?}");

    drain(&mut upstream).await;
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert!(read_head(&mut answer).await.starts_with("HTTP/1.1 200 OK\r\n"));
    drop(pouring.await.unwrap());
}

#[tokio::test]
async fn h15_a_download_waits_for_a_client_that_reads_slowly() {
    let server = Server::start().await;
    let authority = server.authority();
    let mut proxy = Script::allowing(&authority).start();
    let mut peer = proxy.connect();
    peer.send(proxy.get_head(&authority, "/")).await;
    let mut upstream = server.accept().await;
    read_head(&mut upstream).await;
    let taken = Arc::new(AtomicUsize::new(0));
    let pouring = tokio::spawn({
        let taken = Arc::clone(&taken);
        async move {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {WHOLE}\r\n\r\n");
            upstream.write_all(head.as_bytes()).await.unwrap();
            pour(&mut upstream, &taken).await;
            upstream
        }
    });
    let_flow().await;
    assert!(taken.load(Ordering::Relaxed) < BUFFERED, "{taken:?}");

    peer.head().await;
    drain(&mut peer.stream).await;
    drop(pouring.await.unwrap());
    // The connection is fit for another request: nothing was lost or added.
    peer.send(proxy.get_head("other.test", "/")).await;
    assert!(peer.answer().await.0.starts_with("HTTP/1.1 403 "));
}

#[tokio::test]
async fn events_are_delivered_one_by_one() {
    let server = Server::start().await;
    let authority = server.authority();
    let mut proxy = Script::allowing(&authority).start();
    let mut peer = proxy.connect();
    peer.send(proxy.get_head(&authority, "/events")).await;
    let mut upstream = server.accept().await;
    read_head(&mut upstream).await;
    // Without a length the answer ends with its connection.
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await.unwrap();
    assert!(peer.head().await.ends_with("transfer-encoding: chunked\r\n\r\n"));
    for number in 0..100 {
        // The next event is sent only after this one has come: whatever waits for more would wait for ever.
        let event = format!("data: {number}\n\n");
        upstream.write_all(event.as_bytes()).await.unwrap();
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        assert_eq!(peer.exactly(chunk.len()).await, chunk.as_bytes());
    }
    drop(upstream);
    assert_eq!(peer.exactly(5).await, b"0\r\n\r\n");
}
