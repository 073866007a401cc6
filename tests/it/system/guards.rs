//! The guardian's watch over what sandboxes must not write: it goes on after the guardian was away, covers what the
//! host adds, and takes away the links that git on the host would write through.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Host, collect, finish};
use crate::requirement;

fn hosts() -> Vec<Host> {
    let hosts = Host::both();
    for host in &hosts {
        host.write(&host.path("home/.gitconfig"), "[user]\n\tname = n\n\temail = e@example.com\n");
        sh(host, "git commit --quiet --allow-empty -m first");
    }
    hosts
}

#[track_caller]
fn sh(host: &Host, script: &str) -> String {
    let mut command = host.program("sh");
    command.args(["-c", script]);
    let done = finish(command);
    assert_eq!(done.code, 0, "{script}: {done:?}");
    done.stdout
}

#[track_caller]
fn inside(host: &Host, script: &str, expected: &str) {
    let done = host.inside(script);
    assert_eq!(done.stdout, expected, "{script}: {done:?}");
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
    }
}

/// The processes of a host's Cloister whose arguments end so.
fn pids(host: &Host, arguments: &str) -> Vec<Pid> {
    let wanted = format!("{}\0{arguments}", host.binary().display());
    let pids = fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|found| found == wanted.as_bytes()))
        .filter_map(Pid::from_raw)
        .collect()
}

fn kill_guardian(host: &Host) {
    let mut guardian = Vec::new();
    // A child of it that is not its own program yet looks the same.
    until("not one guardian", || {
        guardian = pids(host, "guardian\0run\0");
        guardian.len() == 1
    });
    kill_process(guardian[0], Signal::KILL).unwrap();
    until("the guardian lives", || pids(host, "guardian\0run\0").is_empty());
}

fn stop_guardian(host: &Host) {
    host.ok(&["guardian", "stop", "--yes"]);
}

#[test]
fn f1_a_guardian_that_takes_a_sandbox_over_covers_what_lost_its_cover() {
    for (host, end) in
        hosts().iter().flat_map(|host| [(host, kill_guardian as fn(&Host)), (host, stop_guardian)])
    {
        host.write(&host.repository().join(".envrc"), "mine\n");
        host.write(&host.repository().join(".env"), "CANARY\n");
        host.write(&host.repository().join(".vscode/tasks.json"), "{}\n");
        host.ok(&["start", "-d"]);
        end(host);
        // The directory of one guard has gone: the others must be watched and covered all the same.
        sh(host, "mv .vscode moved; sed -i s/mine/again/ .envrc; sed -i s/Y/Y2/ .env");
        let script = "(echo evil > .envrc) 2>/dev/null && echo written; grep -s CANARY .env; cat .envrc";
        inside(host, script, "again\n");
        let audit = host.ok(&["audit"]);
        let record = audit.lines().rfind(|line| line.contains("sandbox.reseal")).unwrap();
        assert!(record.contains("/work/.envrc") && record.contains("/work/.env"), "{audit}");
        let records = audit.matches("sandbox.reseal").count();
        sh(host, "sed -i s/again/more/ .envrc");
        until("it is watched no more", || host.ok(&["audit"]).matches("sandbox.reseal").count() > records);
        inside(host, script, "more\n");
        host.ok(&["stop"]);
        assert_eq!(fs::read_to_string(host.repository().join(".envrc")).unwrap(), "more\n");
        sh(host, "rm -rf .vscode moved");
    }
}

#[test]
fn f1_a_guardian_that_takes_over_what_stands_says_nothing() {
    let Some(host) = hosts().into_iter().next() else { return };
    host.write(&host.repository().join(".envrc"), "mine\n");
    host.ok(&["start", "-d"]);
    kill_guardian(&host);
    inside(&host, "(echo evil > .envrc) 2>/dev/null && echo written; cat .envrc", "mine\n");
    let audit = host.ok(&["audit"]);
    assert!(!audit.contains("sandbox.reseal") && !audit.contains("sandbox.link"), "{audit}");
}

