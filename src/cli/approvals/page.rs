//! `cloister approvals open`: the link to the page, and a browser where there is one.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::{ExitCode, Stdio};

use super::super::error::CommandError;
use super::super::output::{Output, json, line};
use crate::guardian::client::Guardian;
use crate::paths::Paths;
use crate::process;

pub(super) async fn run(paths: &Paths, output: &Output) -> Result<ExitCode, CommandError> {
    let url = Guardian::connect(paths).await?.page_link().await?;
    if output.is_json() {
        json(&serde_json::json!([{ "url": url }]))?;
        return Ok(ExitCode::SUCCESS);
    }
    line(&url)?;
    if let Some(browser) = browser(std::io::stdout().is_terminal(), process::environment) {
        match open(&browser, &url) {
            Ok(()) => output.note("the link logs in one browser, once"),
            Err(error) => output.note(&format!(
                "note: cannot open it in a browser ({}: {error}); paste it into one",
                browser.display()
            )),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The program that opens a link, where somebody sits in front of it.
fn browser(is_terminal: bool, environment: impl Fn(&str) -> Option<OsString>) -> Option<OsString> {
    if !is_terminal {
        return None;
    }
    let set = |name: &str| environment(name).filter(|value| !value.is_empty());
    // Of several that are separated by colons, the first.
    let chosen = set("BROWSER").and_then(|value| {
        let first = value.to_str()?.split(':').next()?.trim().to_owned();
        (!first.is_empty()).then(|| first.into())
    });
    chosen.or_else(|| set("WAYLAND_DISPLAY").or_else(|| set("DISPLAY")).map(|_| OsString::from("xdg-open")))
}

/// Starts it and does not wait: some are the browser itself. The link is of no use to who sees it later.
fn open(browser: &OsString, url: &str) -> std::io::Result<()> {
    let mut command = process::command(browser);
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(is_terminal: bool, variables: &[(&str, &str)], expected: Option<&str>) {
        let environment = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        };
        assert_eq!(browser(is_terminal, environment), expected.map(OsString::from), "{variables:?}");
    }

    #[test]
    fn a18_a_browser_is_opened_only_where_somebody_sees_it() {
        check(true, &[("DISPLAY", ":0")], Some("xdg-open"));
        check(true, &[("WAYLAND_DISPLAY", "wayland-0")], Some("xdg-open"));
        check(true, &[("BROWSER", "firefox:w3m")], Some("firefox"));
        check(true, &[], None);
        check(true, &[("DISPLAY", ""), ("BROWSER", "")], None);
        check(true, &[("BROWSER", ":w3m"), ("DISPLAY", ":0")], Some("xdg-open"));
        check(false, &[("DISPLAY", ":0"), ("BROWSER", "firefox")], None);
    }
}
