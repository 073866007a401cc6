//! A polite request: somebody inside asks whether a host may be reached, says why, and waits for the answer.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use super::{MAX_ANSWER_BYTES, read_head};
use crate::policy::{Authority, InvalidAuthority};
use crate::text::Untrusted;

/// The longest reason, in bytes.
const MAX_REASON_BYTES: usize = 1024;

/// Why nothing was allowed.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// This is no sandbox.
    #[error("this is asked from inside of a cloister, and here is none")]
    Outside,
    /// It is one that reaches nothing.
    #[error("this cloister has no way out: its network is `none`")]
    NoWayOut,
    /// What is asked for is no destination.
    #[error(transparent)]
    Target(#[from] InvalidAuthority),
    /// The reason is too long.
    #[error("the reason has {bytes} bytes; at most {MAX_REASON_BYTES} are passed on")]
    Reason {
        /// Its length.
        bytes: usize,
    },
    /// The answer is no.
    #[error("{authority} is not allowed: {reason}")]
    Refused {
        /// What was asked for.
        authority: Authority,
        /// Why not.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The guardian ended, or said nothing that is an answer.
    #[error("{authority} is not allowed: the guardian gave no answer")]
    Silent {
        /// What was asked for.
        authority: Authority,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// The guardian could not be asked.
    #[error("cannot ask the guardian for {authority}")]
    Io {
        /// What was asked for.
        authority: Authority,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is told about the sandbox from inside.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Whether this is a sandbox at all.
    pub is_inside: bool,
    /// Its token, if it reaches anything.
    pub token: Option<&'a str>,
    /// The guardian's socket for requests.
    pub socket: &'a str,
}

/// What holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// What was asked for.
    pub authority: Authority,
    /// How far the answer reaches; none when a rule allows it.
    pub scope: Option<String>,
    /// The rule, if one allows it.
    pub pattern: Option<String>,
}

#[derive(Serialize)]
struct Question<'a> {
    host: String,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reply {
    status: Option<String>,
    scope: Option<String>,
    pattern: Option<String>,
    reason: Option<String>,
    /// The code of a refusal before anybody was asked.
    error: Option<String>,
    hint: Option<String>,
}

/// Asks for `target`, whose port is 443 unless it is said, and waits for as long as the guardian does.
pub fn ask(target: &str, reason: Option<&str>, asker: Asker<'_>) -> Result<Allowed, AskError> {
    let token = match (asker.token, asker.is_inside) {
        (Some(token), _) => token,
        (None, true) => return Err(AskError::NoWayOut),
        (None, false) => return Err(AskError::Outside),
    };
    let authority = Authority::parse_with_default(target, 443)?;
    if let Some(bytes) = reason.map(str::len).filter(|bytes| *bytes > MAX_REASON_BYTES) {
        return Err(AskError::Reason { bytes });
    }
    let failed = |source| AskError::Io { authority: authority.clone(), source };
    let mut guardian = UnixStream::connect(asker.socket).map_err(failed)?;
    let question = Question { host: authority.host().to_string(), port: authority.port(), reason };
    let body = serde_json::to_vec(&question).map_err(io::Error::from).map_err(failed)?;
    guardian.write_all(&request(token, &body)).map_err(failed)?;
    let (head, body) =
        answer(guardian).map_err(|source| AskError::Silent { authority: authority.clone(), source })?;
    judge(authority, &head, &body)
}

fn request(token: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /ask HTTP/1.1\r\nHost: cloister-guardian\r\nX-Cloister-Token: {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn answer(guardian: UnixStream) -> io::Result<(String, Vec<u8>)> {
    let mut answers = BufReader::new(guardian);
    let head = read_head(&mut answers)?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    let mut body = Vec::new();
    let expected = length.unwrap_or(MAX_ANSWER_BYTES);
    answers.take(expected.min(MAX_ANSWER_BYTES)).read_to_end(&mut body)?;
    if length.is_some() && body.len() as u64 != expected {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer is cut off"));
    }
    Ok((head, body))
}

fn judge(authority: Authority, head: &str, body: &[u8]) -> Result<Allowed, AskError> {
    let shown = |text: String| Untrusted(&text).to_string();
    let reply = serde_json::from_slice::<Reply>(body).unwrap_or_default();
    let is_success = head.starts_with("HTTP/1.1 200 ");
    let reason = match (is_success, reply.status.as_deref(), reply.error, reply.reason) {
        (true, Some("allowed"), ..) => {
            return Ok(Allowed {
                authority,
                scope: reply.scope.map(shown),
                pattern: reply.pattern.map(shown),
            });
        }
        (false, _, Some(error), _) => error,
        (_, Some(_), _, Some(reason)) => reason,
        (true, Some("denied"), _, None) => "denied".to_owned(),
        (true, Some("timeout"), _, None) => "nobody answered in time".to_owned(),
        _ => {
            let said = head.lines().next().map_or_else(String::new, |line| Untrusted(line).to_string());
            let source = io::Error::new(io::ErrorKind::InvalidData, format!("it said `{said}`"));
            return Err(AskError::Silent { authority, source });
        }
    };
    Err(AskError::Refused { authority, reason: shown(reason), hint: reply.hint.map(shown) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use super::*;

    const ALLOWED: &str = r#"{"status": "allowed", "scope": "session", "pattern": "api.test:443"}"#;

    fn asker<'a>(socket: &'a str, token: Option<&'a str>) -> Asker<'a> {
        Asker { is_inside: true, token, socket }
    }

    /// A guardian that gives one answer; the value of its thread is what it was asked.
    fn guardian(socket: &Path, answer: String) -> std::thread::JoinHandle<String> {
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let head = read_head(&mut reader).unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            (&stream).write_all(answer.as_bytes()).unwrap();
            format!("{head}{}", String::from_utf8(body).unwrap())
        })
    }

    fn reply(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    /// What comes of asking a guardian that answers so.
    fn asked(answer: String) -> (Result<Allowed, AskError>, String) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("request.sock");
        let guardian = guardian(&socket, answer);
        let result = ask("API.test", Some("to \"build\""), asker(socket.to_str().unwrap(), Some("t0ken")));
        (result, guardian.join().unwrap())
    }

    #[test]
    fn a_request_says_who_asks_for_what_and_why() {
        let (result, question) = asked(reply("200 OK", ALLOWED));
        let allowed = result.unwrap();
        assert_eq!(allowed.authority.to_string(), "api.test:443");
        assert_eq!(
            (allowed.scope.as_deref(), allowed.pattern.as_deref()),
            (Some("session"), Some("api.test:443"))
        );
        let (head, body) = question.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /ask HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("X-Cloister-Token: t0ken\r\n"), "{head}");
        assert_eq!(body, r#"{"host":"api.test","port":443,"reason":"to \"build\""}"#);
    }

    #[track_caller]
    fn refused(answer: String, message: &str) -> Option<String> {
        match asked(answer).0.unwrap_err() {
            error @ AskError::Refused { .. } => {
                assert_eq!(error.to_string(), message);
                let AskError::Refused { hint, .. } = error else { unreachable!() };
                hint
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_refusal_is_told_with_reason_and_hint() {
        let body = r#"{"status": "denied", "scope": "once", "pattern": null, "reason": "denied_by_user", "hint": "no"}"#;
        let hint = refused(reply("200 OK", body), "api.test:443 is not allowed: denied_by_user");
        assert_eq!(hint.as_deref(), Some("no"));
        let body = r#"{"status": "timeout", "reason": "approval_timeout", "hint": null}"#;
        assert_eq!(refused(reply("200 OK", body), "api.test:443 is not allowed: approval_timeout"), None);
        let body = r#"{"error": "too_many_requests", "layer": "request", "hint": "wait"}"#;
        let hint =
            refused(reply("429 Too Many Requests", body), "api.test:443 is not allowed: too_many_requests");
        assert_eq!(hint.as_deref(), Some("wait"));
        refused(
            reply("200 OK", r#"{"status": "timeout"}"#),
            "api.test:443 is not allowed: nobody answered in time",
        );
    }

    #[test]
    fn what_is_no_clear_yes_is_a_no() {
        let cut = format!("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{ALLOWED}");
        let answers = [
            reply("403 Forbidden", ALLOWED),
            reply("200 OK", "<html>"),
            reply("200 OK", r#"{"status": "allowed?"}"#),
            reply("200 OK", ""),
            reply("500 Internal Server Error", "{}"),
            cut,
            "HTTP/1.1 200 OK\r\n".to_owned(),
            String::new(),
        ];
        for answer in answers {
            let error = asked(answer.clone()).0.unwrap_err();
            assert!(matches!(error, AskError::Silent { .. }), "{answer}: {error:?}");
        }
    }

    #[test]
    fn a1_what_the_guardian_says_is_escaped() {
        let body = r#"{"status": "denied", "reason": "a\u001b[2Jb", "hint": "c\u202ed"}"#;
        let hint = refused(reply("200 OK", body), "api.test:443 is not allowed: a\\u{1b}[2Jb");
        assert_eq!(hint.as_deref(), Some("c\\u{202e}d"));
    }

    #[test]
    fn nobody_is_asked_without_a_sandbox_a_host_or_a_short_reason() {
        let outside = Asker { is_inside: false, token: None, socket: "/nowhere" };
        assert!(matches!(ask("a.test", None, outside), Err(AskError::Outside)));
        assert!(matches!(ask("a.test", None, asker("/nowhere", None)), Err(AskError::NoWayOut)));
        for target in ["", "a b", "a.test:0", "u@a.test", "a\r\nX: y"] {
            let error = ask(target, None, asker("/nowhere", Some("t"))).unwrap_err();
            assert!(matches!(error, AskError::Target(_)), "{target:?}: {error}");
        }
        let long = "x".repeat(1025);
        let error = ask("a.test", Some(&long), asker("/nowhere", Some("t"))).unwrap_err();
        assert_eq!(error.to_string(), "the reason has 1025 bytes; at most 1024 are passed on");
        let error = ask("a.test", Some(&long[1..]), asker("/nowhere", Some("t"))).unwrap_err();
        assert_eq!(error.to_string(), "cannot ask the guardian for a.test:443");
    }
}
