//! `cloister approvals allow|deny ID…`: an answer, and what holds after it.

use std::process::ExitCode;
use std::str::FromStr;

use super::super::arguments::AnswerArguments;
use super::super::error::CommandError;
use super::super::output::{Output, complain, json, line};
use super::describe::{no_wildcard, outcome, taking_back};
use crate::approval::{Answer, Breadth, Pending, RequestId, Settled, Snapshot};
use crate::guardian::client::{ClientError, Guardian};
use crate::paths::Paths;
use crate::policy::Effect;
use crate::text::Untrusted;

/// How many digits must be given.
const MIN_DIGITS: usize = 4;
/// How many a whole number has.
const MAX_DIGITS: usize = 16;

/// What the number of a request begins with, or all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Start(String);

/// Says that a text is no beginning of a number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("give {MIN_DIGITS} to {MAX_DIGITS} digits from 0 to f, as `cloister approvals list` shows them")]
pub(in crate::cli) struct InvalidStart;

impl FromStr for Start {
    type Err = InvalidStart;

    fn from_str(text: &str) -> Result<Self, InvalidStart> {
        let is_long_enough = (MIN_DIGITS..=MAX_DIGITS).contains(&text.len());
        let is_hexadecimal = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        (is_long_enough && is_hexadecimal).then(|| Self(text.to_ascii_lowercase())).ok_or(InvalidStart)
    }
}

impl Start {
    /// The one request that waits and begins so.
    fn find<'a>(&self, snapshot: &'a Snapshot) -> Result<&'a Pending, CommandError> {
        let begins = |id: &RequestId| id.as_str().starts_with(&self.0);
        let found: Vec<&Pending> = snapshot.pending.iter().filter(|pending| begins(&pending.id)).collect();
        match found.as_slice() {
            [one] => Ok(one),
            [] => Err(match snapshot.settled.iter().find(|settled| begins(&settled.id)) {
                Some(settled) => {
                    CommandError::user(format!("the request `{}` has ended: {}", self.0, outcome(settled)))
                }
                None => CommandError::user(format!("no request `{}` waits for an answer", self.0))
                    .hint("see `cloister approvals list`"),
            }),
            several => {
                let ids: Vec<String> = several.iter().map(|pending| format!("`{}`", pending.id)).collect();
                Err(CommandError::user(format!(
                    "several requests begin with `{}`: {}",
                    self.0,
                    ids.join(", ")
                ))
                .hint("give more digits"))
            }
        }
    }
}

pub(super) async fn run(
    effect: Effect,
    arguments: AnswerArguments,
    paths: &Paths,
    output: &Output,
) -> Result<ExitCode, CommandError> {
    let guardian = match Guardian::connect(paths).await {
        Err(error @ ClientError::NotRunning) => {
            return Err(CommandError::user(error).hint(
                "without it nothing waits; `cloister start` starts it too, and what is asked for then is listed by \
                 `cloister approvals`",
            ));
        }
        other => other?,
    };
    let snapshot = guardian.approvals(None).await?;
    let mut answered = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for start in &arguments.ids {
        match answer(start, &snapshot, effect, &arguments, &guardian).await {
            Ok(settled) => answered.push(settled),
            Err(error) => {
                code = ExitCode::from(1);
                output.error(&error);
            }
        }
    }
    for problem in answered.iter().filter_map(|settled| settled.problem.as_ref()) {
        complain(&format!("warning: {}", Untrusted(problem)));
    }
    if output.is_json() {
        json(&answered)?;
    } else {
        answered.iter().try_for_each(|settled| line(&told(settled)))?;
    }
    Ok(code)
}

async fn answer(
    start: &Start,
    snapshot: &Snapshot,
    effect: Effect,
    arguments: &AnswerArguments,
    guardian: &Guardian,
) -> Result<Settled, CommandError> {
    let pending = start.find(snapshot)?;
    if arguments.wildcard && pending.wildcard.is_none() {
        return Err(CommandError::user(no_wildcard(pending)).hint("answer without `--wildcard`"));
    }
    let breadth = if arguments.wildcard { Breadth::Wildcard } else { Breadth::Exact };
    let answer = Answer { effect, scope: arguments.scope, breadth, reason: arguments.reason.clone() };
    Ok(guardian.answer(&pending.id, &answer).await?)
}

