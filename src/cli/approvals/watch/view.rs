//! How `watch` looks. Where things stand follows from the size of the screen alone, so nothing moves by itself.

use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::super::describe::{cut, cut_front, marks, outcome, said, said_shortly};
use super::model::{ARMING, Link, Mode, Model, Progress, Row};
use crate::approval::{Breadth, Outcome, Pending, Scope, Settled};
use crate::cli::output::human_duration;
use crate::policy::Effect;
use crate::text::Untrusted;

/// The smallest screen on which something can be decided.
const MIN_COLUMNS: u16 = 40;
const MIN_ROWS: u16 = 10;

const KEYS: [&str; 9] = [
    "j k ↓ ↑  select a request",
    "a        allow once",
    "s        allow until the stop",
    "p g      allow for good: project, all",
    "d D      deny once, until the stop",
    "x        deny for good",
    "w        also the names beside it",
    "r        reason for a denial",
    "u undo   q quit   any key: back",
];

/// Where the parts stand.
struct Parts {
    title: Rect,
    list: Rect,
    details: Rect,
    log: Rect,
    status: Rect,
}

fn parts(area: Rect) -> Parts {
    let middle = area.height.saturating_sub(2);
    let log = if middle < 14 { 1 } else { 4 };
    let details = (middle / 2).clamp(4, 11);
    let [title, list, details, log, status] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(details),
        Constraint::Length(log),
        Constraint::Length(1),
    ])
    .areas(area);
    Parts { title, list, details, log, status }
}

/// How many requests have a place in the list.
pub(super) fn visible_rows(area: Rect) -> usize {
    let list = parts(area).list;
    usize::from(list.height - header_rows(list))
}

fn header_rows(list: Rect) -> u16 {
    u16::from(list.height > 3)
}

/// How colours are used; nothing is said by a colour alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Theme {
    pub(super) is_colored: bool,
}

impl Theme {
    fn color(self, color: Color) -> Style {
        if self.is_colored { Style::new().fg(color) } else { Style::new() }
    }
}

/// Draws all; tells whether everything that an answer is about has a place.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, theme: Theme, now: Instant) -> bool {
    let area = frame.area();
    if area.width < MIN_COLUMNS || area.height < MIN_ROWS {
        frame.render_widget(Paragraph::new("make the terminal larger: 40 columns, 10 rows"), area);
        return false;
    }
    if model.mode == Mode::Help {
        frame.render_widget(Paragraph::new(KEYS.map(Line::from).to_vec()), area);
        return false;
    }
    let parts = parts(area);
    frame.render_widget(Paragraph::new(title(model, theme)), parts.title);
    frame.render_widget(Paragraph::new(list(model, parts.list, theme, now)), parts.list);
    let (lines, is_whole) = details(model, parts.details, theme, now);
    frame.render_widget(Paragraph::new(lines), parts.details);
    frame.render_widget(Paragraph::new(log(model, parts.log, theme)), parts.log);
    let status = status(model, is_whole, parts.status.width, theme, now);
    frame.render_widget(Paragraph::new(status), parts.status);
    is_whole
}

fn title(model: &Model, theme: Theme) -> Line<'static> {
    let waiting = model.rows.iter().filter(|row| !matches!(row.progress, Progress::Ended(..))).count();
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let name = Span::styled("approvals: ", bold);
    match &model.link {
        Link::Connecting => Line::from(vec![name, Span::raw("connecting to the guardian")]),
        Link::Away(why) => {
            let text = format!("NO GUARDIAN, trying again: {}", Untrusted(why));
            Line::from(vec![name, Span::styled(text, theme.color(Color::Red))])
        }
        Link::Here if waiting == 0 => Line::from(vec![name, Span::raw("nothing waits")]),
        Link::Here => Line::from(vec![name, Span::raw(format!("{waiting} waiting"))]),
    }
}

/// The widths of the columns besides the host's; those that are 0 are left out.
struct Columns {
    id: usize,
    cloister: usize,
    host: usize,
    age: usize,
    waiting: usize,
    said: usize,
}

/// What stands before the first column, and the column that is always there.
const MARK: usize = 2;
const LEFT: usize = 7;

fn columns(width: u16) -> Columns {
    let width = usize::from(width);
    let if_over = |least: usize, column: usize| if width >= least { column } else { 0 };
    let (id, cloister) = (if_over(80, 5), if_over(60, 15));
    let (age, waiting, said) = (if_over(80, 8), if_over(80, 8), if_over(100, width / 4));
    let host = width - MARK - LEFT - id - cloister - age - waiting - said;
    Columns { id, cloister, host, age, waiting, said }
}

