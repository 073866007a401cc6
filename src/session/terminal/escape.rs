//! Where in a program's output the terminal stands: between its characters and sequences, or inside one.
//!
//! A bell that is written inside a sequence would end it or become part of it, and so change what the program shows.

const ESCAPE: u8 = 0x1b;
const BELL: u8 = 0x07;
/// Both give a sequence up.
const CANCEL: u8 = 0x18;
const SUBSTITUTE: u8 = 0x1a;

/// What the terminal expects next (ECMA-48, and what xterm makes of it).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Anything.
    #[default]
    Ground,
    /// The rest of an escape sequence.
    Escape,
    /// The rest of a control sequence.
    Control,
    /// The one character that a single shift is for.
    Shifted,
    /// The rest of a string: a title, a query, a picture.
    Text,
    /// The rest of a string's end.
    TextEscape,
    /// So many more bytes of a character.
    Character(u8),
    /// The second byte of a character that may be a control character.
    Latin,
    /// Likewise, inside of a string.
    TextLatin,
}

/// Follows the output of a program.
#[derive(Debug, Default)]
pub(super) struct Follower(State);

impl Follower {
    /// Takes what the program writes.
    pub(super) fn pass(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |state, byte| step(state, *byte));
    }

    /// Tells whether a sequence could begin here: nothing is half-written.
    pub(super) fn is_between(&self) -> bool {
        self.0 == State::Ground
    }
}

fn step(state: State, byte: u8) -> State {
    match (state, byte) {
        (_, CANCEL | SUBSTITUTE) => State::Ground,
        (State::Text | State::TextEscape | State::TextLatin, _) => in_text(state, byte),
        (_, ESCAPE) => State::Escape,
        (State::Escape, _) => after_escape(byte),
        (State::Control, 0x40..=0x7e) => State::Ground,
        (State::Control, _) => State::Control,
        (State::Latin, 0x80..=0xbf) => c1(byte),
        (State::Character(left), 0x80..=0xbf) if left > 1 => State::Character(left - 1),
        (State::Character(_), 0x80..=0xbf) => State::Ground,
        // What should have been the rest of a character begins another.
        (State::Ground | State::Shifted | State::Latin | State::Character(_), _) => begin(byte),
    }
}

fn begin(byte: u8) -> State {
    match byte {
        0xc2 => State::Latin,
        0xc3..=0xdf => State::Character(1),
        0xe0..=0xef => State::Character(2),
        0xf0..=0xf4 => State::Character(3),
        _ => State::Ground,
    }
}

fn after_escape(byte: u8) -> State {
    match byte {
        b'[' => State::Control,
        // DCS, SOS, OSC, PM, APC, and the title of `screen`.
        b'P' | b'X' | b']' | b'^' | b'_' | b'k' => State::Text,
        b'N' | b'O' => State::Shifted,
        // Intermediate bytes; control characters are obeyed on the way.
        0x00..=0x2f => State::Escape,
        _ => State::Ground,
    }
}

/// A control character of the upper half, written in UTF-8.
fn c1(byte: u8) -> State {
    match byte {
        0x9b => State::Control,
        0x90 | 0x98 | 0x9d..=0x9f => State::Text,
        0x8e | 0x8f => State::Shifted,
        _ => State::Ground,
    }
}

fn in_text(state: State, byte: u8) -> State {
    match (state, byte) {
        (State::TextEscape, b'\\') | (State::TextLatin, 0x9c) | (_, BELL) => State::Ground,
        (_, ESCAPE) => State::TextEscape,
        // An escape ends the string, too, and begins what it leads.
        (State::TextEscape, _) => after_escape(byte),
        (_, 0xc2) => State::TextLatin,
        _ => State::Text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(bytes: &[u8]) -> bool {
        let mut follower = Follower::default();
        follower.pass(bytes);
        follower.is_between()
    }

    /// A sequence after each proper part of which the terminal waits for more, and after which it does not.
    #[track_caller]
    fn check(sequence: &[u8]) {
        assert!(after(sequence), "{sequence:?}");
        for length in 1..sequence.len() {
            assert!(!after(&sequence[..length]), "{:?}", &sequence[..length]);
        }
    }

    #[test]
    fn a_sequence_is_whole_only_at_its_end() {
        for sequence in [
            "\x1b[31m",
            "\x1b[?2004h",
            "\x1b[38;2;1;2;3m",
            "\x1b[2 q",
            "\x1b(B",
            "\x1b#8",
            "\x1bc",
            "\x1b7",
            "\x1bOA",
            "\x1b]0;a title\x07",
            "\x1b]8;;https://example.org/ü\x1b\\",
            "\x1bP+q544e\x1b\\",
            "\x1b_Gi=1;AAAA\x1b\\",
            "\x1bktitle\x1b\\",
            "\u{9b}31m",
            "\u{9d}0;title\u{9c}",
            "ü",
            "東",
            "\u{1f980}",
            "\x1b\x1b[m",
        ] {
            check(sequence.as_bytes());
        }
    }

    #[test]
    fn a_sequence_that_is_given_up_or_broken_holds_nothing_up() {
        for bytes in [
            &b"plain\r\n"[..],
            b"\x1b[31\x18",
            b"\x1b]0;x\x1a",
            b"\xff",
            b"\x80",
            b"\xc2a",
            b"\xe6\x9da",
            b"",
        ] {
            assert!(after(bytes), "{bytes:?}");
        }
        assert!(!after(b"\x1b]0;x\x1b[3"), "another sequence has begun");
        assert!(!after(b"\x1b]0;x\n"), "a title may hold a line feed");
    }

    proptest! {
        #[test]
        fn frames_may_end_anywhere(bytes in proptest::collection::vec(prop_oneof![
            any::<u8>(), Just(ESCAPE), Just(b'['), Just(b']'), Just(BELL), Just(0xc2), Just(b'\\'),
        ], 0..60), at in 0_usize..60) {
            let at = at.min(bytes.len());
            let mut parts = Follower::default();
            parts.pass(&bytes[..at]);
            parts.pass(&bytes[at..]);
            prop_assert_eq!(parts.is_between(), after(&bytes));
        }

        #[test]
        fn what_was_given_up_is_forgotten(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert!(after(&[&bytes[..], &[CANCEL]].concat()));
        }
    }
}
