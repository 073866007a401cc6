//! What a caller says about an event; number, time and link are added when it is written.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Entry, Event, Head, LineHash};
use crate::name::{BranchName, CloisterName, ProjectName};

/// Bounds every text of a record, in bytes, so that nothing from a sandbox can blow up a line (A15).
const MAX_TEXT_BYTES: usize = 4096;
/// Bounds what a record repeats of the words of somebody in a sandbox, in bytes as they are written: they cost what they
/// ask for, and are asked for at no cost (A15).
const MAX_SAID_BYTES: usize = 300;
/// Bounds the arguments of a record.
const MAX_ARGUMENTS: usize = 64;
/// Bounds the addresses of a record.
const MAX_ADDRESSES: usize = 16;
/// Bounds all arguments together, in bytes.
const MAX_ARGV_BYTES: usize = 16 * 1024;

/// Describes an event that is to be written; every text is cut at 4 KiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Record {
    /// In a box: a record goes through many hands.
    entry: Box<Entry>,
}

impl Record {
    /// Begins a record.
    #[must_use]
    pub fn new(event: Event) -> Self {
        let entry = Box::new(Entry {
            seq: 0,
            time: Timestamp::UNIX_EPOCH,
            prev: LineHash::START,
            unified: None,
            event,
            cloister: None,
            project: None,
            branch: None,
            host: None,
            port: None,
            addresses: None,
            reason: None,
            rule: None,
            origin: None,
            scope: None,
            pattern: None,
            who: None,
            bytes_up: None,
            bytes_down: None,
            duration_ms: None,
            repeated: None,
            from: None,
            to: None,
            argv: None,
            exit_code: None,
            detail: None,
            recovers: None,
            removed: None,
            own_file: None,
        });
        Self { entry }
    }

    /// Names the cloister, into whose own file the record goes too.
    #[must_use]
    pub fn cloister(mut self, cloister: &CloisterName) -> Self {
        self.entry.cloister = Some(cloister.clone());
        self
    }

    /// Names the project.
    #[must_use]
    pub fn project(mut self, project: &ProjectName) -> Self {
        self.entry.project = Some(project.clone());
        self
    }

    /// Names the branch.
    #[must_use]
    pub fn branch(mut self, branch: &BranchName) -> Self {
        self.entry.branch = Some(branch.clone());
        self
    }

    /// Names the host asked for, in whatever form it came.
    #[must_use]
    pub fn host(mut self, host: impl Display) -> Self {
        self.entry.host = Some(capped(host.to_string()));
        self
    }

    /// Names the port asked for.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.entry.port = Some(port);
        self
    }

    /// Gives the checked addresses, the first ones when there are many.
    #[must_use]
    pub fn addresses(mut self, addresses: &[SocketAddr]) -> Self {
        self.entry.addresses = Some(addresses.iter().copied().take(MAX_ADDRESSES).collect());
        self
    }

    /// Gives the stable code of a refusal or an end.
    #[must_use]
    pub fn reason(mut self, reason: impl Display) -> Self {
        self.entry.reason = Some(capped(reason.to_string()));
        self
    }

    /// Gives the rule that decided.
    #[must_use]
    pub fn rule(mut self, rule: impl Display) -> Self {
        self.entry.rule = Some(capped(rule.to_string()));
        self
    }

    /// Says where that rule comes from.
    #[must_use]
    pub fn origin(mut self, origin: impl Display) -> Self {
        self.entry.origin = Some(capped(origin.to_string()));
        self
    }

    /// Says how far a human's answer reaches.
    #[must_use]
    pub fn scope(mut self, scope: impl Display) -> Self {
        self.entry.scope = Some(capped(scope.to_string()));
        self
    }

    /// Gives the pattern that a human's answer allows or denies.
    #[must_use]
    pub fn pattern(mut self, pattern: impl Display) -> Self {
        self.entry.pattern = Some(capped(pattern.to_string()));
        self
    }

    /// Says who decided.
    #[must_use]
    pub fn who(mut self, who: impl Display) -> Self {
        self.entry.who = Some(capped(who.to_string()));
        self
    }

    /// Counts the bytes from and to the sandbox.
    #[must_use]
    pub fn bytes(mut self, up: u64, down: u64) -> Self {
        self.entry.bytes_up = Some(up);
        self.entry.bytes_down = Some(down);
        self
    }

    /// Says how long it took.
    #[must_use]
    pub fn duration(mut self, duration: Duration) -> Self {
        self.entry.duration_ms = Some(duration.as_millis().try_into().unwrap_or(u64::MAX));
        self
    }

    /// Gives a command's arguments; too many or too long ones are cut, with a last one that says how many.
    #[must_use]
    pub fn argv(mut self, argv: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.entry.argv = Some(capped_arguments(argv));
        self
    }

    /// Gives a command's exit code.
    #[must_use]
    pub fn exit_code(mut self, exit_code: i32) -> Self {
        self.entry.exit_code = Some(exit_code);
        self
    }

    /// Says more in words; never a secret.
    #[must_use]
    pub fn detail(mut self, detail: impl Display) -> Self {
        self.entry.detail = Some(capped(detail.to_string()));
        self
    }

    /// Repeats the words of somebody in a sandbox, of which the beginning is kept.
    #[must_use]
    pub fn said(self, how: &str, words: &str) -> Self {
        self.detail(format_args!("{how}: {}", capped_words(words)))
    }

    /// Says what happened.
    pub fn event(&self) -> Event {
        self.entry.event
    }

    pub(super) fn recovers(mut self, last_whole_line: LineHash) -> Self {
        self.entry.recovers = Some(last_whole_line);
        self
    }

    /// Makes the record that stands for so many events like this one.
    pub(super) fn repeated(mut self, times: u64, from: Timestamp, to: Timestamp) -> Self {
        self.entry.repeated = Some(times);
        self.entry.from = Some(from);
        self.entry.to = Some(to);
        self
    }

    /// Leaves out what tells this event from others with the same reason.
    pub(super) fn of_others(self) -> Self {
        let entry =
            Entry { host: None, port: None, rule: None, origin: None, addresses: None, ..*self.entry };
        Self { entry: Box::new(entry) }.detail("other destinations")
    }

    pub(super) fn removed(mut self, last: Head) -> Self {
        self.entry.removed = Some(last);
        self
    }

    /// Says whether the cloister's own file gets the record; that it does need not be said.
    pub(super) fn mark_own_file(&mut self, is_written: bool) {
        self.entry.own_file = (!is_written && self.entry.cloister.is_some()).then_some(false);
    }

    pub(super) fn cloister_name(&self) -> Option<&CloisterName> {
        self.entry.cloister.as_ref()
    }

    /// Encodes what all copies of the record share, with the line feed.
    pub(super) fn shared(&self) -> Vec<u8> {
        self.entry.shared()
    }
}

