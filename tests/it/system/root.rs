//! Sandboxes that root starts: whose their processes and files are on the host, and where that can't be had.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Done, Host, User, finish, plain};
use crate::requirement;

/// Who the processes are on the host.
const PAYLOAD: &str = "2000000\t2000000\t2000000\t2000000";
/// An owner of projects who is not root.
const OWNER: u32 = 1000;

/// A host whose user is root.
fn root() -> Option<Host> {
    if !rustix::process::geteuid().is_root() {
        requirement::skip("bubblewrap", "only root can start what root starts");
        return None;
    }
    Host::with_bubblewrap().map(|_| Host::new(User::Same))
}

/// A host whose user is root and whose project is not.
fn of_another_owner() -> Option<Host> {
    let host = root()?;
    host.write(&host.path("home/.gitconfig"), "[safe]\n\tdirectory = *\n");
    let mut command = plain("chown");
    command.args(["-R", &format!("{OWNER}:{OWNER}")]).arg(host.repository());
    assert_eq!(finish(command).code, 0);
    Some(host)
}

#[track_caller]
fn inside(host: &Host, script: &str, expected: &str) {
    let done = host.inside(script);
    assert_eq!((done.code, done.stdout.as_str()), (0, expected), "{script}: {done:?}");
}

/// The number of a process in the receipt of the host's sandbox.
fn process(host: &Host, which: &str) -> i32 {
    let receipt = fs::read(host.path("home/.local/state/cloister/receipts/demo.json")).unwrap();
    let receipt: serde_json::Value = serde_json::from_slice(&receipt).unwrap();
    i32::try_from(receipt[which]["pid"].as_i64().unwrap()).unwrap()
}

/// Lines of `/proc/PID/status`, by name.
fn status(pid: i32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(&format!("{name}:\t"))).unwrap().trim().to_owned()
}

/// Every process of the host's sandbox, as the host numbers them.
fn processes(host: &Host) -> Vec<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(process(host, "first"));
    let entries =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    entries.filter_map(|name| name.parse().ok()).filter(|pid| namespace(*pid) == own).collect()
}

fn owner(path: &Path) -> (u32, u32) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid())
}

/// Everything below a directory.
fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found
}

fn mounts() -> Vec<String> {
    let mut mounts: Vec<_> =
        fs::read_to_string("/proc/self/mountinfo").unwrap().lines().map(str::to_owned).collect();
    mounts.sort();
    mounts
}

/// Runs `cloister` behind shell commands in a mount table of the test's own.
fn after(host: &Host, preparation: &str, arguments: &str) -> Done {
    let mut command = host.program("unshare");
    let script = format!("{preparation} && exec {} {arguments}", host.binary().display());
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    finish(command)
}

