//! What the pages show, as values and templates. Text of a sandbox is made safe for eyes here, and for HTML by askama.

use std::collections::BTreeSet;

use askama::Template;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse as _, Response};

use super::{Cloister, Desk};
use crate::approval::{Outcome, Scope, Settled, Snapshot};
use crate::name::CloisterName;
use crate::policy::Effect;
use crate::text::Untrusted;

pub(super) use card::{Card, HostView};

mod card;

/// How many cards a page has at most.
const MAX_CARDS: usize = 100;
/// How many requests of one cloister stand alone; with more they are a group (A6).
const MAX_ALONE: usize = 5;
/// How many decisions are shown.
const MAX_DECISIONS: usize = 50;

/// What the desk shows in one moment.
pub(super) struct Board {
    pub(super) snapshot: Snapshot,
    /// The newest requests, as far as they have a place.
    pub(super) cards: Vec<Card>,
    pub(super) cloisters: Vec<CloisterRow>,
    pub(super) problems: Vec<String>,
}

impl Board {
    /// Asks the desk, which may block.
    pub(super) fn of(desk: &dyn Desk) -> Self {
        let snapshot = desk.snapshot();
        let cards = snapshot.pending.iter().take(MAX_CARDS).map(|pending| Card::of(desk, pending)).collect();
        Self { cards, snapshot, cloisters: cloisters(desk), problems: problems(desk) }
    }

    /// Names the cloisters with too many requests to stand alone.
    pub(super) fn crowded(&self) -> BTreeSet<CloisterName> {
        let pending = &self.snapshot.pending;
        let count = |name: &CloisterName| pending.iter().filter(|pending| pending.cloister == *name).count();
        let names: BTreeSet<_> = pending.iter().map(|pending| pending.cloister.clone()).collect();
        names.into_iter().filter(|name| count(name) > MAX_ALONE).collect()
    }

    /// Puts the cards in their order: the newest first, those of a crowded cloister together.
    pub(super) fn list(&self, crowded: &BTreeSet<CloisterName>) -> List {
        let mut blocks: Vec<Block> = Vec::new();
        for card in &self.cards {
            if !crowded.contains(&card.cloister) {
                blocks.push(Block { group: None, cards: vec![card.clone()] });
                continue;
            }
            match blocks.iter_mut().find(|block| block.group.as_ref() == Some(&card.cloister)) {
                Some(block) => block.cards.push(card.clone()),
                None => {
                    blocks.push(Block { group: Some(card.cloister.clone()), cards: vec![card.clone()] });
                }
            }
        }
        List { blocks, more: self.more() }
    }

    /// How many requests have no card.
    pub(super) fn more(&self) -> usize {
        self.snapshot.pending.len() - self.cards.len()
    }

    /// The last decisions, the newest first.
    pub(super) fn decisions(&self) -> Vec<Decision> {
        self.snapshot.settled.iter().take(MAX_DECISIONS).map(Decision::of).collect()
    }
}

/// The cards in their order.
pub(super) struct List {
    pub(super) blocks: Vec<Block>,
    pub(super) more: usize,
}

/// A card that stands alone, or those of a crowded cloister.
pub(super) struct Block {
    pub(super) group: Option<CloisterName>,
    pub(super) cards: Vec<Card>,
}

/// A cloister that runs.
pub(super) struct CloisterRow {
    name: String,
    project: String,
    network: String,
    allowed: u64,
    denied: u64,
    up: String,
    down: String,
    tunnels: usize,
}

pub(super) fn cloisters(desk: &dyn Desk) -> Vec<CloisterRow> {
    let row = |cloister: Cloister| CloisterRow {
        name: Untrusted(&cloister.name).to_string(),
        project: Untrusted(&cloister.project).to_string(),
        network: Untrusted(&cloister.network).to_string(),
        allowed: cloister.allowed,
        denied: cloister.denied,
        up: size(cloister.bytes_up),
        down: size(cloister.bytes_down),
        tunnels: cloister.tunnels,
    };
    desk.cloisters().into_iter().map(row).collect()
}

pub(super) fn problems(desk: &dyn Desk) -> Vec<String> {
    desk.problems().iter().map(|problem| Untrusted(problem).to_string()).collect()
}

/// Writes a number of bytes for eyes.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A request that has ended.
pub(super) struct Decision {
    id: String,
    kind: &'static str,
    text: String,
    host: HostView,
    port: u16,
    cloister: String,
    who: Option<String>,
    reason: Option<String>,
    at: Moment,
    can_undo: bool,
}

impl Decision {
    fn of(settled: &Settled) -> Self {
        let (who, reason) = match &settled.outcome {
            Outcome::Answered { answer, who, .. } => (Some(who.to_string()), answer.reason.as_deref()),
            Outcome::Ruled | Outcome::TimedOut | Outcome::Withdrawn => (None, None),
        };
        Self {
            id: settled.id.to_string(),
            kind: kind(settled),
            text: told(settled),
            host: HostView::of(settled.authority.host()),
            port: settled.authority.port(),
            cloister: settled.cloister.to_string(),
            who: who.map(|who| Untrusted(&who).to_string()),
            reason: reason.map(|reason| Untrusted(reason).to_string()),
            at: Moment::of(settled.at),
            can_undo: settled.can_undo,
        }
    }
}

