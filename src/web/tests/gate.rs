//! What no request gets past.

use super::desk::connection;
use super::*;

const FORM: &str = "application/x-www-form-urlencoded";
const PAGES: [&str; 6] = ["/", "/log", "/pending", "/events", "/log/events", "/session"];
const CHANGES: [&str; 7] =
    ["/approve-domain/ID", "/deny-domain/ID", "/approve/ID", "/deny/ID", "/undo/ID", "/deny-all", "/logout"];

#[tokio::test]
async fn i5_nothing_but_login_and_assets_works_without_a_session() {
    let served = Served::start();
    let id = served.desk.ask("demo", "api.example.com:443", connection("curl"));
    let stranger = served.stranger();
    for path in PAGES {
        assert_eq!(stranger.get(path).await.status, 401, "{path}");
    }
    let page = stranger.get("/").await;
    assert!(page.body.contains("cloister approvals open") && page.body.contains("try again"), "{page:?}");
    assert_eq!(stranger.get("/pending").await.json()["error"], "not_logged_in");
    let origin = format!("Origin: http://{}\r\n", stranger.host());
    for path in CHANGES {
        let path = path.replace("ID", id.as_str());
        assert_eq!(stranger.send(&path, &origin, FORM, "scope=once").await.status, 401, "{path}");
    }
    for asset in ["page.css", "page.js", "idle.svg", "waiting.svg"] {
        assert_eq!(stranger.get(&format!("/assets/{asset}")).await.status, 200, "{asset}");
    }
    assert_eq!(stranger.get("/assets/..%2fweb.rs").await.status, 404);
    assert!(served.desk.state().answers.is_empty());
}

#[tokio::test]
async fn i1_i2_a_sandbox_token_or_a_control_key_opens_nothing() {
    let served = Served::start();
    let stranger = served.stranger();
    let secret = "ab".repeat(32);
    for header in [
        format!("Authorization: Bearer {secret}\r\n"),
        format!("X-Cloister-Token: {secret}\r\n"),
        format!("Proxy-Authorization: Basic {secret}\r\n"),
        format!("Cookie: {}={secret}\r\n", served.page.shared.sessions.cookie_name()),
    ] {
        assert_eq!(stranger.get_with("/pending", &header).await.status, 401, "{header}");
    }
}

#[tokio::test]
async fn a4_only_the_own_names_of_this_machine_are_served() {
    let served = Served::start();
    let browser = served.browser().await;
    let port = served.page.address().port();
    let link = served.page.login_link().unwrap();
    let code = link.rsplit('/').next().unwrap();
    let (login, cookie) = (format!("/login/{code}"), browser.cookie());
    let ask = async |path: &str, host: &str| {
        browser.raw(&format!("GET {path} HTTP/1.1\r\n{host}Cookie: {cookie}\r\n\r\n")).await.status
    };
    for path in ["/", "/pending", "/events", "/assets/page.js", &login] {
        for host in [
            String::new(),
            "Host: \r\n".to_owned(),
            "Host: 127.0.0.1\r\n".to_owned(),
            "Host: evil.example\r\n".to_owned(),
            format!("Host: evil.example:{port}\r\n"),
            format!("Host: 127.0.0.1.evil.example:{port}\r\n"),
            format!("Host: 127.0.0.1:{}\r\n", port - 1),
            format!("Host: 127.0.0.1:{port}0\r\n"),
            format!("Host: 127.0.0.1.:{port}\r\n"),
            format!("Host: localhost.:{port}\r\n"),
            format!("Host: x.localhost.:{port}\r\n"),
            format!("Host: .localhost:{port}\r\n"),
            format!("Host: a..localhost:{port}\r\n"),
            format!("Host: evillocalhost:{port}\r\n"),
            format!("Host: localhost.evil.example:{port}\r\n"),
            format!("Host: 0.0.0.0:{port}\r\n"),
            format!("Host: [::1]:{port}\r\n"),
            format!("Host: user@127.0.0.1:{port}\r\n"),
            format!("Host: LOCALHOST:{port}\r\n"),
            format!("Host: 127.0.0.1:{port}\r\nHost: evil.example\r\n"),
            format!("Host: 127.0.0.1:{port}\r\nHost: 127.0.0.1:{port}\r\n"),
        ] {
            let status = ask(path, &host).await;
            // What is no host at all, hyper refuses itself.
            assert!(matches!(status, 421 | 400), "{path} {host:?}: {status}");
        }
    }
    assert_eq!(
        ask(&format!("http://evil.example:{port}/"), &format!("Host: 127.0.0.1:{port}\r\n")).await,
        421
    );
    for host in ["127.0.0.1", "localhost", "cloister.localhost", "a.b-1.localhost"] {
        assert_eq!(ask("/pending", &format!("Host: {host}:{port}\r\n")).await, 200, "{host}");
    }
    assert_eq!(
        ask(&login, &format!("Host: localhost:{port}\r\n")).await,
        303,
        "no refused host has used it up"
    );
}

