//! What a human decides: held connections, answers that are kept, and what they survive.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::control::{Client, Tunnel, json, raw};
use super::origin::Plain;
use crate::harness::{Done, Host, User, collect};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// A guardian, and an origin that holds what connects to it. The names below `x.test` lead there.
struct Scene {
    host: Host,
    origin: Plain,
}

/// A connection that waits for the answer.
type Held = thread::JoinHandle<Result<Tunnel, String>>;

impl Scene {
    fn new() -> Self {
        Self::with("")
    }

    fn with(more: &str) -> Self {
        let origin = Plain::serve(|mut stream| drop(std::io::Read::read(&mut stream, &mut [0])));
        let scene = Self { host: Host::new(User::Ordinary), origin };
        let address = scene.origin.address.ip();
        let names =
            ["a.x.test", "b.x.test", "c.x.test"].map(|name| format!("{name}: [{address}]")).join(", ");
        scene.host.configure(&format!("proxy:\n  unlisted: ask\n  hosts: {{{names}}}\n{more}"));
        scene.host.ok(&["guardian", "start"]);
        scene
    }

    fn authority(&self, name: &str) -> String {
        format!("{name}.x.test:{}", self.origin.address.port())
    }

    /// Asks for a name in the background, and waits until it is held.
    fn hold(&self, client: &Client, name: &str) -> Held {
        let (client, authority) = (client.clone(), self.authority(name));
        let wanted = authority.clone();
        let held = thread::spawn(move || client.connect(&authority));
        self.wait_for(|pending| pending.iter().any(|one| one["authority"] == wanted.as_str()));
        held
    }

    fn snapshot(&self) -> Value {
        json(&raw(&self.host, "GET /approvals", b""))
    }

    fn pending(&self) -> Vec<Value> {
        self.snapshot()["pending"].as_array().unwrap().clone()
    }

    fn wait_for(&self, holds: impl Fn(&[Value]) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(&self.pending()) {
            assert!(Instant::now() < end, "{:?}", self.pending());
        }
    }

    /// The number of the only request that waits.
    fn only(&self) -> String {
        let pending = self.pending();
        assert_eq!(pending.len(), 1, "{pending:?}");
        pending[0]["id"].as_str().unwrap().to_owned()
    }

    fn file(&self, below: &str) -> PathBuf {
        self.host.path(&format!("home/{below}"))
    }

    fn decisions(&self) -> String {
        fs::read_to_string(self.file(".config/cloister/decisions/projects/demo.yaml")).unwrap()
    }

    fn kill_guardian(&self) {
        let pid = json(&raw(&self.host, "GET /status", b""))["pid"].as_i64().unwrap();
        kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
    }

    fn audit(&self, event: &str) -> Vec<Value> {
        serde_json::from_str(&self.host.ok(&["audit", "--json", "--event", event])).unwrap()
    }
}

fn refusal(held: Held) -> String {
    let answer = held.join().unwrap().unwrap_err();
    let reason = answer.lines().find_map(|line| line.strip_prefix("X-Cloister-Reason: "));
    reason.map_or_else(|| format!("closed after {answer:?}"), str::to_owned)
}

#[test]
fn row51_once_is_for_what_waits_and_the_next_is_asked_again() {
    let scene = Scene::new();
    let client = Client::register(&scene.host, "demo");
    let (one, two) = (scene.hold(&client, "a"), {
        let (client, authority) = (client.clone(), scene.authority("a"));
        thread::spawn(move || client.connect(&authority))
    });
    scene.wait_for(|pending| pending.len() == 1 && pending[0]["waiting"] == 2);
    let said = scene.host.ok(&["approvals", "allow", &scene.only()]);
    assert!(said.contains(&scene.authority("a")), "{said}");
    let (mut one, mut two) = (one.join().unwrap().unwrap(), two.join().unwrap().unwrap());
    let again = scene.hold(&client, "a");
    scene.host.ok(&["approvals", "deny", &scene.only(), "--reason", "enough\u{202e}"]);
    assert_eq!(refusal(again), "denied_by_user");
    one.assert_open();
    two.assert_open();
    let asked = scene.audit("proxy.ask");
    assert_eq!(asked.len(), 2, "{asked:?}");
    let decided = scene.audit("approval.decided");
    let uid = format!("terminal uid {}", fs_uid(&scene));
    assert_eq!(
        decided.iter().map(|one| (one["reason"].as_str(), one["scope"].as_str())).collect::<Vec<_>>(),
        [(Some("allowed"), Some("once")), (Some("denied"), Some("once"))]
    );
    assert!(
        decided
            .iter()
            .all(|one| one["who"] == uid.as_str() && one["pattern"] == scene.authority("a").as_str())
    );
    let allowed = scene.audit("proxy.allow");
    assert!(
        allowed.iter().all(|one| one["origin"].as_str().unwrap().starts_with("session (once, ")),
        "{allowed:?}"
    );
}

