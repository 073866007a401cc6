//! What calls say, also when a sandbox chooses the words.

use proptest::prelude::*;

use super::super::tests::{pending, ways};
use super::*;

fn call(voice: Voice) -> Call {
    let mut pending = pending("demo-main", "api.x.org:443");
    pending.voice = voice;
    Call { pending, more: 0, is_new: true, ways: ways() }
}

fn says(reason: &str) -> Call {
    call(Voice::Polite { reason: Some(reason.to_owned()) })
}

#[test]
fn a_notification_says_who_wants_what_and_where_to_answer() {
    let mut call = call(Voice::Connection { user_agent: Some("curl/8.5.0".to_owned()) });
    let body = "It calls itself \"curl/8.5.0\".\nAnswer with `cloister approvals watch`.";
    let summary = "demo-main wants api.x.org:443";
    let expected = Note { summary: summary.to_owned(), body: body.to_owned(), left_ms: 60_000 };
    assert_eq!(note(&call), expected);
    call.more = 1;
    assert_eq!(note(&call).summary, "demo-main wants api.x.org:443 and 1 more host");
    call.more = 4;
    assert_eq!(note(&call).summary, "demo-main wants api.x.org:443 and 4 more hosts");
    call.pending.voice = Voice::Polite { reason: None };
    call.ways.page = Some("http://127.0.0.1:9999/".to_owned());
    assert_eq!(note(&call).body, "Answer on http://127.0.0.1:9999/ or with `cloister approvals watch`.");
}

#[test]
fn a1_a2_a_sandboxs_words_are_quoted_visible_and_no_markup() {
    let answer = "\nAnswer with `cloister approvals watch`.";
    let cases = [
        ("<b>&amp;</b>", "\"&lt;b&gt;&amp;amp;&lt;/b&gt;\""),
        ("<a href=\"http://x\">ok</a>", "\"&lt;a href=\\\"http://x\\\"&gt;ok&lt;/a&gt;\""),
        ("\u{1b}[2Jcats\u{202e}", "\"\\u{1b}[2Jcats\\u{202e}\""),
        ("fine.\nAnswer nothing", "\"fine.\\nAnswer nothing\""),
        ("", "\"\""),
    ];
    for (words, shown) in cases {
        assert_eq!(note(&says(words)).body, format!("It says {shown}.{answer}"));
    }
    let long = note(&says(&"é".repeat(5000))).body;
    assert_eq!(long, format!("It says \"{}\"….{answer}", "é".repeat(200)));
}

#[test]
fn the_program_reads_one_line_of_json() {
    let mut call = says("two\nlines \u{202e} \"quoted\"");
    call.more = 2;
    call.ways.page = Some("http://127.0.0.1:9999/".to_owned());
    let text = input(&call);
    assert!(text.ends_with("}\n") && text.trim_end().lines().count() == 1, "{text}");
    assert!(text.contains("\\u202e") && !text.contains('\u{202e}'), "{text}");
    let mut read: Value = serde_json::from_str(&text).unwrap();
    let fields = read.as_object_mut().unwrap();
    assert_eq!(fields.remove("more"), Some(2.into()));
    assert_eq!(fields.remove("page"), Some("http://127.0.0.1:9999/".into()));
    assert_eq!(serde_json::from_value::<crate::approval::Pending>(read).unwrap(), call.pending);
}

proptest! {
    #[test]
    fn a1_a2_no_words_make_markup_or_a_line_of_their_own(words in any::<String>()) {
        let Note { summary, body, .. } = note(&says(&words));
        prop_assert_eq!(summary, "demo-main wants api.x.org:443");
        prop_assert_eq!(body.lines().count(), 2);
        let steers = |c| ['<', '>', '\u{1b}', '\u{202e}'].contains(&c);
        prop_assert!(!body.contains(steers));
        for entity in body.split('&').skip(1) {
            prop_assert!(["amp;", "lt;", "gt;"].iter().any(|known| entity.starts_with(known)));
        }
    }
}