#[test]
fn m4_what_the_host_does_after_a_sandbox_was_killed_is_no_failure() {
    for host in hosts() {
        host.write(&host.repository().join(".envrc"), "mine\n");
        host.ok(&["start", "-d"]);
        let receipt = fs::read(host.path("home/.local/state/cloister/receipts/demo.json")).unwrap();
        let receipt: serde_json::Value = serde_json::from_slice(&receipt).unwrap();
        let first = i32::try_from(receipt["first"]["pid"].as_i64().unwrap()).unwrap();
        kill_process(Pid::from_raw(first).unwrap(), Signal::KILL).unwrap();
        until("it is listed", || host.ok(&["list", "--json"]).trim() == "[]");
        sh(&host, "sed -i s/mine/again/ .envrc; ln -s nothing .git/FETCH_HEAD; sed -i s/again/mine/ .envrc");
        host.run(&["stop"]);
        sh(&host, "sed -i s/mine/again/ .envrc; ln -sf nothing .git/ORIG_HEAD; test -L .git/ORIG_HEAD");
        let audit = host.ok(&["audit"]);
        assert!(!audit.contains("sandbox.reseal"), "{audit}");
    }
}

#[test]
fn f3_a_worktree_that_the_host_adds_is_sealed_and_those_of_the_sandbox_work() {
    for host in hosts() {
        host.ok(&["start", "-d"]);
        for (number, name) in ["wt6", "wt7"].into_iter().enumerate() {
            sh(&host, &format!("git worktree add --quiet ../{name}"));
            until("it is not sealed", || host.ok(&["audit"]).matches("sandbox.reseal").count() > number);
            let script = format!(
                "cd .git/worktrees; for file in commondir gitdir config.worktree HEAD; do \
                   (echo ../../../evil > {name}/$file) 2>/dev/null && echo wrote $file; done; \
                 mv {name} x 2>/dev/null && echo moved; cd ..; mv worktrees x 2>/dev/null && echo moved all; \
                 cat worktrees/{name}/commondir"
            );
            inside(&host, &script, "../..\n");
        }
        let script = "git worktree add --quiet /tmp/new && git -C /tmp/new commit --quiet --allow-empty -m new && \
                      git worktree list | wc -l; git worktree remove /tmp/new && git worktree list | wc -l";
        let author =
            "export GIT_AUTHOR_NAME=n GIT_AUTHOR_EMAIL=e GIT_COMMITTER_NAME=n GIT_COMMITTER_EMAIL=e; ";
        inside(&host, &format!("{author}{script}"), "4\n3\n");
        sh(&host, "git -C ../wt6 commit --quiet --allow-empty -m six; git worktree remove ../wt6");
        // Under the name that was given up, the sandbox has its own; and the host's next one is sealed again.
        inside(
            &host,
            "git worktree add --quiet --detach /tmp/wt6; git worktree remove /tmp/wt6 && echo gone",
            "gone\n",
        );
        host.ok(&["stop"]);
        assert_eq!(sh(&host, "git -C ../wt7 status --porcelain; git worktree list | wc -l"), "2\n");
    }
}

#[test]
fn f3_a_worktree_added_while_no_guardian_was_there_is_sealed_by_the_next() {
    let Some(host) = hosts().into_iter().next() else { return };
    host.ok(&["start", "-d"]);
    kill_guardian(&host);
    sh(&host, "git worktree add --quiet ../wt6");
    inside(
        &host,
        "(echo evil > .git/worktrees/wt6/commondir) 2>/dev/null; cat .git/worktrees/wt6/commondir",
        "../..\n",
    );
}

/// Makes entries of worktrees that each name a worktree behind 39 links of 4 KB, a hundred directories deep.
fn costly_entries(count: usize) -> String {
    let (deep, steps) = ("a/".repeat(100), "x/../".repeat(800));
    format!(
        "mkdir -p .d/{deep}x .d/{deep}l39 .git/worktrees; \
         (cd .d/{deep}; for i in $(seq 0 38); do ln -s {steps}l$((i + 1)) l$i; done); \
         for i in $(seq {count}); do mkdir .git/worktrees/e$i; \
         echo ../../../.d/{deep}l0/.git > .git/worktrees/e$i/gitdir; done; "
    )
}

