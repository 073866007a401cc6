//! Starting the command of a session: with a terminal of the sandbox's own, or with pipes.
//!
//! Between fork and exec only C may run, and this crate writes none; so the command is started through this
//! binary once more, which takes its place at the head of a session and then becomes the command.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::net::unix::pipe::Sender;

use super::Console;
use super::stream::{self, Output};
use super::wire::{Start, TerminalSize};
use crate::process;

/// The binary, as every sandbox sees it.
const BINARY: &str = "/run/cloister/bin/cloister";

/// A command that runs, with this process's side of its input and output.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: Pid,
    pub(super) channels: Channels,
}

/// How a command's input and output reach the first process.
#[derive(Debug)]
pub(super) struct Channels {
    pub(super) input: Sender,
    pub(super) output: Output,
    /// Apart from the output, unless both are one terminal.
    pub(super) error: Option<Output>,
    /// The terminal's master, if there is a terminal.
    pub(super) master: Option<OwnedFd>,
}

/// Starts the command.
pub(super) fn spawn(start: &Start, base: &BTreeMap<String, String>) -> io::Result<Child> {
    let mut command = process::command(BINARY);
    command.args(["sandbox-init", "session"]);
    if start.terminal.is_some() {
        command.arg("--terminal");
    }
    command.arg("--").args(&start.argv);
    command.envs(base).envs(&start.environment).current_dir(&start.directory);
    let (channels, ends) = match start.terminal {
        Some(size) => terminal(size)?,
        None => pipes()?,
    };
    let [input, output, error] = ends;
    command.stdin(input).stdout(output).stderr(error);
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    Ok(Child { pid: pid.expect("the kernel gives positive process numbers"), channels })
}

fn terminal(size: TerminalSize) -> io::Result<(Channels, [Stdio; 3])> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    resize(&master, size)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    let ends = [slave.try_clone()?.into(), slave.try_clone()?.into(), slave.into()];
    let channels = Channels {
        input: stream::input(master.try_clone()?)?,
        output: Output::new(master.try_clone()?)?,
        error: None,
        master: Some(master),
    };
    Ok((channels, ends))
}

fn pipes() -> io::Result<(Channels, [Stdio; 3])> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let ((child_in, input), (output, child_out), (error, child_error)) = (pipe()?, pipe()?, pipe()?);
    let channels = Channels {
        input: stream::input(input)?,
        output: Output::new(output)?,
        error: Some(Output::new(error)?),
        master: None,
    };
    Ok((channels, [child_in.into(), child_out.into(), child_error.into()]))
}

/// Tells a terminal its size.
pub(super) fn resize(master: &OwnedFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(master, size)?)
}

/// Becomes the command, at the head of a session of its own; returns only when that fails.
pub(super) fn become_command(console: Console, argv: &[OsString]) -> (u8, String) {
    let Some((program, arguments)) = argv.split_first() else {
        return (126, "no command was given".to_owned());
    };
    if let Err(error) = setsid() {
        return (126, format!("cannot open a session: {}", io::Error::from(error)));
    }
    if console == Console::Terminal
        && let Err(error) = ioctl_tiocsctty(io::stdin())
    {
        return (126, format!("cannot take the terminal: {}", io::Error::from(error)));
    }
    let mut command = process::command(program);
    command.args(arguments).envs(std::env::vars_os());
    failure(program, &command.exec())
}

/// The exit code and message of a command that could not be run, as Docker and shells give them.
fn failure(program: &OsString, error: &io::Error) -> (u8, String) {
    let name = Path::new(program).display();
    match error.kind() {
        io::ErrorKind::NotFound => (127, format!("cannot run `{name}`: not found in this sandbox")),
        _ => (126, format!("cannot run `{name}`: {error}")),
    }
}
