//! The command line's side of the control socket, and starting a guardian when none runs.

use std::cmp::Ordering;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

pub use super::control::api::{
    API_VERSION, CloisterStatus, Forget, Forgotten, ForgottenRule, LastDenial, ProcessStatus, Registration,
    Reloaded, Reloads, SettingsProblem, Status, Totals,
};
pub use super::control::judgement::{Judgement, usual_way};
pub use super::registry::tokens::{
    TokenError, TokenFile, files as token_files, forget as forget_token, kept_for as token_kept_for,
};

pub use spawn::READY;

use super::control::api::{Failure, Registered, Revoked, Stop, StopReceipt, Version};
use crate::name::CloisterName;
use crate::paths::{Lock, Paths, PathsError};
use crate::policy::Authority;
use crate::token::ControlKey;
use holder::Holder;
use spawn::{spawn_only, spawn_successor};

mod approvals;
mod holder;
mod spawn;

/// How long a start waits for a guardian that is about to end: one that waits for open tunnels takes longer.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// How long a guardian that was told to stop may take.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(5);
/// How often a request is repeated that met a guardian in the moment in which it was replaced.
const RETRIES: usize = 5;
/// How long the guardian may take to say who and how it is.
const GLANCE_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take for everything else.
const PATIENCE: Duration = Duration::from_mins(1);