/// What holds now, and how to take it back.
fn told(settled: &Settled) -> String {
    match taking_back(settled) {
        Some(command) => format!("{}; take it back with `{command}`", outcome(settled)),
        None => outcome(settled),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pending(id: &str, authority: &str, wildcard: Option<&str>) -> Pending {
        serde_json::from_value(json!({
            "id": id, "cloister": "demo-main", "project": "demo", "branch": null, "authority": authority,
            "voice": {"polite": {"reason": null}}, "created": "2026-11-22T20:00:00Z",
            "expires": "2026-11-22T20:01:00Z", "left_ms": 1, "waiting": 1, "exact": authority, "wildcard": wildcard,
        }))
        .unwrap()
    }

    fn settled(outcome: serde_json::Value) -> Settled {
        serde_json::from_value(json!({
            "id": "0123456789abcdef", "cloister": "demo-main", "project": "demo", "authority": "api.x.org:443",
            "outcome": outcome, "at": "2026-11-22T20:00:30Z", "problem": null, "can_undo": true,
        }))
        .unwrap()
    }

    fn answered(effect: &str, scope: &str, pattern: &str) -> Settled {
        settled(json!({"answered": {
            "answer": {"effect": effect, "scope": scope, "breadth": "exact", "reason": null},
            "pattern": pattern, "who": {"terminal": 1000},
        }}))
    }

    #[test]
    fn a_number_may_be_short_but_not_too_short() {
        for text in ["0123", "ABCD", "0123456789abcdef"] {
            assert_eq!(text.parse::<Start>().unwrap().0, text.to_lowercase());
        }
        for text in ["", "012", "0123456789abcdef0", "xyzw", "12 4", "１２３４"] {
            assert_eq!(text.parse::<Start>(), Err(InvalidStart), "{text:?}");
        }
    }

    #[test]
    fn a_request_is_found_by_a_beginning_that_no_other_has() {
        let snapshot = Snapshot {
            version: 1,
            pending: vec![
                pending("0123aaaa00000000", "a.test:443", None),
                pending("0123bbbb00000000", "b.test:443", None),
            ],
            settled: vec![answered("allow", "session", "api.x.org:443")],
        };
        let find = |text: &str| {
            let start = text.parse::<Start>().unwrap();
            start
                .find(&snapshot)
                .map(|pending| pending.authority.to_string())
                .map_err(|error| error.message())
        };
        assert_eq!(find("0123a"), Ok("a.test:443".to_owned()));
        assert_eq!(find("0123BBBB"), Ok("b.test:443".to_owned()));
        assert_eq!(
            find("0123"),
            Err("several requests begin with `0123`: `0123aaaa00000000`, `0123bbbb00000000`".to_owned())
        );
        assert_eq!(find("ffff"), Err("no request `ffff` waits for an answer".to_owned()));
        let ended =
            "the request `01234567` has ended: allowed api.x.org:443 for demo-main, until it is stopped";
        assert_eq!(find("01234567"), Err(ended.to_owned()));
    }

    #[test]
    fn what_holds_now_is_told() {
        let told = |effect: &str, scope: &str| told(&answered(effect, scope, "*.x.org:443"));
        let back = "; take it back with `cloister approvals forget *.x.org:443`";
        assert_eq!(told("allow", "once"), "allowed *.x.org:443 for demo-main, this once");
        assert_eq!(
            told("deny", "session"),
            format!("denied *.x.org:443 for demo-main, until it is stopped{back}")
        );
        assert_eq!(
            told("allow", "project"),
            format!("allowed *.x.org:443 for every cloister of project demo, for good{back}")
        );
        assert_eq!(told("deny", "global"), format!("denied *.x.org:443 for every cloister, for good{back}"));
    }

    #[test]
    fn n5_n6_a_wildcard_that_is_not_offered_is_refused_with_the_reason() {
        let why = |authority: &str| no_wildcard(&pending("0123456789abcdef", authority, None));
        assert_eq!(
            why("me.github.io:443"),
            "there is no wildcard for me.github.io:443: the names beside it belong to others: github.io is shared"
        );
        assert_eq!(
            why("x.org:443"),
            "there is no wildcard for x.org:443: the names beside it belong to others"
        );
        assert_eq!(
            why("192.0.2.1:443"),
            "there is no wildcard for 192.0.2.1:443: an address has no names beside it"
        );
        assert!(why("dns.google:443").ends_with("it has to be named"));
        assert!(why("printer:443").ends_with("a name of this machine or network"));
    }
}
