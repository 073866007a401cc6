//! Bad input and hosts in a bad state: one clear error, the next step, and nothing left behind.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;

use crate::harness::{Done, Host, User, collect, finish, plain};

/// Checks that a start fails with this code, says these things, and leaves no sandbox, token, socket or receipt.
#[track_caller]
fn refused(host: &Host, done: &Done, code: i32, said: &[&str]) {
    assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{done:?}");
    assert!(done.stderr.starts_with("error: "), "{done:?}");
    for text in said {
        assert!(done.stderr.contains(text), "`{text}` is not said: {done:?}");
    }
    for left in ["home/.local/state/cloister/receipts", "home/.config/cloister/tokens"] {
        let entries = fs::read_dir(host.path(left)).map_or(0, Iterator::count);
        assert_eq!(entries, 0, "{left}");
    }
    for left in ["i", "s"] {
        let entries = fs::read_dir(host.runtime().join(left)).map_or(0, Iterator::count);
        assert_eq!(entries, 0, "{left}");
    }
}

fn start_in(host: &Host, directory: &Path) -> Done {
    let mut command = host.cloister(&["start", "-d"]);
    command.current_dir(directory);
    finish(command)
}

#[test]
fn an_invalid_configuration_names_every_problem_with_file_and_line() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let settings = "proxy:\n  alow: []\n  allow: ['*.com', 'https://x.example/']\nshell: 5\n";
    host.write(&host.path("home/.config/cloister/config.yaml"), settings);
    let done = host.run(&["start", "-d"]);
    let said = ["config.yaml:2", "`allow`", "config.yaml:3", "*.example.com", "`x.example`", "config.yaml:4"];
    refused(&host, &done, 1, &said);
    let with_command = host.run(&["start", "--", "true"]);
    refused(&host, &with_command, 125, &said);
}

#[test]
fn a_name_that_is_none() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let wrong = host.run(&["start", "-d", "-p", "Not A Name"]);
    assert_eq!(wrong.code, 2, "{wrong:?}");
    let reserved = host.path("home/guardian");
    fs::create_dir(&reserved).unwrap();
    host.own(&reserved);
    fs::rename(host.repository().join(".git"), reserved.join(".git")).unwrap();
    refused(&host, &start_in(&host, &reserved), 1, &["guardian", "-p NAME"]);
}

#[test]
fn no_repository() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let plain = host.path("home/plain");
    host.write(&plain.join("file"), "");
    refused(
        &host,
        &start_in(&host, &plain),
        1,
        &["is not in a git repository", "git init", "--allow-no-git"],
    );
    let mut command = host.cloister(&["start", "--allow-no-git", "--", "ls"]);
    command.current_dir(&plain);
    assert_eq!(finish(command).stdout, "file\n");
}

#[test]
fn the_home_directory_and_what_is_above_it() {
    let Some(host) = Host::with_bubblewrap() else { return };
    for directory in [host.home(), host.path(""), "/".into()] {
        let mut command = host.cloister(&["start", "--allow-no-git", "-d"]);
        command.current_dir(&directory);
        refused(&host, &finish(command), 1, &["contains your home directory", "project's own directory"]);
    }
}

#[test]
fn a_project_that_holds_what_cloister_reads() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let own = host.repository().join("config/cloister");
    host.write(&own.join("config.yaml"), "{}");
    fs::remove_dir_all(host.path("home/.config")).unwrap();
    symlink(host.repository().join("config"), host.path("home/.config")).unwrap();
    let done = host.run(&["start", "-d"]);
    assert_eq!(done.code, 1);
    assert!(done.stderr.contains("overlap") && done.stderr.contains("hint:"), "{done:?}");
}

#[test]
fn a_project_that_holds_the_binary() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let binary = host.repository().join("cloister");
    fs::copy(host.binary(), &binary).unwrap();
    let done = finish({
        let mut command = host.program(&binary);
        command.args(["start", "-d"]);
        command
    });
    assert!(done.stderr.contains("overlap") || done.stderr.contains("--allow-root"), "{done:?}");
}

#[test]
fn no_bwrap() {
    let host = Host::new(User::Ordinary);
    let mut command = host.cloister(&["start", "-d"]);
    command.env("PATH", host.path("nowhere"));
    refused(&host, &finish(command), 1, &["cannot find `bwrap`", "apt-get install bubblewrap"]);
}

