//! What goes in comes out, whatever the sizes, the pauses and the order of the ends.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::yield_now;

use super::*;

/// One end of a tunnel, as its program uses it: what it sends, and in which pieces and pauses both go.
#[derive(Debug, Clone)]
struct Program {
    pieces: Vec<(usize, u8)>,
    reads: Vec<(usize, u8)>,
    /// Whether it reads to the end before it says anything.
    listens_first: bool,
}

fn program(listens_first: impl Strategy<Value = bool>) -> impl Strategy<Value = Program> {
    let piece = || (prop_oneof![1..100_usize, 60_000..70_000_usize, 1..400_000_usize], 0..6_u8);
    (vec(piece(), 0..6), vec(piece(), 1..4), listens_first)
        .prop_map(|(pieces, reads, listens_first)| Program { pieces, reads, listens_first })
}

/// Bytes that tell where they belong.
fn pattern(length: usize) -> Vec<u8> {
    (0_u32..).flat_map(|at| at.wrapping_mul(0x9e37_79b1).to_le_bytes()).take(length).collect()
}

async fn pause(turns: u8) {
    for _ in 0..turns {
        yield_now().await;
    }
}

async fn send(mut to: impl AsyncWrite + Unpin, bytes: Vec<u8>, pieces: Vec<(usize, u8)>) {
    let mut rest = &bytes[..];
    for (size, turns) in pieces {
        let (piece, after) = rest.split_at(size);
        to.write_all(piece).await.unwrap();
        rest = after;
        pause(turns).await;
    }
    to.shutdown().await.unwrap();
}

async fn receive(mut from: impl AsyncRead + Unpin, reads: Vec<(usize, u8)>) -> Vec<u8> {
    let mut got = Vec::new();
    for (most, turns) in reads.into_iter().cycle() {
        if (&mut from).take(most as u64).read_to_end(&mut got).await.unwrap() < most {
            break;
        }
        pause(turns).await;
    }
    got
}

/// Runs the program and gives what it read.
async fn run(stream: impl AsyncRead + AsyncWrite + Unpin, program: Program, bytes: Vec<u8>) -> Vec<u8> {
    let (from, to) = tokio::io::split(stream);
    if program.listens_first {
        let got = receive(from, program.reads).await;
        send(to, bytes, program.pieces).await;
        return got;
    }
    tokio::join!(receive(from, program.reads), send(to, bytes, program.pieces)).0
}

async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "a pair of sockets for a test")]
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

async fn check<C, U>(
    (client, inner_client): (C, C),
    (upstream, inner_upstream): (U, U),
    programs: [Program; 2],
    early: usize,
) where
    C: AsyncRead + AsyncWrite + Spliceable + Unpin + Send + 'static,
    U: AsyncRead + AsyncWrite + Spliceable + Unpin + Send + 'static,
{
    let [up, down] =
        programs.clone().map(|program| program.pieces.iter().map(|(size, _)| size).sum::<usize>());
    let (all_up, all_down) = (pattern(early + up), pattern(down));
    let (begin, rest) = all_up.split_at(early);
    let meter = Arc::new(Meter::new(Arc::default()));
    let relayed = tokio::spawn({
        let (meter, early) = (Arc::clone(&meter), begin.to_vec());
        let (mut client, mut upstream) = (inner_client, inner_upstream);
        async move {
            let idle = Idle::new(&meter, &Limits::default());
            relay(&mut client, &mut upstream, early, idle).await
        }
    });
    let [client_program, upstream_program] = programs;
    let (got_down, got_up) = tokio::join!(
        run(client, client_program, rest.to_vec()),
        run(upstream, upstream_program, all_down.clone())
    );
    assert!(got_up == all_up, "{} of {} bytes up", got_up.len(), all_up.len());
    assert!(got_down == all_down, "{} of {} bytes down", got_down.len(), all_down.len());
    assert_eq!(relayed.await.unwrap(), Ok(()));
    assert_eq!(meter.bytes(), (all_up.len() as u64, all_down.len() as u64));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_in_comes_out(
        client in program(any::<bool>()),
        // If both listened first, nobody would ever speak.
        upstream in program(Just(false)),
        early in prop_oneof![Just(0), 1..100_000_usize],
        kind in 0..3_u8,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let programs = [client, upstream];
            match kind {
                0 => check(UnixStream::pair().unwrap(), tcp_pair().await, programs, early).await,
                1 => check(tcp_pair().await, tcp_pair().await, programs, early).await,
                _ => check(tcp_pair().await, UnixStream::pair().unwrap(), programs, early).await,
            }
        });
    }
}

/// One direction that is looked at from outside, between two pairs of sockets.
struct Watched {
    direction: Direction,
    near: UnixStream,
    from: UnixStream,
    to: UnixStream,
    far: UnixStream,
}

impl Watched {
    fn new() -> Self {
        let ((near, from), (to, far)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        Self { direction: Direction::default(), near, from, to, far }
    }

    async fn poll(&mut self) -> Poll<Result<(), Side>> {
        yield_now().await;
        let Self { direction, from, to, .. } = self;
        poll_fn(|cx| Poll::Ready(direction.poll_copy(cx, from, to, |_| {}))).await
    }

    /// Sends bytes and reads them at the other end.
    async fn pass(&mut self, bytes: &[u8]) {
        let (mut sent, mut got) = (0, Vec::new());
        while got.len() < bytes.len() {
            sent += self.near.try_write(&bytes[sent..]).unwrap_or(0);
            assert_eq!(self.poll().await, Poll::Pending);
            while self.far.try_read_buf(&mut got).is_ok_and(|read| read > 0) {}
        }
        assert!(got == bytes);
        assert_eq!(self.poll().await, Poll::Pending);
    }
}

#[tokio::test]
async fn a_flow_has_a_pipe_only_while_it_flows() {
    let mut watched = Watched::new();
    watched.pass(b"small").await;
    assert_eq!(watched.direction.flow, Flow::Small);
    watched.pass(&pattern(1_000_000)).await;
    assert_eq!(watched.direction.flow, Flow::Bulk, "the next bytes would be many again");
    assert!(watched.direction.pipe.is_none(), "nothing flows");
    watched.pass(b"small").await;
    assert_eq!(watched.direction.flow, Flow::Small);
    assert!(watched.direction.pipe.is_none() && watched.direction.rest.capacity() == 0);
}

#[tokio::test]
async fn a_receiver_that_leaves_takes_its_bytes_with_it() {
    let mut watched = Watched::new();
    let bytes = pattern(4_000_000);
    let mut sent = 0;
    // Until nothing moves any more: the bytes lie in the pipe, among other places.
    for _ in 0..100 {
        sent += watched.near.try_write(&bytes[sent..]).unwrap_or(0);
        assert_eq!(watched.poll().await, Poll::Pending);
    }
    assert!(watched.direction.pipe.as_ref().is_some_and(|pipe| pipe.inside() > 0));
    let (_, gone) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut watched.far, gone));
    while watched.poll().await.is_pending() {}
    assert_eq!(watched.poll().await, Poll::Ready(Err(Side::To)));
    assert!(watched.direction.pipe.is_none());
}
