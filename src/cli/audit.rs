//! `cloister audit …`.

use std::collections::VecDeque;
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;

use super::arguments::{AuditArguments, AuditCommand, Verdict};
use super::error::CommandError;
use super::output::{Output, json_line, line};
use crate::audit::{self, Entry, Event, Filter, Head, ReadError, Reader, VerifyError, Writer, parse_since};
use crate::guardian::client::Guardian;
use crate::paths::Paths;

/// Where a log comes from.
const BEGINNING: &str = "the guardian begins it when it starts";
/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(200);

pub(super) async fn run(
    arguments: AuditArguments,
    paths: &Paths,
    output: &Output,
) -> Result<ExitCode, CommandError> {
    let file = audit::unified_file(&paths.audit_dir());
    if !audit::exists(&paths.audit_dir()) {
        match arguments.command {
            Some(AuditCommand::Verify { expect: Some(expect) }) if expect.seq > 0 => {
                return Err(VerifyError::Truncated { path: file, last: 0, expected: expect.seq }.into());
            }
            // What a script notes must not be empty.
            Some(AuditCommand::Head) => {
                return Err(CommandError::user("there is no audit log yet").hint(BEGINNING));
            }
            _ => {}
        }
        output.note(&format!("there is no audit log yet: {BEGINNING}"));
        if output.is_json() && arguments.command.is_none() {
            line("[]")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    match arguments.command {
        Some(AuditCommand::Verify { expect }) => {
            let writer = writer(paths).await;
            verify(expect, writer, paths, output)
        }
        Some(AuditCommand::Head) => {
            let verified = audit::verify(&file, None)?;
            line(&verified.head.to_string())?;
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let (follow, lines) = (arguments.follow, arguments.lines);
            let reader = Reader::open(&file, filter(arguments)?)?;
            show(reader, Show { follow, lines, output }).await
        }
    }
}

fn filter(arguments: AuditArguments) -> Result<Filter, CommandError> {
    let now = Timestamp::now();
    let time = |text: Option<String>| text.map(|text| parse_since(&text, now)).transpose();
    let events = match arguments.decision {
        Some(Verdict::Allow) => vec![Event::ProxyAllow],
        Some(Verdict::Deny) => vec![Event::ProxyDeny],
        None => arguments.event,
    };
    Ok(Filter {
        cloister: arguments.cloister,
        since: time(arguments.since)?,
        until: time(arguments.until)?,
        events,
        host: arguments.host,
        reason: arguments.reason,
    })
}

/// Asks the guardian, if one runs, how it writes the log.
async fn writer(paths: &Paths) -> Writer {
    let Ok(guardian) = Guardian::connect(paths).await else { return Writer::Steady };
    match guardian.status().await {
        Ok(status) if status.audit_waits => Writer::Failing,
        _ => Writer::Steady,
    }
}

fn verify(
    expect: Option<Head>,
    writer: Writer,
    paths: &Paths,
    output: &Output,
) -> Result<ExitCode, CommandError> {
    let reports = audit::verify_all(&paths.audit_dir(), expect, writer)
        .map_err(|error| CommandError::user(error).because("cannot read the audit log"))?;
    let mut code = ExitCode::SUCCESS;
    for report in reports {
        let file = report.path.display();
        match report.outcome {
            Ok(verified) => {
                let since =
                    if verified.oldest > 1 { format!(" from {}", verified.oldest) } else { String::new() };
                line(&format!("{file}: good, {} records{since}, head {}", verified.records, verified.head))?;
                if verified.behind > 0 {
                    let records = if verified.behind == 1 { "record" } else { "records" };
                    line(&format!(
                        "{file}: {} {records} behind the unified file, which has them: a kill or a full disk kept them \
                         from it, and the next guardian copies them (`cloister guardian start`)",
                        verified.behind
                    ))?;
                }
                if let Some(last) = verified.removed_since {
                    line(&format!(
                        "{file}: removed after the head that you expect: the records up to {last}; the log calls it rotation"
                    ))?;
                }
            }
            Err(error) => {
                code = ExitCode::from(1);
                output.error(&error.into());
            }
        }
    }
    Ok(code)
}

/// How entries are shown.
struct Show<'a> {
    follow: bool,
    /// How many of the last ones; all by default.
    lines: Option<usize>,
    output: &'a Output,
}

impl Show<'_> {
    /// Prints one entry; in an array, `number` are before it.
    fn print(&self, entry: &Entry, number: u64) -> Result<(), CommandError> {
        if !self.output.is_json() {
            let text = entry.to_string();
            return line(&match self.color(entry.event) {
                Some(color) => {
                    text.replacen(entry.event.name(), &format!("{color}{}\x1b[0m", entry.event), 1)
                }
                None => text,
            });
        }
        let front = match (self.follow, number) {
            (true, _) => "",
            (false, 0) => "[\n",
            (false, _) => ",\n",
        };
        json_line(front, entry, if self.follow { "\n" } else { "" })
    }

    fn color(&self, event: Event) -> Option<&'static str> {
        let color = match event {
            Event::ProxyAllow => "\x1b[32m",
            Event::ProxyDeny | Event::SandboxLink | Event::AuditRecovered | Event::AuditRemoved => "\x1b[31m",
            Event::ProxyAsk | Event::ApprovalDecided | Event::ConfigTrust => "\x1b[33m",
            _ => "\x1b[34m",
        };
        self.output.colors_results().then_some(color)
    }
}

async fn show(mut reader: Reader, show: Show<'_>) -> Result<ExitCode, CommandError> {
    let mut number = 0;
    let mut last = VecDeque::new();
    let mut is_caught_up = show.lines.is_none();
    loop {
        for entry in reader.by_ref() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error @ ReadError::NotAnEntry { .. }) => {
                    show.output.error(&error.into());
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if is_caught_up {
                show.print(&entry, number)?;
                number += 1;
                continue;
            }
            last.push_back(entry);
            if last.len() > show.lines.unwrap_or(usize::MAX) {
                last.pop_front();
            }
        }
        is_caught_up = true;
        for entry in last.drain(..) {
            show.print(&entry, number)?;
            number += 1;
        }
        if !show.follow {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    if show.output.is_json() {
        line(if number == 0 { "[]" } else { "\n]" })?;
    }
    Ok(ExitCode::SUCCESS)
}
