//! Programs that work, and programs that do not.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::super::Count;
use super::super::tests::until;
use super::*;

fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

fn commands(patience: Duration) -> Commands {
    Commands { patience, ..Commands::on(Handle::current()) }
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

async fn counted(commands: &Commands, done: u64, failed: u64) {
    let wanted = Count { done, failed };
    until(&format!("{wanted:?}"), || commands.tally().read() == wanted).await;
}

#[tokio::test]
async fn a_program_reads_the_request_in_the_root_and_its_own_process_group() {
    let directory = TempDir::new().unwrap();
    let (seen, moved) = (directory.path().join("seen"), directory.path().join("moved"));
    let script = format!(
        "read -r pid comm state parent group rest < /proc/$$/stat
         {{ pwd; [ $$ = $group ] && echo leads; cat; }} > {0} && mv {0} {1}",
        seen.display(),
        moved.display()
    );
    let commands = commands(PATIENCE);
    commands.start(shell(&script), "{\"host\": \"x\"}\n".to_owned());
    counted(&commands, 1, 0).await;
    assert_eq!(fs::read_to_string(moved).unwrap(), "/\nleads\n{\"host\": \"x\"}\n");
}

#[tokio::test]
async fn a_program_that_fails_or_is_none_is_counted() {
    let commands = commands(PATIENCE);
    commands.start(shell("exit 3"), String::new());
    counted(&commands, 0, 1).await;
    for arguments in
        [vec!["/no/such/program".to_owned()], vec!["/".to_owned()], vec!["a\0b".to_owned()], vec![]]
    {
        let failed = commands.tally().read().failed;
        commands.start(arguments, String::new());
        counted(&commands, 0, failed + 1).await;
    }
    commands.start(shell("true"), String::new());
    counted(&commands, 1, 5).await;
}

#[tokio::test]
async fn a_program_that_floods_its_output_or_reads_nothing_is_not_held_up() {
    let commands = commands(PATIENCE);
    commands.start(shell("yes | head -c 5000000; yes | head -c 5000000 >&2"), String::new());
    commands.start(shell("true"), "x".repeat(1 << 20));
    counted(&commands, 2, 0).await;
}

#[tokio::test]
async fn a_program_that_hangs_is_killed_with_its_group() {
    let directory = TempDir::new().unwrap();
    let pids = directory.path().join("pids");
    let commands = commands(Duration::from_millis(500));
    commands.start(
        shell(&format!("sleep 1000 & echo $! > {0}; echo $$ >> {0}; wait", pids.display())),
        String::new(),
    );
    counted(&commands, 0, 1).await;
    for pid in fs::read_to_string(pids).unwrap().lines() {
        let pid = pid.parse().unwrap();
        until("the group is gone", || process::Identity::of(pid).is_none()).await;
    }
}

#[tokio::test]
async fn programs_end_with_the_runtime_that_runs_them() {
    let directory = TempDir::new().unwrap();
    let pid = directory.path().join("pid");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let commands = Commands::on(runtime.handle().clone());
    commands.start(shell(&format!("echo $$ > {}; sleep 1000", pid.display())), String::new());
    until("it runs", || lines(&pid) == 1).await;
    runtime.shutdown_background();
    let pid = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    until("it is gone", || process::Identity::of(pid).is_none()).await;
}

#[tokio::test]
async fn a6_four_programs_run_at_once_and_few_wait() {
    let directory = TempDir::new().unwrap();
    let (started, gate) = (directory.path().join("started"), directory.path().join("gate"));
    let commands = commands(PATIENCE);
    let script =
        format!("echo x >> {}; until [ -e {} ]; do sleep 0.05; done", started.display(), gate.display());
    for _ in 0..30 {
        commands.start(shell(&script), String::new());
    }
    counted(&commands, 0, 10).await;
    until("four run", || lines(&started) == 4).await;
    assert_eq!(commands.turns.available_permits(), 0);
    assert_eq!(lines(&started), 4);
    fs::write(&gate, "").unwrap();
    counted(&commands, 20, 10).await;
    assert_eq!(lines(&started), 20);
}
