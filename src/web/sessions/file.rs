//! The file that lets logins outlive a guardian.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{SecretHash, Session};
use crate::paths::{self, PathsError};

/// The most bytes that are read: all sessions take a tenth of it.
const MAX_BYTES: u64 = 64 << 10;

/// What a page before left.
#[derive(Default)]
pub(in crate::web) struct Kept {
    /// The port that it had.
    pub(in crate::web) port: Option<u16>,
    pub(super) sessions: Vec<Session>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    port: u16,
    sessions: Vec<RawSession>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSession {
    hash: String,
    created: Timestamp,
    used: Timestamp,
}

/// Reads the file. One that is missing or broken means that nobody is logged in.
pub(in crate::web) fn load(path: &Path) -> Kept {
    let text = match read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Kept::default(),
        Err(error) => return nobody(path, &error),
    };
    match serde_json::from_slice::<Raw>(&text) {
        Ok(raw) => {
            let sessions = raw.sessions.iter().filter_map(RawSession::read).collect();
            Kept { port: Some(raw.port).filter(|port| *port != 0), sessions }
        }
        Err(error) => nobody(path, &error),
    }
}

/// Reads a plain file of a sane size. Opening does not wait, whatever stands there.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no plain file"));
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

fn nobody(path: &Path, error: &(dyn std::error::Error + 'static)) -> Kept {
    let path = path.display();
    tracing::warn!(error, %path, "cannot read who is logged in to the approval page, so nobody is");
    Kept::default()
}

impl RawSession {
    fn read(&self) -> Option<Session> {
        let (pairs, []) = self.hash.as_bytes().as_chunks::<2>() else { return None };
        let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
        let bytes: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>()?;
        let hash = SecretHash(bytes.try_into().ok()?);
        Some(Session { hash, created: self.created, used: self.used, flash: None })
    }
}

pub(super) fn save(path: &Path, port: u16, sessions: &[Session]) -> Result<(), PathsError> {
    let raw = |session: &Session| {
        let Session { hash, created, used, flash: _ } = session;
        RawSession { hash: hash.digits(), created: *created, used: *used }
    };
    let raw = Raw { port, sessions: sessions.iter().map(raw).collect() };
    let text = serde_json::to_vec_pretty(&raw).expect("a state holds only texts and numbers");
    paths::write_atomic(path, &text)
}
