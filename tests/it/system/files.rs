//! What a sandbox sees of the host's files: programs, `/etc`, and what the settings share.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::harness::{Done, Host, User, finish};
use crate::requirement;

fn script(host: &Host, below: &str, content: &str) {
    let path = host.path(below);
    host.write(&path, content);
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn link(host: &Host, below: &str, points_to: impl AsRef<Path>) {
    let path = host.path(below);
    // Makes the directories.
    host.write(&path, "");
    fs::remove_file(&path).unwrap();
    symlink(points_to, path).unwrap();
}

#[track_caller]
fn inside(host: &Host, script: &str, expected: &str) {
    let done = host.inside(script);
    assert_eq!(done.stdout, expected, "{script}: {done:?}");
}

/// Checks that a start fails as the user's error, and as a command that never began.
#[track_caller]
fn refused(host: &Host, said: &[&str]) {
    for (arguments, code) in [(&["start", "-d"][..], 1), (&["start", "--", "true"], 125)] {
        let done = host.run(arguments);
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{done:?}");
        for text in said.iter().chain(&["hint: "]) {
            assert!(done.stderr.contains(text), "`{text}` is not said: {done:?}");
        }
    }
    assert_eq!(host.ok(&["list", "--json"]).trim(), "[]");
}

#[test]
fn programs_of_the_users_own_run_inside_and_can_be_written_by_nobody() {
    let Some(host) = Host::with_bubblewrap() else { return };
    // As pipx makes them.
    let environment = "home/.local/share/pipx/venvs/greet";
    script(&host, &format!("{environment}/bin/greet"), "#!/bin/sh\ncat \"${0%/*}/../greeting\"\n");
    host.write(&host.path(&format!("{environment}/pyvenv.cfg")), "home = /usr/bin\n");
    host.write(&host.path(&format!("{environment}/greeting")), "from a virtual environment\n");
    link(&host, &format!("{environment}/bin/python"), "/usr/bin/python3");
    link(&host, "home/.local/bin/greet-link", host.path(&format!("{environment}/bin/greet")));
    script(
        &host,
        "home/.local/bin/greet",
        &format!("#!/bin/sh\nexec {} \"$@\"\n", host.path(environment).join("bin/greet").display()),
    );
    // As npm does.
    let modules = "home/.npm-global/lib/node_modules";
    script(
        &host,
        &format!("{modules}/tool/cli.sh"),
        "#!/bin/sh\ncat \"$(dirname \"$(readlink -f \"$0\")\")/../other/data\"\n",
    );
    host.write(&host.path(&format!("{modules}/other/data")), "from another module\n");
    link(&host, "home/.local/bin/tool", "../../.npm-global/lib/node_modules/tool/cli.sh");
    // As a program does that updates itself.
    script(&host, "home/.local/share/agent/versions/1.0", "#!/bin/sh\necho $0\n");
    link(&host, "home/.local/share/agent/current", "versions/1.0");
    link(&host, "home/.local/bin/agent", host.path("home/.local/share/agent/current"));
    let agent = host.path("home/.local/bin/agent").display().to_string();
    inside(
        &host,
        "greet; tool; agent",
        &format!("from a virtual environment\nfrom another module\n{agent}\n"),
    );
    inside(
        &host,
        "cd $(dirname $(readlink -f $(command -v tool))); touch x 2>/dev/null || echo closed",
        "closed\n",
    );
    inside(&host, &format!("(echo >> {agent}) 2>/dev/null || echo closed"), "closed\n");
}

#[test]
fn further_directories_of_path_keep_the_hosts_order() {
    let Some(host) = Host::with_bubblewrap() else { return };
    script(&host, "home/.nvm/v1/bin/which-one", "#!/bin/sh\necho first\n");
    fs::create_dir(host.path("home/.nvm/v1/lib")).unwrap();
    script(&host, "tools/bin/which-one", "#!/bin/sh\necho second\n");
    script(&host, "tools/bin/only", "#!/bin/sh\necho only\n");
    let path = format!(
        "{}:{}:/usr/bin:/bin",
        host.path("home/.nvm/v1/bin").display(),
        host.path("tools/bin").display()
    );
    let mut command = host.cloister(&["start", "--", "sh", "-c", "which-one; only; echo $PATH"]);
    command.env("PATH", &path);
    let done = finish(command);
    let expected = format!(
        "first\nonly\n/home/cloister/.local/bin:/run/cloister/bin:{path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin\n"
    );
    let expected = expected.replace(
        ":/usr/bin:/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin",
        ":/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin",
    );
    assert_eq!(done.stdout, expected, "{done:?}");
}

#[test]
fn f14_a_sandbox_chooses_no_program_of_the_next_one() {
    let Some(host) = Host::with_bubblewrap() else { return };
    script(&host, "home/demo/planted", "#!/bin/sh\necho planted\n");
    host.write(&host.path("home/.ssh/key"), "CANARY");
    script(&host, "home/.ssh/helper", "#!/bin/sh\necho helper\n");
    link(&host, "home/.local/bin/planted", host.path("home/demo/planted"));
    link(&host, "home/.local/bin/helper", host.path("home/.ssh/helper"));
    inside(&host, "command -v planted helper; ls -d /tmp/cl*; find / -name '.ssh' 2>/dev/null", "");
}

#[test]
fn references_are_read_only_and_show_no_passwords() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.write(&host.path("home/repos/shared-lib/file"), "shared\n");
    let config = host.path("home/repos/shared-lib/.git/config");
    host.write(&config, "[remote \"origin\"]\n\turl = https://me:CANARY@example.com/x\n");
    host.configure("refs: [~/repos/shared-lib]\n");
    inside(
        &host,
        "cat /refs/shared-lib/file; touch /refs/shared-lib/x 2>/dev/null || echo closed; \
         grep -r CANARY /refs; rm -rf /refs/shared-lib 2>/dev/null; ls /refs",
        "shared\nclosed\nshared-lib\n",
    );
    assert!(fs::read_to_string(config).unwrap().contains("CANARY"));
}