/// The user whose terminal answers.
fn fs_uid(scene: &Scene) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata(scene.host.home()).unwrap())
}

#[test]
fn row52_row55_a_session_answer_with_a_wildcard_survives_a_killed_guardian_and_ends_with_the_cloister() {
    let scene = Scene::new();
    let (client, other) = (Client::register(&scene.host, "demo"), Client::register(&scene.host, "other"));
    let held = scene.hold(&client, "a");
    let lost = scene.hold(&client, "c");
    let pending = scene.pending();
    let first = pending.iter().find(|one| one["authority"] == scene.authority("a").as_str()).unwrap();
    assert_eq!(first["wildcard"], format!("*.{}", &scene.authority("a")[2..]));
    // The wildcard settles what else waits for a name that it covers.
    scene.host.ok(&["approvals", "allow", first["id"].as_str().unwrap(), "--scope", "session", "--wildcard"]);
    let _open = (held.join().unwrap().unwrap(), lost.join().unwrap().unwrap());
    drop(client.connect(&scene.authority("b")).unwrap());
    let waits = scene.hold(&other, "b");
    scene.kill_guardian();
    // Nothing is allowed, and the client hears of it.
    assert!(refusal(waits).starts_with("closed after"));
    scene.host.ok(&["guardian", "start"]);
    drop(client.connect(&scene.authority("b")).unwrap());
    let grants = scene.file(".local/state/cloister/grants/demo.yaml");
    assert!(fs::read_to_string(&grants).unwrap().contains("*.x.test"), "it is a file that people can read");
    assert!(raw(&scene.host, "DELETE /tokens/demo", b"").starts_with("HTTP/1.1 200"));
    assert!(!grants.exists());
    let anew = Client::register(&scene.host, "demo");
    let held = scene.hold(&anew, "b");
    scene.host.ok(&["approvals", "deny", &scene.only()]);
    assert_eq!(refusal(held), "denied_by_user");
}

#[test]
fn row53_row54_row56_answers_for_a_project_and_for_all_are_kept_beside_the_settings() {
    let scene = Scene::new();
    let settings = fs::read_to_string(scene.file(".config/cloister/config.yaml")).unwrap();
    let (client, other) = (Client::register(&scene.host, "demo"), Client::register(&scene.host, "other"));
    let held = scene.hold(&client, "a");
    scene.host.ok(&["approvals", "allow", &scene.only(), "--scope", "project", "--reason", "its API"]);
    let mut tunnel = held.join().unwrap().unwrap();
    let kept = scene.decisions();
    assert!(
        kept.contains(&scene.authority("a")) && kept.contains("its API") && kept.contains("/src/demo"),
        "{kept}"
    );
    let held = scene.hold(&client, "b");
    scene.host.ok(&["approvals", "deny", &scene.only(), "--scope", "global"]);
    assert_eq!(refusal(held), "denied_by_user");
    // At once, and for others too.
    let refused = other.connect(&scene.authority("b")).unwrap_err();
    assert!(refused.contains("X-Cloister-Reason: denied_by_user\r\n"), "{refused}");
    let held = scene.hold(&other, "a");
    scene.host.ok(&["approvals", "deny", &scene.only()]);
    assert_eq!(refusal(held), "denied_by_user", "it is the answer of another project");
    assert_eq!(fs::read_to_string(scene.file(".config/cloister/config.yaml")).unwrap(), settings);
    // N9: the port is part of it.
    let refused = scene.hold_port(&client, "a", 1);
    scene.host.ok(&["approvals", "deny", &scene.only()]);
    assert_eq!(refusal(refused), "denied_by_user");
    let why = scene.host.run(&["why", &scene.authority("b"), "--cloister", "other"]).stdout;
    assert!(why.contains("denied_by_user") && why.contains("decisions/global.yaml:"), "{why}");
    assert!(why.contains("cloister approvals forget"), "{why}");
    // T10: what rests on an answer ends with it.
    tunnel.assert_open();
    let said = scene.host.ok(&["approvals", "forget", &scene.authority("a"), "--scope", "project"]);
    assert!(said.contains("decisions/projects/demo.yaml"), "{said}");
    tunnel.wait_for_its_end();
    assert_eq!(scene.audit("approval.forgotten").len(), 1);
}

impl Scene {
    fn hold_port(&self, client: &Client, name: &str, port: u16) -> Held {
        let (client, authority) = (client.clone(), format!("{name}.x.test:{port}"));
        let held = thread::spawn(move || client.connect(&authority));
        self.wait_for(|pending| !pending.is_empty());
        held
    }
}

