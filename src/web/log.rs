//! The audit log as a page: the last records that a filter takes, and those that come.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use askama::Template;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::response::sse::Event as ServerEvent;
use futures_util::stream;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Interval;

use super::Shared;
use super::gate::{Refusal, Visit, Wants};
use super::live::{self, Watch, every};
use super::routes::with_forms;
use super::views::{self, Moment, part};
use crate::audit::{Entry, Event, Filter, ReadError, Reader};
use crate::name::CloisterName;
use crate::text::{Untrusted, with_causes};

/// How many records are shown.
const MAX_ROWS: usize = 200;
/// How often the log is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How long the log is read at a stretch; between two of them a viewer who went away ends it.
const STRETCH: Duration = Duration::from_millis(100);
/// How long the last records are looked for.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest text of a filter.
const MAX_FILTER: usize = 260;

/// What the form asks for; an empty field takes everything.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wish {
    #[serde(default)]
    cloister: String,
    #[serde(default)]
    event: String,
    #[serde(default)]
    host: String,
}

/// A wish that can be followed. It is not given to the reader: that would look for the next fit without a pause.
#[derive(Debug, Clone)]
struct Choice {
    cloister: Option<CloisterName>,
    event: Option<Event>,
    /// What the host contains, in lower case.
    host: String,
}

impl Choice {
    fn of(wish: &Wish) -> Result<Self, String> {
        let [cloister, event, host] = [&wish.cloister, &wish.event, &wish.host].map(|text| text.trim());
        if cloister.len().max(event.len()).max(host.len()) > MAX_FILTER {
            return Err("the filter is too long".to_owned());
        }
        let cloister = (!cloister.is_empty()).then(|| CloisterName::parse(cloister)).transpose();
        let event = (!event.is_empty()).then(|| event.parse::<Event>()).transpose();
        Ok(Self {
            cloister: cloister.map_err(|error| error.to_string())?,
            event: event.map_err(|error| error.to_string())?,
            host: host.to_ascii_lowercase(),
        })
    }

    fn takes(&self, entry: &Entry) -> bool {
        let host = entry.host.as_deref().unwrap_or_default();
        (self.cloister.is_none() || self.cloister == entry.cloister)
            && self.event.is_none_or(|event| event == entry.event)
            && host.to_ascii_lowercase().contains(&self.host)
    }
}

/// A record as a row shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    seq: u64,
    time: Moment,
    event: &'static str,
    kind: &'static str,
    cloister: String,
    target: String,
    /// The rest of the record.
    detail: String,
}

impl Row {
    fn of(entry: &Entry) -> Self {
        let target = match (&entry.host, entry.port) {
            (Some(host), Some(port)) if host.contains(':') => format!("[{host}]:{port}"),
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.clone(),
            (None, _) => String::new(),
        };
        // The record's own display knows the rest; what has a column of its own is left out of it.
        let mut rest = Entry { cloister: None, project: None, host: None, ..entry.clone() };
        if entry.host.is_some() {
            rest.port = None;
        }
        let front = format!("{:.0} {}", rest.time, rest.event);
        let detail = rest.to_string().strip_prefix(&front).unwrap_or_default().trim_start().to_owned();
        Self {
            seq: entry.seq,
            time: Moment::of(entry.time),
            event: entry.event.name(),
            kind: kind(entry.event),
            cloister: entry.cloister.as_ref().map(ToString::to_string).unwrap_or_default(),
            target: Untrusted(&target).to_string(),
            detail,
        }
    }

    /// A line that is no record.
    fn damaged(error: &ReadError) -> Self {
        let detail = Untrusted(&with_causes(error)).to_string();
        let time = Moment { full: String::new(), clock: String::new() };
        let (cloister, target) = (String::new(), String::new());
        Self { seq: 0, time, event: "unreadable", kind: "denied", cloister, target, detail }
    }
}

fn kind(event: Event) -> &'static str {
    match event {
        Event::ProxyAllow => "allowed",
        Event::ProxyDeny | Event::SandboxLink | Event::AuditRecovered | Event::AuditRemoved => "denied",
        Event::ProxyAsk | Event::ApprovalDecided | Event::ConfigTrust => "asked",
        _ => "other",
    }
}

#[derive(Template)]
#[template(path = "log.html", config = "src/web/askama.toml")]
struct LogPage<'a> {
    rows: VecDeque<Row>,
    cloister: &'a str,
    host: &'a str,
    events: Vec<Choosable>,
    problem: Option<String>,
    csrf: &'a str,
}

/// An event that can be chosen.
struct Choosable {
    name: &'static str,
    is_chosen: bool,
}

#[derive(Template)]
#[template(path = "rows.html", config = "src/web/askama.toml")]
struct RowsPart<'a> {
    rows: &'a VecDeque<Row>,
}

/// Reads the log to its end, and on when it grows.
struct Tail {
    file: PathBuf,
    choice: Choice,
    since: Option<Timestamp>,
    reader: Option<Reader>,
    /// What was found and not yet taken; the last ones.
    rows: VecDeque<Row>,
    is_caught_up: bool,
}

