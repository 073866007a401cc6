//! `cloister guardian …`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::error::CommandError;
use super::output::{Output, json, line};
use crate::guardian::Role;
use crate::guardian::client::{Guardian, READY};
use crate::paths::Paths;
use crate::session::Listing;

mod status;

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
        if Guardian::ensure(paths).await?.is_stopping() {
            return Err(CommandError::user("the guardian is stopping, and serves nothing new").hint(
                "try again when it has ended; `cloister guardian stop --yes` ends the wait for open tunnels",
            ));
        }
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
    let Some(guardian) = Guardian::find_to_stop(paths).await? else {
        output.note("the guardian is not running");
        return Ok(ExitCode::SUCCESS);
    };
    let Listing { running, unreadable } = crate::session::running(paths)?;
    let may_be_some = !(running.is_empty() && unreadable.is_empty());
    if may_be_some && !yes {
        let names = running.iter().map(|running| running.receipt.cloister.to_string());
        let unknown =
            (!unreadable.is_empty()).then(|| "and maybe those whose receipts can't be read".to_owned());
        let names: Vec<String> = names.chain(unknown).collect();
        for error in unreadable {
            output.error(&error.into());
        }
        let message = format!("these cloisters would lose their way out: {}", names.join(", "));
        return Err(CommandError::user(message)
            .hint("run `cloister guardian stop --yes`, or `cloister shutdown` to stop them too"));
    }
    let head = guardian.shut_down(paths, drain).await?;
    output.note(&format!("stopped the guardian; the audit log ends at {head}"));
    Ok(ExitCode::SUCCESS)
}

/// Says how it is: for people, as JSON, or as text for Prometheus.
pub(super) async fn status(metrics: bool, paths: &Paths, output: &Output) -> Result<ExitCode, CommandError> {
    let guardian = Guardian::connect(paths).await?;
    if metrics {
        line(guardian.metrics().await?.trim_end())?;
    } else if output.is_json() {
        json(&[guardian.status().await?])?;
    } else {
        status::show(&guardian.status().await?)?;
    }
    Ok(ExitCode::SUCCESS)
}
