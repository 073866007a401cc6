//! Every state of every check, over faked files.

use super::*;

fn fake(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    root
}

#[track_caller]
fn check(found: &Check, state: State, part: &str) {
    assert_eq!(found.state, state, "{found:?}");
    assert!(found.detail.contains(part), "{found:?}");
    assert_eq!(found.fix.is_some(), state != State::Ok, "{found:?}");
}

#[test]
fn versions_are_read_past_what_stands_around_them() {
    for (text, expected) in [
        ("bubblewrap 0.8.0", Some((0, 8))),
        ("6.18.44-fc-v669", Some((6, 18))),
        ("5.4", Some((5, 4))),
        ("5", None),
        ("nonsense", None),
        ("", None),
    ] {
        assert_eq!(numbers(text), expected, "{text}");
    }
}

#[test]
fn the_kernel_is_new_enough_or_not() {
    let release = "proc/sys/kernel/osrelease";
    check(&kernel(fake(&[(release, "6.1.0-18-amd64\n")]).path()), State::Ok, "6.1");
    check(&kernel(fake(&[(release, "5.6.0\n")]).path()), State::Ok, "5.6");
    check(&kernel(fake(&[(release, "5.5.19\n")]).path()), State::Problem, "openat2");
    check(&kernel(fake(&[]).path()), State::Problem, "no Linux");
}

#[test]
fn bwrap_is_there_trusted_and_new_enough_or_not() {
    let bwrap = find_bwrap(std::ffi::OsStr::new("/usr/bin:/bin")).ok();
    check(&bubblewrap(Err(&LaunchError::NoBwrap), None, false), State::Problem, "cannot find");
    let untrusted = LaunchError::UntrustedBwrap("/home/u/bwrap".into());
    check(&bubblewrap(Err(&untrusted), None, false), State::Problem, "/home/u/bwrap");
    let Some(bwrap) = bwrap else { return };
    check(&bubblewrap(Ok(&bwrap), Some("bubblewrap 0.8.0\n"), false), State::Ok, "0.8.0");
    check(&bubblewrap(Ok(&bwrap), Some("bubblewrap 0.11.0\n"), false), State::Ok, "0.11.0");
    check(&bubblewrap(Ok(&bwrap), Some("bubblewrap 0.6.2\n"), false), State::Problem, "--disable-userns");
    check(&bubblewrap(Ok(&bwrap), Some("bubblewrap 0.8.0\n"), true), State::Problem, "set-user-ID");
    check(&bubblewrap(Ok(&bwrap), None, false), State::Problem, "nothing");
}

#[test]
fn namespaces_work_or_the_cause_is_named() {
    let denied = || Some(Err("bwrap: setting up uid map: Permission denied".to_owned()));
    let empty = fake(&[]);
    check(&namespaces(Some(Ok(())), empty.path()), State::Ok, "starts");
    check(&namespaces(None, empty.path()), State::Problem, "not tried");
    check(&namespaces(denied(), empty.path()), State::Problem, "uid map");
    for (file, value, part) in [
        ("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n", "AppArmor"),
        ("proc/sys/kernel/unprivileged_userns_clone", "0\n", "unprivileged_userns_clone"),
        ("proc/sys/user/max_user_namespaces", "0\n", "max_user_namespaces"),
        (".dockerenv", "", "container"),
    ] {
        check(&namespaces(denied(), fake(&[(file, value)]).path()), State::Problem, part);
    }
}

#[test]
fn the_runtime_directory_is_private_or_not() {
    let root = tempfile::tempdir().unwrap();
    check(&runtime(&root.path().join("run")), State::Ok, "run");
    let open = root.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    check(&runtime(&open), State::Problem, "open");
    fs::write(root.path().join("file"), "").unwrap();
    check(&runtime(&root.path().join("file")), State::Problem, "file");
}

#[test]
fn root_needs_idmapped_mounts() {
    let release = "proc/sys/kernel/osrelease";
    let (new, old) = (fake(&[(release, "5.12.0")]), fake(&[(release, "5.11.9")]));
    check(&user(false, old.path()), State::Ok, "ordinary");
    check(&user(true, new.path()), State::Ok, "idmapped");
    check(&user(true, old.path()), State::Warning, "root's");
}

#[test]
fn a_container_is_told() {
    check(&container(fake(&[]).path()), State::Ok, "not inside");
    check(&container(fake(&[("run/.containerenv", "")]).path()), State::Ok, "inside a container");
}

#[test]
fn each_way_to_limit_is_found() {
    let own = "proc/self/cgroup";
    let unified = ("sys/fs/cgroup/cgroup.controllers", "memory pids");
    let divided = fake(&[(own, "0::/user/me\n"), unified, ("sys/fs/cgroup/user/me/cgroup.procs", "")]);
    check(&limits(divided.path()), State::Ok, "v2, this group");
    let first = fake(&[
        (own, "5:pids:/a\n4:memory,hugetlb:/a\n0::/\n"),
        ("sys/fs/cgroup/pids/a/tasks", ""),
        ("sys/fs/cgroup/memory/a/tasks", ""),
    ]);
    check(&limits(first.path()), State::Ok, "v1");
    let systemd = fake(&[(own, "0::/gone\n"), unified, ("proc/1/comm", "systemd\n")]);
    check(&limits(systemd.path()), State::Ok, "systemd");
    check(&limits(fake(&[(own, "0::/gone\n"), unified]).path()), State::Warning, "no cgroup");
    let half = fake(&[(own, "5:pids:/a\n"), ("sys/fs/cgroup/pids/a/tasks", "")]);
    check(&limits(half.path()), State::Warning, "no cgroup");
    check(&limits(fake(&[]).path()), State::Warning, "no cgroup");
}

#[test]
fn tun_is_there_or_not() {
    check(&tun(fake(&[("dev/net/tun", "")]).path()), State::Ok, "is there");
    check(&tun(fake(&[]).path()), State::Warning, "inet");
}

#[test]
fn f16_kernel_settings_are_judged() {
    let cases: [(&str, &str, usize, State); 8] = [
        ("proc/sys/dev/tty/legacy_tiocsti", "0", 0, State::Ok),
        ("proc/sys/dev/tty/legacy_tiocsti", "1", 0, State::Warning),
        ("proc/sys/kernel/unprivileged_bpf_disabled", "0", 1, State::Warning),
        ("proc/sys/kernel/unprivileged_bpf_disabled", "2", 1, State::Ok),
        ("proc/sys/kernel/yama/ptrace_scope", "0", 2, State::Ok),
        ("proc/sys/kernel/yama/ptrace_scope", "1", 2, State::Ok),
        ("proc/sys/kernel/yama/ptrace_scope", "2", 2, State::Warning),
        ("proc/sys/kernel/yama/ptrace_scope", "3", 2, State::Warning),
    ];
    for (file, value, place, state) in cases {
        assert_eq!(settings(fake(&[(file, value)]).path())[place].state, state, "{file}={value}");
    }
    assert!(settings(fake(&[]).path()).iter().all(|check| check.state == State::Ok));
}
