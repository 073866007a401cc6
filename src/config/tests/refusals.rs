//! What is refused, and what is said about it.

use super::*;

#[test]
fn all_problems_of_all_files_are_reported_at_once() {
    let global = "\
bakend: docker
backend: dokcer
proxy:
  alow: [x]
  allow:
    - https://example.com/
    - '*.com'
    - 443
  idle_timeout: 10
";
    let project = "\
shell: bash
env: {pass: [SSH_AUTH_SOCK, HOME], set: {http_proxy: x, DEBUG: yes}}
";
    let files = Files::with(global, project);
    let problems = files.problems();
    let places: Vec<_> = problems.iter().map(|problem| problem.split_once(": ").unwrap().0).collect();
    assert_eq!(
        places,
        [
            "config.yaml:1",
            "config.yaml:2",
            "config.yaml:4",
            "config.yaml:6",
            "config.yaml:7",
            "config.yaml:8",
            "config.yaml:9",
            "projects/demo.yaml:1",
            "projects/demo.yaml:2",
            "projects/demo.yaml:2",
            "projects/demo.yaml:2",
            "projects/demo.yaml:2",
        ]
    );
    let shown = files.load().unwrap_err().to_string();
    assert!(shown.starts_with("cannot use the configuration\n  /") && shown.lines().count() == 13, "{shown}");
}

#[test]
fn s3_an_unknown_key_is_refused_with_the_nearest_one() {
    check_problems("bakend: auto", &["config.yaml:1: `bakend`: is not a known key; did you mean `backend`?"]);
    check_problems("allow: []", &["config.yaml:1: `allow`: is not a known key; did you mean `proxy.allow`?"]);
    check_problems(
        "env: {zzz: }",
        &["config.yaml:1: `env.zzz`: is not a known key; the keys known here are `pass`, `set`"],
    );
    check_problems(
        "\"a\\eb\": x",
        &[
            "config.yaml:1: `\"a\\u{1b}b\"`: is not a known key; the keys known here are `backend`, `network`, `shell`, `proxy`, `approvals`, `files`, `refs`, `mounts`, `env`, `limits`, `tools`, `audit`",
        ],
    );
}

