//! The page under attack: by what a sandbox writes, and by other pages in the same browser.

use std::io::Write;
use std::net::TcpListener;

use super::*;
use crate::system::origin::read_head;

/// What would be seen if any text of a sandbox were taken for more than text.
const MARKUP: &str =
    "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\"><b>bold</b>";

/// Serves one page of another origin, on the page's own address.
fn foreign(page: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let page = page.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let page = page.clone();
            std::thread::spawn(move || {
                read_head(&stream);
                let length = page.len();
                // A connection that the browser opens ahead of its need carries nothing.
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n\
                     Connection: close\r\n\r\n{page}"
                );
            });
        }
    });
    format!("http://{address}/")
}

#[test]
fn a1_a2_what_a_sandbox_writes_is_shown_and_never_run() {
    let Some(scene) = Scene::start("") else { return };
    let browser = &scene.browser;
    scene.is_live();
    let agent = format!("{MARKUP}\u{202e}gpj.exe\u{200b}");
    let curl = scene.curl("api", &["-A", &agent]);
    browser.shows(CARD, "<script>");
    let text = browser.text(CARD);
    for part in ["<img src=x onerror=", "<b>bold</b>", "\\u{202e}gpj.exe\\u{200b}", "unverified"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    scene.answer(DENY);
    assert_refused(curl, "denied_by_user");
    browser.gone(CARD);
    let reason = format!("{MARKUP}\u{1b}[2J\u{1b}]0;run\u{7}\n\u{2066}line two");
    let port = scene.origin.address.port();
    let request =
        scene.inside(&["cloister", "request", &format!("cdn.shop.test:{port}"), "--reason", &reason]);
    browser.shows(CARD, "cdn.shop.test");
    let text = browser.text(CARD);
    for part in ["<script>", "\\u{1b}[2J\\u{1b}]0;run\\u{7}\\n\\u{2066}line two", "unverified"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // With everything in place when it is loaded, too; and in the log.
    browser.reload();
    browser.shows(CARD, "\\u{1b}[2J");
    browser.holds("return document.title === '(1) Cloister'");
    assert_eq!(browser.count("#requests script, #requests img, #requests blockquote b"), 0);
    scene.is_live();
    scene.answer(DENY);
    assert!(collect(request).code != 0);
    browser.open(&format!("{}/log", scene.page()));
    browser.shows("#rows", "<script>");
    assert_eq!(browser.count("#rows script, #rows img, #rows b"), 0);
    assert!(!browser.title().contains("run"), "{}", browser.title());
    browser.quiet();
}

#[test]
fn a3_a_form_or_a_script_of_another_origin_answers_nothing() {
    let Some(scene) = Scene::start("") else { return };
    let browser = &scene.browser;
    scene.is_live();
    let mut curl = scene.curl("api", &[]);
    let id = browser.until("the number", || {
        browser
            .script("return document.querySelector('.card')?.dataset.requestId")
            .as_str()
            .map(str::to_owned)
    });
    browser.find(ALLOW_ONCE);
    // Older than the guardian's own half second: nothing else is in the way.
    browser.holds("return document.querySelector('.card').dataset.armed === 'true'");
    let page = scene.page();
    let path = format!("/approve-domain/{id}");
    // On the same address but another port the browser takes both for one site, and sends the cookie.
    let form = format!(
        "<title>foreign</title><form method=post action='{page}{path}'><input name=scope value=global>\
         <input name=csrf value=0></form><script>document.forms[0].submit()</script>"
    );
    browser.open(&foreign(&form));
    browser.shows("h1", "Not from this page");
    assert!(browser.address().ends_with(&path), "{}", browser.address());
    let script = format!(
        "<title>foreign</title><script>
           const body = new URLSearchParams({{scope: 'global', csrf: '0'}});
           const post = (options) => fetch('{page}{path}', {{method: 'POST', credentials: 'include', body, ...options}})
             .then((answer) => answer.type, () => 'refused');
           const read = fetch('{page}/pending', {{credentials: 'include'}}).then((a) => a.text(), () => 'refused');
           Promise.all([post({{}}), post({{mode: 'no-cors'}}), read]).then((all) => document.title = all.join());
         </script>"
    );
    browser.open(&foreign(&script));
    browser.holds("return document.title === 'refused,refused,refused'");
    // From another site, without the cookie.
    let other = Plain::serve(move |mut stream| {
        read_head(&stream);
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{form}",
            form.len()
        );
    });
    browser.open(&format!("http://{}/", other.address));
    browser.shows("h1", "Not logged in");
    browser.complaints();
    // It waits still, and its answer is what the page says.
    assert_eq!(curl.try_wait().unwrap(), None);
    assert_eq!(scene.origin.connections(), 0);
    browser.open(&page);
    scene.is_live();
    scene.answer(ALLOW_ONCE);
    assert_passed(curl);
    browser.quiet();
}

#[test]
fn a4_a18_a_rebound_name_opens_nothing_and_a_link_works_once() {
    let names = Some("MAP rebound.test 127.0.0.1, MAP *.localhost 127.0.0.1".to_owned());
    let Some(scene) = Scene::with("", &Setup { is_without_script: false, names }) else { return };
    let browser = &scene.browser;
    let status = "return performance.getEntriesByType('navigation')[0].responseStatus";
    let page = scene.page();
    let port = page.rsplit_once(':').unwrap().1;
    for path in ["", "login/0", "log", "assets/page.js"] {
        browser.open(&format!("http://rebound.test:{port}/{path}"));
        assert_eq!(browser.script(status), json!(421), "{path}");
    }
    browser.complaints();
    // A link that was used opens nothing for the next one, who has no cookie.
    let link = scene.link();
    let logout = || {
        browser.open(&page);
        scene.is_live();
        browser.click("#logout");
        browser.shows("h1", "Not logged in");
    };
    logout();
    browser.open(&link);
    browser.find("#requests");
    assert_eq!(browser.address(), format!("{page}/"));
    assert_eq!(browser.script("return document.cookie"), json!(""));
    logout();
    browser.open(&link);
    browser.shows("h1", "This link is used up");
    browser.open(&page);
    browser.shows("h1", "Not logged in");
    // Nor does what a page of another origin loads ahead use a link up.
    let link = scene.link();
    let thief = format!(
        "<title>foreign</title><link rel=prefetch href='{link}'><img src='{link}'><iframe src='{link}'></iframe>"
    );
    browser.open(&foreign(&thief));
    browser.holds("return document.readyState === 'complete'");
    browser.open(&link);
    browser.find("#requests");
}

#[test]
fn a5_buttons_rest_cards_stay_and_no_page_frames_this_one() {
    let Some(scene) = Scene::start("") else { return };
    let browser = &scene.browser;
    scene.is_live();
    // What comes under a hand that clicks already is not answered by it.
    browser.script(
        "window.seen = {}; new MutationObserver(() => {
           for (const card of document.querySelectorAll('.card')) {
             const allow = card.querySelector('[data-action=allow]');
             if (!window.seen[card.id]) {
               window.seen[card.id] = {begun: performance.now(), disabled: allow.disabled};
               allow.click();
             }
             const seen = window.seen[card.id];
             if (!allow.disabled) { seen.armed ??= performance.now() - seen.begun; }
           }
         }).observe(document.querySelector('#pending'), {childList: true, subtree: true, attributes: true})",
    );
    let first = scene.curl("api", &[]);
    browser.find(ALLOW_ONCE);
    browser.holds("return Object.values(window.seen)[0]?.armed > 0");
    let seen = browser.script("return Object.values(window.seen)[0]");
    assert_eq!(seen["disabled"], json!(true), "{seen}");
    // Half a second from its place in the page, which this script hears of later on a busy machine.
    assert!(seen["armed"].as_f64().unwrap() >= 250.0, "{seen}");
    assert_eq!(browser.count(CARD), 1);
    // A card does not move while the pointer is there.
    let place = "const box = document.querySelector('.card').getBoundingClientRect(); return [box.x, box.y]";
    let before = browser.script(place);
    browser.hover(ALLOW_ONCE);
    let second = scene.curl("cdn", &[]);
    browser.shows("#new", "1 new request");
    assert_eq!((browser.count(CARD), browser.script(place)), (1, before));
    browser.hover("#logout");
    browser.until("both", || (browser.count(CARD) == 2).then_some(()));
    browser.quiet();
    // Another page can't show this one below its own bait.
    let page = scene.page();
    browser.open(&foreign(&format!("<title>foreign</title><iframe src='{page}/'></iframe>")));
    let complaint = browser.until("the refusal", || browser.complaints().pop());
    assert!(complaint.contains("frame-ancestors") || complaint.contains("X-Frame-Options"), "{complaint}");
    browser.open(&page);
    scene.is_live();
    scene.answer(DENY);
    browser.until("one", || (browser.count(CARD) == 1).then_some(()));
    scene.answer(DENY);
    assert_refused(first, "denied_by_user");
    assert_refused(second, "denied_by_user");
}

