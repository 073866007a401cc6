//! `start`, `exec`, `stop`, `shutdown`, `list`, `path`.

pub(super) mod gc;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::arguments::StartArguments;
use super::error::CommandError;
use super::output::{Output, complain, human_duration, json, line, table};
use crate::files::Change;
use crate::guardian::client::Guardian;
use crate::name::CloisterName;
use crate::paths::Paths;
use crate::process;
use crate::project::{GitNeed, Project};
use crate::sandbox::StageError;
use crate::session::{
    self, Listing, Preview, RootConsent, Running, Sandbox, StartRequest, StopError, Stopped,
};
use crate::text::{Untrusted, with_causes};

pub(super) async fn start(
    arguments: StartArguments,
    paths: &Paths,
    output: &Output,
) -> Result<ExitCode, CommandError> {
    let has_command = !arguments.argv.is_empty();
    let result = start_checked(arguments, paths, output).await;
    result.map_err(|error| if has_command { error.never_began() } else { error })
}

async fn start_checked(
    arguments: StartArguments,
    paths: &Paths,
    output: &Output,
) -> Result<ExitCode, CommandError> {
    let argv = text(arguments.argv)?;
    let directory = current_directory()?;
    let request = StartRequest {
        directory: &directory,
        name: arguments.project,
        git: if arguments.allow_no_git { GitNeed::Optional } else { GitNeed::Required },
        root: if arguments.allow_root { RootConsent::Given } else { RootConsent::Withheld },
        network: arguments.network.map(Into::into),
    };
    if arguments.dry_run {
        return preview(request, paths, output);
    }
    let sandbox = session::start(request, paths).await?;
    for note in &sandbox.notes {
        output.note(&format!("note: {}", Untrusted(note)));
    }
    if let Some(reason) = sandbox.roots_own.as_ref().filter(|_| sandbox.is_new) {
        output.note(&roots_own(reason));
    }
    if arguments.detach {
        line(sandbox.name.as_str())?;
        return Ok(ExitCode::SUCCESS);
    }
    if argv.is_empty() {
        let verb = if sandbox.is_new { "started" } else { "entering" };
        output.note(&format!(
            "{verb} {} (bubblewrap, {}); it stays up until `cloister stop {0}`",
            sandbox.name,
            sandbox.network.as_str()
        ));
        let shell = sandbox.shell();
        return run(&sandbox, vec![shell], paths).await;
    }
    run(&sandbox, argv, paths).await
}

fn roots_own(reason: &StageError) -> String {
    format!("the sandbox's processes are root's on this host: {reason}")
}

async fn run(sandbox: &Sandbox, argv: Vec<String>, paths: &Paths) -> Result<ExitCode, CommandError> {
    Ok(ExitCode::from(session::run(sandbox, argv, paths).await?))
}

fn preview(request: StartRequest<'_>, paths: &Paths, output: &Output) -> Result<ExitCode, CommandError> {
    let Preview { spec, stage, command, roots_own: reason } = session::preview(request, paths)?;
    if let Some(reason) = reason {
        output.note(&roots_own(&reason));
    }
    if output.is_json() {
        json(&serde_json::json!([{ "spec": spec, "stage": stage, "command": command }]))?;
    } else {
        json(&spec)?;
        stage.iter().try_for_each(|copy| line(copy))?;
        line(&command.join(" "))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The words of a command; the way into the sandbox carries text.
fn text(argv: Vec<OsString>) -> Result<Vec<String>, CommandError> {
    let word = |word: OsString| {
        word.into_string().map_err(|word| {
            CommandError::user(format!("the argument `{}` is not valid UTF-8", word.to_string_lossy()))
        })
    };
    argv.into_iter().map(word).collect()
}

pub(super) fn current_directory() -> Result<PathBuf, CommandError> {
    std::env::current_dir()
        .map_err(|error| CommandError::user(error).because("cannot find the current directory"))
}

pub(super) async fn exec(
    name: &CloisterName,
    argv: Vec<OsString>,
    paths: &Paths,
) -> Result<ExitCode, CommandError> {
    let result = async {
        let argv = text(argv)?;
        let sandbox = session::enter(name, paths).await?;
        run(&sandbox, argv, paths).await
    };
    result.await.map_err(CommandError::never_began)
}

pub(super) async fn stop(
    name: Option<CloisterName>,
    all: bool,
    paths: &Paths,
    output: &Output,
) -> Result<ExitCode, CommandError> {
    if all {
        let stopped = session::stop_all(paths).await?;
        if stopped.is_empty() {
            output.note("no cloister is running");
        }
        return report(stopped, output);
    }
    let name = name.map_or_else(|| own_name(paths), Ok)?;
    report(vec![Ok(session::stop(&name, paths).await?)], output)
}

/// The name of this directory's cloister.
pub(super) fn own_name(paths: &Paths) -> Result<CloisterName, CommandError> {
    let directory = current_directory()?;
    let running = session::running(paths)?.running;
    if let Some(found) = running.iter().find(|running| directory.starts_with(&running.receipt.directory)) {
        return Ok(found.receipt.cloister.clone());
    }
    Ok(own_project(paths)?.cloister()?.0)
}

/// This directory's project.
pub(super) fn own_project(paths: &Paths) -> Result<Project, CommandError> {
    let binary = process::own_binary().map_err(CommandError::internal)?;
    Ok(Project::find(&current_directory()?, None, GitNeed::Required, paths, &binary)?)
}

/// Says what was stopped, what has changed of all that this host would execute, and what went wrong.
fn report(stopped: Vec<Result<Stopped, StopError>>, output: &Output) -> Result<ExitCode, CommandError> {
    let mut code = ExitCode::SUCCESS;
    let mut changes = Vec::new();
    for result in stopped {
        match result {
            Ok(stopped) => {
                if !report_one(&stopped, output) {
                    code = ExitCode::from(1);
                }
                let rows = stopped.changes.iter().map(|change| ChangeRow::new(&stopped.name, change));
                let rows: Vec<ChangeRow> = rows.collect();
                if !output.is_json() {
                    show_changes(&rows)?;
                }
                changes.extend(rows);
            }
            Err(error) => {
                code = ExitCode::from(1);
                output.error(&error.into());
            }
        }
    }
    if output.is_json() {
        json(&changes)?;
    }
    Ok(code)
}

/// Tells whether nothing went wrong.
fn report_one(Stopped { name, problems, .. }: &Stopped, output: &Output) -> bool {
    if problems.is_empty() {
        output.note(&format!("stopped {name}"));
    }
    for problem in problems {
        complain(&format!("error: while stopping {name}: {}", Untrusted(&with_causes(problem))));
    }
    problems.is_empty()
}

/// One line of the trust diff.
#[derive(Serialize)]
pub(super) struct ChangeRow {
    cloister: String,
    rank: u8,
    change: &'static str,
    path: String,
    why: &'static str,
}

impl ChangeRow {
    pub(super) fn new(cloister: &CloisterName, change: &Change) -> Self {
        Self {
            cloister: cloister.to_string(),
            rank: change.rank.number(),
            change: change.changed.as_str(),
            path: change.path.clone(),
            why: change.why,
        }
    }
}

impl std::fmt::Display for ChangeRow {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}: {}", self.change, Untrusted(&self.path), self.why)
    }
}

