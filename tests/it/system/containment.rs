//! What a sandbox can't see, change or call.

use std::fs;
use std::path::Path;

use crate::harness::Host;

#[track_caller]
fn inside(host: &Host, script: &str, expected: &str) {
    let done = host.inside(script);
    assert_eq!(done.stdout, expected, "{script}: {done:?}");
}

#[test]
fn a_key_in_the_hosts_home_cannot_be_found() {
    for host in Host::both() {
        host.write(&host.path("home/.ssh/id_ed25519"), "CANARY-PRIVATE-KEY");
        host.write(&host.path("home/other/.env"), "CANARY-PRIVATE-KEY");
        let search = "find / -xdev -name id_ed25519 2>/dev/null; \
                      find / -name '.ssh' 2>/dev/null; \
                      grep -rl CANARY-PRIVATE-KEY /home /work /tmp /run /var /etc /dev/shm 2>/dev/null; \
                      ls /root 2>/dev/null; ls /home";
        inside(&host, search, "cloister\n");
    }
}

#[test]
fn the_environment_starts_empty() {
    for host in Host::both() {
        let mut command = host.cloister(&["start", "--", "env"]);
        command.env("SECRET_OF_THE_HOST", "CANARY").env("AWS_SECRET_ACCESS_KEY", "CANARY");
        let done = crate::harness::finish(command);
        assert!(!done.stdout.contains("CANARY"), "{done:?}");
        let mut names: Vec<_> =
            done.stdout.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
        names.sort_unstable();
        let expected = [
            "ALL_PROXY",
            "CLOISTER",
            "CLOISTER_GUARDIAN_HOST",
            "CLOISTER_NAME",
            "CLOISTER_PROJECT",
            "CLOISTER_TOKEN",
            "HOME",
            "HTTPS_PROXY",
            "HTTP_PROXY",
            "LANG",
            "LOGNAME",
            "NODE_USE_ENV_PROXY",
            "NO_PROXY",
            "PATH",
            "PWD",
            "SHELL",
            "TERM",
            "TMPDIR",
            "USER",
            "all_proxy",
            "http_proxy",
            "https_proxy",
            "no_proxy",
        ];
        let unexpected: Vec<_> = names.iter().filter(|name| !expected.contains(name)).collect();
        assert!(unexpected.is_empty(), "{unexpected:?}");
    }
}

#[test]
fn configured_variables_are_passed_and_set() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.configure("env:\n  pass: [EDITOR]\n  set: {GREETING: hello}\n");
    let mut command = host.cloister(&["start", "--", "sh", "-c", "echo $EDITOR $GREETING"]);
    command.env("EDITOR", "vi");
    assert_eq!(crate::harness::finish(command).stdout, "vi hello\n");
}

#[test]
fn k9_no_capability_no_new_privilege_no_name_space() {
    for host in Host::both() {
        inside(
            &host,
            "grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'",
            "CapInh:0000000000000000\nCapPrm:0000000000000000\nCapEff:0000000000000000\n\
             CapBnd:0000000000000000\nCapAmb:0000000000000000\nNoNewPrivs:1\nSeccomp:2\n",
        );
        inside(
            &host,
            "unshare -U true 2>/dev/null; echo $?; unshare -rm true 2>/dev/null; echo $?",
            "1\n1\n",
        );
    }
}

#[test]
fn every_name_space_is_its_own() {
    for host in Host::both() {
        for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
            let link = format!("/proc/self/ns/{kind}");
            let outside = fs::read_link(&link).unwrap();
            let done = host.inside(&format!("readlink {link}"));
            assert!(done.stdout.starts_with(kind), "{done:?}");
            assert_ne!(done.stdout.trim(), outside.to_str().unwrap());
        }
    }
}

#[test]
fn k7_kernel_settings_cannot_be_written_and_sensitive_files_not_read() {
    for host in Host::both() {
        // The value that is there already: a hole would change nothing.
        let value = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
        host.write(&host.repository().join("value"), value);
        inside(
            &host,
            "for file in /proc/sys/kernel/core_pattern /proc/sysrq-trigger; do \
               test -e $file || continue; (cat /work/value > $file) 2>/dev/null && echo written $file; done; \
             for file in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug; do \
               test -s $file && cat $file >/dev/null 2>&1 && echo read $file; done; echo done",
            "done\n",
        );
    }
}

