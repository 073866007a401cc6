//! `gc`: what it removes, what it keeps, and that a dry run changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{Done, Host, finish};

fn state(host: &Host) -> PathBuf {
    host.path("home/.local/state/cloister")
}

fn receipt(host: &Host) -> Value {
    serde_json::from_slice(&fs::read(state(host).join("receipts/demo.json")).unwrap()).unwrap()
}

fn kill_sandbox(host: &Host) {
    let pid = i32::try_from(receipt(host)["first"]["pid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    while host.ok(&["list", "--json"]).trim() != "[]" {}
}

/// Every path below the home with its content, but for that of the audit log.
fn picture(host: &Host) -> BTreeMap<PathBuf, Vec<u8>> {
    fn look(directory: &Path, seen: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                look(&path, seen);
            }
            // The guardian writes its log when it comes to it.
            let is_log = path.extension().is_some_and(|extension| extension == "jsonl");
            let content = if kind.is_file() && !is_log { fs::read(&path).unwrap() } else { Vec::new() };
            drop(seen.insert(path, content));
        }
    }
    let mut seen = BTreeMap::new();
    look(&host.home(), &mut seen);
    seen
}

/// What a dry run names is what is removed then; gives the kinds and paths.
#[track_caller]
fn collects(host: &Host) -> Vec<(String, String)> {
    let before = picture(host);
    let would = host.ok(&["gc", "--dry-run", "--json"]);
    assert_eq!(picture(host), before, "a dry run changed something");
    assert_eq!(host.ok(&["gc", "--json"]), would);
    assert_eq!(host.ok(&["gc", "--json"]).trim(), "[]", "a second run finds nothing");
    let rows: Vec<Value> = serde_json::from_str(&would).unwrap();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    rows.iter()
        .map(|row| {
            assert!(!text(row, "reason").is_empty());
            (text(row, "kind"), text(row, "path").replace(host.home().to_str().unwrap(), "~"))
        })
        .collect()
}

fn pair(kind: &str, path: &str) -> (String, String) {
    (kind.to_owned(), path.to_owned())
}

#[test]
fn nothing_of_a_running_sandbox_is_touched() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    assert_eq!(collects(&host), []);
    assert_eq!(host.ok(&["gc"]), "removed 0, kept 0\n");
    assert_eq!(host.inside("echo there").stdout, "there\n");
}

#[test]
fn what_a_killed_sandbox_left_is_removed_with_and_without_a_guardian() {
    let Some(host) = Host::with_bubblewrap() else { return };
    for has_guardian in [true, false] {
        host.ok(&["start", "-d"]);
        kill_sandbox(&host);
        if !has_guardian {
            host.ok(&["guardian", "stop", "--yes"]);
        }
        assert_eq!(collects(&host), [pair("receipt", "~/.local/state/cloister/receipts/demo.json")]);
        assert!(host.run(&["stop"]).stderr.contains("no cloister `demo` is running"));
        for folder in ["run/s", "run/i", "run/by-name"] {
            assert_eq!(fs::read_dir(state(&host).join(folder)).unwrap().count(), 0, "{folder}");
        }
        assert_eq!(fs::read_dir(host.path("home/.config/cloister/tokens")).unwrap().count(), 0);
    }
}

#[test]
fn tokens_and_sockets_without_a_sandbox_are_removed() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    let token = host.path("home/.config/cloister/tokens/demo.json");
    let kept = fs::read(&token).unwrap();
    host.ok(&["shutdown"]);
    host.write(&token, kept);
    host.write(&host.runtime().join("s/0123456789ab/proxy.sock"), "");
    drop(UnixListener::bind(host.runtime().join("i/0123456789ab.sock")).unwrap());
    std::os::unix::fs::symlink("../s/0123456789ab", host.runtime().join("by-name/old")).unwrap();
    let runtime = "~/.local/state/cloister/run";
    assert_eq!(
        collects(&host),
        [
            pair("token", "~/.config/cloister/tokens/demo.json"),
            pair("socket", &format!("{runtime}/s/0123456789ab")),
            pair("socket", &format!("{runtime}/i/0123456789ab.sock")),
            pair("socket", &format!("{runtime}/by-name/old")),
        ]
    );
}

