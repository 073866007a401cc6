//! `stop` names what has changed of all that the host would execute (F7).

use serde_json::{Value, json};

use super::{hosts, sh};

const CHANGES: &str = "echo 'all: evil' > Makefile; mkdir -p .github/workflows; echo x > .github/workflows/ci.yml; \
                       echo '#!/bin/sh' > tool; chmod +x tool; ln -s /etc/passwd out; git init --quiet nested; \
                       echo x > AGENTS.md; echo x > notes.txt; mkdir $(printf 'a\\033[2Jb') && touch $(printf 'a\\033[2Jb')/setup.py";

#[test]
fn f7_stop_shows_what_the_host_would_execute() {
    for host in hosts() {
        host.write(&host.repository().join("Makefile"), "all:\n");
        host.inside(CHANGES);
        let shown = host.ok(&["stop"]);
        let expected = "\
RANK  CHANGE   PATH                      WHY
1     added    AGENTS.md                 the agent follows its instructions
1     added    nested/.git               a repository of its own: git obeys its settings
2     added    .github/workflows/ci.yml  the forge runs it on a push
2     changed  Makefile                  make runs it
2     added    a\\u{1b}[2Jb/setup.py      Python runs it on installing or testing
3     added    out                       a link that leads out of the project
3     added    tool                      a program
";
        assert_eq!(shown, expected);
        host.inside("true");
        assert_eq!(host.ok(&["stop"]), "", "the next start begins anew");
    }
}

#[test]
fn f7_json_has_every_field() {
    for host in hosts() {
        host.inside("echo x > .npmrc");
        let shown: Value = serde_json::from_str(&host.ok(&["stop", "--json"])).unwrap();
        let why = "the package manager obeys it: registries and programs";
        assert_eq!(
            shown,
            json!([{"cloister": "demo", "rank": 2, "change": "added", "path": ".npmrc", "why": why}])
        );
        host.inside("true");
        assert_eq!(host.ok(&["stop", "--all", "--json"]), "[]\n");
    }
}

#[test]
fn f7_what_a_crashed_sandbox_changed_is_not_forgotten() {
    let Some(host) = hosts().into_iter().next() else { return };
    host.inside("echo evil > Makefile");
    super::litter::kill(&host);
    host.inside("true");
    let shown = host.ok(&["stop"]);
    assert!(shown.contains("Makefile"), "{shown}");
}

#[test]
fn f7_an_interrupted_rebase_that_runs_commands_is_named() {
    let Some(host) = hosts().into_iter().next() else { return };
    sh(&host, "git commit --quiet --allow-empty -m second");
    let done = host.inside(
        "git config --global user.name n; git config --global user.email e@example.com; \
         GIT_SEQUENCE_EDITOR='printf \"break\\nexec touch canary\\n\" >' git rebase -i HEAD~1",
    );
    let shown = host.ok(&["stop"]);
    assert!(shown.contains(".git/rebase-merge/git-rebase-todo"), "{done:?} {shown}");
}

#[test]
fn f3_a_repository_that_the_index_names_is_named_before_git_runs_its_settings() {
    let Some(host) = hosts().into_iter().next() else { return };
    host.inside(
        "git init --quiet deep/er && git -C deep/er -c user.name=n -c user.email=e@example.com commit --quiet --allow-empty -m x && \
         git -C deep/er config core.fsmonitor /work/evil.sh && git add deep/er",
    );
    let shown = host.ok(&["stop"]);
    assert!(shown.contains("1     added   deep/er/.git"), "{shown}");
}

#[test]
fn c1_c2_c3_h8_what_gits_on_the_host_would_walk_into_is_named() {
    for host in hosts() {
        host.inside(
            "git init --quiet node_modules/a; mkdir objects refs && cp .git/HEAD HEAD; \
             git init --quiet deep && git -C deep -c user.name=n -c user.email=e@example.com commit --quiet --allow-empty -m x && \
             git add deep 2>/dev/null; rm -rf deep/.git; \
             mkdir -p .git/rebase-merge && printf 'x\\tevil\\n' > .git/rebase-merge/git-rebase-todo",
        );
        let shown = host.ok(&["stop"]);
        let lines = ["node_modules/a/.git", "HEAD", "deep", ".git/rebase-merge/git-rebase-todo"];
        for path in lines {
            let is_named = |line: &str| line.starts_with('1') && line.split_whitespace().nth(2) == Some(path);
            assert!(shown.lines().any(is_named), "{path}: {shown}");
        }
        // The guardian removes a link while a sandbox is up; this one came when nobody looked.
        sh(&host, "ln -sfn /home/x/.bashrc .git/COMMIT_EDITMSG");
        let refused = host.run(&["start", "-d"]);
        assert!(refused.code == 1 && refused.stderr.contains("COMMIT_EDITMSG"), "{refused:?}");
        sh(&host, "rm .git/COMMIT_EDITMSG");
        host.ok(&["start", "-d"]);
        host.ok(&["stop"]);
    }
}

#[test]
fn f2_gits_upkeep_works_beside_what_is_pinned() {
    for host in hosts() {
        super::inside(
            &host,
            "git gc --quiet && git repack -adq && git pack-refs --all && git commit --quiet --allow-empty -m x && git fsck 2>/dev/null; \
             for path in objects refs remotes branches; do mv .git/$path .git/x 2>/dev/null && echo moved $path; done; \
             (echo evil > .git/remotes/origin) 2>/dev/null || echo closed",
            "closed\n",
        );
        assert_eq!(host.ok(&["stop"]), "");
    }
}