impl Columns {
    /// A line of the list; every cell is cut to its column, and a host at its front.
    fn line(&self, mark: &str, cells: [&str; 7]) -> String {
        let [id, cloister, host, age, left, waiting, said] = cells;
        let cell = |text: &str, width: usize| match width {
            0 => String::new(),
            _ => format!("{:width$}", cut(text, width - 1)),
        };
        [
            format!("{mark:MARK$}"),
            cell(id, self.id),
            cell(cloister, self.cloister),
            format!("{:1$}", cut_front(host, self.host - 1), self.host),
            cell(age, self.age),
            cell(left, LEFT),
            cell(waiting, self.waiting),
            cell(said, self.said),
        ]
        .concat()
    }
}

fn list(model: &Model, area: Rect, theme: Theme, now: Instant) -> Vec<Line<'static>> {
    let columns = columns(area.width);
    let mut lines = Vec::new();
    if header_rows(area) > 0 {
        let header = columns.line("", ["ID", "CLOISTER", "HOST", "AGE", "LEFT", "WAITING", "SAID"]);
        lines.push(Line::styled(header, Style::new().add_modifier(Modifier::UNDERLINED)));
    }
    let visible = usize::from(area.height) - lines.len();
    let rows = model.rows.iter().skip(model.offset);
    lines.extend(rows.clone().take(visible).map(|row| list_row(row, model, &columns, theme, now)));
    let more = rows.count().saturating_sub(visible);
    if let Some(last) = lines.last_mut().filter(|_| more > 0) {
        last.push_span(Span::raw(format!(" ↓{more} more")));
        let excess = last.width().saturating_sub(usize::from(area.width));
        if let Some(first) = last.spans.first_mut().filter(|_| excess > 0) {
            first.content = cut(first.content.trim_end(), usize::from(area.width) - 9).into();
        }
    }
    lines
}

fn list_row(row: &Row, model: &Model, columns: &Columns, theme: Theme, now: Instant) -> Line<'static> {
    let Pending { id, cloister, authority, voice, waiting, .. } = &row.pending;
    let is_selected = model.selected.as_ref() == Some(id);
    let left = match &row.progress {
        Progress::Waiting => human_duration(row.left(now)),
        Progress::Sending => "sent".to_owned(),
        Progress::Ended(..) => "ended".to_owned(),
    };
    let cells = [
        &id.as_str()[..4],
        cloister.as_str(),
        &authority.to_string(),
        &human_duration(row.age(now)),
        &left,
        &waiting.to_string(),
        &said_shortly(voice),
    ];
    let text = columns.line(if is_selected { ">" } else { "" }, cells);
    let style = match (&row.progress, is_selected) {
        (Progress::Ended(..), _) => Style::new().add_modifier(Modifier::DIM),
        (_, true) => theme.color(Color::Yellow).add_modifier(Modifier::REVERSED),
        (_, false) => Style::new(),
    };
    Line::styled(text, style)
}

/// What is to be decided; whether it has a place whole, as far as the decision depends on it.
fn details(model: &Model, area: Rect, theme: Theme, now: Instant) -> (Vec<Line<'static>>, bool) {
    let rule = Line::styled("─".repeat(usize::from(area.width)), theme.color(Color::DarkGray));
    let Some(row) = model.row() else {
        let hint = if model.rows.is_empty() { "" } else { "select a request with j or k" };
        return (vec![rule, Line::from(hint)], false);
    };
    let width = usize::from(area.width);
    let needed: Vec<Line<'static>> = essentials(row, model, theme)
        .into_iter()
        .flat_map(|(text, style)| wrap(&text, width).into_iter().map(move |part| Line::styled(part, style)))
        .collect();
    let is_whole = needed.len() < usize::from(area.height);
    let more = circumstances(row, model, now).into_iter().map(Line::from);
    (std::iter::once(rule).chain(needed).chain(more).collect(), is_whole)
}

/// What nobody may answer without having seen it.
fn essentials(row: &Row, model: &Model, theme: Theme) -> Vec<(String, Style)> {
    let Pending { cloister, authority, wildcard, .. } = &row.pending;
    if let Progress::Ended(how, _) = &row.progress {
        return vec![(format!("ended: {how}"), Style::new())];
    }
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let asked = (format!("{cloister} asks for {authority}"), bold);
    let odd = marks(authority);
    let odd = (!odd.is_empty()).then(|| (format!("! {}", odd.join(", ")), theme.color(Color::Red)));
    let wide = wildcard.as_ref().filter(|_| model.breadth == Breadth::Wildcard);
    let wide = wide.map(|wide| (format!("the answer is about ALL of {}", Untrusted(wide)), bold));
    [Some(asked), odd, wide].into_iter().flatten().collect()
}

