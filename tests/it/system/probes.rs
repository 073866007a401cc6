//! `cloister doctor`, and the attack suite: what it finds, and that it can find something.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use cloister::init::probe::{Attack, Canaries, Endpoint, Finding, Order};
use cloister::sandbox::seccomp_trials;
use serde_json::Value;

use crate::harness::{Done, Host, User, collect, feed, finish};

const GREETING: &str = "canary-of-a-test";

/// `cloister doctor …` with a temporary directory of the test's own.
fn doctor(host: &Host, arguments: &[&str]) -> Command {
    host.write(&host.path("tmp/keep"), "");
    let mut command = host.cloister(&[&["doctor"], arguments].concat());
    command.env("TMPDIR", host.path("tmp"));
    command
}

fn rows(done: &Done) -> Vec<(String, String, String)> {
    let rows: Vec<Value> = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    rows.iter().map(|row| (text(row, "id"), text(row, "result"), text(row, "detail"))).collect()
}

/// What a probe leaves: nothing but the audit log, and what was there before.
#[track_caller]
fn assert_nothing_left(host: &Host, running: &str) {
    let left: Vec<_> =
        std::fs::read_dir(host.path("tmp")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["keep"]);
    let state = host.home();
    for folder in
        [".local/share/cloister/instances", ".config/cloister/projects", ".local/state/cloister/receipts"]
    {
        let entries = std::fs::read_dir(state.join(folder)).into_iter().flatten();
        let probes: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("probe-"))
            .collect();
        assert_eq!(probes, [] as [String; 0], "{folder}");
    }
    let registry =
        std::fs::read_to_string(state.join(".local/share/cloister/projects.json")).unwrap_or_default();
    assert!(!registry.contains("probe-"), "{registry}");
    let names: Vec<Value> = serde_json::from_str(&host.ok(&["list", "--json"])).unwrap();
    let names: Vec<&str> = names.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names.join(","), running);
}

#[test]
fn t1_to_k12_every_attempt_is_stopped_and_shown_to_succeed_outside() {
    for host in Host::both() {
        host.ok(&["start", "-d"]);
        let done = finish(doctor(&host, &["--probe", "--json"]));
        let found = rows(&done);
        let ids: Vec<&str> = found.iter().map(|(id, ..)| id.as_str()).collect();
        let expected = [
            "T1", "T2", "T3", "T4", "T5", "T11", "T12", "F16", "I1", "I3", "K1", "K2", "K3", "K4", "K5",
            "K6", "K7", "K8", "K9", "K11", "K12", "K14",
        ];
        assert_eq!(ids, expected);
        for (id, result, detail) in found.iter().filter(|(id, ..)| id != "K14") {
            let may_be_absent = matches!(id.as_str(), "T1" | "T3");
            assert!(
                result == "held" || may_be_absent && result == "not_applicable",
                "{id}: {result}: {detail}"
            );
        }
        let is_fine = found.iter().all(|(_, result, _)| matches!(result.as_str(), "held" | "not_applicable"));
        assert_eq!(done.code, i32::from(!is_fine));
        assert_nothing_left(&host, "demo");
        assert_eq!(host.ok(&["exec", "demo", "--", "echo", "still here"]), "still here\n");
    }
}

#[test]
fn k14_appetite_is_bounded_as_far_as_the_host_offers() {
    for host in Host::both() {
        host.ok(&["start", "-d"]);
        let listed: Vec<Value> = serde_json::from_str(&host.ok(&["list", "--json"])).unwrap();
        let found = rows(&finish(doctor(&host, &["--probe", "--json"])));
        let (_, result, detail) = found.iter().find(|(id, ..)| id == "K14").unwrap();
        if listed[0]["limits"].as_str().unwrap().starts_with("cgroup") {
            assert_eq!(result, "held", "{detail}");
        } else {
            // Without control groups memory is not counted, and with it the files in memory that hold nothing.
            assert_eq!(result, "broken", "{detail}");
            assert!(detail.contains("memory: held") && !detail.contains("processes"), "{detail}");
            assert!(!detail.contains("bytes in"), "{detail}");
        }
    }
}

