//! `cloister approvals list`: what waits, the oldest first.

use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::super::error::CommandError;
use super::super::output::{Output, human_duration, in_columns, json, line};
use super::describe::{age, destination, said_shortly};
use crate::approval::{Pending, Voice};
use crate::guardian::client::{ClientError, Guardian};
use crate::paths::Paths;

/// How many digits of a number are shown; so many are unlikely to be another's.
const SHOWN_DIGITS: usize = 8;

/// One request as scripts read it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    id: &'a str,
    kind: &'static str,
    cloister: &'a str,
    project: &'a str,
    host: String,
    port: u16,
    argv: Option<&'a [String]>,
    reason: Option<&'a str>,
    created: String,
    expires: String,
    user_agent: Option<&'a str>,
    waiting: usize,
    exact: &'a str,
    wildcard: Option<&'a str>,
}

impl<'a> From<&'a Pending> for Row<'a> {
    fn from(pending: &'a Pending) -> Self {
        let (user_agent, reason) = match &pending.voice {
            Voice::Connection { user_agent } => (user_agent.as_deref(), None),
            Voice::Polite { reason } => (None, reason.as_deref()),
        };
        Self {
            id: pending.id.as_str(),
            kind: "domain",
            cloister: pending.cloister.as_str(),
            project: pending.project.as_str(),
            host: pending.authority.host().to_string(),
            port: pending.authority.port(),
            argv: None,
            reason,
            created: pending.created.to_string(),
            expires: pending.expires.to_string(),
            user_agent,
            waiting: pending.waiting,
            exact: &pending.exact,
            wildcard: pending.wildcard.as_deref(),
        }
    }
}

pub(super) async fn run(paths: &Paths, output: &Output) -> Result<ExitCode, CommandError> {
    let snapshot = match Guardian::connect(paths).await {
        Ok(guardian) => Some(guardian.approvals(None).await?),
        Err(ClientError::NotRunning) => None,
        Err(error) => return Err(error.into()),
    };
    let is_running = snapshot.is_some();
    let mut pending = snapshot.map(|snapshot| snapshot.pending).unwrap_or_default();
    pending.reverse();
    if output.is_json() {
        json(&pending.iter().map(Row::from).collect::<Vec<_>>())?;
    } else if !is_running {
        output.note("the guardian is not running, so nothing waits for an answer");
    } else if pending.is_empty() {
        output.note("nothing waits for an answer");
    } else {
        lines(&pending, Timestamp::now()).iter().try_for_each(|text| line(text))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn lines(pending: &[Pending], now: Timestamp) -> Vec<String> {
    let rows: Vec<[String; 7]> = pending.iter().map(|pending| cells(pending, now)).collect();
    in_columns(["ID", "CLOISTER", "HOST", "AGE", "LEFT", "WAITING", "SAID"], &rows)
}

fn cells(pending: &Pending, now: Timestamp) -> [String; 7] {
    [
        pending.id.as_str()[..SHOWN_DIGITS].to_owned(),
        pending.cloister.to_string(),
        destination(&pending.authority),
        human_duration(age(pending.created, now)),
        human_duration(Duration::from_millis(pending.left_ms)),
        pending.waiting.to_string(),
        said_shortly(&pending.voice),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(id: &str, authority: &str, voice: serde_json::Value) -> Pending {
        serde_json::from_value(serde_json::json!({
            "id": id, "cloister": "demo-main", "project": "demo", "branch": "main", "authority": authority,
            "voice": voice, "created": "2026-11-22T20:00:00Z", "expires": "2026-11-22T20:01:00Z", "left_ms": 48_900,
            "waiting": 2, "exact": authority, "wildcard": "*.example.org:443",
        }))
        .unwrap()
    }

    #[test]
    fn a1_n2_n6_what_waits_is_listed_in_columns() {
        let now = "2026-11-22T20:00:11Z".parse().unwrap();
        let agent = serde_json::json!({"connection": {"user_agent": "curl/8.5"}});
        let polite = serde_json::json!({"polite": {"reason": "to build\n\u{1b}[2J"}});
        let list = [
            pending("00112233aabbccdd", "api.example.org:443", agent),
            pending("ffee112233aabbcc", "bücher.github.io:8443", polite),
        ];
        assert_eq!(
            lines(&list, now),
            [
                "ID        CLOISTER   HOST                                                                            \
                 AGE  LEFT  WAITING  SAID",
                "00112233  demo-main  api.example.org:443                                                             \
                 11s  48s   2        curl/8.5",
                "ffee1122  demo-main  xn--bcher-kva.github.io:8443 (bücher.github.io, user content below github.io)  \
                 11s  48s   2        asks: \"to build\\n\\u{1b}[2J\"",
            ]
        );
    }

    #[test]
    fn scripts_read_every_key() {
        let agent = serde_json::json!({"connection": {"user_agent": "curl/8.5"}});
        let pending = pending("00112233aabbccdd", "api.example.org:443", agent);
        assert_eq!(
            serde_json::to_value(Row::from(&pending)).unwrap(),
            serde_json::json!({
                "id": "00112233aabbccdd", "kind": "domain", "cloister": "demo-main", "project": "demo",
                "host": "api.example.org", "port": 443, "argv": null, "reason": null,
                "created": "2026-11-22T20:00:00Z", "expires": "2026-11-22T20:01:00Z", "user_agent": "curl/8.5",
                "waiting": 2, "exact": "api.example.org:443", "wildcard": "*.example.org:443",
            })
        );
    }
}
