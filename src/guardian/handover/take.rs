//! The new guardian's side.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::messages::{FromNew, FromOld};
use super::predecessor::Predecessor;
use super::wire::Wire;
use super::{PATIENCE, PROTOCOL, WRITE_PATIENCE};
use crate::audit::Head;
use crate::guardian::control::api::Failure;
use crate::guardian::ledger::Ledger;
use crate::name::CloisterName;
use crate::paths::{Lock, Paths};
use crate::token::ControlKey;

/// How long the other may take to begin: it first finishes what it was asked before.
const BEGIN_PATIENCE: Duration = Duration::from_secs(15);
/// The longest answer that is read.
const MAX_ANSWER_BYTES: usize = 16 * 1024;

/// Why the running guardian could not be replaced.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// It knows nothing of handovers, or speaks of them otherwise.
    #[error("the running guardian can't hand over its connections to this version")]
    Unsupported,
    /// It said no.
    #[error("the running guardian refuses to be replaced: {0}")]
    Refused(String),
    /// What it says is not understood.
    #[error("cannot understand the running guardian")]
    Answer,
    /// The log does not end where it said.
    #[error("the audit log ends at {found}, and not at {expected} as the running guardian says")]
    OtherHead {
        /// What it said.
        expected: String,
        /// Where the log ends.
        found: String,
    },
    /// The connection to it broke off.
    #[error("cannot speak with the running guardian")]
    Io(#[from] io::Error),
}

/// What the running guardian has offered.
pub(in crate::guardian) struct Offer {
    /// The connection to it.
    pub(in crate::guardian) link: Link,
    /// Its process number.
    pub(in crate::guardian) pid: u32,
    pub(in crate::guardian) lock: Lock,
    pub(in crate::guardian) sockets: Sockets,
}

/// What a guardian serves on.
pub(in crate::guardian) struct Sockets {
    /// The key of the control socket, which stays as it is.
    pub(in crate::guardian) key: ControlKey,
    pub(in crate::guardian) control: OwnedFd,
    pub(in crate::guardian) listeners: BTreeMap<CloisterName, OwnedFd>,
}

/// The connection to the running guardian.
pub(in crate::guardian) struct Link(Wire);

impl Offer {
    /// Asks the running guardian for its sockets; `None` when there is none, or none any more.
    pub(in crate::guardian) fn ask(paths: &Paths) -> Result<Option<Self>, TakeError> {
        let key = match fs::read_to_string(paths.control_key()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => ControlKey::parse(other?.trim_end()).map_err(|_| TakeError::Answer)?,
        };
        let stream = match UnixStream::connect(paths.control_socket()) {
            Err(error) if is_gone(&error) => return Ok(None),
            other => other?,
        };
        stream.set_read_timeout(Some(BEGIN_PATIENCE))?;
        stream.set_write_timeout(Some(WRITE_PATIENCE))?;
        match ask_for_upgrade(&stream, &key).and_then(|()| Self::receive(Wire::new(stream), key)) {
            Err(TakeError::Io(error)) if is_gone(&error) => Ok(None),
            other => other.map(Some),
        }
    }

    fn receive(wire: Wire, key: ControlKey) -> Result<Self, TakeError> {
        let deadline = Instant::now() + BEGIN_PATIENCE;
        let (FromOld::Offer { pid, listeners: count, .. }, _) = wire.receive_until(deadline)? else {
            return Err(TakeError::Answer);
        };
        let (FromOld::Lock, Some(lock)) = wire.receive_until(deadline)? else {
            return Err(TakeError::Answer);
        };
        let (FromOld::Control, Some(control)) = wire.receive_until(deadline)? else {
            return Err(TakeError::Answer);
        };
        let mut listeners = BTreeMap::new();
        for _ in 0..count {
            let (FromOld::Listener { cloister }, Some(listener)) = wire.receive_until(deadline)? else {
                return Err(TakeError::Answer);
            };
            listeners.insert(cloister, listener);
        }
        let sockets = Sockets { key, control, listeners };
        Ok(Self { link: Link(wire), pid, lock: lock.into(), sockets })
    }
}

impl Link {
    /// Says that this process could serve, and waits until the log is its own; `None` when the other has died instead.
    pub(in crate::guardian) fn accept(&self) -> Result<Option<String>, TakeError> {
        let answered = self.0.send(&FromNew::Ready);
        let deadline = Instant::now() + PATIENCE;
        match answered.and_then(|()| self.0.receive_until(deadline)) {
            Ok((FromOld::Yours { head }, _)) => Ok(Some(head)),
            Ok(_) => Err(TakeError::Answer),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Says that this process serves, waits until the other is not the guardian any more, and begins to write what it
    /// records. One that has died since is not missed.
    pub(in crate::guardian) fn complete(
        self,
        ledger: Arc<Ledger>,
    ) -> Result<Option<Arc<Predecessor>>, TakeError> {
        let said = self.0.send(&FromNew::Serving);
        let deadline = Instant::now() + PATIENCE;
        match said.and_then(|()| self.0.receive_until(deadline)) {
            Ok((FromOld::Done, _)) => Ok(Some(Predecessor::spawn(self.0, ledger)?)),
            Ok(_) => Err(TakeError::Answer),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Compares the head of the log with what the other said.
pub(in crate::guardian) fn check_head(expected: &str, found: Head) -> Result<(), TakeError> {
    let found = found.to_string();
    if found == expected {
        Ok(())
    } else {
        Err(TakeError::OtherHead { expected: expected.to_owned(), found })
    }
}

/// Tells whether an error says that there is nobody at the other end.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotFound | UnexpectedEof)
}

/// Makes the connection a private one. Not a byte more than the answer is read: descriptors travel with what follows.
fn ask_for_upgrade(mut stream: &UnixStream, key: &ControlKey) -> Result<(), TakeError> {
    let request = format!(
        "POST /handover HTTP/1.1\r\nHost: guardian\r\nAuthorization: Bearer {}\r\nConnection: upgrade\r\n\
         Upgrade: {PROTOCOL}\r\nContent-Length: 0\r\n\r\n",
        key.expose()
    );
    stream.write_all(request.as_bytes())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head.len() > MAX_ANSWER_BYTES {
            return Err(TakeError::Answer);
        }
    }
    let status = head.get(9..12).and_then(|digits| str::from_utf8(digits).ok()?.parse::<u16>().ok());
    match status {
        Some(101) => Ok(()),
        Some(404 | 405 | 426) => Err(TakeError::Unsupported),
        _ => Err(refused(stream)),
    }
}

/// Reads why the other said no.
fn refused(stream: &UnixStream) -> TakeError {
    let mut body = Vec::new();
    // Without the rest of the text there is no reason to tell.
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.take(MAX_ANSWER_BYTES as u64).read_to_end(&mut body);
    serde_json::from_slice::<Failure>(&body)
        .map_or(TakeError::Answer, |failure| TakeError::Refused(failure.error))
}
