//! Start, list, path, stop, shutdown: what is there afterwards, and what is not.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::harness::{Host, collect};

fn entries(path: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn listed(host: &Host) -> Value {
    serde_json::from_str(&host.ok(&["list", "--json"])).unwrap()
}

#[test]
fn a_detached_sandbox_is_listed_entered_and_stopped() {
    let Some(host) = Host::with_bubblewrap() else { return };
    assert_eq!(host.ok(&["start", "-d"]), "demo\n");
    let rows = listed(&host);
    let row = &rows[0];
    assert_eq!(
        (&row["name"], &row["project"], &row["branch"], &row["backend"], &row["network"], &row["status"]),
        (
            &"demo".into(),
            &"demo".into(),
            &"main".into(),
            &"bubblewrap".into(),
            &"guarded".into(),
            &"running".into()
        )
    );
    assert_eq!(host.ok(&["path", "demo"]), format!("{}\n", host.repository().display()));
    assert_eq!(host.ok(&["exec", "demo", "--", "pwd"]), "/work\n");
    host.ok(&["stop"]);
    assert_eq!(listed(&host), Value::Array(Vec::new()));
    let state = host.path("home/.local/state/cloister");
    assert_eq!(entries(&state.join("receipts")), [] as [&str; 0]);
    for left in ["run/s", "run/i", "run/by-name"] {
        assert_eq!(entries(&state.join(left)), [] as [&str; 0], "{left}");
    }
    assert_eq!(entries(&host.path("home/.config/cloister/tokens")), [] as [&str; 0]);
    let again = host.run(&["stop"]);
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("no cloister `demo` is running"), "{again:?}");
}

#[test]
fn stop_ends_every_process_and_the_next_start_is_fresh() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.inside("echo mine > /tmp/scratch; echo kept > ~/kept; (trap '' TERM HUP; exec sleep 1000) & :");
    host.ok(&["stop"]);
    let next =
        host.inside("cat ~/kept; cat /tmp/scratch 2>/dev/null || echo empty; pgrep sleep || echo alone");
    assert_eq!(next.stdout, "kept\nempty\nalone\n");
}

#[test]
fn six_starts_at_once_make_one_sandbox_and_one_guardian() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let script = "readlink /proc/self/ns/pid; echo $CLOISTER_TOKEN";
    let children: Vec<_> = (0..6)
        .map(|_| {
            let mut command = host.cloister(&["start", "--", "sh", "-c", script]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let mut seen: Vec<_> = children.into_iter().map(collect).collect();
    assert!(seen.iter().all(|done| done.code == 0), "{seen:?}");
    seen.dedup();
    assert_eq!(seen.len(), 1, "six sessions of one sandbox: {seen:?}");
    assert_eq!(listed(&host).as_array().unwrap().len(), 1);
    let status: Value = serde_json::from_str(&host.ok(&["guardian", "status", "--json"])).unwrap();
    assert_eq!(status[0]["cloisters"].as_array().unwrap().len(), 1);
    let starts = host.ok(&["audit"]).lines().filter(|line| line.contains("guardian.start")).count();
    assert_eq!(starts, 1);
}

#[test]
fn shutdown_stops_all_and_names_the_head_of_the_audit_log() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    let done = host.run(&["shutdown"]);
    let head = done.stderr.trim_end().rsplit(' ').next().unwrap().to_owned();
    assert!(done.stderr.starts_with("stopped demo\nstopped the guardian"), "{done:?}");
    host.ok(&["audit", "verify", "--expect", &head]);
    let status = host.run(&["guardian", "status"]);
    assert_eq!(status.code, 1);
    assert!(status.stderr.contains("the guardian is not running"), "{status:?}");
}

#[test]
fn the_guardian_is_not_stopped_under_running_sandboxes_without_a_yes() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    let refused = host.run(&["guardian", "stop"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("demo") && refused.stderr.contains("--yes"), "{refused:?}");
    host.ok(&["guardian", "stop", "--yes"]);
}

#[test]
fn stale_locks_sockets_and_receipts_are_no_obstacle() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    let receipt = host.path("home/.local/state/cloister/receipts/demo.json");
    let kept = fs::read(&receipt).unwrap();
    let id = serde_json::from_slice::<Value>(&kept).unwrap()["id"].as_str().unwrap().to_owned();
    host.ok(&["shutdown"]);
    // What a machine that lost its power leaves behind.
    host.write(&receipt, &kept);
    for stale in [format!("i/{id}.sock"), format!("s/{id}/proxy.sock"), "control.sock".to_owned()] {
        let path = host.runtime().join(stale);
        host.write(&path, "");
        fs::remove_file(&path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        host.own(&path);
    }
    host.write(&host.runtime().join("control.key"), "0".repeat(64));
    assert_eq!(listed(&host), Value::Array(Vec::new()));
    assert_eq!(host.inside("echo works").stdout, "works\n");
}

#[test]
fn a_killed_sandbox_is_gone_from_the_list_and_started_anew() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    let receipt = fs::read(host.path("home/.local/state/cloister/receipts/demo.json")).unwrap();
    let receipt: Value = serde_json::from_slice(&receipt).unwrap();
    let first = i32::try_from(receipt["first"]["pid"].as_i64().unwrap()).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(first).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    while listed(&host) != Value::Array(Vec::new()) {}
    assert_eq!(host.inside("echo again").stdout, "again\n");
}

