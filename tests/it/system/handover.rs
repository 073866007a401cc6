//! One guardian after the other: upgrades, stops and kills, with tunnels open and connections on their way.
//!
//! No sandbox is needed: a cloister is registered on the control socket, and its clients speak to its socket directly.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::origin::address;
use crate::harness::{Done, Host, User, collect, finish};
use crate::requirement;

/// A host with a running guardian, an origin that echoes, and the cloister `demo`.
struct Stage {
    host: Host,
    origin: SocketAddr,
    token: String,
}

impl Stage {
    fn new() -> Self {
        let host = Host::new(User::Ordinary);
        let origin = echo();
        host.configure(&allowing(origin, ""));
        host.ok(&["guardian", "start"]);
        let token = register(&host, "demo");
        Self { host, origin, token }
    }

    fn tunnel(&self) -> Option<UnixStream> {
        tunnel(&self.host, "demo", &self.token, self.origin)
    }

    fn tunnels(&self, count: usize) -> Vec<UnixStream> {
        (0..count).map(|_| self.tunnel().unwrap()).collect()
    }

    #[track_caller]
    fn upgrade(&self) {
        let done = self.host.run(&["guardian", "start", "--upgrade"]);
        assert_eq!(done.code, 0, "{done:?}");
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(done.stderr, format!("replaced the guardian of version {version}\n"));
    }

    fn status(&self) -> Value {
        let text = self.host.ok(&["guardian", "status", "--json"]);
        serde_json::from_str::<Vec<Value>>(&text).unwrap().remove(0)
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.status()["pid"].as_i64().unwrap()).unwrap()
    }

    #[track_caller]
    fn drains(&self, tunnels: usize) {
        until(&format!("{tunnels} tunnels are not drained"), || {
            let status = self.status();
            (status["draining"] == tunnels, status)
        });
    }

    /// The records of the log.
    fn records(&self) -> Vec<Value> {
        let text =
            fs::read_to_string(self.host.path("home/.local/share/cloister/audit/audit.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn count(&self, event: &str) -> usize {
        self.records().iter().filter(|record| record["event"] == event).count()
    }

    /// Checks that every chain holds and everything that was opened was closed, with `guardian.stop` as the last word.
    #[track_caller]
    fn is_closed(&self) {
        let verified = self.host.run(&["audit", "verify"]);
        assert_eq!(verified.code, 0, "{verified:?}");
        assert_eq!(self.records().last().unwrap()["event"], "guardian.stop");
        assert_eq!(self.count("proxy.allow"), self.count("proxy.close"));
    }

    /// The processes of this host's guardians.
    fn guardians(&self) -> Vec<i32> {
        let start = format!("{}\0guardian\0run\0", self.host.binary().display());
        let pids = fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|found| found.starts_with(start.as_bytes()))
            })
            .collect()
    }

    #[track_caller]
    fn has_guardians(&self, count: usize) {
        until(&format!("not {count} guardians"), || {
            let found = self.guardians();
            (found.len() == count, found)
        });
    }
}

fn allowing(origin: SocketAddr, more: &str) -> String {
    format!(
        "proxy:\n  allow: [\"echo.test:{}\"]\n  hosts: {{echo.test: [{}]}}\n{more}",
        origin.port(),
        origin.ip()
    )
}

/// An origin that sends back what it gets.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind((IpAddr::V4(address()), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    address
}

