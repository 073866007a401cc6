//! The approval page in a browser, with a real sandbox behind it whose `curl` waits for the answer.

use std::process::Child;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{Browser, Setup};
use crate::harness::{Done, Host, collect};
use crate::system::control::Client;
use crate::system::origin::Plain;

mod attacks;

const ALLOW_ONCE: &str = ".card:not(.ended) .quick [data-action=allow][data-scope=once]";
const ALLOW_SESSION: &str = ".card:not(.ended) .quick [data-action=allow][data-scope=session]";
const DENY: &str = ".card:not(.ended) .quick [data-action=deny]";
const CARD: &str = ".card:not(.ended)";

/// A sandbox `demo` that runs, and a browser that is logged in.
struct Scene {
    origin: Plain,
    host: Host,
    browser: Browser,
}

impl Scene {
    /// Everything under `shop.test` leads to one origin; `settings` are further ones of the proxy.
    fn start(settings: &str) -> Option<Self> {
        Self::with(settings, &Setup::default())
    }

    fn with(settings: &str, setup: &Setup) -> Option<Self> {
        let host = Host::with_bubblewrap()?;
        let browser = Browser::with(setup)?;
        let origin = Plain::start("the page");
        let address = origin.address.ip();
        let names: Vec<String> =
            ["api", "cdn", "www"].iter().map(|name| format!("{name}.shop.test: [{address}]")).collect();
        host.configure(&format!("proxy:\n  unlisted: ask\n  hosts: {{{}}}\n{settings}", names.join(", ")));
        host.ok(&["start", "-d"]);
        let scene = Self { origin, host, browser };
        scene.browser.open(&scene.link());
        scene.browser.find("#requests");
        Some(scene)
    }

    /// A link that logs in.
    fn link(&self) -> String {
        self.host.ok(&["approvals", "open"]).trim().to_owned()
    }

    /// Where the page is, without a slash at the end.
    fn page(&self) -> String {
        let link = self.link();
        let (page, _) = link.split_once("/login/").unwrap();
        page.to_owned()
    }

    fn url(&self, name: &str) -> String {
        format!("http://{name}.shop.test:{}/", self.origin.address.port())
    }

    /// Asks for a host from inside: `curl` ends when it is answered.
    fn curl(&self, name: &str, arguments: &[&str]) -> Child {
        self.inside(&[&["curl", "-sS", "-w", " %{http_code}", &self.url(name)], arguments].concat())
    }

    fn inside(&self, arguments: &[&str]) -> Child {
        let mut command = self.host.cloister(&[&["exec", "demo", "--"], arguments].concat());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn().unwrap()
    }

    /// Presses a button of a card, and takes the pointer away: what comes next is not shown below it.
    #[track_caller]
    fn answer(&self, button: &str) {
        self.browser.click(button);
        self.browser.hover("#logout");
    }

    /// Waits until the page itself hears of what happens, if it can.
    fn is_live(&self) {
        self.browser.holds("return document.body.dataset.online === 'true'");
    }

