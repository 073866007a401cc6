//! Text of foreign origin, made safe to show (invariant 9).
//!
//! What a sandbox wrote (a host, a reason, an argument) may hold terminal sequences, text that runs backwards or
//! characters that nobody sees. Every display goes through [`Untrusted`] or [`Quoted`]: a terminal, a page and a
//! log line then show what is really there.

use std::fmt::{self, Display, Formatter, Write};

/// Characters that are neither control characters nor white space, and still steer or hide text: format characters
/// (Unicode category Cf: bidirectional controls, zero-width characters, tags), variation selectors, and letters
/// and marks that have no shape.
const HIDDEN: &[(char, char)] = &[
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{fffe}', '\u{ffff}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
];

/// Shows text with every character escaped that could steer a terminal, reorder the line or hide itself.
///
/// Line feed, carriage return and tab become `\n`, `\r`, `\t`, the others `\u{202e}` style. Visible characters stay
/// as they are, a backslash too: the form is for eyes, not for parsing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Untrusted<'a>(pub &'a str);

impl Display for Untrusted<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| write_escaped(formatter, character))
    }
}

/// Gives the message of an error with all its causes, for where only one text has a place.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Shows text like [`Untrusted`], in double quotes unless it is one plain word, so that neighbours can't be faked.
///
/// Inside the quotes `"` and `\` are escaped: the form is unambiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quoted<'a>(pub &'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        if is_plain_word(self.0) {
            return formatter.write_str(self.0);
        }
        formatter.write_char('"')?;
        for character in self.0.chars() {
            if matches!(character, '"' | '\\') {
                formatter.write_char('\\')?;
            }
            write_escaped(formatter, character)?;
        }
        formatter.write_char('"')
    }
}

/// Shows JSON with every character that could steer, reorder or hide written as `\u202e`; its value stays the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JsonText<'a>(pub &'a str);

impl Display for JsonText<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| {
            // The encoder has escaped the other control characters; what is left of them stands between the values.
            if character == '\u{7f}' || !character.is_ascii() && is_deceptive(character) {
                let mut units = [0; 2];
                return character
                    .encode_utf16(&mut units)
                    .iter()
                    .try_for_each(|unit| write!(formatter, "\\u{unit:04x}"));
            }
            formatter.write_char(character)
        })
    }
}

fn is_plain_word(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:*+@%,[]^~".contains(&byte);
    !text.is_empty() && text.bytes().all(plain)
}

fn write_escaped(formatter: &mut Formatter<'_>, character: char) -> fmt::Result {
    match character {
        '\n' => formatter.write_str("\\n"),
        '\r' => formatter.write_str("\\r"),
        '\t' => formatter.write_str("\\t"),
        _ if is_deceptive(character) => write!(formatter, "{}", character.escape_unicode()),
        _ => formatter.write_char(character),
    }
}

/// Tells whether a character could steer a terminal, reorder the line or hide itself.
pub(crate) fn is_deceptive(character: char) -> bool {
    if character.is_ascii() {
        return character.is_ascii_control();
    }
    character.is_control()
        || character.is_whitespace()
        || HIDDEN.iter().any(|(first, last)| (*first..=*last).contains(&character))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{HIDDEN, JsonText, Quoted, Untrusted, with_causes};

    #[track_caller]
    fn check(text: &str, shown: &str) {
        assert_eq!(Untrusted(text).to_string(), shown);
    }

    #[test]
    fn an_error_is_told_with_all_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Step(&'static str, #[source] Option<Box<Step>>);
        let error = Step("cannot a", Some(Box::new(Step("cannot b", Some(Box::new(Step("no", None)))))));
        assert_eq!(with_causes(&error), "cannot a: cannot b: no");
    }

    #[test]
    fn a15_json_shows_steering_characters_and_keeps_its_value() {
        let text = JsonText("{\"a\": \"x\u{202e}y\u{7f}\u{9b}\u{200b}\u{e0041}é東\\n\"}\n").to_string();
        assert_eq!(text, "{\"a\": \"x\\u202ey\\u007f\\u009b\\u200b\\udb40\\udc41é東\\n\"}\n");
    }

    #[test]
    fn a1_steering_characters_are_shown() {
        check("plain text, ünïcödé 東京 \\", "plain text, ünïcödé 東京 \\");
        check("\u{1b}[2J", "\\u{1b}[2J");
        check("a\r\nb\tc", "a\\r\\nb\\tc");
        check("\u{9b}31m\u{7f}\0", "\\u{9b}31m\\u{7f}\\u{0}");
        check("exe.\u{202e}gpj", "exe.\\u{202e}gpj");
        check("git\u{200b}hub\u{feff}", "git\\u{200b}hub\\u{feff}");
        check("a\u{2028}b\u{85}c\u{a0}d", "a\\u{2028}b\\u{85}c\\u{a0}d");
        check("\u{e0041}\u{2066}\u{ad}\u{3164}", "\\u{e0041}\\u{2066}\\u{ad}\\u{3164}");
    }

    #[test]
    fn a15_quoting_keeps_neighbours_apart() {
        assert_eq!(Quoted("*.example.com:443").to_string(), "*.example.com:443");
        assert_eq!(Quoted("").to_string(), "\"\"");
        assert_eq!(Quoted("x rule=y").to_string(), "\"x rule=y\"");
        assert_eq!(Quoted("a\"b\\c\n").to_string(), "\"a\\\"b\\\\c\\n\"");
    }

    #[test]
    fn the_table_of_hidden_characters_is_sorted() {
        assert!(HIDDEN.iter().all(|(first, last)| first <= last));
        assert!(HIDDEN.windows(2).all(|pair| pair[0].1 < pair[1].0));
    }

    #[test]
    fn every_control_and_separator_character_is_escaped() {
        for character in (0..=0x10_ffff).filter_map(char::from_u32) {
            let shown = Untrusted(character.encode_utf8(&mut [0; 4])).to_string();
            if character.is_control() || (character.is_whitespace() && character != ' ') {
                assert!(shown.is_ascii() && shown.starts_with('\\'), "{:x}", u32::from(character));
            }
        }
    }

    fn nasty_text() -> impl Strategy<Value = String> {
        let character = prop_oneof![
            any::<char>(),
            proptest::char::range('\0', '\u{a0}'),
            proptest::sample::select(HIDDEN)
                .prop_flat_map(|(first, last)| proptest::char::range(first, last)),
        ];
        proptest::collection::vec(character, 0..40).prop_map(|characters| characters.into_iter().collect())
    }

    proptest! {
        #[test]
        fn a1_nothing_deceptive_is_ever_shown(text in nasty_text()) {
            for shown in [Untrusted(&text).to_string(), Quoted(&text).to_string()] {
                for character in shown.chars() {
                    prop_assert!(!character.is_control());
                    prop_assert!(!character.is_whitespace() || character == ' ');
                    let is_bidi = matches!(character, '\u{61c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
                    let is_zero_width = matches!(character, '\u{200b}'..='\u{200f}' | '\u{feff}');
                    prop_assert!(!is_bidi && !is_zero_width);
                }
            }
        }
    }
}
