//! Every way in which the proxy says no: reason, status and hint in one place (INTERFACES 5).

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde::Serialize;

use crate::config::RateLimit;
use crate::name::ProjectName;
use crate::policy::{self, Authority, Denial, Host, Rule, Via};

use super::admission::TooOften;
use super::dial::failure::DialError;
use super::dial::resolve::ResolveError;
use super::head::HeadError;

/// The stable code of a refusal, or of an end that is not in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The request is malformed or ambiguous.
    BadRequest,
    /// The token is missing or wrong.
    Unauthenticated,
    /// The request head did not come in time.
    HeadTimeout,
    /// The request head is too large.
    HeadTooLarge,
    /// The sandbox asks too often.
    RateLimited,
    /// The sandbox has too many tunnels open.
    TooManyTunnels,
    /// No rule allows the authority.
    NotAllowed,
    /// A deny rule forbids the authority.
    DeniedByRule,
    /// A human said no.
    DeniedByUser,
    /// No human answered in time.
    ApprovalTimeout,
    /// A human has too many questions of this sandbox to answer.
    TooManyQuestions,
    /// The name leads to an address that no sandbox may reach.
    AddressForbidden,
    /// The name can't be resolved.
    DnsFailed,
    /// The name servers did not answer in time.
    DnsTimeout,
    /// The name server refused to answer.
    DnsRefused,
    /// No checked address could be connected, or the upstream broke the protocol before it answered.
    ConnectFailed,
    /// The policy or the audit log can't be used.
    PolicyUnavailable,
    /// The sandbox has too many connections open, or the guardian no descriptor left for one more.
    Overloaded,
    /// The guardian is shutting down.
    ShuttingDown,
    /// The `ClientHello` names another host than the authority.
    SniMismatch,
    /// What flows to port 443 is not TLS.
    NotTls,
    /// Nothing moved for too long.
    IdleTimeout,
    /// It was open for as long as anything may be.
    MaxDuration,
    /// The rule that allowed it is gone.
    RuleWithdrawn,
    /// The token of the sandbox was revoked.
    TokenRevoked,
    /// The upstream broke the connection off.
    UpstreamReset,
    /// The client broke the connection off, or its protocol.
    ClientReset,
    /// The connection's task ended by an error of the program.
    Aborted,
}

impl Reason {
    /// The code as it stands in answers and in the audit log.
    pub fn code(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unauthenticated => "unauthenticated",
            Self::HeadTimeout => "head_timeout",
            Self::HeadTooLarge => "head_too_large",
            Self::RateLimited => "rate_limited",
            Self::TooManyTunnels => "too_many_tunnels",
            Self::NotAllowed => "not_allowed",
            Self::DeniedByRule => "denied_by_rule",
            Self::DeniedByUser => "denied_by_user",
            Self::ApprovalTimeout => "approval_timeout",
            Self::TooManyQuestions => "too_many_questions",
            Self::AddressForbidden => "address_forbidden",
            Self::DnsFailed => "dns_failed",
            Self::DnsTimeout => "dns_timeout",
            Self::DnsRefused => "dns_refused",
            Self::ConnectFailed => "connect_failed",
            Self::PolicyUnavailable => "policy_unavailable",
            Self::Overloaded => "overloaded",
            Self::ShuttingDown => "shutting_down",
            Self::SniMismatch => "sni_mismatch",
            Self::NotTls => "not_tls",
            Self::IdleTimeout => "idle_timeout",
            Self::MaxDuration => "max_duration",
            Self::RuleWithdrawn => "rule_withdrawn",
            Self::TokenRevoked => "token_revoked",
            Self::UpstreamReset => "upstream_reset",
            Self::ClientReset => "client_reset",
            Self::Aborted => "aborted",
        }
    }
}

impl From<policy::Reason> for Reason {
    fn from(reason: policy::Reason) -> Self {
        match reason {
            policy::Reason::NotAllowed => Self::NotAllowed,
            policy::Reason::DeniedByRule => Self::DeniedByRule,
            policy::Reason::DeniedByUser => Self::DeniedByUser,
            policy::Reason::AddressForbidden => Self::AddressForbidden,
            policy::Reason::NoAddress => Self::DnsFailed,
        }
    }
}

/// An answer that says no.
#[derive(Debug)]
pub(super) struct Refusal {
    reason: Reason,
    status: StatusCode,
    authority: Option<Authority>,
    hint: String,
    audit: Audit,
    /// When to ask again, in seconds.
    retry_after: Option<u64>,
}

/// What of a refusal goes into the audit log.
#[derive(Debug)]
pub(super) enum Audit {
    /// Nothing, it is counted only.
    Silent,
    /// Nothing, and it is not counted either: what was refused had been allowed, and the end of its record tells of it.
    Closed,
    /// A denial, with what the sandbox is not told.
    Deny { rule: Option<Arc<Rule>>, detail: Option<String> },
}

