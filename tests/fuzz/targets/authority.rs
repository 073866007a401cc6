//! No text makes the parsers of authorities and patterns panic, and what they read has one canonical form (N3, N4, N7).
#![no_main]

use cloister::policy::{Authority, Pattern};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    check_authority(text);
    check_pattern(text);
});

fn check_authority(text: &str) {
    match Authority::parse(text) {
        Ok(authority) => {
            let shown = authority.to_string();
            let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b':' | b'[' | b']');
            assert!(authority.port() != 0 && shown.bytes().all(is_plain), "{shown:?}");
            assert_eq!(Authority::parse(&shown).as_ref(), Ok(&authority));
            assert_eq!(Authority::parse_with_default(text, 1).as_ref(), Ok(&authority));
            assert_eq!(Pattern::parse(&shown).as_ref(), Ok(&Pattern::exactly(&authority)));
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control)),
    }
}

fn check_pattern(text: &str) {
    match Pattern::parse(text) {
        Ok(pattern) => assert_eq!(Pattern::parse(&pattern.to_string()).as_ref(), Ok(&pattern)),
        Err(error) => {
            assert!(!error.to_string().contains(char::is_control));
            if let Some(repair) = error.repair() {
                assert!(Pattern::parse(repair).is_ok(), "{repair:?}");
            }
        }
    }
}
