//! The events of the main page: the whole of it first, then what changes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Extension, RawQuery, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::Shared;
use super::gate::{Refusal, Visit, Wants};
use super::routes::at_desk;
use super::sessions::Visitor;
use super::views::{
    self, Board, Card, CardPart, CloistersPart, DecisionsPart, ListPart, ProblemsPart, kind, part, told,
};
use crate::name::CloisterName;

/// How often a silent stream says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How often traffic and problems are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a browser waits before it comes back.
const RETRY: Duration = Duration::from_secs(1);

/// Opens the stream. A page that nobody sees, and that may not notify, says `away`: then somebody else calls.
pub(super) async fn events(
    State(shared): State<Arc<Shared>>,
    Extension(visit): Extension<Visit>,
    RawQuery(query): RawQuery,
) -> Response {
    match Watch::open(&shared, visit.visitor) {
        Ok(watch) => {
            let viewer = Viewer::new(watch, query.as_deref() != Some("away"));
            answer(stream::unfold(viewer, |mut viewer| async {
                viewer.next().await.map(|event| (Ok(event), viewer))
            }))
        }
        Err(refusal) => refusal.answer(Wants::Json),
    }
}

/// Makes a stream of events an answer.
pub(super) fn answer(
    events: impl stream::Stream<Item = Result<Event, Infallible>> + Send + 'static,
) -> Response {
    let name = HeaderName::from_static("x-accel-buffering");
    ([(name, HeaderValue::from_static("no"))], Sse::new(events)).into_response()
}

/// Makes an event of a JSON value.
pub(super) fn event(name: &str, data: &serde_json::Value) -> Event {
    Event::default().event(name).data(data.to_string())
}

/// The right to a stream, and what ends it: the end of the page, of the session, or a logout.
pub(super) struct Watch {
    pub(super) shared: Arc<Shared>,
    pub(super) visitor: Visitor,
    endings: watch::Receiver<u64>,
    ending: watch::Receiver<bool>,
    heartbeat: Interval,
    _place: OwnedSemaphorePermit,
}

impl Watch {
    pub(super) fn open(shared: &Arc<Shared>, visitor: Visitor) -> Result<Self, Refusal> {
        let place = Arc::clone(&shared.streams).try_acquire_owned().map_err(|_| {
            let text = "Too many pages are open; close some.";
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_streams", "Too many pages", text)
        })?;
        Ok(Self {
            endings: shared.sessions.endings(),
            ending: shared.ending.subscribe(),
            heartbeat: every(HEARTBEAT),
            shared: Arc::clone(shared),
            visitor,
            _place: place,
        })
    }

    /// Waits for the next heartbeat; nothing when the stream is over.
    pub(super) async fn beat(&mut self) -> Option<Event> {
        loop {
            if *self.ending.borrow() || !self.shared.sessions.is_alive(&self.visitor.hash) {
                return None;
            }
            // Both senders live with what the pages share.
            tokio::select! {
                _ = self.ending.changed() => {}
                _ = self.endings.changed() => {}
                _ = self.heartbeat.tick() => return Some(event("heartbeat", &json!({}))),
            }
        }
    }
}