/// Sends a request to the control socket; the status and the body of the answer, or `None` without one.
fn control(host: &Host, route: &str, body: &str) -> Option<(u16, String)> {
    let key = fs::read_to_string(host.runtime().join("control.key")).ok()?;
    let mut stream = UnixStream::connect(host.runtime().join("control.sock")).ok()?;
    let length = body.len();
    let request = format!(
        "{route} HTTP/1.1\r\nHost: guardian\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.get(9..12)?.parse().ok()?, body.to_owned()))
}

fn registration(name: &str) -> Value {
    json!({
        "cloister": name, "project": name, "directory": format!("/src/{name}"), "branch": null, "network": "guarded",
    })
}

/// Registers a cloister, and asks again when another guardian has taken over; the token.
#[track_caller]
fn register(host: &Host, name: &str) -> String {
    let registration = registration(name);
    for _ in 0..10 {
        match control(host, "POST /tokens", &registration.to_string()) {
            Some((201, body)) => {
                let body: Value = serde_json::from_str(&body).unwrap();
                return body["token"].as_str().unwrap().to_owned();
            }
            None | Some((421, _)) => {}
            other => panic!("{other:?}"),
        }
    }
    panic!("nobody answers");
}

/// Opens a tunnel and sees that it echoes; `None` when it is refused or breaks.
fn tunnel(host: &Host, cloister: &str, token: &str, origin: SocketAddr) -> Option<UnixStream> {
    let socket = host.runtime().join("by-name").join(cloister).join("proxy.sock");
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let authority = format!("echo.test:{}", origin.port());
    write!(
        stream,
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Bearer {token}\r\n\r\n"
    )
    .ok()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let is_open = head.starts_with(b"HTTP/1.1 200") && echoes(&stream);
    is_open.then_some(stream)
}

fn echoes(mut stream: &UnixStream) -> bool {
    let mut answer = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"ping"
}

/// Waits until the guardian has ended a tunnel.
#[track_caller]
fn ends(mut stream: &UnixStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("the tunnel goes on: {other:?} {rest:?}"),
    }
}

fn signal(pid: i32, signal: Signal) {
    // It may have ended.
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

/// Waits until it is so, or fails with what was seen last.
#[track_caller]
fn until<T: std::fmt::Debug>(what: &str, mut look: impl FnMut() -> (bool, T)) {
    let begun = Instant::now();
    loop {
        let (is_so, seen) = look();
        if is_so {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {seen:?}");
    }
}

#[test]
fn an_upgrade_breaks_no_tunnel_and_refuses_no_connection() {
    let stage = Stage::new();
    let old = stage.pid();
    let key = fs::read(stage.host.runtime().join("control.key")).unwrap();
    let open = stage.tunnels(5);
    // Accepted, but not asked for anything yet.
    let silent = UnixStream::connect(stage.host.runtime().join("by-name/demo/proxy.sock")).unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let more = scope.spawn(|| {
            let mut opened = 0;
            while !is_over.load(Ordering::SeqCst) {
                assert!(stage.tunnel().is_some(), "tunnel {opened} is refused");
                opened += 1;
            }
            opened
        });
        let registered = scope.spawn(|| {
            let mut names = Vec::new();
            while !is_over.load(Ordering::SeqCst) {
                let name = format!("more-{}", names.len() % 5);
                names.push((register(&stage.host, &name), name));
            }
            names
        });
        for _ in 0..3 {
            stage.upgrade();
        }
        is_over.store(true, Ordering::SeqCst);
        assert!(more.join().unwrap() > 0);
        let names = registered.join().unwrap();
        for (token, name) in names.iter().rev().take(5.min(names.len())) {
            assert!(tunnel(&stage.host, name, token, stage.origin).is_some(), "{name}");
        }
    });
    assert_ne!(stage.pid(), old);
    assert_eq!(fs::read(stage.host.runtime().join("control.key")).unwrap(), key);
    assert!(open.iter().all(echoes), "a tunnel broke");
    drop(silent);
    stage.drains(5);
    drop(open);
    stage.drains(0);
    stage.has_guardians(1);
    stage.host.ok(&["guardian", "stop", "--yes"]);
    stage.has_guardians(0);
    stage.is_closed();
    assert_eq!(stage.count("guardian.start"), 4);
}

#[test]
fn a_request_on_a_connection_from_before_is_recorded_by_the_new_guardian() {
    let stage = Stage::new();
    let socket = stage.host.runtime().join("by-name/demo/proxy.sock");
    let mut silent = UnixStream::connect(socket).unwrap();
    // The guardian has accepted it once it has answered something that came later.
    drop(stage.tunnel().unwrap());
    stage.upgrade();
    let before = stage.count("proxy.allow");
    let (authority, token) = (format!("echo.test:{}", stage.origin.port()), &stage.token);
    write!(
        silent,
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Bearer {token}\r\n\r\n"
    )
    .unwrap();
    let mut status = String::new();
    BufReader::new(silent.try_clone().unwrap()).read_line(&mut status).unwrap();
    assert!(status.starts_with("HTTP/1.1 200"), "{status}");
    assert_eq!(stage.count("proxy.allow"), before + 1);
    stage.drains(1);
    drop(silent);
    stage.has_guardians(1);
    stage.host.ok(&["guardian", "stop", "--yes"]);
    stage.is_closed();
}