/// Whether the connection can serve another request after the refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    KeepAlive,
    Close,
}

/// Whether the refusal shows its body: the answer to HEAD has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    Whole,
    HeadOnly,
}

impl Refusal {
    /// The head can't be parsed.
    pub(super) fn bad_head(error: &HeadError) -> Self {
        let (reason, status) = match error {
            HeadError::Malformed(_) | HeadError::Authority(_) => {
                (Reason::BadRequest, StatusCode::BAD_REQUEST)
            }
            HeadError::TooLarge => (Reason::HeadTooLarge, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            HeadError::MethodRefused => (Reason::BadRequest, StatusCode::METHOD_NOT_ALLOWED),
            HeadError::NotForAProxy => (Reason::BadRequest, StatusCode::NOT_FOUND),
        };
        Self::silent(reason, status, error.to_string())
    }

    /// The body breaks its framing.
    pub(super) fn bad_body(what: &str) -> Self {
        Self::silent(Reason::BadRequest, StatusCode::BAD_REQUEST, what.to_owned())
    }

    /// The head did not come in time.
    pub(super) fn head_timeout(limit: Duration) -> Self {
        let seconds = limit.as_secs_f32();
        let hint = format!("the request head must be complete within {seconds} seconds of its first byte");
        Self::silent(Reason::HeadTimeout, StatusCode::REQUEST_TIMEOUT, hint)
    }

    /// No credentials came: the first step of many clients, and no denial.
    pub(super) fn challenge() -> Self {
        let hint =
            "send the token of this sandbox: the proxy variables of the environment hold it".to_owned();
        Self::silent(Reason::Unauthenticated, StatusCode::PROXY_AUTHENTICATION_REQUIRED, hint)
    }

    /// The credentials are wrong.
    pub(super) fn wrong_credentials() -> Self {
        let hint =
            "the token is not the one of this sandbox; use `CLOISTER_TOKEN` of the environment".to_owned();
        Self::silent(Reason::Unauthenticated, StatusCode::PROXY_AUTHENTICATION_REQUIRED, hint)
            .audited(None, None)
    }

    /// The policy said no.
    pub(super) fn denied(denial: &Denial, authority: &Authority, via: Via, project: &ProjectName) -> Self {
        let host = authority.host();
        let status = match denial.reason() {
            policy::Reason::NoAddress => StatusCode::BAD_GATEWAY,
            policy::Reason::NotAllowed
            | policy::Reason::DeniedByRule
            | policy::Reason::DeniedByUser
            | policy::Reason::AddressForbidden => StatusCode::FORBIDDEN,
        };
        let hint = match denial.reason() {
            policy::Reason::NotAllowed => not_allowed_hint(authority, via, project),
            policy::Reason::DeniedByRule => {
                format!(
                    "a rule on the host denies `{authority}`; on the host, `cloister why {authority}` names it"
                )
            }
            policy::Reason::DeniedByUser => {
                format!("a human denied `{authority}`; on the host, `cloister why {authority}` tells more")
            }
            policy::Reason::AddressForbidden => format!(
                "`{host}` leads to an address that no sandbox may reach; on the host, `cloister why {authority}` tells more"
            ),
            policy::Reason::NoAddress => format!("`{host}` has no address; is the name right?"),
        };
        Self::new(denial.reason().into(), status, authority, hint)
            .audited(denial.rule().cloned(), denial.detail().map(str::to_owned))
    }

    /// A human was asked and did not answer in time.
    pub(super) fn unanswered(authority: &Authority, patience: Duration) -> Self {
        let hint = format!(
            "nobody answered within {} s whether `{authority}` may be reached; try again when somebody looks, and say \
             why: `cloister request {authority} --reason WHY`",
            patience.as_secs_f32()
        );
        Self::new(Reason::ApprovalTimeout, StatusCode::FORBIDDEN, authority, hint).audited(None, None)
    }

    /// A human has so many questions of this sandbox to answer that this one is not asked.
    pub(super) fn too_many_questions(authority: &Authority, wait: Duration) -> Self {
        let hint =
            "a human has too many questions of this sandbox to answer already; ask for fewer hosts, or wait";
        let refusal =
            Self::new(Reason::TooManyQuestions, StatusCode::TOO_MANY_REQUESTS, authority, hint.to_owned());
        Self { retry_after: Some(wait.as_secs().max(1)), ..refusal }.audited(None, None)
    }

    /// The sandbox asks more often than it may; `authority` is known when it proved who it is.
    pub(super) fn rate_limited(authority: Option<&Authority>, rate: RateLimit, too_often: TooOften) -> Self {
        let TooOften(wait) = too_often;
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let hint = format!(
            "more than {} requests a minute, after {} at once; ask less often, or raise `proxy.rate_limit` on the host",
            rate.per_minute, rate.burst
        );
        let refusal = Self::silent(Reason::RateLimited, StatusCode::TOO_MANY_REQUESTS, hint);
        let authority = authority.cloned();
        Self { authority, retry_after: Some(seconds.max(1)), ..refusal }.audited(None, None)
    }

    /// The sandbox has as many tunnels as it may have.
    pub(super) fn too_many_tunnels(authority: &Authority, limit: usize) -> Self {
        let hint = format!(
            "{limit} tunnels are open already; close some and try again, or raise `proxy.max_tunnels` on the host"
        );
        Self::new(Reason::TooManyTunnels, StatusCode::TOO_MANY_REQUESTS, authority, hint).audited(None, None)
    }

    /// The name has no addresses.
    pub(super) fn unresolved(authority: &Authority, error: &ResolveError) -> Self {
        let host = authority.host();
        let (reason, hint) = match error {
            ResolveError::Failed(_) => {
                (Reason::DnsFailed, format!("`{host}` can't be resolved; is the name right?"))
            }
            ResolveError::TooMany => {
                (Reason::DnsFailed, format!("`{host}` has more addresses than make sense"))
            }
            ResolveError::Timeout => {
                (Reason::DnsTimeout, format!("the name servers did not answer for `{host}`; try again later"))
            }
            ResolveError::Refused => (
                Reason::DnsRefused,
                format!(
                    "the name server of the host refuses to answer for `{host}`; it may be filtered there"
                ),
            ),
        };
        Self::new(reason, StatusCode::BAD_GATEWAY, authority, hint).audited(None, Some(error.detail()))
    }

    /// So many names are asked for already that this one did not get its turn.
    pub(super) fn too_many_lookups(authority: &Authority, limit: usize) -> Self {
        let hint = format!("{limit} names are being resolved already; try again in a moment");
        Self::new(Reason::Overloaded, StatusCode::SERVICE_UNAVAILABLE, authority, hint)
    }

    /// No address could be connected.
    pub(super) fn undialled(authority: &Authority, error: &DialError) -> Self {
        match error {
            DialError::Exhausted(_) => Self::exhausted(Some(authority)).closed(),
            DialError::Unconnected(_) | DialError::Proxy(_) => {
                Self::connect_failed(authority, &error.sentence())
            }
        }
    }

    /// No address could be connected, or what answered there is no HTTP.
    pub(super) fn connect_failed(authority: &Authority, what: &str) -> Self {
        let hint = format!("`{authority}` is allowed, but {what}");
        Self::new(Reason::ConnectFailed, StatusCode::BAD_GATEWAY, authority, hint).closed()
    }

    /// The policy or the audit log can't be used, so nothing passes.
    pub(super) fn unavailable(authority: &Authority) -> Self {
        let hint = "the guardian can't read its rules or write its audit log; on the host, run `cloister guardian status`";
        Self::new(Reason::PolicyUnavailable, StatusCode::SERVICE_UNAVAILABLE, authority, hint.to_owned())
    }

    /// The sandbox has as many connections as it may have.
    pub(super) fn overloaded(limit: usize) -> Self {
        let hint = format!(
            "{limit} connections are open already; close some and try again, or raise `proxy.max_tunnels` on the host"
        );
        Self::silent(Reason::Overloaded, StatusCode::SERVICE_UNAVAILABLE, hint)
    }

    /// The guardian has no descriptor left for it.
    pub(super) fn exhausted(authority: Option<&Authority>) -> Self {
        let hint = "the guardian has too many files and connections open; close some and try again, or raise \
                    `ulimit -n` on the host and restart the guardian";
        let refusal = Self::silent(Reason::Overloaded, StatusCode::SERVICE_UNAVAILABLE, hint.to_owned());
        Self { authority: authority.cloned(), ..refusal }
    }

    /// What was asked for ended before it stood, and before anything was recorded of it: the guardian shuts down, the
    /// sandbox was stopped, or a rule was withdrawn meanwhile.
    pub(super) fn ended(reason: Reason, authority: &Authority) -> Self {
        let (told, status, hint) = match reason {
            Reason::RuleWithdrawn => (
                Reason::NotAllowed,
                StatusCode::FORBIDDEN,
                format!("the rule that allowed `{authority}` was withdrawn meanwhile; try again"),
            ),
            Reason::TokenRevoked => (
                Reason::ShuttingDown,
                StatusCode::SERVICE_UNAVAILABLE,
                "this sandbox was stopped; nothing passes any more".to_owned(),
            ),
            _ => (
                Reason::ShuttingDown,
                StatusCode::SERVICE_UNAVAILABLE,
                "the guardian is shutting down; try again in a moment".to_owned(),
            ),
        };
        Self::new(told, status, authority, hint).audited(None, Some(reason.code().to_owned()))
    }

    fn new(reason: Reason, status: StatusCode, authority: &Authority, hint: String) -> Self {
        Self {
            reason,
            status,
            authority: Some(authority.clone()),
            hint,
            audit: Audit::Silent,
            retry_after: None,
        }
    }

    fn silent(reason: Reason, status: StatusCode, hint: String) -> Self {
        Self { reason, status, authority: None, hint, audit: Audit::Silent, retry_after: None }
    }

    fn audited(self, rule: Option<Arc<Rule>>, detail: Option<String>) -> Self {
        Self { audit: Audit::Deny { rule, detail }, ..self }
    }

    /// Says that what is refused had been allowed, and that its record has its end.
    pub(super) fn closed(self) -> Self {
        Self { audit: Audit::Closed, ..self }
    }

    pub(super) fn reason(&self) -> Reason {
        self.reason
    }

    /// What the record names: a flood of requests is one thing, wherever they wanted to go.
    pub(super) fn recorded_authority(&self) -> Option<&Authority> {
        self.authority.as_ref().filter(|_| self.reason != Reason::RateLimited)
    }

    pub(super) fn rule(&self) -> Option<&Arc<Rule>> {
        match &self.audit {
            Audit::Deny { rule, .. } => rule.as_ref(),
            Audit::Silent | Audit::Closed => None,
        }
    }

    pub(super) fn audit(&self) -> &Audit {
        &self.audit
    }

    /// The whole answer as it goes to the client.
    pub(super) fn render(&self, after: After, show: Show) -> Vec<u8> {
        let body = Body {
            error: self.reason.code(),
            layer: "proxy",
            host: self.authority.as_ref().map(|authority| authority.host().to_string()),
            port: self.authority.as_ref().map(Authority::port),
            hint: &self.hint,
        };
        let body = serde_json::to_string(&body).expect("a struct of strings and numbers is always JSON");
        let extra = match (self.status, self.retry_after) {
            (_, Some(seconds)) => format!("Retry-After: {seconds}\r\n"),
            (StatusCode::PROXY_AUTHENTICATION_REQUIRED, None) => {
                "Proxy-Authenticate: Basic realm=\"cloister\"\r\n".to_owned()
            }
            (StatusCode::METHOD_NOT_ALLOWED, None) => {
                "Allow: CONNECT, GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n".to_owned()
            }
            _ => String::new(),
        };
        let connection = match after {
            After::KeepAlive => "keep-alive",
            After::Close => "close",
        };
        let mut answer = format!(
            "HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             X-Cloister-Reason: {code}\r\n{extra}Connection: {connection}\r\n\r\n",
            status = self.status.as_u16(),
            phrase = self.status.canonical_reason().unwrap_or_default(),
            length = body.len(),
            code = self.reason.code(),
        );
        if show == Show::Whole {
            answer.push_str(&body);
        }
        answer.into_bytes()
    }
}

/// The JSON of a refusal.
#[derive(Serialize)]
struct Body<'a> {
    error: &'static str,
    layer: &'static str,
    host: Option<String>,
    port: Option<u16>,
    hint: &'a str,
}

/// What to type on the host so that the same request passes.
fn not_allowed_hint(authority: &Authority, via: Via, project: &ProjectName) -> String {
    let port = authority.port();
    if port == via.forbidden_port() {
        return match via {
            Via::Connect => {
                format!("CONNECT never goes to port {port}: ask for `http://{}/` instead", authority.host())
            }
            Via::Plain => {
                format!(
                    "`http://` never goes to port {port}: open a tunnel with `CONNECT {authority}` instead"
                )
            }
        };
    }
    let whole = authority.to_string();
    let pattern = match whole.rsplit_once(':') {
        Some((host, _)) if port == via.default_port() => host,
        _ => &whole,
    };
    // Whatever the list says: a rule alone opens no such name.
    if let Host::Name(name) = authority.host()
        && name.is_local()
    {
        return format!(
            "`{name}` is a local name, which is never resolved; on the host, add `{pattern}` to proxy.allow and an \
             address for `{name}` to proxy.hosts in projects/{project}.yaml of Cloister's configuration and run \
             `cloister guardian reload`"
        );
    }
    format!(
        "`{authority}` is not on the allowlist; on the host, add `{pattern}` to proxy.allow in projects/{project}.yaml \
         of Cloister's configuration and run `cloister guardian reload`"
    )
}
