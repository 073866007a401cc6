//! YAML text to a tree: one document, no anchors, no tags, no doubled keys, nothing coerced.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::problem::Report;
use tree::{Name, Node, Value};

pub(super) mod tree;

/// Bounds how deep values may be nested; the schema needs four levels.
const MAX_DEPTH: usize = 16;

/// Parses a file's text; nothing is returned when its problems leave no tree to look at.
pub(super) fn parse(text: &str, report: &mut Report<'_>) -> Option<Node> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if !holds_only_text(text, report) {
        return None;
    }
    let mut builder = Builder { report, stack: Vec::new(), documents: 0, root: None };
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => builder.take(event, span)?,
            Err(error) => {
                let line = Some(error.marker().line());
                builder.report.add(line, "", format!("is not valid YAML: {}", error.info()), None);
                return None;
            }
        }
    }
    Some(builder.root.unwrap_or(Node { line: None, value: Value::Null }))
}

/// Refuses control characters: the parser takes a NUL for the end of the file.
fn holds_only_text(text: &str, report: &mut Report<'_>) -> bool {
    let is_control = |character: char| character.is_control() && !matches!(character, '\t' | '\n' | '\r');
    let Some((at, character)) = text.char_indices().find(|(_, character)| is_control(*character)) else {
        return true;
    };
    let line = text[..at].matches('\n').count() + 1;
    report.add(Some(line), "", format!("holds the control character U+{:04X}", u32::from(character)), None);
    false
}

struct Builder<'r, 'p> {
    report: &'r mut Report<'p>,
    stack: Vec<Frame>,
    documents: usize,
    root: Option<Node>,
}

/// Is a list or map that is still open.
enum Frame {
    List {
        line: usize,
        items: Vec<Node>,
    },
    Map {
        line: usize,
        entries: Vec<(Name, Node)>,
        /// The names so far and their lines.
        names: BTreeMap<String, usize>,
        next: Next,
    },
}

/// Is what comes next in a map.
enum Next {
    Name,
    Value(Name),
    /// The value of a name that was refused.
    Refused,
}

impl Builder<'_, '_> {
    /// Takes one event; `None` ends the parsing.
    fn take(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        let line = span.start.line();
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            Event::DocumentStart(_) => self.begin_document(line)?,
            Event::Alias(_) => {
                self.refuse_anchor(line);
                self.complete(Node { line: Some(line), value: Value::Null });
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.check(line, anchor, tag.is_some());
                self.complete(Node { line: Some(line), value: scalar(&text, style) });
            }
            Event::SequenceStart(anchor, tag) => {
                self.check(line, anchor, tag.is_some());
                self.open(line, Frame::List { line, items: Vec::new() })?;
            }
            Event::MappingStart(anchor, tag) => {
                self.check(line, anchor, tag.is_some());
                self.open(
                    line,
                    Frame::Map { line, entries: Vec::new(), names: BTreeMap::new(), next: Next::Name },
                )?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let node = match self.stack.pop()? {
                    Frame::List { line, items } => Node { line: Some(line), value: Value::List(items) },
                    Frame::Map { line, entries, .. } => Node { line: Some(line), value: Value::Map(entries) },
                };
                self.complete(node);
            }
        }
        Some(())
    }

    fn begin_document(&mut self, line: usize) -> Option<()> {
        self.documents += 1;
        if self.documents > 1 {
            self.refuse(line, "begins a second document", Some("remove the line `---`".to_owned()));
            return None;
        }
        Some(())
    }

    fn open(&mut self, line: usize, frame: Frame) -> Option<()> {
        if self.stack.len() == MAX_DEPTH {
            self.refuse(line, format!("is nested more than {MAX_DEPTH} levels deep"), None);
            return None;
        }
        self.stack.push(frame);
        Some(())
    }

    /// Puts a finished node where it belongs.
    fn complete(&mut self, node: Node) {
        match self.stack.last_mut() {
            None => self.root = Some(node),
            Some(Frame::List { items, .. }) => items.push(node),
            Some(Frame::Map { entries, names, next, .. }) => match std::mem::replace(next, Next::Name) {
                Next::Value(name) => entries.push((name, node)),
                Next::Refused => {}
                Next::Name => {
                    *next = match name(node, names) {
                        Ok(name) => Next::Value(name),
                        Err((line, what, repair)) => {
                            *next = Next::Refused;
                            return self.refuse(line, what, repair);
                        }
                    }
                }
            },
        }
    }

    fn check(&mut self, line: usize, anchor: usize, has_tag: bool) {
        if anchor != 0 {
            self.refuse_anchor(line);
        }
        if has_tag {
            let repair = "remove the word that begins with `!`, or quote it if it is text".to_owned();
            self.refuse(line, "has a tag, which is not supported here", Some(repair));
        }
    }

    fn refuse_anchor(&mut self, line: usize) {
        let repair = "write the value out, or quote it if it is text".to_owned();
        self.refuse(line, "has an anchor (`&`) or alias (`*`), which is not supported here", Some(repair));
    }

    fn refuse(&mut self, line: usize, what: impl Into<String>, repair: Option<String>) {
        let names: Vec<_> = self.stack.iter().filter_map(Frame::name).collect();
        let key = names.join(".");
        self.report.add(Some(line), &key, what, repair);
    }
}

