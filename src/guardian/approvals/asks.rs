//! The requests that somebody inside a sandbox makes politely, with a reason: `POST /ask` on `request.sock`.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::{Counsel, POLITELY};
use crate::approval::bucket::Bucket;
use crate::approval::{Scope, Voice};
use crate::audit::{Event, Record, Repeatable};
use crate::guardian::control::api::API_VERSION;
use crate::guardian::control::judgement::usual_way;
use crate::policy::{self, Authority, Decision, Host, OriginKind, Rule};
use crate::proxy::Verdict;
use crate::token::HashedToken;

/// How many may ask at once; the next waits until one has its answer.
const MAX_CONNECTIONS: usize = 32;
/// How long a request may take to come.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest request, and the longest reason in it.
const MAX_BODY_BYTES: usize = 8 << 10;
const MAX_REASON_BYTES: usize = 1 << 10;
const MAX_HEAD_BYTES: usize = 16 << 10;
/// How often somebody may ask: so many times at once, and then once after every pause. Who asks for what waits already
/// begins nothing, and costs those who look at it all the same (A6).
const MAX_ASKS: u32 = 120;
const ASK_PAUSE: Duration = Duration::from_millis(500);
/// How long one who has ended its direction may still take the answer that was on its way.
const FAREWELL: Duration = Duration::from_millis(250);
/// How long the accept loop rests when the system has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers those who ask politely in one sandbox.
pub(in crate::guardian) struct Asks {
    pub(in crate::guardian) counsel: Arc<Counsel>,
    token: HashedToken,
    bucket: Mutex<Bucket>,
}

/// What is asked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    host: String,
    port: u16,
    reason: Option<String>,
}

/// What the one who asked is told.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Told {
    /// `allowed`, `denied`, `timeout` or `error`.
    status: &'static str,
    scope: Option<Scope>,
    pattern: Option<String>,
    reason: Option<&'static str>,
    hint: Option<String>,
}

/// Why nothing is asked.
struct Refusal {
    status: StatusCode,
    reason: &'static str,
    hint: String,
    /// When it makes sense to ask again.
    wait: Option<Duration>,
}

impl Refusal {
    fn new(status: StatusCode, reason: &'static str, hint: impl Into<String>) -> Self {
        Self { status, reason, hint: hint.into(), wait: None }
    }

    /// Says that too much is asked; `what` is to be tried again.
    fn too_much(reason: &'static str, what: &str, wait: Duration) -> Self {
        let seconds = whole_seconds(wait);
        let hint = format!("{what}; try again in {seconds} s");
        Self { wait: Some(wait), ..Self::new(StatusCode::TOO_MANY_REQUESTS, reason, hint) }
    }
}

/// At least one, and not too few.
fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let Self { status, reason, hint, wait } = self;
        let body = serde_json::json!({"error": reason, "layer": "request", "hint": hint});
        let retry = wait.map(|wait| [(header::RETRY_AFTER, whole_seconds(wait).to_string())]);
        (status, [("X-Cloister-Reason", reason)], retry, Json(body)).into_response()
    }
}

