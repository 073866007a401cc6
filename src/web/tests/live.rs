//! Event streams.

use std::time::Duration;

use super::desk::{connection, pending};
use super::*;
use crate::approval::Outcome;
use crate::audit::{AuditLog, Event, Record, Storage};
use crate::name::CloisterName;
use crate::web::Cloister;

const STORAGE: Storage = Storage { per_cloister: false, max_bytes: 1 << 30, max_files: 8 };

#[tokio::test]
async fn a_stream_begins_with_everything_and_goes_on_with_what_changes() {
    let served = Served::start();
    let browser = served.browser().await;
    let first = served.desk.ask("demo", "api.example.com:443", connection("curl"));
    let mut events = browser.events("/events").await;
    let (name, sync) = events.next().await.unwrap();
    assert_eq!((name.as_str(), &sync["count"]), ("sync", &1.into()));
    assert!(sync["list"].as_str().unwrap().contains(&format!("id=\"request-{first}\"")));
    assert_eq!(served.desk.lookers(), 1);
    let mut unseen = browser.events("/events?away").await;
    assert_eq!(unseen.next().await.unwrap().0, "sync");
    assert_eq!(served.desk.lookers(), 1, "a page that nobody sees keeps nobody from being called");

    let second = served.desk.ask("demo", "b.example.com:443", connection("curl"));
    let (name, added) = events.next().await.unwrap();
    assert_eq!((name.as_str(), &added["count"], &added["id"]), ("added", &2.into(), &second.as_str().into()));
    let html = added["html"].as_str().unwrap();
    assert!(html.contains(&browser.token) && html.contains(&format!("/approve-domain/{second}")), "{html}");

    served.desk.change(|state| state.pending[0].waiting = 3);
    let (name, changed) = events.next().await.unwrap();
    assert_eq!((name.as_str(), &changed["waiting"]), ("changed", &"3 wait for it".into()));

    browser.post(&format!("/deny-domain/{second}"), "scope=session").await;
    let (name, ended) = events.next().await.unwrap();
    assert_eq!(
        (name.as_str(), &ended["id"], &ended["kind"]),
        ("ended", &second.as_str().into(), &"denied".into())
    );
    assert_eq!(ended["text"], "Denied for this session");
    let (name, decisions) = events.next().await.unwrap();
    assert_eq!(name, "decisions");
    assert!(decisions["html"].as_str().unwrap().contains(&format!("action=\"/undo/{second}\"")));

    served.desk.end(&first, Outcome::TimedOut);
    assert_eq!(events.until("ended").await["text"], "Not answered in time");
    served.desk.change(|state| state.problems.push("<the> log".to_owned()));
    assert!(events.until("problems").await["html"].as_str().unwrap().contains("&#60;the&#62; log"));
}

#[tokio::test]
async fn traffic_is_told_without_a_change_of_the_requests() {
    let served = Served::start();
    let browser = served.browser().await;
    let mut events = browser.events("/events").await;
    events.until("sync").await;
    let row = Cloister {
        name: "demo-main".to_owned(),
        project: "demo".to_owned(),
        network: "allowlist".to_owned(),
        allowed: 5,
        denied: 2,
        bytes_up: 1023,
        bytes_down: 5 << 20,
        tunnels: 1,
    };
    served.desk.state().cloisters.push(row);
    let html = events.until("cloisters").await["html"].as_str().unwrap().to_owned();
    for text in ["demo-main", "5 allowed", "2 denied", "1023 B up", "5.0 MiB down", "1 open"] {
        assert!(html.contains(text), "{text}: {html}");
    }
}

#[tokio::test]
async fn a6_a_crowd_becomes_a_group_and_a_flood_has_an_end() {
    let served = Served::start();
    let browser = served.browser().await;
    let mut events = browser.events("/events").await;
    events.until("sync").await;
    for number in 0..5 {
        served.desk.ask("demo", &format!("x{number}.example.com:443"), connection("curl"));
        events.until("added").await;
    }
    served.desk.ask("demo", "x5.example.com:443", connection("curl"));
    let list = events.until("list").await;
    assert!(list["list"].as_str().unwrap().contains("data-group=\"demo-main\""));
    served.desk.change(|state| {
        for number in 100..300 {
            let authority = format!("x{number}.example.com:443");
            state
                .pending
                .insert(0, pending(number, "demo", &authority, connection("curl"), state.pending[0].created));
        }
    });
    let list = events.until("list").await;
    let html = list["list"].as_str().unwrap();
    assert_eq!((html.matches("<article").count(), &list["count"]), (100, &206.into()));
    assert!(html.contains("106 more wait"));
    assert_eq!(browser.get("/").await.body.matches("<article").count(), 100);
}

