//! Shows what a sandbox costs over plain `bwrap`: `cargo bench --bench start`.
//!
//! The runs are interleaved, so that a machine that is busy for a while is so for all of them, and the medians of their
//! differences count.
#![allow(clippy::print_stdout, reason = "a benchmark's result goes to standard output")]
#![allow(clippy::unwrap_used, reason = "a step that fails should stop the benchmark there")]

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often each of the quick ones is run.
const ROUNDS: usize = 60;
/// How often a sandbox is made anew.
const NEW_ROUNDS: usize = 20;
/// Whom Cloister runs as when the benchmark is root; no account is needed.
const ORDINARY: u32 = 12_345;
/// How much a start in a running sandbox may take over plain `bwrap`.
const START_GOAL: Duration = Duration::from_millis(15);
/// How long `exec` may take.
const EXEC_GOAL: Duration = Duration::from_millis(10);

fn main() {
    if !Path::new("/usr/bin/bwrap").exists() {
        println!("skipped: there is no `bwrap`");
        return;
    }
    let bench = Bench::new();
    bench.time(&bench.cloister(&["start", "-d"]));
    let bwrap = bench.plain_bwrap();
    let enter = bench.cloister(&["start", "--", "true"]);
    let exec = bench.cloister(&["exec", "demo", "--", "true"]);
    let (mut plain, mut entered, mut executed, mut made) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        plain.push(bench.time(&bwrap));
        entered.push(bench.time(&enter));
        executed.push(bench.time(&exec));
    }
    let mut plain_again = Vec::new();
    for _ in 0..NEW_ROUNDS {
        plain_again.push(bench.time(&bwrap));
        bench.time(&bench.cloister(&["stop"]));
        made.push(bench.time(&enter));
    }
    println!("{:<34}{:>9}{:>12}  goal", "", "median", "over bwrap");
    row("bwrap … true, the same mounts", median(&plain), None, "");
    let over = |one: &[Duration], base: &[Duration]| median_of_differences(one, base);
    let start = over(&entered, &plain);
    row("start -- true, running", median(&entered), Some(start), &goal(start, START_GOAL, "over bwrap"));
    let new = over(&made, &plain_again);
    row("start -- true, new", median(&made), Some(new), &goal(new, START_GOAL, "over bwrap"));
    let exec = median(&executed);
    row("exec demo -- true", exec, Some(over(&executed, &plain)), &goal(micros(exec), EXEC_GOAL, "in all"));
}

fn goal(is: i64, most: Duration, of: &str) -> String {
    let verdict = if is <= micros(most) { "met" } else { "MISSED" };
    format!("at most {} ms {of}: {verdict}", most.as_millis())
}

fn row(name: &str, median: Duration, over: Option<i64>, goal: &str) {
    let shown = |micros: i64| format!("{}.{} ms", micros / 1000, (micros / 100 % 10).abs());
    let over = over.map(shown).unwrap_or_default();
    println!("{name:<34}{:>9}{over:>12}  {goal}", shown(micros(median)));
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap()
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() / 2]
}

fn median_of_differences(one: &[Duration], base: &[Duration]) -> i64 {
    let mut differences: Vec<i64> =
        one.iter().zip(base).map(|(one, base)| micros(*one) - micros(*base)).collect();
    differences.sort_unstable();
    differences[differences.len() / 2]
}

/// A home with a repository `demo` and a Cloister that belongs to it; all of it ends with the value.
struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("cl").tempdir_in("/tmp").unwrap();
        let bench = Self { directory };
        for (path, mode) in [("", 0o755), ("bin", 0o755), ("home", 0o700)] {
            let path = bench.path(path);
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::copy(env!("CARGO_BIN_EXE_cloister"), bench.path("bin/cloister")).unwrap();
        bench.own("home");
        let made =
            bench.command(&["git".into(), "init".into(), "--quiet".into(), bench.path("home/demo").into()]);
        assert!({ made }.status().unwrap().success());
        bench
    }

    fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    fn own(&self, below: &str) {
        if rustix::process::geteuid().is_root() {
            chown(self.path(below), Some(ORDINARY), Some(ORDINARY)).unwrap();
        }
    }

    fn cloister(&self, arguments: &[&str]) -> Vec<OsString> {
        let binary = self.path("bin/cloister").into_os_string();
        std::iter::once(binary).chain(arguments.iter().map(OsString::from)).collect()
    }

    #[expect(clippy::disallowed_methods, reason = "the benchmark starts programs of the host")]
    fn command(&self, argv: &[OsString]) -> Command {
        let mut command = Command::new(&argv[0]);
        let repository = self.path("home/demo");
        let directory = if repository.exists() { repository } else { self.path("home") };
        command.args(&argv[1..]).env_clear().current_dir(directory);
        command.env("HOME", self.path("home")).env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command.stdin(Stdio::null());
        if rustix::process::geteuid().is_root() {
            command.uid(ORDINARY).gid(ORDINARY);
        }
        command
    }

    /// Runs a command and gives the time that it took.
    fn time(&self, argv: &[OsString]) -> Duration {
        let mut command = self.command(argv);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let begun = Instant::now();
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        let needed = begun.elapsed();
        assert!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
        needed
    }

    /// The command that makes this sandbox, without what it is told through descriptors, for the command `true`.
    fn plain_bwrap(&self) -> Vec<OsString> {
        let mut dry_run = self.command(&self.cloister(&["start", "--dry-run", "--json"]));
        let shown: serde_json::Value = serde_json::from_slice(&dry_run.output().unwrap().stdout).unwrap();
        let words: Vec<&str> =
            shown[0]["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
        fs::write(self.path("file"), "").unwrap();
        let file = self.path("file").into_os_string();
        let mut argv: Vec<OsString> = Vec::new();
        let mut rest = words.as_slice();
        loop {
            rest = match rest {
                ["--", ..] | [] => break,
                ["--add-seccomp-fd" | "--info-fd", _, rest @ ..] => rest,
                ["--perms", _, "--file", _, target, rest @ ..] => {
                    argv.extend(["--symlink".into(), "/dev/null".into(), target.into()]);
                    rest
                }
                ["--perms", _, "--ro-bind-data", _, target, rest @ ..]
                | ["--ro-bind-data", _, target, rest @ ..] => {
                    argv.extend(["--ro-bind".into(), file.clone(), target.into()]);
                    rest
                }
                [word, rest @ ..] => {
                    argv.push(word.into());
                    rest
                }
            };
        }
        argv.extend(["--".into(), "true".into()]);
        argv
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let mut shutdown = self.command(&self.cloister(&["shutdown"]));
        // A benchmark that failed early may have started nothing.
        let _ = shutdown.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}
