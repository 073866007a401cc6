//! One session: a command, its input and output, and the connection to the host that asked for it.
//!
//! The session ends when the command ends, even if children hold its output: what they write is read and
//! dropped, so that they live on. When the host's end goes away first, the command gets a hang-up, and its terminal
//! is closed, as when a window is.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Sender;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_local};

use super::child::{self, Channels};
use super::serve::Sandbox;
use super::stream::Output;
use super::wire::{FromHost, FromSandbox, MAX_DATA_BYTES};

/// How many frames may wait for the host before the command's output is left in its pipe.
const QUEUE: usize = 4;
/// What an ended command can have left in its pipe at most (`F_SETPIPE_SZ` of an unprivileged user), in bytes.
const MAX_LEFT_BYTES: usize = 1024 * 1024;

/// Serves one connection of the host.
pub(super) async fn run(stream: UnixStream, sandbox: Rc<Sandbox>) {
    let (mut read, write) = stream.into_split();
    match FromHost::read(&mut read).await {
        Ok(Some(FromHost::Start(start))) => {
            let started = child::spawn(&start, &sandbox.environment);
            // No await between start and this: the process must be known before it is reaped.
            match started {
                Ok(child) => {
                    let exit = sandbox.exit_of(child.pid);
                    Session::new(child.pid, child.channels, read, write).run(exit).await;
                }
                Err(error) => fail(write, &start.directory, &error).await,
            }
        }
        Ok(Some(FromHost::Probe)) => {
            let mut write = write;
            // The host that asked may be gone again.
            let _ = FromSandbox::Started.write(&mut write).await;
        }
        Ok(Some(FromHost::Stop)) => {
            sandbox.stop();
            // The connection closes with this process, and so tells the host that all has ended.
            std::future::pending::<()>().await;
        }
        // Not a session: the host said nothing, or something else.
        Ok(_) | Err(_) => {}
    }
}

async fn fail(mut write: OwnedWriteHalf, directory: &str, error: &io::Error) {
    let reason = format!("cannot start a command in `{directory}`: {error}");
    // The host may be gone; then nobody waits for the reason.
    let _ = FromSandbox::Failed(reason).write(&mut write).await;
}

