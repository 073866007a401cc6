//! `cloister why HOST[:PORT]`: the verdict, the rule behind it, and what to type to change it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::error::CommandError;
use super::output::{Output, json, line};
use super::sandbox::own_project;
use crate::approval::Pending;
use crate::audit::{self, Entry, Event, Filter, ReadError, Reader};
use crate::config::{Config, Owner, decisions};
use crate::guardian::client::{Guardian, Judgement, SettingsProblem, usual_way};
use crate::name::{CloisterId, CloisterName, ProjectName};
use crate::paths::Paths;
use crate::policy::{Authority, Effect, Host, Pattern, Policy, Via};
use crate::project;
use crate::sandbox::Receipt;
use crate::text::Quoted;

/// What is told about one destination.
#[derive(Debug, Serialize)]
struct Verdict {
    host: String,
    port: u16,
    cloister: String,
    decision: &'static str,
    reason: Option<String>,
    rule: Option<String>,
    origin: Option<String>,
    detail: Option<String>,
    /// Who gave the answer that the rule is, when and why.
    answer: Option<String>,
    /// The request that waits for an answer.
    pending: Option<Pending>,
    /// The files that can't be used, when the verdict is by the rules before them.
    stale: Vec<SettingsProblem>,
    last_refusal: Option<Entry>,
    next: Option<String>,
}

