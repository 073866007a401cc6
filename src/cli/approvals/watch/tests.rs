//! Keys, arming, selection and pictures, with made-up time.

use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;
use serde_json::json;

use super::model::{ARMING, Act, Event, Key, LINGER, Mode, Model, Progress};
use super::view::{self, Theme};
use crate::approval::{Answer, Breadth, Pending, RequestId, Scope, Settled, Snapshot};
use crate::policy::Effect;

/// A user in front of a screen.
struct User {
    model: Model,
    now: Instant,
    columns: u16,
    rows: u16,
    pending: Vec<Pending>,
    settled: Vec<Settled>,
}

fn id(number: u32) -> RequestId {
    RequestId::parse(&format!("{number:08x}00000000")).unwrap()
}

fn pending(number: u32, authority: &str) -> Pending {
    let wildcard = authority.starts_with("api.").then(|| authority.replace("api.", "*."));
    serde_json::from_value(json!({
        "id": id(number), "cloister": "demo-main", "project": "demo", "branch": "main", "authority": authority,
        "voice": {"connection": {"user_agent": "curl/8.5"}}, "created": "2026-11-22T20:00:00Z",
        "expires": "2026-11-22T20:01:00Z", "left_ms": 50_000, "waiting": 1, "exact": authority,
        "wildcard": wildcard,
    }))
    .unwrap()
}

fn settled(number: u32, authority: &str, effect: &str, who: &serde_json::Value) -> Settled {
    serde_json::from_value(json!({
        "id": id(number), "cloister": "demo-main", "project": "demo", "authority": authority,
        "outcome": {"answered": {
            "answer": {"effect": effect, "scope": "session", "breadth": "exact", "reason": null},
            "pattern": authority, "who": who,
        }},
        "at": "2026-11-22T20:00:30Z", "problem": null, "can_undo": true,
    }))
    .unwrap()
}

impl User {
    fn new(hosts: &[&str]) -> Self {
        let mut user = Self {
            model: Model::new(true),
            now: Instant::now(),
            columns: 80,
            rows: 24,
            pending: Vec::new(),
            settled: Vec::new(),
        };
        for (number, host) in hosts.iter().enumerate() {
            user.pending.push(pending(u32::try_from(number).unwrap(), host));
        }
        user.hears();
        user.looks();
        user
    }

    fn event(&mut self, event: Event) -> Option<Act> {
        self.model.update(event, self.now)
    }

    /// The guardian tells what there is.
    fn hears(&mut self) -> Option<Act> {
        let snapshot = Snapshot {
            version: 1,
            pending: self.pending.iter().rev().cloned().collect(),
            settled: self.settled.clone(),
        };
        self.event(Event::Snapshot(snapshot, "2026-11-22T20:00:10Z".parse().unwrap()))
    }

    /// A request ends.
    fn ends(&mut self, number: u32) {
        self.pending.retain(|pending| pending.id != id(number));
        self.hears();
    }

    /// Sees the screen as it is now.
    fn looks(&mut self) -> String {
        self.sees(Theme { is_colored: false }).backend().to_string()
    }

    fn sees(&mut self, theme: Theme) -> Terminal<TestBackend> {
        let mut terminal = Terminal::new(TestBackend::new(self.columns, self.rows)).unwrap();
        self.model.fit(view::visible_rows((0, 0, self.columns, self.rows).into_rect()));
        let mut is_whole = false;
        terminal.draw(|frame| is_whole = view::draw(frame, &self.model, theme, self.now)).unwrap();
        self.model.drawn(is_whole, self.now);
        terminal
    }

    fn waits(&mut self, time: Duration) {
        self.now += time;
        self.event(Event::Tick);
        self.looks();
    }

    fn presses(&mut self, key: char) -> Option<Act> {
        self.event(Event::Key(Key::Char(key)))
    }

    /// Presses a key after having looked for long enough.
    fn decides(&mut self, key: char) -> Option<Act> {
        self.looks();
        self.waits(ARMING);
        let act = self.presses(key);
        self.looks();
        act
    }

    #[track_caller]
    fn is_told(&self, part: &str) {
        let notice = self.model.notice.as_deref().unwrap_or_default();
        assert!(notice.contains(part), "{notice:?}");
    }

    /// The line of the screen on which a text stands.
    fn line_of(&mut self, text: &str) -> Option<usize> {
        self.looks().lines().position(|line| line.contains(text))
    }
}