pub(super) fn show_changes(rows: &[ChangeRow]) -> Result<(), CommandError> {
    if rows.is_empty() {
        return Ok(());
    }
    let rows: Vec<[String; 4]> = rows
        .iter()
        .map(|row| {
            let path = Untrusted(&row.path).to_string();
            [row.rank.to_string(), row.change.to_owned(), path, row.why.to_owned()]
        })
        .collect();
    table(["RANK", "CHANGE", "PATH", "WHY"], &rows)
}

pub(super) async fn shutdown(paths: &Paths, output: &Output) -> Result<ExitCode, CommandError> {
    let code = report(session::stop_all(paths).await?, output)?;
    match Guardian::find_to_stop(paths).await? {
        None => output.note("the guardian is not running"),
        Some(guardian) => {
            let head = guardian.shut_down(paths, Duration::ZERO).await?;
            output.note(&format!("stopped the guardian; the audit log ends at {head}"));
        }
    }
    Ok(code)
}

/// One line of `cloister list`.
#[derive(Serialize)]
struct Row {
    name: String,
    project: String,
    branch: Option<String>,
    backend: String,
    network: &'static str,
    uptime: u64,
    status: &'static str,
    limits: String,
}

impl From<Running> for Row {
    fn from(Running { receipt, uptime }: Running) -> Self {
        Self {
            name: receipt.cloister.to_string(),
            project: receipt.project.to_string(),
            limits: receipt.enforcement().to_string(),
            branch: receipt.branch,
            backend: receipt.backend,
            network: receipt.network.as_str(),
            uptime: uptime.as_secs(),
            status: "running",
        }
    }
}

pub(super) fn list(paths: &Paths, output: &Output) -> Result<ExitCode, CommandError> {
    let Listing { running, unreadable } = session::running(paths)?;
    // One that can't be read hides no other.
    for error in unreadable {
        output.error(&error.into());
    }
    if output.is_json() {
        json(&running.into_iter().map(Row::from).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    if running.is_empty() {
        output.note("no cloister is running");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<[String; 7]> = running
        .into_iter()
        .map(|running| {
            let uptime = human_duration(running.uptime);
            let Row { name, project, branch, backend, network, status, .. } = running.into();
            // A branch's name comes from the repository, which a sandbox can write.
            let branch = branch.map_or_else(|| "-".to_owned(), |branch| Untrusted(&branch).to_string());
            [name, project, branch, backend, network.to_owned(), uptime, status.to_owned()]
        })
        .collect();
    table(["NAME", "PROJECT", "BRANCH", "BACKEND", "NETWORK", "UPTIME", "STATUS"], &rows)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn path(name: &CloisterName, paths: &Paths) -> Result<ExitCode, CommandError> {
    match session::directory_of(name, paths)? {
        Some(directory) => line(&directory.display().to_string()).map(|()| ExitCode::SUCCESS),
        None => Err(CommandError::user(format!("no cloister `{name}` is known")).hint("see `cloister list`")),
    }
}
