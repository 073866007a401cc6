//! The user's end of a session: bytes, signals and the size of the terminal.
//!
//! The sandbox gets bytes only, never one of the user's descriptors. What comes back is read frame by frame and
//! checked; a first process that lies can spoil its own session and nothing else.

use std::io::{self, IsTerminal, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::start::{Sandbox, StartError};
use crate::init::wire::{FromHost, FromSandbox, INPUT_WINDOW_BYTES, TerminalSize};

/// How long a command may take to be started.
const PATIENCE: Duration = Duration::from_secs(20);
/// How much input is read at once, in bytes.
const CHUNK_BYTES: usize = 16 * 1024;
/// How many messages may wait for the sandbox.
const QUEUE: usize = 16;

/// Why a session did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The sandbox can't be reached.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The command was not started.
    #[error("{0}")]
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

/// Runs a command in a sandbox, connected to this process's input, output and signals; gives its exit code.
///
/// The command gets a terminal when this process has one for both input and output.
pub async fn run(sandbox: &Sandbox, argv: Vec<String>) -> Result<u8, SessionError> {
    let size = terminal_size();
    let mut stream = sandbox.connect().await?;
    let start = FromHost::Start(sandbox.session(argv, size));
    start.write(&mut stream).await.map_err(io_error("ask for a session"))?;
    let answer = timeout(PATIENCE, FromSandbox::read(&mut stream)).await.map_err(|_| SessionError::Silent)?;
    match answer.map_err(SessionError::Garbage)? {
        Some(FromSandbox::Started) => {}
        Some(FromSandbox::Failed(reason)) => return Err(SessionError::Failed(reason)),
        Some(_) => return Err(SessionError::Garbage(io::ErrorKind::InvalidData.into())),
        None => return Err(SessionError::Ended),
    }
    let _raw = size.map(|_| RawTerminal::enter()).transpose().map_err(io_error("prepare the terminal"))?;
    attach(stream).await
}

/// The size of the terminal, when input and output are one.
fn terminal_size() -> Option<TerminalSize> {
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let size = is_terminal.then(|| tcgetwinsize(io::stdout()))?.ok()?;
    Some(TerminalSize { rows: size.ws_row, columns: size.ws_col })
}

/// The user's terminal in raw mode; what it was before is restored however the session ends.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that has gone needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

async fn attach(stream: UnixStream) -> Result<u8, SessionError> {
    let (read, mut write) = stream.into_split();
    let (messages, mut queue) = mpsc::channel::<FromHost>(QUEUE);
    let window = Arc::new(Window::new(INPUT_WINDOW_BYTES));
    // It may stay in its read after the session: the process that ends takes it along.
    std::thread::spawn({
        let (messages, window) = (messages.clone(), Arc::clone(&window));
        move || forward_input(&messages, &window)
    });
    tokio::spawn(async move {
        while let Some(message) = queue.recv().await {
            if message.write(&mut write).await.is_err() {
                return;
            }
        }
    });
    let mut output = Box::pin(show_output(read, window));
    let mut signals = Box::pin(forward_signals(messages));
    tokio::select! {
        ended = &mut output => ended,
        code = &mut signals => code,
    }
}

/// Bytes of input that the command has not taken yet, bounded.
struct Window {
    left: Mutex<usize>,
    grown: Condvar,
}

impl Window {
    fn new(size: usize) -> Self {
        Self { left: Mutex::new(size), grown: Condvar::new() }
    }

    fn take(&self, count: usize) {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left =
            self.grown.wait_while(left, |left| *left < count).unwrap_or_else(PoisonError::into_inner);
        *left -= count;
    }

    /// A sandbox can widen its own window only up to its size.
    fn give_back(&self, count: usize) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.saturating_add(count).min(INPUT_WINDOW_BYTES);
        self.grown.notify_one();
    }
}

fn forward_input(messages: &mpsc::Sender<FromHost>, window: &Window) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let message = match io::stdin().lock().read(&mut buffer) {
            Ok(0) => FromHost::InputEnd,
            Ok(count) => {
                window.take(count);
                FromHost::Input(buffer[..count].to_vec())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => FromHost::InputEnd,
        };
        let is_end = message == FromHost::InputEnd;
        if messages.blocking_send(message).is_err() || is_end {
            return;
        }
    }
}

async fn show_output(mut read: OwnedReadHalf, window: Arc<Window>) -> Result<u8, SessionError> {
    let (mut output, mut error_output) = (tokio::io::stdout(), tokio::io::stderr());
    loop {
        let shown = match FromSandbox::read(&mut read).await.map_err(SessionError::Garbage)? {
            Some(FromSandbox::Output(bytes)) => show(&mut output, &bytes).await,
            Some(FromSandbox::ErrorOutput(bytes)) => show(&mut error_output, &bytes).await,
            Some(FromSandbox::Taken(count)) => {
                window.give_back(count as usize);
                Ok(())
            }
            Some(FromSandbox::Exit(code)) => return Ok(code),
            Some(FromSandbox::Started | FromSandbox::Failed(_)) => {
                return Err(SessionError::Garbage(io::ErrorKind::InvalidData.into()));
            }
            None => return Err(SessionError::Ended),
        };
        match shown {
            // Nobody reads on: end as a program in a pipe does.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(128 + 13),
            other => other.map_err(io_error("write the command's output"))?,
        }
    }
}

async fn show(stream: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// Passes signals on to the command. Who asks twice for the end gets it, whatever the sandbox does.
async fn forward_signals(messages: mpsc::Sender<FromHost>) -> Result<u8, SessionError> {
    let watch = |kind| signal(kind).map_err(io_error("watch for signals"));
    let mut resized = watch(SignalKind::window_change())?;
    let mut hang_up = watch(SignalKind::hangup())?;
    let mut interrupt = watch(SignalKind::interrupt())?;
    let mut quit = watch(SignalKind::quit())?;
    let mut terminate = watch(SignalKind::terminate())?;
    let (mut user1, mut user2) = (watch(SignalKind::user_defined1())?, watch(SignalKind::user_defined2())?);
    let mut requests = 0_u8;
    loop {
        let number = tokio::select! {
            _ = resized.recv() => {
                if let Some(size) = terminal_size() {
                    let _ = messages.send(FromHost::Resize(size)).await;
                }
                continue;
            }
            _ = hang_up.recv() => SignalKind::hangup(),
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = quit.recv() => SignalKind::quit(),
            _ = terminate.recv() => SignalKind::terminate(),
            _ = user1.recv() => SignalKind::user_defined1(),
            _ = user2.recv() => SignalKind::user_defined2(),
        };
        let asks_for_the_end = number != SignalKind::user_defined1() && number != SignalKind::user_defined2();
        requests += u8::from(asks_for_the_end);
        let number = number.as_raw_value();
        if requests > 2 {
            return Ok(u8::try_from(128 + number).unwrap_or(u8::MAX));
        }
        // When the connection is gone, the other side of the select ends the session.
        let _ = messages.send(FromHost::Signal(number)).await;
    }
}
