//! Nothing is planted for later: what the host executes can't be made, changed, moved or replaced from inside, and
//! nothing of it is left behind.

mod everyday;
mod litter;
mod masks;
mod trust;

use std::fs;
use std::path::Path;

use crate::harness::{Done, Host, finish};

/// Both users whose sandboxes have to hold.
fn hosts() -> Vec<Host> {
    let hosts = Host::both();
    for host in &hosts {
        let settings = "[user]\n\tname = n\n\temail = e@example.com\n[protocol \"file\"]\n\tallow = always\n";
        host.write(&host.path("home/.gitconfig"), settings);
        sh(host, "git commit --quiet --allow-empty -m first");
    }
    hosts
}

/// Runs a script on the host, in the repository.
#[track_caller]
fn sh(host: &Host, script: &str) -> String {
    let done = try_sh(host, script);
    assert_eq!(done.code, 0, "{script}: {done:?}");
    done.stdout
}

fn try_sh(host: &Host, script: &str) -> Done {
    let mut command = host.program("sh");
    command.args(["-c", script]);
    finish(command)
}

#[track_caller]
fn inside(host: &Host, script: &str, expected: &str) {
    let done = host.inside(script);
    assert_eq!(done.stdout, expected, "{script}: {done:?}");
}

/// Every path below a directory, without what git keeps of its objects.
fn tree(directory: &Path) -> Vec<String> {
    let mut find = crate::harness::plain("find");
    find.args([".", "-path", "./.git/objects", "-prune", "-o", "-print"]).current_dir(directory);
    let mut paths: Vec<String> = finish(find).stdout.lines().map(str::to_owned).collect();
    paths.sort();
    paths
}

/// Tries every way to plant something at `$path`; prints what could be done.
const ATTACK: &str = r#"
attack() {
  path=$1; parent=$(dirname $path); name=$(basename $path)
  (echo evil > $path) 2>/dev/null && echo "wrote $path"
  (echo evil >> $path) 2>/dev/null && echo "appended to $path"
  (mkdir -p $path/x && echo evil > $path/x/y) 2>/dev/null && echo "made $path/x/y"
  (echo evil > $path/pre-commit) 2>/dev/null && echo "wrote in $path"
  rmdir $path 2>/dev/null && echo "removed $path"
  rm -rf $path 2>/dev/null; test -e $path || echo "removed all of $path"
  mv $path $parent/.moved 2>/dev/null && echo "moved $path"
  echo evil > /work/.evil; mv -f -T /work/.evil $path 2>/dev/null && echo "replaced $path"
  ln -sfn /work/.evil $path 2>/dev/null && test -L $path && echo "linked $path"
  ln $path /work/.second 2>/dev/null && echo "second name of $path"
  if test $parent != /work; then mv $parent $parent.moved 2>/dev/null && echo "moved $parent"; fi
  chmod 777 $path 2>/dev/null && echo "chmod $path"
  rm -f /work/.evil
}
"#;

fn attack(paths: &[&str]) -> String {
    let calls: Vec<String> = paths.iter().map(|path| format!("attack /work/{path}\n")).collect();
    format!("{ATTACK}{}echo done", calls.concat())
}

/// Paths of every class, absent in a new repository but for `.git/config` and `.git/hooks`.
const CLASSES: [&str; 18] = [
    ".git/hooks",
    ".git/config",
    ".git/config.worktree",
    ".git/commondir",
    ".git/modules",
    ".vscode",
    ".vscode/tasks.json",
    ".idea/workspace.xml",
    ".devcontainer/devcontainer.json",
    ".devcontainer.json",
    ".envrc",
    ".mcp.json",
    ".claude/settings.json",
    ".claude/settings.local.json",
    ".claude/hooks/x.sh",
    ".cursor/mcp.json",
    ".codex/config.toml",
    "deploy/prod/release.sh",
];

#[test]
fn f1_f2_f3_f6_f8_f11_nothing_is_planted_where_nothing_is() {
    for host in hosts() {
        host.configure("files: {protect: [deploy/prod/release.sh]}\n");
        let before = (tree(&host.repository()), sh(&host, "git status --porcelain --ignored"));
        host.ok(&["start", "-d"]);
        assert_eq!(sh(&host, "git status --porcelain --ignored"), before.1, "git shows what is in the way");
        // What does not exist stays so: directories that are closed hold no such name.
        let script = attack(&CLASSES).replace("test -e $path ||", "test -e $path || test ! -e $path.was ||");
        inside(&host, &script, "done\n");
        inside(&host, "echo plan > .claude/plans/a.md && rm .claude/plans/a.md && echo planned", "planned\n");
        assert_eq!(host.ok(&["stop"]), "");
        assert_eq!((tree(&host.repository()), sh(&host, "git status --porcelain --ignored")), before);
    }
}