impl Tail {
    /// Finds the last records. The log may be long and is read from its beginning, so it is tried with the last hour
    /// first, for which most files can be left out.
    async fn latest(file: PathBuf, choice: Choice) -> Result<Self, String> {
        let start = Instant::now();
        let now = Timestamp::now();
        for window in [Some(1), Some(24), Some(7 * 24), None] {
            let since = window.and_then(|hours| now.checked_sub(SignedDuration::from_hours(hours)).ok());
            let (file, choice) = (file.clone(), choice.clone());
            let mut tail =
                Self { file, choice, since, reader: None, rows: VecDeque::new(), is_caught_up: false };
            while !tail.is_caught_up {
                if start.elapsed() > PATIENCE {
                    return Err(
                        "the log is too long to be searched here; `cloister audit` does it".to_owned()
                    );
                }
                tail = tail.read().await?;
            }
            if tail.rows.len() >= MAX_ROWS || since.is_none() {
                return Ok(tail);
            }
        }
        Err("the log could not be read".to_owned())
    }

    /// Reads on for a while, where it may block.
    async fn read(mut self) -> Result<Self, String> {
        let read = tokio::task::spawn_blocking(move || {
            let result = self.read_stretch().map_err(|error| with_causes(&error));
            result.map(|()| self)
        });
        read.await.unwrap_or_else(|_| Err("reading the log broke off".to_owned()))
    }

    fn read_stretch(&mut self) -> Result<(), ReadError> {
        let start = Instant::now();
        if self.reader.is_none() {
            let filter = Filter { since: self.since, ..Filter::default() };
            match Reader::open(&self.file, filter) {
                Ok(reader) => self.reader = Some(reader),
                Err(ReadError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        self.is_caught_up = false;
        while start.elapsed() < STRETCH {
            let row = match self.reader.as_mut().and_then(Iterator::next) {
                None => {
                    self.is_caught_up = true;
                    break;
                }
                Some(Ok(entry)) if self.choice.takes(&entry) => Row::of(&entry),
                Some(Ok(_)) => continue,
                Some(Err(error @ ReadError::NotAnEntry { .. })) => Row::damaged(&error),
                Some(Err(error)) => return Err(error),
            };
            if self.rows.len() >= MAX_ROWS {
                self.rows.pop_front();
            }
            self.rows.push_back(row);
        }
        Ok(())
    }
}

/// The page, which works without a script.
pub(super) async fn page(
    State(shared): State<Arc<Shared>>,
    Extension(visit): Extension<Visit>,
    Query(wish): Query<Wish>,
) -> Response {
    let found = match Choice::of(&wish) {
        Ok(choice) => Tail::latest(shared.desk.audit_file(), choice).await.map(|tail| tail.rows),
        Err(problem) => Err(problem),
    };
    let (rows, problem) = match found {
        Ok(rows) => (rows, None),
        Err(problem) => (VecDeque::new(), Some(Untrusted(&problem).to_string())),
    };
    let choosable = |event: &Event| Choosable { name: event.name(), is_chosen: event.name() == wish.event };
    with_forms(views::html(&LogPage {
        rows,
        cloister: &wish.cloister,
        host: &wish.host,
        events: Event::ALL.iter().map(choosable).collect(),
        problem,
        csrf: &visit.visitor.csrf,
    }))
}

/// The live view: what the page shows, then what comes.
pub(super) async fn events(
    State(shared): State<Arc<Shared>>,
    Extension(visit): Extension<Visit>,
    Query(wish): Query<Wish>,
) -> Response {
    let choice = Choice::of(&wish)
        .map_err(|text| Refusal::new(StatusCode::BAD_REQUEST, "unfit", "Not a filter", text));
    match choice.and_then(|choice| Ok((choice, Watch::open(&shared, visit.visitor)?))) {
        Ok((choice, watch)) => {
            let follower = Follower { watch, choice, tail: None, looks: every(LOOK) };
            live::answer(stream::unfold(follower, |mut follower| async {
                follower.next().await.map(|event| (Ok(event), follower))
            }))
        }
        Err(refusal) => refusal.answer(Wants::Json),
    }
}

/// One browser that follows the log.
struct Follower {
    watch: Watch,
    choice: Choice,
    tail: Option<Tail>,
    looks: Interval,
}

impl Follower {
    async fn next(&mut self) -> Option<ServerEvent> {
        loop {
            let Some(mut tail) = self.tail.take() else {
                let file = self.watch.shared.desk.audit_file();
                let tail = Tail::latest(file, self.choice.clone()).await.ok()?;
                return Some(self.show("sync", tail));
            };
            tokio::select! {
                beat = self.watch.beat() => {
                    self.tail = Some(tail);
                    return beat;
                }
                _ = self.looks.tick() => {}
            }
            tail = tail.read().await.ok()?;
            if !tail.rows.is_empty() {
                return Some(self.show("rows", tail));
            }
            self.tail = Some(tail);
        }
    }

    fn show(&mut self, name: &str, mut tail: Tail) -> ServerEvent {
        let rows = std::mem::take(&mut tail.rows);
        self.tail = Some(tail);
        live::event(name, &json!({ "html": part(&RowsPart { rows: &rows }) }))
    }
}
