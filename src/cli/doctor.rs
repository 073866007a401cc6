//! `cloister doctor [--probe]`.

use std::process::ExitCode;

use super::error::CommandError;
use super::output::{Output, json, line, table};
use crate::paths::Paths;
use crate::session::doctor::{self, Check, Row, State};
use crate::text::Untrusted;

/// Shows how this host is; fails when no sandbox can be started on it.
pub(super) fn diagnose(paths: &Paths, output: &Output) -> Result<ExitCode, CommandError> {
    let checks = doctor::check_host(paths);
    if output.is_json() {
        json(&checks)?;
    } else {
        show(&checks)?;
    }
    Ok(code(!checks.iter().any(|check| check.state == State::Problem)))
}

fn show(checks: &[Check]) -> Result<(), CommandError> {
    let rows: Vec<[String; 3]> = checks
        .iter()
        .map(|Check { check, state, detail, .. }| {
            [(*check).to_owned(), state.as_str().to_owned(), Untrusted(detail).to_string()]
        })
        .collect();
    table(["CHECK", "STATE", "DETAIL"], &rows)?;
    let fixes = checks.iter().filter_map(|check| Some((check.check, check.fix.as_ref()?)));
    for (check, fix) in fixes {
        line(&format!("fix: {check}: {fix}"))?;
    }
    Ok(())
}

/// Tries to break out of a throw-away sandbox; fails unless every attempt was stopped and proved.
pub(super) async fn probe(paths: &Paths, output: &Output) -> Result<ExitCode, CommandError> {
    output.note("starting two throw-away sandboxes; this takes some seconds");
    let rows = doctor::probe(paths).await?;
    if output.is_json() {
        json(&rows)?;
    } else {
        let cells: Vec<[String; 4]> = rows
            .iter()
            .map(|Row { id, what, result, detail }| {
                // What the probe in the sandbox said is a sandbox's text.
                [
                    (*id).to_owned(),
                    (*what).to_owned(),
                    result.as_str().to_owned(),
                    Untrusted(detail).to_string(),
                ]
            })
            .collect();
        table(["ID", "WHAT", "RESULT", "DETAIL"], &cells)?;
    }
    Ok(code(rows.iter().all(|row| row.result.is_fine())))
}

fn code(is_fine: bool) -> ExitCode {
    if is_fine { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
