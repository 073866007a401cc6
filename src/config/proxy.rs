//! What the guardian allows and keeps: where sandboxes connect, how much, through whom, whom it asks, and how it is
//! recorded.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::{self, Debug, Formatter};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::policy::{Authority, DomainName, DomainPattern, InvalidAuthority, Rule, Unlisted};

use duration::InvalidDuration;

pub(super) mod duration;

/// Holds the section `proxy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// All rules with their origins: built-in ones first, then file by file.
    pub rules: Vec<Rule>,
    /// What happens to a host that no rule covers.
    pub unlisted: Unlisted,
    /// Names that stand for fixed addresses.
    pub pins: BTreeMap<DomainName, Vec<IpAddr>>,
    /// Names that may resolve to private addresses.
    pub private: Vec<DomainPattern>,
    /// How often a sandbox may ask.
    pub rate_limit: RateLimit,
    /// How many tunnels and requests a sandbox may have open together.
    pub max_tunnels: u32,
    /// How long a tunnel may be silent.
    pub idle_timeout: Duration,
    /// How long a tunnel may last, whatever flows.
    pub max_duration: Duration,
    /// The proxy through which the guardian itself goes out.
    pub upstream: Option<UpstreamProxy>,
    /// How long a connection waits for an answer.
    pub approval_timeout: Duration,
}

/// Holds the section `approvals`: how people learn that a request waits for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approvals {
    /// Whether the desktop shows a notification.
    pub notify: bool,
    /// Whether the terminals of the cloister's sessions ring.
    pub bell: bool,
    /// The program of the host that is run, and its arguments; empty when there is none.
    pub notify_command: Vec<OsString>,
}

impl Default for Approvals {
    fn default() -> Self {
        Self { notify: true, bell: true, notify_command: Vec::new() }
    }
}

/// Bounds how often one sandbox may ask for a connection or send a plain request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests in a minute, in the long run.
    pub per_minute: u32,
    /// Requests at once, after a time of silence.
    pub burst: u32,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { per_minute: 1200, burst: 600 }
    }
}

/// Is a forward proxy that the host has to go through, as companies have them (`proxy.upstream`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamProxy {
    /// How it is spoken to.
    pub scheme: UpstreamScheme,
    /// Where it listens.
    pub authority: Authority,
    /// What it asks for, if anything.
    pub credentials: Option<UpstreamCredentials>,
}

/// Tells how the upstream proxy is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamScheme {
    /// In the plain.
    Http,
    /// Through TLS, with a certificate that the host trusts.
    Https,
}

/// Holds a user name and a password; neither shows up in `Debug`.
#[derive(Clone)]
pub struct UpstreamCredentials(SecretString);

impl UpstreamCredentials {
    /// Joins a user name, which has no colon, and a password.
    pub(crate) fn new(user: &str, password: &str) -> Self {
        Self(SecretString::from(format!("{user}:{password}")))
    }

    /// Returns `user:password`, for the upstream proxy only.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl Debug for UpstreamCredentials {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("UpstreamCredentials(…)")
    }
}

impl PartialEq for UpstreamCredentials {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for UpstreamCredentials {}

/// Holds the section `audit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audit {
    /// Whether every cloister gets a file of its own besides the one for all.
    pub per_cloister: bool,
    /// How large a file grows before the next one is begun, in bytes.
    pub max_bytes: u64,
    /// How many full files are kept of each chain.
    pub max_files: u32,
}

impl Default for Audit {
    fn default() -> Self {
        Self { per_cloister: true, max_bytes: 64 << 20, max_files: 32 }
    }
}

/// Says why a text names no upstream proxy; what was written is not repeated, for it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidUpstream {
    #[error("begins with neither `http://` nor `https://`; write it such as `http://proxy.corp:3128`")]
    Scheme,
    #[error("has no port; write it such as `http://proxy.corp:3128`")]
    NoPort,
    #[error("has a path; a proxy is a host and a port, such as `http://proxy.corp:3128`")]
    Path,
    #[error(
        "names no host and port; write it such as `http://proxy.corp:3128` or `http://user:password@proxy.corp:3128`"
    )]
    Host,
    #[error("has credentials that are not `user:password`, percent-encoded where they hold `@`, `:` or `/`")]
    Credentials,
}

