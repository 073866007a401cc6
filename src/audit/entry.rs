//! One line of the log as a value.

use std::io::Write as _;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Event, Head, LineHash};
use crate::name::{BranchName, CloisterName, ProjectName};

/// How long the shared part of a line usually is, and how long what stands before it can become.
const USUAL_BYTES: usize = 384;
pub(super) const FRONT_BYTES: usize = 192;

/// Holds one line of the log; the order of the fields is their order in the line.
///
/// Texts may come from a sandbox: `Display` escapes them, other users show them through [`crate::text::Untrusted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The number of the record in its chain, from 1.
    pub seq: u64,
    /// When it was written, in UTC with microseconds.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// The hash of the line before.
    pub prev: LineHash,
    /// In a cloister's own file: the number of the same record in the unified file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unified: Option<u64>,
    /// What happened.
    pub event: Event,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloister: Option<CloisterName>,
    /// The project it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
    /// The branch of a worktree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<BranchName>,
    /// The host asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The port asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Of what may pass: the checked addresses. Of what has ended: the one that was dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<SocketAddr>>,
    /// The stable code of a refusal or an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Where that rule comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// How far a human's answer reaches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The pattern a human's answer allows or denies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Who decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// Bytes from the sandbox to the upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_up: Option<u64>,
    /// Bytes from the upstream to the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_down: Option<u64>,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// In a summary: how many events like this one have no record of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeated: Option<u64>,
    /// In a summary: when the first of them happened.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_rfc3339")]
    pub from: Option<Timestamp>,
    /// In a summary: when the last of them happened.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_rfc3339")]
    pub to: Option<Timestamp>,
    /// A command on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// How that command ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// More, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// In `audit.recovered`: the hash of the last whole line before the remains that it closes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovers: Option<LineHash>,
    /// In `audit.removed`: the last record that was removed; those before it are gone too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Head>,
    /// `false` where the cloister's own file does not get the record (`audit.per_cloister` is off).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_file: Option<bool>,
}

/// Holds what the chains need of a line; an event of a newer version does not break them.
#[derive(Debug, Deserialize)]
pub(super) struct Link {
    pub(super) seq: u64,
    pub(super) prev: LineHash,
    #[serde(default)]
    pub(super) unified: Option<u64>,
    event: String,
    #[serde(default)]
    pub(super) cloister: Option<CloisterName>,
    #[serde(default)]
    pub(super) recovers: Option<LineHash>,
    #[serde(default)]
    pub(super) removed: Option<Head>,
    #[serde(default)]
    pub(super) own_file: Option<bool>,
}

impl Link {
    /// Reads the chain's part of a line, or nothing when the line is no record.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// Tells whether this record closes the remains of a torn line.
    pub(super) fn is_recovery(&self) -> bool {
        self.event == Event::AuditRecovered.name()
    }

    /// Tells whether the writer ends here in order: all copies of what stands before are written.
    pub(super) fn is_stop(&self) -> bool {
        self.event == Event::GuardianStop.name()
    }

    /// Names the last record that was removed from the chain, where this one says so.
    pub(super) fn removal(&self) -> Option<Head> {
        self.removed.filter(|_| self.event == Event::AuditRemoved.name())
    }

    /// Tells whether the record is about the chain that it stands in, and so in no other one.
    pub(super) fn is_about_its_chain(&self) -> bool {
        Event::ABOUT_THEIR_CHAIN.iter().any(|event| event.name() == self.event)
    }
}

/// Takes a line apart: its time, and what all copies of the record share.
///
/// What stands before the event is numbers, a time and hashes, so the first `,"event":` is the field.
pub(super) fn shared_parts(line: &[u8]) -> Option<(&str, &[u8])> {
    const TIME: &[u8] = b",\"time\":\"";
    const EVENT: &[u8] = b",\"event\":";
    let find = |wanted: &[u8]| line.windows(wanted.len()).position(|bytes| bytes == wanted);
    let (time, event) = (find(TIME)? + TIME.len(), find(EVENT)?);
    let length = line.get(time..event)?.iter().position(|byte| *byte == b'"')?;
    Some((str::from_utf8(&line[time..time + length]).ok()?, &line[event..]))
}

impl Entry {
    /// Encodes what all copies of the record share, as [`shared_parts`] finds it, with the line feed.
    pub(super) fn shared(&self) -> Vec<u8> {
        // A field that is added does not compile until it is written here too.
        let Self {
            seq: _,
            time: _,
            prev: _,
            unified: _,
            event,
            cloister,
            project,
            branch,
            host,
            port,
            addresses,
            reason,
            rule,
            origin,
            scope,
            pattern,
            who,
            bytes_up,
            bytes_down,
            duration_ms,
            repeated,
            from,
            to,
            argv,
            exit_code,
            detail,
            recovers,
            removed,
            own_file,
        } = self;
        let mut fields = Fields(Vec::with_capacity(USUAL_BYTES));
        fields.write("event", Some(event));
        fields.write("cloister", cloister.as_ref());
        fields.write("project", project.as_ref());
        fields.write("branch", branch.as_ref());
        fields.write("host", host.as_ref());
        fields.write("port", port.as_ref());
        fields.write("addresses", addresses.as_ref());
        fields.write("reason", reason.as_ref());
        fields.write("rule", rule.as_ref());
        fields.write("origin", origin.as_ref());
        fields.write("scope", scope.as_ref());
        fields.write("pattern", pattern.as_ref());
        fields.write("who", who.as_ref());
        fields.write("bytes_up", bytes_up.as_ref());
        fields.write("bytes_down", bytes_down.as_ref());
        fields.write("duration_ms", duration_ms.as_ref());
        fields.write("repeated", repeated.as_ref());
        fields.write("from", from.map(time_text).as_ref());
        fields.write("to", to.map(time_text).as_ref());
        fields.write("argv", argv.as_ref());
        fields.write("exit_code", exit_code.as_ref());
        fields.write("detail", detail.as_ref());
        fields.write("recovers", recovers.as_ref());
        fields.write("removed", removed.as_ref());
        fields.write("own_file", own_file.as_ref());
        fields.0.extend_from_slice(b"}\n");
        fields.0
    }
}

