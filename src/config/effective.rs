//! What holds for a project, key by key, and where each value and each entry of a list comes from.
//!
//! The files were validated before; here they are only looked at once more, as they were written. Secrets are left out
//! at once: what is made here is made to be shown.

#[cfg(test)]
mod tests;
mod writing;

use serde::Serialize;

use super::decisions::{self, Decision, Kept, Place};
use super::keys::{KEYS, Key, Kind};
use super::problem::{ConfigError, Problem, Report};
use super::yaml::{self, tree::Node, tree::Value};
use super::{Config, Owner, Source, sources_for};
use crate::name::{CloisterId, CloisterName};
use crate::paths::Paths;
use crate::policy::{DomainName, DomainPattern, Effect, Pattern};

/// Stands in the place of a secret.
const MASK: &str = "…";

/// Holds every setting, with its default where nobody set it.
pub struct Effective {
    settings: Vec<Setting>,
    /// Files of answers that are not used, since they are about another.
    pub unused: Vec<Problem>,
}

/// Tells what is shown of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// The values.
    Values,
    /// The values and where they come from.
    Origins,
}

/// Is one value, or one entry of a list or map, for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The key, as in `proxy.allow`.
    pub key: &'static str,
    /// The name of an entry of a map.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What was written; of a secret only that there is one.
    pub value: serde_json::Value,
    /// Where, as in `config.yaml:3`; `builtin` for what nobody wrote.
    pub origin: String,
    /// When the answer was given, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Who gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// The cloister that had asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloister: Option<String>,
    /// Why, in their words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Is a key and what it holds.
struct Setting {
    key: &'static Key,
    /// Exactly one, unless it is a list or a map.
    entries: Vec<Entry>,
}

/// Is a value and its origin.
struct Entry {
    /// The name, in a map.
    name: Option<String>,
    value: Value,
    origin: String,
    /// What is known of the answer, if it is one.
    decision: Option<Decision>,
}

/// Tells how the values of later files go together with those of earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// The last one holds.
    Single,
    /// All hold.
    List,
    /// The last one holds for each name.
    Map,
}

impl Shape {
    const fn of(kind: Kind) -> Self {
        match kind {
            Kind::Patterns
            | Kind::Names
            | Kind::Variables
            | Kind::ProjectPaths
            | Kind::Globs
            | Kind::HostPaths
            | Kind::StorePaths
            | Kind::Mounts => Self::List,
            Kind::Pins | Kind::Values => Self::Map,
            Kind::Choice(_)
            | Kind::Path
            | Kind::Duration
            | Kind::Size
            | Kind::Processors
            | Kind::Count
            | Kind::Switch
            | Kind::Command
            | Kind::Upstream => Self::Single,
        }
    }
}

impl Effective {
    /// Reads what [`Config::load_for`] reads, and what is granted to a cloister.
    ///
    /// # Errors
    /// All problems of all files.
    pub fn load(
        paths: &Paths,
        project: Option<&Owner>,
        session: Option<(CloisterName, CloisterId)>,
    ) -> Result<Self, ConfigError> {
        let mut effective =
            Self { settings: KEYS.iter().map(Setting::builtin).collect(), unused: Vec::new() };
        let config =
            Config::load_seen(&sources_for(paths, project), |source, tree| effective.add(source, tree))?;
        effective.unused = config.unused;
        if let Some((name, id)) = session {
            let granted = decisions::load(paths, &Place::Session(name, id))?;
            effective.answer(granted.kept);
            effective.unused.extend(granted.foreign);
        }
        Ok(effective)
    }

    /// Gives all values as YAML that could stand in a file of settings.
    pub fn yaml(&self, shown: Shown) -> String {
        writing::yaml(&self.settings, shown)
    }

    /// Gives all values for programs; a list or map without entries is one row.
    pub fn rows(&self) -> Vec<Row> {
        self.settings.iter().flat_map(Setting::rows).collect()
    }

    fn add(&mut self, source: &Source, tree: &Node) {
        if let Some(place) = &source.place {
            // What is wrong with it is reported to whoever reads it for its rules.
            let mut report = Report::new(&source.path);
            return self.answer(decisions::decode(tree.clone(), place, &mut report).kept);
        }
        for setting in &mut self.settings {
            if let Some(node) = find(tree, setting.key.path) {
                setting.add(node, |line| source.location(line));
            }
        }
    }

    fn answer(&mut self, answers: Vec<Kept>) {
        for Kept { decision, location } in answers {
            let path = match decision.effect {
                Effect::Allow => "proxy.allow",
                Effect::Deny => "proxy.deny",
            };
            let value = Value::Text(decision.pattern.to_string());
            let entry = Entry { name: None, value, origin: location, decision: Some(decision) };
            let setting = self.settings.iter_mut().find(|setting| setting.key.path == path);
            setting.expect("there are keys for rules").entries.push(entry);
        }
    }
}