#[test]
fn nothing_is_coerced() {
    let patterns = r#"expected a list of hosts such as `["example.com", "*.example.org:8443"]`, found"#;
    let boolean = "an unquoted word that some readers take for a boolean";
    for (text, expected) in [
        ("proxy: {allow: a.com}", format!("`proxy.allow`: {patterns} text; put it in brackets: `[…]`")),
        ("proxy: {allow: {a: b}}", format!("`proxy.allow`: {patterns} a map")),
        ("proxy: {deny: 3}", format!("`proxy.deny`: {patterns} a number")),
        ("proxy: {allow: [a.com, [b.com]]}", "`proxy.allow[1]`: expected text, found a list".to_owned()),
        ("proxy: {allow: [~]}", "`proxy.allow[0]`: expected text, found nothing".to_owned()),
        (
            "proxy: {allow: [10.1]}",
            "`proxy.allow[0]`: expected text, found a number; put it in quotes if it is meant as text".to_owned(),
        ),
        (
            "proxy: [a]",
            "`proxy`: expected a map of keys, found a list; the keys known here are `allow`, `deny`, `unlisted`, `hosts`, `private`, `rate_limit`, `max_tunnels`, `idle_timeout`, `max_duration`, `upstream`, `approval_timeout`".to_owned(),
        ),
        ("proxy: {unlisted: no}", format!("`proxy.unlisted`: expected one of `ask`, `reject`, found {boolean}")),
        (
            "proxy: {idle_timeout: 60}",
            "`proxy.idle_timeout`: expected a duration such as `90s`, `10m` or `1h`, found a number; add the unit `s`, `m` or `h`".to_owned(),
        ),
        (
            "proxy: {hosts: {a.b: 10.1.2.3}}",
            r#"`proxy.hosts."a.b"`: expected a map from names to lists of addresses such as `{db.corp: ["10.1.2.3"]}`, found text; put it in brackets: `[…]`"#.to_owned(),
        ),
        ("shell: true", "`shell`: expected an absolute path such as `/bin/bash`, found a boolean".to_owned()),
        (
            "env: {set: {A: yes}}",
            format!("`env.set.A`: expected text, found {boolean}; put it in quotes if it is meant as text"),
        ),
        (
            "env: {set: {A: 1}}",
            "`env.set.A`: expected text, found a number; put it in quotes if it is meant as text".to_owned(),
        ),
        ("env: {set: {A: }}", "`env.set.A`: expected text, found nothing".to_owned()),
        ("env: {set: [A]}", r#"`env.set`: expected a map from names of variables to texts such as `{LANG: "C.UTF-8"}`, found a list"#.to_owned()),
    ] {
        check_problems(text, &[&format!("config.yaml:1: {expected}")]);
    }
    check_problems(
        "- a",
        &[
            "config.yaml:1: expected a map of keys, found a list; the keys known here are `backend`, `network`, `shell`, `proxy`, `approvals`, `files`, `refs`, `mounts`, `env`, `limits`, `tools`, `audit`",
        ],
    );
}

#[test]
fn bad_values_are_refused_with_their_repair() {
    for (text, expected) in [
        (
            "backend: podman",
            "`backend`: `podman` is not one of the choices; write one of `auto`, `docker`, `bubblewrap`",
        ),
        ("backend: Docker", "`backend`: `Docker` is not one of the choices; did you mean `docker`?"),
        (
            "proxy: {unlisted: rejct}",
            "`proxy.unlisted`: `rejct` is not one of the choices; did you mean `reject`?",
        ),
        (
            "shell: bash",
            "`shell`: `bash` is no absolute path of a program; write it in full, such as `/bin/bash`",
        ),
        (
            "shell: \"/a\\0b\"",
            "`shell`: `/a\\u{0}b` is no absolute path of a program; write it in full, such as `/bin/bash`",
        ),
        ("shell: /", "`shell`: `/` is no absolute path of a program; write it in full, such as `/bin/bash`"),
        (
            "proxy: {idle_timeout: 1d}",
            "`proxy.idle_timeout`: `1d` is no duration; write a whole number with the unit `s`, `m` or `h`, such as `90s`, `10m` or `1h`",
        ),
        (
            "proxy: {idle_timeout: 25h}",
            "`proxy.idle_timeout`: `25h` is out of range; it must lie between `1s` and `24h`",
        ),
        (
            "proxy: {rate_limit: {per_minute: 0}}",
            "`proxy.rate_limit.per_minute`: `0` is no number in range; write a whole number between `1` and `6000000`",
        ),
        (
            "proxy: {upstream: 'http://u:hidden@proxy.corp'}",
            "`proxy.upstream`: has no port; write it such as `http://proxy.corp:3128`",
        ),
        (
            "audit: {max_size: 1KiB}",
            "`audit.max_size`: `1KiB` is no size in range; write a whole number with the unit `MiB` or `GiB`, between `1MiB` and `1024GiB`",
        ),
        (
            "proxy: {hosts: {a.b: [c.d]}}",
            "`proxy.hosts.\"a.b\"[0]`: `c.d` is no IP address; write one such as `10.1.2.3` or `2001:db8::1`, without a port",
        ),
        (
            "proxy: {hosts: {a.b: []}}",
            "`proxy.hosts.\"a.b\"`: pins the name to no address; list one, or remove the name",
        ),
        (
            "proxy: {hosts: {a.b: [1.1.1.1], A.b: [1.1.1.1]}}",
            "`proxy.hosts.\"A.b\"`: pins `a.b` a second time; keep one of the two",
        ),
        ("env: {set: {A: \"\\0\"}}", "`env.set.A`: holds a NUL, which no variable can hold; remove it"),
        (
            "env: {set: {A-B: x}}",
            "`env.set.A-B`: `A-B` is no name of a variable; letters, digits and `_` may stand there, no digit first",
        ),
        ("env: {pass: [HOME]}", "`env.pass[0]`: `HOME` is set by Cloister itself; remove it here"),
        (
            "env: {pass: [DISPLAY]}",
            "`env.pass[0]`: `DISPLAY` leads to your screen and keyboard, which a sandbox must not reach; remove it here",
        ),
    ] {
        check_problems(text, &[&format!("config.yaml:1: {expected}")]);
    }
}

#[test]
fn a_bad_pattern_keeps_the_proposal_of_the_policy() {
    for text in [
        "proxy: {allow: ['https://example.com/']}",
        "proxy: {allow: ['*.com']}",
        "proxy: {deny: ['*com']}",
        "proxy: {private: ['*.com']}",
        "proxy: {private: ['a.b:1']}",
    ] {
        let problems = Files::with(text, "").problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("is not a pattern"), "{problems:?}");
    }
}