/// Fields of an object behind its first ones.
struct Fields(Vec<u8>);

impl Fields {
    fn write(&mut self, name: &str, value: Option<&impl Serialize>) {
        let Some(value) = value else { return };
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
        serde_json::to_writer(&mut self.0, value).expect("an entry holds only texts and numbers");
    }
}

/// Writes what stands before the shared part of the line that follows `head`: number, time and link; in a cloister's
/// own file the number of the same record in the unified one too.
pub(super) fn write_front(line: &mut Vec<u8>, head: Head, time: &str, unified: Option<u64>) {
    let written = write!(line, r#"{{"seq":{},"time":"{time}","prev":"{}""#, head.seq + 1, head.hash);
    let written = written.and_then(|()| match unified {
        Some(unified) => write!(line, r#","unified":{unified}"#),
        None => Ok(()),
    });
    written.expect("a vector takes whatever is written");
}

/// The form of a time in the log.
pub(super) fn time_text(time: Timestamp) -> String {
    format!("{time:.6}")
}

mod rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{time:.6}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

mod optional_rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::ref_option, reason = "serde gives the field by reference")]
    pub(super) fn serialize<S: Serializer>(
        time: &Option<Timestamp>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => super::rfc3339::serialize(time, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\"\\\u{1}\n\u{1b}\u{7f}é\u{2028}\u{1f600}/";

    fn filled() -> Entry {
        let time: Timestamp = "2026-01-31T12:00:00.0000019Z".parse().unwrap();
        let project = ProjectName::parse("demo").unwrap();
        let text = || Some(TEXT.to_owned());
        Entry {
            seq: u64::MAX,
            time,
            prev: LineHash::of(b"before"),
            unified: Some(u64::MAX),
            event: Event::ProxyAllow,
            cloister: Some(CloisterName::of(&project, None).unwrap()),
            project: Some(project),
            branch: Some(BranchName::parse("fix/ü").unwrap()),
            host: text(),
            port: Some(u16::MAX),
            addresses: Some(vec!["8.8.8.8:443".parse().unwrap(), "[2001:db8::1]:80".parse().unwrap()]),
            reason: text(),
            rule: text(),
            origin: text(),
            scope: text(),
            pattern: text(),
            who: text(),
            bytes_up: Some(0),
            bytes_down: Some(u64::MAX),
            duration_ms: Some(1),
            repeated: Some(2),
            from: Some(time),
            to: Some(Timestamp::MAX),
            argv: Some(vec![TEXT.to_owned(), String::new()]),
            exit_code: Some(i32::MIN),
            detail: text(),
            recovers: Some(LineHash::of(b"whole")),
            removed: Some(Head { seq: 7, hash: LineHash::of(b"removed") }),
            own_file: Some(false),
        }
    }

    /// The line that follows this entry's link, as it is put together.
    fn line(entry: &Entry) -> String {
        let before = Head { seq: entry.seq - 1, hash: entry.prev };
        let mut line = Vec::new();
        write_front(&mut line, before, &time_text(entry.time), entry.unified);
        assert!(line.len() <= FRONT_BYTES);
        line.extend_from_slice(&entry.shared());
        String::from_utf8(line).unwrap()
    }

    #[track_caller]
    fn check(entry: &Entry) {
        let line = line(entry);
        assert_eq!(line, serde_json::to_string(entry).unwrap() + "\n");
        let (time, shared) = shared_parts(line.as_bytes()).unwrap();
        assert_eq!((time, shared), (time_text(entry.time).as_str(), entry.shared().as_slice()));
        assert!(Link::parse(line.as_bytes()).is_some_and(|link| link.seq == entry.seq));
    }

    #[test]
    fn a_line_is_what_the_fields_say_in_their_order() {
        let entry = filled();
        check(&entry);
        let fields = serde_json::to_value(&entry).unwrap();
        assert!(fields.as_object().unwrap().values().all(|value| !value.is_null()));
        check(&Entry { unified: None, ..entry });
        let empty = serde_json::json!({
            "seq": 1, "time": "2026-01-31T12:00:00Z", "prev": LineHash::START, "event": "guardian.start",
        });
        check(&serde_json::from_value(empty).unwrap());
    }
}