#[test]
fn mounts_are_seen_where_the_settings_say() {
    let Some(host) = Host::with_bubblewrap() else { return };
    for (below, content) in [
        ("home/data/file", "data\n"),
        ("home/models/file", "models\n"),
        ("home/in-work/file", "in work\n"),
        ("home/demo/point/hidden", ""),
    ] {
        host.write(&host.path(below), content);
    }
    host.configure(
        "mounts:\n  - {source: ~/data, target: /data, mode: rw}\n  - {source: ~/models, target: /opt/models}\n\
         \x20 - {source: ~/in-work, target: /work/point}\n  - {source: ~/models, target: /home/cloister/models/here}\n",
    );
    inside(
        &host,
        "cat /data/file /opt/models/file /work/point/* ~/models/here/file; echo new > /data/new; \
         for place in /opt/models /work/point ~/models/here; do touch $place/x 2>/dev/null || echo closed; done",
        "data\nmodels\nin work\nmodels\nclosed\nclosed\nclosed\n",
    );
    assert_eq!(fs::read_to_string(host.path("home/data/new")).unwrap(), "new\n");
    let plan = host.ok(&["start", "--dry-run"]);
    let models = host.path("home/models").display().to_string();
    assert!(plan.contains(&format!("--ro-bind {models} /opt/models")), "{plan}");
}

#[test]
fn f1_the_git_data_of_a_writable_mount_is_closed() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.write(&host.path("home/other/.git/hooks/sample"), "");
    host.configure("mounts: [{source: ~/other, target: /other, mode: rw}]\n");
    inside(
        &host,
        "touch /other/file && echo open; touch /other/.git/hooks/post-commit 2>/dev/null || echo closed; \
         mv /other/.git /other/x 2>/dev/null || echo kept",
        "open\nclosed\nkept\n",
    );
}

#[test]
fn f3_a_repository_below_a_writable_mount_stays_where_it_is_sealed() {
    let Some(ordinary) = Host::with_bubblewrap() else { return };
    let hosts = rustix::process::geteuid().is_root().then(|| Host::new(User::Same));
    for host in [ordinary].into_iter().chain(hosts) {
        let git = host.path("home/data/group/lib/.git");
        host.write(&git.join("hooks/sample"), "");
        host.write(&host.path("home/data/1/2/3/4/5/6/7/8/file"), "");
        host.configure("mounts: [{source: ~/data, target: /data, mode: rw}]\n");
        inside(
            &host,
            "cd /data; for one in group group/lib; do for to in 1/2/3/4/5/6/7/8/moved group/moved moved; do \
             perl -e 'exit !rename $ARGV[0], $ARGV[1]' $one $to || echo kept; done; done; \
             rm -r group 2>/dev/null || echo kept; \
             mkdir group/new && mv group/new group/lib/new && echo x > group/lib/new/file && echo open",
            "kept\nkept\nkept\nkept\nkept\nkept\nkept\nopen\n",
        );
        host.ok(&["stop"]);
        inside(
            &host,
            "find /data -name hooks; find /data -name hooks -exec touch {}/post-commit \\; 2>/dev/null; true",
            "/data/group/lib/.git/hooks\n",
        );
        assert!(git.join("hooks/sample").exists() && !git.join("hooks/post-commit").exists());
    }
}

