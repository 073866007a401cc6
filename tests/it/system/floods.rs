//! Floods against the running guardian: what one cloister does as fast as it can, another one hardly notices (H15).
//!
//! No sandboxes stand behind these cloisters: they are registered as `cloister start` does it, and the test takes the
//! place of the relay.

use std::fs;
use std::io::{BufRead as _, BufReader, IoSlice, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

use super::origin::Plain;
use crate::harness::{Host, User};

/// Longer than any step takes, so that a test that hangs fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than any flood of these tests asks.
const NO_RATE: &str = "  rate_limit: {per_minute: 6000000, burst: 1000000}\n";

/// A guardian that may have so many descriptors.
struct Guardian {
    host: Host,
    process: Child,
}

impl Guardian {
    fn start(descriptors: u32, settings: &str) -> Self {
        // Its limits can be changed by the same user only.
        let host = Host::new(User::Same);
        host.configure(settings);
        let mut command = host.program("sh");
        command
            .arg("-c")
            .arg(format!("ulimit -n {descriptors}; exec \"$0\" guardian run"))
            .arg(host.binary());
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("control.sock"), "{line}");
        Self { host, process }
    }

    fn ask(&self, request: &str, body: &str) -> String {
        let key = fs::read_to_string(self.host.runtime().join("control.key")).unwrap();
        let mut stream = connect(&self.host.runtime().join("control.sock"));
        let head = format!(
            "{request} HTTP/1.1\r\nHost: guardian\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn register(&self, name: &str) -> Cloister {
        let directory = self.host.path(name);
        let registration = json!({
            "cloister": name, "project": name, "directory": directory, "branch": null, "network": "guarded"
        });
        let answer = self.ask("POST /tokens", &registration.to_string());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 201 "), "{answer}");
        let body: Value = serde_json::from_str(body).unwrap();
        let socket = self.host.runtime().join("by-name").join(name).join("proxy.sock");
        Cloister { socket, token: body["token"].as_str().unwrap().to_owned() }
    }

    fn answers(&self) {
        assert!(self.host.ok(&["guardian", "status"]).contains("running"));
    }

    /// Ends it, and checks that its log is whole.
    fn end(mut self) {
        self.host.ok(&["guardian", "stop", "--yes"]);
        self.process.wait().unwrap();
        let verified = self.host.run(&["audit", "verify"]);
        assert_eq!(verified.code, 0, "{verified:?}");
    }
}

/// A registered cloister.
struct Cloister {
    socket: PathBuf,
    token: String,
}

impl Cloister {
    fn head(&self, method: &str, target: &str) -> String {
        format!(
            "{method} {target} HTTP/1.1\r\nHost: {}\r\nProxy-Authorization: Bearer {}\r\n\r\n",
            target.trim_start_matches("http://").trim_end_matches('/'),
            self.token
        )
    }

    /// The head of a request that no rule allows.
    fn unlisted(&self) -> String {
        self.head("CONNECT", "unlisted.example:443")
    }

    /// The status that a request on a connection of its own gets.
    fn status(&self, head: &str) -> u16 {
        ask(&self.socket, head).0
    }
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a request, says that it was the last one, and gives the status and the whole of the answer.
fn ask(socket: &Path, request: &str) -> (u16, String) {
    let mut stream = connect(socket);
    // One that is turned away may be gone already, and leaves its answer behind.
    let _ = stream.write_all(request.as_bytes());
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (status_of(&answer), answer)
}

fn status_of(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// One request on a connection that is kept.
fn ask_again(stream: &mut UnixStream, request: &str) -> (u16, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // What stands in a tunnel's answer is its head alone.
    let is_tunnel = |answer: &[u8]| answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"\r\n\r\n");
    while !answer.ends_with(b"}") && !is_tunnel(&answer) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    let answer = String::from_utf8(answer).unwrap();
    (status_of(&answer), answer)
}

/// Settings that lead `web.test` to the origin.
fn leading_to(origin: &Plain) -> String {
    let (address, port) = (origin.address.ip(), origin.address.port());
    format!("proxy:\n  allow: [\"web.test:{port}\"]\n  hosts: {{web.test: [{address}]}}\n{NO_RATE}")
}

#[test]
fn h15_a_flood_of_connections_leaves_descriptors_to_everybody_else() {
    let origin = Plain::start("the page\n");
    let guardian = Guardian::start(256, &leading_to(&origin));
    let (greedy, modest) = (guardian.register("greedy"), guardian.register("modest"));
    let mut flood: Vec<UnixStream> = (0..400)
        .map(|_| {
            let mut stream = connect(&greedy.socket);
            // A request that has begun: the connection does not give way to others.
            let _ = stream.write_all(b"GET");
            stream
        })
        .collect();
    let mut last = String::new();
    let _ = flood.last_mut().unwrap().read_to_string(&mut last);
    assert!(last.starts_with("HTTP/1.1 503 ") && last.contains("overloaded"), "{last}");
    for _ in 0..20 {
        assert_eq!(modest.status(&modest.unlisted()), 403);
        let target = format!("http://web.test:{}/", origin.address.port());
        let (status, answer) = ask(&modest.socket, &modest.head("GET", &target));
        assert!(status == 200 && answer.ends_with("the page\n"), "{answer}");
    }
    guardian.answers();
    assert!(guardian.ask("POST /reload", "").starts_with("HTTP/1.1 200 "));
    drop(flood);
    while greedy.status(&greedy.unlisted()) != 403 {}
    guardian.end();
}

#[test]
fn h15_a_guardian_without_a_descriptor_says_so_and_recovers() {
    let origin = Plain::start("the page\n");
    let guardian = Guardian::start(256, &leading_to(&origin));
    let (first, second) = (guardian.register("first"), guardian.register("second"));
    let mut kept: Vec<UnixStream> = (0..8).map(|_| connect(&first.socket)).collect();
    for stream in &mut kept {
        assert_eq!(ask_again(stream, &first.unlisted()).0, 403);
    }
    assert_eq!(second.status(&second.unlisted()), 403);

    let pid = Pid::from_child(&guardian.process);
    let open = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap().count() as u64;
    let limit =
        |current| prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(current), maximum: Some(256) });
    limit(open).unwrap();
    // What somebody holds, or the system counts otherwise, is used up first.
    let mut held = Vec::new();
    for cloister in [&first, &second] {
        // Again and again, and not only once; whatever the guardian gives back meanwhile is used up, too.
        let mut refusals = 0;
        while refusals < 5 {
            let mut stream = connect(&cloister.socket);
            let _ = stream.write_all(cloister.unlisted().as_bytes());
            let mut start = [0; 12];
            stream.read_exact(&mut start).unwrap();
            if &start == b"HTTP/1.1 503" {
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                assert!(answer.contains("ulimit -n"), "{answer}");
                refusals += 1;
            } else {
                assert_eq!(&start, b"HTTP/1.1 403");
                held.push(stream);
                refusals = 0;
            }
        }
    }
    // What needs none goes on, and the destination is not blamed.
    assert_eq!(ask_again(&mut kept[0], &first.unlisted()).0, 403);
    let target = format!("web.test:{}", origin.address.port());
    // One that the guardian has given back just now makes a tunnel, and is used up by it.
    let answers = kept.iter_mut().map(|stream| ask_again(stream, &first.head("CONNECT", &target)));
    let (tunnels, refusals): (Vec<_>, Vec<_>) = answers.partition(|(status, _)| *status == 200);
    assert!(!refusals.is_empty(), "{tunnels:?}");
    for (status, answer) in refusals {
        assert!(status == 503 && answer.contains("\"error\":\"overloaded\""), "{answer}");
    }
    assert!(origin.connections() <= tunnels.len());

    limit(256).unwrap();
    for cloister in [&first, &second] {
        while cloister.status(&cloister.unlisted()) != 403 {}
    }
    guardian.answers();
    guardian.end();
}