#[test]
fn a_name_has_one_owner_and_p_gives_another() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    let other = host.path("home/elsewhere/demo");
    host.write(&other.join(".git/HEAD"), "ref: refs/heads/main\n");
    for part in ["objects", "refs"] {
        host.write(&other.join(".git").join(part).join(".keep"), "");
    }
    let start = |arguments: &[&str]| {
        let mut command = host.cloister(arguments);
        crate::harness::finish({
            command.current_dir(&other);
            command
        })
    };
    let taken = start(&["start", "-d"]);
    assert_eq!(taken.code, 1);
    assert!(taken.stderr.contains("belongs to") && taken.stderr.contains("-p NAME"), "{taken:?}");
    let named = start(&["start", "-p", "second", "-d"]);
    assert_eq!((named.code, named.stdout.as_str()), (0, "second\n"), "{named:?}");
    assert_eq!(listed(&host).as_array().unwrap().len(), 2);
    host.ok(&["stop", "--all"]);
    assert_eq!(listed(&host), Value::Array(Vec::new()));
}

#[test]
fn another_directory_of_the_same_name_gets_neither_sandbox_nor_home() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.inside("echo secret > ~/history");
    let other = host.path("home/other/demo");
    host.write(&other.join("file"), "");
    let start = |arguments: &[&str]| {
        let mut command = host.cloister(arguments);
        command.current_dir(&other);
        crate::harness::finish(command)
    };
    let entered = start(&["start", "--allow-no-git", "--", "cat", "/home/cloister/history"]);
    assert_eq!((entered.code, entered.stdout.as_str()), (125, ""), "{entered:?}");
    assert!(entered.stderr.contains(&host.repository().display().to_string()), "{entered:?}");
    // A sandbox whose project goes elsewhere ends, and the name is free.
    fs::rename(host.repository(), host.path("home/moved")).unwrap();
    while listed(&host) != Value::Array(Vec::new()) {}
    let fresh = start(&["start", "--allow-no-git", "--", "ls", "-A", "/home/cloister"]);
    assert_eq!((fresh.code, fresh.stdout.as_str()), (0, ""), "{fresh:?}");
}

