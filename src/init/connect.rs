//! A tunnel through the guardian on standard input and output: what `ssh` runs as its `ProxyCommand`.

mod ask;

pub use ask::{Allowed, AskError, Asker, ask};

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use serde::Deserialize;

use crate::text::Untrusted;

/// The largest answer that is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// This is no sandbox with a way out.
    #[error("there is no way out here: `CLOISTER_TOKEN` is not set")]
    NoToken,
    /// The host is not written as a host.
    #[error("cannot connect to `{0}`: it is no host")]
    NoHost(String),
    /// The guardian said no.
    #[error("cannot connect to {authority}: {reason}")]
    Refused {
        /// Where to.
        authority: String,
        /// Its code.
        reason: String,
        /// What to do.
        hint: String,
    },
    /// The guardian could not be asked, or the tunnel broke.
    #[error("cannot connect to {authority}")]
    Io {
        /// Where to.
        authority: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What the guardian says when it refuses.
#[derive(Deserialize)]
struct Refusal {
    error: String,
    hint: String,
}

/// Opens a tunnel to `host` and carries standard input and output through it until the other end is done.
pub fn connect(host: &str, port: u16, socket: &str, token: Option<&str>) -> Result<(), ConnectError> {
    let token = token.ok_or(ConnectError::NoToken)?;
    if host.is_empty() || host.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(ConnectError::NoHost(Untrusted(host).to_string()));
    }
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let failed = |source| ConnectError::Io { authority: authority.clone(), source };
    let mut guardian = UnixStream::connect(socket).map_err(failed)?;
    write!(
        guardian,
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    )
    .map_err(failed)?;
    let mut answers = BufReader::new(guardian.try_clone().map_err(failed)?);
    let head = read_head(&mut answers).map_err(failed)?;
    if !head.starts_with("HTTP/1.1 200 ") {
        let mut body = Vec::new();
        answers.take(MAX_ANSWER_BYTES).read_to_end(&mut body).map_err(failed)?;
        return Err(refusal(authority, &head, &body));
    }
    carry(guardian, answers).map_err(failed)
}

fn read_head(answers: &mut impl BufRead) -> io::Result<String> {
    let mut head = String::new();
    let mut limited = answers.take(MAX_ANSWER_BYTES);
    while limited.read_line(&mut head)? > 0 {
        if head.ends_with("\r\n\r\n") {
            return Ok(head);
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the guardian did not answer"))
}

fn refusal(authority: String, head: &str, body: &[u8]) -> ConnectError {
    let told = serde_json::from_slice(body).unwrap_or_else(|_| Refusal {
        error: head.lines().next().unwrap_or_default().to_owned(),
        hint: "ask the host's user".to_owned(),
    });
    let shown = |text: &str| Untrusted(text).to_string();
    ConnectError::Refused { authority, reason: shown(&told.error), hint: shown(&told.hint) }
}

/// Both directions; the end of one does not end the other.
fn carry(mut guardian: UnixStream, mut answers: impl Read) -> io::Result<()> {
    std::thread::spawn(move || {
        // An end that takes no more says so in the other direction.
        let _ = io::copy(&mut io::stdin().lock(), &mut guardian);
        let _ = guardian.shutdown(Shutdown::Write);
    });
    let mut output = io::stdout().lock();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match answers.read(&mut buffer)? {
            0 => return Ok(()),
            read => output.write_all(&buffer[..read]).and_then(|()| output.flush())?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n3_a_host_cannot_end_its_line() {
        for host in ["", "a b", "a\r\nX: y", "a\0"] {
            let error = connect(host, 22, "/nowhere", Some("t")).unwrap_err();
            assert!(matches!(error, ConnectError::NoHost(_)), "{host:?}: {error}");
        }
        assert!(matches!(connect("a.test", 22, "/nowhere", None), Err(ConnectError::NoToken)));
        let error = connect("a.test", 22, "/nowhere", Some("t")).unwrap_err();
        assert_eq!(error.to_string(), "cannot connect to a.test:22");
    }

    #[test]
    fn a_refusal_is_told_with_its_hint() {
        let body = br#"{"error":"not_allowed","layer":"proxy","hint":"add \u001b[31mit"}"#;
        let error = refusal("a.test:22".into(), "HTTP/1.1 403 Forbidden\r\n", body);
        let text = error.to_string();
        assert_eq!(text, "cannot connect to a.test:22: not_allowed");
        assert!(matches!(error, ConnectError::Refused { hint, .. } if !hint.contains('\u{1b}')));
        let other = refusal("a.test:22".into(), "HTTP/1.1 503 Service Unavailable\r\n", b"<html>");
        assert!(other.to_string().contains("HTTP/1.1 503 Service Unavailable"), "{other}");
    }
}
