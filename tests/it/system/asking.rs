//! Asking from inside and answering from a terminal: `cloister request`, `approvals …`, the bell.

use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::Value;

use crate::harness::{Done, Host, collect};
use crate::terminal::Terminal;

/// A host whose sandbox `demo` runs, and where nobody but these tests is told of requests.
fn host(bell: bool) -> Option<Host> {
    let host = Host::with_bubblewrap()?;
    host.configure(&format!("approvals: {{notify: false, bell: {bell}}}\nproxy: {{unlisted: ask}}\n"));
    host.ok(&["start", "--detach"]);
    Some(host)
}

/// Somebody inside asks.
fn asks(host: &Host, target: &str, reason: &str) -> Child {
    let mut command =
        host.cloister(&["exec", "demo", "--", "cloister", "request", target, "--reason", reason]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn rows(host: &Host) -> Vec<Value> {
    serde_json::from_str(&host.ok(&["approvals", "list", "--json"])).unwrap()
}

/// Waits until a request for this host waits, and gives its row.
#[track_caller]
fn waiting(host: &Host, child: &mut Child, target: &str) -> Value {
    loop {
        if let Some(row) = rows(host).into_iter().find(|row| row["host"] == target) {
            return row;
        }
        assert_eq!(child.try_wait().unwrap(), None, "nobody asks any more");
    }
}

fn id(row: &Value) -> &str {
    row["id"].as_str().unwrap()
}

#[track_caller]
fn refused(done: &Done, parts: &[&str]) {
    assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{done:?}");
    for part in parts {
        assert!(done.stderr.contains(part), "{part:?} is not in {done:?}");
    }
}

#[test]
fn a1_a_polite_request_is_listed_allowed_and_forgotten() {
    let Some(host) = host(false) else { return };
    let mut child = asks(&host, "api.example.org", "to build\u{1b}[2J");
    let row = waiting(&host, &mut child, "api.example.org");
    assert_eq!(
        (&row["kind"], &row["port"], &row["cloister"]),
        (&"domain".into(), &443.into(), &"demo".into())
    );
    assert_eq!(
        (&row["reason"], &row["wildcard"]),
        (&"to build\u{1b}[2J".into(), &"*.example.org:443".into())
    );
    let list = host.ok(&["approvals"]);
    assert!(list.starts_with("ID ") && list.contains("asks: \"to build\\u{1b}[2J\""), "{list}");
    let short = &id(&row)[..6];
    let told = host.ok(&["approvals", "allow", short, "--scope", "session"]);
    let holds = "allowed api.example.org:443 for demo, until it is stopped; take it back with `cloister approvals forget \
                 api.example.org:443`\n";
    assert_eq!(told, holds);
    let done = collect(child);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    assert!(
        done.stdout.starts_with("api.example.org:443 is allowed until this cloister is stopped"),
        "{done:?}"
    );
    // A second answer comes too late, and says what was answered.
    refused(&host.run(&["approvals", "deny", short]), &["has ended: allowed api.example.org:443 for demo"]);
    // Who asks again is told at once.
    let again = host.run(&["exec", "demo", "--", "cloister", "request", "api.example.org"]);
    assert_eq!(again.code, 0, "{again:?}");
    let forgotten = host.ok(&["approvals", "forget", "api.example.org:443"]);
    assert!(
        forgotten.starts_with("forgot: allow api.example.org:443 (session, grants/demo.yaml:"),
        "{forgotten}"
    );
    refused(&host.run(&["approvals", "forget", "api.example.org:443"]), &["no remembered answer"]);
}

#[test]
fn a_denial_and_a_wildcard_that_is_not_offered_are_told_with_the_reason() {
    let Some(host) = host(false) else { return };
    let mut child = asks(&host, "me.github.io:8443", "please");
    let row = waiting(&host, &mut child, "me.github.io");
    let wide = host.run(&["approvals", "allow", id(&row), "--wildcard", "--scope", "session"]);
    refused(&wide, &["no wildcard for me.github.io:8443", "github.io is shared"]);
    let wide = host.run(&["approvals", "allow", id(&row), "--wildcard"]);
    refused(&wide, &["for once", "--scope session"]);
    // Of several, all are tried.
    let done = host.run(&["approvals", "deny", "0000111122223333", id(&row), "--reason", "no games"]);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (1, "denied me.github.io:8443 for demo, this once\n"),
        "{done:?}"
    );
    assert!(done.stderr.contains("no request `0000111122223333` waits"), "{done:?}");
    refused(&collect(child), &["me.github.io:8443 is not allowed: denied_by_user"]);
}

#[test]
fn who_asks_no_longer_is_not_answered() {
    let Some(host) = host(false) else { return };
    let mut child = asks(&host, "gone.test", "");
    let row = waiting(&host, &mut child, "gone.test");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(collect(child).code, 130);
    while !rows(&host).is_empty() {}
    refused(&host.run(&["approvals", "allow", id(&row)]), &["has ended", "nobody waits for it any more"]);
}

#[test]
fn i1_asking_and_answering_belong_to_their_sides() {
    let Some(host) = host(false) else { return };
    refused(&host.run(&["request", "a.test"]), &["from inside of a cloister", "hint: on the host"]);
    let inside = |words: &str| host.run(&["exec", "demo", "--", "sh", "-c", words]);
    refused(&inside("cloister request 'a b'"), &["is not a host"]);
    refused(
        &inside("cloister request a.test --reason $(head -c 1025 /dev/zero | tr '\\0' x)"),
        &["at most 1024"],
    );
    refused(&inside("CLOISTER_TOKEN=ff cloister request a.test"), &["unauthenticated"]);
    refused(&inside("cloister approvals allow 0123456789abcdef"), &["guardian is not running"]);
    refused(&host.run(&["approvals", "watch"]), &["needs a terminal", "approvals list"]);
    assert_eq!(rows(&host), [] as [Value; 0]);
}

#[test]
fn without_a_guardian_nothing_waits() {
    let host = Host::new(crate::harness::User::Ordinary);
    let done = host.run(&["approvals"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:?}");
    assert!(done.stderr.contains("the guardian is not running"), "{done:?}");
    assert_eq!(rows(&host), [] as [Value; 0]);
    refused(&host.run(&["approvals", "allow", "1234"]), &["the guardian is not running", "hint: "]);
    refused(&host.run(&["approvals", "open"]), &["the guardian is not running", "hint: "]);
    refused(
        &host.run(&["approvals", "forget", "a.test:443"]),
        &["no remembered answer is about `a.test:443`"],
    );
}

#[test]
fn a18_the_link_is_printed_and_is_another_every_time() {
    let Some(host) = host(false) else { return };
    let links = [host.ok(&["approvals", "open"]), host.ok(&["approvals", "open"])];
    for link in &links {
        assert!(link.starts_with("http://127.0.0.1:") && link.contains("/login/"), "{link}");
    }
    assert_ne!(links[0], links[1]);
}

#[test]
fn a5_a_request_is_answered_in_the_live_list_once_it_was_seen() {
    let Some(host) = host(false) else { return };
    let (mut terminal, mut watch) = Terminal::cloister(&host, &["approvals", "watch"]);
    terminal.sees("\x1b[?1049h");
    terminal.shows("nothing waits");
    let mut child = asks(&host, "api.example.org", "to build");
    terminal.shows("api.example.org:443");
    // Typed in one go: the second key comes before anybody has seen what it would answer.
    terminal.types("js");
    terminal.shows("too soon");
    terminal.types("\x1b[200~s\x1b[201~");
    terminal.shows("answers nothing");
    // Nothing has been answered so far; half a second later a key does.
    assert_eq!(rows(&host).len(), 1);
    while child.try_wait().unwrap().is_none() {
        terminal.types("s");
        terminal.reads(Duration::from_millis(100));
    }
    terminal.shows("allowed api.example.org:443");
    let done = collect(child);
    assert_eq!(done.code, 0, "{done:?}");
    terminal.types("q");
    terminal.sees("\x1b[?1049l");
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    assert!(terminal.is_cooked());
}

#[test]
fn the_live_list_gives_the_terminal_back_whatever_stops_it() {
    let Some(host) = host(false) else { return };
    let (mut terminal, mut watch) = Terminal::cloister(&host, &["approvals", "watch"]);
    terminal.resize(10, 40);
    terminal.shows("nothing waits");
    kill_process(Pid::from_child(&watch), Signal::TSTP).unwrap();
    let stopped = waitpid(Some(Pid::from_child(&watch)), WaitOptions::UNTRACED).unwrap().unwrap().1;
    assert!(stopped.stopped() && terminal.is_cooked(), "{stopped:?}");
    terminal.sees("\x1b[?1049l");
    kill_process(Pid::from_child(&watch), Signal::CONT).unwrap();
    terminal.sees("\x1b[?1049h");
    terminal.shows("nothing waits");
    // The guardian goes and comes.
    host.ok(&["guardian", "stop", "--yes"]);
    terminal.shows("NO GUARDIAN");
    host.ok(&["guardian", "start"]);
    terminal.shows("nothing waits");
    kill_process(Pid::from_child(&watch), Signal::TERM).unwrap();
    terminal.sees("\x1b[?1049l");
    assert_eq!(watch.wait().unwrap().code(), Some(143));
    assert!(terminal.is_cooked());
}

#[test]
fn the_bell_of_a_session_rings_when_nobody_looks() {
    let Some(host) = host(true) else { return };
    let (mut terminal, mut session) =
        Terminal::cloister(&host, &["start", "--", "sh", "-c", "echo be''gun; cat"]);
    terminal.sees("begun");
    let mut children = Vec::new();
    // The session may not listen yet when the first one asks.
    for number in 0..50 {
        let mut child = asks(&host, &format!("h{number}.test"), "");
        waiting(&host, &mut child, &format!("h{number}.test"));
        children.push(child);
        if terminal.reads(Duration::from_secs(1)).is_some() {
            break;
        }
        kill_process(Pid::from_child(children.last().unwrap()), Signal::KILL).unwrap();
    }
    terminal.sees("\x07");
    terminal.types("\x04");
    assert_eq!(session.wait().unwrap().code(), Some(0));
    for mut child in children {
        // Some have ended.
        let _ = child.kill();
        child.wait().unwrap();
    }
}

#[test]
fn the_bell_is_silent_where_it_is_not_wished() {
    let Some(host) = host(false) else { return };
    let (mut terminal, mut session) =
        Terminal::cloister(&host, &["start", "--", "sh", "-c", "echo be''gun; cat"]);
    terminal.sees("begun");
    let mut child = asks(&host, "a.test", "");
    let row = waiting(&host, &mut child, "a.test");
    host.ok(&["approvals", "deny", id(&row)]);
    assert_eq!(collect(child).code, 1);
    terminal.types("end\n\x04");
    while terminal.reads(Duration::from_secs(20)).is_some_and(|count| count > 0) {}
    assert_eq!(session.wait().unwrap().code(), Some(0));
    assert!(!terminal.shown().contains('\x07'), "{}", terminal.shown());
}