/// An interval whose first tick is not at once.
pub(super) fn every(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// One browser that looks at the main page.
struct Viewer {
    watch: Watch,
    changes: watch::Receiver<u64>,
    looks: Interval,
    queue: VecDeque<Event>,
    seen: Option<Seen>,
    /// As long as it is held, somebody looks.
    _look: Option<Box<dyn Send + Sync>>,
}

/// What the browser was told.
struct Seen {
    /// The cards, and what they say of who waits.
    cards: BTreeMap<String, String>,
    crowded: BTreeSet<CloisterName>,
    more: usize,
    decisions: String,
    cloisters: String,
    problems: String,
}

impl Viewer {
    fn new(watch: Watch, is_seen: bool) -> Self {
        let desk = &watch.shared.desk;
        let (mut changes, look) = (desk.changes(), is_seen.then(|| desk.look()));
        changes.mark_changed();
        Self { changes, looks: every(LOOK), queue: VecDeque::new(), seen: None, _look: look, watch }
    }

    /// Gives the next event; nothing when the stream is over.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            tokio::select! {
                changed = self.changes.changed() => {
                    changed.ok()?;
                    let board = at_desk(&self.watch.shared, Board::of).await.ok()?;
                    self.take(&board);
                }
                beat = self.watch.beat() => return beat,
                _ = self.looks.tick() => {
                    let look = at_desk(&self.watch.shared, |desk| (views::cloisters(desk), views::problems(desk)));
                    let (cloisters, problems) = look.await.ok()?;
                    let cloisters = part(&CloistersPart { cloisters: &cloisters });
                    self.take_sides(cloisters, part(&ProblemsPart { problems: &problems }));
                }
            }
        }
    }

    fn say(&mut self, name: &str, data: &serde_json::Value) {
        self.queue.push_back(event(name, data));
    }

    /// Tells the browser what is new of a board.
    fn take(&mut self, board: &Board) {
        let csrf = self.watch.visitor.csrf.clone();
        let decisions = part(&DecisionsPart { decisions: &board.decisions(), csrf: &csrf, shown: None });
        let cloisters = part(&CloistersPart { cloisters: &board.cloisters });
        let problems = part(&ProblemsPart { problems: &board.problems });
        let count = board.snapshot.pending.len();
        let cards = board.cards.iter().map(|card| (card.id.clone(), card.waiting.clone())).collect();
        let Some(seen) = self.seen.take() else {
            let crowded = board.crowded();
            let list = part(&ListPart { list: &board.list(&crowded), csrf: &csrf, shown: None });
            let data = json!({
                "version": board.snapshot.version, "csrf": csrf, "count": count, "list": list, "decisions": decisions,
                "cloisters": cloisters, "problems": problems,
            });
            self.queue.push_back(event("sync", &data).retry(RETRY));
            self.seen = Some(Seen { cards, crowded, more: board.more(), decisions, cloisters, problems });
            return;
        };
        self.tell_ended(&seen, board);
        let crowded = still_crowded(&seen.crowded, board);
        let is_regrouped = crowded.iter().any(|name| !seen.crowded.contains(name));
        if is_regrouped || (board.more() > 0 || seen.more > 0) && cards != seen.cards {
            let list = part(&ListPart { list: &board.list(&crowded), csrf: &csrf, shown: None });
            self.say("list", &json!({ "count": count, "list": list }));
        } else {
            for card in board.cards.iter().rev().filter(|card| !seen.cards.contains_key(&card.id)) {
                self.say("added", &added(card, &csrf, count));
            }
        }
        for card in &board.cards {
            if seen.cards.get(&card.id).is_some_and(|waiting| *waiting != card.waiting) {
                self.say("changed", &json!({ "id": card.id, "waiting": card.waiting }));
            }
        }
        if decisions != seen.decisions {
            self.say("decisions", &json!({ "html": decisions }));
        }
        let more = board.more();
        self.seen = Some(Seen { cards, crowded, more, decisions, ..seen });
        self.take_sides(cloisters, problems);
    }

    fn tell_ended(&mut self, seen: &Seen, board: &Board) {
        let count = board.snapshot.pending.len();
        for id in seen.cards.keys() {
            if board.snapshot.pending.iter().any(|pending| pending.id.as_str() == id) {
                continue;
            }
            let settled = board.snapshot.settled.iter().find(|settled| settled.id.as_str() == id);
            let (kind, text) = match settled {
                Some(settled) => (kind(settled), told(settled)),
                None => ("over", "It is over".to_owned()),
            };
            self.say("ended", &json!({ "id": id, "kind": kind, "text": text, "count": count }));
        }
    }

    /// Tells what changed beside the requests.
    fn take_sides(&mut self, cloisters: String, problems: String) {
        let Some(seen) = &mut self.seen else { return };
        let is_other = |told: &mut String, now: String| {
            let is_other = *told != now;
            *told = now;
            is_other
        };
        let (cloisters_changed, problems_changed) =
            (is_other(&mut seen.cloisters, cloisters), is_other(&mut seen.problems, problems));
        if cloisters_changed {
            let html = seen.cloisters.clone();
            self.queue.push_back(event("cloisters", &json!({ "html": html })));
        }
        if problems_changed {
            let html = seen.problems.clone();
            self.queue.push_back(event("problems", &json!({ "html": html })));
        }
    }
}

/// A cloister that has been crowded stays a group until nothing of it waits: cards do not jump for every answer.
fn still_crowded(before: &BTreeSet<CloisterName>, board: &Board) -> BTreeSet<CloisterName> {
    let waits =
        |name: &&CloisterName| board.snapshot.pending.iter().any(|pending| pending.cloister == **name);
    before.iter().filter(waits).cloned().chain(board.crowded()).collect()
}

fn added(card: &Card, csrf: &str, count: usize) -> serde_json::Value {
    json!({
        "id": card.id,
        "html": part(&CardPart { card, csrf, shown: None }),
        "cloister": card.cloister.as_str(),
        "host": format!("{}{}:{}", card.host.front, card.host.registrable, card.port),
        "count": count,
    })
}
