//! What `watch` knows and what it does about it, without a terminal, a guardian or a clock.
//!
//! Rows stand in the order in which they came, and a row that has ended keeps its place while another is selected: the
//! selected one does not move on the screen unless the user moves. The selection is a request's number and never goes
//! to another by itself (A5).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::super::describe::{age, outcome};
use crate::approval::{Answer, Breadth, Pending, RequestId, Scope, Settled, Snapshot};
use crate::policy::Effect;
use crate::text::Untrusted;

/// For how long something must have been on the screen before a key answers it.
pub(super) const ARMING: Duration = Duration::from_millis(500);
/// How long a selected row that has ended stays, for the one who looks at it.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// A key, as far as it means anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Up,
    Down,
    First,
    Last,
    Enter,
    Escape,
    Backspace,
    Interrupt,
    Suspend,
    Other,
}

/// What happens to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Key(Key),
    /// A text that was put in, not typed.
    Paste(String),
    Resized,
    /// What the guardian says, and what the clock said then.
    Snapshot(Snapshot, Timestamp),
    /// The guardian can't be asked.
    Away(String),
    Answered(RequestId, Result<Settled, String>),
    Undone(Result<(), String>),
    /// Time has passed.
    Tick,
    /// This process goes on after others had the terminal.
    Continued,
    /// A signal asks for the end, with this exit code.
    End(u8),
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    Answer(RequestId, Answer),
    Undo(RequestId),
    Bell,
    Suspend,
    /// Make the terminal as it was before others had it.
    TakeBack,
    Quit(u8),
}

/// What the keys mean at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    List,
    /// An answer that lasts wants a second key.
    Confirm(Effect, Scope),
    /// A denial that lasts: where?
    DenyForGood,
    /// The reason for a denial is being typed.
    Reason(String),
    Help,
}

/// Whether the guardian answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Link {
    Connecting,
    Here,
    Away(String),
}

/// How far a request has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    Waiting,
    /// An answer is on its way.
    Sending,
    /// It has ended, so and then.
    Ended(String, Instant),
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) pending: Pending,
    pub(super) progress: Progress,
    /// How old it was when the guardian told of it last, and when that was.
    told: (Duration, Instant),
}

impl Row {
    pub(super) fn is_waiting(&self) -> bool {
        self.progress == Progress::Waiting
    }

    fn has_ended(&self) -> bool {
        matches!(self.progress, Progress::Ended(..))
    }

    pub(super) fn left(&self, now: Instant) -> Duration {
        Duration::from_millis(self.pending.left_ms).saturating_sub(now.saturating_duration_since(self.told.1))
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        self.told.0 + now.saturating_duration_since(self.told.1)
    }
}

/// All of it.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) rows: Vec<Row>,
    /// What has ended, the newest first.
    pub(super) settled: Vec<Settled>,
    pub(super) selected: Option<RequestId>,
    /// The first row on the screen.
    pub(super) offset: usize,
    /// What an answer to the selected request would be about.
    pub(super) breadth: Breadth,
    /// The reason for denying the selected request.
    pub(super) reason: Option<String>,
    pub(super) mode: Mode,
    pub(super) link: Link,
    /// What came of the last key or answer.
    pub(super) notice: Option<String>,
    /// Since when all that an answer is about has been on the screen, as it is now.
    shown: Option<Instant>,
    /// Whether it has a place on the screen at all.
    pub(super) is_whole: bool,
    /// The last request that was answered here, if the answer can be taken back.
    pub(super) answered: Option<RequestId>,
    known: Option<BTreeSet<RequestId>>,
    rings: bool,
}

impl Model {
    pub(super) fn new(rings: bool) -> Self {
        Self {
            rows: Vec::new(),
            settled: Vec::new(),
            selected: None,
            offset: 0,
            breadth: Breadth::Exact,
            reason: None,
            mode: Mode::List,
            link: Link::Connecting,
            notice: None,
            shown: None,
            is_whole: true,
            answered: None,
            known: None,
            rings,
        }
    }

    /// Takes an event; the answer is what is to be done.
    pub(super) fn update(&mut self, event: Event, now: Instant) -> Option<Act> {
        match event {
            Event::Key(key) => return self.press(key, now),
            Event::Paste(text) => self.paste(&text),
            Event::Resized => self.disarm(),
            Event::Snapshot(snapshot, clock) => return self.take(snapshot, clock, now),
            Event::Away(why) => {
                self.link = Link::Away(why);
                self.drop_question();
            }
            Event::Answered(id, result) => self.learn(id, result, now),
            Event::Undone(result) => {
                self.notice = Some(match result {
                    Ok(()) => "the last answer is taken back".to_owned(),
                    Err(error) => format!("not taken back: {}", Untrusted(&error)),
                });
            }
            Event::Tick => self.tidy(now),
            Event::Continued => {
                self.disarm();
                return Some(Act::TakeBack);
            }
            Event::End(code) => return Some(Act::Quit(code)),
        }
        None
    }

    /// Tells that this state is on the screen now; `is_whole` says whether nothing was left out that matters.
    pub(super) fn drawn(&mut self, is_whole: bool, now: Instant) {
        self.is_whole = is_whole;
        self.shown = if is_whole { self.shown.or(Some(now)) } else { None };
    }

    /// Tells whether a key may answer: who pressed it has seen what is answered.
    pub(super) fn is_armed(&self, now: Instant) -> bool {
        self.shown.is_some_and(|since| now.saturating_duration_since(since) >= ARMING)
    }

