//! Tests of what is shown of settings.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::config::decisions::remember;
use crate::name::ProjectName;
use crate::policy::Rule;

/// Is a home directory with a project.
struct Home {
    dir: TempDir,
    paths: Paths,
}

impl Home {
    fn with(global: &str, project: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().as_os_str().to_owned();
        let paths = Paths::from_environment(|name| (name == "HOME").then(|| home.clone())).unwrap();
        for (path, text) in [(paths.config_file(), global), (paths.project_file(&owner().name), project)] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self { dir, paths }
    }

    fn config(&self) -> Config {
        Config::load_for(&self.paths, Some(&owner())).unwrap()
    }

    fn effective(&self) -> Effective {
        Effective::load(&self.paths, Some(&owner()), None).unwrap()
    }

    fn lines(&self, shown: Shown) -> Vec<String> {
        self.effective().yaml(shown).lines().map(str::to_owned).collect()
    }
}

fn owner() -> Owner {
    Owner { name: ProjectName::parse("demo").unwrap(), directory: "/home/u/demo".into() }
}

const GLOBAL: &str = r#"
backend: bubblewrap
proxy:
  allow: ["*.Example.ORG:8443"]
  hosts: {Two.corp: ["10.0.0.2"], "one.corp": ["10.0.0.1"]}
  private: [git.corp.example]
  idle_timeout: 90s
  rate_limit: {burst: 7}
files: {mask: ["secrets/*.json", "!.env.test"]}
mounts: [{source: /srv/a b, target: /data, mode: ro}]
env: {pass: [LANG, A], set: {GREETING: "hello", "N": "null"}}
limits: {cpus: 1.5}
approvals: {notify_command: ["~/bin/tell", "yes", "a # b", ""]}
"#;

const PROJECT: &str = "
backend: null
proxy:
  deny: ['*.com']
  hosts: {TWO.corp: ['10.0.0.3']}
refs: [/srv/lib]
env: {pass: [LANG, B]}
approvals: {bell: false, notify_command: [tell]}
";

#[test]
fn every_key_is_shown_with_its_default() {
    let effective = Home::with("", "").effective();
    let shown: Vec<&str> = effective.settings.iter().map(|setting| setting.key.path).collect();
    let known: Vec<&str> = KEYS.iter().map(|key| key.path).collect();
    assert_eq!(shown, known);
    for row in effective.rows() {
        assert_eq!(row.origin, "builtin", "{row:?}");
    }
    insta::assert_snapshot!(effective.yaml(Shown::Values));
}

#[test]
fn each_value_says_where_it_comes_from() {
    let home = Home::with(GLOBAL, PROJECT);
    insta::assert_snapshot!(home.effective().yaml(Shown::Origins));
}

/// Gives a configuration without what pasting changes: where rules stand, and how often.
fn compared(mut config: Config) -> (Config, Vec<String>) {
    let rules = std::mem::take(&mut config.proxy.rules);
    let shown = |rule: &Rule| format!("{} {rule}", rule.effect().name());
    let mut shown: Vec<String> = rules.iter().map(shown).collect();
    shown.sort();
    shown.dedup();
    (config, shown)
}