#[test]
fn the_system_is_read_only_and_scratch_is_private() {
    for host in Host::both() {
        inside(
            &host,
            "for place in / /usr /usr/bin /etc /run /run/cloister /run/cloister/bin /proc/sys/kernel; do \
               touch $place/canary 2>/dev/null && echo wrote $place; done; \
             for place in /tmp /var/tmp /work ~ /dev/shm; do touch $place/canary || echo refused $place; done",
            "",
        );
        assert!(!Path::new("/tmp/canary").exists() && !Path::new("/var/tmp/canary").exists());
        assert!(host.repository().join("canary").exists());
    }
}

/// Tries to plant what the host's git would execute or obey; prints what could be done.
const PLANT: &str = "\
    try() { eval \"$1\" 2>/dev/null && echo \"$1\"; }
    try 'git config core.pager evil'
    try 'echo evil > .git/hooks/pre-commit'
    try 'mv .git/hooks .git/other'
    try 'rm -r .git/hooks'
    try 'echo evil > .git/config.worktree'
    try 'echo ../.evil > .git/commondir'
    try 'rm .git/commondir'
    try 'mv .git .other'
    git -c user.name=n -c user.email=e@example.com commit --quiet --allow-empty -m works
    git branch next && git stash list && git gc --quiet && git worktree list | wc -l
    git log --format=%s";

#[test]
fn f1_f2_f3_the_repositorys_hooks_and_settings_are_read_only_also_when_absent() {
    for host in Host::both() {
        let git = host.repository().join(".git");
        let before = entries(&git);
        inside(&host, PLANT, "1\nworks\n");
        host.ok(&["stop"]);
        fs::remove_dir_all(git.join("hooks")).unwrap();
        inside(&host, PLANT.replace("next", "third").as_str(), "1\nworks\nworks\n");
        host.ok(&["stop"]);
        let left: Vec<_> = entries(&git).into_iter().filter(|name| !before.contains(name)).collect();
        // What git itself made inside.
        let of_git = ["COMMIT_EDITMSG", "ORIG_HEAD", "index", "logs", "packed-refs"];
        assert!(left.iter().all(|name| of_git.contains(&name.as_str())), "{left:?}");
        assert!(!git.join("hooks").exists(), "a placeholder is left");
    }
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn f3_what_a_sandbox_did_to_its_repository_does_not_choose_what_the_next_one_sees() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.write(&host.path("home/.ssh/id_ed25519"), "CANARY");
    // As if a sandbox of an older version had done it.
    let config = host.repository().join(".git/config");
    let text = fs::read_to_string(&config).unwrap();
    host.write(&config, format!("{text}[core]\n\tworktree = {}\n", host.path("home/.ssh").display()));
    let done = host.run(&["start", "--", "ls", "/work"]);
    assert_eq!((done.code, done.stdout.as_str()), (125, ""), "{done:?}");
    assert!(done.stderr.contains("do not name each other"), "{done:?}");
}

#[test]
fn k4_descriptors_of_the_calling_shell_stay_outside() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let script = format!(
        "exec 9<{home}; exec 8>{home}/out; exec {binary} start -- sh -c 'ls /proc/self/fd; ls /proc/self/fd/9'",
        home = host.home().display(),
        binary = host.binary().display()
    );
    let mut command = host.program("bash");
    command.args(["-c", &script]);
    let done = crate::harness::finish(command);
    // The last one is the directory that `ls` reads.
    assert_eq!(done.stdout, "0\n1\n2\n3\n", "{done:?}");
    let status = host.ok(&["guardian", "status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let open = fs::read_dir(format!("/proc/{}/fd", status[0]["pid"])).unwrap();
    let leaked =
        open.filter(|entry| fs::read_link(entry.as_ref().unwrap().path()).is_ok_and(|to| to == host.home()));
    assert_eq!(leaked.count(), 0, "the guardian holds the shell's directory");
}

#[test]
fn i3_the_first_process_shows_nothing() {
    for host in Host::both() {
        inside(
            &host,
            "cat /proc/1/environ 2>/dev/null && echo environ; for fd in /proc/1/fd/*; do readlink $fd && echo fd; done; \
             cat /proc/1/maps 2>/dev/null && echo maps; grep -a -c TOKEN /proc/1/cmdline",
            "0\n",
        );
        let token = host.inside("echo $CLOISTER_TOKEN").stdout.trim().to_owned();
        assert_eq!(token.len(), 64);
        assert_token_is_hidden(&host, &token);
    }
}

/// Looks for a token in every process's argument list and in every file of the host's.
fn assert_token_is_hidden(host: &Host, token: &str) {
    for entry in fs::read_dir("/proc").unwrap() {
        let arguments = fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&arguments).contains(token), "a token in an argument list");
    }
    let mut grep = crate::harness::plain("grep");
    grep.args(["-r", "-l", token]).arg(host.home());
    assert_eq!(crate::harness::finish(grep).stdout, "", "a token on the disk");
}