impl Frame {
    /// Names the entry that is being read.
    fn name(&self) -> Option<&str> {
        match self {
            Self::Map { next: Next::Value(name), .. } => Some(&name.text),
            Self::Map { .. } | Self::List { .. } => None,
        }
    }
}

/// Reads the name of the next entry, or says in which line what is wrong with it and how to mend it.
fn name(node: Node, names: &mut BTreeMap<String, usize>) -> Result<Name, (usize, String, Option<String>)> {
    let line = node.line.unwrap_or_default();
    match node.value {
        Value::Text(text) => {
            if let Some(first) = names.get(&text) {
                let what = format!("sets the key `{text}` a second time; the first time is in line {first}");
                return Err((line, what, Some("keep one of the two".to_owned())));
            }
            names.insert(text.clone(), line);
            Ok(Name { text, line: node.line })
        }
        value => {
            let repair = value.lacks_quotes().then(|| "put it in quotes if it is meant as a name".to_owned());
            Err((line, format!("has {} as a key, where a name belongs", value.description()), repair))
        }
    }
}

/// Reads a scalar by YAML's core schema; only what is unquoted can be anything but text.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::Text(text.to_owned());
    }
    let is_ambiguous = || ["yes", "no", "on", "off"].iter().any(|word| text.eq_ignore_ascii_case(word));
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if is_number(text) => Value::Number(text.to_owned()),
        _ if is_ambiguous() => Value::Ambiguous,
        _ => Value::Text(text.to_owned()),
    }
}

/// Tells whether a text means itself without quotes; whether it may stand so is another question.
pub(super) fn is_plain_text(text: &str) -> bool {
    matches!(scalar(text, ScalarStyle::Plain), Value::Text(_))
}

fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_based = |prefix, radix| {
        unsigned.strip_prefix(prefix).is_some_and(|digits: &str| {
            !digits.is_empty() && digits.chars().all(|digit: char| digit.is_digit(radix))
        })
    };
    let is_special = matches!(unsigned, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN");
    let is_decimal = unsigned.starts_with(|first: char| first.is_ascii_digit() || first == '.')
        && unsigned.parse::<f64>().is_ok();
    is_special || is_decimal || is_based("0x", 16) || is_based("0o", 8)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::{Report, Value, parse};
    use crate::config::problem::Problem;
    use crate::config::yaml::tree::Node;

    fn read(text: &str) -> (Option<Node>, Vec<Problem>) {
        let mut report = Report::new(Path::new("f"));
        let tree = parse(text, &mut report);
        (tree, report.into_problems())
    }

    #[track_caller]
    fn check_value(text: &str, expected: &Value) {
        let (tree, problems) = read(text);
        assert_eq!(problems, []);
        assert_eq!(&tree.unwrap().value, expected, "{text}");
    }

    #[track_caller]
    fn check_refused(text: &str, expected: &[&str]) {
        let problems: Vec<_> = read(text).1.iter().map(ToString::to_string).collect();
        assert_eq!(problems, expected, "{text:?}");
    }

    #[test]
    fn scalars_are_read_without_coercion() {
        for text in ["", "# nothing", "---", "~", "null", "\u{feff}"] {
            check_value(text, &Value::Null);
        }
        for text in
            ["1", "-1", "+1", "010", "1.5", ".5", "1e3", "0x1f", "0o17", ".inf", "-.INF", ".nan", "443"]
        {
            check_value(text, &Value::Number(text.to_owned()));
        }
        for text in ["true", "False"] {
            check_value(text, &Value::Bool(text.eq_ignore_ascii_case("true")));
        }
        for text in ["yes", "No", "ON", "off"] {
            check_value(text, &Value::Ambiguous);
        }
        for text in ["a", "10.1.2.3", "10m", "1_0", "::1", "inf", "nan", "-", "0xg", "example.com:443"] {
            let quoted = if text == "-" { "'-'" } else { text };
            check_value(quoted, &Value::Text(text.to_owned()));
        }
        for quoted in ["'yes'", "\"yes\"", "|-\n  yes", ">-\n  yes"] {
            check_value(quoted, &Value::Text("yes".to_owned()));
        }
    }

    #[test]
    fn every_node_knows_its_line() {
        let (tree, _) = read("# first\na:\n  - x\n  - y\n\nb: {c: d}\n");
        let Value::Map(entries) = tree.unwrap().value else { panic!() };
        let Value::List(items) = &entries[0].1.value else { panic!() };
        assert_eq!(entries[0].0.line, Some(2));
        assert_eq!(items.iter().map(|item| item.line).collect::<Vec<_>>(), [Some(3), Some(4)]);
        assert_eq!(entries[1].0.line, Some(6));
    }

    #[test]
    fn what_is_not_plain_data_is_refused() {
        check_refused(
            "a: 1\nb: 2\na: 3\n",
            &["f:3: sets the key `a` a second time; the first time is in line 1; keep one of the two"],
        );
        check_refused(
            "p:\n  a: 1\n  a: 2\n",
            &["f:3: `p`: sets the key `a` a second time; the first time is in line 2; keep one of the two"],
        );
        check_refused("a: b\n---\nc: d\n", &["f:2: begins a second document; remove the line `---`"]);
        let anchor = "has an anchor (`&`) or alias (`*`), which is not supported here; write the value out, or quote it if it is text";
        check_refused(
            "a: &x [b]\nc: *x\n",
            &[&format!("f:1: `a`: {anchor}"), &format!("f:2: `c`: {anchor}")],
        );
        let tag = "has a tag, which is not supported here; remove the word that begins with `!`, or quote it if it is text";
        check_refused("a: !!str 1\n", &[&format!("f:1: `a`: {tag}")]);
        check_refused("a: !env [X]\n", &[&format!("f:1: `a`: {tag}")]);
        check_refused(
            "1: a\nyes: b\n",
            &[
                "f:1: has a number as a key, where a name belongs; put it in quotes if it is meant as a name",
                "f:2: has an unquoted word that some readers take for a boolean as a key, where a name belongs; put it in quotes if it is meant as a name",
            ],
        );
        check_refused("? [a]\n: b\n", &["f:1: has a list as a key, where a name belongs"]);
        check_refused("a: b\nc: \0d\n", &["f:2: holds the control character U+0000"]);
        check_refused("a: b\u{1b}\n", &["f:1: holds the control character U+001B"]);
    }

    #[test]
    fn depth_is_bounded() {
        check_refused(&"[".repeat(100), &["f:1: is nested more than 16 levels deep"]);
        check_refused(&format!("a: {}", "[".repeat(100)), &["f:1: `a`: is nested more than 16 levels deep"]);
        check_refused(&"- ".repeat(100), &["f:1: is nested more than 16 levels deep"]);
        for text in ["[", "{a: ", "- ", "? "] {
            assert_eq!(read(&text.repeat(1024 * 1024 / text.len())).1.len(), 1, "{text}");
        }
    }

    /// The test would take minutes if names were compared with each other.
    #[test]
    fn many_keys_are_read_in_time() {
        let lines: Vec<_> = (0..60_000).map(|number| format!("key{number}: x")).collect();
        let (tree, problems) = read(&lines.join("\n"));
        assert!(matches!(tree.unwrap().value, Value::Map(entries) if entries.len() == 60_000));
        assert_eq!(problems, []);
    }

    #[test]
    fn bad_yaml_is_named_with_its_line() {
        for text in ["a: [b\n", "a: b: c\n", "a: 'b\n", "a: b\n  c: d\n", "*x", "a: \"\\q\"", "{", "]"] {
            let (tree, problems) = read(text);
            assert_eq!(tree, None, "{text:?}");
            assert!(
                problems[0].line.is_some() && problems[0].what.starts_with("is not valid YAML: "),
                "{problems:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in "[a-c:\\-?,\\[\\]{}#&*!|>'\"%@`~ \\n0\\\\\u{e9}]{0,60}") {
            let _ = read(&text);
        }

        #[test]
        fn any_quoted_text_comes_back(text in "\\PC{0,40}") {
            let quoted = format!("'{}'", text.replace('\'', "''"));
            let (tree, problems) = read(&quoted);
            prop_assert_eq!(problems, []);
            prop_assert_eq!(tree.unwrap().value, Value::Text(text));
        }
    }
}