/// How long the slower half of so many requests takes at least.
fn median(cloister: &Cloister, requests: usize) -> Duration {
    let mut times: Vec<Duration> = (0..requests)
        .map(|_| {
            let start = Instant::now();
            assert_eq!(cloister.status(&cloister.unlisted()), 403);
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[requests / 2]
}

/// What a cloister met while another one flooded.
struct Met {
    alone: Duration,
    beside: Duration,
    /// Answers that the flood got, by their status.
    refused: usize,
    limited: usize,
}

/// Has one cloister ask as fast as it can, from eight threads, on new and on kept connections.
fn beside_a_flood(guardian: &Guardian) -> Met {
    let (greedy, modest) = (guardian.register("greedy"), guardian.register("modest"));
    let alone = median(&modest, 60);
    let stop = AtomicBool::new(false);
    let (refused, limited) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let count = |status| match status {
        403 => drop(refused.fetch_add(1, Ordering::Relaxed)),
        429 => drop(limited.fetch_add(1, Ordering::Relaxed)),
        other => assert_eq!(other, 0, "neither answered nor broken off"),
    };
    let beside = std::thread::scope(|scope| {
        for thread in 0..8 {
            let (greedy, stop, count) = (&greedy, &stop, &count);
            scope.spawn(move || {
                let mut kept = connect(&greedy.socket);
                while !stop.load(Ordering::Relaxed) {
                    if thread % 2 == 0 {
                        count(greedy.status(&greedy.unlisted()));
                    } else {
                        count(ask_again(&mut kept, &greedy.unlisted()).0);
                    }
                }
            });
        }
        // The burst is used up.
        while refused.load(Ordering::Relaxed) < 600 {
            std::thread::yield_now();
        }
        guardian.answers();
        let beside = median(&modest, 60);
        guardian.answers();
        stop.store(true, Ordering::Relaxed);
        beside
    });
    Met { alone, beside, refused: refused.into_inner(), limited: limited.into_inner() }
}

/// A generous bound: eight threads of the test itself are in the way, too.
fn assert_bounded(met: &Met) {
    let bound = met.alone * 50 + Duration::from_millis(250);
    assert!(met.beside < bound, "{:?} alone, {:?} beside a flood", met.alone, met.beside);
}

#[test]
fn h15_a_flood_of_denials_does_not_starve_another_cloister() {
    let guardian = Guardian::start(4_096, &format!("proxy:\n{NO_RATE}"));
    let met = beside_a_flood(&guardian);
    assert_bounded(&met);
    assert_eq!(met.limited, 0);
    guardian.end();
}

#[test]
fn h15_a_flood_beyond_the_rate_gets_the_rate() {
    let guardian = Guardian::start(4_096, "proxy:\n  rate_limit: {per_minute: 60, burst: 600}\n");
    let started = Instant::now();
    let met = beside_a_flood(&guardian);
    assert_bounded(&met);
    let earned = usize::try_from(started.elapsed().as_secs()).unwrap() + 1;
    assert!(met.refused <= 600 + earned, "{} within {earned} s", met.refused);
    let audit = guardian.host.ok(&["audit", "--cloister", "greedy"]);
    assert!(met.limited == 0 || audit.contains("rate_limited"), "{audit}");
    // A changed rate holds at once.
    let greedy = guardian.register("third");
    while greedy.status(&greedy.unlisted()) != 429 {}
    guardian.host.configure(&format!("proxy:\n{NO_RATE}"));
    guardian.host.ok(&["guardian", "reload"]);
    assert_eq!(greedy.status(&greedy.unlisted()), 403);
    guardian.end();
}

/// A descriptor can be sent over the sandbox's socket, and closing it may take as long as its sender likes.
#[test]
fn h15_a_descriptor_that_takes_long_to_close_holds_up_nobody_else() {
    let origin = Plain::start("the page\n");
    let guardian = Guardian::start(1024, &leading_to(&origin));
    let (first, second) = (guardian.register("first"), guardian.register("second"));
    for _ in 0..8 {
        let (slow, _peer) = lingering();
        let mut stream = connect(&first.socket);
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [slow.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        match sendmsg(&stream, &[IoSlice::new(b"G")], &mut control, SendFlags::NOSIGNAL) {
            // Linux 6.16 and newer let a socket refuse them.
            Err(Errno::PERM) => {}
            sent => {
                sent.unwrap();
                drop(slow);
                let _ = stream.write_all(b"E");
            }
        }
    }
    for _ in 0..20 {
        let begun = Instant::now();
        assert_eq!(second.status(&second.unlisted()), 403);
        // The descriptors would have taken a minute.
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}

/// A connection whose end takes a minute to close, because nobody reads what it has still to send.
#[expect(clippy::disallowed_methods, reason = "both ends are the test's own")]
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let peer = listener.accept().unwrap().0;
    sockopt::set_socket_linger(&stream, Some(Duration::from_mins(1))).unwrap();
    stream.set_nonblocking(true).unwrap();
    while (&stream).write(&[0; 1 << 12]).is_ok() {}
    (stream, peer)
}
