//! What each key does. Only what has been seen is answered (A5).

use std::time::Instant;

use super::super::describe::{cut, no_wildcard};
use super::model::{Act, Key, Link, Mode, Model, Progress};
use crate::approval::{Answer, Breadth, Scope};
use crate::policy::Effect;

/// The longest reason for a denial, in characters.
const REASON_CHARACTERS: usize = 200;
/// The exit code after Ctrl-C.
const INTERRUPTED: u8 = 130;

impl Model {
    pub(super) fn press(&mut self, key: Key, now: Instant) -> Option<Act> {
        match key {
            Key::Interrupt => return Some(Act::Quit(INTERRUPTED)),
            Key::Suspend => {
                self.disarm();
                return Some(Act::Suspend);
            }
            _ => {}
        }
        match self.mode.clone() {
            Mode::List => self.press_in_list(key, now),
            Mode::Confirm(effect, scope) => {
                let is_yes = key == Key::Char('y');
                self.decide(is_yes.then_some((effect, scope)), now)
            }
            Mode::DenyForGood => {
                let scope = match key {
                    Key::Char('p') => Some(Scope::Project),
                    Key::Char('g') => Some(Scope::Global),
                    _ => None,
                };
                self.decide(scope.map(|scope| (Effect::Deny, scope)), now)
            }
            Mode::Reason(text) => {
                self.edit(text, key);
                None
            }
            Mode::Help => {
                self.back_to_list();
                None
            }
        }
    }

    /// A text that was put in is no answer: only a reason takes it.
    pub(super) fn paste(&mut self, text: &str) {
        if let Mode::Reason(reason) = &self.mode {
            let plain = text.chars().map(|character| if character.is_control() { ' ' } else { character });
            let whole: String = reason.chars().chain(plain).take(REASON_CHARACTERS).collect();
            self.mode = Mode::Reason(whole);
        } else {
            self.notice = Some("a pasted text answers nothing".to_owned());
            self.disarm();
        }
    }

    fn press_in_list(&mut self, key: Key, now: Instant) -> Option<Act> {
        match key {
            Key::Char('q') => return Some(Act::Quit(0)),
            Key::Char('?') => {
                self.mode = Mode::Help;
                self.disarm();
            }
            Key::Char('j') => self.go(Key::Down),
            Key::Char('k') => self.go(Key::Up),
            Key::Up | Key::Down | Key::First | Key::Last => self.go(key),
            Key::Char('a') => return self.answer(Effect::Allow, Scope::Once, now),
            Key::Char('s') => return self.answer(Effect::Allow, Scope::Session, now),
            Key::Char('p') => self.ask(Mode::Confirm(Effect::Allow, Scope::Project), now),
            Key::Char('g') => self.ask(Mode::Confirm(Effect::Allow, Scope::Global), now),
            Key::Char('d') => return self.answer(Effect::Deny, Scope::Once, now),
            Key::Char('D') => return self.answer(Effect::Deny, Scope::Session, now),
            Key::Char('x') => self.ask(Mode::DenyForGood, now),
            Key::Char('w') => self.widen(),
            Key::Char('r') => {
                let reason = self.reason.clone().unwrap_or_default();
                self.ask(Mode::Reason(reason), now);
            }
            Key::Char('u') => return self.undo(),
            _ => {}
        }
        None
    }

    /// Why the selected request can't be answered now, if it can't.
    fn obstacle(&self, now: Instant) -> Option<&'static str> {
        let Some(row) = self.row() else { return Some("select a request first, with j or k") };
        match (&row.progress, &self.link) {
            (Progress::Ended(..), _) => Some("this request has ended"),
            (Progress::Sending, _) => Some("the answer is on its way"),
            (Progress::Waiting, Link::Connecting | Link::Away(_)) => Some("the guardian is away"),
            (Progress::Waiting, Link::Here) if !self.is_whole => Some("make the terminal larger first"),
            (Progress::Waiting, Link::Here) if !self.is_armed(now) => {
                Some("too soon after the change: look, then press again")
            }
            (Progress::Waiting, Link::Here) => None,
        }
    }

    /// Goes to a question about the selected request.
    fn ask(&mut self, mode: Mode, now: Instant) {
        match self.obstacle(now) {
            Some(obstacle) => self.notice = Some(obstacle.to_owned()),
            None => {
                self.mode = mode;
                self.notice = None;
                self.disarm();
            }
        }
    }

    /// The second key of an answer that lasts; everything but a clear yes is a no.
    fn decide(&mut self, answer: Option<(Effect, Scope)>, now: Instant) -> Option<Act> {
        match answer {
            // It was typed before the question was seen, and the question stays.
            Some(_) if !self.is_armed(now) => {
                self.notice = self.obstacle(now).map(str::to_owned);
                None
            }
            Some((effect, scope)) => {
                let act = self.answer(effect, scope, now);
                self.back_to_list();
                act
            }
            None => {
                self.back_to_list();
                self.notice = Some("nothing was answered".to_owned());
                None
            }
        }
    }

    fn answer(&mut self, effect: Effect, scope: Scope, now: Instant) -> Option<Act> {
        if let Some(obstacle) = self.obstacle(now) {
            self.notice = Some(obstacle.to_owned());
            return None;
        }
        let id = self.selected.clone()?;
        let reason = self.reason.clone().filter(|_| effect == Effect::Deny);
        self.send();
        self.notice = None;
        self.disarm();
        Some(Act::Answer(id, Answer { effect, scope, breadth: self.breadth, reason }))
    }

    /// Changes between the one host and all beside it.
    fn widen(&mut self) {
        let Some(row) = self.row().filter(|row| row.is_waiting()) else {
            self.notice = Some("select a request that waits first".to_owned());
            return;
        };
        match (&row.pending.wildcard, self.breadth) {
            (None, _) => self.notice = Some(no_wildcard(&row.pending)),
            (Some(_), Breadth::Exact) => self.breadth = Breadth::Wildcard,
            (Some(_), Breadth::Wildcard) => self.breadth = Breadth::Exact,
        }
        self.disarm();
    }

    fn undo(&mut self) -> Option<Act> {
        let answered = self.answered.take();
        if answered.is_none() {
            self.notice = Some("there is no answer from here that can be taken back".to_owned());
        }
        answered.map(Act::Undo)
    }

    fn edit(&mut self, mut text: String, key: Key) {
        match key {
            Key::Char(character) if !character.is_control() => text.push(character),
            Key::Backspace => drop(text.pop()),
            Key::Escape => return self.back_to_list(),
            Key::Enter => {
                self.reason = Some(text.trim().to_owned()).filter(|reason| !reason.is_empty());
                return self.back_to_list();
            }
            _ => {}
        }
        self.mode = Mode::Reason(cut(&text, REASON_CHARACTERS));
    }
}
