//! `cloister audit …`.

use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;

use super::arguments::{AuditArguments, AuditCommand};
use super::error::CommandError;
use super::output::{Output, json, line};
use crate::audit::{self, Filter, Head, Reader, parse_since};
use crate::paths::Paths;

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(200);

pub(super) async fn run(
    arguments: AuditArguments,
    paths: &Paths,
    output: &Output,
) -> Result<ExitCode, CommandError> {
    let file = audit::unified_file(&paths.audit_dir());
    if !file.exists() {
        output.note("there is no audit log yet: the guardian begins it when it starts");
        return Ok(ExitCode::SUCCESS);
    }
    match arguments.command {
        Some(AuditCommand::Verify { expect }) => verify(expect, paths, output),
        Some(AuditCommand::Head) => {
            let verified = audit::verify(&file, None)?;
            line(&verified.head.to_string())?;
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let since = arguments.since.map(|text| parse_since(&text, Timestamp::now())).transpose()?;
            let filter = Filter { cloister: arguments.cloister, since };
            show(Reader::open(&file, filter)?, arguments.follow, output).await
        }
    }
}

fn verify(expect: Option<Head>, paths: &Paths, output: &Output) -> Result<ExitCode, CommandError> {
    let reports = audit::verify_all(&paths.audit_dir(), expect)
        .map_err(|error| CommandError::user(error).because("cannot read the audit log"))?;
    let mut code = ExitCode::SUCCESS;
    for report in reports {
        let file = report.path.display();
        match report.outcome {
            Ok(verified) => {
                line(&format!("{file}: good, {} records, head {}", verified.records, verified.head))?;
            }
            Err(error) => {
                code = ExitCode::from(1);
                output.error(&error.into());
            }
        }
    }
    Ok(code)
}

async fn show(mut reader: Reader, follow: bool, output: &Output) -> Result<ExitCode, CommandError> {
    let mut shown = Vec::new();
    loop {
        for entry in reader.by_ref() {
            match entry {
                Ok(entry) if output.is_json() && follow => {
                    let text = serde_json::to_string(&entry).map_err(CommandError::internal)?;
                    line(&text)?;
                }
                Ok(entry) if output.is_json() => shown.push(entry),
                Ok(entry) => line(&entry.to_string())?,
                Err(error @ audit::ReadError::NotAnEntry { .. }) => output.error(&error.into()),
                Err(error) => return Err(error.into()),
            }
        }
        if !follow {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    if output.is_json() {
        json(&shown)?;
    }
    Ok(ExitCode::SUCCESS)
}
