//! The first process at work: accepts sessions, reaps what ends, and stops when it is told to.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::os::unix::net::UnixListener as StdListener;
use std::rc::Rc;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, oneshot};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use super::boot::Boot;
use super::{InitError, relay, session};

/// How long processes have between the request to end and the end of the sandbox.
const GRACE: Duration = Duration::from_millis(1500);
/// How often it is looked whether all have ended.
const LOOK: Duration = Duration::from_millis(10);

/// What the sessions of a sandbox share.
#[derive(Default)]
pub(super) struct Sandbox {
    pub(super) environment: std::collections::BTreeMap<String, String>,
    waiting: RefCell<HashMap<Pid, oneshot::Sender<u8>>>,
    stop: Notify,
}

impl Sandbox {
    /// Waits for the end of a process that was just started: no await may lie between start and this call.
    pub(super) fn exit_of(&self, pid: Pid) -> oneshot::Receiver<u8> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(pid, sender);
        receiver
    }

    /// Asks the first process to end the sandbox.
    pub(super) fn stop(&self) {
        self.stop.notify_one();
    }

    /// Collects every process that has ended, whoever started it.
    fn reap(&self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(session) = self.waiting.borrow_mut().remove(&pid) {
                // The session may have lost its client; then nobody asks for the code.
                let _ = session.send(exit_code(status));
            }
        }
    }
}

/// The code that a shell would report: the program's own, or 128 and the number of the signal.
fn exit_code(status: WaitStatus) -> u8 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

pub(super) async fn serve(listener: StdListener, boot: Boot) -> Result<(), InitError> {
    let sandbox = Rc::new(Sandbox { environment: boot.environment, ..Sandbox::default() });
    forget_ignored_signals()?;
    let mut ended = signal(SignalKind::child()).map_err(InitError::setup("watch for ended processes"))?;
    for relay in boot.relays {
        relay::open(relay).await.map_err(InitError::setup("open the way to the guardian"))?;
    }
    listener.set_nonblocking(true).map_err(InitError::setup("prepare the socket for sessions"))?;
    let listener = UnixListener::from_std(listener).map_err(InitError::setup("listen for sessions"))?;
    loop {
        tokio::select! {
            _ = ended.recv() => sandbox.reap(),
            () = sandbox.stop.notified() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(spawn_local(session::run(stream, Rc::clone(&sandbox)))),
                // Out of descriptors: sessions that are open will end.
                Err(_) => sleep(Duration::from_millis(50)).await,
            },
        }
    }
    end_all(&sandbox).await;
    Ok(())
}

/// Handles every signal that can be: who started the sandbox may have ignored some (`nohup`, a script's `&`), and so
/// would every session. A program that is started has handled signals at their default, and ignored ones ignored.
fn forget_ignored_signals() -> Result<(), InitError> {
    let faults = [Signal::ILL, Signal::FPE, Signal::SEGV, Signal::BUS];
    let fixed = [Signal::KILL, Signal::STOP, Signal::CHILD];
    let kinds = (1..=31).filter_map(Signal::from_named_raw);
    for kind in kinds.filter(|kind| !faults.contains(kind) && !fixed.contains(kind)) {
        let watched = signal(SignalKind::from_raw(kind.as_raw()));
        drop(watched.map_err(InitError::setup("handle signals"))?);
    }
    Ok(())
}

/// Asks every process to end and waits a little; what remains ends with the first process.
async fn end_all(sandbox: &Sandbox) {
    for pid in others() {
        // It may have ended in between.
        let _ = kill_process(pid, Signal::TERM);
    }
    let end = Instant::now() + GRACE;
    while !others().is_empty() && Instant::now() < end {
        sandbox.reap();
        sleep(LOOK).await;
    }
}

/// Every process of the sandbox but this one.
fn others() -> Vec<Pid> {
    let own = rustix::process::getpid();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .filter(|pid| *pid != own)
        .collect()
}