#[test]
fn row57_an_answer_can_be_taken_back_and_nobody_answers_twice() {
    let scene = Scene::new();
    let client = Client::register(&scene.host, "demo");
    let held = scene.hold(&client, "a");
    let id = scene.only();
    let answer = br#"{"effect":"allow","scope":"session","breadth":"wildcard","reason":null}"#;
    let answered = raw(&scene.host, &format!("POST /approvals/{id}"), answer);
    assert_eq!(json(&answered)["can_undo"], true, "{answered}");
    let mut tunnel = held.join().unwrap().unwrap();
    let again = raw(&scene.host, &format!("POST /approvals/{id}"), answer);
    assert!(again.starts_with("HTTP/1.1 404") && again.contains("it was answered already"), "{again}");
    assert!(raw(&scene.host, &format!("POST /approvals/{id}/undo"), b"").starts_with("HTTP/1.1 200"));
    tunnel.wait_for_its_end();
    let twice = raw(&scene.host, &format!("POST /approvals/{id}/undo"), b"");
    assert!(twice.starts_with("HTTP/1.1 400") && twice.contains("can't be taken back"), "{twice}");
    for (route, body, status) in [
        ("POST /approvals/xyz", answer.as_slice(), "400"),
        ("POST /approvals/00000000000000ff", answer, "404"),
        ("POST /approvals/00000000000000ff", b"{}", "400"),
        (
            "POST /approvals/00000000000000ff",
            br#"{"effect":"allow","scope":"ever","breadth":"exact","reason":null}"#,
            "400",
        ),
        ("POST /forget", br#"{"rule":"never.test:443","scope":null,"cloister":null}"#, "400"),
        ("GET /approvals?since=x", b"", "400"),
    ] {
        let refused = raw(&scene.host, route, body);
        assert!(refused.starts_with(&format!("HTTP/1.1 {status}")), "{route}: {refused}");
    }
    let held = scene.hold(&client, "b");
    let wild = br#"{"effect":"allow","scope":"once","breadth":"wildcard","reason":null}"#;
    let refused = raw(&scene.host, &format!("POST /approvals/{}", scene.only()), wild);
    assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
    scene.host.ok(&["approvals", "deny", &scene.only()]);
    assert_eq!(refusal(held), "denied_by_user");
}

#[test]
fn row61_what_can_not_be_kept_holds_for_the_session_and_says_so() {
    let scene = Scene::new();
    let client = Client::register(&scene.host, "demo");
    // No directory can be made where a file is.
    scene.host.write(&scene.file(".config/cloister/decisions"), "");
    let held = scene.hold(&client, "a");
    let done = scene.host.run(&["approvals", "allow", &scene.only(), "--scope", "global"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("could not be kept"), "{done:?}");
    let _open = held.join().unwrap().unwrap();
    drop(client.connect(&scene.authority("a")).unwrap());
    let decided = scene.audit("approval.decided");
    assert_eq!((&decided[0]["scope"], &decided[1]["scope"]), (&"global".into(), &"session".into()));
    assert!(decided[1]["detail"].as_str().unwrap().contains("could not be kept"), "{decided:?}");
    // Not even that: then in memory alone.
    let grants = scene.file(".local/state/cloister/grants");
    fs::remove_dir_all(&grants).unwrap();
    scene.host.write(&grants, "");
    let held = scene.hold(&client, "b");
    let done = scene.host.run(&["approvals", "allow", &scene.only(), "--scope", "session"]);
    assert!(done.code == 0 && done.stderr.contains("could not be kept"), "{done:?}");
    let _open = held.join().unwrap().unwrap();
    drop(client.connect(&scene.authority("b")).unwrap());
}

#[test]
fn a17_an_answer_that_can_not_be_recorded_is_not_kept_and_the_request_waits_on() {
    let host = Host::new(User::Ordinary);
    host.configure("proxy: {unlisted: ask, deny: ['*.denied.test']}\n");
    // Files that can't grow beyond 32 blocks of the shell, as on a full disk; what is decided would have its place.
    let script = format!("trap '' XFSZ; ulimit -f 32; exec {} guardian run", host.binary().display());
    let mut command = host.program("sh");
    let command = command.args(["-c", &script]).stdin(Stdio::null()).stderr(Stdio::null());
    let mut guardian = command.stdout(Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(guardian.stdout.as_mut().unwrap(), &mut [0; 5]).unwrap();
    let scene = Scene { host, origin: Plain::serve(drop) };
    let client = Client::register(&scene.host, "demo");
    let held = scene.hold(&client, "a");
    for number in 0..100 {
        assert!(client.connect(&format!("n{number}.denied.test:443")).is_err());
    }
    let refused = scene.host.run(&["approvals", "allow", &scene.only(), "--scope", "global"]);
    assert!(refused.code != 0 && refused.stderr.contains("audit log"), "{refused:?}");
    assert!(!scene.file(".config/cloister/decisions/global.yaml").exists());
    assert_eq!(scene.pending().len(), 1, "it waits on");
    scene.kill_guardian();
    guardian.wait().unwrap();
    assert!(refusal(held).starts_with("closed after"));
}

#[test]
fn a_broken_file_of_decisions_keeps_the_last_good_rules_and_is_never_written_over() {
    let scene = Scene::new();
    let client = Client::register(&scene.host, "demo");
    let held = scene.hold(&client, "a");
    scene.host.ok(&["approvals", "allow", &scene.only(), "--scope", "project"]);
    let _open = held.join().unwrap().unwrap();
    let file = scene.file(".config/cloister/decisions/projects/demo.yaml");
    let broken = format!("{}nonsense: [\n", scene.decisions());
    fs::write(&file, &broken).unwrap();
    let end = Instant::now() + PATIENCE;
    let status = loop {
        let status = scene.host.ok(&["guardian", "status"]);
        if status.contains("decisions/projects/demo.yaml") {
            break status;
        }
        assert!(Instant::now() < end, "{status}");
    };
    let lines = [0, 1].map(|more| format!("demo.yaml:{}", broken.lines().count() + more));
    assert!(lines.iter().any(|line| status.contains(line)), "{status}");
    drop(client.connect(&scene.authority("a")).unwrap());
    let held = scene.hold(&client, "b");
    let done = scene.host.run(&["approvals", "allow", &scene.only(), "--scope", "project"]);
    assert!(done.code == 0 && done.stderr.contains("could not be kept"), "{done:?}");
    let _open = held.join().unwrap().unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), broken);
    // Mended, all is as it was.
    fs::write(&file, broken.replace("nonsense: [\n", "")).unwrap();
    scene.host.ok(&["guardian", "reload"]);
    drop(client.connect(&scene.authority("a")).unwrap());
}

#[test]
fn invariant10_decisions_of_another_directory_are_of_no_effect() {
    let scene = Scene::new();
    let file = scene.file(".config/cloister/decisions/projects/demo.yaml");
    let authority = scene.authority("a");
    scene.host.write(
        &file,
        format!("project: {{name: demo, path: /src/elsewhere, id: \"0123456789abcdef\"}}\nallow:\n  - {{pattern: \"{authority}\"}}\n"),
    );
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let client = Client::register(&scene.host, "demo");
    let held = scene.hold(&client, "a");
    let done = scene.host.run(&["approvals", "allow", &scene.only(), "--scope", "project"]);
    assert!(done.code == 0 && done.stderr.contains("could not be kept"), "{done:?}");
    let _open = held.join().unwrap().unwrap();
    scene.host.run(&["guardian", "reload"]);
    let status = scene.host.ok(&["guardian", "status"]);
    assert!(status.contains("/src/elsewhere"), "{status}");
}

#[test]
fn row63_nobody_answers_and_the_time_is_over() {
    let scene = Scene::with("  approval_timeout: 5s\n");
    let client = Client::register(&scene.host, "demo");
    let held = scene.hold(&client, "a");
    assert_eq!(refusal(held), "approval_timeout");
    assert_eq!(scene.pending(), [] as [Value; 0]);
    let denied = scene.audit("proxy.deny");
    assert_eq!(denied[0]["reason"], "approval_timeout");
    let settled = &scene.snapshot()["settled"][0];
    assert_eq!((&settled["outcome"], &settled["can_undo"]), (&"timed_out".into(), &false.into()));
}

#[test]
fn i9_a_guardian_that_stops_lets_nobody_wait_and_one_that_takes_over_asks_anew() {
    let scene = Scene::new();
    let client = Client::register(&scene.host, "demo");
    let held = scene.hold(&client, "a");
    scene.host.ok(&["guardian", "start", "--upgrade"]);
    assert_eq!(refusal(held), "shutting_down");
    let held = scene.hold(&client, "a");
    scene.host.ok(&["approvals", "allow", &scene.only()]);
    let mut open = held.join().unwrap().unwrap();
    let held = scene.hold(&client, "b");
    scene.host.ok(&["guardian", "stop", "--yes"]);
    assert_eq!(refusal(held), "shutting_down");
    open.wait_for_its_end();
}

/// Says something to the page, and reads what it answers.
#[expect(clippy::disallowed_methods, reason = "this is the browser")]
fn page_says(address: &str, request: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
#[expect(clippy::disallowed_methods, reason = "this is the browser")]
fn i9_the_page_keeps_its_port_and_its_logins_when_another_guardian_takes_over() {
    let scene = Scene::new();
    let link = scene.host.ok(&["approvals", "open"]);
    let (page, code) = link.trim().strip_prefix("http://").unwrap().split_once("/login/").unwrap();
    let login = page_says(page, &format!("GET /login/{code} HTTP/1.1\r\nHost: {page}\r\n\r\n"));
    let cookie = login.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    let cookie = cookie.split(';').next().unwrap();
    // An answer that nobody takes holds up no other guardian.
    let mut idle = std::net::TcpStream::connect(page).unwrap();
    idle.write_all(format!("GET /events HTTP/1.1\r\nHost: {page}\r\nCookie: {cookie}\r\n\r\nx").as_bytes())
        .unwrap();
    let mut half = std::net::TcpStream::connect(page).unwrap();
    half.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    scene.host.ok(&["guardian", "start", "--upgrade"]);
    let end = Instant::now() + PATIENCE;
    while !json(&raw(&scene.host, "GET /status", b""))["page"].is_string() {
        assert!(Instant::now() < end, "there is no page");
    }
    assert_eq!(json(&raw(&scene.host, "GET /status", b""))["page"], format!("http://{page}/"));
    let answer =
        page_says(page, &format!("GET /session HTTP/1.1\r\nHost: {page}\r\nCookie: {cookie}\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop((idle, half));
}

#[test]
fn i9_a_guardian_that_waits_for_tunnels_sends_nobody_in_circles() {
    let scene = Scene::new();
    let client = Client::register(&scene.host, "demo");
    let held = scene.hold(&client, "a");
    scene.host.ok(&["approvals", "allow", &scene.only()]);
    let open = held.join().unwrap().unwrap();
    let mut command = scene.host.cloister(&["guardian", "stop", "--yes", "--drain", "1h"]);
    let stop = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while json(&raw(&scene.host, "GET /version", b""))["is_stopping"] != true {}
    for route in ["/approvals", "/approvals?since=0", "/approvals/calls?cloister=demo&since=0"] {
        let answer = raw(&scene.host, &format!("GET {route}"), b"");
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("is stopping"), "{route}: {answer}");
    }
    drop(open);
    assert_eq!(ended(stop).code, 0);
}

#[test]
fn those_who_wait_for_news_leave_places_to_others_and_go_with_their_caller() {
    let scene = Scene::new();
    let key = fs::read_to_string(scene.host.runtime().join("control.key")).unwrap();
    let wait = |_| {
        let mut stream = UnixStream::connect(scene.host.runtime().join("control.sock")).unwrap();
        let head = format!("Host: guardian\r\nAuthorization: Bearer {key}\r\n");
        write!(stream, "GET /approvals/calls?cloister=demo&since=0 HTTP/1.1\r\n{head}\r\n").unwrap();
        stream
    };
    let waiting: Vec<UnixStream> = (0..192).map(wait).collect();
    let begun = Instant::now();
    // With another number it is answered at once, if there is a place.
    let is_answered = |status: &str| {
        let answer = raw(&scene.host, "GET /approvals/calls?cloister=demo&since=7", b"");
        assert!(begun.elapsed() < PATIENCE, "{answer}");
        answer.starts_with(status)
    };
    while !is_answered("HTTP/1.1 503") {}
    assert!(raw(&scene.host, "GET /status", b"").starts_with("HTTP/1.1 200"));
    drop(waiting);
    while !is_answered("HTTP/1.1 200") {}
}

#[test]
fn a6_a_flood_is_refused_and_another_cloister_is_not_concerned() {
    let scene = Scene::new();
    let (client, other) = (Client::register(&scene.host, "demo"), Client::register(&scene.host, "other"));
    let flood: Vec<Held> = (0..130)
        .map(|number| {
            let client = client.clone();
            thread::spawn(move || client.connect(&format!("h{number}.flood.test:443")))
        })
        .collect();
    scene.wait_for(|pending| pending.len() == 100);
    let held = scene.hold(&other, "a");
    let listed = scene.host.ok(&["approvals"]);
    assert!(listed.contains("other"), "{listed}");
    let id = scene.pending().into_iter().find(|one| one["cloister"] == "other").unwrap();
    scene.host.ok(&["approvals", "allow", id["id"].as_str().unwrap()]);
    let _open = held.join().unwrap().unwrap();
    assert!(raw(&scene.host, "DELETE /tokens/demo", b"").starts_with("HTTP/1.1 200"));
    let ends: Vec<String> = flood.into_iter().map(refusal).collect();
    let count = |reason: &str| ends.iter().filter(|end| *end == reason).count();
    assert_eq!((count("too_many_questions"), count("shutting_down")), (30, 100), "{ends:?}");
    assert_eq!(scene.pending(), [] as [Value; 0]);
}

#[test]
fn i1_t11_nothing_leads_from_a_sandbox_to_the_page() {
    let scene = Scene::new();
    let client = Client::register(&scene.host, "demo");
    let status = json(&raw(&scene.host, "GET /status", b""));
    let page =
        status["page"].as_str().unwrap().trim_start_matches("http://").trim_end_matches('/').to_owned();
    for authority in [
        page.clone(),
        page.replace("127.0.0.1", "localhost"),
        page.replace("127.0.0.1", "[::ffff:127.0.0.1]"),
    ] {
        let refused = client.connect(&authority).unwrap_err();
        assert!(refused.starts_with("HTTP/1.1 403"), "{authority}: {refused}");
    }
    // Nor does a pin with a rule for it, or with somebody's answer.
    let (_, port) = page.split_once(':').unwrap();
    scene.host.configure(&format!(
        "proxy: {{unlisted: ask, hosts: {{page.test: [127.0.0.1]}}, allow: ['page.test:{port}']}}\n"
    ));
    scene.host.ok(&["guardian", "reload"]);
    let refused = client.connect(&format!("page.test:{port}")).unwrap_err();
    assert!(refused.contains("X-Cloister-Reason: address_forbidden\r\n"), "{refused}");
    scene.host.configure("proxy: {unlisted: ask, hosts: {page.test: [127.0.0.1]}}\n");
    scene.host.ok(&["guardian", "reload"]);
    let refused = client.connect(&format!("page.test:{port}")).unwrap_err();
    assert!(refused.contains("X-Cloister-Reason: address_forbidden\r\n"), "nobody is asked: {refused}");
}

/// Runs something in a real sandbox, in the background.
fn inside(host: &Host, script: &str) -> Child {
    let mut command = host.cloister(&["exec", "demo", "--", "sh", "-c", script]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn ended(child: Child) -> Done {
    collect(child)
}

#[test]
fn a6_a_killed_client_in_a_real_sandbox_withdraws_its_request() {
    if Host::with_bubblewrap().is_none() {
        return;
    }
    let scene = Scene::new();
    scene.host.ok(&["start", "-d"]);
    let held = inside(&scene.host, &format!("curl -sS http://{}/ & echo $!; wait", scene.authority("a")));
    scene.wait_for(|pending| pending.len() == 1);
    assert!(scene.pending()[0]["voice"]["connection"]["user_agent"].as_str().unwrap().starts_with("curl/"));
    scene.host.ok(&["exec", "demo", "--", "pkill", "-KILL", "curl"]);
    scene.wait_for(<[Value]>::is_empty);
    ended(held);
    assert_eq!(scene.snapshot()["settled"][0]["outcome"], "withdrawn");
}

#[test]
fn a_polite_request_from_a_real_sandbox_is_answered_and_lets_one_connection_pass() {
    if Host::with_bubblewrap().is_none() {
        return;
    }
    let scene = Scene::new();
    scene.host.ok(&["start", "-d"]);
    let authority = scene.authority("a");
    let ask = format!("cloister request {authority} --reason 'the <b>docs</b>\u{1b}[31m\u{202e}'");
    let asked = inside(&scene.host, &ask);
    scene.wait_for(|pending| pending.len() == 1);
    assert_eq!(scene.pending()[0]["voice"]["polite"]["reason"], "the <b>docs</b>\u{1b}[31m\u{202e}");
    let listed = scene.host.ok(&["approvals"]);
    assert!(
        !listed.contains('\u{1b}') && !listed.contains('\u{202e}') && listed.contains("<b>docs</b>"),
        "{listed}"
    );
    scene.host.ok(&["approvals", "allow", &scene.only()]);
    let done = ended(asked);
    assert!(done.code == 0 && done.stdout.contains("allowed"), "{done:?}");
    let (client, wanted) = (Client::register(&scene.host, "third"), authority.clone());
    let other = thread::spawn(move || client.connect(&wanted));
    scene.wait_for(|pending| pending.len() == 1);
    scene.host.ok(&["approvals", "deny", &scene.only()]);
    assert_eq!(refusal(other), "denied_by_user", "it was granted to another");
    // The next connection passes, and only that one.
    let connect =
        format!("cloister sandbox-init connect a.x.test {} </dev/null", scene.origin.address.port());
    assert_eq!(scene.host.ok(&["exec", "demo", "--", "sh", "-c", &connect]), "");
    let again = inside(&scene.host, &connect);
    scene.wait_for(|pending| pending.len() == 1);
    scene.host.ok(&["approvals", "deny", &scene.only(), "--scope", "session"]);
    let done = ended(again);
    assert!(done.code == 1 && done.stderr.contains("denied_by_user"), "{done:?}");
    let done = ended(inside(&scene.host, &ask));
    assert!(done.code == 1 && done.stderr.contains("denied_by_user"), "a rule decides it at once: {done:?}");
}

#[test]
fn i2_i5_a_sandbox_asks_politely_with_its_own_token_or_not_at_all() {
    if Host::with_bubblewrap().is_none() {
        return;
    }
    let scene = Scene::new();
    scene.host.ok(&["start", "-d"]);
    let curl = |arguments: &str| {
        let script = format!(
            "curl -sS --noproxy '*' -m 20 -w ' %{{http_code}}' http://127.0.0.1:$CLOISTER_REQUEST_PORT{arguments}"
        );
        ended(inside(&scene.host, &script)).stdout
    };
    let body = r#"-d '{"host":"a.x.test","port":443,"reason":"x"}'"#;
    let token = "-H \"X-Cloister-Token: $CLOISTER_TOKEN\"";
    for (arguments, status, what) in [
        (format!("/ask {body}"), "403", "unauthenticated"),
        (format!("/ask -H 'X-Cloister-Token: x' {body}"), "403", "unauthenticated"),
        (format!("/ask {token} -d '{{}}'"), "400", "bad_request"),
        (format!("/ask {token} -d '{{\"host\":\"a b\",\"port\":443}}'"), "400", "bad_request"),
        (format!("/ask {token} -d '{{\"host\":\"a.test\",\"port\":0}}'"), "400", "bad_request"),
        (format!("/ask {token} -H 'Origin: http://a.test' {body}"), "400", "bad_request"),
        (format!("/ask {token}"), "404", "POST /ask"),
        (format!("/approvals {token}"), "404", "bad_request"),
        (format!("/approve/0123456789abcdef {token} -d x"), "404", "bad_request"),
        ("/version".to_owned(), "200", "\"api\""),
    ] {
        let answer = curl(&arguments);
        assert!(answer.ends_with(status) && answer.contains(what), "{arguments}: {answer}");
    }
    let long = format!(
        "/ask {token} -d \"{{\\\"host\\\":\\\"a.test\\\",\\\"port\\\":443,\\\"reason\\\":\\\"$(printf 'x%.0s' $(seq 1100))\\\"}}\""
    );
    assert!(curl(&long).ends_with("400"));
    // K12: what nobody may open is not asked.
    let metadata = curl(&format!("/ask {token} -d '{{\"host\":\"metadata.google.internal\",\"port\":443}}'"));
    assert!(metadata.contains("\"denied\"") && metadata.contains("address_forbidden"), "{metadata}");
    assert_eq!(scene.pending(), [] as [Value; 0]);
}

#[test]
fn invariant10_an_answer_is_taken_back_also_when_its_cloister_is_over() {
    let scene = Scene::new();
    let client = Client::register(&scene.host, "demo");
    let held = scene.hold(&client, "a");
    let id = scene.only();
    scene.host.ok(&["approvals", "allow", &id, "--scope", "project"]);
    let _open = held.join().unwrap().unwrap();
    assert!(raw(&scene.host, "DELETE /tokens/demo", b"").starts_with("HTTP/1.1 200"));
    let undone = raw(&scene.host, &format!("POST /approvals/{id}/undo"), b"");
    assert!(undone.starts_with("HTTP/1.1 200"), "{undone}");
    assert!(!scene.decisions().contains("a.x.test"), "{}", scene.decisions());
    // And by its rule, when nothing of the project runs.
    let client = Client::register(&scene.host, "demo");
    let held = scene.hold(&client, "b");
    scene.host.ok(&["approvals", "allow", &scene.only(), "--scope", "project"]);
    let _open = held.join().unwrap().unwrap();
    assert!(raw(&scene.host, "DELETE /tokens/demo", b"").starts_with("HTTP/1.1 200"));
    scene.host.ok(&["approvals", "forget", &scene.authority("b"), "--scope", "project"]);
    assert!(!scene.decisions().contains("b.x.test"), "{}", scene.decisions());
    assert_eq!(scene.audit("approval.forgotten").len(), 2);
}

#[test]
fn a_rule_that_stands_in_two_projects_is_not_forgotten_in_both_unasked() {
    let scene = Scene::new();
    for name in ["demo", "other"] {
        let client = Client::register(&scene.host, name);
        let held = scene.hold(&client, "a");
        scene.host.ok(&["approvals", "deny", &scene.only(), "--scope", "project"]);
        assert_eq!(refusal(held), "denied_by_user");
    }
    let refused = scene.host.run(&["approvals", "forget", &scene.authority("a"), "--scope", "project"]);
    assert!(
        refused.code == 1 && refused.stderr.contains("other.yaml") && refused.stderr.contains("demo.yaml"),
        "{refused:?}"
    );
    scene.host.ok(&["approvals", "forget", &scene.authority("a"), "--cloister", "other"]);
    assert!(scene.decisions().contains("a.x.test"));
}

#[test]
fn what_held_in_memory_ends_with_its_file_with_forget_and_with_undo() {
    let scene = Scene::new();
    let client = Client::register(&scene.host, "demo");
    let settings = fs::read_to_string(scene.file(".config/cloister/config.yaml")).unwrap();
    fs::write(scene.file(".config/cloister/config.yaml"), format!("{settings}nonsense: 1\n")).unwrap();
    scene.host.run(&["guardian", "reload"]);
    let held = scene.hold(&client, "a");
    let done = scene.host.run(&["approvals", "allow", &scene.only(), "--scope", "global"]);
    assert!(done.code == 0 && done.stderr.contains("until that is mended"), "{done:?}");
    let mut open = held.join().unwrap().unwrap();
    fs::write(scene.file(".config/cloister/config.yaml"), settings).unwrap();
    scene.host.ok(&["guardian", "reload"]);
    open.assert_open();
    scene.host.ok(&["approvals", "forget", &scene.authority("a")]);
    open.wait_for_its_end();
    // Where it could be written nowhere.
    for below in [".local/state/cloister/grants", ".config/cloister/decisions"] {
        drop(fs::remove_dir_all(scene.file(below)));
        scene.host.write(&scene.file(below), "");
    }
    let held = scene.hold(&client, "a");
    let id = scene.only();
    scene.host.run(&["approvals", "allow", &id, "--scope", "session"]);
    let mut open = held.join().unwrap().unwrap();
    let undone = raw(&scene.host, &format!("POST /approvals/{id}/undo"), b"");
    assert!(undone.starts_with("HTTP/1.1 200"), "{undone}");
    open.wait_for_its_end();
    let held = scene.hold(&client, "b");
    scene.host.run(&["approvals", "deny", &scene.only(), "--scope", "session"]);
    assert_eq!(refusal(held), "denied_by_user");
    let forgotten = scene.host.run(&["approvals", "forget", &scene.authority("b")]);
    assert!(forgotten.code == 0 && forgotten.stdout.contains("memory"), "{forgotten:?}");
    let held = scene.hold(&client, "b");
    scene.host.ok(&["approvals", "deny", &scene.only()]);
    assert_eq!(refusal(held), "denied_by_user");
}

#[test]
fn an_answer_that_was_replaced_is_not_taken_back_by_the_one_before() {
    let scene = Scene::new();
    let client = Client::register(&scene.host, "demo");
    let held = scene.hold(&client, "a");
    let first = scene.only();
    scene.host.ok(&["approvals", "allow", &first, "--scope", "global", "--reason", "first"]);
    let _open = held.join().unwrap().unwrap();
    scene.host.ok(&["approvals", "forget", &scene.authority("a")]);
    let held = scene.hold(&client, "a");
    scene.host.ok(&["approvals", "allow", &scene.only(), "--scope", "global", "--reason", "second"]);
    let mut open = held.join().unwrap().unwrap();
    let refused = raw(&scene.host, &format!("POST /approvals/{first}/undo"), b"");
    assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
    open.assert_open();
}

#[test]
fn i9_a_failed_takeover_leaves_polite_requests_to_the_guardian_that_goes_on() {
    if Host::with_bubblewrap().is_none() {
        return;
    }
    let scene = Scene::new();
    scene.host.ok(&["start", "-d"]);
    let grants = scene.file(".local/state/cloister/grants/demo.yaml");
    scene.host.write(&grants, "nonsense: [\n");
    fs::set_permissions(&grants, fs::Permissions::from_mode(0o600)).unwrap();
    let failed = scene.host.run(&["guardian", "start", "--upgrade"]);
    assert!(failed.code != 0 && failed.stderr.contains("grants/demo.yaml:"), "{failed:?}");
    let asked = inside(&scene.host, &format!("cloister request {}", scene.authority("a")));
    scene.wait_for(|pending| pending.len() == 1);
    scene.host.ok(&["approvals", "deny", &scene.only()]);
    assert_eq!(ended(asked).code, 1);
    fs::remove_file(&grants).unwrap();
    scene.host.ok(&["guardian", "start", "--upgrade"]);
    let asked = inside(&scene.host, &format!("cloister request {}", scene.authority("a")));
    scene.wait_for(|pending| pending.len() == 1);
    scene.host.ok(&["approvals", "allow", &scene.only()]);
    assert_eq!(ended(asked).code, 0);
}
