//! The user's end of a session: bytes, signals and the size of the terminal.
//!
//! The sandbox gets bytes only, never one of the user's descriptors. What comes back is read frame by frame and
//! checked; a first process that lies can spoil its own session and nothing else.

mod bell;
mod escape;
mod input;
mod raw;
mod signals;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::start::{Sandbox, StartError};
use crate::config::Network;
use crate::init::wire::{FromHost, FromSandbox};
use crate::paths::Paths;
use crate::text::Untrusted;
use bell::Bell;
use input::Window;
use raw::RawTerminal;

/// How long a command may take to be started.
const PATIENCE: Duration = Duration::from_secs(20);
/// The code of a command whose terminal has gone: 128 and the number of the hang-up.
const HUNG_UP: u8 = 129;

/// Why a session did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The sandbox can't be reached.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The command was not started.
    #[error("{}", Untrusted(.0))]
    Failed(String),
    /// The first process does not answer.
    #[error("the sandbox's first process does not answer")]
    Silent,
    /// The sandbox ended before the command.
    #[error("the sandbox has ended")]
    Ended,
    /// The first process said something that it may not say.
    #[error("the sandbox's first process does not keep to the format")]
    Garbage(#[source] io::Error),
    /// The command had begun when this happened.
    #[error(transparent)]
    Begun(Box<SessionError>),
    /// The user's terminal or the connection failed.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> SessionError {
    move |source| SessionError::Io { action, source }
}

/// What it means that nothing more can be read: a first process that was killed may leave half a frame.
fn unreadable(error: io::Error) -> SessionError {
    match error.kind() {
        io::ErrorKind::InvalidData => SessionError::Garbage(error),
        _ => SessionError::Ended,
    }
}

/// Runs a command in a sandbox, connected to this process's input, output and signals; gives its exit code.
///
/// The command gets a terminal when this process has one for both input and output; its bell then rings when a request
/// of the sandbox waits and nobody looks.
pub async fn run(sandbox: &Sandbox, argv: Vec<String>, paths: &Paths) -> Result<u8, SessionError> {
    let size = raw::terminal_size();
    let mut stream = sandbox.connect().await?;
    let start = FromHost::Start(sandbox.session(argv, size));
    let begun = timeout(PATIENCE, async {
        start.write(&mut stream).await.map_err(io_error("ask for a session"))?;
        FromSandbox::read(&mut stream).await.map_err(unreadable)
    });
    match begun.await.map_err(|_| SessionError::Silent)?? {
        Some(FromSandbox::Started) => {}
        Some(FromSandbox::Failed(reason)) => return Err(SessionError::Failed(reason)),
        Some(_) => return Err(SessionError::Garbage(io::ErrorKind::InvalidData.into())),
        None => return Err(SessionError::Ended),
    }
    let begun = |error| SessionError::Begun(Box::new(error));
    let terminal = size.map(|_| RawTerminal::enter()).transpose();
    let terminal = terminal.map_err(io_error("prepare the terminal")).map_err(begun)?;
    let may_ring = terminal.is_some() && sandbox.network == Network::Guarded && sandbox.rings();
    let bell = may_ring.then(|| Bell::new(paths.clone(), sandbox.name.clone()));
    let ended = attach(stream, terminal.as_ref(), bell).await;
    if terminal.is_some() && !matches!(ended, Ok(End::Exit(_))) {
        raw::reset();
    }
    match ended.map_err(begun)? {
        End::Exit(code) | End::Left(code) => Ok(code),
    }
}

/// How a session came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The command ended with this code.
    Exit(u8),
    /// This side left before the command ended; this is the code for it.
    Left(u8),
}

async fn attach(
    stream: UnixStream,
    terminal: Option<&RawTerminal>,
    bell: Option<Bell>,
) -> Result<End, SessionError> {
    let (read, write) = stream.into_split();
    // Unbounded: the window bounds the input that waits here, and a signal must never wait behind it.
    let (messages, queue) = mpsc::unbounded_channel();
    let (window, input_ended) = (Arc::new(Window::default()), Arc::new(Notify::new()));
    // It may stay in its read after the session: the process that ends takes it along.
    std::thread::spawn({
        let (messages, window, ended) = (messages.clone(), Arc::clone(&window), Arc::clone(&input_ended));
        move || {
            input::forward(&messages, &window);
            ended.notify_one();
        }
    });
    tokio::spawn(send(queue, write));
    tokio::select! {
        ended = show_output(read, window, bell) => ended,
        ended = signals::forward(messages, terminal) => ended,
        // A terminal has an end only when it has gone.
        () = input_ended.notified(), if terminal.is_some() => Ok(End::Left(HUNG_UP)),
    }
}

async fn send(mut queue: mpsc::UnboundedReceiver<FromHost>, mut write: OwnedWriteHalf) {
    while let Some(message) = queue.recv().await {
        if message.write(&mut write).await.is_err() {
            return;
        }
    }
}

async fn show_output(
    mut read: OwnedReadHalf,
    window: Arc<Window>,
    mut bell: Option<Bell>,
) -> Result<End, SessionError> {
    let (mut output, mut error_output) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        let shown = match next_frame(&mut read, bell.as_mut()).await.map_err(unreadable)? {
            Some(FromSandbox::Output(bytes)) => {
                let shown = show(&mut output, &bytes).await;
                if let Some(bell) = &mut bell {
                    bell.pass(&bytes);
                }
                shown
            }
            Some(FromSandbox::ErrorOutput(bytes)) => show(&mut error_output, &bytes).await,
            Some(FromSandbox::Taken(count)) => {
                window.give_back(count as usize);
                Ok(())
            }
            Some(FromSandbox::Exit(code)) => return Ok(End::Exit(code)),
            Some(FromSandbox::Started | FromSandbox::Failed(_)) => {
                return Err(SessionError::Garbage(io::ErrorKind::InvalidData.into()));
            }
            None => return Err(SessionError::Ended),
        };
        match shown {
            // Nobody reads on: end as a program in a pipe does.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(End::Left(128 + 13)),
            other => other.map_err(io_error("write the command's output"))?,
        }
    }
}

/// Reads a frame; the bell may ring until it has come whole.
async fn next_frame(read: &mut OwnedReadHalf, bell: Option<&mut Bell>) -> io::Result<Option<FromSandbox>> {
    let mut frame = pin!(FromSandbox::read(read));
    let Some(bell) = bell else { return frame.await };
    loop {
        tokio::select! {
            biased;
            frame = &mut frame => return frame,
            () = bell.called() => bell.call(),
        }
    }
}

async fn show(stream: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}
