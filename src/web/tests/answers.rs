//! What a human says, and what the desk hears.

use jiff::Timestamp;

use super::desk::connection;
use super::*;
use crate::approval::{Answer, Breadth, Outcome, Scope};
use crate::policy::Effect;
use crate::web::DeskError;

#[tokio::test]
async fn an_answer_reaches_the_desk_as_it_was_chosen() {
    let served = Served::start();
    let browser = served.browser().await;
    let cases = [
        ("approve-domain", "", Effect::Allow, Scope::Once, Breadth::Exact, None),
        ("approve-domain", "scope=session", Effect::Allow, Scope::Session, Breadth::Exact, None),
        ("approve", "scope=project&breadth=wildcard", Effect::Allow, Scope::Project, Breadth::Wildcard, None),
        (
            "deny-domain",
            "scope=global&breadth=exact&reason=+no+telemetry+",
            Effect::Deny,
            Scope::Global,
            Breadth::Exact,
            Some("no telemetry"),
        ),
        ("deny", "reason=", Effect::Deny, Scope::Once, Breadth::Exact, None),
    ];
    for (path, fields, effect, scope, breadth, reason) in cases {
        let id = served.desk.ask("demo", "api.example.com:443", connection("curl"));
        let answer = browser.post(&format!("/{path}/{id}"), fields).await;
        assert_eq!((answer.status, answer.header("location")), (303, Some("/")), "{path} {fields}");
        let (asked, said, who) = served.desk.state().answers.pop().unwrap();
        assert_eq!((asked, said), (id, Answer { effect, scope, breadth, reason: reason.map(str::to_owned) }));
        let who = who.to_string();
        let number = who.strip_prefix("page session ").unwrap();
        assert!(number.len() == 8 && !browser.cookie().contains(number), "{who}");
    }
}

#[tokio::test]
async fn the_script_is_answered_in_json() {
    let served = Served::start();
    let browser = served.browser().await;
    let id = served.desk.ask("demo", "api.example.com:443", connection("curl"));
    let answer = browser.post_json(&format!("/approve-domain/{id}"), "scope=session&breadth=wildcard").await;
    let expected = serde_json::json!({
        "status": "allowed", "id": id, "scope": "session", "pattern": "*.example.com:443", "problem": null,
        "text": "Allowed for this session: *.example.com:443", "can_undo": true,
    });
    assert_eq!((answer.status, answer.json()), (200, expected));
    let undone = browser.post_json(&format!("/undo/{id}"), "").await;
    assert_eq!((undone.status, &undone.json()["status"]), (200, &"undone".into()));
    let again = browser.post_json(&format!("/undo/{id}"), "").await;
    assert_eq!((again.status, &again.json()["hint"]), (409, &"an answer for once is over".into()));
}

#[tokio::test]
async fn what_cannot_be_answered_says_why() {
    let served = Served::start();
    let browser = served.browser().await;
    let id = served.desk.ask("demo", "example.com:443", connection("curl"));
    let long = format!("reason={}", "x".repeat(501));
    for (path, fields, status, error) in [
        ("approve-domain/0123456789abcdef", "", 404, "gone"),
        ("approve-domain/nonsense", "", 404, "gone"),
        ("undo/0123456789abcdef", "", 404, "gone"),
        (&format!("approve-domain/{id}"), "scope=forever", 400, "unfit"),
        (&format!("approve-domain/{id}"), "breadth=all", 400, "unfit"),
        (&format!("approve-domain/{id}"), "breadth=wildcard", 400, "unfit"),
        (&format!("deny-domain/{id}"), &long, 400, "unfit"),
        ("deny-all", "id=nonsense", 404, "gone"),
    ] {
        let answer = browser.post_json(&format!("/{path}"), fields).await;
        assert_eq!((answer.status, &answer.json()["error"]), (status, &error.into()), "{path} {fields}");
        let page = browser.post(&format!("/{path}"), fields).await;
        assert!(page.status == status && page.body.contains("Back to the requests"), "{page:?}");
    }
    assert!(served.desk.state().answers.is_empty());
    served.desk.state().refusal = Some(DeskError::Failed("cannot write `decisions/global.yaml`".to_owned()));
    let answer = browser.post_json(&format!("/deny-domain/{id}"), "").await;
    assert_eq!((answer.status, answer.body.contains("global.yaml")), (500, true));
}

#[tokio::test]
async fn a5_a_request_that_came_in_this_moment_is_not_answered() {
    let served = Served::start();
    let browser = served.browser().await;
    // A clock that stands: this request stays in its first half second for as long as the test takes.
    let soon = Timestamp::now() + jiff::SignedDuration::from_secs(3600);
    let id = served.desk.ask_at("demo", "api.example.com:443", connection("curl"), soon);
    let pending = served.desk.state().pending[0].clone();
    let age = |milliseconds| pending.created + jiff::SignedDuration::from_millis(milliseconds);
    for (milliseconds, is_early) in [(0, true), (499, true), (500, false), (60_000, false), (-60_000, false)]
    {
        let found = crate::web::answers::is_too_early(&*served.desk, &id, age(milliseconds));
        assert_eq!(found, is_early, "{milliseconds}");
    }
    drop(browser);
}