#[test]
fn f1_f6_f8_nothing_is_planted_where_something_is() {
    for host in hosts() {
        let root = host.repository();
        let files = [
            ".git/hooks/pre-commit",
            ".git/config.worktree",
            ".vscode/tasks.json",
            ".idea/workspace.xml",
            ".envrc",
            ".devcontainer/devcontainer.json",
            ".mcp.json",
            ".claude/settings.json",
            "a.code-workspace",
        ];
        for file in files {
            host.write(&root.join(file), "mine\n");
        }
        inside(&host, &attack(&files), "done\n");
        inside(
            &host,
            &attack(&[".claude/settings.local.json", ".vscode/settings.json"])
                .replace("test -e $path ||", "true ||"),
            "done\n",
        );
        assert_eq!(host.ok(&["stop"]), "");
        for file in files {
            assert_eq!(fs::read_to_string(root.join(file)).unwrap(), "mine\n", "{file}");
        }
    }
}

/// Makes a program that shows that it was run, and settings of git's that run it.
fn canary(host: &Host) -> String {
    let canary = host.path("home/canary");
    let script = host.path("home/evil.sh");
    host.write(&script, format!("#!/bin/sh\ntouch {}\n", canary.display()));
    sh(host, &format!("chmod 755 {}", script.display()));
    script.display().to_string()
}

#[test]
fn f1_f2_what_a_sandbox_tries_runs_nothing_on_the_host() {
    for host in hosts() {
        let evil = canary(&host);
        sh(
            &host,
            "git init --quiet --bare ../remote.git && git remote add origin file://$HOME/remote.git && git push --quiet origin main",
        );
        let plant = format!(
            "for key in core.fsmonitor core.hooksPath core.pager core.sshCommand core.editor diff.external \
               alias.status filter.x.clean filter.x.smudge uploadpack.packObjectsHook; do \
               git config $key {evil} 2>/dev/null && echo $key; git config --worktree $key {evil} 2>/dev/null && echo $key; done; \
             for hook in pre-commit post-commit post-checkout reference-transaction fsmonitor-watchman; do \
               cp {evil} .git/hooks/$hook 2>/dev/null && echo $hook; done; \
             cp -r .git .copy; git -C .copy config core.fsmonitor {evil}; mv .git .old 2>/dev/null && mv .copy .git && echo swapped; rm -rf .copy; \
             printf '[core]\\n\\tfsmonitor = {evil}\\n' > .git/config.worktree; echo ../.copy > .git/commondir; \
             echo '* filter=x diff=x' > .gitattributes; git add .gitattributes; \
             printf '[submodule \"x\"]\\n\\tpath = x\\n\\turl = ./x\\n\\tupdate = !{evil}\\n' > .gitmodules; echo done"
        );
        inside(&host, &plant, "done\n");
        sh(
            &host,
            "git status && git commit --quiet --allow-empty -m host && git log -1 && git diff HEAD~1; git fetch; :",
        );
        host.run(&["stop"]);
        sh(
            &host,
            "git status && git commit --quiet --allow-empty -m host; git fetch; git submodule update --init; :",
        );
        assert!(!host.path("home/canary").exists(), "something was run");
    }
}

/// Waits until the guardian has written down that it sealed something again.
fn wait_for_seals(host: &Host, count: usize) {
    while host.ok(&["audit"]).matches("sandbox.reseal").count() < count {}
}

#[test]
fn f6_f8_f15_what_a_program_of_the_host_replaces_is_guarded_again() {
    for host in hosts() {
        host.write(&host.repository().join(".envrc"), "mine\n");
        host.write(&host.repository().join(".env"), "CANARY\n");
        host.ok(&["start", "-d"]);
        // As editors save.
        sh(&host, "echo again > .x && mv .x .envrc");
        wait_for_seals(&host, 1);
        sh(&host, "echo CANARY again > .x && mv .x .env");
        wait_for_seals(&host, 2);
        inside(&host, &attack(&[".envrc"]), "done\n");
        inside(&host, "grep -s CANARY .env || echo hidden", "hidden\n");
        host.ok(&["stop"]);
        assert_eq!(fs::read_to_string(host.repository().join(".envrc")).unwrap(), "again\n");
    }
}

#[test]
fn f3_submodules_are_guarded_and_none_can_be_planted() {
    for host in hosts() {
        sh(
            &host,
            "git init --quiet ../sub && git -C ../sub commit --quiet --allow-empty -m sub && \
                   git submodule --quiet add file://$HOME/sub libs/sub && git commit --quiet -m add",
        );
        let before = tree(&host.repository());
        let paths = [
            ".git/modules/libs/sub/hooks",
            ".git/modules/libs/sub/config",
            ".git/modules/libs/sub/config.worktree",
            ".git/modules/libs/sub/commondir",
            ".git/modules/libs/sub/modules",
            ".git/modules/planted",
            "libs/sub/.git",
        ];
        let script = attack(&paths).replace("test -e $path ||", "test ! -e $path.was ||");
        inside(&host, &script, "done\n");
        inside(
            &host,
            "cd libs/sub && git -c user.name=n -c user.email=e@example.com commit --quiet --allow-empty -m inside && git log --format=%s -1 && git status --porcelain",
            "inside\n",
        );
        host.run(&["stop"]);
        let after: Vec<_> = tree(&host.repository());
        let litter: Vec<_> = after
            .iter()
            .filter(|path| !before.contains(path) && !path.contains("/modules/libs/sub/"))
            .collect();
        assert!(litter.is_empty(), "{litter:?}");
        assert_eq!(
            sh(&host, "git -C libs/sub log --format=%s -1 && git -C libs/sub fsck 2>/dev/null"),
            "inside\n"
        );
    }
}

