//! No text makes the host parser panic, and every host that it reads has one canonical form (N1, N2, N3, N7).
#![no_main]

use cloister::policy::{DomainName, Host};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| match Host::parse(text) {
    Ok(host) => check(&host),
    // A refusal is shown to people: its text is plain, whatever the host was.
    Err(error) => assert!(!error.to_string().contains(char::is_control)),
});

fn check(host: &Host) {
    let shown = host.to_string();
    assert_eq!(Host::parse(&shown).as_ref(), Ok(host));
    match host {
        Host::Ip(address) => assert_eq!(address.to_canonical(), *address),
        Host::Name(name) => check_name(name),
    }
}

fn check_name(name: &DomainName) {
    let text = name.as_str();
    let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
    let is_label = |label: &str| (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-');
    assert!(text.bytes().all(is_plain), "{text:?}");
    assert!(text.len() <= 253 && text.split('.').all(is_label), "{text:?}");
    let last = text.rsplit('.').next().unwrap_or_default();
    assert!(!last.bytes().all(|byte| byte.is_ascii_digit()), "{text:?}");
    assert_eq!(DomainName::parse(&text.to_ascii_uppercase()).as_ref(), Ok(name));
    assert_eq!(DomainName::parse(&format!("{text}.")).as_ref(), Ok(name));
    // Both forms of a name are the same name.
    assert_eq!(DomainName::parse(&name.unicode()).as_ref(), Ok(name));
}
