//! The audit log of the real guardian: what it tells, that a full disk stops the traffic, that kills leave it good.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::origin::Plain;
use crate::harness::{Done, Host, User, collect, finish, plain};
use crate::requirement;

fn audit_dir(host: &Host) -> PathBuf {
    host.path("home/.local/share/cloister/audit")
}

fn guardian_pid(host: &Host) -> i32 {
    let status: Value = serde_json::from_str(&host.ok(&["guardian", "status", "--json"])).unwrap();
    i32::try_from(status[0]["pid"].as_i64().unwrap()).unwrap()
}

fn json(host: &Host, arguments: &[&str]) -> Vec<Value> {
    let all: Value = serde_json::from_str(&host.ok(&[arguments, &["--json"]].concat())).unwrap();
    all.as_array().unwrap().clone()
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
    }
}

/// Lets the sandboxes of a host reach a page of this test.
fn with_page(host: &Host) -> Plain {
    let origin = Plain::start("the page\n");
    let (address, port) = (origin.address.ip(), origin.address.port());
    host.configure(&format!(
        "proxy:\n  allow: [\"web.test:{port}\"]\n  hosts: {{web.test: [{address}]}}\naudit: {{max_size: 1MiB}}\n"
    ));
    origin
}

fn fetch(origin: &Plain) -> String {
    format!("curl -s -w '%{{http_code}}' -x $HTTP_PROXY http://web.test:{}/", origin.address.port())
}

#[test]
fn records_are_chosen_by_event_host_reason_decision_and_number() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let origin = with_page(&host);
    let script = format!(
        "{}; for name in a.below.test b.below.test other.test; do curl -s -x $HTTP_PROXY http://$name/ >/dev/null; \
         done; curl -s -o /dev/null -x http://cloister:wrong@127.0.0.1:3128 http://a.below.test/",
        fetch(&origin)
    );
    assert_eq!(host.inside(&script).stdout, "the page\n200");
    let hosts = |arguments: &[&str]| -> Vec<String> {
        let found = json(&host, &[&["audit"], arguments].concat());
        found.iter().map(|entry| entry["host"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(hosts(&["--decision", "allow"]), ["web.test"]);
    assert_eq!(
        hosts(&["--event", "proxy.deny", "--reason", "not_allowed"]),
        ["a.below.test", "b.below.test", "other.test"]
    );
    assert_eq!(hosts(&["--host", "*.below.test"]), ["a.below.test", "b.below.test"]);
    assert_eq!(hosts(&["--host", "other.test"]), ["other.test"]);
    assert_eq!(
        hosts(&["--decision", "deny", "--reason", "not_allowed", "-n", "2"]),
        ["b.below.test", "other.test"]
    );
    assert_eq!(hosts(&["--reason", "unauthenticated"]).len(), 1);
    assert_eq!(hosts(&["--until", "1h"]), Vec::<String>::new());
    assert_eq!(hosts(&["--since", "1h", "--event", "guardian.start", "--event", "sandbox.start"]).len(), 2);
    let allowed = json(&host, &["audit", "--event", "proxy.allow"]);
    assert_eq!(allowed[0]["addresses"], Value::from(vec![origin.address.to_string()]));
    let typo = host.run(&["audit", "--event", "proxy.dney"]);
    assert_eq!(typo.code, 2);
    assert!(typo.stderr.contains("the nearest one is `proxy.deny`"), "{typo:?}");
}

#[test]
fn a_pipe_that_closes_ends_it_quietly() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.inside("for n in $(seq 300); do echo url = http://h$n.test/; echo output = /dev/null; done > /tmp/urls; curl -s -x $HTTP_PROXY -K /tmp/urls > /dev/null");
    let mut shell = host.program("sh");
    shell.args(["-c", "\"$0\" audit | head -1; \"$0\" audit --json | head -1"]).arg(host.binary());
    let done = finish(shell);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    assert!(done.stdout.ends_with("\n[\n"), "{done:?}");
}

#[test]
fn a_flood_of_denials_is_one_record_and_a_summary() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let flood = "for n in $(seq 500); do echo url = http://flood.test/; echo output = /dev/null; done > /tmp/urls; \
                 curl -s -x $HTTP_PROXY -K /tmp/urls";
    host.inside(flood);
    let why = host.ok(&["why", "flood.test:80"]);
    assert!(why.contains("last refusal") && why.contains("not_allowed"), "{why}");
    host.ok(&["stop"]);
    let told = json(&host, &["audit", "--host", "flood.test"]);
    let repeated: Vec<_> = told.iter().map(|entry| entry["repeated"].as_u64()).collect();
    assert_eq!(repeated.iter().flatten().sum::<u64>() + 1, 500, "{told:?}");
    assert!(told.len() <= 4, "{told:?}");
}

#[test]
fn a17_a_removed_file_of_a_cloister_is_named() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.inside("curl -s -x $HTTP_PROXY http://unlisted.example/");
    host.ok(&["stop"]);
    let verified = host.ok(&["audit", "verify"]);
    assert!(verified.contains("cloisters/demo.jsonl: good"), "{verified}");
    host.ok(&["shutdown"]);
    fs::remove_file(audit_dir(&host).join("cloisters/demo.jsonl")).unwrap();
    let verified = host.run(&["audit", "verify"]);
    assert_eq!(verified.code, 1);
    assert!(verified.stderr.contains("demo.jsonl") && verified.stderr.contains("missing"), "{verified:?}");
}

