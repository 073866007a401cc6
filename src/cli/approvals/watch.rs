//! `cloister approvals watch`: a live list in the terminal, answered with single keys.
//!
//! [`model`] and [`keys`] decide, [`view`] draws, [`screen`] has the terminal; here they meet the guardian and time.

mod keys;
mod model;
mod screen;
#[cfg(test)]
mod tests;
mod view;

use std::convert::Infallible;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{sleep, timeout};

use super::super::error::CommandError;
use super::super::output::Output;
use crate::approval::{Answer, RequestId, Settled};
use crate::config::Config;
use crate::guardian::client::{ClientError, Guardian};
use crate::paths::Paths;
use crate::text::with_causes;
use model::{Act, Event, Model};
use screen::Screen;
use view::Theme;

/// How long it is waited before a guardian that is away is asked again.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn run(paths: &Paths, output: &Output) -> Result<ExitCode, CommandError> {
    if output.is_json() {
        return Err(CommandError::user("`watch` is for people").hint("use `cloister approvals list --json`"));
    }
    if !screen::is_terminal() {
        return Err(CommandError::user("`watch` needs a terminal")
            .hint("use `cloister approvals list`, and `cloister approvals allow ID` or `deny ID`"));
    }
    let (events, queue) = unbounded_channel();
    let ends = watch_signals(&events)
        .map_err(|error| CommandError::internal(error).because("cannot watch for signals"))?;
    let ended = show(paths, output, &events, queue).await;
    ends.iter().for_each(tokio::task::JoinHandle::abort);
    let code = ended.map_err(|error| CommandError::internal(error).because("cannot use the terminal"))?;
    Ok(ExitCode::from(code))
}

/// Shows what comes until somebody wants no more of it; gives the exit code.
async fn show(
    paths: &Paths,
    output: &Output,
    events: &UnboundedSender<Event>,
    mut queue: UnboundedReceiver<Event>,
) -> io::Result<u8> {
    let theme = Theme { is_colored: output.colors_results() };
    let mut screen = Screen::enter(theme)?;
    // It stays in its read: the process that ends takes it along.
    std::thread::spawn({
        let events = events.clone();
        move || screen::read_keys(&events)
    });
    let follower = tokio::spawn(follow(paths.clone(), events.clone()));
    // Whether settings are broken is told elsewhere.
    let rings = Config::load_for(paths, None).map_or(true, |config| config.approvals.bell);
    let mut model = Model::new(rings);
    let code = loop {
        draw(&mut screen, &mut model, theme)?;
        let event = match timeout(view::next_change(), queue.recv()).await {
            Ok(event) => event.unwrap_or(Event::End(0)),
            Err(_) => Event::Tick,
        };
        match model.update(event, Instant::now()) {
            None => {}
            Some(Act::Quit(code)) => break code,
            Some(Act::Bell) => Screen::ring()?,
            Some(Act::Suspend) => screen.pause()?,
            Some(Act::TakeBack) => screen.take_back()?,
            Some(Act::Answer(id, answer)) => {
                drop(tokio::spawn(send_answer(paths.clone(), id, answer, events.clone())));
            }
            Some(Act::Undo(id)) => drop(tokio::spawn(send_undo(paths.clone(), id, events.clone()))),
        }
    };
    follower.abort();
    Ok(code)
}

fn draw(screen: &mut Screen, model: &mut Model, theme: Theme) -> io::Result<()> {
    model.fit(view::visible_rows(screen.area()?));
    let mut is_whole = false;
    screen.terminal().draw(|frame| is_whole = view::draw(frame, model, theme, Instant::now()))?;
    model.drawn(is_whole, Instant::now());
    Ok(())
}

/// Tells of every change at the guardian, and when it is away.
async fn follow(paths: Paths, events: UnboundedSender<Event>) {
    loop {
        let Err(error) = follow_one(&paths, &events).await;
        let _ = events.send(Event::Away(with_causes(&error)));
        sleep(PAUSE).await;
    }
}

async fn follow_one(paths: &Paths, events: &UnboundedSender<Event>) -> Result<Infallible, ClientError> {
    let guardian = Guardian::connect(paths).await?;
    let mut version = None;
    loop {
        let snapshot = guardian.approvals(version).await?;
        version = Some(snapshot.version);
        let _ = events.send(Event::Snapshot(snapshot, Timestamp::now()));
    }
}

async fn send_answer(paths: Paths, id: RequestId, answer: Answer, events: UnboundedSender<Event>) {
    let answered: Result<Settled, ClientError> =
        async { Guardian::connect(&paths).await?.answer(&id, &answer).await }.await;
    let _ = events.send(Event::Answered(id, answered.map_err(|error| with_causes(&error))));
}

async fn send_undo(paths: Paths, id: RequestId, events: UnboundedSender<Event>) {
    let undone = async { Guardian::connect(&paths).await?.undo_approval(&id).await }.await;
    let _ = events.send(Event::Undone(undone.map_err(|error: ClientError| with_causes(&error))));
}

/// Makes events of the signals that end or stop this process.
fn watch_signals(events: &UnboundedSender<Event>) -> io::Result<Vec<tokio::task::JoinHandle<()>>> {
    let ending = [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::terminate()]
        .map(|kind| (kind, Event::End(u8::try_from(128 + kind.as_raw_value()).unwrap_or(u8::MAX))));
    let stop = (SignalKind::from_raw(Signal::TSTP.as_raw()), Event::Key(model::Key::Suspend));
    let go_on = (SignalKind::from_raw(Signal::CONT.as_raw()), Event::Continued);
    let watched = ending.into_iter().chain([stop, go_on]).map(|(kind, event)| {
        let (mut signal, events) = (signal(kind)?, events.clone());
        Ok(tokio::spawn(async move {
            while signal.recv().await.is_some() {
                if events.send(event.clone()).is_err() {
                    return;
                }
            }
        }))
    });
    watched.collect()
}
