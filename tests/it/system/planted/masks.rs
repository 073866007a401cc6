//! Secrets in the project are hidden (F15), and so are sockets (K1, K2).

use std::fs;
use std::os::unix::net::UnixListener;

use super::{hosts, inside, sh};

#[test]
fn f15_secrets_are_hidden_and_stay_so() {
    for host in hosts() {
        host.configure("files: {mask: [config/prod.json, secrets, \"!app/.env.test\"]}\n");
        let root = host.repository();
        let files = [
            ".env",
            "app/.env.local",
            "certs/server.key",
            "config/prod.json",
            "secrets/deep/token",
            "app/.env.test",
            ".env.example",
        ];
        for file in files {
            host.write(&root.join(file), "CANARY\n");
        }
        inside(
            &host,
            "grep -rl CANARY /work 2>/dev/null | sort",
            "/work/.env.example\n/work/app/.env.test\n",
        );
        inside(
            &host,
            "cat .env app/.env.local | sort -u; ls -A secrets",
            "# Cloister hides this file from the sandbox (files.mask).\n",
        );
        let uncover = "for file in .env app/.env.local secrets; do rm -rf $file 2>/dev/null; mv $file x 2>/dev/null && echo moved; \
                       (echo x > $file) 2>/dev/null && echo wrote; ln $file y 2>/dev/null; done; umount .env 2>/dev/null; \
                       mv app app2 2>/dev/null && echo moved app; cat app/.env.local; cp -r /work /tmp/w 2>/dev/null; grep -rl CANARY /tmp/w | wc -l";
        inside(&host, uncover, "# Cloister hides this file from the sandbox (files.mask).\n2\n");
        host.ok(&["stop"]);
        for file in files {
            assert_eq!(fs::read_to_string(root.join(file)).unwrap(), "CANARY\n", "{file}");
        }
    }
}

#[test]
fn f15_what_git_keeps_is_shown_and_cannot_be_claimed_to_be_kept() {
    for host in hosts() {
        let root = host.repository();
        host.write(&root.join(".env"), "KNOWN\n");
        host.write(&root.join(".env.local"), "SECRET\n");
        sh(&host, "git add -f .env && git commit --quiet -m env");
        inside(&host, "cat .env; git status --porcelain .env", "KNOWN\n");
        // Git is told that it keeps the file; what it keeps is not what the file holds.
        inside(
            &host,
            "git update-index --add --cacheinfo 100644,$(echo x | git hash-object -w --stdin),.env.local && echo claimed",
            "claimed\n",
        );
        host.ok(&["stop"]);
        inside(&host, "cat .env.local", "# Cloister hides this file from the sandbox (files.mask).\n");
    }
}

#[test]
fn k1_k2_sockets_in_the_project_are_hidden() {
    for host in hosts() {
        let _listener = UnixListener::bind(host.repository().join("daemon.sock")).unwrap();
        let connect = "use IO::Socket::UNIX; print IO::Socket::UNIX->new(Peer => '/work/daemon.sock') ? 'open' : 'closed'";
        inside(&host, &format!("test -S daemon.sock && echo socket; perl -e \"{connect}\""), "closed");
    }
}

const HIDDEN: &str = "# Cloister hides this file from the sandbox (files.mask).\n";

#[test]
fn f15_no_sandbox_uncovers_what_the_next_one_hides() {
    for host in hosts() {
        let root = host.repository();
        for file in ["app/.env", "deep/er/.env", ".env"] {
            host.write(&root.join(file), "CANARY\n");
        }
        inside(
            &host,
            "mv deep/er deep/x 2>/dev/null && echo moved; mv deep x 2>/dev/null && echo moved; chmod 311 app deep; echo done",
            "done\n",
        );
        host.ok(&["stop"]);
        // The host commits what the index names by now.
        sh(&host, "git add -f .env && git commit --quiet -m env");
        let look = "chmod 755 app deep 2>/dev/null; cat app/.env deep/er/.env 2>/dev/null; grep -rl CANARY /work; cat .env";
        let done = host.inside(look);
        assert!(!done.stdout.contains("CANARY") && done.stdout.ends_with(HIDDEN), "{done:?}");
        assert_eq!(done.stdout.matches("/work").count(), 0, "{done:?}");
        host.ok(&["stop"]);
        sh(&host, "chmod 755 app deep");
        inside(&host, "cat app/.env deep/er/.env .env | sort -u", HIDDEN);
        host.ok(&["stop"]);
        host.configure("files: {mask: [\"!.env\"]}\n");
        inside(&host, "cat app/.env deep/er/.env .env | sort -u", "CANARY\n");
        host.ok(&["stop"]);
    }
}

#[test]
fn f15_a_name_that_is_no_text_is_hidden() {
    for host in hosts() {
        sh(
            &host,
            "name=$(printf '.env.\\377'); echo CANARY > $name; dir=$(printf 'a\\377'); mkdir $dir && echo CANARY > $dir/.env",
        );
        inside(&host, "grep -rl CANARY /work; echo done", "done\n");
        host.ok(&["stop"]);
    }
}

#[test]
fn f3_a_git_directory_that_cannot_be_looked_into_is_refused() {
    let Some(host) = hosts().into_iter().next() else { return };
    sh(&host, "mkdir -p .git/worktrees/x && chmod 311 .git/worktrees");
    let done = host.run(&["start", "-d"]);
    assert!(
        done.code == 1 && done.stderr.contains("chmod u+rwx") && done.stderr.contains("worktrees"),
        "{done:?}"
    );
    sh(&host, "chmod 755 .git/worktrees");
}
