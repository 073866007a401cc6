//! `gc`.

use std::process::ExitCode;

use super::super::error::CommandError;
use super::super::output::{Output, complain, json, line};
use super::{ChangeRow, show_changes};
use crate::paths::Paths;
use crate::session::{self, Leftover, Mode};
use crate::text::{Untrusted, with_causes};

pub(in crate::cli) async fn run(
    dry_run: bool,
    paths: &Paths,
    output: &Output,
) -> Result<ExitCode, CommandError> {
    let (mode, verb) = if dry_run { (Mode::DryRun, "would remove") } else { (Mode::Remove, "removed") };
    let collected = session::gc(mode, paths).await;
    if output.is_json() {
        json(&collected.removed)?;
    } else {
        for leftover in &collected.removed {
            line(&shown(verb, leftover))?;
        }
        line(&format!("{verb} {}, kept {}", collected.removed.len(), collected.kept.len()))?;
    }
    for stopped in &collected.stopped {
        let rows: Vec<ChangeRow> =
            stopped.changes.iter().map(|change| ChangeRow::new(&stopped.name, change)).collect();
        if output.is_json() {
            for row in &rows {
                output.note(&row.to_string());
            }
        } else {
            show_changes(&rows)?;
        }
    }
    for leftover in &collected.kept {
        output.note(&shown("kept", leftover));
    }
    for problem in &collected.problems {
        complain(&format!("error: {}", Untrusted(&with_causes(problem))));
    }
    Ok(ExitCode::from(u8::from(!collected.problems.is_empty())))
}

/// A path may hold anything that its project's name holds.
fn shown(verb: &str, Leftover { kind, path, reason }: &Leftover) -> String {
    let text = format!("{verb} {} {}: {reason}", kind.as_str(), path.display());
    Untrusted(&text).to_string()
}