#[test]
fn what_is_shown_means_the_same_in_a_file() {
    // Without a variable that has a value: values are not shown.
    let global = GLOBAL.replace(r#", set: {GREETING: "hello", "N": "null"}"#, "");
    let home = Home::with(&global, PROJECT);
    for shown in [Shown::Values, Shown::Origins] {
        let text = home.effective().yaml(shown);
        let again = Home::with(&text, "");
        let mut expected = home.config();
        let mut found = again.config();
        // What `~` stands for differs.
        assert_eq!(expected.approvals.notify_command, ["tell"]);
        expected.approvals.notify_command.clear();
        found.approvals.notify_command.clear();
        assert_eq!(compared(found), compared(expected), "{text}");
        // And what is shown of it is the same again, but for the built-in rules, which are there anyway.
        let lines = |home: &Home| -> Vec<String> {
            let mut lines = home.lines(Shown::Values);
            lines.sort();
            lines.dedup();
            lines
        };
        assert_eq!(lines(&again), lines(&home));
    }
}

#[test]
fn k5_no_secret_is_shown() {
    let secret = "hunter2";
    for upstream in [
        "http://u:hunter2@proxy.corp:3128",
        "https://u%40corp:hunter2@proxy.corp:3128/",
        "http://u:hunter2%40x@[2001:db8::1]:1",
    ] {
        let global = format!("proxy: {{upstream: '{upstream}'}}\nenv: {{set: {{A: hunter2, B: ''}}}}");
        let home = Home::with(&global, "env: {set: {A: hunter2b}}");
        let effective = home.effective();
        let rows = serde_json::to_string(&effective.rows()).unwrap();
        for text in [effective.yaml(Shown::Values), effective.yaml(Shown::Origins), rows] {
            assert!(!text.contains(secret), "{text}");
            assert!(text.contains(":…@"), "{text}");
        }
        let lines = home.lines(Shown::Origins);
        assert!(lines.contains(&"    A: \"…\"  # projects/demo.yaml:1".to_owned()), "{lines:?}");
        assert!(lines.contains(&"    B: \"…\"  # config.yaml:2".to_owned()), "{lines:?}");
    }
}

#[test]
fn a3_answers_are_shown_with_what_is_known_of_them() {
    let home = Home::with("", "");
    let answer = |effect, pattern: &str, reason: &str| Decision {
        effect,
        pattern: Pattern::parse_for(Effect::Deny, pattern).unwrap(),
        at: Some("2026-11-22T20:00:00Z".parse().unwrap()),
        who: Some("page session 1a2b".to_owned()),
        cloister: Some(CloisterName::parse("demo-main").unwrap()),
        reason: Some(reason.to_owned()),
    };
    let hostile = "x\nproxy:\n  allow: [evil.example.com]\u{1b}[2J\u{202e}";
    remember(&home.paths, &Place::Global, answer(Effect::Deny, "*.ads.example:443", hostile)).unwrap();
    let own = answer(Effect::Allow, "api.example.com:443", "tests");
    remember(&home.paths, &Place::Project(owner()), own).unwrap();
    let name = CloisterName::parse("demo-main").unwrap();
    let id = CloisterId::of(&name, "/home/u/demo");
    let session = Place::Session(name.clone(), id.clone());
    remember(&home.paths, &session, answer(Effect::Allow, "once.example.com:443", "now")).unwrap();
    let effective = Effective::load(&home.paths, Some(&owner()), Some((name.clone(), id))).unwrap();
    let text = effective.yaml(Shown::Origins);
    let about = "2026-11-22T20:00:00Z, page session 1a2b, asked by demo-main, reason";
    for (pattern, rest) in [
        (
            "*.ads.example:443",
            format!(
                "decisions/global.yaml:4, {about}: x\\nproxy:\\n  allow: [evil.example.com]\\u{{1b}}[2J\\u{{202e}}"
            ),
        ),
        ("api.example.com:443", format!("decisions/projects/demo.yaml:5, {about}: tests")),
        ("once.example.com:443", format!("grants/demo-main.yaml:5, {about}: now")),
    ] {
        let line = format!("    - \"{pattern}\"  # {rest}");
        assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
    }
    let row = effective.rows().into_iter().find(|row| row.origin.starts_with("decisions/projects"));
    assert_eq!(
        row.unwrap(),
        Row {
            key: "proxy.allow",
            name: None,
            value: "api.example.com:443".into(),
            origin: "decisions/projects/demo.yaml:5".to_owned(),
            at: Some("2026-11-22T20:00:00Z".to_owned()),
            who: Some("page session 1a2b".to_owned()),
            cloister: Some("demo-main".to_owned()),
            reason: Some("tests".to_owned()),
        }
    );
    // A grant to another cloister of that name is not one to this.
    let other = CloisterId::of(&name, "/tmp/demo");
    let effective = Effective::load(&home.paths, None, Some((name, other))).unwrap();
    assert_eq!(effective.unused.len(), 1);
    assert!(!effective.yaml(Shown::Values).contains("once.example.com"));
    assert!(!effective.yaml(Shown::Values).contains("api.example.com"), "another project's");
}

#[test]
fn what_is_broken_is_not_shown() {
    let broken: PathBuf = {
        let home = Home::with("proxy: {alow: []}", "");
        let error = Effective::load(&home.paths, Some(&owner()), None).err().unwrap();
        assert_eq!(error.problems.len(), 1);
        error.problems[0].path.strip_prefix(home.dir.path()).unwrap().to_owned()
    };
    assert_eq!(broken, PathBuf::from(".config/cloister/config.yaml"));
}
