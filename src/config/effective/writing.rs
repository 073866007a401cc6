//! Settings as the YAML of a file, with their origins as comments.

use super::{Entry, Setting, Shape, Shown};
use crate::config::decisions::quoted;
use crate::config::yaml::is_plain_text;
use crate::config::yaml::tree::Value;
use crate::text::Untrusted;

/// Writes all settings, section by section.
pub(super) fn yaml(settings: &[Setting], shown: Shown) -> String {
    let mut text = String::new();
    let mut open: Vec<&str> = Vec::new();
    for setting in settings {
        let mut sections: Vec<&str> = setting.key.path.split('.').collect();
        let name = sections.pop().unwrap_or_default();
        let known = open.iter().zip(&sections).take_while(|(one, other)| one == other).count();
        for (depth, section) in sections.iter().enumerate().skip(known) {
            text += &format!("{}{section}:\n", indent(depth));
        }
        write(&mut text, setting, name, (sections.len(), shown));
        open = sections;
    }
    text
}

/// Writes one setting at its depth.
fn write(text: &mut String, setting: &Setting, name: &str, (depth, shown): (usize, Shown)) {
    let comment = |entry: &Entry| match shown {
        Shown::Values => String::new(),
        Shown::Origins => format!("  # {}", origin(entry)),
    };
    let shape = Shape::of(setting.key.kind);
    let single = match (shape, setting.entries.as_slice()) {
        (Shape::Single, [entry]) => Some(entry),
        (_, []) => Some(&setting.nothing()),
        _ => None,
    };
    if let Some(entry) = single {
        *text += &format!("{}{name}: {}{}\n", indent(depth), flow(&entry.value), comment(entry));
        return;
    }
    *text += &format!("{}{name}:\n", indent(depth));
    for entry in &setting.entries {
        let start = entry.name.as_ref().map_or_else(|| "- ".to_owned(), |name| format!("{}: ", word(name)));
        *text += &format!("{}{start}{}{}\n", indent(depth + 1), flow(&entry.value), comment(entry));
    }
}

fn indent(depth: usize) -> String {
    "  ".repeat(depth)
}

/// Says where a value comes from, and of an answer what is known of it.
fn origin(entry: &Entry) -> String {
    let Some(decision) = &entry.decision else { return Untrusted(&entry.origin).to_string() };
    let about = [
        decision.at.map(|at| at.to_string()),
        decision.who.clone(),
        decision.cloister.as_ref().map(|cloister| format!("asked by {cloister}")),
        decision.reason.as_ref().map(|reason| format!("reason: {reason}")),
    ];
    let about: Vec<String> = [Some(entry.origin.clone())].into_iter().chain(about).flatten().collect();
    Untrusted(&about.join(", ")).to_string()
}

/// Writes a value on one line.
fn flow(value: &Value) -> String {
    match value {
        Value::Null | Value::Ambiguous => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(text) => text.clone(),
        Value::Text(text) => word(text),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(|item| flow(&item.value)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Map(entries) => {
            let entries: Vec<String> = entries
                .iter()
                .map(|(name, node)| format!("{}: {}", word(&name.text), flow(&node.value)))
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

/// Writes a text, in quotes unless every reader takes it for a text without.
fn word(text: &str) -> String {
    let is_plain = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte));
    let is_duration = text.ends_with(|last: char| last.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if (is_plain || is_duration) && is_plain_text(text) { text.to_owned() } else { quoted(text) }
}
