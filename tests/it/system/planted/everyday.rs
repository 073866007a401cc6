//! What people and agents do with git every day works inside, and the host's git finds it in order.

use super::{hosts, inside, sh};

/// The name of the author, for the sandbox's own git.
const AUTHOR: &str = "git config --global user.name n; git config --global user.email e@example.com; \
                      git config --global advice.detachedHead false; set -e; ";

const WORK: &str = "\
    echo one > a; git add a; git commit --quiet -m one; \
    git branch side; git switch --quiet side; echo side > b; git add b; git commit --quiet -m side; \
    git switch --quiet main; echo two >> a; git commit --quiet -am two; \
    echo dirty >> a; git stash --quiet; git stash list | wc -l; git stash pop --quiet; git checkout --quiet a; \
    git merge --quiet --no-edit side; \
    git switch --quiet -c topic HEAD~1; echo three > c; git add c; git commit --quiet -m three; \
    git rebase --quiet main; GIT_SEQUENCE_EDITOR=true git rebase --quiet -i HEAD~1; \
    git switch --quiet main; git cherry-pick topic >/dev/null; \
    git tag v1; git tag -a v2 -m two; git reflog | wc -l; git notes add -m note; \
    git reset --quiet --hard HEAD; git bisect start --no-checkout >/dev/null 2>&1; git bisect reset >/dev/null 2>&1; \
    git gc --quiet; git repack -q -a -d; git fsck 2>/dev/null; git branch -D side topic >/dev/null 2>&1 || :; \
    git log --format=%s -1; git status --porcelain";

#[test]
fn f1_everyday_git_works_inside() {
    for host in hosts() {
        let done = host.inside(&format!("{AUTHOR}{WORK}"));
        assert_eq!(done.code, 0, "{done:?}");
        let lines: Vec<&str> = done.stdout.lines().collect();
        assert_eq!((lines.first(), lines.last()), (Some(&"1"), Some(&"three")), "{done:?}");
        host.ok(&["stop"]);
        assert_eq!(
            sh(&host, "git status --porcelain; git fsck 2>/dev/null; git log --format=%s -1"),
            "three\n"
        );
    }
}

#[test]
fn f1_fetch_and_push_work_inside() {
    for host in hosts() {
        sh(
            &host,
            "git init --quiet --bare --initial-branch=main remote.git && echo /remote.git > .git/info/exclude && \
                   git remote add origin file:///work/remote.git",
        );
        inside(
            &host,
            &format!(
                "{AUTHOR}git push --quiet origin main && git fetch --quiet && git switch --quiet -c next && \
                      git commit --quiet --allow-empty -m next && git push -u origin next 2>&1 | grep -c 'could not lock config file'; \
                      git rev-parse --abbrev-ref origin/next; git ls-remote --heads origin | wc -l"
            ),
            "1\norigin/next\n2\n",
        );
        host.ok(&["stop"]);
        assert_eq!(sh(&host, "git status --porcelain; git log --format=%s -1 origin/next"), "next\n");
    }
}

#[test]
fn f2_what_git_would_write_to_its_settings_fails_with_a_line_that_says_so() {
    for host in hosts() {
        sh(&host, "git branch other");
        let fails = "for what in 'config user.name x' 'remote add new file:///x' 'branch --set-upstream-to=main other' \
                     'submodule add ./x x'; do git $what > /tmp/out 2>&1; \
                     grep -q -e 'could not lock config file' -e 'Read-only file system' /tmp/out && echo clear; done; \
                     git branch -m other renamed >/dev/null 2>&1; git branch --list renamed";
        inside(&host, fails, "clear\nclear\nclear\n  renamed\n");
    }
}

#[test]
fn f3_worktrees_are_added_and_removed_inside_and_others_are_left_alone() {
    for host in hosts() {
        sh(&host, "git worktree add --quiet ../other");
        inside(
            &host,
            &format!(
                "{AUTHOR}git worktree add --quiet /tmp/new && git -C /tmp/new commit --quiet --allow-empty -m new && \
                      git worktree list | wc -l; git worktree remove /tmp/new && git worktree list | wc -l"
            ),
            "3\n2\n",
        );
        inside(
            &host,
            "cd .git/worktrees; (echo ../../../evil > other/commondir) 2>/dev/null && echo commondir; (echo x > other/config.worktree) 2>/dev/null && echo config; \
             mv other x 2>/dev/null && echo moved; rm -rf other 2>/dev/null; test -e other/HEAD || echo removed; cd ..; mv worktrees x 2>/dev/null && echo moved all; echo done",
            "done\n",
        );
        host.ok(&["stop"]);
        assert_eq!(
            sh(&host, "git -C ../other status --porcelain; git worktree prune; git worktree list | wc -l"),
            "2\n"
        );
    }
}

#[test]
fn f3_a_sandbox_of_a_worktree_works_and_leaves_the_others_alone() {
    for host in hosts() {
        sh(&host, "git worktree add --quiet ../other && git worktree add --quiet ../linked");
        let run = |script: &str| {
            let mut command = host.cloister(&["start", "--", "sh", "-c", script]);
            command.current_dir(host.path("home/linked"));
            crate::harness::finish(command)
        };
        let git = host.repository().join(".git").display().to_string();
        let done = run(&format!(
            "{AUTHOR}git commit --quiet --allow-empty -m linked; git worktree add --quiet /tmp/new; git worktree list | wc -l; set +e; \
             for path in worktrees/other/HEAD worktrees/other/commondir worktrees/linked/commondir worktrees/linked/gitdir \
               worktrees/linked/config.worktree hooks/x config config.worktree commondir modules/x; do \
               (echo evil > {git}/$path) 2>/dev/null && echo $path; done; \
             (echo evil > /work/.git) 2>/dev/null && echo gitfile; mv {git}/worktrees {git}/x 2>/dev/null && echo moved; git log --format=%s -1"
        ));
        assert_eq!(done.stdout, "4\nlinked\n", "{done:?}");
        host.ok(&["stop", "linked"]);
        assert_eq!(
            sh(&host, "git -C ../linked log --format=%s -1; git -C ../other status --porcelain"),
            "linked\n"
        );
    }
}
