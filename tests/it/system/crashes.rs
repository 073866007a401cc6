//! Commands that are killed or frozen at every step that changes something: afterwards every other command tells the
//! truth, works, and leaves nothing.
//!
//! The steps are the system calls of the command line itself, as `strace` sees them; the product has no hooks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::{Done, Host, collect, finish};
use crate::requirement;

/// The system calls with which a command changes something outside itself; of `openat` those that make a file.
const CALLS: &str = "openat,rename,renameat,renameat2,mkdir,mkdirat,rmdir,unlink,unlinkat,symlink,symlinkat,connect,\
                     bind,clone,clone3,vfork,fork,sendto,sendmsg,write,writev,poll,ppoll,pidfd_send_signal,kill,chmod,fchmod";

/// One system call of a run: the how-manieth of its name, and the line that shows it.
#[derive(Debug, Clone)]
struct Step {
    call: String,
    number: usize,
    line: String,
}

fn host() -> Option<Host> {
    if !Path::new("/usr/bin/strace").exists() {
        requirement::skip("strace", "there is no `strace`");
        return None;
    }
    Host::with_bubblewrap()
}

fn traced(host: &Host, disturbance: Option<(&Step, &str)>, arguments: &[&str]) -> Command {
    let mut command = host.program("/usr/bin/strace");
    command.args(["-qq", "-s", "60", "-o"]).arg(host.path("home/trace"));
    command.args(["-e", &format!("trace={CALLS}")]);
    if let Some((step, signal)) = disturbance {
        command.args(["-e", &format!("inject={}:signal={signal}:when={}", step.call, step.number)]);
    }
    command.arg(host.binary()).args(arguments).stdin(Stdio::null());
    command
}

/// The steps of an undisturbed run.
fn find_steps(host: &Host, arguments: &[&str]) -> Vec<Step> {
    let done = finish(traced(host, None, arguments));
    assert_eq!(done.code, 0, "{arguments:?}: {done:?}");
    let mut counts = std::collections::BTreeMap::new();
    let trace = fs::read_to_string(host.path("home/trace")).unwrap();
    let mut steps = Vec::new();
    for line in trace.lines() {
        let Some((call, rest)) = line.split_once('(') else { continue };
        let number = counts.entry(call.to_owned()).or_insert(0);
        *number += 1;
        if call != "openat" || rest.contains("O_CREAT") {
            steps.push(Step { call: call.to_owned(), number: *number, line: line.to_owned() });
        }
    }
    assert!(steps.len() > 5, "{trace}");
    steps
}

fn listed(host: &Host) -> Vec<Value> {
    let rows: Value = serde_json::from_str(&host.ok(&["list", "--json"])).unwrap();
    rows.as_array().unwrap().clone()
}

/// The processes of this host's sandboxes: those that make one, and those inside.
fn processes(host: &Host) -> Vec<(i32, String)> {
    let own = host.repository().to_str().unwrap().to_owned();
    let entries = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        let arguments = String::from_utf8_lossy(&fs::read(path.join("cmdline")).ok()?).replace('\0', " ");
        let is_maker = arguments.contains("bwrap") && arguments.contains(&own);
        // What is not yet reaped has no mounts any more.
        let mounts = fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
        let is_inside = mounts.contains(&format!("{} /work ", own.trim_start_matches("/tmp")))
            || mounts.contains(&format!("{own} /work "));
        (is_maker || is_inside).then(|| (pid, arguments.chars().take(200).collect()))
    });
    entries.collect()
}

fn first_processes(host: &Host) -> Vec<i32> {
    let all = processes(host).into_iter();
    all.filter(|(_, arguments)| arguments.ends_with("sandbox-init first ") && !arguments.contains("bwrap"))
        .map(|(pid, _)| pid)
        .collect()
}

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// What waits until it is so, or fails with what was seen last.
#[track_caller]
fn until<T: std::fmt::Debug>(what: &str, mut look: impl FnMut() -> (bool, T)) {
    let begun = Instant::now();
    loop {
        let (is_so, seen) = look();
        if is_so {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}: {seen:?}");
    }
}

/// Checks that the host tells the truth, works, and can be cleared to nothing.
fn check(host: &Host, at: &str) {
    until(&format!("{at}: the list is not what runs"), || {
        let (listed, running) = (listed(host).len(), first_processes(host));
        (listed == running.len(), (listed, running, processes(host)))
    });
    let entered = host.run(&["start", "--", "true"]);
    assert_eq!(entered, Done { code: 0, stdout: String::new(), stderr: String::new() }, "{at}");
    assert_eq!(listed(host).len(), 1, "{at}");
    assert_eq!(host.ok(&["exec", "demo", "--", "echo", "in"]), "in\n", "{at}");
    is_cleared(host, at);
}