#[test]
fn s2_nothing_in_place_of_a_value_is_an_error() {
    let pins =
        r#"expected a map from names to lists of addresses such as `{db.corp: ["10.1.2.3"]}`, found nothing"#;
    for null in ["null", "~", ""] {
        check_problems(
            &format!("proxy: {{hosts: {{db: {null}}}}}"),
            &[&format!("config.yaml:1: `proxy.hosts.db`: {pins}; give the list, or remove the name")],
        );
    }
    for null in ["null", "~"] {
        for key in ["proxy.allow", "proxy.deny", "proxy.private", "env.pass"] {
            let (section, name) = key.split_once('.').unwrap();
            check_problems(
                &format!("{section}: {{{name}: [{null}]}}"),
                &[&format!("config.yaml:1: `{key}[0]`: expected text, found nothing")],
            );
        }
        check_problems(
            &format!("proxy: {{hosts: {{db: [{null}, '10.0.0.1']}}}}"),
            &["config.yaml:1: `proxy.hosts.db[0]`: expected text, found nothing"],
        );
        check_problems(
            &format!("env: {{set: {{A: {null}}}}}"),
            &["config.yaml:1: `env.set.A`: expected text, found nothing"],
        );
    }
}

#[test]
fn s4_a_deny_rule_may_be_as_broad_as_it_likes() {
    let config = load("proxy: {deny: ['*.com', '*.github.io:22']}", "");
    assert_eq!(
        shown(&config.proxy.rules)[3..],
        ["deny *.com: global (config.yaml:1)", "deny *.github.io:22: global (config.yaml:1)"]
    );
}

#[test]
fn k12_no_name_is_pinned_to_a_metadata_or_link_local_address() {
    for address in [
        "169.254.169.254",
        "169.254.1.1",
        "fe80::1",
        "::ffff:169.254.169.254",
        "fd00:ec2::254",
        "0.0.0.0",
        "64:ff9b::a9fe:a9fe",
    ] {
        let problems = Files::with(&format!("proxy: {{hosts: {{a.b: ['{address}']}}}}"), "").problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("which no sandbox may ever reach"), "{problems:?}");
    }
}

#[test]
fn a_secret_in_a_value_is_never_shown() {
    let text = "env: {set: {A B: hunter2, HOME: hunter2, C: 'hunter2', D: 4711}}\nx: 1";
    let error = Files::with(text, "").load().unwrap_err();
    assert!(
        !format!("{error} {error:?}").contains("hunter2") && !error.to_string().contains("4711"),
        "{error}"
    );
    let config = load("env: {set: {C: hunter2}}", "");
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn what_can_not_be_read_is_an_error() {
    let files = Files::new();
    fs::write(files.global(), b"a: b\nc: \xff\n").unwrap();
    assert_eq!(files.problems(), ["config.yaml:2: is not UTF-8; save the file as UTF-8"]);
    fs::write(files.global(), " ".repeat(1024 * 1024 + 1)).unwrap();
    assert_eq!(files.problems(), ["config.yaml: cannot be read: it is larger than 1 MiB"]);
    fs::remove_file(files.global()).unwrap();
    fs::create_dir(files.global()).unwrap();
    assert_eq!(files.problems(), ["config.yaml: cannot be read: it is not a regular file"]);
    fs::remove_dir(files.global()).unwrap();
    std::os::unix::fs::symlink("/nonexistent", files.global()).unwrap();
    assert_eq!(files.problems(), ["config.yaml: cannot be read: No such file or directory (os error 2)"]);
    fs::remove_file(files.global()).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, files.global(), rustix::fs::Mode::RUSR).unwrap();
    assert_eq!(files.problems(), ["config.yaml: cannot be read: it is not a regular file"]);
}