#[test]
fn what_is_not_understood_stays() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    host.ok(&["shutdown"]);
    let receipt = state(&host).join("receipts/demo.json");
    host.write(&receipt, "{ \x1b[2J");
    host.write(&host.runtime().join("s/0123456789ab/proxy.sock"), "");
    assert_eq!(collects(&host), []);
    let told = host.run(&["gc"]);
    assert_eq!((told.code, told.stdout.as_str()), (0, "removed 0, kept 1\n"), "{told:?}");
    let expected = format!("kept receipt {}: cannot understand the receipt", receipt.display());
    assert!(told.stderr.starts_with(&expected), "{told:?}");
    assert_eq!(fs::read(&receipt).unwrap(), b"{ \x1b[2J");
}

#[test]
fn half_written_files_of_an_hour_ago_are_removed() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    let places = [
        ".config/cloister/.config.yaml.1.0.tmp",
        ".config/cloister/decisions/.global.yaml.1.0.tmp",
        ".config/cloister/decisions/projects/.demo.yaml.1.0.tmp",
        ".local/state/cloister/grants/.demo.yaml.1.0.tmp",
        ".local/state/cloister/receipts/.demo.json.77.3.tmp",
    ];
    for place in places {
        host.write(&host.home().join(place), "half");
    }
    let other = host.path("home/.config/cloister/mine.tmp");
    host.write(&other, "");
    assert_eq!(collects(&host), []);
    let past = SystemTime::now() - Duration::from_secs(3700);
    for path in places.iter().map(|place| host.home().join(place)).chain([other.clone()]) {
        fs::File::options().write(true).open(path).unwrap().set_modified(past).unwrap();
    }
    assert_eq!(collects(&host), places.map(|place| pair("temporary", &format!("~/{place}"))));
    assert!(other.exists());
}

/// `cloister` in the directory of another project.
fn at(host: &Host, directory: &Path, arguments: &[&str]) -> Done {
    let mut command = host.cloister(arguments);
    command.current_dir(directory);
    finish(command)
}

#[test]
fn m1_homes_of_deleted_projects_are_removed_and_no_others() {
    let Some(host) = Host::with_bubblewrap() else { return };
    // Deleted; on disks that are not mounted, with and without its place; deleted while its sandbox runs; there.
    let gone = ["src/gone", "disk/far", "data/m1", "src/busy"].map(|name| host.home().join(name));
    host.write(&host.home().join("src/there/file"), "");
    for directory in &gone {
        host.write(&directory.join("file"), "");
        let done = at(&host, directory, &["start", "--allow-no-git", "-d"]);
        assert_eq!(done.code, 0, "{done:?}");
    }
    host.inside("echo kept > ~/note");
    let close = "mkdir -p ~/go/mod/deep; touch ~/go/mod/deep/file; chmod -R a-w ~/go; chmod 0 ~/go/mod/deep";
    assert_eq!(host.run(&["exec", "gone", "--", "sh", "-c", close]).code, 0);
    for name in ["gone", "far", "m1"] {
        host.ok(&["stop", name]);
    }
    let instances = host.path("home/.local/share/cloister/instances");
    host.write(&instances.join("demo.0123456789abcdef/home/note"), "");
    for directory in &gone {
        fs::remove_dir_all(directory).unwrap();
    }
    fs::remove_dir(host.path("home/disk")).unwrap();
    assert_eq!(
        collects(&host),
        [pair("instance", "~/.local/share/cloister/instances/gone"), pair("project", "~/src/gone"),]
    );
    let mut left: Vec<_> =
        fs::read_dir(&instances).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["busy", "demo", "demo.0123456789abcdef", "far", "m1"]);
    let told = host.run(&["gc"]).stderr;
    for (path, reason) in [
        ("instances/demo.0123456789abcdef", "no registered project"),
        ("home/disk/far", "perhaps a disk that is not mounted"),
        ("home/data/m1", "is empty: perhaps a disk that is not mounted"),
        ("home/src/busy", "a sandbox of it is running"),
    ] {
        let line = told.lines().find(|line| line.contains(path)).unwrap_or_default();
        assert!(line.starts_with("kept ") && line.contains(reason), "{told}");
    }
    assert_eq!(host.inside("cat ~/note").stdout, "kept\n");
    assert_eq!(host.ok(&["exec", "busy", "--", "echo", "lives"]), "lives\n");
    fs::set_permissions(&instances, fs::Permissions::from_mode(0o700)).unwrap();
}
