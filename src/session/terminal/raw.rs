//! The user's terminal while a session has it.

use std::io::{self, IsTerminal, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::init::wire::TerminalSize;

/// Takes back what a program can have asked of a terminal and would have undone itself: the other screen, mouse and
/// focus reports, marked pastes, the keypad's and cursor keys' other codes, a hidden cursor, colours.
const RESET: &[u8] =
    b"\x1b[?1047l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>\x1b[?25h\x1b[m\r\n";

/// The size of the terminal, when input and output are one.
pub(super) fn terminal_size() -> Option<TerminalSize> {
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let size = is_terminal.then(|| tcgetwinsize(io::stdout()))?.ok()?;
    Some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

/// The user's terminal in raw mode; what it was before is restored however the session ends.
#[derive(Debug)]
pub(super) struct RawTerminal(Termios);

impl RawTerminal {
    pub(super) fn enter() -> io::Result<Self> {
        let terminal = Self(tcgetattr(io::stdin())?);
        terminal.make_raw()?;
        Ok(terminal)
    }

    /// Makes it raw again, after a pause in which others had it.
    pub(super) fn make_raw(&self) -> io::Result<()> {
        let mut raw = self.0.clone();
        raw.make_raw();
        Ok(tcsetattr(io::stdin(), OptionalActions::Now, &raw)?)
    }

    /// Gives it back as it was.
    pub(super) fn restore(&self) {
        // A terminal that has gone needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Undoes what a program that was cut off can no longer undo; a terminal that takes nothing is left alone.
pub(super) fn reset() {
    let _ = write_if_taken(RESET);
}

/// Rings the terminal's bell, unless that would have to wait; tells whether it rang.
pub(super) fn ring() -> bool {
    write_if_taken(b"\x07")
}

fn write_if_taken(bytes: &[u8]) -> bool {
    let mut output = io::stdout().lock();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let is_taking = poll(&mut [PollFd::new(&output, PollFlags::OUT)], Some(&now)) == Ok(1);
    is_taking && output.write_all(bytes).and_then(|()| output.flush()).is_ok()
}
