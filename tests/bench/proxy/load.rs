//! The load: what is asked of a proxy, how often, and what that took.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::origin::{ECHO_LINE, SERVER_HELLO};
use super::process::Process;
use super::stream::{Address, Stream};

/// No single step may take longer.
const PATIENCE: Duration = Duration::from_mins(2);
/// How many clients ask at once.
const CLIENTS: usize = 16;
const MESSAGE: [u8; 64] = [b'm'; 64];

/// A way to the origin.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) address: Address,
    pub(crate) way: Way,
    /// Whose time is counted.
    pub(crate) process: Option<Process>,
}

/// What stands between the load and the origin.
#[derive(Clone)]
pub(crate) enum Way {
    /// Nothing.
    Direct,
    /// A proxy that knows the origin by this host and wants these credentials.
    Proxy { host: &'static str, port: u16, credentials: String },
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Work {
    /// A tunnel, a small page through it, its end.
    Tunnel,
    /// A tunnel to port 443, a `ClientHello`, the beginning of the answer.
    TlsTunnel(Arc<[u8]>),
    /// A tunnel to a host that is on no list, on a new connection.
    Denied,
    /// A small page, on a connection that is kept.
    Page,
    /// Until the first event has come.
    Event,
    /// 64 bytes there and back, through one tunnel.
    PingPong,
    /// Bytes through so many tunnels at once, this many each.
    Download {
        tunnels: usize,
        bytes: usize,
    },
    Upload {
        tunnels: usize,
        bytes: usize,
    },
}

/// What it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measure {
    /// Operations a second; of transfers, GB.
    pub(crate) rate: f64,
    /// Seconds of the proxy's own time for each; of transfers, for a GB.
    pub(crate) cpu: f64,
    /// Microseconds that half of them did not exceed.
    pub(crate) p50: f64,
}

impl Peer {
    /// Asks `count` times.
    pub(crate) async fn measure(&self, work: &Work, count: usize) -> Measure {
        let (clients, operations) = match *work {
            Work::Download { tunnels, bytes } | Work::Upload { tunnels, bytes } => {
                (tunnels, tunnels as f64 * bytes as f64 / 1e9)
            }
            Work::PingPong | Work::Event => (1, count as f64),
            _ => (CLIENTS, count as f64),
        };
        let left = Arc::new(AtomicUsize::new(count));
        let cpu = self.cpu_seconds();
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            tasks.spawn(self.clone().ask_while_left(work.clone(), Arc::clone(&left)));
        }
        let mut times: Vec<Duration> = tasks.join_all().await.concat();
        times.sort_unstable();
        Measure {
            rate: operations / start.elapsed().as_secs_f64(),
            cpu: (self.cpu_seconds() - cpu) / operations,
            p50: times[times.len() / 2].as_secs_f64() * 1e6,
        }
    }

    fn cpu_seconds(&self) -> f64 {
        self.process.map_or(0.0, Process::cpu_seconds)
    }

