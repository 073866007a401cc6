//! What every request passes: the right host, a session, and for changes a form of this page (A3, A4, A18, I5).

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Form, FromRequest as _, Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::Shared;
use super::sessions::Visitor;
use super::views::{self, Notice};

/// The longest form.
const MAX_BODY_BYTES: usize = 16 << 10;
/// How long a form may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How many cookies of the right name are looked at: a page on another port of this host may add some.
const MAX_COOKIES: usize = 4;

const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// What a page may do: load and call itself, and nothing else (A2, A5).
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
const PERMISSIONS: &str =
    "camera=(), clipboard-read=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()";

/// In what form an answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    /// A page.
    Page,
    /// JSON.
    Json,
}

/// A request that passed.
#[derive(Clone)]
pub(super) struct Visit {
    pub(super) visitor: Visitor,
    pub(super) wants: Wants,
    /// The fields of the form.
    fields: Vec<(String, String)>,
}

impl Visit {
    /// Gives the first field of this name.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// Gives all fields of this name.
    pub(super) fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(field, _)| field == name).map(|(_, value)| value.as_str())
    }
}

/// Why a request is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// A stable code.
    pub(super) code: &'static str,
    pub(super) title: &'static str,
    pub(super) text: String,
}

impl Refusal {
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        text: impl Into<String>,
    ) -> Self {
        Self { status, code, title, text: text.into() }
    }

    pub(super) fn answer(self, wants: Wants) -> Response {
        let Self { status, code, title, text } = self;
        match wants {
            Wants::Json => {
                let json = serde_json::json!({ "error": code, "hint": text });
                (status, axum::Json(json)).into_response()
            }
            Wants::Page => {
                let page = views::html(&Notice { title, text: &text, is_login: code == "not_logged_in" });
                (status, page).into_response()
            }
        }
    }

    fn not_logged_in() -> Self {
        let text = "This browser is not logged in. Run `cloister approvals open` in a terminal: it opens this page with \
                    a link that logs you in.";
        Self::new(StatusCode::UNAUTHORIZED, "not_logged_in", "Not logged in", text)
    }

    fn foreign(text: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "foreign", "Not from this page", text)
    }
}

/// Lets a request through, or refuses it; every answer gets the page's headers.
pub(super) async fn keep(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let wants = wants(&request);
    let mut response = match admit(&shared, request, wants).await {
        Ok(request) => next.run(request).await,
        Err(refusal) => refusal.answer(wants),
    };
    add_headers(response.headers_mut());
    response
}

fn wants(request: &Request) -> Wants {
    let path = request.uri().path();
    let is_api = matches!(path, "/events" | "/pending" | "/log/events");
    let accepts = |value: &HeaderValue| value.to_str().is_ok_and(|text| text.contains("application/json"));
    if is_api || request.headers().get_all(header::ACCEPT).iter().any(accepts) {
        Wants::Json
    } else {
        Wants::Page
    }
}

async fn admit(shared: &Arc<Shared>, request: Request, wants: Wants) -> Result<Request, Refusal> {
    let host = own_host(&request, shared.sessions.port()).ok_or_else(|| {
        let text = "The name under which this page was called is not its own; call it at 127.0.0.1.";
        Refusal::new(StatusCode::MISDIRECTED_REQUEST, "wrong_host", "Wrong host", text)
    })?;
    if !matches!(*request.method(), Method::GET | Method::POST) {
        let text = "Only GET and POST are served.";
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "bad_method", "Not served", text));
    }
    let path = request.uri().path();
    if request.method() == Method::GET && (path.starts_with("/assets/") || path.starts_with("/login/")) {
        return Ok(request);
    }
    let is_link = wants == Wants::Page && only(request.headers(), &FETCH_MODE) == Some("navigate");
    if request.method() == Method::GET && !is_link && !is_own_fetch(request.headers()).unwrap_or(true) {
        return Err(Refusal::foreign("Only this page itself may ask for that."));
    }
    let visitor = visitor(shared, request.headers()).ok_or_else(Refusal::not_logged_in)?;
    let (mut request, fields) = match *request.method() {
        Method::POST => take_form(request, &host, &visitor).await?,
        _ => (request, Vec::new()),
    };
    request.extensions_mut().insert(Visit { visitor, wants, fields });
    Ok(request)
}