#[test]
fn f3_a_writable_mount_is_refused_where_a_repository_could_hide() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.write(&host.path("home/data/file"), "");
    host.configure("mounts: [{source: ~/data, target: /data, mode: rw}]\n");
    inside(&host, "mkdir -p /data/closed/inner; chmod 0 /data/closed; echo done", "done\n");
    host.ok(&["stop"]);
    refused(&host, &["home/data/closed` cannot be read, and a repository may lie there", "`mode: ro`"]);
    fs::set_permissions(host.path("home/data/closed"), fs::Permissions::from_mode(0o755)).unwrap();
    let deep = "/d".repeat(70);
    host.write(&host.path(&format!("home/data/closed{deep}/file")), "");
    refused(&host, &["was not looked through, and a repository may lie there", "`mode: ro`"]);
    host.configure("mounts: [{source: ~/data, target: /data}]\n");
    inside(&host, "cat /data/file; echo seen", "seen\n");
}

#[test]
fn everything_that_cannot_be_shared_is_named_at_once() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.write(&host.path("home/.ssh/id"), "");
    host.write(&host.path("home/a/lib/file"), "");
    host.write(&host.path("home/b/lib/file"), "");
    host.write(&host.path("home/.local/bin/tool"), "");
    host.configure(
        "refs: [~/missing, ~/a/lib, ~/b/lib]\nmounts:\n  - {source: ~/also-missing, target: /data}\n\
         \x20 - {source: ~/.ssh, target: /keys}\n  - {source: ~/, target: /host}\n  - {source: /, target: /all}\n\
         \x20 - {source: /run, target: /mnt/run}\n  - {source: /dev/null, target: /mnt/null}\n\
         \x20 - {source: ~/a, target: /usr/a}\n  - {source: ~/a, target: /work/none}\n\
         \x20 - {source: ~/.local/bin, target: /mnt/bin, mode: rw}\n  - {source: ~/demo, target: /mnt/demo}\n",
    );
    refused(
        &host,
        &[
            "cannot share what `mounts` and `refs` name\n",
            "home/missing` does not exist\n",
            "home/also-missing` does not exist\n",
            "home/b/lib` would be seen at `/refs/lib`, and so would something else",
            "home/.ssh`, where keys or credentials lie",
            "overlaps Cloister's own `",
            "`/run` overlaps `/run`, where the kernel",
            "`/dev/null` is a socket, a device or a pipe",
            "cannot be seen at `/usr/a`: `/usr` is the sandbox's own",
            "cannot be seen at `/work/none`",
            "cannot be read-write: programs of the host are started from",
            "overlaps the project",
        ],
    );
}

#[test]
fn k1_a_socket_deep_in_a_shared_directory_is_named() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.write(&host.path("home/service/run/file"), "");
    let socket = host.path("home/service/run/docker.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    host.configure("refs: [~/service]\n");
    refused(&host, &[socket.to_str().unwrap(), "who connects to it leaves the sandbox"]);
}

#[test]
fn i1_homes_of_other_cloisters_and_tokens_are_not_shared() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.write(&host.path("home/.local/share/cloister/instances/other/home/file"), "");
    fs::set_permissions(host.path("home/.local/share/cloister"), fs::Permissions::from_mode(0o700)).unwrap();
    host.configure("refs: [~/.local/share/cloister/instances/other/home]\n");
    refused(&host, &["overlaps Cloister's own"]);
    host.configure(
        "mounts: [{source: ../bin, target: /mnt/bin}]\n"
            .replace("..", host.path("").to_str().unwrap())
            .as_str(),
    );
    refused(&host, &["overlaps Cloister's own"]);
}

#[test]
fn f10_a_link_that_a_sandbox_laid_is_not_followed_by_the_next() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.write(&host.path("home/data/file"), "");
    host.inside("ln -s /etc ~/place; ln -s /etc /work/place");
    host.ok(&["stop"]);
    for place in ["/home/cloister/place", "/work/place"] {
        host.configure(&format!("mounts: [{{source: ~/data, target: {place}, mode: rw}}]\n"));
        refused(&host, &[&format!("cannot be seen at `{place}`"), "no link"]);
    }
}

#[test]
fn tools_that_are_not_in_the_store_are_named() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let tool = "/nix/store/00000000000000000000000000000000-nothing-1.0";
    host.configure(&format!("tools: [{tool}]\n"));
    refused(&host, &["names what is not in the Nix store", tool, "nix-store --realise"]);
}

