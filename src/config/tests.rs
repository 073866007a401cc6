//! Tests of loading as a whole: files in, a configuration or all problems out.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::keys::{KEYS, Kind, Power};
use super::*;
use crate::policy::{Effect, Origin, OriginKind};

/// Is a directory with configuration files.
struct Files {
    dir: TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(files.dir.path().join("projects")).unwrap();
        files
    }

    fn with(global: &str, project: &str) -> Self {
        let files = Self::new();
        fs::write(files.global(), global).unwrap();
        fs::write(files.project(), project).unwrap();
        files
    }

    fn global(&self) -> PathBuf {
        self.dir.path().join("config.yaml")
    }

    fn project(&self) -> PathBuf {
        self.dir.path().join("projects/demo.yaml")
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&[Source::global(&self.global()), Source::project(&self.project())])
    }

    /// Gives the problems as they are shown, without the directory.
    fn problems(&self) -> Vec<String> {
        let dir = format!("{}/", self.dir.path().display());
        let problems = self.load().err().map(|error| error.problems).unwrap_or_default();
        problems.iter().map(|problem| problem.to_string().replace(&dir, "")).collect()
    }
}

#[track_caller]
fn load(global: &str, project: &str) -> Config {
    Files::with(global, project).load().unwrap()
}

#[track_caller]
fn check_problems(global: &str, expected: &[&str]) {
    assert_eq!(Files::with(global, "").problems(), expected, "{global}");
}

/// Shows rules as `allow example.com: origin`.
fn shown(rules: &[Rule]) -> Vec<String> {
    let effect = |rule: &Rule| match rule.effect() {
        Effect::Allow => "allow",
        Effect::Deny => "deny",
    };
    rules.iter().map(|rule| format!("{} {rule}: {}", effect(rule), rule.origin())).collect()
}

const BUILTIN: [&str; 3] = [
    "allow api.anthropic.com: builtin",
    "allow api.openai.com: builtin",
    "allow generativelanguage.googleapis.com: builtin",
];

#[track_caller]
fn check_defaults(config: &Config) {
    assert_eq!(config.backend, Backend::Auto);
    assert_eq!(config.shell, PathBuf::from("/bin/bash"));
    assert_eq!(shown(&config.proxy.rules), BUILTIN);
    assert_eq!(config.proxy.unlisted, Unlisted::Ask);
    assert_eq!(config.proxy.pins, BTreeMap::new());
    assert_eq!(config.proxy.private, []);
    assert_eq!(config.proxy.idle_timeout, Duration::from_mins(10));
    assert_eq!(config.env, Environment::default());
}

#[test]
fn missing_and_empty_files_mean_the_defaults() {
    check_defaults(&Files::new().load().unwrap());
    check_defaults(&Config::load(&[]).unwrap());
    for text in
        ["", "\n# only a comment\n", "---\n", "null", "{}", "proxy:\nenv:\n", "proxy: {allow: , hosts: null}"]
    {
        check_defaults(&load(text, text));
    }
}

const WHOLE: &str = r#"
backend: docker
shell: /bin/zsh
proxy:
  allow:
    - api.example.com
    - "*.Example.ORG:8443"
  deny: [evil.example.com]
  unlisted: reject
  hosts: {Db.corp: ["10.1.2.3", "127.0.0.1", "::ffff:10.0.0.1", "2001:4860::1"]}
  private: [git.corp.example, "*.corp.example"]
  idle_timeout: 90s
env:
  pass: [LANG]
  set: {GREETING: "hello", EMPTY: ""}
"#;

#[test]
fn every_key_reaches_the_configuration() {
    let config = load(WHOLE, "");
    assert_eq!(config.backend, Backend::Docker);
    assert_eq!(config.shell, PathBuf::from("/bin/zsh"));
    let rules = [
        "allow api.example.com: global (config.yaml:6)",
        "allow *.example.org:8443: global (config.yaml:7)",
        "deny evil.example.com: global (config.yaml:8)",
    ];
    assert_eq!(shown(&config.proxy.rules), [BUILTIN, rules].concat());
    assert_eq!(config.proxy.unlisted, Unlisted::Reject);
    let addresses: Vec<IpAddr> =
        ["10.1.2.3", "127.0.0.1", "10.0.0.1", "2001:4860::1"].map(|text| text.parse().unwrap()).into();
    assert_eq!(config.proxy.pins, [(DomainName::parse("db.corp").unwrap(), addresses)].into());
    let private: Vec<_> = config.proxy.private.iter().map(ToString::to_string).collect();
    assert_eq!(private, ["git.corp.example", "*.corp.example"]);
    assert_eq!(config.proxy.idle_timeout, Duration::from_secs(90));
    let passed: Vec<_> = config.env.pass.iter().map(EnvName::as_str).collect();
    assert_eq!(passed, ["LANG"]);
    let set: Vec<_> = config.env.set.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
    assert_eq!(set, [("EMPTY", ""), ("GREETING", "hello")]);
}