#[test]
fn a6_n2_n6_a_flood_is_one_group_with_one_answer_and_names_that_deceive_are_marked() {
    let Some(browser) = Browser::start() else { return };
    let host = Host::new(crate::harness::User::Ordinary);
    host.configure("proxy: {unlisted: ask}");
    host.ok(&["guardian", "start"]);
    let client = Client::register(&host, "demo");
    browser.open(host.ok(&["approvals", "open"]).trim());
    browser.holds("return document.body.dataset.online === 'true'");
    let ask = |authority: &str| {
        let (client, authority) = (client.clone(), authority.to_owned());
        std::thread::spawn(move || client.connect(&authority).unwrap_err())
    };
    let mut asking = vec![ask("somebody.github.io:443"), ask("xn--80ak6aa92e.com:8443")];
    browser.until("both", || (browser.count(CARD) == 2).then_some(()));
    for shown in [
        "user content",
        "github.io",
        "xn--80ak6aa92e.com",
        "reads as \u{430}\u{440}\u{440}\u{4cf}\u{435}.com",
        ":8443",
    ] {
        browser.shows("#pending", shown);
    }
    // What anybody may share a name with is not allowed together.
    browser.holds(
        "return [...document.querySelectorAll('.card')].every((card) => !card.querySelector('[value=wildcard]'))",
    );
    asking.extend((0..10).map(|number| ask(&format!("h{number}.shop.test:443"))));
    browser.until("all", || (browser.count(CARD) == 12).then_some(()));
    browser.find(".group[data-group=demo]");
    browser.holds("return document.title === '(12) Cloister'");
    browser.click(".group [data-action=deny-all]");
    for answer in asking {
        assert!(answer.join().unwrap().contains("denied_by_user"));
    }
    browser.holds("return document.title === 'Cloister'");
    browser.quiet();
}