#[test]
fn f3_entries_that_are_costly_to_follow_delay_no_other_sandboxs_guards() {
    for host in hosts() {
        sh(&host, "git init --quiet ../other && echo mine > ../other/.envrc");
        let other = host.repository().with_file_name("other");
        let in_other = |arguments: &[&str]| {
            let mut command = host.cloister(arguments);
            command.current_dir(&other);
            let done = finish(command);
            assert_eq!(done.code, 0, "{done:?}");
            done.stdout
        };
        in_other(&["start", "-d"]);
        host.ok(&["start", "-d"]);
        let write = "for i in $(seq 100); do for file in gitdir commondir HEAD; do : >> .git/worktrees/e1/$file; done; done";
        let done = host.inside(&format!("{}{write}", costly_entries(1)));
        assert_eq!(done.code, 0, "{done:?}");
        sh(&host, "cd ../other && sed -i s/mine/again/ .envrc");
        until("it is not sealed", || host.ok(&["audit"]).contains("/work/.envrc"));
        let script = "(echo evil > .envrc) 2>/dev/null && echo written; cat .envrc";
        assert_eq!(in_other(&["start", "--", "sh", "-c", script]), "again\n");
        inside(&host, "ln -s /etc/x .git/ORIG_HEAD", "");
        until("the link stays", || !host.repository().join(".git/ORIG_HEAD").is_symlink());
    }
}

#[test]
fn f3_entries_that_are_costly_to_follow_keep_no_guardian_from_starting() {
    let Some(host) = hosts().into_iter().next() else { return };
    host.write(&host.repository().join(".envrc"), "mine\n");
    host.ok(&["start", "-d"]);
    let done = host.inside(&costly_entries(600));
    assert_eq!(done.code, 0, "{done:?}");
    kill_guardian(&host);
    sh(&host, "sed -i s/mine/again/ .envrc");
    inside(&host, WRITE, "again\n");
}

#[test]
fn f3_a_sandbox_that_makes_more_worktrees_than_can_be_judged_is_ended() {
    for host in hosts() {
        host.ok(&["start", "-d"]);
        host.inside("mkdir -p .git/worktrees; cd .git/worktrees; seq 1100 | xargs mkdir");
        until("it runs", || host.ok(&["list", "--json"]).trim() == "[]");
        let audit = host.ok(&["audit", "-n", "4"]);
        assert!(audit.contains("there are more than 1024 worktrees"), "{audit}");
        host.ok(&["stop"]);
        sh(&host, "rm -r .git/worktrees");
    }
}

/// Where git on the host writes through a link.
const WRITTEN: [&str; 6] =
    ["COMMIT_EDITMSG", "FETCH_HEAD", "MERGE_MSG", "ORIG_HEAD", "logs/HEAD", "logs/refs/heads/deep/er/topic"];

#[test]
fn c3_links_in_a_git_directory_are_removed_and_nothing_is_written_through_them() {
    for host in hosts() {
        for path in WRITTEN {
            host.write(&host.path("home/.bashrc"), "mine\n");
            host.ok(&["start", "-d"]);
            let plant = format!(
                "mkdir -p $(dirname .git/{path}); ln -sf {}/.bashrc .git/{path}",
                host.home().display()
            );
            host.inside(&plant);
            until(path, || !host.repository().join(".git").join(path).is_symlink());
            sh(&host, "git commit --quiet --allow-empty -m host");
            assert_eq!(fs::read_to_string(host.path("home/.bashrc")).unwrap(), "mine\n", "{path}");
            let audit = host.ok(&["audit"]);
            assert!(audit.contains("sandbox.link"), "{audit}");
            host.ok(&["stop"]);
        }
    }
}

#[test]
fn c3_a_directory_full_of_links_that_is_moved_into_place_is_emptied_of_them() {
    for host in hosts() {
        host.ok(&["start", "-d"]);
        host.inside("cp -r .git/logs .x; rm .x/HEAD; ln -s /etc/x .x/HEAD; mv .git/logs .y; mv .x .git/logs");
        until("the link stays", || !host.repository().join(".git/logs/HEAD").is_symlink());
    }
}

/// Puts a directory that was prepared in the place of git's logs, with a link that leads to the user's `.bashrc`.
fn plant(host: &Host, prepare: &str) {
    let link = format!("ln -s {}/.bashrc .git/.x/HEAD", host.home().display());
    host.inside(&format!("mkdir .git/.x; {link}; {prepare}; mv .git/logs .git/.y; mv .git/.x .git/logs"));
}