trait IntoRect {
    fn into_rect(self) -> ratatui::layout::Rect;
}

impl IntoRect for (u16, u16, u16, u16) {
    fn into_rect(self) -> ratatui::layout::Rect {
        ratatui::layout::Rect::new(self.0, self.1, self.2, self.3)
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with what a key does")]
fn answer(number: u32, effect: Effect, scope: Scope) -> Option<Act> {
    let answer = Answer { effect, scope, breadth: Breadth::Exact, reason: None };
    Some(Act::Answer(id(number), answer))
}

#[test]
fn every_key_answers_what_it_says() {
    for (keys, effect, scope) in [
        ("a", Effect::Allow, Scope::Once),
        ("s", Effect::Allow, Scope::Session),
        ("py", Effect::Allow, Scope::Project),
        ("gy", Effect::Allow, Scope::Global),
        ("d", Effect::Deny, Scope::Once),
        ("D", Effect::Deny, Scope::Session),
        ("xp", Effect::Deny, Scope::Project),
        ("xg", Effect::Deny, Scope::Global),
    ] {
        let mut user = User::new(&["a.test:443", "b.test:443"]);
        user.presses('j');
        user.presses('j');
        let acts: Vec<Option<Act>> = keys.chars().map(|key| user.decides(key)).collect();
        let (last, before) = acts.split_last().unwrap();
        assert_eq!(*last, answer(1, effect, scope), "{keys}");
        assert!(before.iter().all(Option::is_none), "{keys}");
        // It is answered once.
        assert_eq!(user.decides('a'), None);
        user.is_told("on its way");
    }
}

#[test]
fn a5_nothing_is_selected_by_itself_and_nothing_answers_without_a_selection() {
    let mut user = User::new(&["a.test:443"]);
    for key in ['a', 's', 'd', 'D', 'y'] {
        assert_eq!(user.decides(key), None);
    }
    for key in ['p', 'g', 'x', 'r'] {
        assert_eq!(user.decides(key), None);
        assert_eq!(user.model.mode, Mode::List, "{key}");
    }
    assert_eq!(user.model.selected, None);
    user.is_told("select a request first");
}

#[test]
fn a5_a_key_answers_only_what_was_shown_for_half_a_second() {
    let mut user = User::new(&["a.test:443", "b.test:443"]);
    user.presses('j');
    assert_eq!(user.presses('a'), None, "typed ahead");
    user.is_told("too soon");
    // Time alone does not do: it has to be on the screen.
    user.now += ARMING * 2;
    assert_eq!(user.presses('a'), None);
    user.looks();
    user.waits(ARMING.saturating_sub(Duration::from_millis(1)));
    assert_eq!(user.presses('a'), None);
    // Moving on begins anew.
    user.waits(Duration::from_millis(1));
    user.presses('j');
    assert_eq!(user.presses('a'), None);
    assert_eq!(user.decides('a'), answer(1, Effect::Allow, Scope::Once));
}

#[test]
fn a5_an_answer_that_lasts_wants_a_second_key_that_was_not_typed_ahead() {
    let mut user = User::new(&["a.test:443"]);
    user.presses('j');
    assert_eq!(user.decides('p'), None);
    assert_eq!(user.presses('y'), None, "it was typed with the first");
    assert_eq!(user.model.mode, Mode::Confirm(Effect::Allow, Scope::Project));
    assert_eq!(user.decides('y'), answer(0, Effect::Allow, Scope::Project));
    // Every other key is a no, the first one held down too.
    for no in [Key::Char('p'), Key::Char('n'), Key::Enter, Key::Escape, Key::Char(' '), Key::Char('Y')] {
        let mut user = User::new(&["a.test:443"]);
        user.presses('j');
        user.decides('p');
        user.waits(ARMING);
        assert_eq!(user.event(Event::Key(no)), None, "{no:?}");
        assert_eq!(user.model.mode, Mode::List);
        user.is_told("nothing was answered");
        assert_eq!(user.decides('y'), None);
    }
}

#[test]
fn a5_a_pasted_text_answers_nothing() {
    let mut user = User::new(&["a.test:443"]);
    user.presses('j');
    user.waits(ARMING);
    assert_eq!(user.event(Event::Paste("a".to_owned())), None);
    user.is_told("pasted");
    assert_eq!(user.presses('a'), None, "what follows a paste at once is none either");
    user.decides('p');
    user.event(Event::Paste("y".to_owned()));
    assert!(user.model.rows[0].is_waiting());
    assert_eq!(user.model.mode, Mode::Confirm(Effect::Allow, Scope::Project));
}

#[test]
fn a5_the_selection_stays_with_its_request_and_on_its_line() {
    let mut user = User::new(&["a.test:443", "b.test:443", "c.test:443"]);
    user.presses('j');
    user.presses('j');
    let line = user.line_of("> ").unwrap();
    // One comes, the one above ends.
    user.pending.push(pending(3, "d.test:443"));
    user.ends(0);
    assert_eq!(user.model.selected, Some(id(1)));
    assert_eq!(user.line_of("> "), Some(line));
    assert!(user.looks().contains("ended"), "the row above keeps its place");
    assert_eq!(user.decides('a'), answer(1, Effect::Allow, Scope::Once));
}

#[test]
fn a5_when_the_selected_one_ends_no_key_answers_another() {
    let mut user = User::new(&["a.test:443", "b.test:443", "c.test:443"]);
    user.presses('j');
    user.presses('j');
    user.waits(ARMING);
    user.ends(1);
    for key in ['a', 's', 'd', 'D', 'p', 'g', 'x', 'y'] {
        assert_eq!(user.decides(key), None, "{key}");
    }
    user.is_told("has ended");
    // It stays for a while, and then nothing is selected.
    assert!(user.looks().contains("ended: it is gone"));
    user.waits(LINGER);
    assert_eq!((user.model.selected.clone(), user.model.rows.len()), (None, 2));
    assert_eq!(user.decides('a'), None);
    // A key moves on, to the next one below.
    let mut user = User::new(&["a.test:443", "b.test:443", "c.test:443"]);
    user.presses('j');
    user.presses('j');
    user.ends(1);
    user.presses('j');
    assert_eq!(user.model.selected, Some(id(2)));
    assert_eq!(user.presses('a'), None, "it was not on the screen yet");
}

#[test]
fn a5_a_question_ends_with_its_request() {
    for key in ['p', 'x'] {
        let mut user = User::new(&["a.test:443", "b.test:443"]);
        user.presses('j');
        user.decides(key);
        assert_ne!(user.model.mode, Mode::List);
        user.ends(0);
        assert_eq!(user.model.mode, Mode::List);
        assert_eq!([user.decides('y'), user.decides('p'), user.decides('g')], [None, None, None]);
    }
}

#[test]
fn a5_the_letters_of_a_reason_are_never_keys() {
    let mut user = User::new(&["a.test:443", "b.test:443"]);
    user.presses('j');
    user.decides('r');
    user.presses('n');
    // The request ends while its reason is typed, and lingers no longer.
    user.ends(0);
    user.waits(LINGER * 2);
    for key in ['j', 'a', 'y', 'q'] {
        assert_eq!(user.decides(key), None);
    }
    assert_eq!(user.model.mode, Mode::Reason("njayq".to_owned()));
    user.event(Event::Away("no".to_owned()));
    assert_eq!(user.model.mode, Mode::Reason("njayq".to_owned()));
    user.event(Event::Key(Key::Escape));
    assert_eq!(user.model.mode, Mode::List);
}

#[test]
fn a_denial_has_the_reason_that_was_typed_and_an_allowance_has_none() {
    let mut user = User::new(&["a.test:443"]);
    user.presses('j');
    user.decides('r');
    for key in "noX".chars() {
        user.presses(key);
    }
    user.event(Event::Key(Key::Backspace));
    user.event(Event::Paste(" ads\u{1b}[2J\n".to_owned()));
    user.event(Event::Key(Key::Enter));
    assert_eq!(user.presses('d'), None, "Enter and a key after it were typed in one go");
    let denied = user.decides('d');
    let Some(Act::Answer(_, answer)) = denied else { panic!("{denied:?}") };
    assert_eq!((answer.effect, answer.reason.as_deref()), (Effect::Deny, Some("no ads [2J")));
    user.event(Event::Answered(id(0), Err("busy".to_owned())));
    let allowed = user.decides('a');
    let Some(Act::Answer(_, answer)) = allowed else { panic!("{allowed:?}") };
    assert_eq!((answer.effect, answer.reason), (Effect::Allow, None));
}

#[test]
fn n5_n6_a_wildcard_is_seen_before_it_is_answered_and_only_where_it_is_offered() {
    let mut user = User::new(&["api.example.org:443", "me.github.io:443"]);
    user.presses('j');
    user.waits(ARMING);
    user.presses('w');
    assert_eq!(user.presses('s'), None, "it was not on the screen yet");
    assert!(user.looks().contains("the answer is about ALL of *.example.org:443"));
    assert_eq!(user.decides('a'), None);
    user.is_told("for an answer that lasts");
    let answered = user.decides('s');
    let Some(Act::Answer(_, answer)) = answered else { panic!("{answered:?}") };
    assert_eq!((answer.scope, answer.breadth), (Scope::Session, Breadth::Wildcard));
    // It is chosen for each request anew.
    user.presses('j');
    assert_eq!(user.model.breadth, Breadth::Exact);
    user.presses('w');
    assert_eq!(user.model.breadth, Breadth::Exact);
    user.is_told("github.io is shared");
}

#[test]
fn nothing_is_answered_while_the_guardian_is_away_and_all_is_anew_when_it_is_back() {
    let mut user = User::new(&["a.test:443", "b.test:443"]);
    user.presses('j');
    user.waits(ARMING);
    user.event(Event::Away("the guardian is not running".to_owned()));
    assert_eq!(user.decides('a'), None);
    user.is_told("away");
    assert!(user.looks().contains("NO GUARDIAN, trying again: the guardian is not running"));
    user.ends(0);
    assert!(user.looks().contains("1 waiting"));
    assert_eq!(user.decides('a'), None);
}

#[test]
fn an_answer_can_be_taken_back_once() {
    let mut user = User::new(&["a.test:443"]);
    assert_eq!(user.decides('u'), None);
    user.is_told("no answer from here");
    user.presses('j');
    user.decides('s');
    let done = settled(0, "a.test:443", "allow", &json!({"terminal": 1000}));
    user.event(Event::Answered(id(0), Ok(done.clone())));
    user.is_told("allowed a.test:443 for demo-main, until it is stopped");
    assert_eq!(user.presses('u'), Some(Act::Undo(id(0))));
    assert_eq!(user.presses('u'), None);
    user.event(Event::Undone(Ok(())));
    user.is_told("taken back");
    user.event(Event::Undone(Err("too late".to_owned())));
    user.is_told("not taken back: too late");
    // What the guardian does not take back is not offered.
    user.event(Event::Answered(id(0), Ok(Settled { can_undo: false, ..done })));
    assert_eq!(user.presses('u'), None);
}

#[test]
fn what_could_not_be_kept_or_answered_is_told() {
    let mut user = User::new(&["a.test:443"]);
    user.presses('j');
    user.decides('s');
    assert_eq!(user.model.rows[0].progress, Progress::Sending);
    user.event(Event::Answered(id(0), Err("it is gone\u{1b}".to_owned())));
    user.is_told("not answered: it is gone\\u{1b}");
    assert!(user.model.rows[0].is_waiting());
    user.decides('s');
    let mut done = settled(0, "a.test:443", "allow", &json!({"terminal": 1000}));
    done.problem = Some("the disk is full".to_owned());
    user.event(Event::Answered(id(0), Ok(done)));
    user.is_told("warning: the disk is full");
}

#[test]
fn the_bell_rings_for_what_is_new_and_only_if_wished() {
    let mut user = User::new(&["a.test:443"]);
    assert_eq!(user.hears(), None);
    user.pending.push(pending(7, "b.test:443"));
    assert_eq!(user.hears(), Some(Act::Bell));
    assert_eq!(user.hears(), None);
    user.pending.clear();
    assert_eq!(user.hears(), None);
    user.model = Model::new(false);
    user.hears();
    user.pending.push(pending(8, "c.test:443"));
    assert_eq!(user.hears(), None);
}

#[test]
fn keys_move_among_what_waits() {
    let mut user = User::new(&["a.test:443", "b.test:443", "c.test:443"]);
    let mut goes = |key| {
        user.event(Event::Key(key));
        user.model.place().unwrap()
    };
    let keys = [Key::Up, Key::Up, Key::First, Key::Up, Key::Down, Key::Last, Key::Down, Key::Char('k')];
    assert_eq!(keys.map(&mut goes), [2, 1, 0, 0, 1, 2, 2, 1]);
}

#[test]
fn many_requests_scroll_with_the_selection_only() {
    let hosts: Vec<String> = (0..40).map(|number| format!("h{number}.test:443")).collect();
    let mut user = User::new(&hosts.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(user.looks().contains("more"));
    user.event(Event::Key(Key::Last));
    assert!(user.line_of("h39.test").is_some());
    assert_eq!(user.decides('a'), answer(39, Effect::Allow, Scope::Once));
    // A smaller screen shows the selected one, too, and begins anew.
    user.presses('k');
    user.looks();
    user.waits(ARMING);
    (user.columns, user.rows) = (40, 10);
    user.event(Event::Resized);
    user.looks();
    assert!(user.line_of("> ").is_some());
    assert_eq!(user.presses('a'), None);
    assert_eq!(user.decides('a'), answer(38, Effect::Allow, Scope::Once));
}

#[test]
fn a5_what_has_no_place_on_the_screen_is_not_answered() {
    let long = format!("{}.example.org:443", "long-label.".repeat(18).trim_end_matches('.'));
    let mut user = User::new(&[&long]);
    (user.columns, user.rows) = (40, 10);
    user.presses('j');
    assert_eq!(user.decides('a'), None);
    user.is_told("larger");
    user.columns = 200;
    user.event(Event::Resized);
    assert_eq!(user.decides('a'), answer(0, Effect::Allow, Scope::Once));
    // Nor behind the list of keys, nor on a tiny screen.
    let mut user = User::new(&["a.test:443"]);
    user.presses('j');
    user.waits(ARMING);
    user.presses('?');
    assert_eq!(user.decides('a'), None);
    (user.columns, user.rows) = (39, 10);
    assert_eq!(user.decides('a'), None);
    assert!(user.looks().contains("make the terminal larger"));
}

#[test]
fn signals_and_keys_end_it() {
    let mut user = User::new(&["a.test:443"]);
    assert_eq!(user.event(Event::End(143)), Some(Act::Quit(143)));
    assert_eq!(user.presses('q'), Some(Act::Quit(0)));
    user.presses('j');
    user.decides('p');
    assert_eq!(user.event(Event::Key(Key::Interrupt)), Some(Act::Quit(130)));
    assert_eq!(user.event(Event::Key(Key::Suspend)), Some(Act::Suspend));
    assert_eq!(user.event(Event::Continued), Some(Act::TakeBack));
    assert_eq!(user.presses('y'), None, "what was typed meanwhile was typed for somebody else");
}

/// Everything that a sandbox can say, in the worst way.
fn nasty() -> User {
    let mut user = User::new(&["api.example.org:443", "bücher.github.io:8443", "192.0.2.1:443"]);
    user.pending[1].voice = serde_json::from_value(json!({"polite": {
        "reason": "to build\u{1b}]0;x\u{7}\u{1b}[2J\r\n\u{202e}gpj.exe\u{200b}"
    }}))
    .unwrap();
    user.settled = vec![
        settled(9, "c.test:443", "deny", &json!({"page": "1a2b"})),
        settled(8, "d.test:443", "allow", &json!({"terminal": 1000})),
    ];
    user.hears();
    user
}

#[test]
fn a1_pictures() {
    let mut user = nasty();
    user.presses('j');
    user.presses('j');
    user.waits(Duration::from_secs(3));
    insta::assert_snapshot!("wide", user.looks());
    (user.columns, user.rows) = (40, 10);
    insta::assert_snapshot!("narrow", user.looks());
    (user.columns, user.rows) = (120, 30);
    user.presses('k');
    user.presses('w');
    insta::assert_snapshot!("large", user.looks());
    user.decides('p');
    (user.columns, user.rows) = (40, 10);
    insta::assert_snapshot!("question", user.looks());
    user.event(Event::Key(Key::Escape));
    user.presses('?');
    insta::assert_snapshot!("keys", user.looks());
}

#[test]
fn a1_no_cell_of_the_screen_holds_what_steers_or_hides() {
    for (columns, rows) in [(200, 50), (80, 24), (40, 10)] {
        let mut user = nasty();
        (user.columns, user.rows) = (columns, rows);
        user.presses('j');
        user.presses('j');
        for cell in &user.sees(Theme { is_colored: true }).backend().buffer().content {
            for character in cell.symbol().chars() {
                let is_hidden = matches!(character, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}');
                assert!(!character.is_control() && !is_hidden, "{character:?}");
            }
        }
    }
}

#[test]
fn without_colours_there_are_none() {
    for is_colored in [true, false] {
        let mut user = nasty();
        user.presses('j');
        let terminal = user.sees(Theme { is_colored });
        let colored = terminal.backend().buffer().content.iter().any(|cell| cell.fg != Color::Reset);
        assert_eq!(colored, is_colored);
    }
}
