//! `cloister guardian …`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::error::CommandError;
use super::output::{Output, human_duration, json, line};
use crate::guardian::Role;
use crate::guardian::client::{ClientError, Guardian, READY};
use crate::paths::Paths;

/// Runs the daemon in the foreground.
pub(super) fn run_daemon(replace: bool, paths: &Paths) -> Result<ExitCode, CommandError> {
    let ready = |socket: &Path| {
        // Whoever started it may not wait for the word.
        let _ = line(&format!("{READY}: serving on {}", socket.display()));
    };
    let role = if replace { Role::Successor } else { Role::Only };
    crate::guardian::run(paths, role, ready)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn start(upgrade: bool, paths: &Paths, output: &Output) -> Result<ExitCode, CommandError> {
    let replaced = if upgrade { Guardian::replace(paths).await? } else { None };
    if let Some(version) = replaced {
        output.note(&format!("replaced the guardian of version {version}"));
    } else {
        Guardian::ensure(paths).await?;
        output.note("the guardian is running");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn reload(paths: &Paths, output: &Output) -> Result<ExitCode, CommandError> {
    let reloaded = Guardian::connect(paths).await?.reload().await?;
    output.note(&format!(
        "read the settings of {}; {} closed",
        count(reloaded.cloisters, "cloister"),
        count(reloaded.closed_tunnels, "tunnel")
    ));
    Ok(ExitCode::SUCCESS)
}

fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Stops the guardian; `yes` says that running sandboxes may lose their way out.
pub(super) async fn stop(
    yes: bool,
    drain: Duration,
    paths: &Paths,
    output: &Output,
) -> Result<ExitCode, CommandError> {
    let guardian = match Guardian::connect_any(paths).await {
        Err(ClientError::NotRunning) => {
            output.note("the guardian is not running");
            return Ok(ExitCode::SUCCESS);
        }
        other => other?,
    };
    let running = crate::session::running(paths)?.running;
    if !running.is_empty() && !yes {
        let names: Vec<&str> = running.iter().map(|running| running.receipt.cloister.as_str()).collect();
        let message = format!("these cloisters would lose their way out: {}", names.join(", "));
        return Err(CommandError::user(message)
            .hint("run `cloister guardian stop --yes`, or `cloister shutdown` to stop them too"));
    }
    let head = guardian.shut_down(paths, drain).await?;
    output.note(&format!("stopped the guardian; the audit log ends at {head}"));
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn status(paths: &Paths, output: &Output) -> Result<ExitCode, CommandError> {
    let status = Guardian::connect(paths).await?.status().await?;
    if output.is_json() {
        json(&[status])?;
        return Ok(ExitCode::SUCCESS);
    }
    line(&format!("guardian    running, pid {}, version {}", status.pid, status.version))?;
    line(&format!("uptime      {}", human_duration(Duration::from_secs(status.uptime_s))))?;
    match &status.audit_problem {
        None => line(&format!("audit log   ends at {}", status.audit_head))?,
        Some(problem) => line(&format!("audit log   {problem}; nothing passes"))?,
    }
    line("unlisted    refused (asking a human comes in a later version)")?;
    if status.draining > 0 {
        line(&format!("draining    {} of the guardian before this one", count(status.draining, "tunnel")))?;
    }
    line(&format!("cloisters   {}", status.cloisters.len()))?;
    for cloister in &status.cloisters {
        line(&format!("  {}  {}", cloister.cloister, count(cloister.tunnels, "tunnel")))?;
    }
    Ok(ExitCode::SUCCESS)
}