#[test]
fn c3_a_link_in_a_directory_whose_permissions_were_taken_away_is_removed() {
    for host in hosts() {
        for mode in ["555", "111", "444", "000"] {
            host.write(&host.path("home/.bashrc"), "mine\n");
            host.ok(&["start", "-d"]);
            plant(&host, &format!("chmod {mode} .git/.x"));
            until(mode, || !host.repository().join(".git/logs/HEAD").is_symlink());
            sh(&host, "git commit --quiet --allow-empty -m host; rm -rf .git/.y");
            assert_eq!(fs::read_to_string(host.path("home/.bashrc")).unwrap(), "mine\n", "{mode}");
            host.ok(&["stop"]);
        }
    }
}

#[test]
fn c3_a_link_in_a_directory_of_thousands_of_entries_is_removed() {
    for host in hosts() {
        host.ok(&["start", "-d"]);
        let late = "for i in $(seq 10); do ln -s /etc/x .git/.x/l$i; done";
        plant(&host, &format!("cd .git/.x; seq 6000 | xargs touch; cd ../..; {late}"));
        let is_link = |name: String| host.repository().join(".git/logs").join(name).is_symlink();
        let late = || (1..=10).map(|number| format!("l{number}"));
        until("a link stays", || !late().chain(["HEAD".to_owned()]).any(is_link));
    }
}

#[test]
fn c3_a_sandbox_that_makes_what_can_not_be_looked_at_is_ended() {
    let deep = "mkdir -p .git/logs/$(seq -s / 20)";
    let many = "mkdir -p .git/logs; cd .git/logs; seq 3000 | xargs mkdir";
    let racing = "mkdir -p .git/logs; while :; do chmod 000 .git/logs; chmod 700 .git/logs; ln -s /etc/x .git/logs/x; done";
    for host in hosts() {
        for script in [deep, many, racing] {
            host.ok(&["start", "-d"]);
            host.inside(script);
            until(script, || host.ok(&["list", "--json"]).trim() == "[]");
            let audit = host.ok(&["audit", "-n", "4"]);
            assert!(audit.contains("ended: "), "{audit}");
            host.ok(&["stop"]);
            sh(&host, "rm -rf .git/logs");
        }
    }
}

#[test]
fn c3_links_made_while_no_guardian_was_there_are_removed() {
    for host in hosts() {
        host.ok(&["start", "-d"]);
        kill_guardian(&host);
        let planted = host.repository().join(".git/MERGE_MSG");
        std::os::unix::fs::symlink("/etc/x", &planted).unwrap();
        host.ok(&["start", "-d"]);
        assert!(!planted.is_symlink());
    }
}

#[test]
fn c3_a_sandbox_that_goes_on_making_links_is_ended() {
    for host in hosts() {
        host.ok(&["start", "-d"]);
        host.inside("while :; do for i in 1 2 3 4 5; do ln -s /etc/x .git/l$i 2>/dev/null; done; done");
        until("it runs", || host.ok(&["list", "--json"]).trim() == "[]");
        let audit = host.ok(&["audit"]);
        assert!(audit.contains("ended: it made 16 links"), "{audit}");
        assert!(audit.matches("sandbox.link").count() <= 22, "{audit}");
        assert!(Path::new(&host.repository()).exists());
    }
}

/// What a sandbox can still make of guards that the host removed.
const PLANT: &str = "mkdir .x; echo evil > .x/tasks.json; for guard in .vscode .envrc .git/hooks; do \
     mv -T .x $guard 2>/dev/null && echo planted $guard; rm -rf $guard 2>/dev/null && echo removed $guard; \
     (echo evil > $guard/tasks.json) 2>/dev/null && echo wrote $guard; done; rm -rf .x; ls -d .vscode .envrc .git/hooks";