/// Gives the host of a request when it is one of the page's own (A4): exactly one `Host`, with the port.
fn own_host(request: &Request, port: u16) -> Option<String> {
    // A target in absolute form names another host than the header may.
    if request.uri().authority().is_some() {
        return None;
    }
    let host = only(request.headers(), &header::HOST)?;
    let name = host.strip_suffix(&format!(":{port}"))?;
    let is_label = |label: &str| {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && label.bytes().all(is_plain)
    };
    let is_below = |below: &str| !below.is_empty() && below.split('.').all(is_label);
    let is_own = matches!(name, "127.0.0.1" | "localhost")
        || name.len() <= 253 && name.strip_suffix(".localhost").is_some_and(is_below);
    is_own.then(|| host.to_owned())
}

/// Gives the value of a header that stands there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// Tells whether the browser says that the page itself, or the user, asks; nothing when it says nothing.
fn is_own_fetch(headers: &HeaderMap) -> Option<bool> {
    let name = HeaderName::from_static("sec-fetch-site");
    headers.contains_key(&name).then(|| matches!(only(headers, &name), Some("same-origin" | "none")))
}

/// Finds the session of a request.
fn visitor(shared: &Arc<Shared>, headers: &HeaderMap) -> Option<Visitor> {
    let name = shared.sessions.cookie_name();
    let texts = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let secrets = texts.flat_map(|text| text.split(';')).filter_map(|pair| {
        let (own, secret) = pair.trim().split_once('=')?;
        (own == name).then_some(secret)
    });
    let (visitor, is_due) = secrets.take(MAX_COOKIES).find_map(|secret| shared.sessions.visitor(secret))?;
    if is_due {
        let shared = Arc::clone(shared);
        tokio::task::spawn_blocking(move || shared.sessions.save());
    }
    Some(visitor)
}

/// Reads a form and sees that this page made it (A3): the session's token, the page's own origin, and at least one
/// word of the browser about where the form comes from.
async fn take_form(
    request: Request,
    host: &str,
    visitor: &Visitor,
) -> Result<(Request, Vec<(String, String)>), Refusal> {
    let headers = request.headers();
    let has_origin = headers.contains_key(header::ORIGIN);
    if has_origin && only(headers, &header::ORIGIN) != Some(&format!("http://{host}")) {
        return Err(Refusal::foreign("This form comes from another origin."));
    }
    match is_own_fetch(headers) {
        Some(true) => {}
        Some(false) => return Err(Refusal::foreign("This form comes from another site.")),
        None if has_origin => {}
        None => return Err(Refusal::foreign("The browser does not say where this form comes from.")),
    }
    let media = only(headers, &header::CONTENT_TYPE).and_then(|text| text.split(';').next());
    if !media.is_some_and(|media| media.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")) {
        let text = "Only forms are taken: `application/x-www-form-urlencoded`.";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "no_form", "Not a form", text));
    }
    let (parts, body) = request.into_parts();
    let too_late = |_| {
        let text = "The form took too long to arrive.";
        Refusal::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "Too slow", text)
    };
    let read = tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY_BYTES)).await.map_err(too_late)?;
    let body = read.map_err(|_| {
        let text = "The form is too long, or broke off.";
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "Too large", text)
    })?;
    let form = Request::from_parts(parts.clone(), Body::from(body));
    let Form(fields) = Form::<Vec<(String, String)>>::from_request(form, &()).await.map_err(|_| {
        Refusal::new(StatusCode::BAD_REQUEST, "bad_form", "Not a form", "The form can't be read.")
    })?;
    let token = fields.iter().find(|(name, _)| name == "csrf");
    if !token.is_some_and(|(_, token)| visitor.wrote(token)) {
        return Err(Refusal::foreign("This form is of another session; load the page anew."));
    }
    Ok((Request::from_parts(parts, Body::empty()), fields))
}

fn add_headers(headers: &mut HeaderMap) {
    for (name, value) in [
        ("content-security-policy", CONTENT_POLICY),
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
        ("permissions-policy", PERMISSIONS),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    // A page with forms has said something else for a reason.
    headers.entry(header::REFERRER_POLICY).or_insert(HeaderValue::from_static("no-referrer"));
}
