//! Who is logged in: codes that work once, sessions that last for hours.
//!
//! Both are random secrets of which only the hash is kept (A18, I5).

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::watch;

use crate::name::hex;

pub(super) use file::{Kept, load};

mod file;

/// How long a login link works.
const CODE_LIFE: Duration = Duration::from_mins(5);
/// How many login links there are at once; the oldest goes.
const MAX_CODES: usize = 16;
/// How many wrong codes are taken in [`GUESS_TIME`] before they are told to be too many.
const MAX_GUESSES: usize = 20;
const GUESS_TIME: Duration = Duration::from_mins(1);
/// How long a session lives without a request, and how long at most.
const IDLE_LIFE: SignedDuration = SignedDuration::from_hours(12);
const WHOLE_LIFE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// How far the clock may have been set back since a session was used.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_mins(5);
/// How many sessions there are at once; the one that was used least lately goes.
const MAX_SESSIONS: usize = 32;
/// How old the time of a session's last use may be on disk.
const SAVE_AGE: SignedDuration = SignedDuration::from_mins(10);

/// The SHA-256 of a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct SecretHash([u8; 32]);

impl SecretHash {
    fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    fn digits(self) -> String {
        hex(&self.0)
    }
}

/// A session as it is kept.
#[derive(Clone)]
pub(super) struct Session {
    hash: SecretHash,
    created: Timestamp,
    used: Timestamp,
    /// What its last form has led to, shown by the next page.
    flash: Option<String>,
}

impl Session {
    fn is_alive(&self, now: Timestamp) -> bool {
        let within = |time: Timestamp, life| {
            let age = now.duration_since(time);
            age > -CLOCK_SLACK && age < life
        };
        within(self.created, WHOLE_LIFE) && within(self.used, IDLE_LIFE)
    }
}

/// Who makes a request.
#[derive(Clone)]
pub(super) struct Visitor {
    /// Names the session.
    pub(super) hash: SecretHash,
    /// What a form of this session has to carry (A3).
    pub(super) csrf: String,
}

impl Visitor {
    /// The first digits of the session's number, as the audit log tells them.
    pub(super) fn number(&self) -> String {
        hex(&self.hash.0[..4])
    }

    /// Tells in constant time whether a form carries this session's token.
    pub(super) fn wrote(&self, presented: &str) -> bool {
        Sha256::digest(presented).ct_eq(&Sha256::digest(&self.csrf)).into()
    }
}

/// Why a login link opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoginError {
    /// It was used, is too old, or never was one.
    Unknown,
    /// Too many wrong ones came just now.
    TooMany,
}

#[derive(Default)]
struct State {
    codes: VecDeque<(SecretHash, Instant)>,
    guesses: VecDeque<Instant>,
    sessions: Vec<Session>,
}

/// The login codes and sessions of one page.
pub(super) struct Sessions {
    file: PathBuf,
    port: u16,
    state: Mutex<State>,
    /// Held while the file is written: the last to write has the last state.
    writing: Mutex<()>,
    ended: watch::Sender<u64>,
}

impl Sessions {
    /// Goes on with what was kept.
    pub(super) fn new(file: PathBuf, port: u16, kept: Kept) -> Self {
        // A cookie belongs to a port by its name: those of another port are never presented again.
        let sessions = if kept.port == Some(port) { kept.sessions } else { Vec::new() };
        let state = Mutex::new(State { sessions, ..State::default() });
        let sessions = Self { file, port, state, writing: Mutex::new(()), ended: watch::Sender::new(0) };
        sessions.save();
        sessions
    }

    /// The port of the page.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The name of the cookie, one for each port: cookies of a host go to all its ports.
    pub(super) fn cookie_name(&self) -> String {
        format!("cloister_session_{}", self.port)
    }

    /// Makes the code of a login link.
    pub(super) fn make_code(&self) -> io::Result<String> {
        let code = random()?;
        self.state().add_code(&code, Instant::now());
        Ok(code)
    }

