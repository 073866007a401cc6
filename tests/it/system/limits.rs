//! K14: what a sandbox may use together, and what happens when it wants more.

use std::fs;

use crate::harness::{Host, User};

/// Starts processes until one is refused, at most so many, and says how many there were.
const BOMB: &str = r"
import os, sys, time
count = 0
try:
    while count < int(sys.argv[1]):
        if os.fork() == 0:
            time.sleep(1000)
        count += 1
except OSError:
    pass
print(count)
";

fn root() -> Option<Host> {
    (Host::with_bubblewrap().is_some() && rustix::process::geteuid().is_root()).then(|| Host::new(User::Same))
}

/// What `list --json` says of the one sandbox.
fn enforcement(host: &Host) -> String {
    let listed: serde_json::Value = serde_json::from_str(&host.ok(&["--json", "list"])).unwrap();
    listed[0]["limits"].as_str().unwrap().to_owned()
}

#[test]
fn k14_a_fork_bomb_ends_at_the_limit_and_the_sandbox_can_be_stopped() {
    for host in Host::with_bubblewrap().into_iter().chain(root()) {
        host.configure("limits: {pids: 40}\n");
        let done = host.run(&["start", "--", "python3", "-c", BOMB, "500"]);
        let started: u32 = done.stdout.trim().parse().unwrap_or_else(|_| panic!("{done:?}"));
        assert!((10..40).contains(&started), "{started} processes");
        host.ok(&["stop"]);
        assert_eq!(host.inside("echo again").stdout, "again\n");
    }
}

#[test]
fn an_ordinary_user_without_control_groups_gets_a_count_of_processes() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    // Where systemd makes a scope for the tests' user, that is the better answer.
    assert!(["rlimit", "cgroup2"].contains(&enforcement(&host).as_str()));
}

#[test]
fn k14_memory_is_bounded_where_there_are_control_groups() {
    let Some(host) = root() else { return };
    host.configure("limits: {memory: 96MiB}\n");
    host.ok(&["start", "-d"]);
    if !enforcement(&host).starts_with("cgroup") {
        crate::requirement::skip("cgroups", "no control group can be written");
        return;
    }
    let hog = "import sys; held = bytearray(400 * 1024 * 1024); print(len(held))";
    let done = host.run(&["start", "--", "python3", "-c", hog]);
    assert_eq!((done.code, done.stdout.as_str()), (137, ""), "{done:?}");
    assert_eq!(host.inside("echo still here").stdout, "still here\n");
    // Names in memory count too. They stay when the program is killed, so the sandbox may end with them; the host
    // does not.
    let files = "for n in range(2_000_000): open(f'/tmp/{n}', 'w').close()\n";
    let done = host.run(&["start", "--", "python3", "-c", files]);
    assert!([125, 137].contains(&done.code), "{done:?}");
    host.run(&["stop"]);
    assert_eq!(host.inside("echo again").stdout, "again\n");
    let receipt = fs::read(host.path("home/.local/state/cloister/receipts/demo.json")).unwrap();
    let receipt: serde_json::Value = serde_json::from_slice(&receipt).unwrap();
    let groups = receipt["limits"]["directories"].as_array().unwrap().clone();
    let left = || groups.iter().filter(|group| fs::exists(group.as_str().unwrap()).unwrap()).count();
    assert_eq!(left(), groups.len());
    host.ok(&["stop"]);
    assert_eq!(left(), 0, "a control group is left");
}

#[test]
fn k14_files_in_memory_are_bounded() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.configure("limits: {memory: 64MiB}\n");
    let script = "for place in /tmp /var/tmp /dev/shm; do head -c 100M /dev/zero > $place/fill 2>/dev/null && echo $place; \
                  rm -f $place/fill; done; touch /dev/x 2>/dev/null && echo /dev; df -k --output=size /tmp /dev/shm | tail -n 2";
    assert_eq!(host.inside(script).stdout.split_whitespace().collect::<Vec<_>>(), ["32768", "16384"]);
}

#[test]
fn k14_the_number_of_files_in_memory_is_bounded() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.configure("limits: {memory: 64MiB}\n");
    let fill = "import sys\nfor n in range(100_000): open(f'{sys.argv[1]}/{n}', 'w').close()\n";
    for place in ["/tmp", "/dev/shm"] {
        let done = host.run(&["start", "--", "python3", "-c", fill, place]);
        assert!(done.stderr.contains("No space left on device"), "{place}: {done:?}");
        host.ok(&["stop"]);
    }
}

#[test]
fn processor_time_is_limited_where_there_are_control_groups() {
    let Some(host) = root() else { return };
    host.configure("limits: {cpus: 0.2}\n");
    host.ok(&["start", "-d"]);
    if !enforcement(&host).starts_with("cgroup") {
        return;
    }
    // Five times the processor time that the quota gives in that span would be spent without it.
    let spin = "import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass\nprint(time.process_time())";
    let spent: f64 = host.run(&["start", "--", "python3", "-c", spin]).stdout.trim().parse().unwrap();
    assert!(spent < 0.6, "{spent} s of processor time in one second");
}

#[test]
fn k14_a_sandbox_takes_an_eighth_of_the_inotify_watches_at_most() {
    for host in Host::with_bubblewrap().into_iter().chain(root()) {
        let most: u32 =
            fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap().trim().parse().unwrap();
        let script = "import ctypes, os\n\
                      libc = ctypes.CDLL(None)\n\
                      count = 0\n\
                      while count < 100_000 and libc.inotify_init1(0) >= 0: count += 1\n\
                      print(count)";
        let done = host.run(&["start", "--", "python3", "-c", script]);
        let made: u32 = done.stdout.trim().parse().unwrap_or_else(|_| panic!("{done:?}"));
        let share = (most / 8).max(8.min(most / 2));
        assert!((1..=share).contains(&made), "{made} of {most}");
    }
}