/// How a request ended, as the style knows it.
pub(super) fn kind(settled: &Settled) -> &'static str {
    match &settled.outcome {
        Outcome::Answered { answer, .. } => match answer.effect {
            Effect::Allow => "allowed",
            Effect::Deny => "denied",
        },
        Outcome::Ruled | Outcome::TimedOut | Outcome::Withdrawn => "over",
    }
}

/// Tells how a request ended, in a sentence.
pub(super) fn told(settled: &Settled) -> String {
    let mut text = match &settled.outcome {
        Outcome::Answered { answer, pattern, .. } => {
            let effect = match answer.effect {
                Effect::Allow => "Allowed",
                Effect::Deny => "Denied",
            };
            let scope = match answer.scope {
                Scope::Once => "once".to_owned(),
                Scope::Session => "for this session".to_owned(),
                Scope::Project => format!("for project {}", settled.project),
                Scope::Global => "for all projects".to_owned(),
            };
            let is_exact = *pattern == settled.authority.to_string();
            let about = if is_exact { String::new() } else { format!(": {}", Untrusted(pattern)) };
            format!("{effect} {scope}{about}")
        }
        Outcome::Ruled => "Decided by a rule".to_owned(),
        Outcome::TimedOut => "Not answered in time".to_owned(),
        Outcome::Withdrawn => "No longer asked for".to_owned(),
    };
    if let Some(problem) = &settled.problem {
        text.push_str(" – ");
        text.push_str(&Untrusted(problem).to_string());
    }
    text
}

/// A point in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moment {
    /// As machines read it.
    pub(super) full: String,
    /// As it is shown until the script puts it in the browser's own time.
    pub(super) clock: String,
}

impl Moment {
    pub(super) fn of(time: jiff::Timestamp) -> Self {
        Self { full: format!("{time:.0}"), clock: time.strftime("%H:%M:%S UTC").to_string() }
    }
}

/// The main page.
#[derive(Template)]
#[template(path = "home.html", config = "src/web/askama.toml")]
pub(super) struct Home<'a> {
    pub(super) count: usize,
    pub(super) list: List,
    pub(super) decisions: Vec<Decision>,
    pub(super) cloisters: Vec<CloisterRow>,
    pub(super) problems: Vec<String>,
    pub(super) csrf: &'a str,
    /// When it is rendered, in milliseconds since the epoch: a form of this page acts when that is a while ago (A5).
    pub(super) shown: Option<i64>,
    pub(super) flash: Option<String>,
}

/// All cards.
#[derive(Template)]
#[template(path = "list.html", config = "src/web/askama.toml")]
pub(super) struct ListPart<'a> {
    pub(super) list: &'a List,
    pub(super) csrf: &'a str,
    /// The script that shows it lets the buttons rest itself.
    pub(super) shown: Option<i64>,
}

/// One card.
#[derive(Template)]
#[template(path = "card.html", config = "src/web/askama.toml")]
pub(super) struct CardPart<'a> {
    pub(super) card: &'a Card,
    pub(super) csrf: &'a str,
    /// The script that shows it lets the buttons rest itself.
    pub(super) shown: Option<i64>,
}

/// The last decisions.
#[derive(Template)]
#[template(path = "decisions.html", config = "src/web/askama.toml")]
pub(super) struct DecisionsPart<'a> {
    pub(super) decisions: &'a [Decision],
    pub(super) csrf: &'a str,
    /// The script that shows it lets the buttons rest itself.
    pub(super) shown: Option<i64>,
}

/// The cloisters that run.
#[derive(Template)]
#[template(path = "cloisters.html", config = "src/web/askama.toml")]
pub(super) struct CloistersPart<'a> {
    pub(super) cloisters: &'a [CloisterRow],
}

/// What is wrong.
#[derive(Template)]
#[template(path = "problems.html", config = "src/web/askama.toml")]
pub(super) struct ProblemsPart<'a> {
    pub(super) problems: &'a [String],
}

/// A small page that says one thing.
#[derive(Template)]
#[template(path = "notice.html", config = "src/web/askama.toml")]
pub(super) struct Notice<'a> {
    pub(super) title: &'a str,
    pub(super) text: &'a str,
    /// Whether it asks for a login: the cookie does not come with a link from elsewhere, so one more try may do.
    pub(super) is_login: bool,
}

/// Renders a template as an answer.
pub(super) fn html(template: &impl Template) -> Response {
    match template.render() {
        Ok(text) => Html(text).into_response(),
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot render a page");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Renders a part of a page.
pub(super) fn part(template: &impl Template) -> String {
    template.render().unwrap_or_else(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "cannot render a part of a page");
        String::new()
    })
}