/// Serves one sandbox, until the thread that it belongs to ends.
pub(in crate::guardian) async fn serve(listener: UnixListener, asks: Arc<Asks>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Nobody closes it.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let asks = Arc::clone(&asks);
                tokio::spawn(async move {
                    converse(stream, asks).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot accept a polite request");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Takes one request and answers it. A client that goes away drops its question.
async fn converse(stream: UnixStream, asks: Arc<Asks>) {
    let watched = match twin(&stream) {
        Ok(watched) => watched,
        Err(error) => return tracing::warn!(%error, "cannot watch over a polite request"),
    };
    let service = service_fn(|request| {
        let asks = Arc::clone(&asks);
        async move { Ok::<_, Infallible>(asks.answer(request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        served = served => if let Err(error) = served {
            tracing::debug!(error = &error as &dyn std::error::Error, "a polite request broke off");
        },
        () = gone(&watched) => tracing::debug!("nobody waits for the answer to a polite request"),
    }
}

/// The same socket once more, of which the end is seen while the request is answered.
fn twin(stream: &UnixStream) -> io::Result<UnixStream> {
    UnixStream::from_std(stream.as_fd().try_clone_to_owned()?.into())
}

/// Waits until the client says no more, whatever it has sent that nobody read.
async fn gone(watched: &UnixStream) {
    // It fails only when the runtime ends.
    while let Ok(ready) = watched.ready(Interest::READABLE).await {
        if ready.is_read_closed() {
            break;
        }
        // What came is not this task's to read: the next sign is waited for.
        let _ = watched.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
    sleep(FAREWELL).await;
}

impl Asks {
    pub(in crate::guardian) fn new(counsel: Arc<Counsel>, token: HashedToken) -> Self {
        Self { counsel, token, bucket: Mutex::default() }
    }

    /// Counts one who asks, unless it was too often.
    fn count(&self) -> Result<(), Refusal> {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = bucket.take_one_of(MAX_ASKS, ASK_PAUSE, Instant::now());
        taken.map_err(|wait| Refusal::too_much("rate_limited", "this sandbox asks too often", wait))
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        match (&parts.method, parts.uri.path()) {
            (&Method::GET, "/version") => {
                let version = serde_json::json!({"version": env!("CARGO_PKG_VERSION"), "api": API_VERSION});
                Json(version).into_response()
            }
            (&Method::POST, "/ask") => {
                let told = async {
                    self.count()?;
                    let (authority, reason) = self.read(&parts.headers, Body::new(body)).await?;
                    self.ask(&authority, reason).await
                };
                told.await.map_or_else(IntoResponse::into_response, |told| Json(told).into_response())
            }
            _ => {
                let hint = "what can be asked here is `POST /ask` and `GET /version`";
                Refusal::new(StatusCode::NOT_FOUND, "bad_request", hint).into_response()
            }
        }
    }

    /// Checks who asks, and for what.
    async fn read(&self, headers: &HeaderMap, body: Body) -> Result<(Authority, Option<String>), Refusal> {
        let bad = |hint: String| Refusal::new(StatusCode::BAD_REQUEST, "bad_request", hint);
        let presented = headers.get("x-cloister-token").and_then(|value| value.to_str().ok());
        if !presented.is_some_and(|presented| self.token.matches(presented)) {
            let hint = "the header X-Cloister-Token is missing or not this sandbox's token";
            return Err(Refusal::new(StatusCode::FORBIDDEN, "unauthenticated", hint));
        }
        if headers.contains_key(header::ORIGIN) {
            // No browser asks politely.
            return Err(bad("a page of the web has no say here".to_owned()));
        }
        let body = match timeout(REQUEST_TIMEOUT, to_bytes(body, MAX_BODY_BYTES)).await {
            Ok(Ok(body)) => body,
            Ok(Err(_)) => {
                return Err(bad(format!("the body is longer than {} KiB, or broken", MAX_BODY_BYTES >> 10)));
            }
            Err(_) => return Err(bad("the body did not come in time".to_owned())),
        };
        let Ask { host, port, reason } = serde_json::from_slice(&body)
            .map_err(|error| bad(format!("the body is not {{\"host\", \"port\", \"reason\"}}: {error}")))?;
        if reason.as_ref().is_some_and(|reason| reason.len() > MAX_REASON_BYTES) {
            return Err(bad(format!("the reason is longer than {} KiB", MAX_REASON_BYTES >> 10)));
        }
        let host = Host::parse(&host).map_err(|error| bad(error.to_string()))?;
        let authority = Authority::new(host, port).map_err(|error| bad(error.to_string()))?;
        Ok((authority, reason))
    }

    /// Asks the rules, and a human where no rule covers it; then the rules again.
    async fn ask(&self, authority: &Authority, reason: Option<String>) -> Result<Told, Refusal> {
        let counsel = &self.counsel;
        let unavailable = || {
            let hint = "the guardian can't read its rules or write its audit log";
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "policy_unavailable", hint)
        };
        let mut grant = None;
        loop {
            let policy = counsel.policy.current().ok_or_else(unavailable)?;
            let request = policy::Request {
                cloister: &counsel.cloister,
                authority,
                via: usual_way(authority),
                grant: grant.as_ref(),
            };
            let question = match policy.evaluate(&request) {
                Decision::Allow(allowed) => return Ok(Told::allowed(allowed.rule())),
                Decision::Deny(denial) => {
                    let hint = Some(format!("on the host, `cloister why {authority}` tells more"));
                    let (scope, pattern) = denial.rule().map(|rule| Told::by(rule)).unwrap_or_default();
                    let reason = Some(denial.reason().code());
                    self.record(authority, denial.reason().code(), denial.rule().map(|rule| &**rule));
                    return Ok(Told { status: "denied", scope, pattern, reason, hint });
                }
                Decision::Ask(question) => question,
            };
            let verdict = tokio::select! {
                biased;
                () = counsel.approvals.over() => {
                    let hint = "the guardian is shutting down; ask again in a moment";
                    return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", hint));
                }
                verdict = counsel.ask(&question, Voice::Polite { reason: reason.clone() }) => verdict,
            };
            match verdict {
                Verdict::Judge(rule) => grant = rule,
                Verdict::TimedOut(patience) => {
                    let hint = Some(format!("nobody answered within {} s", patience.as_secs_f32()));
                    let reason = Some("approval_timeout");
                    self.record(authority, "approval_timeout", None);
                    return Ok(Told { status: "timeout", scope: None, pattern: None, reason, hint });
                }
                Verdict::TooMany(wait) => {
                    self.record(authority, "too_many_questions", None);
                    let what = "a human has too many questions of this sandbox to answer already";
                    return Err(Refusal::too_much("too_many_questions", what, wait));
                }
                Verdict::Unrecorded => return Err(unavailable()),
            }
        }
    }
}

impl Asks {
    /// Writes a refusal into the log, as the proxy does with those of connections; it holds in any case.
    fn record(&self, authority: &Authority, reason: &'static str, rule: Option<&Rule>) {
        let Counsel { approvals, cloister, project, branch, .. } = &*self.counsel;
        let subject = format!("{authority} {POLITELY}");
        let what = Repeatable { cloister, event: Event::ProxyDeny, reason, subject: Some(&subject) };
        let written = approvals.log.append_repeatable(what, || {
            let record = Record::new(Event::ProxyDeny).cloister(cloister).project(project).reason(reason);
            let record = branch.iter().fold(record, Record::branch).detail(POLITELY);
            let record = record.host(authority.host()).port(authority.port());
            rule.into_iter().fold(record, |record, rule| record.rule(rule).origin(rule.origin()))
        });
        if let Err(error) = written {
            tracing::error!(error = &error as &dyn std::error::Error, "a polite refusal is not recorded");
        }
    }
}

impl Told {
    fn allowed(rule: &Rule) -> Self {
        let (scope, pattern) = Self::by(rule);
        let hint = (scope == Some(Scope::Once)).then(|| "for one connection, within a minute".to_owned());
        Self { status: "allowed", scope, pattern, reason: None, hint }
    }

    /// How far an answer reaches, and what it is about; a rule of the settings is no business of the sandbox.
    fn by(rule: &Rule) -> (Option<Scope>, Option<String>) {
        let at = rule.origin().location().unwrap_or_default();
        let scope = match rule.origin().kind() {
            OriginKind::Session if at.starts_with("once") => Scope::Once,
            OriginKind::Session => Scope::Session,
            OriginKind::Decision if at.starts_with("decisions/global") => Scope::Global,
            OriginKind::Decision => Scope::Project,
            OriginKind::Builtin | OriginKind::Global | OriginKind::Project | OriginKind::CloisterNix => {
                return (None, None);
            }
        };
        (Some(scope), Some(rule.to_string()))
    }
}

#[cfg(test)]
mod tests;