#[test]
fn t10_a_revocation_and_a_withdrawn_rule_reach_tunnels_of_every_guardian_before() {
    let stage = Stage::new();
    let other = register(&stage.host, "other");
    let first = stage.tunnel().unwrap();
    let foreign = tunnel(&stage.host, "other", &other, stage.origin).unwrap();
    stage.upgrade();
    let second = stage.tunnel().unwrap();
    stage.upgrade();
    stage.drains(3);
    // Only the revoked one's end.
    assert_eq!(control(&stage.host, "DELETE /tokens/other", "").unwrap().0, 200);
    ends(&foreign);
    assert!(echoes(&first) && echoes(&second));
    let more = format!("  deny: [\"echo.test:{}\"]\n", stage.origin.port());
    stage.host.configure(&allowing(stage.origin, &more));
    stage.host.ok(&["guardian", "reload"]);
    ends(&first);
    ends(&second);
    stage.has_guardians(1);
    // What the last of them said may still be on its way into the log.
    until("not all ends are recorded", || {
        let closed = stage.records().into_iter().filter(|record| record["event"] == "proxy.close");
        let mut reasons: Vec<String> = closed.map(|record| record["reason"].to_string()).collect();
        reasons.sort_unstable();
        (reasons == ["\"rule_withdrawn\"", "\"rule_withdrawn\"", "\"token_revoked\""], reasons)
    });
    stage.host.ok(&["guardian", "stop", "--yes"]);
    stage.is_closed();
}

#[test]
fn a_new_token_ends_what_the_earlier_one_opened_before_the_upgrade() {
    let stage = Stage::new();
    let open = stage.tunnel().unwrap();
    stage.upgrade();
    register(&stage.host, "demo");
    ends(&open);
    assert!(stage.tunnel().is_none(), "the earlier token is taken");
    stage.has_guardians(1);
}

