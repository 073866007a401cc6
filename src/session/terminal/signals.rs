//! Signals of this process, and what they mean to the command.
//!
//! With pipes they are passed on. With a terminal the keys come as bytes, and a signal is for this process: it ends
//! the session, or stops and continues it with the terminal given back in between.

use rustix::process::{Signal, getpid, kill_process};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedSender;

use super::raw::{RawTerminal, terminal_size};
use super::{End, SessionError, io_error};
use crate::init::wire::FromHost;
use crate::process::Ignored;

/// A signal that this process watches; one that it was told to ignore (`nohup`) never comes.
struct Watch(Option<tokio::signal::unix::Signal>);

impl Watch {
    fn new(kind: SignalKind, ignored: Ignored) -> Result<Self, SessionError> {
        if ignored.contains(kind.as_raw_value()) {
            return Ok(Self(None));
        }
        Ok(Self(Some(signal(kind).map_err(io_error("watch for signals"))?)))
    }

    async fn came(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}

/// Acts on signals until one ends the session. Who asks three times for the end gets it, whatever the sandbox does.
pub(super) async fn forward(
    messages: UnboundedSender<FromHost>,
    terminal: Option<&RawTerminal>,
) -> Result<End, SessionError> {
    let ignored = Ignored::of_this_process();
    let watch = |kind| Watch::new(kind, ignored);
    let mut resized = watch(SignalKind::window_change())?;
    let mut hang_up = watch(SignalKind::hangup())?;
    let mut interrupt = watch(SignalKind::interrupt())?;
    let mut quit = watch(SignalKind::quit())?;
    let mut terminate = watch(SignalKind::terminate())?;
    let (mut user1, mut user2) = (watch(SignalKind::user_defined1())?, watch(SignalKind::user_defined2())?);
    let mut pauses = Pauses::new(terminal, ignored)?;
    let mut requests = 0_u8;
    loop {
        let number = tokio::select! {
            () = resized.came() => {
                send_size(&messages);
                continue;
            }
            () = pauses.next() => {
                send_size(&messages);
                continue;
            }
            () = hang_up.came() => SignalKind::hangup(),
            () = interrupt.came() => SignalKind::interrupt(),
            () = quit.came() => SignalKind::quit(),
            () = terminate.came() => SignalKind::terminate(),
            () = user1.came() => SignalKind::user_defined1(),
            () = user2.came() => SignalKind::user_defined2(),
        };
        let is_users = number == SignalKind::user_defined1() || number == SignalKind::user_defined2();
        let is_final = number == SignalKind::hangup() || number == SignalKind::terminate();
        requests += u8::from(!is_users);
        let number = number.as_raw_value();
        if requests > 2 || terminal.is_some() && is_final {
            return Ok(End::Left(u8::try_from(128 + number).unwrap_or(u8::MAX)));
        }
        // When the connection is gone, the other side of the select ends the session.
        let _ = messages.send(FromHost::Signal(number));
    }
}

fn send_size(messages: &UnboundedSender<FromHost>) {
    if let Some(size) = terminal_size() {
        let _ = messages.send(FromHost::Resize(size));
    }
}

/// The pauses of a session with a terminal: `kill -TSTP` and what ends it.
struct Pauses<'a> {
    terminal: Option<&'a RawTerminal>,
    stop: Watch,
    go_on: Watch,
}

impl<'a> Pauses<'a> {
    fn new(terminal: Option<&'a RawTerminal>, ignored: Ignored) -> Result<Self, SessionError> {
        // Without a terminal this process stops by itself.
        let watch = |number| match terminal {
            Some(_) => Watch::new(SignalKind::from_raw(number), ignored),
            None => Ok(Watch(None)),
        };
        Ok(Self { terminal, stop: watch(Signal::TSTP.as_raw())?, go_on: watch(Signal::CONT.as_raw())? })
    }

    /// Stops when asked to, and comes back when this process has gone on with its terminal raw.
    async fn next(&mut self) {
        let is_stop = tokio::select! {
            () = self.stop.came() => true,
            () = self.go_on.came() => false,
        };
        let Some(terminal) = self.terminal else { return };
        if is_stop {
            terminal.restore();
            // The rest of this function runs when somebody continues this process.
            let _ = kill_process(getpid(), Signal::STOP);
        }
        // In the background this stops it again, as it should.
        let _ = terminal.make_raw();
    }
}