#[tokio::test]
async fn a_stream_ends_with_its_session_and_with_the_page() {
    let served = Served::start();
    let (browser, other) = (served.browser().await, served.browser().await);
    let (mut events, mut others) = (browser.events("/events").await, other.events("/events").await);
    let mut log = browser.events("/log/events").await;
    events.until("sync").await;
    others.until("sync").await;
    log.until("sync").await;
    browser.post("/logout", "").await;
    while events.next().await.is_some() {}
    while log.next().await.is_some() {}
    served.desk.ask("demo", "api.example.com:443", connection("curl"));
    others.until("added").await;
    let desk = served.desk.clone();
    let stop = tokio::spawn(served.stop());
    while others.next().await.is_some() {}
    stop.await.unwrap();
    // The last viewer is dropped by a task of its own.
    while desk.lookers() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn i5_streams_have_a_number() {
    let served = Served::start();
    let browser = served.browser().await;
    let mut open = Vec::new();
    for _ in 0..16 {
        let mut events = browser.events("/events").await;
        events.until("sync").await;
        open.push(events);
    }
    let refused = browser.get("/events").await;
    assert_eq!((refused.status, &refused.json()["error"]), (503, &"too_many_streams".into()));
    drop(open.pop());
    while served.page.shared.streams.available_permits() == 0 {
        tokio::task::yield_now().await;
    }
    browser.events("/events").await.until("sync").await;
}

#[tokio::test]
async fn the_log_is_followed_with_its_filter() {
    let served = Served::start();
    let browser = served.browser().await;
    let log = AuditLog::open(&served.directory.path().join("audit"), STORAGE).unwrap();
    let demo = CloisterName::parse("demo-main").unwrap();
    let denied =
        |host: &str| Record::new(Event::ProxyDeny).cloister(&demo).host(host).port(443).reason("not_allowed");
    log.append(denied("a.example.com")).unwrap();
    log.append(denied("b.example.org")).unwrap();
    log.append(Record::new(Event::ProxyAllow).host("c.example.com")).unwrap();
    log.sync().unwrap();
    let query = "cloister=demo-main&event=proxy.deny&host=Example.COM";
    let page = browser.get(&format!("/log?{query}")).await.body;
    let found =
        |html: &str| ["a.example.com", "b.example.org", "c.example.com"].map(|host| html.contains(host));
    assert_eq!(found(&page), [true, false, false], "{page}");
    let mut events = browser.events(&format!("/log/events?{query}")).await;
    assert_eq!(found(events.until("sync").await["html"].as_str().unwrap()), [true, false, false]);
    log.append(denied("d.example.org")).unwrap();
    log.append(denied("e.example.com").detail("<i>\u{202e}")).unwrap();
    log.sync().unwrap();
    let rows = events.until("rows").await["html"].as_str().unwrap().to_owned();
    assert!(rows.contains("e.example.com:443") && !rows.contains("d.example.org"), "{rows}");
    assert!(rows.contains("&#60;i&#62;\\u{202e}"), "{rows}");
    for wrong in ["event=nonsense", "cloister=../..", &format!("host={}", "x".repeat(300))] {
        assert_eq!(browser.get(&format!("/log/events?{wrong}")).await.status, 400, "{wrong}");
        assert!(browser.get(&format!("/log?{wrong}")).await.body.contains("log-problem"), "{wrong}");
    }
}

#[tokio::test]
async fn only_the_last_records_are_shown() {
    let served = Served::start();
    let browser = served.browser().await;
    let empty = browser.get("/log").await.body;
    assert!(empty.contains("No record fits."), "{empty}");
    let log = AuditLog::open(&served.directory.path().join("audit"), STORAGE).unwrap();
    for number in 0..250 {
        log.append(Record::new(Event::ProxyAllow).host(format!("x{number}.example.com"))).unwrap();
    }
    log.sync().unwrap();
    let page = browser.get("/log").await.body;
    assert_eq!(page.matches("<tr class").count(), 200);
    assert!(page.contains("x249.example.com") && !page.contains(">x49.example.com"));
}

#[tokio::test(start_paused = true)]
async fn a_browser_that_takes_nothing_is_let_go() {
    let pulse = tokio::sync::watch::Sender::new(None);
    let stalled = tokio::spawn(crate::web::serve::stalled(pulse.subscribe()));
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert!(!stalled.is_finished(), "the page is at work");
    for _ in 0..20 {
        pulse.send_replace(Some(tokio::time::Instant::now()));
        tokio::time::sleep(Duration::from_secs(15)).await;
    }
    assert!(!stalled.is_finished(), "it takes heartbeats");
    tokio::time::timeout(Duration::from_mins(1), stalled).await.expect("it stalls").unwrap();
}