/// Reads `http[s]://[user:password@]host:port`.
pub(super) fn upstream(text: &str) -> Result<UpstreamProxy, InvalidUpstream> {
    let (scheme, rest) = if let Some(rest) = text.strip_prefix("http://") {
        (UpstreamScheme::Http, rest)
    } else if let Some(rest) = text.strip_prefix("https://") {
        (UpstreamScheme::Https, rest)
    } else {
        return Err(InvalidUpstream::Scheme);
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (credentials, authority) = match rest.rsplit_once('@') {
        Some((credentials, authority)) => (Some(parse_credentials(credentials)?), authority),
        None => (None, rest),
    };
    if authority.contains(['/', '?', '#']) {
        return Err(InvalidUpstream::Path);
    }
    let authority = Authority::parse(authority).map_err(|error| match error {
        InvalidAuthority::NoPort(_) => InvalidUpstream::NoPort,
        InvalidAuthority::Host(_)
        | InvalidAuthority::Port(_)
        | InvalidAuthority::Userinfo
        | InvalidAuthority::Unbracketed(_)
        | InvalidAuthority::Brackets(_) => InvalidUpstream::Host,
    })?;
    Ok(UpstreamProxy { scheme, authority, credentials })
}

fn parse_credentials(text: &str) -> Result<UpstreamCredentials, InvalidUpstream> {
    let (user, password) = text.split_once(':').ok_or(InvalidUpstream::Credentials)?;
    let decoded = |part| percent_decode(part).ok_or(InvalidUpstream::Credentials);
    let (user, password) = (decoded(user)?, decoded(password)?);
    // RFC 7617: the colon ends the user name, and control characters have no place in either.
    if user.is_empty() || user.contains(':') || (user.clone() + &password).contains(char::is_control) {
        return Err(InvalidUpstream::Credentials);
    }
    Ok(UpstreamCredentials::new(&user, &password))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
            }
            b'@' | b'/' | b'?' | b'#' => return None,
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

/// Says that a count is out of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no number in range; write a whole number between `{min}` and `{max}`")]
pub(super) struct InvalidCount {
    min: u32,
    max: u32,
}

/// Reads a whole number between `min` and `max`.
pub(super) fn count(text: &str, min: u32, max: u32) -> Result<u32, InvalidCount> {
    let number = text.parse().map_err(|_| InvalidCount { min, max })?;
    (min..=max).contains(&number).then_some(number).ok_or(InvalidCount { min, max })
}

/// Says why a text is no size of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is no size in range; write a whole number with the unit `MiB` or `GiB`, between `1MiB` and `1024GiB`"
)]
pub(super) struct InvalidFileSize;

/// Reads the size of a file, in bytes.
pub(super) fn file_size(text: &str) -> Result<u64, InvalidFileSize> {
    let (number, unit) = [("MiB", 1 << 20), ("GiB", 1 << 30)]
        .into_iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
        .ok_or(InvalidFileSize)?;
    let number: u64 = number.parse().map_err(|_| InvalidFileSize)?;
    let bytes = number.checked_mul(unit).ok_or(InvalidFileSize)?;
    (1 << 20..=1 << 40).contains(&bytes).then_some(bytes).ok_or(InvalidFileSize)
}

/// Says why a text is no time for which an answer is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidTimeout {
    #[error(transparent)]
    Duration(InvalidDuration),
    #[error("is out of range; it must lie between `5s` and `1h`")]
    OutOfRange,
}

/// Reads how long an answer is awaited.
pub(super) fn approval_timeout(text: &str) -> Result<Duration, InvalidTimeout> {
    let duration = duration::parse(text).map_err(|error| match error {
        InvalidDuration::OutOfRange => InvalidTimeout::OutOfRange,
        InvalidDuration::Form | InvalidDuration::NoUnit => InvalidTimeout::Duration(error),
    })?;
    let range = Duration::from_secs(5)..=Duration::from_hours(1);
    range.contains(&duration).then_some(duration).ok_or(InvalidTimeout::OutOfRange)
}

/// Says why a text is no part of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidCommand {
    #[error("is no program; write its name, or its path beginning with `/` or `~/`")]
    Program,
    #[error("holds a NUL, which no argument can hold")]
    Nul,
}

/// Reads the program of a command: a name that is looked for in `PATH`, or a path; `~` stands for `home`.
pub(super) fn program(text: &str, home: &Path) -> Result<OsString, InvalidCommand> {
    if text.contains(char::is_control) {
        return Err(InvalidCommand::Program);
    }
    match text.strip_prefix("~/") {
        Some(below) if !below.is_empty() => Ok(home.join(below).into_os_string()),
        // Where a relative path leads depends on where the guardian was started.
        None if text.starts_with('/') || !text.is_empty() && !text.contains('/') && text != "~" => {
            Ok(text.into())
        }
        _ => Err(InvalidCommand::Program),
    }
}