#[test]
fn what_a_sandbox_may_use_is_checked() {
    check_problems(
        "limits: {memory: 8, cpus: many, pids: 3}\nnetwork: noen\n",
        &[
            "config.yaml:1: `limits.memory`: expected a size such as `512MiB` or `8GiB`, found a number; add the \
             unit `MiB` or `GiB`",
            "config.yaml:1: `limits.cpus`: `many` is no number of processors; write one between `0.1` and `4096`, \
             with at most three decimals",
            "config.yaml:1: `limits.pids`: `3` is no number of processes; write a whole number between `16` and \
             `4194304`",
            "config.yaml:2: `network`: `noen` is not one of the choices; did you mean `none`?",
        ],
    );
}

#[test]
fn mounts_are_checked_entry_by_entry() {
    check_problems(
        "mounts:\n  - {source: ~/a}\n  - {source: b, target: /b, mode: rx}\n  - {source: b, target: c}\n  - x\n  - {sorce: /a}\n",
        &[
            "config.yaml:2: `mounts[0]`: needs both `source` and `target`; give both, as in `{source: ~/data, \
             target: /data}`",
            "config.yaml:3: `mounts[1].mode`: `rx` is no mode of a mount; write `ro` or `rw`",
            "config.yaml:4: `mounts[2].source`: a path of the host begins with `/` or `~/`, and holds no `..` and no \
             control character",
            "config.yaml:4: `mounts[2].target`: a path inside the sandbox begins with `/`, and holds no `.`, no `..` \
             and no control character",
            "config.yaml:5: `mounts[3]`: expected a map of `source`, `target`, `mode`, found text",
            "config.yaml:6: `mounts[4].sorce`: is not a known key; did you mean `source`?",
            "config.yaml:6: `mounts[4]`: needs both `source` and `target`; give both, as in `{source: ~/data, \
             target: /data}`",
        ],
    );
}

#[test]
fn f10_paths_of_the_project_do_not_leave_it() {
    check_problems(
        "files: {protect: [/etc, ../x], mask: ['!../y']}\n",
        &[
            "config.yaml:1: `files.protect[0]`: a path below the project is relative, and holds no `..`, no empty part \
             and no control character",
            "config.yaml:1: `files.protect[1]`: a path below the project is relative, and holds no `..`, no empty part \
             and no control character",
            "config.yaml:1: `files.mask[0]`: a path below the project is relative, and holds no `..`, no empty part \
             and no control character",
        ],
    );
}

#[test]
fn a_project_has_no_say_in_the_audit_log() {
    let files = Files::with("audit: {max_files: 3}", "audit: {per_cloister: false, max_size: 1GiB}");
    let refused = |key| {
        format!(
            "projects/demo.yaml:1: `audit.{key}`: is not a project's: there is one audit log for all; write it into `config.yaml`"
        )
    };
    assert_eq!(files.problems(), [refused("per_cloister"), refused("max_size")]);
}

#[test]
fn a_time_to_answer_and_a_command_have_their_form() {
    check_problems(
        "proxy: {approval_timeout: 2h}",
        &["config.yaml:1: `proxy.approval_timeout`: `2h` is out of range; it must lie between `5s` and `1h`"],
    );
    check_problems(
        "proxy: {approval_timeout: 60}",
        &[
            "config.yaml:1: `proxy.approval_timeout`: expected a duration such as `90s`, `10m` or `1h`, found a number; add the unit `s`, `m` or `h`",
        ],
    );
    check_problems(
        "approvals: {bell: maybe}",
        &["config.yaml:1: `approvals.bell`: expected `true` or `false`, found text"],
    );
    check_problems(
        "approvals: {notify_command: notify-send}",
        &[
            "config.yaml:1: `approvals.notify_command`: expected a list of a program and its arguments such as `[\"notify-send\", \"a sandbox asks\"]`, found text; put it in brackets: `[…]`",
        ],
    );
    check_problems(
        "approvals: {notify_command: [./tell, 7]}",
        &[
            "config.yaml:1: `approvals.notify_command[1]`: expected text, found a number; put it in quotes if it is meant as text",
            "config.yaml:1: `approvals.notify_command[0]`: `./tell` is no program; write its name, or its path beginning with `/` or `~/`",
        ],
    );
}
