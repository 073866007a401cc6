//! Notifications on a real session bus, with a desktop that the test plays.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloister::approval::{Answer, Breadth, Outcome, Pending, RequestId, Scope, Settled, Voice, Who};
use cloister::guardian::notify::{Bus, Caller, Count, Ways};
use cloister::policy::Effect;
use futures_util::StreamExt;
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Handle;
use tokio::time::{advance, pause, resume};
use zbus::connection::Builder;
use zbus::{Connection, MessageStream, OwnedVariant};

use super::control::Client;
use crate::harness::{Host, User, finish, plain};
use crate::requirement;

/// What the desktop was told.
#[derive(Debug, Clone, PartialEq)]
enum Told {
    Show { id: u32, replaces: u32, summary: String, body: String },
    Close(u32),
}

/// A bus of the test's own, at which nothing else is and that starts nothing.
struct Session {
    directory: tempfile::TempDir,
    daemon: Child,
}

impl Session {
    /// A bus; `None`, with the reason told, where there is no `dbus-daemon`.
    fn start() -> Option<Self> {
        let found =
            ["/usr/bin/dbus-daemon", "/bin/dbus-daemon"].iter().any(|path| fs::metadata(path).is_ok());
        if !found {
            requirement::skip("dbus", "there is no `dbus-daemon`");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let daemon = Self::spawn(&directory);
        Some(Self { directory, daemon })
    }

    fn spawn(directory: &tempfile::TempDir) -> Child {
        let path = directory.path();
        let rules = r#"<allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/>"#;
        let socket = path.join("bus");
        let config = format!(
            "<busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
             <policy context='default'>{rules}</policy></busconfig>",
            socket.display()
        );
        fs::write(path.join("config"), config).unwrap();
        let mut command = plain("dbus-daemon");
        command.arg("--config-file").arg(path.join("config")).args(["--nofork", "--print-address"]);
        let mut daemon = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        assert!(address.starts_with("unix:"), "{address:?}");
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("bus")
    }

    fn bus(&self) -> Bus {
        let address = format!("unix:path={},guid=00", self.socket().display());
        Bus::from_environment(|name| (name == "DBUS_SESSION_BUS_ADDRESS").then(|| address.clone().into()))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.daemon), signal).unwrap();
    }

    fn end(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }

    /// Puts another bus in the place of the one that ended.
    fn restart(&mut self) {
        fs::remove_file(self.socket()).unwrap();
        self.daemon = Self::spawn(&self.directory);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

/// The desktop: writes down what it is told.
struct Desktop {
    told: Arc<Mutex<Vec<Told>>>,
    connection: Connection,
}

type Arguments = (String, u32, String, String, String, Vec<String>, HashMap<String, OwnedVariant>, i32);

impl Desktop {
    /// Numbers its notifications from `first` on.
    async fn start(session: &Session, first: u32) -> Self {
        let stream = UnixStream::connect(session.socket()).unwrap();
        let connection = Builder::unix_stream(stream).build().await.unwrap();
        let mut messages = MessageStream::from(&connection);
        connection.request_name("org.freedesktop.Notifications").await.unwrap();
        let told = Arc::<Mutex<Vec<Told>>>::default();
        let (heard, replying) = (Arc::clone(&told), connection.clone());
        tokio::spawn(async move {
            let mut next = first;
            while let Some(Ok(message)) = messages.next().await {
                let header = message.header();
                match header.member().map(|member| member.as_str().to_owned()).as_deref() {
                    Some("Notify") => {
                        let arguments: Arguments = message.body().deserialize().unwrap();
                        let told = read(arguments, &mut next);
                        let Told::Show { id, .. } = told else { unreachable!() };
                        heard.lock().unwrap().push(told);
                        replying.reply(&header, &(id,)).await.unwrap();
                    }
                    Some("CloseNotification") => {
                        let (id,): (u32,) = message.body().deserialize().unwrap();
                        heard.lock().unwrap().push(Told::Close(id));
                        replying.reply(&header, &()).await.unwrap();
                    }
                    _ => {}
                }
            }
        });
        Self { told, connection }
    }

    fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    async fn hears(&self, wanted: &[Told]) {
        until(&format!("{wanted:?}"), || self.told() == wanted).await;
    }
}

/// Reads a call, and expects of it what all have in common (A5: nothing on it can be pressed).
fn read(arguments: Arguments, next: &mut u32) -> Told {
    let (application, replaces, icon, summary, body, actions, hints, expiry) = arguments;
    assert_eq!((application.as_str(), icon.as_str()), ("Cloister", "dialog-question"));
    assert_eq!(actions, [] as [&str; 0]);
    assert_eq!(u8::try_from(&*hints["urgency"]), Ok(1));
    assert_eq!(<&str>::try_from(&*hints["category"]), Ok("x-cloister.approval.waits"));
    assert!((1..=60_000).contains(&expiry), "{expiry}");
    let id = if replaces == 0 { *next } else { replaces };
    *next += u32::from(replaces == 0);
    Told::Show { id, replaces, summary, body }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(std::time::Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Lets the pause of a cloister pass, once so many calls are through: one that is under way would be too late.
async fn pass_the_pause(caller: &Caller, done: u64) {
    until("the calls are through", || caller.counts().desktop.done == done).await;
    pause();
    advance(Duration::from_secs(10)).await;
    resume();
}

fn pending(cloister: &str, number: u64, reason: &str) -> Pending {
    let created: jiff::Timestamp = "2026-11-22T20:00:00Z".parse().unwrap();
    let authority = format!("h{number}.example:443");
    Pending {
        id: RequestId::from_bytes(number.to_be_bytes()),
        cloister: cloister.parse().unwrap(),
        project: "demo".parse().unwrap(),
        branch: None,
        authority: authority.parse().unwrap(),
        voice: Voice::Polite { reason: Some(reason.to_owned()) },
        created,
        expires: created + Duration::from_mins(1),
        left_ms: 60_000,
        waiting: 1,
        exact: authority,
        wildcard: None,
    }
}

fn answered(pending: &Pending) -> Settled {
    let Pending { id, cloister, project, authority, exact, created, .. } = pending.clone();
    let answer = Answer { effect: Effect::Allow, scope: Scope::Once, breadth: Breadth::Exact, reason: None };
    let outcome = Outcome::Answered { answer, pattern: exact, who: Who::Terminal(1) };
    Settled { id, cloister, project, authority, outcome, at: created, problem: None, can_undo: false }
}

fn show(id: u32, replaces: u32, summary: &str, reason: &str) -> Told {
    let body = format!("It says {reason}.\nAnswer with `cloister approvals watch`.");
    Told::Show { id, replaces, summary: summary.to_owned(), body }
}

fn ways() -> Ways {
    Ways { desktop: true, command: Vec::new(), page: None }
}

#[tokio::test]
async fn a2_a5_a_cloister_has_one_notification_that_is_replaced_and_closed() {
    let Some(session) = Session::start() else { return };
    let desktop = Desktop::start(&session, 7).await;
    let caller = Caller::spawn(&Handle::current(), session.bus());
    let [first, second, third] =
        [1, 2, 3].map(|number| pending("demo-main", number, "<img src=x>\u{1b}[2J&"));
    caller.waiting(&first, &ways());
    let reason = "\"&lt;img src=x&gt;\\u{1b}[2J&amp;\"";
    let mut told = vec![show(7, 0, "demo-main wants h1.example:443", reason)];
    desktop.hears(&told).await;
    caller.waiting(&second, &ways());
    caller.waiting(&third, &ways());
    let other = pending("other-main", 4, "please");
    caller.waiting(&other, &ways());
    told.push(show(8, 0, "other-main wants h4.example:443", "\"please\""));
    desktop.hears(&told).await;
    pass_the_pause(&caller, 2).await;
    told.push(show(7, 7, "demo-main wants h3.example:443 and 2 more hosts", reason));
    desktop.hears(&told).await;
    caller.settled(&answered(&other), 0);
    told.push(Told::Close(8));
    desktop.hears(&told).await;
    caller.settled(&answered(&first), 2);
    caller.settled(&answered(&second), 1);
    caller.settled(&answered(&third), 0);
    told.push(Told::Close(7));
    desktop.hears(&told).await;
    // What was closed is not replaced.
    pass_the_pause(&caller, 3).await;
    caller.waiting(&pending("demo-main", 5, "please"), &ways());
    told.push(show(9, 0, "demo-main wants h5.example:443", "\"please\""));
    desktop.hears(&told).await;
    until("all worked", || caller.counts().desktop == Count { done: 4, failed: 0 }).await;
}

#[tokio::test]
async fn another_bus_in_the_place_of_the_last_is_found() {
    let Some(mut session) = Session::start() else { return };
    let desktop = Desktop::start(&session, 1).await;
    let caller = Caller::spawn(&Handle::current(), session.bus());
    caller.waiting(&pending("demo-main", 1, "one"), &ways());
    desktop.hears(&[show(1, 0, "demo-main wants h1.example:443", "\"one\"")]).await;
    pass_the_pause(&caller, 1).await;
    session.end();
    session.restart();
    let desktop = Desktop::start(&session, 50).await;
    caller.waiting(&pending("demo-main", 2, "two"), &ways());
    // The number of the last bus means nothing here.
    desktop.hears(&[show(50, 0, "demo-main wants h2.example:443 and 1 more host", "\"two\"")]).await;
    until("it is shown", || caller.counts().desktop.done == 2).await;
    // Without a bus, a call fails, and the next one that finds a bus works.
    session.end();
    caller.waiting(&pending("other-main", 3, "three"), &ways());
    until("it failed", || caller.counts().desktop == Count { done: 2, failed: 1 }).await;
    session.restart();
    let desktop = Desktop::start(&session, 90).await;
    caller.waiting(&pending("third-main", 4, "four"), &ways());
    desktop.hears(&[show(90, 0, "third-main wants h4.example:443", "\"four\"")]).await;
}

#[tokio::test]
async fn a_bus_that_stops_in_the_middle_and_one_without_a_desktop_are_failures() {
    let Some(mut session) = Session::start() else { return };
    let caller = Caller::spawn(&Handle::current(), session.bus());
    caller.waiting(&pending("demo-main", 1, "one"), &ways());
    until("nobody shows it", || caller.counts().desktop == Count { done: 0, failed: 1 }).await;
    let desktop = Desktop::start(&session, 1).await;
    caller.waiting(&pending("other-main", 2, "two"), &ways());
    desktop.hears(&[show(1, 0, "other-main wants h2.example:443", "\"two\"")]).await;
    until("it is shown", || caller.counts().desktop.done == 1).await;
    session.signal(Signal::STOP);
    let stuck = pending("third-main", 3, "three");
    caller.waiting(&stuck, &ways());
    pause();
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while caller.counts().desktop.failed < 2 {
        assert!(std::time::Instant::now() < end, "it does not give up");
        advance(Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
    }
    resume();
    caller.settled(&answered(&stuck), 0);
    session.end();
    drop(desktop.connection);
    session.restart();
    let desktop = Desktop::start(&session, 20).await;
    caller.waiting(&pending("fourth-main", 4, "four"), &ways());
    desktop.hears(&[show(20, 0, "fourth-main wants h4.example:443", "\"four\"")]).await;
}

#[tokio::test]
async fn a_request_that_nobody_sees_reaches_the_desktop_and_the_users_program_through_the_guardian() {
    let Some(session) = Session::start() else { return };
    let desktop = Desktop::start(&session, 3).await;
    let host = Host::new(User::Same);
    let (seen, moved) = (host.path("seen"), host.path("moved"));
    let program = format!("cat > {0} && mv {0} {1}", seen.display(), moved.display());
    host.configure(&format!(
        "proxy: {{unlisted: ask}}\napprovals: {{notify: true, notify_command: [/bin/sh, -c, '{program}']}}\n"
    ));
    let mut start = host.cloister(&["guardian", "start"]);
    start.env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", session.socket().display()));
    assert_eq!(finish(start).code, 0);
    let client = Client::register(&host, "demo");
    let asking = tokio::task::spawn_blocking(move || client.connect("api.shop.test:443"));
    until("it is shown", || desktop.told().len() == 1).await;
    let Told::Show { id, replaces, summary, body } = desktop.told().remove(0) else { panic!("it is closed") };
    assert_eq!((id, replaces, summary.as_str()), (3, 0, "demo wants api.shop.test:443"));
    assert!(body.starts_with("Answer on http://127.0.0.1:") && !body.contains("login"), "{body}");
    until("the program ran", || moved.exists()).await;
    let told: serde_json::Value = serde_json::from_slice(&fs::read(moved).unwrap()).unwrap();
    assert_eq!((&told["cloister"], &told["authority"]), (&"demo".into(), &"api.shop.test:443".into()));
    assert_eq!(told["more"], 0);
    // It is answered elsewhere, and the notification goes.
    host.ok(&["approvals", "deny", told["id"].as_str().unwrap()]);
    assert!(asking.await.unwrap().unwrap_err().contains("403"));
    until("it is closed", || desktop.told().last() == Some(&Told::Close(3))).await;
}