/// Checks that after `stop` nothing is left of a sandbox, and after `gc` nothing of any command.
fn is_cleared(host: &Host, at: &str) {
    let stopped = host.run(&["stop"]);
    assert!(
        stopped.code == 0 || stopped.stderr.contains("no cloister `demo` is running"),
        "{at}: {stopped:?}"
    );
    assert_eq!(listed(host), Vec::<Value>::new(), "{at}");
    until(&format!("{at}: processes are left"), || {
        let left = processes(host);
        (left.is_empty(), left)
    });
    let mut files = Vec::new();
    files_below(&host.path("home"), &mut files);
    let temporary: Vec<&PathBuf> =
        files.iter().filter(|path| path.to_string_lossy().ends_with(".tmp")).collect();
    let past = SystemTime::now() - Duration::from_hours(2);
    for path in &temporary {
        fs::File::options().write(true).open(path).unwrap().set_modified(past).unwrap();
    }
    let collected = host.run(&["gc"]);
    assert_eq!(collected.code, 0, "{at}: {collected:?}");
    assert_eq!(collected.stdout.matches("temporary file").count(), temporary.len(), "{at}: {collected:?}");
    let mut files = Vec::new();
    files_below(&host.path("home"), &mut files);
    let left = files
        .iter()
        .map(|path| path.strip_prefix(host.path("home")).unwrap().to_string_lossy())
        .filter(|path| {
            let is_sandboxes = ["run/i/", "run/s/", "run/by-name/", "receipts/", "tokens/"];
            path.ends_with(".tmp")
                || is_sandboxes.iter().any(|folder| path.contains(folder))
                || [".git/commondir", ".git/config.worktree"].iter().any(|name| path.ends_with(name))
        });
    let left: Vec<_> = left.collect();
    assert!(left.is_empty(), "{at}: {left:?}");
}

/// Runs a command once for each of its steps, killed there.
fn kill_at_every_step(before: impl Fn(&Host), arguments: &[&str], after: impl Fn(&Host, &str)) {
    let Some(host) = host() else { return };
    let mut steps = Vec::new();
    // The second run finds the directories that the first has made, as every later one does.
    for _ in 0..2 {
        before(&host);
        steps = find_steps(&host, arguments);
    }
    after(&host, "undisturbed");
    for step in &steps {
        before(&host);
        finish(traced(&host, Some((step, "KILL")), arguments));
        after(&host, &format!("{arguments:?} killed at `{}`", step.line));
    }
}

fn nothing(host: &Host) {
    host.ok(&["shutdown"]);
}

fn a_sandbox(host: &Host) {
    host.ok(&["start", "-d"]);
}

#[test]
fn a_start_killed_anywhere_is_repaired_by_the_next() {
    kill_at_every_step(nothing, &["start", "-d"], check);
}

#[test]
fn a_start_killed_anywhere_is_cleared_by_stop() {
    kill_at_every_step(nothing, &["start", "-d"], is_cleared);
}

#[test]
fn an_entry_killed_anywhere_leaves_the_sandbox_alone() {
    kill_at_every_step(a_sandbox, &["start", "--", "true"], |host, at| {
        assert_eq!(listed(host).len(), 1, "{at}");
        // A command that is about to be started is a copy of the first process for a moment.
        until(&format!("{at}: not one first process"), || {
            let found = first_processes(host);
            (found.len() == 1, found)
        });
        check(host, at);
    });
}

#[test]
fn an_exec_killed_anywhere_leaves_the_sandbox_alone() {
    kill_at_every_step(a_sandbox, &["exec", "demo", "--", "true"], |host, at| {
        assert_eq!(listed(host).len(), 1, "{at}");
        // A command that is about to be started is a copy of the first process for a moment.
        until(&format!("{at}: not one first process"), || {
            let found = first_processes(host);
            (found.len() == 1, found)
        });
        check(host, at);
    });
}

#[test]
fn a_stop_killed_anywhere_is_finished_by_the_next() {
    kill_at_every_step(a_sandbox, &["stop"], is_cleared);
    kill_at_every_step(a_sandbox, &["stop"], check);
}

/// Who is killed while a command stands still.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Guardian,
    FirstProcess,
}

