//! `config show`, `config path`.

use std::process::ExitCode;

use super::error::CommandError;
use super::output::{Output, json, line};
use super::sandbox::{current_directory, own_project};
use crate::config::{Effective, Owner, Shown};
use crate::name::{CloisterId, CloisterName};
use crate::paths::Paths;
use crate::session;
use crate::text::{Untrusted, with_causes};

/// Prints what holds for this directory.
pub(super) fn show(origins: bool, paths: &Paths, output: &Output) -> Result<ExitCode, CommandError> {
    let (owner, session) = asked(paths, output)?;
    let shown = if origins { Shown::Origins } else { Shown::Values };
    // A grant ends with its session: it is no setting that somebody would write into a file.
    let session = session.filter(|_| origins || output.is_json());
    let effective = Effective::load(paths, owner.as_ref(), session)?;
    for problem in &effective.unused {
        output.note(&format!("note: {problem}"));
    }
    if output.is_json() {
        json(&effective.rows())?;
    } else {
        line(effective.yaml(shown).trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints where the settings for all projects are written.
pub(super) fn path(paths: &Paths) -> Result<ExitCode, CommandError> {
    line(&Untrusted(&paths.config_file().to_string_lossy()).to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// Whose settings are meant: those of the sandbox that runs here, of the project here, or of none.
fn asked(
    paths: &Paths,
    output: &Output,
) -> Result<(Option<Owner>, Option<(CloisterName, CloisterId)>), CommandError> {
    let directory = current_directory()?;
    let running = session::running(paths)?.running.into_iter().map(|running| running.receipt);
    if let Some(receipt) = running.into_iter().find(|receipt| directory.starts_with(&receipt.directory)) {
        return Ok((Some(receipt.owner()), Some((receipt.cloister, receipt.id))));
    }
    match own_project(paths) {
        Ok(project) => Ok((Some(project.owner()), None)),
        Err(error) => {
            let causes = error.cause().map(|cause| format!(": {}", with_causes(cause))).unwrap_or_default();
            let reason = format!("{}{causes}", error.message());
            output.note(&format!(
                "note: no project here, so this is what holds for all: {}",
                Untrusted(&reason)
            ));
            Ok((None, None))
        }
    }
}