/// What helps to decide.
fn circumstances(row: &Row, model: &Model, now: Instant) -> Vec<String> {
    let Pending { cloister, project, voice, waiting, exact, wildcard, id, .. } = &row.pending;
    if matches!(row.progress, Progress::Ended(..)) {
        return Vec::new();
    }
    let said = said(voice).map_or_else(|| "it says nothing".to_owned(), |said| format!("unverified: {said}"));
    let reason = model.reason.as_ref().map(|reason| format!("your reason: {}", Untrusted(reason)));
    let patterns = match (wildcard, model.breadth) {
        (Some(wide), Breadth::Exact) => {
            format!("an answer is about {} (w: {})", Untrusted(exact), Untrusted(wide))
        }
        (None, Breadth::Exact) => format!("an answer is about {}", Untrusted(exact)),
        (_, Breadth::Wildcard) => format!("w: back to {} alone", Untrusted(exact)),
    };
    let left = human_duration(row.left(now));
    let scopes = [
        format!("once       what waits now ({waiting}); nothing is written"),
        format!("session    {cloister}, until it is stopped: grants/{cloister}.yaml"),
        format!("project    {project}, for good: decisions/projects/{project}.yaml"),
        "global     every cloister, for good: decisions/global.yaml".to_owned(),
    ];
    [Some(said), reason, Some(patterns), Some(format!("{left} left; request {id}"))]
        .into_iter()
        .flatten()
        .chain(scopes)
        .collect()
}

fn log(model: &Model, area: Rect, theme: Theme) -> Vec<Line<'static>> {
    let last = model.settled.iter().take(usize::from(area.height));
    last.map(|settled| {
        let color = match &settled.outcome {
            Outcome::Answered { answer, .. } if answer.effect == Effect::Allow => Color::Green,
            Outcome::Answered { .. } => Color::Red,
            Outcome::Ruled | Outcome::TimedOut | Outcome::Withdrawn => Color::DarkGray,
        };
        Line::styled(log_line(settled), theme.color(color))
    })
    .collect()
}

fn log_line(settled: &Settled) -> String {
    let time = settled.at.strftime("%H:%M:%SZ");
    let who = match &settled.outcome {
        Outcome::Answered { who, .. } => format!(", by {}", Untrusted(&who.to_string())),
        Outcome::Ruled | Outcome::TimedOut | Outcome::Withdrawn => String::new(),
    };
    format!("{time} {}{who}", outcome(settled))
}

fn status(model: &Model, is_whole: bool, width: u16, theme: Theme, now: Instant) -> Line<'static> {
    let question = theme.color(Color::Yellow).add_modifier(Modifier::BOLD);
    match (&model.mode, &model.notice) {
        (Mode::Reason(text), _) => {
            let shown = Untrusted(text).to_string();
            let place = usize::from(width).saturating_sub(10);
            Line::styled(format!("reason: {}_", cut_front(&shown, place)), question)
        }
        (Mode::Confirm(effect, scope), None) => Line::styled(confirmation(*effect, *scope), question),
        (Mode::DenyForGood, None) => Line::styled("deny for good: p project, g everywhere", question),
        (_, Some(notice)) => Line::from(notice.clone()),
        (Mode::List | Mode::Help, None) if model.row().is_some_and(Row::is_waiting) && !is_whole => {
            Line::styled("make it larger: not all is shown", question)
        }
        (Mode::List | Mode::Help, None) => {
            let keys = if width < 80 {
                "j/k a allow d deny ? keys q quit"
            } else {
                "j/k select  a/s/p/g allow  d/D/x deny  w wildcard  r reason  u undo  ? keys  q quit"
            };
            let is_ready = model.row().is_some_and(Row::is_waiting) && model.is_armed(now);
            let style = if is_ready { Style::new() } else { Style::new().add_modifier(Modifier::DIM) };
            Line::styled(keys, style)
        }
    }
}

fn confirmation(effect: Effect, scope: Scope) -> String {
    let verb = match effect {
        Effect::Allow => "allow",
        Effect::Deny => "deny",
    };
    match scope {
        Scope::Once => format!("y: {verb} once"),
        Scope::Session => format!("y: {verb} until the stop"),
        Scope::Project => format!("y: {verb} for the whole project"),
        Scope::Global => format!("y: {verb} for every cloister"),
    }
}

/// Breaks a text into lines that fit.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for character in text.chars() {
        let own = Span::raw(character.to_string()).width();
        if used + own > width {
            lines.push(String::new());
            used = 0;
        }
        used += own;
        if let Some(last) = lines.last_mut() {
            last.push(character);
        }
    }
    lines
}

/// How long until the view changes by itself.
pub(super) fn next_change() -> Duration {
    ARMING / 2
}