#[tokio::test]
async fn a3_a_form_of_another_page_changes_nothing() {
    let served = Served::start();
    let id = served.desk.ask("demo", "api.example.com:443", connection("curl"));
    let (browser, other) = (served.browser().await, served.browser().await);
    let own = format!("http://{}", browser.host());
    let good = format!("csrf={}&scope=once", browser.token);
    let path = format!("/approve-domain/{id}");
    let origin = format!("Origin: {own}\r\n");
    let cases: Vec<(&str, String, &str, String)> = vec![
        ("no token", origin.clone(), FORM, "scope=once".to_owned()),
        ("empty token", origin.clone(), FORM, "csrf=&scope=once".to_owned()),
        ("token of another session", origin.clone(), FORM, format!("csrf={}", other.token)),
        ("a wrong token before the right one", origin.clone(), FORM, format!("csrf=x&{good}")),
        ("no word of the browser", String::new(), FORM, good.clone()),
        ("foreign origin", "Origin: http://evil.example\r\n".to_owned(), FORM, good.clone()),
        ("null origin", "Origin: null\r\n".to_owned(), FORM, good.clone()),
        ("https origin", format!("Origin: https://{}\r\n", browser.host()), FORM, good.clone()),
        ("another port", "Origin: http://127.0.0.1:1\r\n".to_owned(), FORM, good.clone()),
        (
            "another own name",
            format!("Origin: {}\r\n", own.replace("127.0.0.1", "localhost")),
            FORM,
            good.clone(),
        ),
        ("two origins", format!("{origin}{origin}"), FORM, good.clone()),
        ("cross-site", format!("{origin}Sec-Fetch-Site: cross-site\r\n"), FORM, good.clone()),
        ("same-site", format!("{origin}Sec-Fetch-Site: same-site\r\n"), FORM, good.clone()),
        (
            "foreign origin said to be the same",
            "Origin: http://evil.example\r\nSec-Fetch-Site: same-origin\r\n".to_owned(),
            FORM,
            good.clone(),
        ),
        ("json", origin.clone(), "application/json", good.clone()),
        ("json as text", origin.clone(), "text/plain", good.clone()),
        ("a multipart form", origin.clone(), "multipart/form-data; boundary=x", good.clone()),
    ];
    for (what, headers, media, body) in cases {
        let status = browser.send(&path, &headers, media, &body).await.status;
        assert!(matches!(status, 403 | 415), "{what}: {status}");
    }
    for path in ["/deny-all", "/logout", &format!("/undo/{id}")] {
        assert_eq!(browser.send(path, &origin, FORM, "scope=once").await.status, 403, "{path}");
    }
    assert_eq!(browser.get(&path).await.status, 405, "a link is no answer");
    assert!(served.desk.state().answers.is_empty());
    for headers in
        [origin.clone(), "Sec-Fetch-Site: same-origin\r\n".to_owned(), "Sec-Fetch-Site: none\r\n".to_owned()]
    {
        let id = served.desk.ask("demo", "api.example.com:443", connection("curl"));
        let status = browser.send(&format!("/deny-domain/{id}"), &headers, FORM, &good).await.status;
        assert_eq!(status, 303, "{headers}");
    }
}