pub(super) async fn run(
    target: &str,
    cloister: Option<&CloisterName>,
    paths: &Paths,
    output: &Output,
) -> Result<ExitCode, CommandError> {
    let authority = Authority::parse_with_default(target, 443).map_err(CommandError::user)?;
    let (cloister, owner) = asker(cloister, paths)?;
    let (mut judgement, stale, has_own_file) = match Config::load_for(paths, Some(&owner)) {
        Ok(config) => {
            let mut input = config.policy_input(Vec::new());
            let id = CloisterId::of(&cloister, &owner.directory.to_string_lossy());
            let (grants, _) = decisions::load_grants(paths, &cloister, &id)?;
            input.rules.extend(grants);
            let policy = Policy::new(input);
            (Judgement::of(&policy, &cloister, &authority), Vec::new(), config.audit.per_cloister)
        }
        Err(error) => match held(&cloister, &authority, paths).await {
            Some((judgement, stale)) => (judgement, stale, false),
            None => return Err(error.into()),
        },
    };
    let mut pending = None;
    if let Ok(guardian) = Guardian::connect(paths).await {
        // With its answer, the own files hold what the unified one does; what keeps them from it is no concern here.
        let _ = guardian.status().await;
        let waits = guardian.approvals(None).await.map(|snapshot| snapshot.pending).unwrap_or_default();
        let is_meant = |pending: &Pending| pending.cloister == cloister && pending.authority == authority;
        pending = waits.into_iter().find(is_meant);
        // What no file says may be an answer that could not be kept.
        if judgement.is_asked
            && let Ok(live) = guardian.judge(&cloister, &authority).await
        {
            judgement = live;
        }
    }
    let answer = judgement.rule.as_ref().zip(judgement.origin.as_ref());
    let answer = answer.and_then(|(rule, origin)| said(rule, origin, paths));
    let verdict = Verdict {
        host: authority.host().to_string(),
        port: authority.port(),
        cloister: cloister.to_string(),
        decision: match (judgement.is_allowed, judgement.is_asked) {
            (true, _) => "allowed",
            (false, true) => "asked",
            (false, false) => "refused",
        },
        last_refusal: last_refusal(&authority, &log_file(&cloister, has_own_file, paths), &cloister),
        next: match &pending {
            Some(pending) => Some(format!(
                "answer it: `cloister approvals allow {0}` or `deny {0}`, in the terminal with `cloister approvals \
                 watch`, or on the page that `cloister approvals open` opens",
                pending.id
            )),
            None => next(&judgement, &authority, &paths.project_file(&owner.name), &stale),
        },
        pending,
        reason: judgement.reason,
        rule: judgement.rule,
        origin: judgement.origin,
        detail: judgement.detail,
        answer,
        stale,
    };
    if output.is_json() {
        json(&[&verdict])?;
    } else {
        show(&verdict)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Who gave an answer, when and why, as far as its file says it.
fn said(rule: &str, origin: &str, paths: &Paths) -> Option<String> {
    let pattern = Pattern::parse_for(Effect::Deny, rule).ok()?;
    let found = decisions::find(paths, &pattern).kept;
    let (_, kept) = found.into_iter().find(|(_, kept)| origin.contains(&format!("({})", kept.location)))?;
    let decisions::Decision { at, who, cloister, reason, .. } = kept.decision;
    let parts = [
        who.map(|who| format!("by {}", Quoted(&who))),
        at.map(|at| format!("at {at}")),
        cloister.map(|cloister| format!("when {cloister} asked")),
        reason.map(|reason| format!("because: {}", Quoted(&reason))),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("answered {}", parts.join(", ")))
}

/// What a running guardian says by the rules that it still has from before the files broke.
async fn held(
    cloister: &CloisterName,
    authority: &Authority,
    paths: &Paths,
) -> Option<(Judgement, Vec<SettingsProblem>)> {
    let guardian = Guardian::connect(paths).await.ok()?;
    let judgement = guardian.judge(cloister, authority).await.ok()?;
    // Of files that broke this very moment it may know nothing yet.
    let status = guardian.status().await.ok()?;
    Some((judgement, status.settings_problems))
}

/// Who would ask: the named cloister, or this directory's.
fn asker(cloister: Option<&CloisterName>, paths: &Paths) -> Result<(CloisterName, Owner), CommandError> {
    let Some(name) = cloister else {
        let project = own_project(paths)
            .map_err(|error| error.hint("or name the cloister: `cloister why HOST --cloister NAME`"))?;
        return Ok((project.cloister()?.0, project.owner()));
    };
    if let Some(receipt) = Receipt::load(&paths.receipt_file(name))? {
        return Ok((name.clone(), receipt.owner()));
    }
    // Without a branch, a cloister is called like its project.
    let project = ProjectName::parse(name.as_str()).map_err(CommandError::user)?;
    // What was decided for a project belongs to its directory: without one, nothing was.
    let directory = project::registered(&project, paths)?.unwrap_or_default();
    Ok((name.clone(), Owner { name: project, directory }))
}

/// The rule that would allow it: the port is written when it is not one that a rule means by itself.
fn wanted(authority: &Authority) -> String {
    match (usual_way(authority), authority.port()) {
        (Via::Connect, 443) | (Via::Plain, 80) => authority.host().to_string(),
        _ => authority.to_string(),
    }
}

/// What to type or to write, in the project's `file` or another, so that it is otherwise.
fn next(
    judgement: &Judgement,
    authority: &Authority,
    file: &Path,
    stale: &[SettingsProblem],
) -> Option<String> {
    if !stale.is_empty() {
        return Some("mend the file: what it says then holds at once".to_owned());
    }
    let is_local = matches!(authority.host(), Host::Name(name) if name.is_local());
    if judgement.is_asked {
        return Some(format!(
            "when it is wanted, answer with `cloister approvals watch` or on the page (`cloister approvals open`); or \
             add `{}` to `proxy.allow` in {}",
            wanted(authority),
            file.display()
        ));
    }
    if let (Some(rule), Some(origin)) = (&judgement.rule, &judgement.origin)
        && ["decision", "session"].iter().any(|kind| origin.starts_with(kind))
    {
        return Some(format!("somebody answered so; take it back with `cloister approvals forget '{rule}'`"));
    }
    match (judgement.reason.as_deref()?, &judgement.origin) {
        // A name of this machine alone says so in the detail: a rule does not help it, a pin does.
        ("not_allowed", _) if is_local && judgement.detail.is_some() => Some(format!(
            "name it exactly in `proxy.allow`, pin it in `proxy.hosts` in {}; it holds at once",
            file.display()
        )),
        ("not_allowed", _) => Some(format!(
            "add `{}` to `proxy.allow` in {}; it holds at once",
            wanted(authority),
            file.display()
        )),
        ("denied_by_rule", Some(origin)) => {
            Some(format!("remove the deny rule at {origin}; the change holds at once"))
        }
        _ => None,
    }
}

/// The file with all that the log tells of a cloister: its own one, which is a small part of the whole.
fn log_file(cloister: &CloisterName, has_own_file: bool, paths: &Paths) -> PathBuf {
    let dir = paths.audit_dir();
    let own = audit::cloister_file(&dir, cloister);
    if has_own_file && own.exists() { own } else { audit::unified_file(&dir) }
}

/// The newest refusal of this destination in the audit log: some happen only after a tunnel stands.
fn last_refusal(authority: &Authority, file: &Path, cloister: &CloisterName) -> Option<Entry> {
    let filter =
        Filter { cloister: Some(cloister.clone()), events: vec![Event::ProxyDeny], ..Filter::default() };
    let reader = Reader::open(file, filter).ok()?;
    let host = authority.host().to_string();
    reader
        // A file that can't be read says so for ever.
        .take_while(|entry| !matches!(entry, Err(ReadError::Read { .. })))
        .filter_map(Result::ok)
        .filter(|entry| entry.host.as_ref() == Some(&host) && entry.port == Some(authority.port()))
        .last()
}

fn show(verdict: &Verdict) -> Result<(), CommandError> {
    let destination = format!("{}:{}", verdict.host, verdict.port);
    let reason = verdict.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let decision = if verdict.decision == "asked" { "asked of a human" } else { verdict.decision };
    line(&format!("{destination} is {decision} for {}{reason}", verdict.cloister))?;
    if let Some(pending) = &verdict.pending {
        let left = pending.left_ms / 1000;
        line(&format!("  it waits for an answer by now (request {}, {left} s left)", pending.id))?;
    }
    for broken in &verdict.stale {
        line(&format!("  by the rules from before {} broke, since {}:", broken.path, broken.since))?;
        broken.problems.iter().try_for_each(|problem| line(&format!("    {problem}")))?;
    }
    if let (Some(rule), Some(origin)) = (&verdict.rule, &verdict.origin) {
        line(&format!("  rule: {rule}, from {origin}"))?;
    }
    for more in verdict.answer.iter().chain(&verdict.detail) {
        line(&format!("  {more}"))?;
    }
    if let Some(entry) = &verdict.last_refusal {
        line(&format!("  last refusal: {entry}"))?;
    }
    match &verdict.next {
        Some(next) => line(&format!("  next: {next}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_can_not_be_read_is_not_read_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::parse_with_default("a.test", 443).unwrap();
        let cloister = CloisterName::of(&ProjectName::parse("demo").unwrap(), None).unwrap();
        // A directory opens, and every read of it fails.
        assert_eq!(last_refusal(&authority, directory.path(), &cloister), None);
    }
}