#[track_caller]
fn refused(host: &Host, done: &Done, code: i32, reason: &str) {
    assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{done:?}");
    for text in ["as root, the sandbox's processes would be root's", reason, "`--allow-root`"] {
        assert!(done.stderr.contains(text), "{text}: {done:?}");
    }
    // What remains is the lock under which it was looked.
    let left: Vec<_> = [
        ".local/share",
        ".local/state/cloister/receipts",
        ".local/state/cloister/run/s",
        ".config/cloister/tokens",
        "demo/.git/commondir",
        "demo/.git/config.worktree",
    ]
    .into_iter()
    .filter(|name| host.home().join(name).exists())
    .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn k9_no_process_is_roots_on_the_host() {
    let Some(host) = root() else { return };
    inside(
        &host,
        "sleep 1000 >/dev/null 2>&1 & id -u; id -g; grep Groups /proc/self/status",
        "1000\n1000\nGroups:\t \n",
    );
    let all = processes(&host);
    assert!(all.len() >= 2, "{all:?}");
    for pid in all.into_iter().chain([process(&host, "monitor")]) {
        assert_eq!((status(pid, "Uid"), status(pid, "Gid")), (PAYLOAD.to_owned(), PAYLOAD.to_owned()));
        assert_eq!(status(pid, "Groups"), "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status(pid, set), "0000000000000000", "{set} of {pid}");
        }
        assert_eq!(status(pid, "NoNewPrivs"), "1");
    }
}

#[test]
fn k7_the_hosts_kernel_settings_can_not_be_opened_for_writing() {
    let Some(host) = root() else { return };
    // Opened and closed, nothing written.
    inside(
        &host,
        "for file in kernel/core_pattern vm/drop_caches kernel/modprobe; do \
           (: >> /proc/sys/$file) 2>/dev/null && echo opened $file; done; true",
        "",
    );
}

#[test]
fn k4_nothing_that_root_opened_or_mounted_is_left_open() {
    let Some(host) = root() else { return };
    host.ok(&["start", "-d"]);
    for which in ["monitor", "first"] {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", process(&host, which))).unwrap();
        for entry in descriptors {
            let leads_to = fs::read_link(entry.unwrap().path()).unwrap();
            let text = leads_to.to_str().unwrap();
            let is_harmless = ["socket:", "pipe:", "anon_inode:[event", "anon_inode:[signalfd"];
            assert!(
                text == "/dev/null" || is_harmless.iter().any(|start| text.starts_with(start)),
                "{which} has {text} open"
            );
        }
    }
}

#[test]
fn files_made_inside_belong_to_the_projects_owner_outside() {
    let Some(host) = of_another_owner() else { return };
    let git = "git -c user.name=n -c user.email=e@example.com";
    inside(
        &host,
        &format!(
            "stat -c '%u %g' . .git ~; touch made ~/made && mkdir -p a/b && ln -s made link && ln made hard && \
             mkfifo pipe && mv made renamed && chmod 600 renamed && {git} add -A . && {git} commit --quiet -m works && \
             {git} gc --quiet && git fsck --strict 2>/dev/null; git log --format=%s"
        ),
        "1000 1000\n1000 1000\n1000 1000\nworks\n",
    );
    host.ok(&["stop"]);
    for path in below(&host.repository()) {
        assert_eq!(owner(&path), (OWNER, OWNER), "{}", path.display());
    }
    let home = host.path("home/.local/share/cloister/instances/demo/home");
    assert_eq!(owner(&home.join("made")), (0, 0), "the home is root's own");
    assert_eq!(fs::metadata(host.repository().join("renamed")).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn files_made_in_a_project_of_roots_belong_to_root() {
    let Some(host) = root() else { return };
    inside(&host, "echo hello > file; stat -c '%u %g' file", "1000 1000\n");
    let file = host.repository().join("file");
    assert_eq!((fs::read_to_string(&file).unwrap().as_str(), owner(&file)), ("hello\n", (0, 0)));
}

#[test]
fn a_setuid_file_is_never_roots_where_the_project_is_not() {
    let Some(host) = of_another_owner() else { return };
    inside(
        &host,
        "cp /bin/true canary; chmod 6755 canary 2>/dev/null; ./canary; stat -c '%u %a' canary",
        "1000 755\n",
    );
    assert_eq!(owner(&host.repository().join("canary")), (OWNER, OWNER));
    for directory in [host.repository(), host.path("home/.local/share/cloister/instances/demo/home")] {
        let roots = |path: &PathBuf| {
            let found = fs::symlink_metadata(path).unwrap();
            found.uid() == 0 && found.mode() & 0o6000 != 0
        };
        assert_eq!(below(&directory).iter().find(|path| roots(path)), None);
    }
}

#[test]
fn files_that_exist_keep_their_owners_and_rights() {
    let Some(host) = of_another_owner() else { return };
    let file = |name: &str, uid: u32, gid: u32, mode: u32| {
        let path = host.repository().join(name);
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        chown(&path, Some(uid), Some(gid)).unwrap();
        path
    };
    let own = file("own", OWNER, OWNER, 0o600);
    let grouped = file("grouped", OWNER, 27, 0o660);
    let roots = file("roots", 0, 0, 0o644);
    let secret = file("secret", 0, 0, 0o600);
    let removed = file("removed", 0, 0, 0o644);
    inside(
        &host,
        "stat -c '%u %g' own grouped roots; echo new > own && echo new > grouped; cat roots; echo; \
         for file in roots secret; do (echo new > $file) 2>/dev/null && echo wrote $file; \
           chmod 777 $file 2>/dev/null && echo changed $file; done; \
         cat secret 2>/dev/null && echo read; chown 0:0 own 2>/dev/null && echo gave away; rm -f removed; true",
        "1000 1000\n1000 65534\n65534 65534\nold\n",
    );
    assert_eq!(fs::read_to_string(own).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(&grouped).unwrap(), "new\n");
    assert_eq!((owner(&grouped), owner(&roots), owner(&secret)), ((OWNER, 27), (0, 0), (0, 0)));
    assert!(!removed.exists(), "its directory is the owner's");
}

#[test]
fn a_project_below_a_closed_directory_of_roots_works() {
    let Some(host) = root() else { return };
    fs::set_permissions(host.home(), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(host.path("bin"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(host.repository(), fs::Permissions::from_mode(0o700)).unwrap();
    inside(&host, "pwd; touch canary && ls ~/.. && ls /tmp", "/work\ncloister\n");
    assert!(host.repository().join("canary").exists());
}

#[test]
fn state_behind_a_link_works() {
    let Some(host) = root() else { return };
    fs::create_dir(host.path("elsewhere")).unwrap();
    symlink(host.path("elsewhere"), host.path("home/.local")).unwrap();
    inside(&host, "touch ~/canary; curl -s -o /dev/null -w '%{http_code}\\n' http://unlisted.test/", "403\n");
    assert!(host.path("elsewhere/share/cloister/instances/demo/home/canary").exists());
}

#[test]
fn a_linked_worktree_commits_to_a_repository_elsewhere() {
    let Some(host) = root() else { return };
    let linked = host.path("home/linked");
    let git = |arguments: &[&str]| {
        let mut command = host.program("git");
        command.args(["-c", "user.name=n", "-c", "user.email=e@example.com"]).args(arguments);
        let done = finish(command);
        assert_eq!(done.code, 0, "{arguments:?}: {done:?}");
        done.stdout
    };
    git(&["commit", "--quiet", "--allow-empty", "-m", "first"]);
    git(&["worktree", "add", "--quiet", linked.to_str().unwrap()]);
    let script = "git -c user.name=n -c user.email=e@example.com commit --quiet --allow-empty -m inside; \
                  (echo evil > $(git rev-parse --git-common-dir)/config) 2>/dev/null && echo evil; true";
    let mut command = host.cloister(&["start", "--", "sh", "-c", script]);
    command.current_dir(&linked);
    let done = finish(command);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:?}");
    assert_eq!(git(&["log", "--format=%s", "linked"]), "inside\nfirst\n");
}

#[test]
fn a_file_system_without_idmaps_is_refused_with_the_reason() {
    let Some(host) = root() else { return };
    let work = host.repository();
    let ramfs = format!("mount -t ramfs none {0} && cd {0} && git init --quiet .", work.display());
    let reason = format!("the file system of `{}` can't be mounted with other owners", work.display());
    refused(&host, &after(&host, &ramfs, "start -d"), 1, &reason);
    refused(&host, &after(&host, &ramfs, "start -- true"), 125, &reason);
    refused(&host, &after(&host, &ramfs, "start --dry-run"), 1, &reason);
    let below = work.join("below");
    let ramfs_below = format!("mkdir -p {0} && mount -t ramfs none {0}", below.display());
    let reason = format!("the file system of `{}` can't be mounted with other owners", below.display());
    refused(&host, &after(&host, &ramfs_below, "start -d"), 1, &reason);
}

#[test]
fn a_file_system_without_idmaps_is_used_with_roots_consent() {
    let Some(host) = root() else { return };
    let ramfs =
        format!("mount -t ramfs none {0} && cd {0} && git init --quiet .", host.repository().display());
    let done = after(&host, &ramfs, "start --allow-root -- sh -c 'id -u; touch canary'");
    assert_eq!((done.code, done.stdout.as_str()), (0, "1000\n"), "{done:?}");
    let note = "the sandbox's processes are root's on this host: the file system of";
    assert!(done.stderr.contains(note), "{done:?}");
    assert_eq!(status(process(&host, "first"), "Uid"), "0\t0\t0\t0");
}

#[test]
fn consent_changes_nothing_where_it_is_not_needed() {
    let Some(host) = root() else { return };
    let done = host.run(&["start", "--allow-root", "--", "id", "-u"]);
    assert_eq!(done, Done { code: 0, stdout: "1000\n".to_owned(), stderr: String::new() });
    assert_eq!(status(process(&host, "first"), "Uid"), PAYLOAD);
}

#[test]
fn a_user_name_space_without_the_numbers_is_refused() {
    let Some(host) = root() else { return };
    let mut command = host.program("unshare");
    command.args(["--user", "--map-root-user", "--mount"]).arg(host.binary()).args(["start", "-d"]);
    refused(&host, &finish(command), 1, "has no uid 2000000");
}

#[test]
fn nothing_shows_in_the_hosts_mount_table_whatever_ends() {
    let Some(host) = root() else { return };
    // Other tests may mount at the same time: only what belongs to this host is compared.
    let directory = host.path("");
    let own = || -> Vec<String> {
        let mine = |line: &String| line.contains(directory.to_str().unwrap()) || line.contains("idmapped");
        mounts().into_iter().filter(mine).collect()
    };
    let staged = || mounts().into_iter().filter(|line| line.contains(" - tmpfs cloister ")).count();
    host.ok(&["start", "-d"]);
    assert_eq!((own(), staged()), (Vec::new(), 0));
    kill_process(Pid::from_raw(process(&host, "monitor")).unwrap(), Signal::KILL).unwrap();
    host.ok(&["stop"]);
    inside(&host, "pwd", "/work\n");
    host.ok(&["stop"]);
    assert_eq!((own(), staged()), (Vec::new(), 0));
}

#[test]
fn a_sandbox_of_roots_lives_like_any_other() {
    let Some(host) = root() else { return };
    assert_eq!(host.ok(&["start", "-d"]), "demo\n");
    let fetch = "curl -s -o /dev/null -w '%{http_code}\\n' http://unlisted.test/";
    inside(&host, fetch, "403\n");
    host.ok(&["guardian", "stop", "--yes"]);
    // The one that was stopped may still be closing its log.
    while host.run(&["guardian", "start"]).code != 0 {}
    assert_eq!(host.ok(&["exec", "demo", "--", "sh", "-c", fetch]), "403\n");
    assert!(host.ok(&["list"]).contains("demo"));
    host.ok(&["stop"]);
    assert_eq!(host.ok(&["list", "--json"]).trim(), "[]");
    inside(&host, fetch, "403\n");
}

#[test]
fn a_dry_run_shows_what_is_laid_out_and_only_for_root() {
    let Some(host) = root() else { return };
    let work =
        format!("/tmp/3 = {} (read-write, its owner seen as uid 2000000)", host.repository().display());
    assert!(host.ok(&["start", "--dry-run"]).lines().any(|line| line == work));
    let shown = |host: &Host| -> serde_json::Value {
        serde_json::from_str(&host.ok(&["start", "--dry-run", "--json"])).unwrap()
    };
    assert!(shown(&host)[0]["stage"].as_array().unwrap().contains(&work.into()));
    let ordinary = Host::new(User::Ordinary);
    assert_eq!(shown(&ordinary)[0]["stage"], serde_json::json!([]));
}

/// Runs a stage by hand, as a shell that has more open and more groups than it needs.
fn stage(host: &Host, source: &Path, argv: &str) -> Done {
    let instructions = serde_json::json!({
        "staged": [{ "source": source, "owned_like": source, "is_writable": true }],
        // Where a sandbox has a pipe, this has the output.
        "report": 1,
        "inherited": [],
    });
    host.write(&host.path("instructions"), instructions.to_string());
    let mut command = host.program("setpriv");
    command.args(["--groups", "0,27", "bash", "-c"]).arg(format!(
        "exec 9<{} 8</etc/shadow; exec {} sandbox-init stage --instructions 9 -- {argv}",
        host.path("instructions").display(),
        host.binary().display()
    ));
    finish(command)
}

#[test]
fn k4_k9_a_stage_gives_up_everything_that_is_roots() {
    let Some(host) = root() else { return };
    let script = "grep -E '^(Uid|Groups|CapPrm|CapEff|CapInh|CapAmb|NoNewPrivs):' /proc/self/status; \
                  ls /proc/self/fd; pwd; ls /tmp; stat -c '%u %A' /tmp/0 /tmp; touch /tmp/0/made; \
                  touch /tmp/canary 2>/dev/null && echo wrote; true";
    let done = stage(&host, &host.repository(), &format!("/bin/sh -c \"{script}\""));
    let none = "0000000000000000";
    let expected = format!(
        "Uid:\t{PAYLOAD}\nGroups:\t \nCapInh:\t{none}\nCapPrm:\t{none}\nCapEff:\t{none}\nCapAmb:\t{none}\n\
         NoNewPrivs:\t1\n0\n1\n2\n3\n/\n0\n2000000 drwxr-xr-x\n0 drwxr-xr-x\n"
    );
    assert_eq!(done, Done { code: 0, stdout: expected, stderr: String::new() });
    assert_eq!(owner(&host.repository().join("made")), (0, 0));
}

#[test]
fn f10_a_stage_follows_no_link_and_reports_why_it_fails() {
    let Some(host) = root() else { return };
    let link = host.path("home/link");
    symlink("/etc", &link).unwrap();
    let done = stage(&host, &link, "/bin/true");
    assert_eq!(done.code, 3, "{done:?}");
    let reported: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(reported["stage"]["Failed"]["action"], "open", "{done:?}");
    let done = stage(&host, &host.repository(), "/no/such/program");
    assert!(done.code == 3 && done.stdout.contains("/no/such/program"), "{done:?}");
}