#[test]
fn f1_what_the_host_removes_is_not_the_sandboxs_to_make() {
    const STAND: &str = ".envrc\n.git/hooks\n.vscode\n";
    for (host, is_away) in hosts().iter().flat_map(|host| [(host, false), (host, true)]) {
        host.write(&host.repository().join(".envrc"), "mine\n");
        host.write(&host.repository().join(".vscode/tasks.json"), "{}\n");
        let commit = "git add -A && git commit --quiet -m guards --allow-empty";
        let other =
            "git checkout --quiet -B other && git rm --quiet -r .envrc .vscode && git commit --quiet -m none";
        sh(host, &format!("{commit}; {other}; git checkout --quiet main"));
        host.ok(&["start", "-d"]);
        let sealed = |guard: &str| host.ok(&["audit"]).matches(guard).count();
        let guards = ["/work/.vscode", "/work/.envrc", "/work/.git/hooks"];
        let before = guards.map(sealed);
        if is_away {
            kill_guardian(host);
        }
        sh(host, "git checkout --quiet other; rm -rf .git/hooks");
        if is_away {
            host.ok(&["start", "-d"]);
        }
        until("it is not sealed", || {
            guards.map(sealed).iter().zip(before).all(|(now, before)| *now > before)
        });
        inside(host, PLANT, STAND);
        assert_eq!(sh(host, "git status --porcelain"), "");
        let records = host.ok(&["audit"]).matches("sandbox.reseal").count();
        sh(host, "git checkout --quiet main");
        until("it is not sealed", || host.ok(&["audit"]).matches("sandbox.reseal").count() > records);
        inside(host, "cat .envrc .vscode/tasks.json", "mine\n{}\n");
        sh(host, "git checkout --quiet other");
        until("nothing is put there", || host.repository().join(".vscode").exists());
        kill_guardian(host);
        host.ok(&["stop"]);
        assert_eq!(sh(host, "ls -A; git checkout --quiet main"), ".git\n", "what was put there stays");
    }
}

/// A guardian in the foreground that the kernel gives no watches, or none at first: which of its calls fail.
fn without_watches(host: &Host, arguments: &[&str], which: &str) -> Command {
    let mut command = host.program("/usr/bin/strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=inotify_add_watch"]);
    command.args(["-e", &format!("inject=inotify_add_watch:error=ENOSPC{which}")]);
    command.arg(host.binary()).args(["guardian", "run"]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts it and waits until it serves.
fn serving_without_watches(host: &Host, which: &str) -> Child {
    let mut child = without_watches(host, &[], which).spawn().unwrap();
    let mut word = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut word).unwrap();
    assert!(word.starts_with("ready"), "{word}");
    child
}

/// A host with a sandbox whose `.envrc` is guarded, and with what makes calls fail.
fn guarded() -> Option<Host> {
    if !Path::new("/usr/bin/strace").exists() {
        requirement::skip("strace", "there is no `strace`");
        return None;
    }
    let host = hosts().into_iter().next()?;
    host.write(&host.repository().join(".envrc"), "mine\n");
    host.ok(&["start", "-d"]);
    Some(host)
}

const WRITE: &str = "(echo evil > .envrc) 2>/dev/null && echo written; cat .envrc";

#[test]
fn f1_a_new_guardian_that_finds_no_watches_left_does_not_take_the_place_of_one_that_has_them() {
    let Some(host) = guarded() else { return };
    let refused = collect(without_watches(&host, &["--replace"], "").spawn().unwrap());
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("can't be kept: cannot watch over"), "{refused:?}");
    assert_eq!(pids(&host, "guardian\0run\0").len(), 1);
    let records = host.ok(&["audit"]).matches("sandbox.reseal").count();
    sh(&host, "sed -i s/mine/again/ .envrc");
    until("it is watched no more", || host.ok(&["audit"]).matches("sandbox.reseal").count() > records);
    inside(&host, WRITE, "again\n");
}

#[test]
fn f1_a_sandbox_whose_guards_can_not_be_watched_has_no_way_out() {
    let Some(host) = guarded() else { return };
    kill_guardian(&host);
    let mut guardian = serving_without_watches(&host, "");
    let socket = host.runtime().join("by-name/demo/proxy.sock");
    assert!(UnixStream::connect(&socket).is_err(), "it has a way out");
    let status = host.ok(&["guardian", "status"]);
    assert!(status.contains("NO WAY OUT") && status.contains("demo: cannot watch over"), "{status}");
    let audit = host.ok(&["audit"]);
    assert!(audit.contains("no way out until they are watched"), "{audit}");
    let entered = host.inside("true");
    assert!(entered.code != 0 && entered.stderr.contains("guards can't be kept"), "{entered:?}");
    assert!(UnixStream::connect(&socket).is_err(), "it has a way out");
    kill_guardian(&host);
    guardian.wait().unwrap();
    inside(&host, WRITE, "mine\n");
    UnixStream::connect(&socket).unwrap();
    let status = host.ok(&["guardian", "status"]);
    assert!(!status.contains("NO WAY OUT"), "{status}");
}