#[test]
fn a_probe_that_is_interrupted_clears_away_what_it_made() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let Some(host) = Host::with_bubblewrap() else { return };
        interrupt(&host, signal);
    }
}

fn interrupt(host: &Host, signal: rustix::process::Signal) {
    let mut command = doctor(host, &["--probe"]);
    let probe = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !host.run(&["list", "--json"]).stdout.contains("probe-") {}
    let pid = rustix::process::Pid::from_child(&probe);
    rustix::process::kill_process(pid, signal).unwrap();
    let done = collect(probe);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("interrupted"), "{done:?}");
    assert_nothing_left(host, "");
    assert_eq!(host.run(&["guardian", "status"]).code, 1, "it was started for the probe alone");
}

/// Runs attacks on the host, with nothing between.
fn outside(host: &Host, attacks: &[Attack], prepare: impl FnOnce(&mut Command)) -> Vec<Finding> {
    let mut command = host.cloister(&["sandbox-init", "probe"]);
    prepare(&mut command);
    let done = feed(command, &serde_json::to_vec(attacks).unwrap());
    serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"))
}

#[track_caller]
fn assert_all(findings: &[Finding], attacks: &[Attack], is_reached: bool) {
    assert_eq!(findings.len(), attacks.len());
    for (finding, attack) in findings.iter().zip(attacks) {
        let is_as_expected = match finding {
            Finding::Reached(_) => is_reached,
            Finding::Refused(_) => !is_reached,
            Finding::Failed(_) => false,
        };
        assert!(is_as_expected, "{attack:?}: {finding:?}");
    }
}

/// Every kind of attack that needs no right, aimed at canaries of the test's own.
fn aimed(host: &Host, canaries: &Canaries, pid: u32, socket: &std::path::Path) -> Vec<Attack> {
    let greeting = || GREETING.to_owned();
    let file = host.path("tmp/file");
    host.write(&file, GREETING);
    let mut attacks: Vec<Attack> = Vec::new();
    for address in &canaries.tcp {
        attacks.push(Attack::Connect { to: Endpoint::Tcp(*address), expect: greeting() });
    }
    for address in &canaries.udp {
        attacks.push(Attack::Datagram { to: *address, expect: greeting() });
    }
    attacks.extend([
        Attack::Connect { to: Endpoint::Unix(socket.to_owned()), expect: greeting() },
        Attack::Connect { to: Endpoint::Abstract(format!("{GREETING}-{pid}")), expect: greeting() },
        Attack::Ask {
            to: Endpoint::Unix(socket.to_owned()),
            request: "anything".to_owned(),
            expect: greeting(),
        },
        Attack::Read { path: file.clone(), expect: Some(greeting()) },
        Attack::OpenForWriting { path: file },
        Attack::FindProcess { needle: greeting() },
        Attack::Memory { pid: i32::try_from(pid).unwrap() },
        Attack::Environment { names: vec!["SSH_AUTH_SOCK".to_owned()] },
        Attack::Capabilities,
        Attack::Debug,
        Attack::Disk { directory: host.path("tmp"), ceiling: 4 << 20 },
        Attack::Inodes { directory: host.path("tmp"), ceiling: 64 },
        Attack::OpenFiles { ceiling: 64 },
        Attack::Processes { ceiling: 8 },
        Attack::Memories { ceiling: 4 << 20 },
    ]);
    attacks
}

