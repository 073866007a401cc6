//! The mirror of a configuration file: every value as it was written, with its key and line.

use super::keys::{self, Kind};
use super::problem::Report;
use super::yaml::tree::{Name, Node, Value};

/// Is a value as it was written, and its place.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct Marked<T> {
    pub(super) value: T,
    /// The key with its sections, as in `proxy.allow[2]`.
    pub(super) key: String,
    pub(super) line: Option<usize>,
}

/// Mirrors one file; what is absent is empty.
#[derive(Default, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct Raw {
    pub(super) backend: Option<Marked<String>>,
    pub(super) network: Option<Marked<String>>,
    pub(super) shell: Option<Marked<String>>,
    pub(super) proxy: RawProxy,
    pub(super) approvals: RawApprovals,
    pub(super) files: RawFiles,
    pub(super) refs: Vec<Marked<String>>,
    pub(super) mounts: Vec<RawMount>,
    pub(super) env: RawEnv,
    pub(super) limits: RawLimits,
    pub(super) tools: Vec<Marked<String>>,
    pub(super) audit: RawAudit,
}

/// Mirrors the section `proxy`.
#[derive(Default, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct RawProxy {
    pub(super) allow: Vec<Marked<String>>,
    pub(super) deny: Vec<Marked<String>>,
    pub(super) unlisted: Option<Marked<String>>,
    pub(super) hosts: Vec<(Marked<String>, Vec<Marked<String>>)>,
    pub(super) private: Vec<Marked<String>>,
    pub(super) rate_limit: RawRateLimit,
    pub(super) max_tunnels: Option<Marked<String>>,
    pub(super) idle_timeout: Option<Marked<String>>,
    pub(super) max_duration: Option<Marked<String>>,
    pub(super) upstream: Option<Marked<String>>,
    pub(super) approval_timeout: Option<Marked<String>>,
}

/// Mirrors the section `approvals`.
#[derive(Default, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct RawApprovals {
    pub(super) notify: Option<Marked<bool>>,
    pub(super) bell: Option<Marked<bool>>,
    /// An empty list is not the same as none: it takes back what an earlier file names.
    pub(super) notify_command: Option<Vec<Marked<String>>>,
}

/// Mirrors the section `proxy.rate_limit`.
#[derive(Default, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct RawRateLimit {
    pub(super) per_minute: Option<Marked<String>>,
    pub(super) burst: Option<Marked<String>>,
}

/// Mirrors the section `audit`.
#[derive(Default, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct RawAudit {
    pub(super) per_cloister: Option<Marked<bool>>,
    pub(super) max_size: Option<Marked<String>>,
    pub(super) max_files: Option<Marked<String>>,
}

/// Mirrors the section `files`.
#[derive(Default, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct RawFiles {
    pub(super) protect: Vec<Marked<String>>,
    pub(super) mask: Vec<Marked<String>>,
}

/// Mirrors the section `limits`.
#[derive(Default, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct RawLimits {
    pub(super) memory: Option<Marked<String>>,
    pub(super) cpus: Option<Marked<String>>,
    pub(super) pids: Option<Marked<String>>,
}

/// Mirrors one entry of `mounts`.
#[derive(PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct RawMount {
    /// Where the entry stands.
    pub(super) place: Marked<()>,
    pub(super) source: Option<Marked<String>>,
    pub(super) target: Option<Marked<String>>,
    pub(super) mode: Option<Marked<String>>,
}

/// Mirrors the section `env`.
#[derive(Default, PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct RawEnv {
    pub(super) pass: Vec<Marked<String>>,
    pub(super) set: Vec<(Marked<String>, Marked<String>)>,
}

impl Raw {
    /// Decodes a file's tree; what does not fit is reported and left out.
    pub(super) fn decode(tree: Node, report: &mut Report<'_>) -> Self {
        let mut file = Section::open(tree, "", report);
        let raw = Self {
            backend: file.text("backend"),
            network: file.text("network"),
            shell: file.text("shell"),
            proxy: RawProxy::decode(file.section("proxy")),
            approvals: RawApprovals::decode(file.section("approvals")),
            files: RawFiles::decode(file.section("files")),
            refs: file.texts("refs"),
            mounts: file.mounts("mounts"),
            env: RawEnv::decode(file.section("env")),
            limits: RawLimits::decode(file.section("limits")),
            tools: file.texts("tools"),
            audit: RawAudit::decode(file.section("audit")),
        };
        file.close();
        raw
    }
}

impl RawProxy {
    fn decode(mut section: Section<'_, '_>) -> Self {
        let raw = Self {
            allow: section.texts("allow"),
            deny: section.texts("deny"),
            unlisted: section.text("unlisted"),
            hosts: section.lists_by_name("hosts"),
            private: section.texts("private"),
            rate_limit: RawRateLimit::decode(section.subsection("rate_limit", "proxy.rate_limit")),
            max_tunnels: section.text("max_tunnels"),
            idle_timeout: section.text("idle_timeout"),
            max_duration: section.text("max_duration"),
            upstream: section.text("upstream"),
            approval_timeout: section.text("approval_timeout"),
        };
        section.close();
        raw
    }
}