#[test]
fn starts_and_stops_at_once_leave_no_sandbox_that_nobody_knows() {
    let Some(host) = Host::with_bubblewrap() else { return };
    for _ in 0..3 {
        let children: Vec<_> = (0..6)
            .map(|number| {
                let arguments: &[&str] = if number % 2 == 0 { &["start", "-d"] } else { &["stop", "demo"] };
                let mut command = host.cloister(arguments);
                command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for done in children.into_iter().map(collect) {
            assert!(done.code == 0 || done.stderr.contains("no cloister `demo` is running"), "{done:?}");
        }
    }
    host.run(&["stop", "demo"]);
    // Every first process of this host's sandboxes has the binary open as its own.
    let left = fs::read_dir("/proc").unwrap().filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        let arguments = fs::read(path.join("cmdline")).unwrap_or_default();
        let mounts = fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
        arguments.ends_with(b"sandbox-init\0first\0") && mounts.contains(host.repository().to_str().unwrap())
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn a_dry_run_shows_the_plan_and_changes_nothing() {
    let Some(host) = Host::with_bubblewrap() else { return };
    fs::remove_dir_all(host.path("home/.config")).unwrap();
    let shown = host.ok(&["start", "--dry-run", "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown[0]["spec"]["name"], "demo");
    let command = shown[0]["command"].as_array().unwrap();
    assert!(command.contains(&"--disable-userns".into()));
    assert!(!host.path("home/.local").exists() && !host.path("home/.config").exists());
}

/// Gives the repository a commit and a worktree beside it.
fn linked_worktree(host: &Host) -> std::path::PathBuf {
    let linked = host.path("home/linked");
    for arguments in [
        &["commit", "--quiet", "--allow-empty", "-m", "first"][..],
        &["worktree", "add", "--quiet", linked.to_str().unwrap()],
    ] {
        let mut command = host.program("git");
        command.args(["-c", "user.name=n", "-c", "user.email=e@example.com"]).args(arguments);
        assert_eq!(crate::harness::finish(command).code, 0, "{arguments:?}");
    }
    linked
}

#[test]
fn a_linked_worktree_can_commit() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let main = host.repository();
    let linked = linked_worktree(&host);
    let mut command = host.cloister(&[
        "start",
        "--",
        "git",
        "-c",
        "user.name=n",
        "-c",
        "user.email=e@example.com",
        "commit",
        "--quiet",
        "--allow-empty",
        "-m",
        "inside",
    ]);
    command.current_dir(&linked);
    let done = crate::harness::finish(command);
    assert_eq!(done.code, 0, "{done:?}");
    let log = crate::harness::finish({
        let mut command = host.program("git");
        command.args(["-C", main.to_str().unwrap(), "log", "--format=%s", "linked"]);
        command
    });
    assert_eq!(log.stdout, "inside\nfirst\n");
}

#[test]
fn f3_sandboxes_of_one_repository_keep_each_others_guards_and_other_worktrees_closed() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let linked = linked_worktree(&host);
    let in_linked = |arguments: &[&str]| {
        let mut command = host.cloister(arguments);
        command.current_dir(&linked);
        let done = crate::harness::finish(command);
        assert_eq!(done.code, 0, "{arguments:?}: {done:?}");
        done.stdout
    };
    host.ok(&["start", "-d"]);
    in_linked(&["start", "-d"]);
    let plant = "for file in commondir config.worktree hooks/pre-commit worktrees/linked/commondir \
                   worktrees/linked/config.worktree; do (echo evil > $GIT/$file) 2>/dev/null && echo $file; done; \
                 mv $GIT/worktrees $GIT/other 2>/dev/null && echo moved; git status --short";
    let main = host.repository().join(".git").display().to_string();
    assert_eq!(in_linked(&["start", "--", "sh", "-c", &plant.replace("$GIT", &main)]), "");
    in_linked(&["stop"]);
    assert_eq!(host.inside(&plant.replace("$GIT", "/work/.git")).stdout, "");
    host.ok(&["stop"]);
    assert!(!host.repository().join(".git/commondir").exists());
}

#[test]
fn a_link_to_the_project_leads_to_the_same_cloister() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let link = host.path("home/link");
    symlink(host.repository(), &link).unwrap();
    host.ok(&["start", "-d"]);
    let mut command = host.cloister(&["start", "-d"]);
    command.current_dir(&link);
    assert_eq!(crate::harness::finish(command).stdout, "demo\n");
    assert_eq!(listed(&host).as_array().unwrap().len(), 1);
}