/// Cuts a text at the bound, on the border of a character, and says how much is missing.
fn capped(text: String) -> String {
    if text.len() <= MAX_TEXT_BYTES {
        return text;
    }
    let kept = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];
    format!("{kept}…[{} bytes cut]", text.len() - kept.len())
}

/// Cuts a text where what is written of it would be longer than the bound, and says how much is missing.
fn capped_words(words: &str) -> String {
    let mut room = MAX_SAID_BYTES;
    let end =
        words.char_indices().find_map(|(at, character)| match room.checked_sub(written_bytes(character)) {
            Some(left) => {
                room = left;
                None
            }
            None => Some(at),
        });
    end.map_or_else(|| words.to_owned(), |end| format!("{}…[{} bytes cut]", &words[..end], words.len() - end))
}

/// How long a character is in a line of the log.
fn written_bytes(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        _ => character.len_utf8(),
    }
}

fn capped_arguments(argv: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<String> {
    let mut room = MAX_ARGV_BYTES;
    let mut left_out = 0_usize;
    let mut kept = Vec::new();
    for argument in argv {
        let argument = capped(argument.as_ref().to_owned());
        if left_out > 0 || kept.len() == MAX_ARGUMENTS || argument.len() > room {
            left_out += 1;
            continue;
        }
        room -= argument.len();
        kept.push(argument);
    }
    if left_out > 0 {
        kept.push(format!("…[{left_out} arguments cut]"));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::{MAX_TEXT_BYTES, Record, capped, capped_arguments};
    use crate::audit::Event;
    use crate::audit::entry::FRONT_BYTES;

    #[test]
    fn a15_long_texts_are_cut_and_marked() {
        let fitting = "x".repeat(MAX_TEXT_BYTES);
        assert_eq!(capped(fitting.clone()), fitting);
        assert_eq!(capped(format!("{fitting}yz")), format!("{fitting}…[2 bytes cut]"));
        let on_the_border = format!("{}é!", "x".repeat(MAX_TEXT_BYTES - 1));
        assert_eq!(capped(on_the_border), format!("{}…[3 bytes cut]", "x".repeat(MAX_TEXT_BYTES - 1)));
    }

    #[test]
    fn a15_the_words_of_a_sandbox_cost_little_however_they_are_written() {
        let said = |words: &str| {
            let record = Record::new(Event::ProxyAsk).said("client", words);
            (record.entry.detail.clone().unwrap(), record.shared().len())
        };
        assert_eq!(said("curl/8").0, "client: curl/8");
        let bare = said("").1;
        for character in ["\u{1}", "\"", "\\", "\n", "\u{8}", "\u{7f}", "x", "é", "\u{202e}"] {
            let (detail, bytes) = said(&character.repeat(1024));
            assert!(detail.ends_with(" bytes cut]") && bytes - bare <= 330, "{character:?}: {bytes}");
            assert!(bytes - bare >= 290, "{character:?}: {bytes}");
        }
    }

    #[test]
    fn a15_many_arguments_are_cut_and_marked() {
        assert_eq!(capped_arguments(["git", "push"]), ["git", "push"]);
        let many = capped_arguments(vec!["a"; 1000]);
        assert_eq!(many.len(), 65);
        assert_eq!(many[64], "…[936 arguments cut]");
        let long = capped_arguments(vec!["a".repeat(4000); 8]);
        assert_eq!(long.len(), 5);
        assert_eq!(long[4], "…[4 arguments cut]");
    }

    #[test]
    fn a15_no_record_makes_a_line_over_512_kib() {
        let nasty = "\u{1}".repeat(1_000_000);
        let record = Record::new(Event::ProxyDeny)
            .host(&nasty)
            .reason(&nasty)
            .rule(&nasty)
            .origin(&nasty)
            .scope(&nasty)
            .pattern(&nasty)
            .who(&nasty)
            .detail(&nasty)
            .argv(vec![&nasty; 1000]);
        let bytes = FRONT_BYTES + record.shared().len();
        assert!(bytes < 512 * 1024, "{bytes}");
    }
}