#[test]
fn json_is_yaml() {
    let config =
        load(r#"{"backend": "docker", "proxy": {"deny": ["evil.example.com"], "idle_timeout": "1h"}}"#, "");
    assert_eq!(config.backend, Backend::Docker);
    assert_eq!(config.proxy.idle_timeout, Duration::from_hours(1));
}

#[test]
fn a_project_adds_to_lists_and_wins_elsewhere() {
    let global = "
shell: /bin/zsh
proxy:
  allow: [a.example.com]
  deny: [b.example.com]
  unlisted: reject
  hosts: {one.corp: ['10.0.0.1'], two.corp: ['10.0.0.2']}
  private: [one.corp]
env: {pass: [A], set: {X: global, Y: global}}
";
    let project = "
backend: bubblewrap
proxy:
  allow: [b.example.com]
  unlisted: ask
  hosts: {TWO.corp: ['10.0.0.3']}
  private: [two.corp]
env: {pass: [B], set: {Y: project}}
";
    let config = load(global, project);
    assert_eq!((config.backend, config.shell), (Backend::Bubblewrap, PathBuf::from("/bin/zsh")));
    let rules = [
        "allow a.example.com: global (config.yaml:4)",
        "deny b.example.com: global (config.yaml:5)",
        "allow b.example.com: project (projects/demo.yaml:4)",
    ];
    assert_eq!(shown(&config.proxy.rules)[3..], rules);
    assert_eq!(config.proxy.unlisted, Unlisted::Ask);
    let pins: Vec<_> =
        config.proxy.pins.iter().map(|(name, addresses)| format!("{name} {addresses:?}")).collect();
    assert_eq!(pins, ["one.corp [10.0.0.1]", "two.corp [10.0.0.3]"]);
    assert_eq!(config.proxy.private.len(), 2);
    assert_eq!(config.env.pass.len(), 2);
    let set: Vec<_> = config.env.set.values().map(EnvValue::expose).collect();
    assert_eq!(set, ["global", "project"]);
}

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
            "config.yaml:1: `\"a\\u{1b}b\"`: is not a known key; the keys known here are `backend`, `shell`, `proxy`, `env`",
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
            "`proxy`: expected a map of keys, found a list; the keys known here are `allow`, `deny`, `unlisted`, `hosts`, `private`, `idle_timeout`".to_owned(),
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
            "config.yaml:1: expected a map of keys, found a list; the keys known here are `backend`, `shell`, `proxy`, `env`",
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

/// Gives a value that fits a key and differs from its default.
fn example(kind: Kind) -> &'static str {
    match kind {
        Kind::Choice(words) => words[words.len() - 1],
        Kind::Path => "/bin/zsh",
        Kind::Duration => "7m",
        Kind::Patterns | Kind::Names => "[a.example.com]",
        Kind::Pins => "{a.example.com: ['10.0.0.1']}",
        Kind::Variables => "[LANG]",
        Kind::Values => "{LANG: C}",
    }
}

fn document(path: &str, value: &str) -> String {
    match path.split_once('.') {
        Some((section, name)) => format!("{section}: {{{name}: {value}}}"),
        None => format!("{path}: {value}"),
    }
}

#[test]
fn every_key_of_the_table_is_decoded_and_its_default_is_true() {
    for key in KEYS {
        let default = load(&document(key.path, key.default), "");
        assert_eq!(default, Config::default(), "{}", key.path);
        let changed = load(&document(key.path, example(key.kind)), "");
        assert_ne!(changed, Config::default(), "{}", key.path);
    }
}

/// Whoever adds a key has to say here, too, whether it widens (invariant 4).
#[test]
fn f9_every_key_is_known_to_widen_or_to_narrow() {
    let with = |power| KEYS.iter().filter(|key| key.power == power).map(|key| key.path).collect::<Vec<_>>();
    assert_eq!(
        with(Power::Widens),
        [
            "backend",
            "proxy.allow",
            "proxy.unlisted",
            "proxy.hosts",
            "proxy.private",
            "proxy.idle_timeout",
            "env.pass"
        ]
    );
    assert_eq!(with(Power::Narrows), ["shell", "proxy.deny", "env.set"]);
}

#[test]
fn the_policy_gets_all_pieces() {
    let config = load(WHOLE, "");
    let listening = vec!["127.0.0.1:9999".parse().unwrap()];
    let input = config.policy_input(listening.clone());
    assert_eq!(input.rules, config.proxy.rules);
    assert_eq!((input.unlisted, input.listening), (Unlisted::Reject, listening));
    assert_eq!((input.pins.len(), input.private.len()), (1, 2));
    let origin = Origin::new(OriginKind::Global).at("config.yaml:8");
    assert_eq!(input.rules.last().unwrap().origin(), &origin);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// S4: whatever a project's file says, every deny rule of the global file is still there.
    #[test]
    fn s4_a_project_can_not_undo_a_global_deny(allowed in "[a-z]{1,8}\\.example\\.com") {
        let global = format!("proxy: {{deny: ['{allowed}']}}");
        let config = load(&global, &format!("proxy: {{allow: ['{allowed}', '*.example.com'], deny: []}}"));
        let denied = |rule: &&Rule| rule.effect() == Effect::Deny && rule.pattern().to_string() == allowed;
        prop_assert_eq!(config.proxy.rules.iter().filter(denied).count(), 1);
    }

    #[test]
    fn no_text_breaks_loading(text in "[a-z:\\-?,\\[\\]{}#'\"*. \\n0-9]{0,60}", key in 0..KEYS.len()) {
        let _ = Files::with(&document(KEYS[key].path, &text), &text).load();
    }
}
