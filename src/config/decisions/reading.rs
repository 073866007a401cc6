//! A file's tree to answers: what does not fit is reported with its line and left out.

use std::fmt::Display;
use std::str::FromStr;

use super::{Decision, Kept, Loaded, Place};
use crate::config::keys;
use crate::config::problem::{Problem, Report};
use crate::config::raw::{Marked, free_text, joined};
use crate::config::yaml::tree::{Name, Node, Value};
use crate::name::{CloisterName, InvalidName};
use crate::policy::{Effect, Pattern};

/// What an answer is written with.
const FIELDS: [&str; 5] = ["pattern", "at", "who", "cloister", "reason"];

/// Decodes the tree of the file of `place`.
pub(in crate::config) fn decode(tree: Node, place: &Place, report: &mut Report<'_>) -> Loaded {
    let mut reader = Reader { place, report };
    let header = place.header().map(|(key, _)| key);
    let known: Vec<&str> = header.into_iter().chain(["allow", "deny"]).collect();
    let mut foreign = None;
    let mut is_owned = header.is_none();
    let (mut allowed, mut denied) = (Vec::new(), Vec::new());
    for (name, node) in reader.fields(tree, "", &known) {
        match name.text.as_str() {
            "allow" => allowed = reader.decisions(node, Effect::Allow),
            "deny" => denied = reader.decisions(node, Effect::Deny),
            _ => {
                is_owned = true;
                foreign = reader.header(node, &name);
            }
        }
    }
    let mut kept = allowed;
    kept.append(&mut denied);
    if let Some((key, _)) = place.header().filter(|_| !is_owned && !kept.is_empty()) {
        reader.report.add(
            None,
            key,
            "is missing: nothing says whose file this is",
            Some(reader.own_header()),
        );
    }
    if foreign.is_some() {
        kept.clear();
    }
    Loaded { kept, foreign }
}

struct Reader<'r, 'p> {
    place: &'r Place,
    report: &'r mut Report<'p>,
}

impl Reader<'_, '_> {
    /// Takes the known entries of a map and reports the others.
    fn fields(&mut self, node: Node, key: &str, known: &[&str]) -> Vec<(Name, Node)> {
        let entries = match node.value {
            Value::Map(entries) => entries,
            Value::Null if key.is_empty() => Vec::new(),
            found => {
                let what =
                    format!("expected a map of {}, found {}", keys::listed(known), found.description());
                self.report.add(node.line, key, what, None);
                return Vec::new();
            }
        };
        let (fit, unknown): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|(name, _)| known.contains(&name.text.as_str()));
        for (name, _) in unknown {
            let repair = keys::nearest(&name.text, known).map_or_else(
                || format!("the keys known here are {}", keys::listed(known)),
                |near| format!("did you mean `{near}`?"),
            );
            self.report.add(name.line, &joined(key, &name.text), "is not a known key", Some(repair));
        }
        fit
    }

    /// Reads whose the file is; gives the problem when it is another's.
    fn header(&mut self, node: Node, name: &Name) -> Option<Problem> {
        let (_, expected) = self.place.header()?;
        let known: Vec<&str> = expected.iter().map(|(field, _)| *field).collect();
        let before = self.report.len();
        let fields = self.fields(node, &name.text, &known);
        let mut found = Vec::new();
        for (field, node) in fields {
            let key = joined(&name.text, &field.text);
            if let Some(text) = free_text(self.report, node, &key) {
                found.push((field.text, text.value));
            }
        }
        if self.report.len() > before {
            return None;
        }
        let value = |wanted: &str| found.iter().find(|(field, _)| field == wanted).map(|(_, value)| value);
        if known.iter().any(|field| value(field).is_none()) {
            let what = format!("needs {}", keys::listed(&known));
            self.report.add(name.line, &name.text, what, Some(self.own_header()));
            return None;
        }
        // A project may be known by several names; what it is, is its directory.
        let counts = |field: &str| !matches!((self.place, field), (Place::Project(_), "name"));
        let is_own =
            expected.iter().all(|(field, expected)| !counts(field) || value(field) == Some(expected));
        if is_own {
            return None;
        }
        let owner = known.iter().filter_map(|field| Some(format!("{field} `{}`", value(field)?)));
        let owner: Vec<String> = owner.collect();
        let what = format!("belongs to another {} ({}), so nothing in it holds", name.text, owner.join(", "));
        Some(Problem {
            path: self.report.path().to_owned(),
            line: name.line,
            key: name.text.clone(),
            what,
            repair: Some("move the file away; answers then begin a new one".to_owned()),
        })
    }

    /// Says how the file would have to say whose it is.
    fn own_header(&self) -> String {
        let (key, fields) = self.place.header().unwrap_or_default();
        let fields: Vec<String> =
            fields.iter().map(|(name, value)| format!("{name}: {}", super::quoted(value))).collect();
        format!("write `{key}: {{{}}}`", fields.join(", "))
    }

    fn decisions(&mut self, node: Node, effect: Effect) -> Vec<Kept> {
        let key = effect.name();
        match node.value {
            Value::Null => Vec::new(),
            Value::List(items) => {
                let items = items.into_iter().enumerate();
                items.filter_map(|(at, item)| self.decision(item, effect, &format!("{key}[{at}]"))).collect()
            }
            found => {
                let what = format!("expected a list of answers, found {}", found.description());
                let repair = r#"write each on a line such as `- {pattern: "example.com:443"}`"#.to_owned();
                self.report.add(node.line, key, what, Some(repair));
                Vec::new()
            }
        }
    }

    fn decision(&mut self, node: Node, effect: Effect, key: &str) -> Option<Kept> {
        let line = node.line;
        let is_bare = matches!(node.value, Value::Text(_));
        if is_bare {
            let repair = r#"write it such as `{pattern: "example.com:443"}`"#.to_owned();
            self.report.add(line, key, "expected a map of keys, found text", Some(repair));
            return None;
        }
        let before = self.report.len();
        let (mut pattern, mut at, mut who, mut cloister, mut reason) = (None, None, None, None, None);
        for (name, node) in self.fields(node, key, &FIELDS) {
            let Some(text) = free_text(self.report, node, &joined(key, &name.text)) else { continue };
            match name.text.as_str() {
                "pattern" => pattern = self.read(&text, |text| Pattern::parse_for(effect, text)),
                "at" => at = self.read(&text, time),
                "cloister" => cloister = self.read(&text, cloister_name),
                "who" => who = Some(text.value),
                _ => reason = Some(text.value),
            }
        }
        let is_whole = self.report.len() == before;
        let Some(pattern) = pattern else {
            if is_whole {
                let repair = r#"write what it is about, such as `pattern: "example.com:443"`"#.to_owned();
                self.report.add(line, key, "has no `pattern`", Some(repair));
            }
            return None;
        };
        let location =
            line.map_or_else(|| self.place.label(), |line| format!("{}:{line}", self.place.label()));
        Some(Kept { decision: Decision { effect, pattern, at, who, cloister, reason }, location })
    }

    /// Reads a text by its parser, or reports what it says.
    fn read<T, E: Display>(
        &mut self,
        written: &Marked<String>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        match parse(&written.value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.report.add(written.line, &written.key, error.to_string(), None);
                None
            }
        }
    }
}

fn time(text: &str) -> Result<jiff::Timestamp, String> {
    jiff::Timestamp::from_str(text).map_err(|_| {
        format!("`{text}` is no time; write one such as `2026-01-31T20:00:00Z`, or leave it out")
    })
}

fn cloister_name(text: &str) -> Result<CloisterName, InvalidName> {
    CloisterName::parse(text)
}