    /// Takes a code and gives the secret of a new session, for the cookie. Writes to the disk.
    pub(super) fn log_in(&self, code: &str) -> io::Result<Result<String, LoginError>> {
        let secret = random()?;
        let taken = self.state().take_code(code, Instant::now());
        Ok(match taken {
            Ok(()) => {
                self.state().begin(&secret, Timestamp::now());
                self.save();
                Ok(secret)
            }
            Err(error) => Err(error),
        })
    }

    /// Finds the session of a cookie; tells also whether [`Self::save`] is due.
    pub(super) fn visitor(&self, secret: &str) -> Option<(Visitor, bool)> {
        let hash = SecretHash::of(secret);
        let is_due = self.state().touch(&hash, Timestamp::now())?;
        let csrf = hex(&Sha256::digest(format!("cloister form {secret}")));
        Some((Visitor { hash, csrf }, is_due))
    }

    /// Tells whether a session lives.
    pub(super) fn is_alive(&self, hash: &SecretHash) -> bool {
        let now = Timestamp::now();
        self.state().find(hash).is_some_and(|session| session.is_alive(now))
    }

    /// Tells when a session was ended by hand.
    pub(super) fn endings(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
    }

    /// Ends a session. Writes to the disk.
    pub(super) fn log_out(&self, hash: &SecretHash) {
        self.state().sessions.retain(|session| !session.hash.is(hash));
        self.ended.send_modify(|count| *count += 1);
        self.save();
    }

    /// Keeps a sentence for the session's next page.
    pub(super) fn set_flash(&self, hash: &SecretHash, text: String) {
        if let Some(session) = self.state().find(hash) {
            session.flash = Some(text);
        }
    }

    /// Gives that sentence, once.
    pub(super) fn take_flash(&self, hash: &SecretHash) -> Option<String> {
        self.state().find(hash)?.flash.take()
    }

    /// Writes the sessions down. A failure costs logins after a restart, no more.
    pub(super) fn save(&self) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let sessions = {
            let mut state = self.state();
            let now = Timestamp::now();
            state.sessions.retain(|session| session.is_alive(now));
            state.sessions.clone()
        };
        if let Err(error) = file::save(&self.file, self.port, &sessions) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot write down who is logged in to the approval page"
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add_code(&mut self, code: &str, now: Instant) {
        if self.codes.len() >= MAX_CODES {
            self.codes.pop_front();
        }
        self.codes.push_back((SecretHash::of(code), now));
    }

    fn take_code(&mut self, code: &str, now: Instant) -> Result<(), LoginError> {
        self.codes.retain(|(_, made)| now.duration_since(*made) < CODE_LIFE);
        let hash = SecretHash::of(code);
        // Whoever guesses keeps nobody out who knows.
        if let Some(place) = self.codes.iter().position(|(known, _)| known.is(&hash)) {
            self.codes.remove(place);
            return Ok(());
        }
        self.guesses.retain(|at| now.duration_since(*at) < GUESS_TIME);
        if self.guesses.len() >= MAX_GUESSES {
            return Err(LoginError::TooMany);
        }
        self.guesses.push_back(now);
        Err(LoginError::Unknown)
    }

    fn begin(&mut self, secret: &str, now: Timestamp) {
        self.sessions.retain(|session| session.is_alive(now));
        if self.sessions.len() >= MAX_SESSIONS {
            self.sessions.sort_by_key(|session| session.used);
            self.sessions.remove(0);
        }
        let hash = SecretHash::of(secret);
        self.sessions.push(Session { hash, created: now, used: now, flash: None });
    }

    fn find(&mut self, hash: &SecretHash) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.hash.is(hash))
    }

    /// Notes that a session is used; tells whether that should be written down.
    fn touch(&mut self, hash: &SecretHash, now: Timestamp) -> Option<bool> {
        let session = self.find(hash).filter(|session| session.is_alive(now))?;
        // On disk is the time of some use before: what is kept there moves in steps.
        let is_due = now.duration_since(session.used) > SAVE_AGE;
        if is_due || now < session.used {
            session.used = now;
        }
        Some(is_due)
    }
}

/// Draws a secret: 64 hexadecimal digits.
fn random() -> io::Result<String> {
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(hex(&bytes))
}

#[cfg(test)]
mod tests;
