//! What a human sees.

use super::desk::{connection, polite};
use super::*;
use crate::web::Cloister;

/// Texts that want to be more than text.
const PAYLOADS: [&str; 10] = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"><svg onload=alert(1)>",
    "' autofocus onfocus='alert(1)",
    "</blockquote></article><form action=http://evil.example><button>Allow",
    "</title><meta http-equiv=refresh content=0;url=http://evil.example>",
    "{{ csrf }} {% include \"home.html\" %}",
    "[click](javascript:alert(1)) <a href=javascript:alert(1)>x</a>",
    "&lt;script&gt; &#60;b&#62; <!-- --> ]]> <?xml",
    "x\u{0}\n\ndata: {}\nevent: sync\r\n\r\n<b>",
];

/// The tags of a page and what they hold, without the text between them.
fn skeleton(html: &str) -> Vec<String> {
    let tags = html.split('<').skip(1).map(|rest| rest.split('>').next().unwrap());
    tags.map(|tag| tag.split(' ').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a2_what_a_sandbox_says_is_text_and_nothing_else() {
    let served = Served::start();
    let browser = served.browser().await;
    let plain = served.desk.ask("demo", "api.example.com:443", polite("plain"));
    let expected = skeleton(&browser.get("/").await.body);
    served.desk.change(|state| state.pending.retain(|pending| pending.id != plain));
    for payload in PAYLOADS {
        for voice in [polite(payload), connection(payload)] {
            let id = served.desk.ask("demo", "api.example.com:443", voice);
            let page = browser.get("/").await.body;
            assert_eq!(skeleton(&page), expected, "{payload}: {page}");
            let mut events = browser.events("/events").await;
            let list = events.until("sync").await["list"].as_str().unwrap().to_owned();
            assert!(page.contains(list.trim().lines().nth(1).unwrap()), "the same card: {list}");
            assert!(!list.contains("<script") && !list.contains("<img") && !list.contains("<svg"), "{list}");
            served.desk.change(|state| state.pending.retain(|pending| pending.id != id));
        }
    }
}

#[tokio::test]
async fn a2_problems_and_cloisters_are_text_too() {
    let served = Served::start();
    let browser = served.browser().await;
    for payload in PAYLOADS {
        served.desk.change(|state| {
            state.problems = vec![payload.to_owned()];
            let [name, project, network] = [payload; 3].map(str::to_owned);
            let (allowed, denied, bytes_up, bytes_down, tunnels) = (1, 2, 3, 4, 5);
            state.cloisters =
                vec![Cloister { name, project, network, allowed, denied, bytes_up, bytes_down, tunnels }];
        });
        let page = browser.get("/").await.body;
        for tag in ["<img", "<svg", "<a href=java", "<!--", "<?xml", "<form action=http", "<script>"] {
            assert!(!page.contains(tag), "{payload}: {page}");
        }
        assert!(!page.contains('\0'));
    }
    let log = browser.get("/log?host=%22%3E%3Cscript%3E&cloister=%3Cimg%3E").await.body;
    assert!(!log.contains("<script>") && !log.contains("<img"), "{log}");
}

#[tokio::test]
async fn a1_n2_what_hides_or_imitates_is_shown() {
    let served = Served::start();
    let browser = served.browser().await;
    let steering = "a\u{1b}[31m\u{202e}gpj.exe\u{200b}\r\n\u{feff}\u{2066}b";
    served.desk.ask("demo", "xn--80ak6aa92e.com:443", polite(steering));
    let page = browser.get("/").await.body;
    assert!(page.contains("a\\u{1b}[31m\\u{202e}gpj.exe\\u{200b}\\r\\n\\u{feff}\\u{2066}b"), "{page}");
    assert!(
        page.contains("xn--80ak6aa92e.com") && page.contains("reads as") && page.contains("аррӏе.com"),
        "{page}"
    );
    assert!(page.contains("international name: compare letter by letter"), "{page}");
    served.desk.ask("demo", "аpple.example.com:443", connection("curl"));
    assert!(browser.get("/").await.body.contains("mixes scripts"));
    let json = browser.get("/pending").await;
    assert_eq!(json.header("content-type"), Some("application/json"));
    assert!(!json.body.contains('\u{202e}') && !json.body.contains('\u{200b}'), "{}", json.body);
    assert_eq!(json.json()["pending"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn n6_the_part_that_somebody_registered_stands_out_and_user_content_is_named() {
    let served = Served::start();
    let browser = served.browser().await;
    served.desk.ask("demo", "a.evil.github.io:8443", connection("curl"));
    served.desk.ask("demo", "github.com.evil.co.uk:443", connection("curl"));
    served.desk.ask("demo", "203.0.113.7:22", connection("curl"));
    let page = browser.get("/").await.body;
    assert!(page.contains("a.<b class=\"registrable\">evil.github.io</b>"), "{page}");
    assert!(page.contains("user content: anybody can have a name below github.io"), "{page}");
    assert!(page.contains("github.com.<b class=\"registrable\">evil.co.uk</b>"), "{page}");
    assert!(page.contains("an address, no name"), "{page}");
}

#[tokio::test]
async fn the_page_works_without_a_script() {
    let served = Served::start();
    let browser = served.browser().await;
    let empty = browser.get("/").await.body;
    assert!(empty.contains("Nothing waits.") && empty.contains("<title>Cloister</title>"), "{empty}");
    assert!(empty.contains("<noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>"));
    let id = served.desk.ask("demo", "api.example.com:443", connection("curl"));
    let page = browser.get("/").await.body;
    assert!(page.contains("<title>(1) Cloister</title>"));
    for text in [
        &format!("action=\"/deny-domain/{id}\"") as &str,
        &format!("formaction=\"/approve-domain/{id}\" name=\"scope\" value=\"once\""),
        "decisions/projects/demo.yaml",
        "decisions/global.yaml",
        "*.example.com:443",
        "56 s left",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert!(!page.contains("autofocus") && !page.contains(" style=") && !page.contains(" onclick"));
}

#[tokio::test]
async fn a5_enter_in_a_field_does_not_allow() {
    let served = Served::start();
    let browser = served.browser().await;
    served.desk.ask("demo", "api.example.com:443", connection("curl"));
    let page = browser.get("/").await.body;
    let (_, form) = page.split_once("class=\"full\"").unwrap();
    let first = form.split("<button").nth(1).unwrap().split('>').next().unwrap();
    assert!(first.contains("disabled"), "the default button of a form with fields does nothing: {first}");
    let (quick, _) = page.split_once("<details").unwrap();
    let (_, quick) = quick.split_once("class=\"quick\"").unwrap();
    assert_eq!(quick.matches("<input").count(), quick.matches("type=\"hidden\"").count(), "{quick}");
}