#[test]
fn f3_repositories_nested_in_the_project_are_guarded() {
    for host in hosts() {
        let evil = canary(&host);
        sh(&host, "git init --quiet vendor/lib && git -C vendor/lib commit --quiet --allow-empty -m lib");
        inside(
            &host,
            &attack(&["vendor/lib/.git/config", "vendor/lib/.git/hooks", "vendor/lib/.git/modules"]),
            "done\n",
        );
        inside(
            &host,
            &format!(
                "git -C vendor/lib config core.fsmonitor {evil} 2>/dev/null && echo planted; mv vendor/lib/.git vendor/lib/.old 2>/dev/null && echo moved; mv vendor/lib vendor/old 2>/dev/null && echo moved; mv vendor old 2>/dev/null && echo moved; \
                      cd vendor/lib && git -c user.name=n -c user.email=e@example.com commit --quiet --allow-empty -m inside && echo works"
            ),
            "works\n",
        );
        sh(&host, "git -C vendor/lib status");
        assert!(!host.path("home/canary").exists());
    }
}

#[test]
fn f4_hooks_in_the_tree_are_read_only_also_when_absent() {
    for host in hosts() {
        for (value, paths) in [
            (".githooks", [".githooks", ".githooks/pre-commit"]),
            (".husky/_", [".husky", ".husky/pre-commit"]),
        ] {
            sh(&host, &format!("git config core.hooksPath {value}"));
            inside(&host, &attack(&paths).replace("test -e $path ||", "test ! -e $path.was ||"), "done\n");
            host.ok(&["stop"]);
            assert!(!host.repository().join(paths[0]).exists(), "litter");
            host.write(&host.repository().join(paths[1]), "#!/bin/sh\n");
            inside(&host, &attack(&paths), "done\n");
            host.ok(&["stop"]);
        }
        sh(&host, "git config core.hooksPath .");
        let refused = host.run(&["start", "-d"]);
        assert!(refused.code == 1 && refused.stderr.contains("core.hooksPath"), "{refused:?}");
    }
}

#[track_caller]
fn refused(host: &Host, make: &str, undo: &str, says: &str) {
    sh(host, make);
    let done = host.run(&["start", "-d"]);
    assert!(done.code == 1 && done.stderr.contains(says), "{make}: {done:?}");
    sh(host, undo);
}

#[test]
fn f10_f12_links_and_second_names_are_refused() {
    let Some(host) = hosts().into_iter().next() else { return };
    refused(&host, "ln -s /etc .vscode", "rm .vscode", "`/");
    refused(&host, "mkdir real; ln -s real .claude", "rm .claude", ".claude` is a link");
    refused(&host, "ln .git/config alias", "rm alias", "are one file");
    refused(&host, "touch .git/hooks/pre-commit; ln .git/hooks/pre-commit alias", "rm alias", "are one file");
    refused(
        &host,
        "echo x > .mcp.json; mkdir -p node_modules; ln .mcp.json node_modules/x",
        "rm node_modules/x",
        "are one file",
    );
    host.ok(&["start", "-d"]);
}

#[test]
fn f2_pipes_in_the_place_of_git_hang_nothing() {
    let Some(host) = hosts().into_iter().next() else { return };
    for pipe in [".git/HEAD", ".git/config.worktree", ".gitconfig"] {
        sh(
            &host,
            &format!(
                "git config include.path ../.gitconfig; test -e {pipe} && mv {pipe} {pipe}.kept; mkfifo {pipe}"
            ),
        );
        let done = host.run(&["start", "-d"]);
        assert_eq!(done.code, 1, "{pipe}: {done:?}");
        sh(&host, &format!("rm {pipe}; test -e {pipe}.kept && mv {pipe}.kept {pipe}; :"));
    }
}

#[test]
fn f5_attributes_written_inside_run_no_filter_on_the_host() {
    for host in hosts() {
        let canary = host.path("home/canary");
        let script = format!(
            "printf '* filter=evil diff=evil merge=evil\\n' > .gitattributes; \
             printf '#!/bin/sh\\ntouch {}\\ncat\\n' > evil.sh; chmod +x evil.sh; \
             for key in filter.evil.clean filter.evil.smudge diff.evil.textconv; do \
               git config $key ./evil.sh 2>/dev/null && echo set $key; done; echo done",
            canary.display()
        );
        inside(&host, &script, "done\n");
        let on_host = "git add --all && git status >/dev/null && git diff --cached >/dev/null";
        sh(&host, on_host);
        assert!(!canary.exists());
        host.run(&["stop"]);
        // The same with the settings in place: what is looked for would have come.
        sh(&host, &format!("git config filter.evil.clean ./evil.sh; git rm -rq --cached .; {on_host}"));
        assert!(canary.exists());
    }
}