/// Reads an argument of a command.
pub(super) fn argument(text: &str) -> Result<OsString, InvalidCommand> {
    if text.contains('\0') { Err(InvalidCommand::Nul) } else { Ok(text.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_awaited_for_seconds_to_an_hour() {
        for (text, seconds) in [("5s", 5), ("60s", 60), ("1m", 60), ("1h", 3600), ("3600s", 3600)] {
            assert_eq!(approval_timeout(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["4s", "0s", "3601s", "61m", "2h", "24h", "25h"] {
            assert_eq!(approval_timeout(text), Err(InvalidTimeout::OutOfRange), "{text}");
        }
        assert_eq!(approval_timeout("60"), Err(InvalidTimeout::Duration(InvalidDuration::NoUnit)));
        assert_eq!(approval_timeout("a while"), Err(InvalidTimeout::Duration(InvalidDuration::Form)));
    }

    #[test]
    fn a_command_begins_with_a_program_of_the_host() {
        let home = Path::new("/home/u");
        for (text, expected) in
            [("notify-send", "notify-send"), ("/opt/x y", "/opt/x y"), ("~/bin/tell", "/home/u/bin/tell")]
        {
            assert_eq!(program(text, home), Ok(expected.into()), "{text}");
        }
        for text in ["", "~", "~/", "bin/tell", "./tell", "../tell", "~other/tell", "a\0b", "a\nb"] {
            assert_eq!(program(text, home), Err(InvalidCommand::Program), "{text:?}");
        }
        assert_eq!(argument(""), Ok(OsString::new()));
        assert_eq!(argument("two\nlines"), Ok("two\nlines".into()));
        assert_eq!(argument("a\0b"), Err(InvalidCommand::Nul));
    }

    #[track_caller]
    fn check(text: &str, scheme: UpstreamScheme, authority: &str, credentials: Option<&str>) {
        let parsed = upstream(text).unwrap();
        assert_eq!(parsed.scheme, scheme, "{text}");
        assert_eq!(parsed.authority.to_string(), authority, "{text}");
        assert_eq!(parsed.credentials.as_ref().map(UpstreamCredentials::expose), credentials, "{text}");
        assert!(!format!("{parsed:?}").contains("secret"), "{text}");
    }

    #[test]
    fn an_upstream_proxy_is_a_scheme_a_host_and_a_port() {
        check("http://proxy.corp:3128", UpstreamScheme::Http, "proxy.corp:3128", None);
        check("https://Proxy.Corp.:8443/", UpstreamScheme::Https, "proxy.corp:8443", None);
        check("http://10.1.2.3:80", UpstreamScheme::Http, "10.1.2.3:80", None);
        check("http://u:secret@proxy.corp:1", UpstreamScheme::Http, "proxy.corp:1", Some("u:secret"));
        let encoded = "http://u%40corp:secret%3A%2F%40@proxy.corp:1";
        check(encoded, UpstreamScheme::Http, "proxy.corp:1", Some("u@corp:secret:/@"));
    }

    #[test]
    fn what_names_no_upstream_proxy_is_refused_without_its_password() {
        for (text, expected) in [
            ("", InvalidUpstream::Scheme),
            ("socks5://proxy.corp:1080", InvalidUpstream::Scheme),
            ("proxy.corp:3128", InvalidUpstream::Scheme),
            ("http://proxy.corp", InvalidUpstream::NoPort),
            ("http://[::1]", InvalidUpstream::NoPort),
            ("http://u:secret%40proxy.corp:3128", InvalidUpstream::Host),
            ("http://u:secret", InvalidUpstream::Host),
            ("http://u@corp:secret", InvalidUpstream::Credentials),
            ("http://pro secret:1", InvalidUpstream::Host),
            ("http://proxy.corp:3128/path", InvalidUpstream::Path),
            ("http://secret@proxy.corp:3128", InvalidUpstream::Credentials),
            ("http://:secret@proxy.corp:3128", InvalidUpstream::Credentials),
            ("http://u:secret%0d%0aX@proxy.corp:3128", InvalidUpstream::Credentials),
            ("http://u%3ax:secret@proxy.corp:3128", InvalidUpstream::Credentials),
            ("http://u:sec%ret@proxy.corp:3128", InvalidUpstream::Credentials),
            ("http://u:secret@a@proxy.corp:3128", InvalidUpstream::Credentials),
        ] {
            let error = upstream(text).unwrap_err();
            assert_eq!(error, expected, "{text}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn counts_and_sizes_have_a_range() {
        assert_eq!(count("7", 1, 9), Ok(7));
        for text in ["0", "10", "-1", "1.5", "", "many"] {
            assert_eq!(count(text, 1, 9), Err(InvalidCount { min: 1, max: 9 }), "{text}");
        }
        assert_eq!(file_size("64MiB"), Ok(64 << 20));
        for text in ["", "0MiB", "64", "1KiB", "2048GiB", "-1GiB"] {
            assert_eq!(file_size(text), Err(InvalidFileSize), "{text}");
        }
    }
}
