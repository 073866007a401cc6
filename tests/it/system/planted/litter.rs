//! Nothing litters the repository: after `stop`, and after `kill -9` once the next command has run (F11).

use std::fs;
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{hosts, sh, tree};
use crate::harness::Host;

fn receipt_file(host: &Host) -> PathBuf {
    host.path("home/.local/state/cloister/receipts/demo.json")
}

fn receipt(host: &Host) -> Value {
    serde_json::from_slice(&fs::read(receipt_file(host)).unwrap()).unwrap()
}

/// Kills a running sandbox from outside, as a crash of the machine would.
pub(super) fn kill(host: &Host) {
    let receipt = receipt(host);
    for process in ["monitor", "first"] {
        let pid = i32::try_from(receipt[process]["pid"].as_i64().unwrap()).unwrap();
        // The monitor's end may have ended the first process.
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    }
    let gone = || host.ok(&["list", "--json"]) == "[]\n";
    while !gone() {
        std::thread::yield_now();
    }
}

#[test]
fn f11_a_killed_sandbox_leaves_nothing_after_the_next_command() {
    for host in hosts() {
        let before = tree(&host.repository());
        host.ok(&["start", "-d"]);
        assert_ne!(tree(&host.repository()), before, "placeholders are needed while it is up");
        kill(&host);
        host.ok(&["list"]);
        assert_eq!(tree(&host.repository()), before);
        host.ok(&["stop"]);
    }
}

#[test]
fn f11_a_start_that_was_killed_leaves_nothing_after_the_next_command() {
    for host in hosts() {
        let before = tree(&host.repository());
        host.ok(&["start", "-d"]);
        let mut intent = receipt(&host);
        for later in ["first", "monitor", "pid_namespace", "limits"] {
            intent[later] = Value::Null;
        }
        let placeholders = intent["placeholders"].as_array().unwrap().clone();
        kill(&host);
        host.ok(&["stop"]);
        // Killed after its intent was noted, and after half and all of what it makes was made.
        for made in [0, placeholders.len() / 2, placeholders.len()] {
            for placeholder in &placeholders[..made] {
                let path = placeholder["path"].as_str().unwrap();
                match placeholder["content"].as_str() {
                    Some(content) => fs::write(path, content).unwrap(),
                    None => fs::create_dir(path).unwrap(),
                }
                host.own(path.as_ref());
            }
            host.write(&receipt_file(&host), intent.to_string());
            host.ok(&["list"]);
            assert_eq!(tree(&host.repository()), before, "{made} were made");
        }
        host.ok(&["start", "-d"]);
        host.ok(&["stop"]);
        assert_eq!(tree(&host.repository()), before);
    }
}

#[test]
fn f11_what_existed_before_stays() {
    for host in hosts() {
        let root = host.repository();
        sh(&host, "rm -rf .git/hooks && mkdir .git/hooks .vscode .claude && touch .git/config.worktree");
        let before = tree(&root);
        host.ok(&["start", "-d"]);
        host.ok(&["stop"]);
        assert_eq!(tree(&root), before);
        host.ok(&["start", "-d"]);
        kill(&host);
        host.ok(&["list"]);
        assert_eq!(tree(&root), before);
    }
}

#[test]
fn f11_what_was_written_where_it_may_be_stays() {
    let Some(host) = hosts().into_iter().next() else { return };
    host.inside("echo plan > .claude/plans/plan.md");
    host.ok(&["stop"]);
    assert_eq!(sh(&host, "find .claude"), ".claude\n.claude/plans\n.claude/plans/plan.md\n");
}

#[test]
fn f11_a_sandbox_of_a_worktree_keeps_what_both_need() {
    let Some(host) = hosts().into_iter().next() else { return };
    sh(&host, "git worktree add --quiet ../linked");
    let before = tree(&host.repository());
    host.ok(&["start", "-d"]);
    let mut other = host.cloister(&["start", "-d"]);
    other.current_dir(host.path("home/linked"));
    assert_eq!(crate::harness::finish(other).code, 0);
    let script = "for path in config.worktree commondir modules/x; do (echo evil > .git/$path) 2>/dev/null && echo $path; done; echo done";
    host.ok(&["stop", "linked"]);
    super::inside(&host, script, "done\n");
    host.ok(&["stop", "demo"]);
    assert_eq!(tree(&host.repository()), before);
}

#[test]
fn one_receipt_that_cannot_be_read_hides_no_other() {
    let Some(host) = hosts().into_iter().next() else { return };
    host.ok(&["start", "-d"]);
    let garbage = receipt_file(&host).with_file_name("other.json");
    host.write(&garbage, "{ no");
    let listed = host.run(&["list"]);
    assert!(
        listed.code == 0 && listed.stdout.contains("demo") && listed.stderr.contains("other.json"),
        "{listed:?}"
    );
    host.ok(&["exec", "demo", "--", "true"]);
    let stopped = host.run(&["stop", "--all"]);
    assert!(stopped.code == 1 && stopped.stderr.contains("other.json"), "{stopped:?}");
    assert_eq!(fs::read_to_string(&garbage).unwrap(), "{ no");
    fs::remove_file(&garbage).unwrap();
    host.run(&["stop"]);
    assert!(!receipt_file(&host).exists());
    assert!(!host.repository().join(".vscode").exists(), "litter");
}