#[test]
fn a_registration_that_replaces_another_records_the_end_of_that() {
    let stage = Stage::new();
    register(&stage.host, "demo");
    let events: Vec<_> = stage.records().into_iter().filter(|record| record["cloister"] == "demo").collect();
    let events: Vec<_> = events.iter().map(|record| record["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["token.issue", "token.revoke", "sandbox.stop", "token.issue"]);
}

#[test]
fn a_project_that_was_moved_takes_its_name_along() {
    let stage = Stage::new();
    let mut moved = registration("demo");
    moved["directory"] = json!(stage.host.repository());
    assert_eq!(control(&stage.host, "POST /tokens", &moved.to_string()).unwrap().0, 201);
    let (status, said) = control(&stage.host, "POST /tokens", &registration("demo").to_string()).unwrap();
    assert_eq!(status, 500);
    assert!(said.contains("run `cloister stop demo`"), "{said}");
}

#[test]
fn a_stop_ends_the_guardians_before_too_and_is_the_last_record() {
    let stage = Stage::new();
    let first = stage.tunnels(3);
    stage.upgrade();
    let second = stage.tunnels(3);
    let stopped = stage.host.run(&["guardian", "stop", "--yes"]);
    assert_eq!(stopped.code, 0, "{stopped:?}");
    let head = stage.host.ok(&["audit", "head"]);
    assert_eq!(stopped.stderr, format!("stopped the guardian; the audit log ends at {head}"));
    first.iter().chain(&second).for_each(ends);
    stage.has_guardians(0);
    stage.is_closed();
    let closed = stage.records().into_iter().filter(|record| record["reason"] == "shutting_down").count();
    assert_eq!(closed, 6);
}

#[test]
fn a_signal_stops_in_order_too() {
    for how in [Signal::TERM, Signal::INT] {
        let stage = Stage::new();
        let open = stage.tunnels(3);
        signal(stage.pid(), how);
        open.iter().for_each(ends);
        stage.has_guardians(0);
        stage.is_closed();
        assert!(!stage.host.runtime().join("control.sock").exists());
    }
}

#[test]
fn a_drain_lets_tunnels_end_by_themselves_and_a_second_stop_ends_it() {
    let stage = Stage::new();
    let open = stage.tunnel().unwrap();
    let mut command = stage.host.cloister(&["guardian", "stop", "--yes", "--drain", "1h"]);
    let stop = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("connections are still accepted", || (stage.tunnel().is_none(), ()));
    assert!(echoes(&open));
    drop(open);
    let stopped = collect(stop);
    assert_eq!(stopped.code, 0, "{stopped:?}");
    stage.is_closed();

    stage.host.ok(&["guardian", "start"]);
    let open = stage.tunnel().unwrap();
    let stop = command.spawn().unwrap();
    until("connections are still accepted", || (stage.tunnel().is_none(), ()));
    assert!(echoes(&open));
    let now = stage.host.run(&["guardian", "stop", "--yes"]);
    assert_eq!((now.code, collect(stop).code), (0, 0), "{now:?}");
    ends(&open);
    stage.is_closed();
}

#[test]
fn a_guardian_that_can_not_begin_leaves_the_running_one_as_it_is() {
    let stage = Stage::new();
    let old = stage.pid();
    let open = stage.tunnel().unwrap();
    stage.host.configure("proxy: {alow: []}\n");
    let refused = stage.host.run(&["guardian", "start", "--upgrade"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.starts_with("error: the running guardian can't be replaced: "), "{refused:?}");
    assert!(refused.stderr.contains("alow"), "{refused:?}");
    assert_eq!(stage.pid(), old);
    assert!(echoes(&open) && stage.tunnel().is_some());
    stage.has_guardians(1);
    stage.host.configure(&allowing(stage.origin, ""));
    register(&stage.host, "later");
    stage.upgrade();
    assert!(echoes(&open));
}

#[test]
fn i9_when_the_new_guardian_dies_the_old_ones_tunnels_end_with_it() {
    let stage = Stage::new();
    let (first, new) = (stage.tunnels(3), stage.pid());
    stage.upgrade();
    let second = stage.tunnel().unwrap();
    assert_ne!(stage.pid(), new);
    signal(stage.pid(), Signal::KILL);
    first.iter().chain([&second]).for_each(ends);
    stage.has_guardians(0);
    assert!(stage.tunnel().is_none());
    // The next one serves the same cloister with the same token.
    stage.host.ok(&["guardian", "start"]);
    assert!(stage.tunnel().is_some());
    let verified = stage.host.run(&["audit", "verify"]);
    assert_eq!(verified.code, 0, "{verified:?}");
}

#[test]
fn when_the_old_guardian_dies_the_new_one_goes_on() {
    let stage = Stage::new();
    let (open, old) = (stage.tunnels(3), stage.pid());
    stage.upgrade();
    let new = stage.tunnel().unwrap();
    stage.drains(3);
    signal(old, Signal::KILL);
    open.iter().for_each(ends);
    stage.drains(0);
    assert!(echoes(&new));
    stage.host.ok(&["guardian", "stop", "--yes"]);
    stage.has_guardians(0);
    let verified = stage.host.run(&["audit", "verify"]);
    assert_eq!(verified.code, 0, "{verified:?}");
}

#[test]
fn many_tunnels_of_many_cloisters_are_handed_over_and_stopped_at_once() {
    let stage = Stage::new();
    let mut open = Vec::new();
    for number in 0..300 {
        let name = format!("c{number}");
        let token = register(&stage.host, &name);
        open.push(tunnel(&stage.host, &name, &token, stage.origin).unwrap());
    }
    stage.upgrade();
    assert!(open.iter().all(echoes));
    stage.drains(300);
    stage.host.ok(&["guardian", "stop", "--yes"]);
    open.iter().for_each(ends);
    stage.has_guardians(0);
    stage.is_closed();
}

#[test]
fn a_guardian_that_knows_no_handover_is_named_and_left_alone() {
    let host = Host::new(User::Ordinary);
    fs::create_dir_all(host.runtime()).unwrap();
    for directory in ["home/.local", "home/.local/state", "home/.local/state/cloister"] {
        host.own(&host.path(directory));
    }
    host.own(&host.runtime());
    host.write(&host.runtime().join("control.key"), "0".repeat(64));
    let socket = host.runtime().join("control.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    host.own(&socket);
    let api = Arc::new(std::sync::Mutex::new("1"));
    let shown = Arc::clone(&api);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
            let first = lines.next().unwrap();
            lines.find(String::is_empty);
            let body = format!("{{\"version\":\"0.0.1\",\"api\":{},\"more\":1}}", shown.lock().unwrap());
            let (status, body) = if first.starts_with("GET /version") {
                ("200 OK", body.as_str())
            } else {
                ("404 Not Found", "{\"error\":\"there is no such request\"}")
            };
            let length = body.len();
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            // Who knows enough from the status does not wait for the rest.
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    // An older one is to be replaced, and can't be.
    for arguments in [&["guardian", "start"][..], &["guardian", "start", "--upgrade"]] {
        let refused = host.run(arguments);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("can't hand over its connections to this version"), "{refused:?}");
        assert!(refused.stderr.contains("cloister guardian stop --yes"), "{refused:?}");
    }
    let status = host.run(&["guardian", "status"]);
    assert!(status.stderr.contains("run `cloister guardian start`, which replaces it"), "{status:?}");
    // A newer one is not.
    *api.lock().unwrap() = "1000";
    for arguments in
        [&["guardian", "start"][..], &["guardian", "start", "--upgrade"], &["guardian", "status"]]
    {
        let refused = host.run(arguments);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("version 0.0.1 with control interface 1000"), "{refused:?}");
        assert!(refused.stderr.contains("use the version that the guardian has"), "{refused:?}");
    }
}

#[test]
fn t10_a_rule_that_is_withdrawn_closes_the_tunnels_of_the_guardian_before_too() {
    let stage = Stage::new();
    let open = stage.tunnels(2);
    stage.upgrade();
    stage.drains(2);
    let metrics = stage.host.ok(&["guardian", "status", "--metrics"]);
    assert!(metrics.contains("cloister_draining_tunnels 2"), "{metrics}");
    let status = stage.host.ok(&["guardian", "status"]);
    assert!(status.contains("draining   2 tunnels of the guardian before this one"), "{status}");
    let new = stage.tunnel().unwrap();
    // Nobody asks for it: the file is watched.
    stage.host.configure("proxy:\n  allow: []\n");
    open.iter().for_each(ends);
    ends(&new);
    stage.drains(0);
    assert_eq!(stage.count("config.reload"), 1, "the guardian before does not tell it a second time");
    stage.host.ok(&["guardian", "stop", "--yes"]);
    stage.is_closed();
}

#[test]
fn t10_a_rule_that_is_withdrawn_closes_the_tunnels_that_a_stop_waits_for() {
    let stage = Stage::new();
    let open = stage.tunnels(1);
    let mut command = stage.host.cloister(&["guardian", "stop", "--yes", "--drain", "10m"]);
    let stopping = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("it still accepts", || (stage.tunnel().is_none(), ()));
    assert!(open.iter().all(echoes));
    stage.host.configure("proxy:\n  allow: []\n");
    open.iter().for_each(ends);
    let stopped = collect(stopping);
    assert_eq!(stopped.code, 0, "{stopped:?}");
    stage.is_closed();
}

#[test]
fn a_start_during_a_drain_says_that_the_guardian_is_stopping() {
    let stage = Stage::new();
    let open = stage.tunnel().unwrap();
    let mut command = stage.host.cloister(&["guardian", "stop", "--yes", "--drain", "1h"]);
    let stopping = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("it still accepts", || (stage.tunnel().is_none(), ()));
    let started = stage.host.run(&["guardian", "start"]);
    assert_eq!(started.code, 1, "{started:?}");
    assert!(started.stderr.contains("the guardian is stopping"), "{started:?}");
    drop(open);
    assert_eq!(collect(stopping).code, 0);
    stage.host.ok(&["guardian", "start"]);
    stage.host.ok(&["guardian", "stop", "--yes"]);
}

#[test]
fn a_frozen_guardian_is_named_and_not_waited_for() {
    let stage = Stage::new();
    // The one that took the lock over is to be named, and not the one that took it first.
    stage.upgrade();
    let pid = stage.pid();
    signal(pid, Signal::STOP);
    let asked = stage.host.run(&["guardian", "status"]);
    signal(pid, Signal::CONT);
    assert_eq!(asked.code, 1, "{asked:?}");
    let expected = format!("the guardian (process {pid}) did not answer within 10 s");
    assert!(
        asked.stderr.contains(&expected) && asked.stderr.contains(&format!("kill -9 {pid}")),
        "{asked:?}"
    );
    stage.host.ok(&["guardian", "stop", "--yes"]);
}

#[test]
fn a_guardian_that_nobody_can_reach_any_more_makes_room_for_the_next() {
    let stage = Stage::new();
    let runtime = stage.host.runtime();
    let ways: [&dyn Fn(); 3] = [
        &|| fs::remove_file(runtime.join("control.key")).unwrap(),
        &|| fs::remove_file(runtime.join("control.sock")).unwrap(),
        &|| fs::remove_dir_all(&runtime).unwrap(),
    ];
    for lose in ways {
        let open = stage.tunnel().unwrap();
        lose();
        ends(&open);
        stage.has_guardians(0);
        stage.is_closed();
        stage.host.ok(&["guardian", "start"]);
    }
}

#[test]
fn a_guardian_that_is_shut_out_leaves_what_another_one_put_in_its_place() {
    let stage = Stage::new();
    let socket = stage.host.runtime().join("control.sock");
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "another one's").unwrap();
    stage.has_guardians(0);
    assert_eq!(fs::read_to_string(&socket).unwrap(), "another one's");
    assert!(!stage.host.runtime().join("control.key").exists(), "its own goes");
}

#[test]
fn a_guardian_that_can_not_be_reached_is_not_said_to_be_gone() {
    let stage = Stage::new();
    let pid = stage.pid();
    // It could not make room by itself.
    signal(pid, Signal::STOP);
    let runtime = stage.host.runtime();
    let ways: [&dyn Fn(); 2] = [&|| fs::remove_file(runtime.join("control.key")).unwrap(), &|| {
        fs::remove_dir_all(&runtime).unwrap();
    }];
    for lose in ways {
        lose();
        let stopped = stage.host.run(&["guardian", "stop"]);
        assert_eq!(stopped.code, 1, "{stopped:?}");
        let expected = format!("a guardian (process {pid}) holds the lock");
        assert!(stopped.stderr.contains(&expected), "{stopped:?}");
        assert!(stopped.stderr.contains(&format!("run `kill {pid}`")), "{stopped:?}");
    }
    let started = stage.host.run(&["guardian", "start"]);
    assert_eq!(started.code, 1, "{started:?}");
    assert!(started.stderr.contains(&format!("a guardian (process {pid}) holds the lock")), "{started:?}");
    signal(pid, Signal::CONT);
    stage.has_guardians(0);
    let stopped = stage.host.run(&["guardian", "stop"]);
    assert_eq!((stopped.code, stopped.stderr.as_str()), (0, "the guardian is not running\n"), "{stopped:?}");
}

#[test]
fn fifty_tunnels_and_a_kill_leave_nothing_that_nobody_owns() {
    let stage = Stage::new();
    let open = stage.tunnels(50);
    signal(stage.pid(), Signal::KILL);
    open.iter().for_each(ends);
    stage.has_guardians(0);
    stage.host.ok(&["guardian", "start"]);
    let again = stage.tunnels(2);
    assert_eq!(control(&stage.host, "DELETE /tokens/demo", "").unwrap().0, 200);
    again.iter().for_each(ends);
    stage.host.ok(&["guardian", "stop"]);
    stage.has_guardians(0);
    let verified = stage.host.run(&["audit", "verify"]);
    assert_eq!(verified.code, 0, "{verified:?}");
    assert_eq!(left_of(&stage.host), Vec::<String>::new());
    let collected = stage.host.run(&["gc"]);
    assert_eq!((collected.code, collected.stdout.as_str()), (0, "removed 0, kept 0\n"), "{collected:?}");
}

/// What is left of cloisters in the directories that hold nothing else.
fn left_of(host: &Host) -> Vec<String> {
    let directories = [
        "home/.config/cloister/tokens",
        "home/.local/state/cloister/run/s",
        "home/.local/state/cloister/run/by-name",
        "home/.local/state/cloister/run/i",
    ];
    let entries =
        directories.iter().filter_map(|directory| fs::read_dir(host.path(directory)).ok()).flatten();
    entries.map(|entry| entry.unwrap().path().display().to_string()).collect()
}

#[test]
fn a_guardian_killed_within_a_registration_leaves_nothing_that_nobody_owns() {
    if !can_trace() {
        return;
    }
    let stage = Stage::new();
    let host = &stage.host;
    let by_name = host.runtime().join("by-name/demo");
    let sockets = host.runtime().join("s").join(fs::read_link(&by_name).unwrap().file_name().unwrap());
    // In the order in which a registration takes them: the token is kept, and told to nobody.
    let steps = [
        ("mkdir,mkdirat", sockets.clone()),
        ("symlink,symlinkat", by_name),
        ("unlink,unlinkat", sockets.join("proxy.sock")),
    ];
    for (calls, path) in steps {
        assert_eq!(control(host, "DELETE /tokens/demo", "").unwrap().0, 200);
        assert_eq!(left_of(host), Vec::<String>::new(), "{calls}");
        host.ok(&["guardian", "stop", "--yes"]);
        let mut command = host.program("/usr/bin/strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-P"]).arg(&path);
        command.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:signal=KILL:when=1")]);
        command.arg(host.binary()).args(["guardian", "run"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut traced = command.spawn().unwrap();
        let mut word = String::new();
        BufReader::new(traced.stdout.as_mut().unwrap()).read_line(&mut word).unwrap();
        assert!(word.starts_with("ready"), "{calls}: {word}");
        assert_eq!(control(host, "POST /tokens", &registration("demo").to_string()), None, "{calls}");
        assert_eq!(collect(traced).code, 137, "{calls}");
        stage.has_guardians(0);
        host.ok(&["guardian", "start"]);
        assert!(stage.tunnel().is_none(), "{calls}: an earlier token is taken");
        let token = register(host, "demo");
        assert!(tunnel(host, "demo", &token, stage.origin).is_some(), "{calls}");
        let verified = host.run(&["audit", "verify"]);
        assert_eq!(verified.code, 0, "{calls}: {verified:?}");
    }
}

/// The system calls of a guardian's main thread that change something, or that it waits in for the other.
const CALLS: &str = "openat,rename,renameat,unlink,unlinkat,mkdir,mkdirat,symlink,symlinkat,connect,bind,listen,write,\
                     sendto,recvmsg,recvfrom,flock,fsync,fdatasync,clone,clone3";

/// A step of a new guardian: the how-manieth call of its name, and the line that shows it.
#[derive(Debug, Clone)]
struct Step {
    call: String,
    number: usize,
    line: String,
}

fn traced(host: &Host, disturbance: Option<(&Step, &str)>) -> Command {
    let mut command = host.program("/usr/bin/strace");
    command.args(["-qq", "-s", "60", "-o"]).arg(host.path("home/trace"));
    command.args(["-e", &format!("trace={CALLS}")]);
    if let Some((step, signal)) = disturbance {
        command.args(["-e", &format!("inject={}:signal={signal}:when={}", step.call, step.number)]);
    }
    command.arg(host.binary()).args(["guardian", "run", "--replace"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The steps of an undisturbed handover, up to its ready word.
fn steps(stage: &Stage) -> Vec<Step> {
    let mut child = traced(&stage.host, None).spawn().unwrap();
    let mut word = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut word).unwrap();
    assert!(word.starts_with("ready"), "{word}");
    let trace = fs::read_to_string(stage.host.path("home/trace")).unwrap();
    stage.host.ok(&["guardian", "stop", "--yes"]);
    child.wait().unwrap();
    let mut counts = std::collections::BTreeMap::new();
    let mut steps = Vec::new();
    for line in trace.lines() {
        let Some((call, rest)) = line.split_once('(') else { continue };
        let number = counts.entry(call.to_owned()).or_insert(0);
        *number += 1;
        // What only reads a file changes nothing, and reading an answer byte by byte is one step.
        let is_reading = call == "openat" && !rest.contains("O_CREAT") || call == "recvfrom" && *number > 1;
        // After the first record, threads may be woken by a write, or not.
        // Which ports are free for the page is not this guardian's business alone.
        let is_certain = (call != "write" || *number == 1) && !rest.contains("AF_INET");
        if !is_reading && is_certain {
            steps.push(Step { call: call.to_owned(), number: *number, line: line.to_owned() });
        }
    }
    assert!(steps.iter().any(|step| step.line.contains("serving")), "{trace}");
    steps
}

/// Checks that exactly one guardian can be had, that it serves `demo`, and that nothing is left at the end.
fn check(stage: &Stage, at: &str) {
    let started = stage.host.run(&["guardian", "start"]);
    assert_eq!(started.code, 0, "{at}: {started:?}");
    assert!(stage.tunnel().is_some(), "{at}: the token is not taken");
    let verified = stage.host.run(&["audit", "verify"]);
    assert_eq!(verified.code, 0, "{at}: {verified:?}");
    let stopped = stage.host.run(&["guardian", "stop", "--yes"]);
    assert_eq!(stopped.code, 0, "{at}: {stopped:?}");
    until(&format!("{at}: a guardian is left"), || {
        let found = stage.guardians();
        (found.is_empty(), found)
    });
    assert_eq!(stage.records().last().unwrap()["event"], "guardian.stop", "{at}");
    assert!(!stage.host.runtime().join("control.sock").exists(), "{at}");
    let verified = stage.host.run(&["audit", "verify"]);
    assert_eq!(verified.code, 0, "{at}: {verified:?}");
}

fn can_trace() -> bool {
    let is_there = Path::new("/usr/bin/strace").exists();
    if !is_there {
        requirement::skip("strace", "there is no `strace`");
    }
    is_there
}

fn at_every_step(disturb: impl Fn(&Stage, &Step, UnixStream)) {
    if !can_trace() {
        return;
    }
    let stage = Stage::new();
    let steps = steps(&stage);
    for step in &steps {
        stage.host.ok(&["guardian", "start"]);
        let open = stage.tunnel().unwrap();
        disturb(&stage, step, open);
        check(&stage, &format!("at `{}`", step.line));
    }
}

#[test]
fn a_new_guardian_killed_at_any_step_leaves_one_or_none() {
    at_every_step(|stage, step, open| {
        let old = stage.pid();
        let killed: Done = finish(traced(&stage.host, Some((step, "KILL"))));
        assert_eq!(killed.code, 137, "{step:?}: {killed:?}");
        // Either nothing has happened, or everything ends.
        until(&format!("{step:?}"), || {
            let goes_on = echoes(&open);
            let found = stage.guardians();
            (goes_on && found == [old] || !goes_on && found.is_empty(), (goes_on, found))
        });
    });
}

/// Runs a new guardian up to a step and holds it there.
fn freeze(stage: &Stage, step: &Step) -> (std::process::Child, i32) {
    let trace = stage.host.path("home/trace");
    fs::remove_file(&trace).unwrap();
    let mut tracer = traced(&stage.host, Some((step, "STOP"))).spawn().unwrap();
    until(&format!("`{}` is not reached", step.line), || {
        let text = fs::read_to_string(&trace).unwrap_or_default();
        (text.contains("stopped by SIGSTOP") || tracer.try_wait().unwrap().is_some(), text)
    });
    let children = format!("/proc/{0}/task/{0}/children", tracer.id());
    let new = fs::read_to_string(children).unwrap().trim().parse().unwrap();
    (tracer, new)
}

#[test]
fn an_old_guardian_killed_at_any_step_is_followed_by_the_new_one() {
    at_every_step(|stage, step, open| {
        let old = stage.pid_of_only();
        let (mut tracer, new) = freeze(stage, step);
        signal(old, Signal::KILL);
        ends(&open);
        signal(new, Signal::CONT);
        let mut word = String::new();
        BufReader::new(tracer.stdout.take().unwrap()).read_line(&mut word).unwrap();
        assert!(word.starts_with("ready"), "{step:?}: {word}");
        assert_eq!(stage.pid(), new, "{step:?}");
        // The tracer ends with its guardian, which `check` stops.
        std::thread::spawn(move || tracer.wait());
    });
}

#[test]
fn a_new_guardian_that_hangs_is_given_up() {
    if !can_trace() {
        return;
    }
    let stage = Stage::new();
    let steps = steps(&stage);
    // Before it is ready, and when the log is closed for it.
    for word in ["ready", "serving"] {
        let said = format!("{{\\\"message\\\":\\\"{word}");
        let position = steps.iter().position(|step| step.line.contains(&said)).unwrap();
        let step = &steps[position - 1];
        stage.host.ok(&["guardian", "start"]);
        let (old, open) = (stage.pid(), stage.tunnel().unwrap());
        let (mut tracer, _) = freeze(&stage, step);
        // Both what flows and what comes to be recorded go on.
        assert!(echoes(&open));
        assert!(stage.tunnel().is_some(), "{word}");
        assert_eq!(tracer.wait().unwrap().code(), None, "{word}");
        assert_eq!(stage.pid(), old);
        assert!(echoes(&open));
        check(&stage, word);
    }
}

impl Stage {
    fn pid_of_only(&self) -> i32 {
        let found = self.guardians();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0]
    }
}
