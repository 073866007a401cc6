//! Speaks with a running guardian in raw bytes: as the command line on its control socket, and as a sandbox.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use serde_json::Value;

use crate::harness::Host;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// Asks on the control socket, with the key, and gives the whole answer.
pub(crate) fn raw(host: &Host, route: &str, body: &[u8]) -> String {
    let key = fs::read_to_string(host.runtime().join("control.key")).unwrap();
    let mut stream = UnixStream::connect(host.runtime().join("control.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "{route} HTTP/1.1\r\nHost: guardian\r\nAuthorization: Bearer {key}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A body that is refused need not be read.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    // And then the connection may be reset behind the answer.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// The body of an answer.
#[track_caller]
pub(crate) fn json(answer: &str) -> Value {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {answer}"));
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

/// A sandbox's side of the proxy, without a sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
    token: String,
}

impl Client {
    #[track_caller]
    pub(crate) fn register(host: &Host, name: &str) -> Self {
        Self::try_register(host, name).unwrap()
    }

    /// Registers a cloister of the project of the same name; else the answer.
    pub(crate) fn try_register(host: &Host, name: &str) -> Result<Self, String> {
        let body = format!(
            r#"{{"cloister":"{name}","project":"{name}","directory":"/src/{name}","branch":null,"network":"guarded"}}"#
        );
        let answer = raw(host, "POST /tokens", body.as_bytes());
        if !answer.starts_with("HTTP/1.1 201") {
            return Err(answer);
        }
        let token = json(&answer)["token"].as_str().unwrap().to_owned();
        Ok(Self { socket: host.runtime().join("by-name").join(name).join("proxy.sock"), token })
    }

    /// Opens a tunnel; else the refusal.
    pub(crate) fn connect(&self, authority: &str) -> Result<Tunnel, String> {
        let credentials =
            base64::engine::general_purpose::STANDARD.encode(format!("cloister:{}", self.token));
        let Ok(mut stream) = UnixStream::connect(&self.socket) else {
            return Err("nobody listens".to_owned());
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Basic {credentials}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
            answer.push(byte[0]);
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        if answer.starts_with("HTTP/1.1 200") { Ok(Tunnel(stream)) } else { Err(answer) }
    }

    /// Sends these bytes and gives all that comes back.
    pub(crate) fn send(&self, bytes: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// An open tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel(UnixStream);

impl Tunnel {
    /// Waits until the guardian closes it.
    #[track_caller]
    pub(crate) fn wait_for_its_end(&mut self) {
        match self.0.read(&mut [0]) {
            Ok(read) => assert_eq!(read, 0, "the origin says nothing"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it stays open"),
        }
    }

    /// Checks that it is open now.
    #[track_caller]
    pub(crate) fn assert_open(&mut self) {
        self.0.set_nonblocking(true).unwrap();
        let read = self.0.read(&mut [0]);
        assert_eq!(read.unwrap_err().kind(), ErrorKind::WouldBlock, "it is closed");
        self.0.set_nonblocking(false).unwrap();
    }
}
