//! The user's own program: started with the request on its input, and bounded in time and number.
//!
//! What a sandbox wrote is never an argument of it. The input is a file in memory, so that a program that does not
//! read it holds up nobody.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Tally;
use crate::process;
use crate::text::with_causes;

/// How long the program may run.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long it may take to be gone when it is killed.
const KILL_PATIENCE: Duration = Duration::from_secs(1);
/// How many of them may run at once.
const MAX_RUNNING: usize = 4;
/// How many more may wait for their turn.
const MAX_WAITING: usize = 16;

/// Runs the user's programs.
#[derive(Debug)]
pub(super) struct Commands {
    runtime: Handle,
    patience: Duration,
    room: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    tally: Arc<Tally>,
}

/// Why a program did not do what it should.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("too many of them run")]
    Busy,
    #[error("it does not start")]
    Start(#[source] io::Error),
    #[error("it ended with {0}")]
    Ended(ExitStatus),
    #[error("it took longer than {} s", .0.as_secs())]
    Stalled(Duration),
}

impl Commands {
    pub(super) fn on(runtime: Handle) -> Self {
        let [room, turns] =
            [MAX_RUNNING + MAX_WAITING, MAX_RUNNING].map(|count| Arc::new(Semaphore::new(count)));
        Self { runtime, patience: PATIENCE, room, turns, tally: Arc::default() }
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Starts a program as soon as it is its turn.
    pub(super) fn start(&self, arguments: Vec<String>, input: String) {
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            return tell(&self.tally, &arguments, Err(Failure::Busy));
        };
        let (turns, tally, patience) = (Arc::clone(&self.turns), Arc::clone(&self.tally), self.patience);
        self.runtime.spawn(async move {
            let _place = place;
            let _turn = turns.acquire_owned().await;
            let result = run(arguments.clone(), input, patience).await;
            tell(&tally, &arguments, result);
        });
    }
}

fn tell(tally: &Tally, arguments: &[String], result: Result<(), Failure>) {
    match result {
        Ok(()) => tally.done(),
        Err(error) => {
            tally.failed();
            tracing::warn!(
                program = arguments.first(),
                error = with_causes(&error),
                "the notify command failed"
            );
        }
    }
}

async fn run(arguments: Vec<String>, input: String, patience: Duration) -> Result<(), Failure> {
    let started = tokio::task::spawn_blocking(move || Running::start(&arguments, &input)).await;
    let mut running = started.map_err(io::Error::other).flatten().map_err(Failure::Start)?;
    match timeout(patience, running.ended()).await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::Ended(status)),
        Err(_) => {
            running.kill();
            // Only what the kernel itself holds fast is not gone at once.
            let _ = timeout(KILL_PATIENCE, running.ended()).await;
            Err(Failure::Stalled(patience))
        }
    }
}

/// A program that runs, and ends with this value.
#[derive(Debug)]
struct Running(Child);

impl Running {
    fn start(arguments: &[String], input: &str) -> io::Result<Self> {
        let (program, arguments) = arguments.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut stdin = File::from(memfd_create("request", MemfdFlags::CLOEXEC)?);
        stdin.write_all(input.as_bytes())?;
        stdin.rewind()?;
        let mut command = process::command(program);
        command.args(arguments).envs(std::env::vars_os()).current_dir("/").process_group(0);
        command.stdin(stdin).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Self)
    }

    /// Waits until the program has ended.
    async fn ended(&mut self) -> ExitStatus {
        loop {
            // It is a child that nobody else waits for.
            if let Ok(Some(status)) = self.0.try_wait() {
                return status;
            }
            sleep(LOOK).await;
        }
    }

    /// Kills the program, and what else is in its process group; its number is its own until it is waited for.
    fn kill(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests;
