//! A user at a real pseudo-terminal.

mod picture;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::harness::Host;
use picture::Picture;

/// The user's side of a pseudo-terminal.
pub(crate) struct Terminal {
    master: File,
    /// What was shown since the last text that was waited for.
    seen: Vec<u8>,
    /// All that was shown.
    transcript: Vec<u8>,
}

impl Terminal {
    /// A terminal of 24 lines, and the end that programs get.
    pub(crate) fn open() -> (Self, OwnedFd) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        let terminal = Self { master: File::from(master), seen: Vec::new(), transcript: Vec::new() };
        terminal.resize(24, 80);
        (terminal, slave)
    }

    /// Runs a program at a new terminal, which is its controlling one.
    pub(crate) fn run(host: &Host, argv: &[&str]) -> (Self, Child) {
        let (terminal, slave) = Self::open();
        let mut command = host.program("/usr/bin/setsid");
        command.arg("--ctty").args(argv);
        let child = attach(command, &slave);
        (terminal, child)
    }

    /// Runs `cloister` at a new terminal.
    pub(crate) fn cloister(host: &Host, arguments: &[&str]) -> (Self, Child) {
        let binary = host.binary();
        Self::run(host, &[&[binary.to_str().unwrap()], arguments].concat())
    }

    /// A shell in the sandbox, with a prompt that can be waited for.
    pub(crate) fn shell(host: &Host) -> (Self, Child) {
        let (mut terminal, child) = Self::cloister(host, &["start", "--", "bash", "--norc", "-i"]);
        // What is typed is shown too, so nothing that is waited for is typed as it will be printed.
        terminal.types("PS1=\\<p\\>; bind 'set enable-bracketed-paste off'\n");
        terminal.sees("<p>");
        (terminal, child)
    }

    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).unwrap();
    }

    pub(crate) fn types(&mut self, text: impl AsRef<[u8]>) {
        self.master.write_all(text.as_ref()).unwrap();
    }

    /// Types what may be more than the terminal takes at once.
    pub(crate) fn pastes(&self, bytes: Vec<u8>) -> std::thread::JoinHandle<()> {
        let mut master = self.master.try_clone().unwrap();
        std::thread::spawn(move || master.write_all(&bytes).unwrap())
    }

    /// Types a command and reads until it has printed this and the shell asks for the next.
    #[track_caller]
    pub(crate) fn does(&mut self, command: &str, shown: &str) {
        self.types(format!("{command}\n"));
        self.sees(shown);
        self.sees("<p>");
    }

    /// Reads until this text is on the screen; gives what came before it.
    #[track_caller]
    pub(crate) fn sees(&mut self, text: &str) -> Vec<u8> {
        let text = text.as_bytes();
        loop {
            if let Some(place) = self.seen.windows(text.len()).position(|window| window == text) {
                let rest = self.seen.split_off(place + text.len());
                let mut before = std::mem::replace(&mut self.seen, rest);
                before.truncate(place);
                return before;
            }
            let text = String::from_utf8_lossy(text);
            match self.reads(Duration::from_secs(20)) {
                None => panic!("`{text}` does not come: {}", self.shown()),
                Some(0) => panic!("the terminal closed before `{text}`: {}", self.shown()),
                Some(_) => {}
            }
        }
    }

    /// Tells whether this text stands on the screen now, however it was drawn.
    pub(crate) fn has(&self, text: &str) -> bool {
        Picture::of(&String::from_utf8_lossy(&self.transcript)).contains(text)
    }

    /// Reads until this text stands on the screen, however it is drawn.
    #[track_caller]
    pub(crate) fn shows(&mut self, text: &str) {
        while !self.has(text) {
            match self.reads(Duration::from_secs(20)) {
                None | Some(0) => panic!("`{text}` is not drawn: {}", self.shown()),
                Some(_) => {}
            }
        }
    }

    /// Reads what comes next; `None` when nothing does for so long.
    pub(crate) fn reads(&mut self, patience: Duration) -> Option<usize> {
        let patience =
            Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: patience.subsec_nanos().into() };
        let mut waiting = [PollFd::new(&self.master, PollFlags::IN)];
        if poll(&mut waiting, Some(&patience)) == Ok(0) {
            return None;
        }
        let mut buffer = [0; 16_384];
        // A terminal whose other end is closed gives an error.
        let count = self.master.read(&mut buffer).unwrap_or(0);
        self.seen.extend(&buffer[..count]);
        self.transcript.extend(&buffer[..count]);
        Some(count)
    }

    /// All that was shown, for people.
    pub(crate) fn shown(&self) -> String {
        let tail = self.transcript.len().saturating_sub(8000);
        String::from_utf8_lossy(&self.transcript[tail..]).into_owned()
    }

    pub(crate) fn modes(&self) -> Termios {
        tcgetattr(&self.master).unwrap()
    }

    /// Tells whether lines are edited and keys make signals, as in a terminal that nobody has changed.
    pub(crate) fn is_cooked(&self) -> bool {
        let modes = self.modes().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ISIG | LocalModes::ECHO)
    }
}

/// Starts a program with a terminal as input, output and error output.
pub(crate) fn attach(mut command: Command, slave: &OwnedFd) -> Child {
    let stdio = || std::process::Stdio::from(slave.try_clone().unwrap());
    command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap()
}