    fn kill_guardian(&self) {
        let status: Value = serde_json::from_str(&self.host.ok(&["guardian", "status", "--json"])).unwrap();
        let pid = i32::try_from(status[0]["pid"].as_i64().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
}

#[track_caller]
fn assert_passed(child: Child) {
    let done = collect(child);
    assert_eq!(done, Done { code: 0, stdout: "the page 200".to_owned(), stderr: String::new() });
}

#[track_caller]
fn assert_refused(child: Child, reason: &str) {
    let done = collect(child);
    assert!(done.stdout.ends_with(" 403") && done.stdout.contains(&format!("\"{reason}\"")), "{done:?}");
}

#[test]
fn a_held_request_is_allowed_denied_allowed_with_its_siblings_and_asked_anew_after_undo() {
    let Some(scene) = Scene::start("") else { return };
    let browser = &scene.browser;
    scene.is_live();
    assert_eq!(browser.title(), "Cloister");
    browser.shows("#empty", "Nothing waits");
    // Once.
    let curl = scene.curl("api", &[]);
    browser.shows(CARD, "api.shop.test");
    for part in [&format!(":{}", scene.origin.address.port()), "demo", "calls itself", "curl/", "1 waits"] {
        browser.shows(CARD, part);
    }
    assert_eq!(browser.title(), "(1) Cloister");
    assert_eq!(scene.origin.connections(), 0);
    scene.answer(ALLOW_ONCE);
    assert_passed(curl);
    browser.find("#decisions [data-kind=allowed]");
    // Once is over: it asks again, and is denied.
    let curl = scene.curl("api", &[]);
    scene.answer(DENY);
    assert_refused(curl, "denied_by_user");
    browser.find("#decisions [data-kind=denied]");
    // With all beside it, for the session.
    let curl = scene.curl("api", &[]);
    browser.find(CARD);
    browser.click(".card:not(.ended) summary");
    browser.click(".card:not(.ended) .full [value=session]");
    browser.click(".card:not(.ended) .full [value=wildcard]");
    scene.answer(".card:not(.ended) .full [data-action=allow]");
    assert_passed(curl);
    assert_passed(scene.curl("cdn", &[]));
    browser.shows("#decisions", "*.shop.test");
    // Taken back, the next one is asked about.
    browser.click("#decisions [data-kind=allowed] [data-action=undo]");
    browser.gone("#decisions-list li:first-child [data-action=undo]");
    let mut curl = scene.curl("cdn", &["--max-time", "60"]);
    browser.shows(CARD, "cdn.shop.test");
    browser.shows("#cloisters", "demo");
    // Who asked is gone, and so is the question.
    scene.host.ok(&["exec", "demo", "--", "sh", "-c", "kill $(pgrep -x curl || pidof curl)"]);
    assert_ne!(curl.wait().unwrap().code(), Some(0));
    browser.gone(CARD);
    browser.holds("return document.title === 'Cloister'");
    browser.quiet();
    let log = scene.host.ok(&["audit"]);
    assert!(
        log.contains("proxy.ask") && log.contains("approval.decided") && log.contains("page session"),
        "{log}"
    );
}

#[test]
fn two_tabs_see_the_same_and_what_nobody_answers_goes() {
    let Some(scene) = Scene::start("  approval_timeout: 5s\n") else { return };
    let browser = &scene.browser;
    scene.is_live();
    let first = browser.new_tab();
    browser.open(&scene.page());
    scene.is_live();
    let curl = scene.curl("api", &[]);
    browser.find(CARD);
    let second = browser.switch(first);
    browser.find(CARD);
    scene.answer(ALLOW_ONCE);
    assert_passed(curl);
    let first = browser.switch(second);
    browser.gone(CARD);
    browser.find("#decisions [data-kind=allowed]");
    let curl = scene.curl("api", &[]);
    browser.find(CARD);
    assert_refused(curl, "approval_timeout");
    browser.gone(CARD);
    browser.quiet();
    browser.switch(first);
    browser.gone(CARD);
    browser.quiet();
}

#[test]
fn i9_the_page_comes_back_after_the_guardian_was_killed_and_so_do_the_grants() {
    let Some(scene) = Scene::start("") else { return };
    scene.is_live();
    let curl = scene.curl("www", &[]);
    scene.answer(ALLOW_SESSION);
    assert_passed(curl);
    let is_back = (0..5).any(|_| {
        let is_back = comes_back(&scene);
        if !is_back {
            scene.browser.open(&scene.link());
            scene.is_live();
        }
        is_back
    });
    assert!(is_back, "each time another test's guardian took the port");
    let complaints = scene.browser.complaints();
    assert!(complaints.iter().all(|complaint| complaint.contains("net::ERR_")), "{complaints:?}");
}

/// Kills the guardian below a page and starts another one; false when it could not have the same port.
fn comes_back(scene: &Scene) -> bool {
    let (browser, page) = (&scene.browser, scene.page());
    let curl = scene.curl("api", &[]);
    browser.find(CARD);
    scene.kill_guardian();
    let done = collect(curl);
    assert!(!done.stdout.contains("the page") && !done.stdout.ends_with("200"), "{done:?}");
    browser.holds("return document.body.dataset.online === 'false'");
    let told = browser.text("#connection");
    assert_eq!(browser.count(".card button:enabled"), 0, "nothing can be answered");
    scene.host.ok(&["guardian", "start"]);
    if scene.page() != page {
        browser.complaints();
        return false;
    }
    assert!(told.contains("Connection lost"), "{told}");
    // Without a hand: the same session, and the state as it is.
    scene.is_live();
    browser.gone(CARD);
    assert_passed(scene.curl("www", &[]));
    let curl = scene.curl("api", &[]);
    scene.answer(ALLOW_ONCE);
    assert_passed(curl);
    true
}

#[test]
fn keys_answer_in_a_narrow_window_that_scrolls_one_way() {
    let Some(scene) = Scene::start("") else { return };
    let browser = &scene.browser;
    scene.is_live();
    browser.resize(360, 640);
    let curl = scene.curl("api", &[]);
    browser.find(CARD);
    browser.holds("return document.documentElement.scrollWidth <= innerWidth");
    // The first key finds the card, and none answers before its time.
    browser.press("j");
    browser.holds("return document.activeElement.matches('.card')");
    browser.holds("return document.activeElement.dataset.armed === 'true'");
    browser.press("d");
    assert_refused(curl, "denied_by_user");
    browser.press("\u{e00c}");
    browser.gone(CARD);
    let curl = scene.curl("api", &[]);
    browser.find(CARD);
    browser.press("j");
    browser.holds("return document.activeElement.dataset.armed === 'true'");
    // Enter answers nothing that nobody chose.
    browser.press("\u{e007}");
    browser.press("a");
    assert_passed(curl);
    browser.quiet();
}

#[test]
fn without_script_the_page_answers_with_forms() {
    let Some(scene) = Scene::with("", &Setup { is_without_script: true, names: None }) else { return };
    let browser = &scene.browser;
    // Without script nothing tells of the card, and nothing lets its buttons rest: the guardian itself refuses what
    // comes in the first half second, of the request and of the page.
    let answer = |button: &str| {
        browser.until("the answer", || {
            browser.open(&scene.page());
            if browser.count(CARD) == 1 {
                browser.holds("return Date.now() - document.querySelector('[name=shown]')?.value > 500");
                browser.click(button);
            }
            (browser.count("#flash") == 1).then_some(())
        });
    };
    let curl = scene.curl("api", &[]);
    answer(ALLOW_ONCE);
    browser.shows("#flash", "llowed");
    assert_passed(curl);
    let curl = scene.curl("api", &[]);
    answer(DENY);
    assert_refused(curl, "denied_by_user");
    browser.find("#decisions [data-kind=denied]");
}

/// No assertion: how long it takes depends on the machine.
#[test]
#[expect(clippy::print_stderr, reason = "a measurement")]
fn the_time_from_request_to_card_is_measured() {
    let Some(browser) = Browser::start() else { return };
    let host = Host::new(crate::harness::User::Ordinary);
    host.configure("proxy: {unlisted: ask}");
    host.ok(&["guardian", "start"]);
    let client = Client::register(&host, "demo");
    browser.open(host.ok(&["approvals", "open"]).trim());
    browser.holds("return document.body.dataset.online === 'true'");
    browser.script(
        "window.shown = {}; new MutationObserver(() => {
           for (const card of document.querySelectorAll('.card')) {
             const host = card.querySelector('.host').textContent;
             if (!window.shown[host]) { requestAnimationFrame(() => window.shown[host] ??= Date.now()); }
           }
         }).observe(document.querySelector('#pending'), {childList: true, subtree: true})",
    );
    let mut taken = Vec::new();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let authority = format!("h{number}.shop.test:443");
            let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let (client, name) = (&client, authority.clone());
            scope.spawn(move || client.connect(&name));
            let shown = browser.until("the card", || {
                browser.script(&format!("return window.shown['{authority}']")).as_u64()
            });
            taken.push(Duration::from_millis(shown).saturating_sub(begun));
        }
        host.ok(&["guardian", "stop", "--yes"]);
    });
    taken.sort_unstable();
    eprintln!(
        "from request to painted card: median {:?}, longest {:?}",
        taken[taken.len() / 2],
        taken.last().unwrap()
    );
}
