//! What a call says.
//!
//! The body of a notification is markup to some desktops, and the reason and the client's name in it come from the
//! sandbox: they are made visible first and escaped then (A1, A2).

use std::fmt::Display;

use serde_json::Value;

use super::book::Call;
use crate::approval::Voice;
use crate::text::{JsonText, Quoted};

/// How many characters of a sandbox's own words are shown.
const MAX_WORDS: usize = 200;

/// A notification, as the desktop gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    /// Plain text: names that were parsed.
    pub(super) summary: String,
    /// Markup.
    pub(super) body: String,
    /// How long it is of use, in milliseconds.
    pub(super) left_ms: u64,
}

/// Words a notification.
pub(super) fn note(call: &Call) -> Note {
    let pending = &call.pending;
    let more = match call.more {
        0 => String::new(),
        1 => " and 1 more host".to_owned(),
        more => format!(" and {more} more hosts"),
    };
    let summary = format!("{} wants {}{more}", pending.cloister, pending.authority);
    let voice = match &pending.voice {
        Voice::Connection { user_agent: Some(words) } => format!("It calls itself {}.\n", shown(words)),
        Voice::Polite { reason: Some(words) } => format!("It says {}.\n", shown(words)),
        Voice::Connection { user_agent: None } | Voice::Polite { reason: None } => String::new(),
    };
    let place = call.ways.page.as_ref().map_or_else(String::new, |page| format!("on {page} or "));
    let body = markup(format_args!("{voice}Answer {place}with `cloister approvals watch`."));
    Note { summary, body, left_ms: pending.left_ms }
}

/// The request as the user's program reads it: one line of JSON.
pub(super) fn input(call: &Call) -> String {
    let mut request = serde_json::to_value(&call.pending).unwrap_or_default();
    if let Value::Object(fields) = &mut request {
        fields.insert("more".to_owned(), call.more.into());
        fields.insert("page".to_owned(), call.ways.page.clone().into());
    }
    format!("{}\n", JsonText(&request.to_string()))
}

/// A sandbox's own words, always in quotes, as nobody vouches for them.
fn shown(words: &str) -> String {
    let kept: String = words.chars().take(MAX_WORDS).collect();
    let end = if kept.len() < words.len() { "…" } else { "" };
    let quoted = Quoted(&kept).to_string();
    if quoted.starts_with('"') { format!("{quoted}{end}") } else { format!("\"{quoted}\"{end}") }
}

fn markup(text: impl Display) -> String {
    text.to_string().replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests;
