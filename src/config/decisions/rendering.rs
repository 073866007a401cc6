//! Answers to YAML text, which the reader reads back as they were.

use std::fmt::Write;

use super::{Decision, Place};
use crate::policy::Effect;
use crate::text::is_deceptive;

/// Stands at the top of a file that had no comment of its own.
const COMMENT: &str = "\
# Written by the guardian when somebody answers a request; `cloister approvals forget RULE` takes a line out.
# Of comments, only the lines at the top stay when it is written again.
";

/// Writes a whole file; `comment` are the lines at the top of the one before.
pub(super) fn render(comment: &str, place: &Place, decisions: &[Decision]) -> String {
    let mut text = if comment.is_empty() { COMMENT.to_owned() } else { comment.to_owned() };
    if let Some((key, fields)) = place.header() {
        let fields = fields.iter().map(|(name, value)| (*name, Some(value.clone())));
        line(&mut text, &format!("{key}: "), fields);
    }
    for effect in [Effect::Allow, Effect::Deny] {
        let mut of_effect = decisions.iter().filter(|decision| decision.effect == effect).peekable();
        if of_effect.peek().is_some() {
            text.push_str(effect.name());
            text.push_str(":\n");
        }
        for decision in of_effect {
            let fields = [
                ("pattern", Some(decision.pattern.to_string())),
                ("at", decision.at.map(|at| at.to_string())),
                ("who", decision.who.clone()),
                ("cloister", decision.cloister.as_ref().map(ToString::to_string)),
                ("reason", decision.reason.clone()),
            ];
            line(&mut text, "  - ", fields);
        }
    }
    text
}

/// Writes a map on a line of its own.
fn line<'n>(text: &mut String, start: &str, fields: impl IntoIterator<Item = (&'n str, Option<String>)>) {
    let present = fields.into_iter().filter_map(|(name, value)| Some(format!("{name}: {}", quoted(&value?))));
    let present: Vec<String> = present.collect();
    text.push_str(start);
    text.push('{');
    text.push_str(&present.join(", "));
    text.push_str("}\n");
}

/// Writes a text in double quotes; what could steer, hide or break the line is escaped.
pub(in crate::config) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            _ if is_deceptive(character) => {
                let code = u32::from(character);
                let written = match code {
                    0..=0xff => write!(quoted, "\\x{code:02x}"),
                    0x100..=0xffff => write!(quoted, "\\u{code:04x}"),
                    _ => write!(quoted, "\\U{code:08x}"),
                };
                written.expect("a text takes whatever is written into it");
            }
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}