/// Why the guardian could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is none.
    #[error("the guardian is not running")]
    NotRunning,
    /// It ended before it served.
    #[error("the guardian does not start: {0}")]
    DoesNotStart(String),
    /// Another one could not take its place, and so it runs as before.
    #[error("the running guardian can't be replaced: {0}")]
    NotReplaced(String),
    /// It does not answer.
    #[error("the guardian{} did not answer within {} s", process_text(*pid), patience.as_secs())]
    Stalled {
        /// Its process, where that can be seen.
        pid: Option<i32>,
        /// How long it was waited for.
        patience: Duration,
    },
    /// It can't be asked, and still is one.
    #[error(
        "a guardian{} holds the lock, but can't be reached: its socket or key is gone, or it has another \
         `XDG_RUNTIME_DIR`",
        process_text(*pid)
    )]
    Unreachable {
        /// Its process, where that can be seen.
        pid: Option<i32>,
    },
    /// The key to it is none.
    #[error("the control key in `{}` is damaged", path.display())]
    DamagedKey {
        /// The file.
        path: PathBuf,
        /// Its process, where that can be seen.
        pid: Option<i32>,
    },
    /// It speaks another language.
    #[error("the running guardian is version {version} with control interface {api}; this is {}, {API_VERSION}", env!("CARGO_PKG_VERSION"))]
    OtherVersion {
        /// Its version.
        version: String,
        /// Its interface.
        api: u32,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// The conversation broke off.
    #[error("cannot speak with the guardian")]
    Http(#[source] hyper::Error),
    /// What it said is not understood.
    #[error("cannot understand the guardian")]
    Answer(#[source] serde_json::Error),
    /// A file operation failed.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// Something else of the system.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn process_text(pid: Option<i32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> ClientError {
    move |source| ClientError::Io { action, source }
}

/// A guardian that answers.
#[derive(Debug, Clone)]
pub struct Guardian {
    socket: PathBuf,
    locks: [PathBuf; 2],
    key: Arc<ControlKey>,
    version: Version,
}

/// What to do with the guardian that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// It understands this binary, and is not older.
    Fits,
    /// It is older: this binary takes its place.
    Older,
    /// It is newer, and speaks another language: this binary must not take its place.
    Newer,
}

impl Fit {
    /// Judges a guardian by what it says of itself.
    fn of(found: &Version) -> Self {
        match found.api.cmp(&API_VERSION) {
            Ordering::Less => Self::Older,
            Ordering::Greater => Self::Newer,
            Ordering::Equal if parts(&found.version) < parts(env!("CARGO_PKG_VERSION")) => Self::Older,
            Ordering::Equal => Self::Fits,
        }
    }
}

/// The numbers of a version, to be compared.
fn parts(version: &str) -> Vec<u64> {
    version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

impl Guardian {
    /// Finds the running guardian.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] when there is none, [`ClientError::OtherVersion`] when it speaks another language.
    pub async fn connect(paths: &Paths) -> Result<Self, ClientError> {
        let guardian = Self::connect_any(paths).await?;
        let Version { version, api, .. } = guardian.version.clone();
        if api == API_VERSION { Ok(guardian) } else { Err(ClientError::OtherVersion { version, api }) }
    }

    /// Finds the running guardian of whatever version, to stop it.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] when there is none.
    pub async fn connect_any(paths: &Paths) -> Result<Self, ClientError> {
        let path = paths.control_key();
        let key = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ClientError::NotRunning),
            other => ControlKey::parse(other.map_err(io_error("read the control key"))?.trim_end()),
        };
        let locks = holder::locks(paths);
        let key = key.map_err(|_| ClientError::DamagedKey { path, pid: holder::process(&locks) })?;
        let (socket, version) = (paths.control_socket(), Version::default());
        let mut guardian = Self { socket, locks, key: Arc::new(key), version };
        guardian.version = guardian.ask(Method::GET, "/version", Vec::new()).await?;
        Ok(guardian)
    }

    /// Finds the running guardian of whatever version, to stop it; `None` when there certainly is none.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when there is one that can't be asked.
    pub async fn find_to_stop(paths: &Paths) -> Result<Option<Self>, ClientError> {
        match Self::connect_any(paths).await {
            Err(ClientError::NotRunning) => match Holder::lasting(paths).await {
                Holder::Nobody => Ok(None),
                Holder::Process(pid) => Err(ClientError::Unreachable { pid }),
            },
            other => other.map(Some),
        }
    }

    /// Tells whether it was stopping when it was found: it serves nothing new.
    pub fn is_stopping(&self) -> bool {
        self.version.is_stopping
    }

    /// Finds the running guardian, replaces it if it is older than this binary, or starts one. One that is stopping is
    /// given when it has not ended within a second.
    pub async fn ensure(paths: &Paths) -> Result<Self, ClientError> {
        let end = Instant::now() + STOP_PATIENCE;
        loop {
            let found = Self::find_or_start(paths).await?;
            if !found.is_stopping() || Instant::now() > end {
                return Ok(found);
            }
            sleep(LOOK).await;
        }
    }

    async fn find_or_start(paths: &Paths) -> Result<Self, ClientError> {
        if let Some(fitting) = Self::find_fitting(paths).await? {
            return Ok(fitting);
        }
        let _lock = Lock::acquire(&paths.guardian_start_lock())?;
        if let Some(fitting) = Self::find_fitting(paths).await? {
            return Ok(fitting);
        }
        match Self::find(paths).await.transpose()? {
            None => spawn_only(paths)?,
            Some(found) => match spawn_successor(paths) {
                // It goes on, and understands what it is asked.
                Err(said) if found.version.api == API_VERSION => {
                    tracing::warn!(said, "the older guardian can't be replaced");
                    return Ok(found);
                }
                spawned => spawned.map_err(ClientError::NotReplaced)?,
            },
        }
        Self::connect(paths).await
    }

    /// Puts this binary in the place of the running guardian, or starts it if there is none; says whose place it took.
    pub async fn replace(paths: &Paths) -> Result<Option<String>, ClientError> {
        let _lock = Lock::acquire(&paths.guardian_start_lock())?;
        let found = Self::find(paths).await.transpose()?;
        match &found {
            None => spawn_only(paths)?,
            Some(found) if Fit::of(&found.version) == Fit::Newer => {
                let Version { version, api, .. } = found.version.clone();
                return Err(ClientError::OtherVersion { version, api });
            }
            Some(_) => spawn_successor(paths).map_err(ClientError::NotReplaced)?,
        }
        Self::connect(paths).await?;
        Ok(found.map(|found| found.version.version))
    }

    /// The running guardian if it fits; `None` when one has to be started.
    async fn find_fitting(paths: &Paths) -> Result<Option<Self>, ClientError> {
        let Some(found) = Self::find(paths).await.transpose()? else { return Ok(None) };
        match Fit::of(&found.version) {
            Fit::Fits => Ok(Some(found)),
            Fit::Older => Ok(None),
            Fit::Newer => {
                let Version { version, api, .. } = found.version;
                Err(ClientError::OtherVersion { version, api })
            }
        }
    }

    /// What connecting came to, unless there is none or one that breaks off because it is about to end.
    async fn find(paths: &Paths) -> Option<Result<Self, ClientError>> {
        match Self::connect_any(paths).await {
            Err(ClientError::NotRunning | ClientError::Http(_)) => None,
            other => Some(other),
        }
    }

    /// Registers a sandbox; the answer is its token.
    pub async fn register(&self, registration: &Registration) -> Result<String, ClientError> {
        let body = serde_json::to_vec(registration).map_err(ClientError::Answer)?;
        let Registered { token } = self.ask(Method::POST, "/tokens", body).await?;
        Ok(token)
    }

    /// Tells that a registered sandbox runs now.
    pub async fn confirm(&self, cloister: &CloisterName) -> Result<(), ClientError> {
        self.ask(Method::POST, &format!("/tokens/{cloister}/started"), Vec::new()).await
    }

    /// Revokes a sandbox's token; false when there was none.
    pub async fn revoke(&self, cloister: &CloisterName) -> Result<bool, ClientError> {
        let Revoked { existed } =
            self.ask(Method::DELETE, &format!("/tokens/{cloister}"), Vec::new()).await?;
        Ok(existed)
    }

    /// Has all rules read again.
    pub async fn reload(&self) -> Result<Reloaded, ClientError> {
        self.ask(Method::POST, "/reload", Vec::new()).await
    }

    /// Asks how it is.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.ask(Method::GET, "/status", Vec::new()).await
    }

    /// Asks what the rules that hold in it say of a destination.
    pub async fn judge(
        &self,
        cloister: &CloisterName,
        authority: &Authority,
    ) -> Result<Judgement, ClientError> {
        self.ask(Method::GET, &format!("/judgements/{cloister}/{authority}"), Vec::new()).await
    }

    /// Asks for its measurements, as text for Prometheus.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let (status, body) = self.exchange(Method::GET, "/metrics", Vec::new()).await?;
        if status.is_success() {
            Ok(String::from_utf8_lossy(&body).into_owned())
        } else {
            Err(refusal(status, &body))
        }
    }

    /// Stops it and waits until it is gone; the answer is the head of the audit log. Open tunnels may go on for `drain`.
    pub async fn shut_down(&self, paths: &Paths, drain: Duration) -> Result<String, ClientError> {
        let drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
        let body = match drain_ms {
            // Every version understands it.
            0 => Vec::new(),
            _ => serde_json::to_vec(&Stop { drain_ms }).map_err(ClientError::Answer)?,
        };
        let patience = PATIENCE.saturating_add(drain);
        let (status, body) = self.exchange_within(patience, Method::POST, "/shutdown", body).await?;
        let StopReceipt { audit_head } = parse(status, &body)?;
        let end = Instant::now() + END_PATIENCE;
        // Its lock is free as soon as its process has ended.
        while Lock::try_acquire(&paths.guardian_lock())?.is_none() {
            if Instant::now() > end {
                let pid = holder::process(&self.locks);
                return Err(ClientError::Stalled { pid, patience: END_PATIENCE });
            }
            sleep(LOOK).await;
        }
        Ok(audit_head)
    }

    /// Asks, and understands the answer.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        let (status, body) = self.exchange(method, path, body).await?;
        parse(status, &body)
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let is_glance = ["/version", "/status"].contains(&path);
        let patience = if is_glance { GLANCE_PATIENCE } else { PATIENCE };
        self.exchange_within(patience, method, path, body).await
    }

    /// Asks, but does not wait for ever: a guardian can be frozen.
    async fn exchange_within(
        &self,
        patience: Duration,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let answered = timeout(patience, self.exchange_again(method, path, body)).await;
        answered.unwrap_or_else(|_| Err(ClientError::Stalled { pid: holder::process(&self.locks), patience }))
    }

    /// Asks, and asks again when another guardian has taken over meanwhile.
    async fn exchange_again(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        for _ in 0..RETRIES {
            match self.exchange_once(method.clone(), path, body.clone()).await {
                Ok((StatusCode::MISDIRECTED_REQUEST, _)) => {}
                // What was not answered was not done, or does no harm when it is done twice.
                Err(ClientError::Http(error)) if !error.is_parse() && !error.is_user() => {}
                other => return other,
            }
        }
        self.exchange_once(method, path, body).await
    }

    async fn exchange_once(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| match error.kind() {
            // The last one is told by a socket that is being closed, as the kernel does for one that was killed.
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => {
                ClientError::NotRunning
            }
            // So many wait already that the kernel lets no more of them.
            io::ErrorKind::WouldBlock => {
                ClientError::Stalled { pid: holder::process(&self.locks), patience: Duration::ZERO }
            }
            _ => io_error("connect to the control socket")(error),
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Http)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "guardian")
            .header(AUTHORIZATION, format!("Bearer {}", self.key.expose()))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("the parts are constants, a checked name and a key of hexadecimal digits");
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            drop(sender);
            Ok::<_, hyper::Error>((status, body))
        };
        let (answer, _) = tokio::join!(exchange, connection);
        answer.map_err(ClientError::Http)
    }
}