#[test]
fn every_attack_succeeds_where_there_is_no_sandbox_and_none_where_nothing_is() {
    let host = Host::new(User::Same);
    host.write(&host.path("tmp/keep"), "");
    let socket = host.path("tmp/socket");
    let mut command = host.cloister(&["sandbox-init", "canary", GREETING]);
    let mut canary = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let order = Order {
        greeting: GREETING.to_owned(),
        addresses: vec!["127.0.0.1".parse().unwrap()],
        sockets: vec![socket.clone()],
        names: vec![format!("{GREETING}-{}", canary.id())],
    };
    let mut stdin = canary.stdin.take().unwrap();
    writeln!(stdin, "{}", serde_json::to_string(&order).unwrap()).unwrap();
    let mut line = String::new();
    BufReader::new(canary.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let canaries: Canaries = serde_json::from_str(&line).unwrap();
    let attacks = aimed(&host, &canaries, canary.id(), &socket);
    let found = outside(&host, &attacks, |command| {
        command.env("SSH_AUTH_SOCK", "here");
    });
    assert_all(&found, &attacks, true);
    drop(stdin);
    canary.wait().unwrap();
    // The canary has gone, and with it whatever was reached; its file is taken away too.
    std::fs::remove_file(host.path("tmp/file")).unwrap();
    let gone = &attacks[..attacks.iter().position(|attack| *attack == Attack::Capabilities).unwrap()];
    assert_all(&outside(&host, gone, |_| ()), gone, false);
}

/// Calls of the table whose refusal looks the same without a filter, and why.
fn looks_the_same(label: &str) -> bool {
    // A kernel without x32 has none of its calls, either.
    label.starts_with("x32 ")
}

#[test]
fn every_trial_of_the_filter_is_answered_otherwise_where_there_is_none() {
    if !rustix::process::geteuid().is_root() {
        // Without root's rights some calls are refused before their arguments are looked at.
        return;
    }
    let host = Host::new(User::Same);
    let trials: Vec<_> = seccomp_trials().into_iter().filter(|trial| !looks_the_same(&trial.label)).collect();
    let attacks: Vec<Attack> = trials
        .iter()
        .map(|trial| Attack::Call { number: trial.number, arguments: trial.arguments, errno: trial.errno })
        .collect();
    let found = outside(&host, &attacks, |_| ());
    let same: Vec<&str> = trials
        .iter()
        .zip(&found)
        .filter(|(_, finding)| !finding.is_reached())
        .map(|(trial, _)| trial.label.as_str())
        .collect();
    assert_eq!(same, [] as [&str; 0]);
}

/// Runs attacks in the sandbox of the host's repository.
fn inside(host: &Host, attacks: &[Attack]) -> Vec<Finding> {
    let mut command = host.cloister(&["start", "--", "/run/cloister/bin/cloister", "sandbox-init", "probe"]);
    command.stdin(Stdio::piped());
    let done = feed(command, &serde_json::to_vec(attacks).unwrap());
    serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"))
}

#[test]
fn every_trial_of_the_filter_is_refused_inside_as_the_table_says() {
    for host in Host::both() {
        let attacks: Vec<Attack> = seccomp_trials()
            .into_iter()
            .map(|trial| Attack::Call {
                number: trial.number,
                arguments: trial.arguments,
                errno: trial.errno,
            })
            .collect();
        assert_all(&inside(&host, &attacks), &attacks, false);
    }
}

#[test]
fn k6_children_can_be_debugged_and_the_first_process_cannot() {
    const SEIZE: u64 = 0x4206;
    for host in Host::both() {
        assert_all(&inside(&host, &[Attack::Debug]), &[Attack::Debug], true);
        let refused = [
            Attack::Memory { pid: 1 },
            Attack::Call { number: libc::SYS_ptrace, arguments: [SEIZE, 1, 0, 0, 0, 0], errno: libc::EPERM },
            Attack::Call {
                number: libc::SYS_process_vm_readv,
                arguments: [1, 0, 0, 0, 0, 0],
                errno: libc::EPERM,
            },
            Attack::ForeignCall,
        ];
        assert_all(&inside(&host, &refused), &refused, false);
    }
}

#[test]
fn the_host_is_diagnosed() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let shown = finish(doctor(&host, &[]));
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.stdout.starts_with("CHECK"), "{shown:?}");
    let checks: Vec<Value> = serde_json::from_str(&finish(doctor(&host, &["--json"])).stdout).unwrap();
    let names: Vec<&str> = checks.iter().map(|check| check["check"].as_str().unwrap()).collect();
    let expected = [
        "kernel",
        "bubblewrap",
        "namespaces",
        "runtime directory",
        "user",
        "container",
        "limits",
        "tun",
        "legacy_tiocsti",
        "unprivileged_bpf",
        "ptrace_scope",
    ];
    assert_eq!(names, expected);
    for check in &checks {
        let name = check["check"].as_str().unwrap();
        assert_eq!(check["fix"].is_null(), check["state"] == "ok", "{check}");
        assert_eq!(shown.stdout.contains(&format!("fix: {name}: ")), check["state"] != "ok", "{check}");
    }
}