impl RawApprovals {
    fn decode(mut section: Section<'_, '_>) -> Self {
        let raw = Self {
            notify: section.switch("notify"),
            bell: section.switch("bell"),
            notify_command: section.list("notify_command"),
        };
        section.close();
        raw
    }
}

impl RawRateLimit {
    fn decode(mut section: Section<'_, '_>) -> Self {
        let raw = Self { per_minute: section.text("per_minute"), burst: section.text("burst") };
        section.close();
        raw
    }
}

impl RawAudit {
    fn decode(mut section: Section<'_, '_>) -> Self {
        let raw = Self {
            per_cloister: section.switch("per_cloister"),
            max_size: section.text("max_size"),
            max_files: section.text("max_files"),
        };
        section.close();
        raw
    }
}

impl RawFiles {
    fn decode(mut section: Section<'_, '_>) -> Self {
        let raw = Self { protect: section.texts("protect"), mask: section.texts("mask") };
        section.close();
        raw
    }
}

impl RawLimits {
    fn decode(mut section: Section<'_, '_>) -> Self {
        let raw =
            Self { memory: section.text("memory"), cpus: section.text("cpus"), pids: section.text("pids") };
        section.close();
        raw
    }
}

impl RawEnv {
    fn decode(mut section: Section<'_, '_>) -> Self {
        let raw = Self { pass: section.texts("pass"), set: section.texts_by_name("set") };
        section.close();
        raw
    }
}

/// Is a map of keys from which the known ones are taken; what is left at the end is unknown.
struct Section<'r, 'p> {
    path: &'static str,
    entries: Vec<(Name, Node)>,
    report: &'r mut Report<'p>,
}