impl Setting {
    /// Holds what nobody wrote.
    fn builtin(key: &'static Key) -> Self {
        let mut setting = Self { key, entries: Vec::new() };
        let mut report = Report::new(std::path::Path::new(""));
        if let Some(default) = yaml::parse(key.default, &mut report) {
            setting.add(&default, |_| "builtin".to_owned());
        }
        if key.path == "proxy.allow" {
            let rules = Config::default().proxy.rules;
            setting.entries.extend(rules.iter().map(|rule| Entry {
                name: None,
                value: Value::Text(rule.to_string()),
                origin: rule.origin().to_string(),
                decision: None,
            }));
        }
        setting
    }

    /// Adds what a file says of the key.
    fn add(&mut self, node: &Node, origin: impl Fn(Option<usize>) -> String) {
        let kind = self.key.kind;
        let entry = |name: Option<String>, value: &Value, line| {
            let value = shown(kind, value);
            Entry { name, value, origin: origin(line), decision: None }
        };
        match (Shape::of(kind), &node.value) {
            (Shape::Single, Value::Null) if !self.entries.is_empty() => {}
            (Shape::Single, value) => self.entries = vec![entry(None, value, node.line)],
            (Shape::List, Value::List(items)) => {
                for item in items {
                    let entry = entry(None, &item.value, item.line);
                    // The same variable twice is the same variable.
                    if kind != Kind::Variables || self.entries.iter().all(|known| known.value != entry.value)
                    {
                        self.entries.push(entry);
                    }
                }
            }
            (Shape::Map, Value::Map(entries)) => {
                for (name, node) in entries {
                    let known = match kind {
                        Kind::Pins => DomainName::parse(&name.text).ok().map(|name| name.to_string()),
                        _ => None,
                    };
                    let entry =
                        entry(Some(known.unwrap_or_else(|| name.text.clone())), &node.value, name.line);
                    self.entries.retain(|known| known.name != entry.name);
                    self.entries.push(entry);
                }
            }
            // What is no list or map was refused when the file was read.
            (Shape::List | Shape::Map, _) => {}
        }
    }

    fn rows(&self) -> Vec<Row> {
        let row = |entry: &Entry| {
            let decision = entry.decision.as_ref();
            Row {
                key: self.key.path,
                name: entry.name.clone(),
                value: json(&entry.value),
                origin: entry.origin.clone(),
                at: decision.and_then(|decision| Some(decision.at?.to_string())),
                who: decision.and_then(|decision| decision.who.clone()),
                cloister: decision.and_then(|decision| Some(decision.cloister.as_ref()?.to_string())),
                reason: decision.and_then(|decision| decision.reason.clone()),
            }
        };
        if self.entries.is_empty() {
            return vec![row(&self.nothing())];
        }
        self.entries.iter().map(row).collect()
    }

    /// Stands for a list or map that nobody wrote anything into.
    fn nothing(&self) -> Entry {
        let value = match Shape::of(self.key.kind) {
            Shape::Map => Value::Map(Vec::new()),
            Shape::List | Shape::Single => Value::List(Vec::new()),
        };
        Entry { name: None, value, origin: "builtin".to_owned(), decision: None }
    }
}

/// Finds what stands at a key.
fn find<'n>(tree: &'n Node, path: &str) -> Option<&'n Node> {
    path.split('.').try_fold(tree, |node, part| match &node.value {
        Value::Map(entries) => entries.iter().find(|(name, _)| name.text == part).map(|(_, node)| node),
        _ => None,
    })
}

/// Gives a value as it may be shown: in its canonical form where there is one, and without secrets.
fn shown(kind: Kind, value: &Value) -> Value {
    let Value::Text(text) = value else { return value.clone() };
    let canonical = match kind {
        Kind::Patterns => Pattern::parse_for(Effect::Deny, text).ok().map(|pattern| pattern.to_string()),
        Kind::Names => DomainPattern::parse(text).ok().map(|pattern| pattern.to_string()),
        Kind::Values => Some(MASK.to_owned()),
        Kind::Upstream => Some(without_password(text)),
        _ => None,
    };
    Value::Text(canonical.unwrap_or_else(|| text.clone()))
}

/// Leaves out the password of `http://user:password@host:port`.
fn without_password(text: &str) -> String {
    let Some((credentials, host)) = text.rsplit_once('@') else { return text.to_owned() };
    let (scheme, user) = credentials.split_once("//").unwrap_or(("", credentials));
    let user = user.split_once(':').map_or("", |(user, _)| user);
    format!("{scheme}//{user}:{MASK}@{host}")
}

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        // As it was written, where JSON does not know the form.
        Value::Number(text) => serde_json::from_str(text).unwrap_or_else(|_| text.clone().into()),
        Value::Text(text) => text.clone().into(),
        // No setting can be written so.
        Value::Ambiguous => serde_json::Value::Null,
        Value::List(items) => items.iter().map(|item| json(&item.value)).collect(),
        Value::Map(entries) => {
            entries.iter().map(|(name, node)| (name.text.clone(), json(&node.value))).collect()
        }
    }
}
