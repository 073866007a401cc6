//! The running guardian, met with raw bytes: the real binary behind its sockets, and no client library that would
//! mend what a test breaks.
//!
//! No sandbox stands behind these cloisters: they are registered as `cloister start` does it, and the test takes
//! the place of the relay.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Host, User};

mod control;
mod differential;
mod dns;
mod heads;
mod inside;
mod matrix;
mod network;
mod origin;
mod tls;

pub(crate) use origin::{Recorder, Request};

/// Longer than any step takes, so that a test that hangs fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A guardian with a home of its own.
pub(crate) struct Guardian {
    pub(crate) host: Host,
}

impl Guardian {
    /// Starts one with these settings.
    pub(crate) fn start(settings: &str) -> Self {
        let host = Host::new(User::Ordinary);
        host.configure(settings);
        host.ok(&["guardian", "start"]);
        Self { host }
    }

    /// Starts one that lets everybody reach `origin` as `origin.test`.
    pub(crate) fn before(origin: &Recorder) -> Self {
        Self::start(&format!(
            "proxy:\n  allow: [\"{}\"]\n  deny: [denied.test]\n  rate_limit: {{per_minute: 1000000, burst: 1000000}}\n  hosts: {{origin.test: [{}]}}\n",
            origin.authority(),
            origin.address.ip()
        ))
    }

    pub(crate) fn pid(&self) -> u32 {
        let status: Value = serde_json::from_str(&self.host.ok(&["guardian", "status", "--json"])).unwrap();
        u32::try_from(status[0]["pid"].as_u64().unwrap()).unwrap()
    }

    /// The key of the control socket.
    pub(crate) fn key(&self) -> String {
        fs::read_to_string(self.host.runtime().join("control.key")).unwrap()
    }

    /// A connection to the control socket.
    pub(crate) fn control(&self) -> Wire {
        Wire::open(&self.host.runtime().join("control.sock"))
    }

    /// Asks the guardian as the command line does: `POST /reload`, say.
    pub(crate) fn ask(&self, request: &str, body: &str) -> Answer {
        let mut wire = self.control();
        wire.send(format!(
            "{request} HTTP/1.1\r\nHost: guardian\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.key(),
            body.len()
        ));
        wire.answer()
    }

    /// Registers a cloister.
    pub(crate) fn register(&self, name: &str) -> Cloister {
        let registration = json!({
            "cloister": name, "project": name, "directory": self.host.path(name), "branch": null,
            "network": "guarded"
        });
        let answer = self.ask("POST /tokens", &registration.to_string());
        assert_eq!(answer.status, 201, "{answer:?}");
        let token = answer.json()["token"].as_str().unwrap().to_owned();
        Cloister { socket: self.host.runtime().join("by-name").join(name).join("proxy.sock"), token }
    }

    /// What the audit log holds.
    pub(crate) fn audit(&self) -> String {
        self.host.ok(&["audit"])
    }
}

/// A registered cloister.
#[derive(Debug, Clone)]
pub(crate) struct Cloister {
    pub(crate) socket: PathBuf,
    pub(crate) token: String,
}

impl Cloister {
    pub(crate) fn connect(&self) -> Wire {
        Wire::open(&self.socket)
    }

    /// The field that proves who asks.
    pub(crate) fn proof(&self) -> String {
        format!("Proxy-Authorization: Bearer {}\r\n", self.token)
    }

    /// A whole head that asks for a tunnel.
    pub(crate) fn connect_head(&self, authority: &str) -> String {
        format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{}\r\n", self.proof())
    }

    /// A whole head of a plain request.
    pub(crate) fn get_head(&self, authority: &str, path: &str) -> String {
        format!("GET http://{authority}{path} HTTP/1.1\r\nHost: {authority}\r\n{}\r\n", self.proof())
    }

    /// Sends these bytes on a connection of their own and reads one answer.
    pub(crate) fn ask(&self, bytes: impl AsRef<[u8]>) -> Answer {
        let mut wire = self.connect();
        wire.send(bytes);
        wire.answer()
    }
}

/// A connection that carries what the test says, byte by byte.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: UnixStream,
}

impl Wire {
    pub(crate) fn open(socket: &std::path::Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream }
    }

    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    /// Sends what the guardian may no longer want to hear.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Ends the client's direction.
    pub(crate) fn end(&self) {
        // The guardian may have closed already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// One head and the body that it tells of.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> Answer {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            let read = self.stream.read(&mut byte).unwrap();
            assert_eq!(read, 1, "the connection ended in {:?}", String::from_utf8_lossy(&head));
            head.push(byte[0]);
        }
        let mut answer = Answer::new(String::from_utf8(head).unwrap());
        let length = answer.field("content-length").map_or(0, |length| length.parse().unwrap());
        answer.body = self.exactly(length);
        answer
    }

    #[track_caller]
    pub(crate) fn exactly(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Everything up to the end; a connection that is broken off has ended, one that stays open has not.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("still open after {bytes:?}"),
            Ok(_) | Err(_) => bytes,
        }
    }
}

/// What came back for a request.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    fn new(head: String) -> Self {
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Self { status: status.expect("a status"), head, body: Vec::new() }
    }

    /// The value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// The code of a refusal; empty when the origin answered.
    pub(crate) fn reason(&self) -> &str {
        self.field("x-cloister-reason").unwrap_or_default()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

#[test]
fn h11_a_listed_host_answers_in_both_forms_and_all_else_is_refused() {
    let origin = Recorder::start();
    let guardian = Guardian::before(&origin);
    let cloister = guardian.register("demo");
    let plain = cloister.ask(cloister.get_head(&origin.authority(), "/plain"));
    assert_eq!((plain.status, &plain.body[..]), (200, &b"ok"[..]));
    let mut tunnel = cloister.connect();
    tunnel.send(cloister.connect_head(&origin.authority()));
    assert_eq!(tunnel.answer().status, 200);
    tunnel.send("GET /tunnel HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(tunnel.answer().body, b"ok");
    drop(tunnel);
    let refused = cloister.ask(cloister.get_head("unlisted.test:8080", "/"));
    assert_eq!((refused.status, refused.reason()), (403, "not_allowed"));
    let refused = cloister.ask(cloister.connect_head("unlisted.test:443"));
    assert_eq!((refused.status, refused.reason()), (403, "not_allowed"));
    drop(guardian);
    let seen: Vec<_> = origin.requests().iter().map(|request| request.target.clone()).collect();
    assert_eq!(seen, ["/plain", "/tunnel"]);
}