#[test]
fn i1_the_control_plane_is_out_of_reach() {
    for host in Host::both() {
        host.ok(&["start", "-d"]);
        let runtime = host.runtime();
        inside(
            &host,
            &format!(
                "ls {} 2>/dev/null; find / -name control.sock -o -name control.key -o -name executor.sock 2>/dev/null; \
                 find / -type s 2>/dev/null",
                runtime.display()
            ),
            "/run/cloister/proxy.sock\n/run/cloister/request.sock\n",
        );
    }
}

/// Calls the kernel from inside; the answer is the error's number, or 0.
const PROBE: &str = r"
sub probe { my ($name, $number, @with) = @_; $! = 0; my $result = syscall($number, @with); printf qq(%s %d\n), $name, $result < 0 ? $! + 0 : 0; }
my $buffer = chr(0) x 256;
probe('keyctl', 250, 0, -3, 0); probe('add_key', 248, $buffer, $buffer, 0, 0, 0);
probe('io_uring_setup', 425, 1, $buffer); probe('bpf', 321, 0, $buffer, 0);
probe('perf_event_open', 298, $buffer, 0, -1, -1, 0); probe('userfaultfd', 323, 0);
probe('open_by_handle_at', 304, -1, $buffer, 0); probe('setns', 308, -1, 0);
probe('mount', 165, $buffer, $buffer, $buffer, 0, 0); probe('umount2', 166, $buffer, 0);
probe('unshare', 272, 0x10000000); probe('clone3', 435, $buffer, 0);
probe('process_vm_readv', 310, 1, 0, 0, 0, 0, 0); probe('pidfd_getfd', 438, -1, 0, 0);
probe('init_module', 175, $buffer, 0, $buffer);
probe('packet', 41, 17, 3, 0); probe('vsock', 41, 40, 1, 0); probe('raw', 41, 2, 3, 1);
probe('netlink_audit', 41, 16, 3, 9); probe('alg', 41, 38, 5, 0);
probe('tiocsti', 16, 0, 0x5412, $buffer); probe('tiocsti_high', 16, 0, 0x100005412, $buffer);
probe('tioclinux', 16, 0, 0x541C, $buffer); probe('x32_getpid', 0x40000000 + 39);
probe('inet', 41, 2, 1, 0); probe('unix', 41, 1, 1, 0); probe('netlink_route', 41, 16, 3, 0);
";

const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

#[test]
fn k4_k5_k6_k8_f16_t2_dangerous_calls_are_refused_and_needed_ones_are_not() {
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    let refused = [
        "keyctl",
        "add_key",
        "io_uring_setup",
        "bpf",
        "perf_event_open",
        "userfaultfd",
        "open_by_handle_at",
        "setns",
        "mount",
        "umount2",
        "unshare",
        "process_vm_readv",
        "pidfd_getfd",
        "init_module",
        "packet",
        "vsock",
        "raw",
        "netlink_audit",
        "alg",
        "tiocsti",
        "tiocsti_high",
        "tioclinux",
    ];
    for host in Host::both() {
        let done = host.run(&["start", "--", "perl", "-e", PROBE]);
        let mut expected: Vec<String> = refused.iter().map(|name| format!("{name} {EPERM}")).collect();
        expected.extend(["clone3", "x32_getpid"].map(|name| format!("{name} {ENOSYS}")));
        expected.extend(["inet", "unix", "netlink_route"].map(|name| format!("{name} 0")));
        let mut seen: Vec<String> = done.stdout.lines().map(str::to_owned).collect();
        expected.sort();
        seen.sort();
        assert_eq!(seen, expected, "{done:?}");
    }
}

