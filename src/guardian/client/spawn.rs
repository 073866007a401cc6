//! Starting a guardian's process.

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::process::{ChildStdout, Stdio};

use super::{ClientError, holder, io_error};
use crate::guardian::control;
use crate::paths::{Paths, ensure_private_dir};
use crate::process;

/// What the variables of a guardian's environment are taken from; everything else stays outside.
const ENVIRONMENT: [&str; 7] = [
    "HOME",
    "PATH",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
];
/// How long the guardian's own complaints may grow before they begin anew.
const MAX_LOG_BYTES: u64 = 1024 * 1024;
/// The first word that a guardian says when it serves.
pub const READY: &str = "ready";

/// Starts the only guardian, or says who is in its way.
pub(super) fn spawn_only(paths: &Paths) -> Result<(), ClientError> {
    spawn(paths, &["guardian", "run"]).map_err(|said| match holder::process(&holder::locks(paths)) {
        None => ClientError::DoesNotStart(said),
        pid => ClientError::Unreachable { pid },
    })
}

/// Starts a guardian that takes over from the running one; the error is what it said.
pub(super) fn spawn_successor(paths: &Paths) -> Result<(), String> {
    spawn(paths, &["guardian", "run", "--replace"])
}

/// Starts a guardian and waits until it serves or has given up: then the error is what it said.
fn spawn(paths: &Paths, arguments: &[&str]) -> Result<(), String> {
    start(paths, arguments).map_err(|error| control::chain(&error))?.map_or(Ok(()), Err)
}

/// Starts a guardian; gives what it said when it did not come so far as to serve.
fn start(paths: &Paths, arguments: &[&str]) -> Result<Option<String>, ClientError> {
    let binary = process::own_binary().map_err(io_error("find the binary of Cloister"))?;
    let mut command = process::command(binary);
    command.args(arguments).current_dir("/");
    command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, process::environment(name)?))));
    let complaints = paths.state_dir().join("guardian.log");
    ensure_private_dir(paths.state_dir())?;
    // The guardian that is replaced goes on writing there, too.
    let log = fs::File::options().append(true).create(true).open(&complaints);
    let log = log.map_err(io_error("write the log of the guardian"))?;
    let length = log.metadata().map_or(0, |metadata| metadata.len());
    let begin = if length > MAX_LOG_BYTES { log.set_len(0).map_or(length, |()| 0) } else { length };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().map_err(io_error("start the guardian"))?;
    let heard = child.stdout.take().is_some_and(says_ready);
    if heard {
        return Ok(None);
    }
    // It has closed its output, so it has ended or will at once.
    let _ = child.wait();
    let mut text = String::new();
    if let Ok(mut file) = fs::File::open(&complaints) {
        // What can't be read can't be reported.
        let _ = file.seek(SeekFrom::Start(begin)).and_then(|_| file.take(8192).read_to_string(&mut text));
    }
    let text = text.trim().trim_start_matches("error: ").to_owned();
    let silent =
        || format!("it ended without a word, or took longer than 10 s (see `{}`)", complaints.display());
    Ok(Some(if text.is_empty() { silent() } else { text }))
}

fn says_ready(output: ChildStdout) -> bool {
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).is_ok() && line.starts_with(READY)
}