impl<'p> Section<'_, 'p> {
    fn open<'r>(node: Node, path: &'static str, report: &'r mut Report<'p>) -> Section<'r, 'p> {
        let entries = match node.value {
            Value::Map(entries) => entries,
            Value::Null => Vec::new(),
            found => {
                let what = format!("expected a map of keys, found {}", found.description());
                let names = keys::listed(&keys::names_in(path));
                report.add(node.line, path, what, Some(format!("the keys known here are {names}")));
                Vec::new()
            }
        };
        Section { path, entries, report }
    }

    fn section(&mut self, name: &'static str) -> Section<'_, 'p> {
        self.subsection(name, name)
    }

    /// Opens the section `name` of this one, whose whole path is `path`.
    fn subsection(&mut self, name: &str, path: &'static str) -> Section<'_, 'p> {
        let node = self.take(name).unwrap_or(Node { line: None, value: Value::Null });
        Section::open(node, path, self.report)
    }

    fn switch(&mut self, name: &str) -> Option<Marked<bool>> {
        let (key, kind) = self.known(name);
        let Node { line, value } = self.take(name)?;
        match value {
            Value::Null => None,
            Value::Bool(value) => Some(Marked { value, key, line }),
            found => {
                self.report.add(line, &key, mismatch(kind, &found), None);
                None
            }
        }
    }

    fn text(&mut self, name: &str) -> Option<Marked<String>> {
        let (key, kind) = self.known(name);
        let Node { line, value } = self.take(name)?;
        match value {
            Value::Null => None,
            Value::Text(value) => Some(Marked { value, key, line }),
            Value::Number(value) if matches!(kind, Kind::Processors | Kind::Count) => {
                Some(Marked { value, key, line })
            }
            found => {
                let repair = match (kind, &found) {
                    (Kind::Duration, Value::Number(_)) => Some("add the unit `s`, `m` or `h`".to_owned()),
                    (Kind::Size, Value::Number(_)) => Some("add the unit `MiB` or `GiB`".to_owned()),
                    _ => None,
                };
                self.report.add(line, &key, mismatch(kind, &found), repair);
                None
            }
        }
    }

    fn texts(&mut self, name: &str) -> Vec<Marked<String>> {
        self.list(name).unwrap_or_default()
    }

    /// Takes a list of texts; nothing when the key is absent.
    fn list(&mut self, name: &str) -> Option<Vec<Marked<String>>> {
        let (key, kind) = self.known(name);
        let node = self.take(name).filter(|node| node.value != Value::Null);
        node.and_then(|node| self.elements(node, &key, kind))
    }

    fn texts_by_name(&mut self, name: &str) -> Vec<(Marked<String>, Marked<String>)> {
        let entries = self.entries_of(name);
        let text = |(name, node): (Marked<String>, Node)| {
            let text = self.free_text(node, &name.key)?;
            Some((name, text))
        };
        entries.into_iter().filter_map(text).collect()
    }

    fn lists_by_name(&mut self, name: &str) -> Vec<(Marked<String>, Vec<Marked<String>>)> {
        let (_, kind) = self.known(name);
        let entries = self.entries_of(name);
        let list = |(name, node): (Marked<String>, Node)| {
            let list = self.elements(node, &name.key, kind)?;
            Some((name, list))
        };
        entries.into_iter().filter_map(list).collect()
    }

    fn mounts(&mut self, name: &str) -> Vec<RawMount> {
        let (key, kind) = self.known(name);
        let Some(Node { line, value }) = self.take(name) else { return Vec::new() };
        match value {
            Value::Null => Vec::new(),
            Value::List(items) => {
                let entries = items.into_iter().enumerate();
                entries.filter_map(|(at, item)| self.mount(item, &format!("{key}[{at}]"))).collect()
            }
            found => {
                self.report.add(line, &key, mismatch(kind, &found), None);
                Vec::new()
            }
        }
    }

    fn mount(&mut self, node: Node, key: &str) -> Option<RawMount> {
        const NAMES: [&str; 3] = ["source", "target", "mode"];
        let Value::Map(entries) = node.value else {
            let what =
                format!("expected a map of {}, found {}", keys::listed(&NAMES), node.value.description());
            self.report.add(node.line, key, what, None);
            return None;
        };
        let place = Marked { value: (), key: key.to_owned(), line: node.line };
        let mut mount = RawMount { place, source: None, target: None, mode: None };
        for (name, node) in entries {
            let field = match name.text.as_str() {
                "source" => &mut mount.source,
                "target" => &mut mount.target,
                "mode" => &mut mount.mode,
                unknown => {
                    let repair = keys::nearest(unknown, &NAMES).map_or_else(
                        || format!("the keys known here are {}", keys::listed(&NAMES)),
                        |near| format!("did you mean `{near}`?"),
                    );
                    self.report.add(name.line, &joined(key, unknown), "is not a known key", Some(repair));
                    continue;
                }
            };
            *field = self.free_text(node, &joined(key, &name.text));
        }
        Some(mount)
    }

    /// Reports what was not taken.
    fn close(self) {
        for (name, _) in self.entries {
            let repair = keys::proposal(self.path, &name.text);
            self.report.add(name.line, &joined(self.path, &name.text), "is not a known key", Some(repair));
        }
    }

    fn entries_of(&mut self, name: &str) -> Vec<(Marked<String>, Node)> {
        let (key, kind) = self.known(name);
        let Some(Node { line, value }) = self.take(name) else {
            return Vec::new();
        };
        match value {
            Value::Null => Vec::new(),
            Value::Map(entries) => {
                let marked = |name: Name| {
                    let key = joined(&key, &name.text);
                    Marked { value: name.text, key, line: name.line }
                };
                entries.into_iter().map(|(name, node)| (marked(name), node)).collect()
            }
            found => {
                self.report.add(line, &key, mismatch(kind, &found), None);
                Vec::new()
            }
        }
    }

    /// Takes the texts of a list; nothing when it is none, which is reported.
    fn elements(&mut self, node: Node, key: &str, kind: Kind) -> Option<Vec<Marked<String>>> {
        match node.value {
            Value::List(items) => {
                let text = |(at, item)| self.free_text(item, &format!("{key}[{at}]"));
                Some(items.into_iter().enumerate().filter_map(text).collect())
            }
            found => {
                let repair = match found {
                    Value::Text(_) => Some("put it in brackets: `[…]`".to_owned()),
                    Value::Null => Some("give the list, or remove the name".to_owned()),
                    _ => None,
                };
                self.report.add(node.line, key, mismatch(kind, &found), repair);
                None
            }
        }
    }

    fn free_text(&mut self, node: Node, key: &str) -> Option<Marked<String>> {
        free_text(self.report, node, key)
    }

    fn known(&self, name: &str) -> (String, Kind) {
        let path = joined(self.path, name);
        let key = keys::key(&path).expect("every key that is decoded stands in the table");
        (path, key.kind)
    }

    fn take(&mut self, name: &str) -> Option<Node> {
        let at = self.entries.iter().position(|(entry, _)| entry.text == name)?;
        Some(self.entries.remove(at).1)
    }
}

/// Takes a value that may be any text, and so has to be recognisable as text.
pub(super) fn free_text(report: &mut Report<'_>, node: Node, key: &str) -> Option<Marked<String>> {
    let Node { line, value } = node;
    match value {
        Value::Text(value) => Some(Marked { value, key: key.to_owned(), line }),
        found => {
            let what = format!("expected text, found {}", found.description());
            let repair = found.lacks_quotes().then(|| "put it in quotes if it is meant as text".to_owned());
            report.add(line, key, what, repair);
            None
        }
    }
}

fn mismatch(kind: Kind, found: &Value) -> String {
    format!("expected {kind}, found {}", found.description())
}

/// Joins a key to its section; a name with other characters than a key's is quoted.
pub(super) fn joined(section: &str, name: &str) -> String {
    let is_plain =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    let name = if is_plain { name.to_owned() } else { format!("\"{name}\"") };
    if section.is_empty() { name } else { format!("{section}.{name}") }
}