#[test]
fn names_users_and_certificates_are_known_inside() {
    let Some(host) = Host::with_bubblewrap() else { return };
    inside(
        &host,
        "id -un; getent hosts cloister-guardian | awk '{print $1}'; hostname",
        "cloister\n127.0.0.1\ndemo\n",
    );
    inside(
        &host,
        "test -d /etc/ssl/certs && echo certificates; test ! -e /etc/ssl/private && echo no keys",
        "certificates\nno keys\n",
    );
}

#[test]
fn in_the_tier_none_nothing_answers_and_nothing_speaks_of_a_way_out() {
    for host in Host::both() {
        let script = "env | grep -ci -e proxy -e token -e guardian; ls /run/cloister; \
                      for port in 3128 9996 9998; do (: < /dev/tcp/127.0.0.1/$port) 2>/dev/null && echo $port; done; \
                      ls /proc/net/unix >/dev/null; grep -c cloister /proc/net/unix";
        let done = host.run(&["start", "--network", "none", "--", "bash", "-c", script]);
        // One socket remains: the first process's own, which has no path inside and no one can connect to.
        assert_eq!(done.stdout, "0\nbin\n0\n", "{done:?}");
        let listed: serde_json::Value = serde_json::from_str(&host.ok(&["--json", "list"])).unwrap();
        assert_eq!(listed[0]["network"], "none");
        let other = host.run(&["start", "--", "true"]);
        assert_eq!(other.code, 125, "{other:?}");
        assert!(other.stderr.contains("is running with network `none`, not `guarded`"), "{other:?}");
        assert!(other.stderr.contains("cloister stop demo"), "{other:?}");
        host.ok(&["stop"]);
        host.configure("network: none\n");
        assert_eq!(host.inside("env | grep -c CLOISTER_TOKEN").stdout, "0\n");
    }
}

#[test]
fn a_tier_that_is_not_there_is_refused() {
    let Some(host) = Host::with_bubblewrap() else { return };
    for tier in ["inet", "full"] {
        let done = host.run(&["start", "--network", tier]);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.stderr.contains(&format!("this version has no network tier `{tier}`")), "{done:?}");
    }
    assert_eq!(host.run(&["start", "--network", "some"]).code, 2);
}

#[test]
fn f2_what_the_host_replaces_is_read_only_again_at_once() {
    for host in Host::both() {
        host.write(&host.repository().join(".envrc"), "one");
        host.ok(&["start", "-d"]);
        for records in 1..3 {
            let new = host.repository().join("new");
            host.write(&new, format!("two {records}"));
            fs::rename(&new, host.repository().join(".envrc")).unwrap();
            // The record is written when the seal is back.
            while host.ok(&["audit"]).matches("sandbox.reseal").count() < records {}
            let script = "cat .envrc; (echo evil >> .envrc) 2>/dev/null && echo written; \
                          mv .envrc .x 2>/dev/null && echo moved";
            inside(&host, script, &format!("two {records}"));
        }
    }
}

#[test]
fn f2_the_hosts_git_cannot_be_made_to_write_settings_for_a_sandbox() {
    for host in Host::both() {
        let settings = host.repository().join(".git/config");
        let before = fs::read(&settings).unwrap();
        let config = |host: &Host| {
            let mut git = host.program("git");
            git.args(["config", "demo.key", "value"]);
            crate::harness::finish(git)
        };
        // A sandbox that waits for the moment in which git on the host replaces the file, or writes beside it.
        let script = "(while :; do echo '# evil' >> .git/config; echo '# evil' >> .git/config.lock; done) 2>/dev/null & \
                      sleep 0.1";
        host.inside(script);
        for _ in 0..20 {
            let done = config(&host);
            assert_eq!(done.code, 255, "{done:?}");
            assert!(done.stderr.contains("could not lock config file"), "{done:?}");
        }
        assert_eq!(fs::read(&settings).unwrap(), before);
        host.ok(&["stop"]);
        assert_eq!(config(&host).code, 0);
        assert!(!fs::read_to_string(&settings).unwrap().contains("evil"));
    }
}