#[test]
fn chosen_tools_show_their_part_of_the_store_alone() {
    let Some(mut host) = Host::with_bubblewrap() else { return };
    let entries = fs::read_dir("/nix/store").into_iter().flatten().flatten();
    let mut names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    // What is built from many others needs many mounts.
    let Some(name) = names.find(|name| Path::new(name).extension().is_some_and(|kind| kind == "drv")) else {
        return requirement::skip("nix-store", "nothing lies in `/nix/store`");
    };
    if rustix::process::geteuid().is_root() {
        host = Host::new(User::Same);
    }
    let tool = format!("/nix/store/{name}");
    let mut query = host.program("nix-store");
    query.args(["--query", "--requisites", &tool]);
    let known = finish(query);
    if known.code != 0 {
        return requirement::skip("nix-store", "this user may not ask the Nix store");
    }
    let mut expected: Vec<&str> = known.stdout.lines().collect();
    expected.sort_unstable();
    host.configure(&format!("tools: [{tool}]\n"));
    inside(&host, "ls -d /nix/store/*", &format!("{}\n", expected.join("\n")));
}

/// Runs each of the programs that the host has, and compares what they say.
#[track_caller]
fn programs(host: &Host, cases: &[(&str, &str, &str)]) {
    for (program, command, expected) in cases {
        let search = ["/usr/local/bin", "/usr/bin", "/bin"];
        if !search.iter().any(|directory| Path::new(directory).join(program).exists()) {
            requirement::skip(program, &format!("there is no `{program}`"));
            continue;
        }
        let Done { stdout, stderr, .. } = host.inside(command);
        assert_eq!((stdout.trim_end(), stderr.as_str()), (*expected, ""), "{command}");
    }
}

#[test]
fn etc_is_complete_enough_for_common_programs() {
    let Some(host) = Host::with_bubblewrap() else { return };
    programs(
        &host,
        &[
            ("id", "id -un; id -gn", "cloister\ncloister"),
            ("whoami", "whoami", "cloister"),
            ("getent", "getent passwd cloister", "cloister:x:1000:1000:cloister:/home/cloister:/bin/bash"),
            ("getent", "getent hosts cloister-guardian", "127.0.0.1       localhost cloister-guardian demo"),
            ("locale", "locale -a | grep -c '^C'", "2"),
            (
                "bash",
                "PS1=x bash -lc 'echo ${PATH%%:*}; cat /etc/machine-id; grep -q tmpfs /etc/mtab && echo mounted'",
                "/home/cloister/.local/bin\nc1015e00000040008000000000000001\nmounted",
            ),
            (
                "python3",
                "python3 -c 'import locale, os, ssl; locale.setlocale(locale.LC_ALL, \"\"); \
                print(len(ssl.create_default_context().get_ca_certs()) > 9, os.cpu_count() > 0)'",
                "True True",
            ),
            ("node", "node -e 'console.log(require(\"os\").cpus().length > 0)'", "true"),
            ("perl", "perl -MPOSIX -e 'print POSIX::strftime(\"%Y\", gmtime 0)'", "1970"),
            (
                "gcc",
                "echo 'int main(void) { return 0; }' > /tmp/a.c && gcc -o /tmp/a /tmp/a.c && /tmp/a && echo built",
                "built",
            ),
            ("openssl", "openssl version -d > /dev/null && echo settings", "settings"),
            ("date", "TZ=UTC date -d @0 +%F", "1970-01-01"),
            ("ls", "ls -l /dev/stdin /dev/fd | wc -l; test -w /dev/shm && echo shared", "2\nshared"),
        ],
    );
    // What may hold passwords stays outside.
    inside(
        &host,
        "cd /etc; ls -d shadow sudoers gitconfig npmrc pip.conf apt environment 2>/dev/null; ls ssh",
        "ssh_config\n",
    );
}

#[test]
fn a_wheel_is_installed_from_a_directory() {
    let Some(host) = Host::with_bubblewrap() else { return };
    if !Path::new("/usr/lib/python3/dist-packages/pip").exists() {
        return requirement::skip("pip", "there is no `pip`");
    }
    let make = "import zipfile; w = zipfile.ZipFile(\"/tmp/hi-1-py3-none-any.whl\", \"w\"); \
        w.writestr(\"hi.py\", \"print(7)\"); d = \"hi-1.dist-info/\"; \
        w.writestr(d + \"METADATA\", \"Metadata-Version: 2.1\\nName: hi\\nVersion: 1\\n\"); \
        w.writestr(d + \"WHEEL\", \"Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n\"); \
        w.writestr(d + \"RECORD\", \"\"); w.close()";
    inside(
        &host,
        &format!(
            "python3 -c '{make}' && python3 -m pip install --quiet --user --break-system-packages --no-index \
             --find-links /tmp hi && python3 -m hi"
        ),
        "7\n",
    );
}