struct Session {
    pid: Pid,
    has_terminal: bool,
    frames: mpsc::Sender<FromSandbox>,
    ended: watch::Sender<bool>,
    outputs: Vec<JoinHandle<Option<Output>>>,
    host: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Session {
    fn new(pid: Pid, channels: Channels, read: OwnedReadHalf, write: OwnedWriteHalf) -> Self {
        let (frames, queue) = mpsc::channel(QUEUE);
        let (ended, _) = watch::channel(false);
        let writer = spawn_local(send(queue, write));
        let Channels { input, output, error, master } = channels;
        let has_terminal = master.is_some();
        let output = pump(output, FromSandbox::Output, frames.clone(), ended.subscribe());
        let mut outputs = vec![spawn_local(output)];
        if let Some(error) = error {
            outputs.push(spawn_local(pump(
                error,
                FromSandbox::ErrorOutput,
                frames.clone(),
                ended.subscribe(),
            )));
        }
        let host = spawn_local(listen(read, pid, input, master, frames.clone()));
        Self { pid, has_terminal, frames, ended, outputs, host, writer }
    }

    async fn run(self, exit: tokio::sync::oneshot::Receiver<u8>) {
        let Self { pid, has_terminal, frames, ended, outputs, mut host, writer } = self;
        let _ = frames.send(FromSandbox::Started).await;
        let mut exit = exit;
        let code = tokio::select! {
            code = &mut exit => code,
            _ = &mut host => {
                hang_up(pid);
                // The client is gone; the outputs see that when they next write, and drain.
                drop(frames);
                writer.abort();
                if has_terminal {
                    // The last of the terminal's descriptors: with them it is hung up.
                    outputs.iter().for_each(JoinHandle::abort);
                }
                let _ = ended.send(true);
                drain(outputs).await;
                let _ = exit.await;
                return;
            }
        };
        let _ = ended.send(true);
        drain(outputs).await;
        let _ = frames.send(FromSandbox::Exit(code.unwrap_or(u8::MAX))).await;
        host.abort();
        drop(frames);
        let _ = writer.await;
    }
}

/// Waits until the outputs were read to what the command left, and goes on reading for its children.
async fn drain(outputs: Vec<JoinHandle<Option<Output>>>) {
    for output in outputs {
        if let Ok(Some(mut stream)) = output.await {
            spawn_local(async move {
                let mut buffer = vec![0; MAX_DATA_BYTES];
                while matches!(stream.read(&mut buffer).await, Ok(count) if count > 0) {}
            });
        }
    }
}

/// Tells the command that its terminal has gone.
fn hang_up(pid: Pid) {
    signal(pid, Signal::HUP);
}

/// Passes a signal on: what a terminal sends to a whole process group goes to the group, the others to the command.
fn signal(pid: Pid, signal: Signal) {
    let is_terminals = matches!(signal, Signal::HUP | Signal::INT | Signal::QUIT);
    // The group exists as soon as the command heads its session; before that there is only the process.
    if !is_terminals || kill_process_group(pid, signal).is_err() {
        // It may have ended in between.
        let _ = kill_process(pid, signal);
    }
}

async fn send(mut queue: mpsc::Receiver<FromSandbox>, mut write: OwnedWriteHalf) {
    while let Some(frame) = queue.recv().await {
        if frame.write(&mut write).await.is_err() {
            return;
        }
    }
}

/// Reads one output of the command until it ends, or until the command has ended and nothing is left; gives
/// back what children may still hold.
async fn pump(
    mut stream: Output,
    frame: impl Fn(Vec<u8>) -> FromSandbox,
    frames: mpsc::Sender<FromSandbox>,
    mut ended: watch::Receiver<bool>,
) -> Option<Output> {
    let mut buffer = vec![0; MAX_DATA_BYTES];
    loop {
        let count = tokio::select! {
            read = stream.read(&mut buffer) => read.unwrap_or(0),
            _ = ended.wait_for(|ended| *ended) => break,
        };
        if count == 0 {
            return None;
        }
        if frames.send(frame(buffer[..count].to_vec())).await.is_err() {
            return Some(stream);
        }
    }
    let mut left = MAX_LEFT_BYTES;
    while let Ok(Some(count)) = stream.read_now(&mut buffer) {
        if count == 0 {
            return None;
        }
        left = left.saturating_sub(count);
        if left == 0 || frames.send(frame(buffer[..count].to_vec())).await.is_err() {
            break;
        }
    }
    Some(stream)
}

/// Does what the host asks of a running command, until the host's end closes.
async fn listen(
    mut read: OwnedReadHalf,
    pid: Pid,
    input: Sender,
    terminal: Option<OwnedFd>,
    frames: mpsc::Sender<FromSandbox>,
) {
    let (bytes, queue) = mpsc::unbounded_channel();
    let feeding = spawn_local(feed(queue, input, frames));
    let mut bytes = Some(bytes);
    while let Ok(Some(message)) = FromHost::read(&mut read).await {
        match message {
            // The window that the host keeps bounds what can wait here.
            FromHost::Input(data) => drop(bytes.as_ref().map(|bytes| bytes.send(data))),
            FromHost::InputEnd => bytes = None,
            FromHost::Resize(size) => {
                if let Some(master) = &terminal {
                    let _ = child::resize(master, size);
                }
            }
            FromHost::Signal(number) => {
                if let Some(number) = Signal::from_named_raw(number) {
                    signal(pid, number);
                }
            }
            FromHost::Start(_) | FromHost::Probe | FromHost::Stop => break,
        }
    }
    if terminal.is_some() {
        feeding.abort();
    }
}

/// Writes the command's input; what a command no longer reads is taken and dropped, as a shell would.
async fn feed(
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    mut input: Sender,
    frames: mpsc::Sender<FromSandbox>,
) {
    let mut open = true;
    while let Some(bytes) = queue.recv().await {
        open = open && input.write_all(&bytes).await.is_ok();
        let taken = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if frames.send(FromSandbox::Taken(taken)).await.is_err() {
            return;
        }
    }
}