    /// What an answer is about has changed, or moved.
    pub(super) fn disarm(&mut self) {
        self.shown = None;
    }

    pub(super) fn back_to_list(&mut self) {
        self.mode = Mode::List;
        self.disarm();
    }

    /// A question that has lost its sense goes. A line that is being typed stays: its letters must not become keys.
    fn drop_question(&mut self) {
        if matches!(self.mode, Mode::Confirm(..) | Mode::DenyForGood) {
            self.back_to_list();
        }
    }

    /// The selected row.
    pub(super) fn row(&self) -> Option<&Row> {
        self.place().map(|place| &self.rows[place])
    }

    pub(super) fn place(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.rows.iter().position(|row| row.pending.id == *selected)
    }

    pub(super) fn select(&mut self, id: Option<RequestId>) {
        if self.selected != id {
            self.breadth = Breadth::Exact;
            self.reason = None;
            self.notice = None;
        }
        self.selected = id;
        self.back_to_list();
    }

    /// Chooses the rows that are on the screen, of which so many have a place: no others than before if possible.
    pub(super) fn fit(&mut self, visible: usize) {
        let last = self.rows.len().saturating_sub(visible.max(1));
        let offset = self.offset.min(last);
        let offset = match self.place() {
            Some(place) if place < offset => place,
            Some(place) if place >= offset + visible.max(1) => place + 1 - visible.max(1),
            _ => offset,
        };
        if offset != self.offset {
            self.offset = offset;
            self.disarm();
        }
    }

    /// Takes what the guardian says; the bell is for what it did not say before.
    fn take(&mut self, snapshot: Snapshot, clock: Timestamp, now: Instant) -> Option<Act> {
        self.link = Link::Here;
        self.settled = snapshot.settled;
        let known: BTreeSet<RequestId> = snapshot.pending.iter().map(|pending| pending.id.clone()).collect();
        for row in &mut self.rows {
            if !known.contains(&row.pending.id) && !row.has_ended() {
                let settled = self.settled.iter().find(|settled| settled.id == row.pending.id);
                let how = settled.map_or_else(|| "it is gone".to_owned(), outcome);
                row.progress = Progress::Ended(how, now);
            }
        }
        for pending in snapshot.pending.into_iter().rev() {
            let told = (age(pending.created, clock), now);
            match self.rows.iter_mut().find(|row| row.pending.id == pending.id) {
                Some(row) => (row.pending, row.told) = (pending, told),
                None => self.rows.push(Row { pending, progress: Progress::Waiting, told }),
            }
        }
        if self.row().is_none_or(Row::has_ended) {
            self.drop_question();
        }
        self.tidy(now);
        let is_news = self.known.as_ref().is_some_and(|before| !known.is_subset(before));
        self.known = Some(known);
        (is_news && self.rings).then_some(Act::Bell)
    }

    /// Takes ended rows away when that moves nothing that is looked at.
    fn tidy(&mut self, now: Instant) {
        if let Some(Progress::Ended(_, at)) = self.row().map(|row| &row.progress)
            && !matches!(self.mode, Mode::Reason(_))
            && now.saturating_duration_since(*at) >= LINGER
        {
            self.select(None);
        }
        if self.row().is_none() {
            self.rows.retain(|row| !row.has_ended());
        }
    }

    /// Moves the selection to the next request that waits, in this direction; rows that have ended go.
    pub(super) fn go(&mut self, key: Key) {
        let place = self.place();
        let waiting = |row: &&Row| !row.has_ended();
        let (before, after) = match (key, place) {
            (Key::First, _) | (Key::Down, None) => (&[][..], &self.rows[..]),
            (Key::Up, None) | (_, None) => (&self.rows[..], &[][..]),
            (_, Some(place)) => (&self.rows[..place], &self.rows[place + 1..]),
        };
        let own = place.map(|place| &self.rows[place]).filter(waiting);
        let next = match key {
            Key::First => self.rows.iter().find(waiting),
            Key::Last => self.rows.iter().rev().find(waiting),
            Key::Up => before.iter().rev().find(waiting).or(own).or_else(|| after.iter().find(waiting)),
            _ => after.iter().find(waiting).or(own).or_else(|| before.iter().rev().find(waiting)),
        };
        let next = next.map(|row| row.pending.id.clone());
        self.rows.retain(|row| !row.has_ended());
        self.select(next);
    }

    /// What the guardian made of an answer.
    fn learn(&mut self, id: RequestId, result: Result<Settled, String>, now: Instant) {
        let row = self.rows.iter_mut().find(|row| row.pending.id == id);
        match result {
            Ok(settled) => {
                let told = outcome(&settled);
                if let Some(row) = row {
                    row.progress = Progress::Ended(told.clone(), now);
                }
                self.notice = Some(match &settled.problem {
                    Some(problem) => format!("{told}; warning: {}", Untrusted(problem)),
                    None => told,
                });
                self.answered = settled.can_undo.then_some(id);
            }
            Err(error) => {
                if let Some(row) = row.filter(|row| row.progress == Progress::Sending) {
                    row.progress = Progress::Waiting;
                }
                self.notice = Some(format!("not answered: {}", Untrusted(&error)));
                self.disarm();
            }
        }
    }

    /// Marks the selected request as being answered.
    pub(super) fn send(&mut self) {
        if let Some(place) = self.place() {
            self.rows[place].progress = Progress::Sending;
        }
    }
}