fn parse<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<T, ClientError> {
    if status.is_success() {
        return serde_json::from_slice(body).map_err(ClientError::Answer);
    }
    Err(refusal(status, body))
}

fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<Failure>(body) {
        Ok(failure) => ClientError::Refused(failure.error),
        Err(_) => ClientError::Refused(format!("the guardian answered {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guardian_is_replaced_by_a_newer_binary_only() {
        let fit =
            |version: &str, api| Fit::of(&Version { version: version.to_owned(), api, is_stopping: false });
        let own = env!("CARGO_PKG_VERSION");
        assert_eq!(fit(own, API_VERSION), Fit::Fits);
        assert_eq!(fit("0.0.9", API_VERSION), Fit::Older);
        assert_eq!(fit("0.0.10", API_VERSION), Fit::Older);
        assert_eq!(fit("9999.0.0", API_VERSION), Fit::Fits);
        assert_eq!(fit(own, API_VERSION - 1), Fit::Older);
        assert_eq!(fit("9999.0.0", API_VERSION - 1), Fit::Older);
        assert_eq!(fit(own, API_VERSION + 1), Fit::Newer);
        assert_eq!(fit("0.0.1", API_VERSION + 1), Fit::Newer);
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(parts("0.9.0") < parts("0.10.0"));
        assert!(parts("0.1.0") < parts("0.1.1"));
        assert_eq!(parts("1.2.3-rc"), [1, 2, 3]);
        assert_eq!(parts("nonsense"), [] as [u64; 0]);
    }

    #[tokio::test]
    async fn a16_a_key_is_neither_shown_nor_sent_unless_it_is_one() {
        let home = tempfile::tempdir().unwrap();
        let variable = std::ffi::OsString::from(home.path());
        let paths = Paths::from_environment(|name| (name == "HOME").then(|| variable.clone())).unwrap();
        fs::create_dir_all(paths.runtime_dir()).unwrap();
        for damaged in ["", "abc", "07\n07", &"g".repeat(64)] {
            fs::write(paths.control_key(), damaged).unwrap();
            let error = Guardian::connect_any(&paths).await.unwrap_err();
            assert!(matches!(error, ClientError::DamagedKey { .. }), "{damaged:?}: {error}");
        }
        let key = "07".repeat(32);
        fs::write(paths.control_key(), format!("{key}\n")).unwrap();
        assert!(matches!(Guardian::connect_any(&paths).await, Err(ClientError::NotRunning)));
        let guardian = Guardian {
            socket: paths.control_socket(),
            locks: holder::locks(&paths),
            key: Arc::new(ControlKey::parse(&key).unwrap()),
            version: Version::default(),
        };
        assert!(!format!("{guardian:?}").contains("0707"));
    }
}