#[test]
fn f1_a_sandbox_has_its_way_out_again_as_soon_as_its_guards_are_watched() {
    let Some(host) = guarded() else { return };
    kill_guardian(&host);
    sh(&host, "sed -i s/mine/again/ .envrc");
    // Of each thread.
    let mut guardian = serving_without_watches(&host, ":when=1");
    until("it is not watched again", || {
        host.ok(&["audit"]).contains("the guards are watched again, and the way out is open")
    });
    UnixStream::connect(host.runtime().join("by-name/demo/proxy.sock")).unwrap();
    inside(&host, WRITE, "again\n");
    let records = host.ok(&["audit"]).matches("sandbox.reseal").count();
    sh(&host, "sed -i s/again/more/ .envrc");
    until("it is watched no more", || host.ok(&["audit"]).matches("sandbox.reseal").count() > records);
    inside(&host, WRITE, "more\n");
    stop_guardian(&host);
    guardian.wait().unwrap();
}

/// What the host does to a directory that guards lie in, and where it has to be told.
const REPLACED: [&str; 6] = [
    "rm -rf .git; git init --quiet -b main; git commit --quiet --allow-empty -m again",
    "cp -a .git ../copy; mv .git ../old; mv ../copy .git; rm -rf ../old",
    "rm -rf sub; git init --quiet sub",
    "rm -rf .git",
    "rm -rf husky; mkdir husky",
    "rm -rf .git/objects; mkdir .git/objects",
];

/// Projects with a nested repository, and a guard in a directory of its own.
fn nested() -> Vec<Host> {
    let hosts = hosts();
    for host in &hosts {
        sh(
            host,
            "git init --quiet sub; mkdir husky; echo x > husky/x; git config core.hooksPath husky/hooks",
        );
    }
    hosts
}

/// The sandbox has ended and says so; then the repository is made fit for the next one.
fn is_ended_and_mended(host: &Host, script: &str) {
    until(script, || host.ok(&["list", "--json"]).trim() == "[]");
    let audit = host.ok(&["audit", "-n", "6"]);
    assert!(audit.contains("ended: ") && audit.contains("`cloister start`"), "{script}: {audit}");
    host.run(&["stop"]);
    sh(host, "test -d .git/refs || git init --quiet -b main; git config core.hooksPath husky/hooks");
}

#[test]
fn f1_f2_a_sandbox_ends_when_the_host_replaces_a_directory_that_guards_lie_in() {
    for host in nested() {
        for script in REPLACED {
            host.ok(&["start", "-d"]);
            // What is held open inside tells nobody that it was removed.
            host.inside("(cd .git; sleep 60) >/dev/null 2>&1 & (cd sub; sleep 60) >/dev/null 2>&1 &");
            sh(&host, script);
            is_ended_and_mended(&host, script);
        }
    }
}

#[test]
fn f1_f2_a_directory_replaced_while_no_guardian_was_there_ends_the_sandbox_with_the_next() {
    for host in nested() {
        for script in &REPLACED[..5] {
            host.ok(&["start", "-d"]);
            kill_guardian(&host);
            sh(&host, script);
            host.run(&["guardian", "start"]);
            is_ended_and_mended(&host, script);
        }
    }
}

#[test]
fn f1_what_git_does_every_day_ends_no_sandbox() {
    for host in nested() {
        sh(&host, "git worktree add --quiet ../wt; git add husky; git commit --quiet -m husky");
        host.ok(&["start", "-d"]);
        sh(&host, "git worktree remove ../wt; git worktree add --quiet ../wt7; git worktree remove ../wt7");
        sh(
            &host,
            "git gc --quiet --prune=now; git pack-refs --all; git branch other; git checkout --quiet other",
        );
        sh(&host, "git commit --quiet --allow-empty -m more; git tag t; git stash list; git -C sub status");
        inside(&host, "(echo evil >> .git/config) 2>/dev/null && echo written; echo up", "up\n");
        let audit = host.ok(&["audit"]);
        assert!(!audit.contains("ended: "), "{audit}");
        host.ok(&["stop"]);
    }
}
