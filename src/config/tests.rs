//! Tests of loading as a whole: files in, a configuration or all problems out.

mod refusals;

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::keys::{KEYS, Kind, Power};
use super::*;
use crate::policy::DomainName;
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
        let home = Path::new("/home/u");
        Config::load(&[Source::global(&self.global(), home), Source::project(&self.project(), home)])
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
        Kind::Size => "1GiB",
        Kind::Processors => "1.5",
        Kind::Count => "99",
        Kind::ProjectPaths | Kind::Globs => "[ci]",
        Kind::HostPaths => "[~/lib]",
        Kind::StorePaths => "[/nix/store/00000000000000000000000000000000-jq]",
        Kind::Switch => "false",
        Kind::Upstream => "http://proxy.corp:3128",
        Kind::Command => "[tell, me]",
        Kind::Mounts => "[{source: ~/data, target: /data}]",
    }
}

fn document(path: &str, value: &str) -> String {
    match path.split_once('.') {
        Some((section, name)) => format!("{section}: {{{}}}", document(name, value)),
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
            "network",
            "proxy.allow",
            "proxy.unlisted",
            "proxy.hosts",
            "proxy.private",
            "proxy.rate_limit.per_minute",
            "proxy.rate_limit.burst",
            "proxy.max_tunnels",
            "proxy.idle_timeout",
            "proxy.max_duration",
            "proxy.upstream",
            "proxy.approval_timeout",
            "approvals.notify",
            "approvals.bell",
            "approvals.notify_command",
            "files.mask",
            "refs",
            "mounts",
            "env.pass",
            "limits.memory",
            "limits.cpus",
            "limits.pids",
            "tools",
            "audit.per_cloister",
            "audit.max_size",
            "audit.max_files"
        ]
    );
    assert_eq!(with(Power::Narrows), ["shell", "proxy.deny", "files.protect", "env.set"]);
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

#[test]
fn a_command_is_one_value_that_a_project_replaces() {
    let global = "approvals: {notify: false, bell: false, notify_command: ['~/bin/tell', '--urgent', '']}";
    let command = |config: &Config| config.approvals.notify_command.clone();
    let config = load(global, "");
    assert_eq!((config.approvals.notify, config.approvals.bell), (false, false));
    assert_eq!(command(&config), ["/home/u/bin/tell", "--urgent", ""]);
    assert_eq!(command(&load(global, "approvals: {notify_command: [tell]}")), ["tell"]);
    assert_eq!(command(&load(global, "approvals: {notify_command: null}")).len(), 3);
    assert_eq!(command(&load(global, "approvals: {notify_command: []}")), [""; 0]);
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