#[test]
fn a17_a_removed_log_is_missed_by_the_noted_head() {
    let host = Host::new(User::Same);
    let none = host.run(&["audit", "head"]);
    assert_eq!((none.code, none.stdout.as_str()), (1, ""), "a script notes no empty head: {none:?}");
    host.ok(&["guardian", "start"]);
    host.ok(&["guardian", "stop"]);
    let head = host.ok(&["audit", "head"]);
    let head = head.trim_end();
    host.ok(&["audit", "verify", "--expect", head]);
    fs::remove_dir_all(audit_dir(&host)).unwrap();
    for silent in [&[][..], &["--silent"]] {
        let missed = host.run(&[silent, &["audit", "verify", "--expect", head]].concat());
        assert_eq!(missed.code, 1, "{missed:?}");
        assert!(missed.stderr.contains("it ends at record 0, but record 2 was there"), "{missed:?}");
    }
    assert_eq!(host.run(&["audit", "verify"]).code, 0);
}

#[test]
fn a_guardian_is_not_stopped_unasked_under_a_sandbox_whose_receipt_is_damaged() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    let receipt = host.path("home/.local/state/cloister/receipts/demo.json");
    let good = fs::read(&receipt).unwrap();
    fs::write(&receipt, "{").unwrap();
    let refused = host.run(&["guardian", "stop"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("demo.json") && refused.stderr.contains("--yes"), "{refused:?}");
    host.ok(&["guardian", "status"]);
    fs::write(&receipt, good).unwrap();
    host.ok(&["stop"]);
    host.ok(&["guardian", "stop"]);
}

#[test]
fn a17_a_guardian_killed_while_it_writes_leaves_a_good_log() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let origin = with_page(&host);
    host.ok(&["start", "-d"]);
    let traffic = format!("while :; do {}; done > /dev/null 2>&1", fetch(&origin));
    let traffic = [0, 1].map(|_| {
        let mut command = host.cloister(&["exec", "demo", "--", "sh", "-c", &traffic]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    });
    for round in 1..=15 {
        let before = origin.connections();
        until("the traffic flows", || origin.connections() > before + round % 5);
        kill_process(Pid::from_raw(guardian_pid(&host)).unwrap(), Signal::KILL).unwrap();
        host.ok(&["guardian", "start"]);
        let verified = host.run(&["audit", "verify"]);
        assert_eq!(verified.code, 0, "{verified:?}");
    }
    host.ok(&["stop"]);
    traffic.into_iter().map(collect).for_each(drop);
    host.ok(&["shutdown"]);
    host.ok(&["audit", "verify"]);
}

/// A guardian whose audit directory is a small disk, seen in a mount namespace of its own.
fn with_small_disk(host: &Host) -> Option<Child> {
    fs::create_dir_all(audit_dir(host)).unwrap();
    let probe = finish(unshared("true"));
    if probe.code != 0 {
        requirement::skip("namespaces", "no mount namespace can be made");
        return None;
    }
    let script = format!(
        "mount -t tmpfs -o size=256k,mode=700 small {} && exec {} guardian run",
        audit_dir(host).display(),
        host.binary().display()
    );
    let mut command = unshared(&script);
    command.env("HOME", host.home()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    until("the guardian runs", || host.run(&["guardian", "status"]).stdout.contains("pid"));
    Some(child)
}

fn unshared(script: &str) -> std::process::Command {
    let mut command = plain("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "sh", "-c", script]);
    command
}

#[test]
fn a_full_disk_stops_the_traffic_and_says_so_until_there_is_room() {
    if !Path::new("/usr/bin/bwrap").exists() {
        return requirement::skip("bubblewrap", "there is no `bwrap`");
    }
    let host = Host::new(User::Same);
    let origin = with_page(&host);
    let Some(guardian) = with_small_disk(&host) else { return };
    let start = host.run(&["start", "--allow-root", "-d"]);
    assert_eq!(start.code, 0, "{start:?}");
    let fetch = fetch(&origin);
    let inside = |script: &str| host.run(&["exec", "demo", "--", "sh", "-c", script]);
    assert_eq!(inside(&fetch).stdout, "the page\n200");
    let disk = PathBuf::from(format!("/proc/{}/root", guardian_pid(&host)));
    let disk = disk.join(audit_dir(&host).strip_prefix("/").unwrap());
    assert!(fs::write(disk.join("ballast"), vec![0; 512 * 1024]).is_err());
    let codes = inside(&format!("for n in $(seq 60); do {fetch}; echo; done")).stdout;
    assert!(codes.contains("policy_unavailable") && codes.trim_end().ends_with("503"), "{codes}");
    let reached = origin.connections();
    assert!(inside(&fetch).stdout.ends_with("503"));
    assert_eq!(origin.connections(), reached, "nothing passes without its record");
    let status = host.run(&["guardian", "status"]);
    let told = format!("{}{}", status.stdout, status.stderr);
    assert!(told.contains("cannot write to the audit file"), "{told}");
    fs::remove_file(disk.join("ballast")).unwrap();
    assert_eq!(inside(&fetch).stdout, "the page\n200");
    let status = host.run(&["guardian", "status"]);
    assert!(!format!("{}{}", status.stdout, status.stderr).contains("cannot write"), "{status:?}");
    host.ok(&["stop", "demo"]);
    host.ok(&["guardian", "status"]);
    copy(&disk, &audit_dir(&host));
    let verified: Done = host.run(&["audit", "verify"]);
    assert_eq!(verified.code, 0, "{verified:?}");
    host.ok(&["shutdown"]);
    collect(guardian);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