#[tokio::test]
async fn a3_what_waits_is_told_to_the_page_alone() {
    let served = Served::start();
    let browser = served.browser().await;
    for path in ["/pending", "/events", "/log/events"] {
        for site in ["cross-site", "same-site", "", "same-origin\r\nSec-Fetch-Site: same-origin"] {
            let answer = browser.get_with(path, &format!("Sec-Fetch-Site: {site}\r\n")).await;
            assert_eq!(answer.status, 403, "{path} {site}");
        }
    }
    assert_eq!(browser.get_with("/pending", "Sec-Fetch-Site: same-origin\r\n").await.status, 200);
    // A link from elsewhere to the page itself is fine: the browser sends no cookie with it, and nothing changes.
    assert_eq!(browser.get_with("/", "Sec-Fetch-Site: cross-site\r\n").await.status, 200);
}

#[tokio::test]
async fn a5_every_answer_forbids_frames_scripts_and_sniffing() {
    let served = Served::start();
    let (browser, stranger) = (served.browser().await, served.stranger());
    let wrong_host = "GET / HTTP/1.0\r\nHost: evil.example\r\n\r\n";
    for answer in [
        browser.get("/").await,
        browser.get("/log").await,
        browser.get("/pending").await,
        browser.get("/nothing").await,
        browser.get("/assets/page.js").await,
        browser.get("/assets/nothing").await,
        browser.post("/deny-all", "").await,
        stranger.get("/").await,
        stranger.get("/login/x").await,
        stranger.raw(wrong_host).await,
        stranger.raw(&format!("DELETE / HTTP/1.0\r\nHost: {}\r\n\r\n", stranger.host())).await,
    ] {
        let policy = answer.header("content-security-policy").unwrap();
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'self'",
        ] {
            assert!(policy.contains(part), "{answer:?}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        for (name, value) in [
            ("x-frame-options", "DENY"),
            ("x-content-type-options", "nosniff"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{answer:?}");
        }
        let referrer = answer.header("referrer-policy");
        assert!(matches!(referrer, Some("no-referrer" | "same-origin")), "{answer:?}");
        assert!(
            answer.header("permissions-policy").is_some()
                && answer.header("access-control-allow-origin").is_none()
        );
    }
}

#[tokio::test]
async fn only_get_and_post_are_served_and_heads_and_forms_have_limits() {
    let served = Served::start();
    let browser = served.browser().await;
    for method in ["HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"] {
        let text = format!(
            "{method} / HTTP/1.0\r\nHost: {}\r\nCookie: {}\r\n\r\n",
            browser.host(),
            browser.cookie()
        );
        assert_eq!(browser.raw(&text).await.status, 405, "{method}");
    }
    let long = format!("reason={}", "x".repeat(20 << 10));
    assert_eq!(browser.post("/deny-all", &long).await.status, 413);
    let head = format!("X-Long: {}\r\n", "x".repeat(40 << 10));
    assert!(!matches!(browser.get_with("/", &head).await.status, 200));
    assert!(!matches!(browser.get_with("/", &"X-Many: 1\r\n".repeat(100)).await.status, 200));
}

#[test]
fn only_the_loopback_interface_is_bound() {
    let directory = tempfile::tempdir().unwrap();
    let page = Page::bind(&directory.path().join("page.json"), FakeDesk::new(directory.path())).unwrap();
    let listening = page.listener.lock().unwrap().as_ref().unwrap().local_addr().unwrap();
    assert!(listening.ip().is_loopback());
    assert_eq!(listening, page.address());
}
