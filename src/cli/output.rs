//! What a person or a script reads: results on standard output, notes and errors on standard error.

pub(super) mod trace;

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde::Serialize;

use super::arguments::{Color, Global};
use super::error::CommandError;
use crate::text::{JsonText, Untrusted};

/// The way to the user's terminal or pipe.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a wish of the user")]
pub(super) struct Output {
    is_silent: bool,
    is_json: bool,
    is_colored: bool,
    colors_results: bool,
}

impl Output {
    pub(super) fn new(global: &Global) -> Self {
        let is_colored = |is_terminal: bool| match global.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                !refused && is_terminal
            }
        };
        Self {
            is_silent: global.silent,
            is_json: global.json,
            is_colored: is_colored(io::stderr().is_terminal()),
            colors_results: is_colored(io::stdout().is_terminal()),
        }
    }

    /// Tells whether results may be coloured.
    pub(super) fn colors_results(&self) -> bool {
        self.colors_results
    }

    pub(super) fn is_json(&self) -> bool {
        self.is_json
    }

    /// Tells the user what happens, unless silence was asked for.
    pub(super) fn note(&self, text: &str) {
        if !self.is_silent {
            complain(text);
        }
    }

    /// Prints an error with its causes and what to do next.
    pub(super) fn error(&self, error: &CommandError) {
        if error.is_quiet() {
            return;
        }
        let (red, blue, end) =
            if self.is_colored { ("\x1b[31m", "\x1b[34m", "\x1b[0m") } else { ("", "", "") };
        complain(&format!("{red}error:{end} {}", escaped(&error.message())));
        for cause in std::iter::successors(error.cause(), |cause| cause.source()) {
            complain(&format!("  because: {}", escaped(&cause.to_string())));
        }
        for hint in error.hints() {
            complain(&format!("{blue}hint:{end} {}", escaped(hint)));
        }
    }
}

/// Text that may quote what a sandbox wrote, line by line (A1).
fn escaped(text: &str) -> String {
    text.lines().map(|line| Untrusted(line).to_string()).collect::<Vec<_>>().join("\n")
}

/// Prints one line of a result.
pub(super) fn line(text: &str) -> Result<(), CommandError> {
    let mut output = io::stdout().lock();
    let written = writeln!(output, "{text}").and_then(|()| output.flush());
    written.map_err(CommandError::output)
}

/// Prints a result as JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), CommandError> {
    let text = serde_json::to_string_pretty(value).map_err(CommandError::internal)?;
    line(&JsonText(&text).to_string())
}

/// Prints one part of a result as JSON on one line, between these texts.
pub(super) fn json_line(front: &str, value: &impl Serialize, end: &str) -> Result<(), CommandError> {
    let text = serde_json::to_string(value).map_err(CommandError::internal)?;
    let mut output = io::stdout().lock();
    let written = write!(output, "{front}{}{end}", JsonText(&text)).and_then(|()| output.flush());
    written.map_err(CommandError::output)
}

/// Prints rows under a header, in columns.
pub(super) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> Result<(), CommandError> {
    in_columns(header, rows).iter().try_for_each(|text| line(text))
}

/// The lines of a table. A first cell that stands alone in its row may reach over the other columns.
pub(super) fn in_columns<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let stands_alone = |row: &[String; N]| row[1..].iter().all(String::is_empty);
    let widths: [usize; N] = std::array::from_fn(|column| {
        let rows = rows.iter().filter(|row| column > 0 || !stands_alone(row));
        rows.map(|row| row[column].chars().count()).chain([header[column].len()]).max().unwrap_or(0)
    });
    let in_line = |cells: [&str; N]| {
        let padded: Vec<String> =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let rows = rows.iter().map(|row| in_line(std::array::from_fn(|column| row[column].as_str())));
    std::iter::once(in_line(header)).chain(rows).collect()
}

/// Prints a line on standard error.
pub(super) fn complain(text: &str) {
    // Where even this fails, nobody is left to tell.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A duration as people say it, in its largest unit or two.
pub(super) fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (0, hours, minutes, _) => format!("{hours}h {minutes}m"),
        (days, hours, ..) => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let shown = [5, 65, 3 * 3600 + 60, 2 * 86_400 + 3600].map(|s| human_duration(Duration::from_secs(s)));
        assert_eq!(shown, ["5s", "1m 5s", "3h 1m", "2d 1h"]);
    }
}