#[tokio::test]
async fn a5_an_answer_is_too_early_in_the_first_half_second() {
    let served = Served::start();
    let browser = served.browser().await;
    let old = Timestamp::now() - jiff::SignedDuration::from_millis(600);
    let id = served.desk.ask_at("demo", "old.example.com:443", connection("curl"), old);
    assert_eq!(browser.post_json(&format!("/approve-domain/{id}"), "scope=session").await.status, 200);
    // However long this takes on a busy machine, one of these is answered within its first half second.
    let mut tries = 0..100;
    loop {
        assert!(tries.next().is_some(), "nothing is too early");
        let id = served.desk.ask_at("demo", "new.example.com:443", connection("curl"), Timestamp::now());
        let answer = browser.post_json(&format!("/approve-domain/{id}"), "scope=once").await;
        if answer.status == 409 {
            assert_eq!(answer.json()["error"], "too_early");
            break;
        }
    }
}

#[tokio::test]
async fn a5_a_form_of_a_page_that_came_in_this_moment_does_nothing() {
    let served = Served::start();
    let browser = served.browser().await;
    let id = served.desk.ask("demo", "api.example.com:443", connection("curl"));
    let answered = served.desk.ask("demo", "b.example.com:443", connection("curl"));
    browser.post(&format!("/approve-domain/{answered}"), "scope=session").await;
    let page = browser.get("/").await.body;
    let (forms, marks) = (page.matches("<form").count(), page.matches("name=\"shown\"").count());
    assert_eq!(forms, marks + 1, "all but the logout: {page}");
    let (_, rest) = page.split_once("name=\"shown\" value=\"").unwrap();
    let shown: i64 = rest.split('"').next().unwrap().parse().unwrap();
    assert!((Timestamp::now().as_millisecond() - shown).abs() < 60_000, "{shown}");
    // The page says when it came; this one came a little later than the test can take.
    let paths = [format!("/approve-domain/{id}"), format!("/undo/{answered}"), "/deny-all".to_owned()];
    for path in &paths {
        let refused = async |shown: String| {
            let fields = format!("id={id}&scope=once&shown={shown}");
            let answer = browser.post_json(path, &fields).await;
            (answer.status == 409).then(|| assert_eq!(answer.json()["error"], "too_early")).is_some()
        };
        let mut tries = 0..100;
        while !refused(Timestamp::now().as_millisecond().to_string()).await {
            assert!(tries.next().is_some(), "{path}");
        }
        assert!(refused("soon".to_owned()).await && refused(String::new()).await, "{path}");
    }
    assert_eq!(served.desk.state().answers.len(), 1);
    let before = Timestamp::now().as_millisecond() - 600;
    for path in &paths {
        let answer = browser.post_json(path, &format!("scope=once&shown={before}")).await;
        assert_eq!(answer.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a6_a_group_is_denied_at_once_and_nothing_besides() {
    let served = Served::start();
    let browser = served.browser().await;
    let ids: Vec<_> = (0..8)
        .map(|number| served.desk.ask("demo", &format!("x{number}.example.com:443"), connection("curl")))
        .collect();
    let other = served.desk.ask("other", "api.example.com:443", connection("curl"));
    let page = browser.get("/").await.body;
    assert!(page.contains("data-group=\"demo-main\"") && !page.contains("data-group=\"other-main\""));
    // One came after the page was loaded, and one is over.
    served.desk.ask("demo", "late.example.com:443", connection("curl"));
    served.desk.end(&ids[0], Outcome::Withdrawn);
    let fields: Vec<_> = ids.iter().map(|id| format!("id={id}")).collect();
    assert!(ids.iter().all(|id| page.contains(&format!("name=\"id\" value=\"{id}\""))));
    let answer = browser.post("/deny-all", &fields.join("&")).await;
    assert_eq!(answer.status, 303);
    let page = browser.get("/").await.body;
    assert!(page.contains("7 denied; 1 could not be"), "{page}");
    assert!(!browser.get("/").await.body.contains("7 denied"), "it is told once");
    let left: Vec<_> =
        served.desk.state().pending.iter().map(|pending| pending.authority.to_string()).collect();
    assert_eq!(left, ["late.example.com:443", "api.example.com:443"]);
    assert!(
        served
            .desk
            .state()
            .answers
            .iter()
            .all(|(id, answer, _)| *id != other && answer.effect == Effect::Deny)
    );
}
