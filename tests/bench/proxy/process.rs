//! Processes of the benchmark: their time, their memory, their end.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

/// How the kernel counts time (`USER_HZ`), in seconds.
const TICK: f64 = 0.01;

/// A process that is looked at.
#[derive(Clone, Copy)]
pub(crate) struct Process(u32);

impl Process {
    /// Its time so far, in user and kernel.
    pub(crate) fn cpu_seconds(self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().unwrap());
        ticks.sum::<f64>() * TICK
    }

    /// What of it lies in memory, in KiB.
    pub(crate) fn resident_kib(self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

/// A process that ends with the value.
pub(crate) struct Running(Child);

impl Running {
    /// Starts a program and waits for the line that begins with `ready`; gives what follows in it.
    pub(crate) fn start(command: &mut Command) -> (Self, String) {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let rest = line.trim_end().strip_prefix("ready").unwrap_or_else(|| panic!("{command:?}: {line}"));
        (Self(child), rest.trim().to_owned())
    }

    /// Starts a program that says nothing.
    pub(crate) fn start_quiet(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    pub(crate) fn process(&self) -> Process {
        Process(self.0.id())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