    async fn ask_while_left(self, work: Work, left: Arc<AtomicUsize>) -> Vec<Duration> {
        let mut times = Vec::new();
        let mut kept = None;
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            let start = Instant::now();
            let done = timeout(PATIENCE, self.ask(&work, &mut kept)).await;
            done.unwrap_or_else(|_| panic!("{}: {work:?} takes too long", self.name));
            times.push(start.elapsed());
        }
        times
    }

    async fn ask(&self, work: &Work, kept: &mut Option<Stream>) {
        match work {
            Work::Tunnel => {
                let mut stream = self.tunnel().await;
                assert_eq!(get(&mut stream, "GET /page HTTP/1.1\r\nHost: o\r\n\r\n").await, 200);
            }
            Work::TlsTunnel(hello) => {
                let mut stream = self.tunnel_to(443).await;
                stream.write_all(hello).await.unwrap();
                stream.read_exact(&mut [0; SERVER_HELLO.len()]).await.unwrap();
            }
            Work::Denied => {
                let mut stream = self.address.connect().await.unwrap();
                let request = self.head("CONNECT denied.test:443", "denied.test:443");
                assert_eq!(get(&mut stream, &request).await, 403, "{}", self.name);
            }
            Work::Page => {
                if kept.is_none() {
                    *kept = Some(self.address.connect().await.unwrap());
                }
                let stream = kept.as_mut().unwrap();
                assert_eq!(get(stream, &self.plain("/page")).await, 200, "{}", self.name);
            }
            Work::Event => {
                let mut stream = self.address.connect().await.unwrap();
                stream.write_all(self.plain("/events").as_bytes()).await.unwrap();
                let mut seen = Vec::new();
                while !seen.ends_with(b"data: 1\n\n\r\n") {
                    assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0, "{}", self.name);
                }
            }
            Work::PingPong => {
                if kept.is_none() {
                    *kept = Some(self.echo().await);
                }
                ping(kept.as_mut().unwrap()).await;
            }
            Work::Download { bytes, .. } => {
                let mut stream = self.tunnel().await;
                let request = format!("GET /bulk/{bytes} HTTP/1.1\r\nHost: o\r\n\r\n");
                assert_eq!(get(&mut stream, &request).await, 200);
            }
            Work::Upload { bytes, .. } => {
                let mut stream = self.tunnel().await;
                let head = format!("PUT /sink HTTP/1.1\r\nHost: o\r\nContent-Length: {bytes}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                let chunk = vec![b'u'; 256 << 10];
                let mut left = *bytes;
                while left > 0 {
                    let now = left.min(chunk.len());
                    stream.write_all(&chunk[..now]).await.unwrap();
                    left -= now;
                }
                assert_eq!(get(&mut stream, "").await, 200);
            }
        }
    }

    /// A tunnel whose other end is an echo, which has echoed once.
    pub(crate) async fn echo(&self) -> Stream {
        let mut stream = self.tunnel().await;
        stream.write_all(ECHO_LINE).await.unwrap();
        ping(&mut stream).await;
        stream
    }

    async fn tunnel(&self) -> Stream {
        match self.way {
            Way::Direct => self.address.connect().await.unwrap(),
            Way::Proxy { port, .. } => self.tunnel_to(port).await,
        }
    }

    async fn tunnel_to(&self, port: u16) -> Stream {
        let mut stream = self.address.connect().await.unwrap();
        if let Way::Proxy { host, .. } = self.way {
            let authority = format!("{host}:{port}");
            let request = self.head(&format!("CONNECT {authority}"), &authority);
            assert_eq!(get(&mut stream, &request).await, 200, "{}", self.name);
        }
        stream
    }

    fn plain(&self, path: &str) -> String {
        match &self.way {
            Way::Direct => format!("GET {path} HTTP/1.1\r\nHost: o\r\n\r\n"),
            Way::Proxy { host, port, .. } => {
                self.head(&format!("GET http://{host}:{port}{path}"), &format!("{host}:{port}"))
            }
        }
    }

    fn head(&self, beginning: &str, host: &str) -> String {
        let credentials = match &self.way {
            Way::Direct => "",
            Way::Proxy { credentials, .. } => credentials,
        };
        format!("{beginning} HTTP/1.1\r\nHost: {host}\r\n{credentials}\r\n")
    }
}

/// Sends 64 bytes and waits for them to come back.
pub(crate) async fn ping(stream: &mut Stream) {
    let mut answer = [0; MESSAGE.len()];
    stream.write_all(&MESSAGE).await.unwrap();
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("the echo comes").unwrap();
    assert_eq!(answer, MESSAGE);
}

/// Sends a request, reads the whole answer and gives its status.
async fn get(stream: &mut Stream, request: &str) -> u16 {
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut buffer, mut filled) = ([0; 2048], 0);
    let (status, length, surplus) = loop {
        let read = stream.read(&mut buffer[filled..]).await.unwrap();
        assert_ne!(read, 0, "the connection ends before the answer");
        filled += read;
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut fields);
        if let httparse::Status::Complete(bytes) = head.parse(&buffer[..filled]).unwrap() {
            let length = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
            let length = length.map_or(0, |field| str::from_utf8(field.value).unwrap().parse().unwrap());
            break (head.code.unwrap(), length, filled - bytes);
        }
    };
    // What is refused is not read to its end, and the answer to CONNECT has none.
    if status == 200 {
        skip(stream, length - surplus).await;
    }
    status
}

async fn skip(stream: &mut Stream, mut left: usize) {
    if left == 0 {
        return;
    }
    let mut buffer = vec![0; left.min(256 << 10)];
    while left > 0 {
        let most = buffer.len().min(left);
        let read = stream.read(&mut buffer[..most]).await.unwrap();
        assert_ne!(read, 0, "the connection ends with {left} bytes missing");
        left -= read;
    }
}