#[test]
fn a_host_without_bwrap_is_told_how_to_get_it() {
    let host = Host::new(User::Ordinary);
    for (arguments, expected) in [(&[][..], "fix: bubblewrap: "), (&["--probe"], "hint: ")] {
        let mut command = doctor(&host, arguments);
        command.env("PATH", host.path("empty"));
        let done = finish(command);
        assert_eq!(done.code, 1, "{done:?}");
        let text = done.stdout + &done.stderr;
        assert!(text.contains("cannot find `bwrap`") && text.contains(expected), "{text}");
    }
    assert_nothing_left(&host, "");
}

/// A `bwrap` that leaves out what keeps a sandbox in, and mounts what must not be seen.
const LEAKY: &str = r#"#!/bin/bash
words=()
mapfile -d '' -t given < "/proc/self/fd/$2"
shift 2
set -- "${given[@]}" "$@"
# One of the two alone: both relays would want the same port of the host.
[[ " $* " == *" --hostname probe-"*"-a "* ]] && shared=yes
while [ $# -gt 0 ]; do
  case $1 in
    --unshare-net) [ "$shared" ] || words+=("$1") ;;
    --disable-userns) ;;
    --add-seccomp-fd) shift ;;
    --cap-drop) shift; words+=(--cap-add ALL) ;;
    --remount-ro)
      if [ "$2" = /run ]; then
        words+=(--bind "${0%/*/*}" "${0%/*/*}" --dev-bind /dev/pts /dev/pts --ro-bind /sys /sys)
      fi
      words+=("$1") ;;
    *) words+=("$1") ;;
  esac
  shift
done
exec /usr/bin/bwrap "${words[@]}"
"#;

#[test]
fn a_leaky_sandbox_is_reported_as_broken() {
    let Some(host) = Host::with_bubblewrap() else { return };
    if !rustix::process::geteuid().is_root() {
        // Only root can put a program where Cloister trusts it.
        return;
    }
    if std::net::TcpListener::bind("127.0.0.1:3128").is_err() {
        // The sandbox shares the host's ports, and this one is the relay's.
        return;
    }
    let bwrap = host.path("leaky/bwrap");
    std::fs::create_dir(host.path("leaky")).unwrap();
    std::fs::write(&bwrap, LEAKY).unwrap();
    std::fs::set_permissions(&bwrap, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = doctor(&host, &["--probe", "--json"]);
    command.env("PATH", format!("{}:/usr/bin:/bin", host.path("leaky").display()));
    let done = finish(command);
    assert_eq!(done.code, 1, "{done:?}");
    let found = rows(&done);
    let whole: Vec<&str> = found.iter().filter(|row| row.1 != "broken").map(|row| row.0.as_str()).collect();
    // Whether metadata answers depends on the host, as do its addresses; the first process keeps its secrets itself.
    let may_be_whole = ["T1", "T3", "I3", "K12", "K14"];
    assert!(whole.iter().all(|id| may_be_whole.contains(id)), "{found:#?}");
    assert!(found.iter().any(|row| row.0 == "K9" && row.2.contains("SYS_unshare")), "{found:#?}");
}