impl Victim {
    fn pids(self, host: &Host) -> Vec<i32> {
        match self {
            Self::FirstProcess => first_processes(host),
            Self::Guardian => {
                let wanted = format!("{}\0guardian\0run\0", host.binary().display());
                let pids = fs::read_dir("/proc").unwrap().flatten();
                pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
                    .filter(|pid| {
                        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == wanted.as_bytes())
                    })
                    .collect()
            }
        }
    }
}

/// Runs a command frozen at a step, kills the victim there, and lets the command go on.
fn freeze(host: &Host, step: &Step, victim: Victim, arguments: &[&str]) -> Done {
    let mut command = traced(host, Some((step, "STOP")), arguments);
    let mut tracer = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let trace = host.path("home/trace");
    until(&format!("`{}` is not reached", step.line), || {
        let is_frozen = fs::read_to_string(&trace).is_ok_and(|text| text.contains("stopped by SIGSTOP"));
        (is_frozen || tracer.try_wait().unwrap().is_some(), ())
    });
    for pid in victim.pids(host) {
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    }
    let children = format!("/proc/{0}/task/{0}/children", tracer.id());
    for pid in fs::read_to_string(children).unwrap_or_default().split_whitespace() {
        let _ = kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::CONT);
    }
    collect(tracer)
}

fn kill_a_victim_at_every_step(victim: Victim, before: impl Fn(&Host), arguments: &[&str]) {
    let Some(host) = host() else { return };
    let mut steps = Vec::new();
    // The second run finds the directories that the first has made, as every later one does.
    for _ in 0..2 {
        before(&host);
        steps = find_steps(&host, arguments);
    }
    for step in &steps {
        before(&host);
        fs::remove_file(host.path("home/trace")).unwrap();
        let begun = Instant::now();
        let done = freeze(&host, step, victim, arguments);
        let at = format!("{victim:?} killed while {arguments:?} stood at `{}` ({done:?})", step.line);
        assert!(begun.elapsed() < Duration::from_secs(15), "{at}");
        assert!([0, 1, 125, 137].contains(&done.code), "{at}");
        check(&host, &at);
    }
}

#[test]
fn a_guardian_killed_at_any_step_of_a_start() {
    kill_a_victim_at_every_step(Victim::Guardian, nothing, &["start", "-d"]);
}

#[test]
fn a_guardian_killed_at_any_step_of_a_session() {
    kill_a_victim_at_every_step(Victim::Guardian, a_sandbox, &["start", "--", "true"]);
}

#[test]
fn a_guardian_killed_at_any_step_of_a_stop() {
    kill_a_victim_at_every_step(Victim::Guardian, a_sandbox, &["stop"]);
}

#[test]
fn a_first_process_killed_at_any_step_of_a_start() {
    kill_a_victim_at_every_step(Victim::FirstProcess, nothing, &["start", "-d"]);
}

#[test]
fn a_first_process_killed_at_any_step_of_a_session() {
    kill_a_victim_at_every_step(Victim::FirstProcess, a_sandbox, &["start", "--", "true"]);
}

#[test]
fn a_first_process_killed_at_any_step_of_a_stop() {
    kill_a_victim_at_every_step(Victim::FirstProcess, a_sandbox, &["stop"]);
}

#[test]
fn a_receipt_of_another_boot_is_no_sandbox() {
    let Some(host) = Host::with_bubblewrap() else { return };
    a_sandbox(&host);
    let receipt = host.path("home/.local/state/cloister/receipts/demo.json");
    let kept = fs::read_to_string(&receipt).unwrap();
    let mut value: Value = serde_json::from_str(&kept).unwrap();
    let pid = i32::try_from(value["first"]["pid"].as_i64().unwrap()).unwrap();
    // A machine that was started again gives the same number to somebody else.
    value["first"]["boot_id"] = "00000000-0000-0000-0000-000000000000".into();
    host.write(&receipt, value.to_string());
    assert_eq!(listed(&host), Vec::<Value>::new());
    let collected = host.ok(&["gc"]);
    assert!(collected.contains("receipt") && collected.contains("its sandbox has ended"), "{collected}");
    assert_eq!(first_processes(&host), [pid], "a stranger was killed");
    assert_eq!(host.inside("echo new").stdout, "new\n");
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    is_cleared(&host, "after a reboot");
}

#[test]
fn a_runtime_directory_that_is_gone_is_made_again() {
    let Some(host) = Host::with_bubblewrap() else { return };
    a_sandbox(&host);
    for pid in [Victim::FirstProcess.pids(&host), Victim::Guardian.pids(&host)].concat() {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
    fs::remove_dir_all(host.runtime()).unwrap();
    check(&host, "without a runtime directory");
}