/// Everything below a directory of the host that runs as whom it belongs to.
fn set_id(host: &Host, directory: &Path) -> String {
    let mut find = host.program("find");
    find.arg(directory).args(["-perm", "/6000"]);
    let done = crate::harness::finish(find);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:?}");
    done.stdout
}

#[test]
fn f12_no_file_runs_on_the_host_as_whom_it_belongs_to() {
    // Every line tries in another way; what it says and how it ends does not matter.
    let ways = "chmod 4755 x; chmod u+s x; chmod g+s x; chmod 6711 d; chmod g+s d; chmod +6000 x \n\
                install -m 4755 /bin/true installed; install -d -m 2755 made; mkdir -m 6755 made-too \n\
                for known in $(find /usr/bin /usr/lib -perm /6000 2>/dev/null); do cp -p $known known; done \n\
                perl -e 'use Fcntl; sysopen(F, \"opened\", O_WRONLY|O_CREAT, 04755); chmod 04755, *F, \"x\"' \n\
                python3 -c 'import os; file = os.open(\".\", os.O_TMPFILE | os.O_RDWR, 0o4755); \
                os.link(f\"/proc/self/fd/{file}\", \"linked\", src_dir_fd=os.open(\"/\", 0))' \n\
                perl -e 'use POSIX; POSIX::mkfifo(\"pipe\", 04755); mkdir \"by-perl\", 06755; POSIX::creat(\"created\", 02755)' \n\
                python3 -c 'import os; os.open(\"by-python\", os.O_RDWR | os.O_CREAT, 0o4755)' \n\
                python3 -c 'import os; os.mknod(\"node\", 0o104755)' \n\
                python3 -c 'import os; os.chmod(\"x\", 0o2755, dir_fd=os.open(\".\", os.O_RDONLY))' \n\
                python3 -c 'import ctypes; c = ctypes.CDLL(None); c.syscall(452, -100, b\"x\", 0o4755, 0)' \n\
                python3 -c 'import ctypes; c = ctypes.CDLL(None); \
                c.syscall(437, -100, b\"how\", (ctypes.c_uint64 * 3)(0o101, 0o4755, 0), 24)' \n";
    for host in Host::both() {
        let done = host.inside(&format!("exec 2>/dev/null; cp /bin/true x; mkdir d; {ways} ls x d"));
        assert_eq!((done.code, done.stdout.as_str()), (0, "x\n\nd:\n"), "{done:?}");
        assert_eq!(set_id(&host, &host.home()), "");
    }
}

#[test]
fn f12_what_carries_no_such_bit_is_made_as_ever() {
    let script = "set -e; umask 022; cp /bin/true x; chmod 755 x; chmod 644 x; chmod u+x,go-w x; stat -c %a x; \
                  mkdir d; mkdir -m 1777 open; stat -c %a d open; install -m 755 /bin/true installed; \
                  tar cf - x d installed | (mkdir t && tar xpf - -C t); stat -c %a t/installed; \
                  mkfifo pipe; stat -c %A pipe; cp -a t copy; \
                  git -c user.name=n -c user.email=e@x init -q r; cd r; cp ../x .; git add x; \
                  git -c user.name=n -c user.email=e@x commit -qm x; rm x; git checkout -q x; stat -c %a x; \
                  python3 -c 'import tempfile; tempfile.TemporaryFile().write(b\"x\")'; \
                  perl -e 'use Fcntl; sysopen(F, \"new\", O_RDWR|O_CREAT, 0750) or die $!'; stat -c %a new";
    for host in Host::both() {
        let done = host.inside(script);
        let expected = "744\n755\n1777\n755\nprw-r--r--\n755\n750\n";
        assert_eq!((done.code, done.stdout.as_str()), (0, expected), "{done:?}");
    }
}