#[test]
fn a_bwrap_that_a_sandbox_could_have_planted_is_passed_over() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let planted = host.repository().join(".venv/bin/bwrap");
    let canary = host.path("home/canary");
    host.write(&planted, format!("#!/bin/sh\ntouch {}\n", canary.display()));
    fs::set_permissions(&planted, fs::Permissions::from_mode(0o755)).unwrap();
    let folder = planted.parent().unwrap().display();
    let mut command = host.cloister(&["start", "-d"]);
    command.env("PATH", &*folder.to_string());
    refused(
        &host,
        &finish(command),
        1,
        &["can be changed by others than root", "apt-get install bubblewrap"],
    );
    let mut command = host.cloister(&["start", "--", "echo", "the system's own"]);
    command.env("PATH", format!("{folder}:/usr/bin:/bin"));
    assert_eq!(finish(command).stdout, "the system's own\n");
    assert!(!canary.exists());
}

#[test]
fn a_bwrap_that_fails_is_quoted() {
    if !rustix::process::geteuid().is_root() {
        return crate::requirement::skip("bubblewrap", "only root can make a program that is trusted");
    }
    let host = Host::new(User::Ordinary);
    let fake = host.path("fake/bwrap");
    fs::create_dir(host.path("fake")).unwrap();
    fs::write(&fake, "#!/bin/sh\necho 'bwrap: Something is wrong' >&2\nexit 1\n").unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = host.cloister(&["start", "--", "true"]);
    command.env("PATH", format!("{}:/usr/bin:/bin", fake.parent().unwrap().display()));
    refused(&host, &finish(command), 125, &["Something is wrong", "--dry-run"]);
}

#[test]
fn user_namespaces_forbidden_names_the_cause() {
    if !rustix::process::geteuid().is_root() {
        return crate::requirement::skip("bubblewrap", "only root can map all users");
    }
    if Host::with_bubblewrap().is_none() {
        return;
    }
    let host = Host::new(User::Same);
    // A user name space of the test's own with the same users, in which no further ones may be made.
    let script = format!(
        "echo; read go; exec sh -c 'echo 0 > /proc/sys/user/max_user_namespaces && exec {} start -d --allow-root'",
        host.binary().display()
    );
    let mut command = plain("unshare");
    command.args(["--user", "sh", "-c", &script]).current_dir(host.repository());
    command.env("HOME", host.home());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", child.id()), "0 0 4294967295").unwrap();
    }
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    refused(&host, &collect(child), 1, &["user.max_user_namespaces", "hint: run `sudo sysctl"]);
}

#[test]
fn a_full_disk() {
    if !rustix::process::geteuid().is_root() {
        return crate::requirement::skip("bubblewrap", "only root can mount a small disk");
    }
    let Some(host) = Host::with_bubblewrap() else { return };
    let state = host.path("home/.config");
    host.write(&state.join("keep"), "");
    // The disk lies in a mount name space that ends with the command.
    let script = format!(
        "mount -t tmpfs -o size=16k,mode=777 none {0} && (head -c 1000000 /dev/zero > {0}/fill; \
         exec setpriv --reuid 12345 --regid 12345 --clear-groups {1} start -d)",
        state.display(),
        host.binary().display()
    );
    let mut command = plain("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    command
        .env("HOME", host.home())
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .current_dir(host.repository());
    let done = finish(command);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("No space left on device"), "{done:?}");
    let receipts = host.path("home/.local/state/cloister/receipts");
    assert!(!receipts.exists() || fs::read_dir(receipts).unwrap().count() == 0);
}

#[test]
fn no_permission() {
    let Some(host) = Host::with_bubblewrap() else { return };
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // Root's directory in an ordinary user's home.
    fs::create_dir(host.path("home/.local")).unwrap();
    let done = host.run(&["start", "-d"]);
    refused(&host, &done, 1, &["Permission denied", "ls -ld"]);
}

#[test]
fn garbage_in_cloisters_own_files_is_reported_and_kept() {
    let Some(host) = Host::with_bubblewrap() else { return };
    for file in ["home/.local/share/cloister/projects.json", "home/.local/state/cloister/receipts/demo.json"]
    {
        let path = host.path(file);
        host.write(&path, "{ garbage");
        fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o700)).unwrap();
        let done = host.run(&["start", "-d"]);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains(path.to_str().unwrap()), "{done:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "{ garbage");
        fs::remove_file(&path).unwrap();
    }
    assert_eq!(host.inside("echo fine").stdout, "fine\n");
}

#[test]
fn a_broken_configuration_stops_the_guardian_at_its_start() {
    let host = Host::new(User::Ordinary);
    host.configure("proxy: {allow: ['*.com']}\n");
    let done = host.run(&["guardian", "start"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.stderr.contains("does not start") && done.stderr.contains("config.yaml:1"), "{done:?}");
    assert!(!host.runtime().join("control.sock").exists());
}
