//! `cloister why HOST[:PORT]`: the verdict, the rule behind it, and what to type to change it.

use std::process::ExitCode;

use serde::Serialize;

use super::error::CommandError;
use super::output::{Output, json, line};
use super::sandbox::own_project;
use crate::audit::{self, Entry, Event, Filter, Reader};
use crate::config::Config;
use crate::name::{CloisterName, ProjectName};
use crate::paths::Paths;
use crate::policy::{Authority, ConnectionId, Decision, Destination, Host, Policy, Request, Rule, Via};
use crate::sandbox::Receipt;

/// What is told about one destination.
#[derive(Debug, Serialize)]
struct Verdict {
    host: String,
    port: u16,
    cloister: String,
    decision: &'static str,
    reason: Option<&'static str>,
    rule: Option<String>,
    origin: Option<String>,
    detail: Option<String>,
    last_refusal: Option<Entry>,
    next: Option<String>,
}

pub(super) fn run(
    target: &str,
    cloister: Option<&CloisterName>,
    paths: &Paths,
    output: &Output,
) -> Result<ExitCode, CommandError> {
    let authority = Authority::parse_with_default(target, 443).map_err(CommandError::user)?;
    let (cloister, project) = asker(cloister, paths)?;
    let policy = Policy::new(Config::load_for(paths, Some(&project))?.policy_input(Vec::new()));
    let verdict = judge(&policy, &authority, &cloister, &project, paths);
    if output.is_json() {
        json(&[&verdict])?;
    } else {
        show(&verdict)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Who would ask: the named cloister, or this directory's.
fn asker(
    cloister: Option<&CloisterName>,
    paths: &Paths,
) -> Result<(CloisterName, ProjectName), CommandError> {
    let Some(name) = cloister else {
        let project = own_project(paths)
            .map_err(|error| error.hint("or name the cloister: `cloister why HOST --cloister NAME`"))?;
        return Ok((project.cloister()?.0, project.name));
    };
    match Receipt::load(&paths.receipt_file(name))? {
        Some(receipt) => Ok((name.clone(), receipt.project)),
        // Without a branch, a cloister is called like its project.
        None => Ok((name.clone(), ProjectName::parse(name.as_str()).map_err(CommandError::user)?)),
    }
}

fn judge(
    policy: &Policy,
    authority: &Authority,
    cloister: &CloisterName,
    project: &ProjectName,
    paths: &Paths,
) -> Verdict {
    let via = if authority.port() == 80 { Via::Plain } else { Via::Connect };
    let request = Request { cloister, authority, via, connection: ConnectionId::new(0) };
    let mut verdict = Verdict {
        host: authority.host().to_string(),
        port: authority.port(),
        cloister: cloister.to_string(),
        decision: "refused",
        reason: None,
        rule: None,
        origin: None,
        detail: None,
        last_refusal: last_refusal(authority, cloister, paths),
        next: None,
    };
    let mut name = |rule: Option<&Rule>| {
        verdict.rule = rule.map(ToString::to_string);
        verdict.origin = rule.map(|rule| rule.origin().to_string());
    };
    let file = paths.project_file(project);
    let add = format!(
        "add `{}` to `proxy.allow` in {} and run `cloister guardian reload`",
        wanted(authority, via),
        file.display()
    );
    match policy.evaluate(&request) {
        Decision::Allow(allowed) => {
            name(Some(allowed.rule()));
            verdict.decision = "allowed";
            if let Destination::Known(addresses) = allowed.destination() {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                verdict.detail = Some(format!("goes to {}", addresses.join(", ")));
            }
        }
        Decision::Deny(denial) => {
            name(denial.rule().map(AsRef::as_ref));
            verdict.reason = Some(denial.reason().code());
            verdict.detail = denial.detail().map(str::to_owned);
            // A name of this machine alone says so in the detail: a rule does not help it, a pin does.
            let is_local = matches!(authority.host(), Host::Name(name) if name.is_local());
            let add = if is_local && denial.detail().is_some() {
                format!(
                    "name it exactly in `proxy.allow`, pin it in `proxy.hosts` in {}, and reload",
                    file.display()
                )
            } else {
                add
            };
            verdict.next = next(denial.reason().code(), &verdict, add);
        }
        Decision::Ask(_) => {
            verdict.reason = Some("not_allowed");
            verdict.detail = Some("no rule names it (asking a human comes in a later version)".to_owned());
            verdict.next = Some(add);
        }
    }
    verdict
}

/// The rule that would allow it: the port is written when it is not one that a rule means by itself.
fn wanted(authority: &Authority, via: Via) -> String {
    match (via, authority.port()) {
        (Via::Connect, 443) | (Via::Plain, 80) => authority.host().to_string(),
        _ => authority.to_string(),
    }
}

fn next(reason: &str, verdict: &Verdict, add: String) -> Option<String> {
    match (reason, &verdict.origin) {
        ("not_allowed", _) => Some(add),
        ("denied_by_rule", Some(origin)) => {
            Some(format!("remove the deny rule at {origin} and run `cloister guardian reload`"))
        }
        _ => None,
    }
}

/// The newest refusal of this destination in the audit log: some happen only after a tunnel stands.
fn last_refusal(authority: &Authority, cloister: &CloisterName, paths: &Paths) -> Option<Entry> {
    let filter =
        Filter { cloister: Some(cloister.clone()), events: vec![Event::ProxyDeny], ..Filter::default() };
    let reader = Reader::open(&audit::unified_file(&paths.audit_dir()), filter).ok()?;
    let host = authority.host().to_string();
    reader
        .filter_map(Result::ok)
        .filter(|entry| entry.host.as_ref() == Some(&host) && entry.port == Some(authority.port()))
        .last()
}

fn show(verdict: &Verdict) -> Result<(), CommandError> {
    let destination = format!("{}:{}", verdict.host, verdict.port);
    let reason = verdict.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    line(&format!("{destination} is {} for {}{reason}", verdict.decision, verdict.cloister))?;
    if let (Some(rule), Some(origin)) = (&verdict.rule, &verdict.origin) {
        line(&format!("  rule: {rule}, from {origin}"))?;
    }
    if let Some(detail) = &verdict.detail {
        line(&format!("  {detail}"))?;
    }
    if let Some(entry) = &verdict.last_refusal {
        line(&format!("  last refusal: {entry}"))?;
    }
    match &verdict.next {
        Some(next) => line(&format!("  next: {next}")),
        None => Ok(()),
    }
}
