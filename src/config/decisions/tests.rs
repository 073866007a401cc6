//! Tests of what is kept, forgotten, read back and refused.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::config::problem::Report;
use crate::config::{Config, ConfigError, yaml};

/// Is a home directory of a user.
struct Home {
    dir: TempDir,
    paths: Paths,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().as_os_str().to_owned();
        let paths = Paths::from_environment(|name| (name == "HOME").then(|| home.clone())).unwrap();
        Self { dir, paths }
    }

    fn write(&self, place: &Place, text: &str) {
        let path = place.file(&self.paths);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn text(&self, place: &Place) -> String {
        fs::read_to_string(place.file(&self.paths)).unwrap()
    }

    fn remember(&self, place: &Place, effect: Effect, pattern: &str) -> Result<Remembered, DecisionsError> {
        remember(&self.paths, place, decision(effect, pattern))
    }

    /// Gives the rules of the configuration that people answered.
    fn rules(&self, owner: Option<&Owner>) -> Vec<String> {
        let config = Config::load_for(&self.paths, owner).unwrap();
        let answers = config.proxy.rules.iter().filter(|rule| rule.origin().kind().is_answer());
        answers.map(|rule| format!("{} {rule}: {}", rule.effect().name(), rule.origin())).collect()
    }

    /// Gives problems as they are shown, without the directory.
    fn shown(&self, problems: &[Problem]) -> Vec<String> {
        let dir = format!("{}/", self.dir.path().display());
        problems.iter().map(|problem| problem.to_string().replace(&dir, "")).collect()
    }
}

fn owner(directory: &str) -> Owner {
    Owner { name: ProjectName::parse("demo").unwrap(), directory: directory.into() }
}

fn project() -> Place {
    Place::Project(owner("/home/u/demo"))
}

fn session(directory: &str) -> Place {
    let name = CloisterName::parse("demo-main").unwrap();
    let id = CloisterId::of(&name, directory);
    Place::Session(name, id)
}

fn places() -> [Place; 3] {
    [Place::Global, project(), session("/home/u/demo")]
}

fn decision(effect: Effect, pattern: &str) -> Decision {
    let pattern = Pattern::parse_for(Effect::Deny, pattern).unwrap();
    Decision { effect, pattern, at: None, who: None, cloister: None, reason: None }
}

fn explained(effect: Effect, pattern: &str) -> Decision {
    Decision {
        at: Some("2026-11-22T20:00:00Z".parse().unwrap()),
        who: Some("page session 1a2b".to_owned()),
        cloister: Some(CloisterName::parse("demo-main").unwrap()),
        reason: Some("to fetch: \"it\"".to_owned()),
        ..decision(effect, pattern)
    }
}

fn allow(pattern: &str) -> Decision {
    decision(Effect::Allow, pattern)
}

#[track_caller]
fn decisions(home: &Home, place: &Place) -> Vec<Decision> {
    let loaded = load(&home.paths, place).unwrap();
    assert_eq!(loaded.foreign, None);
    loaded.kept.into_iter().map(|kept| kept.decision).collect()
}

#[test]
fn what_is_kept_is_a_rule_with_its_line() {
    let home = Home::new();
    let kept = remember(&home.paths, &project(), explained(Effect::Allow, "api.example.com:443")).unwrap();
    assert_eq!(kept.location, "decisions/projects/demo.yaml:5");
    assert_eq!(kept.replaced, []);
    home.remember(&Place::Global, Effect::Deny, "*.ads.example:443").unwrap();
    assert_eq!(
        home.text(&project()),
        r#"# Written by the guardian when somebody answers a request; `cloister approvals forget RULE` takes a line out.
# Of comments, only the lines at the top stay when it is written again.
project: {name: "demo", path: "/home/u/demo", id: "ID"}
allow:
  - {pattern: "api.example.com:443", at: "2026-11-22T20:00:00Z", who: "page session 1a2b", cloister: "demo-main", reason: "to fetch: \"it\""}
"#
        .replace("ID", owner("/home/u/demo").id().as_str())
    );
    assert_eq!(
        home.rules(Some(&owner("/home/u/demo"))),
        [
            "deny *.ads.example:443: decision (decisions/global.yaml:4)",
            "allow api.example.com:443: decision (decisions/projects/demo.yaml:5)",
        ]
    );
    assert_eq!(home.rules(None), ["deny *.ads.example:443: decision (decisions/global.yaml:4)"]);
}

#[test]
fn files_of_answers_are_closed_to_others() {
    let home = Home::new();
    for place in places() {
        home.remember(&place, Effect::Allow, "a.example.com:443").unwrap();
        let file = place.file(&home.paths);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700), "{}", file.display());
    }
}

#[test]
fn the_last_word_on_a_pattern_holds() {
    let home = Home::new();
    for place in places() {
        let other = allow("other.example.com:443");
        remember(&home.paths, &place, other.clone()).unwrap();
        home.remember(&place, Effect::Deny, "a.example.com:443").unwrap();
        let denied = explained(Effect::Deny, "a.example.com:443");
        let kept = remember(&home.paths, &place, denied.clone()).unwrap();
        assert_eq!(kept.replaced, [decision(Effect::Deny, "a.example.com:443")], "the newest words stay");
        assert_eq!(decisions(&home, &place), [other.clone(), denied.clone()]);
        let kept = home.remember(&place, Effect::Allow, "a.example.com:443").unwrap();
        assert_eq!(kept.replaced, [denied], "a deny would make the allow void");
        assert_eq!(decisions(&home, &place), [other, allow("a.example.com:443")]);
    }
}

#[test]
fn only_the_same_pattern_gives_way() {
    let home = Home::new();
    for pattern in ["a.example.com:443", "a.example.com:8443", "a.example.com", "*.example.com:443"] {
        let kept = home.remember(&Place::Global, Effect::Deny, pattern).unwrap();
        assert_eq!(kept.replaced, [], "{pattern}");
    }
    assert_eq!(decisions(&home, &Place::Global).len(), 4);
}

#[test]
fn what_is_forgotten_is_told() {
    let home = Home::new();
    let pattern = Pattern::parse("a.example.com:443").unwrap();
    for place in places() {
        assert_eq!(forget(&home.paths, &place, &pattern, None).unwrap(), []);
        assert!(!place.file(&home.paths).exists(), "nothing is made in order to forget");
        home.remember(&place, Effect::Allow, "a.example.com:443").unwrap();
        home.remember(&place, Effect::Allow, "b.example.com:443").unwrap();
        assert_eq!(forget(&home.paths, &place, &pattern, Some(Effect::Deny)).unwrap(), []);
        assert_eq!(forget(&home.paths, &place, &pattern, None).unwrap(), [allow("a.example.com:443")]);
        assert_eq!(forget(&home.paths, &place, &pattern, None).unwrap(), []);
        assert_eq!(decisions(&home, &place), [allow("b.example.com:443")]);
    }
}

/// Invariant 10: neither name nor file makes another project the owner of an answer.
#[test]
fn a_file_of_another_is_not_used_and_not_changed() {
    let home = Home::new();
    home.remember(&project(), Effect::Allow, "a.example.com:443").unwrap();
    let before = home.text(&project());
    let other = owner("/tmp/demo");
    let config = Config::load_for(&home.paths, Some(&other)).unwrap();
    assert_eq!(home.rules(Some(&other)), [""; 0]);
    let id = owner("/home/u/demo").id();
    assert_eq!(
        home.shown(&config.unused),
        [format!(
            ".config/cloister/decisions/projects/demo.yaml:3: `project`: belongs to another project (name `demo`, \
             path `/home/u/demo`, id `{id}`), so nothing in it holds; move the file away; answers then begin a new one"
        )]
    );
    let place = Place::Project(other);
    let refused = home.remember(&place, Effect::Deny, "b.example.com:443").unwrap_err();
    assert!(matches!(&refused, DecisionsError::Foreign(_)), "{refused}");
    let pattern = Pattern::parse("a.example.com:443").unwrap();
    let refused = forget(&home.paths, &place, &pattern, None).unwrap_err();
    assert!(refused.to_string().contains("belongs to another project"), "{refused}");
    assert_eq!(home.text(&project()), before);
}

#[test]
fn grants_belong_to_one_cloister() {
    let home = Home::new();
    let (own, other) = (session("/home/u/demo"), session("/tmp/demo"));
    home.remember(&own, Effect::Allow, "a.example.com:443").unwrap();
    let grants = |place: &Place| {
        let Place::Session(name, id) = place else { panic!("{place:?}") };
        load_grants(&home.paths, name, id).unwrap()
    };
    let (rules, problem) = grants(&own);
    let rules: Vec<_> = rules.iter().map(|rule| format!("{rule}: {}", rule.origin())).collect();
    assert_eq!(rules, ["a.example.com:443: session (grants/demo-main.yaml:5)"]);
    assert_eq!(problem, None);
    let (rules, problem) = grants(&other);
    assert_eq!(rules, []);
    assert!(problem.unwrap().what.starts_with("belongs to another cloister"));
    let name = CloisterName::parse("demo-main").unwrap();
    remove_grants(&home.paths, &name).unwrap();
    remove_grants(&home.paths, &name).unwrap();
    assert_eq!(grants(&other), (Vec::new(), None));
}

/// A3: what the sandbox says as its reason can't become a rule of its own.
#[test]
fn a3_a_reason_is_only_a_reason() {
    let home = Home::new();
    for reason in [
        "x\"}\nallow:\n  - {pattern: \"evil.example.com:443\"}",
        "x\"}, {pattern: \"evil.example.com:443",
        "\\\"}\n- {pattern: evil.example.com}",
        "\u{2028}allow: [evil]\u{85}deny: []\r\nallow: []",
        "\u{0}\u{1b}[2J\u{202e}\u{feff}# no comment",
        "",
        " ",
        "~",
        "null",
        "&a",
        "*a",
        "!tag",
        "---",
        "...",
        "é 東 \u{1f600}\u{e0041}",
    ] {
        let answer = Decision { reason: Some(reason.to_owned()), ..allow("good.example.com:443") };
        remember(&home.paths, &Place::Global, answer.clone()).unwrap();
        assert_eq!(decisions(&home, &Place::Global), [answer], "{reason:?}");
        let text = home.text(&Place::Global);
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(!text.replace('\n', "").chars().any(crate::text::is_deceptive), "{text:?}");
    }
}

#[track_caller]
fn check_refused(place: &Place, text: &str, expected: &[&str]) {
    let home = Home::new();
    home.write(place, text);
    let problems = load(&home.paths, place).unwrap_err().problems;
    let label = place.file(&home.paths).file_name().unwrap().to_string_lossy().into_owned();
    let shown: Vec<_> = problems
        .iter()
        .map(|problem| problem.to_string())
        .map(|shown| shown[shown.find(&label).unwrap()..].to_owned())
        .collect();
    assert_eq!(shown, expected, "{text}");
    // Neither is such a file written over.
    let kept = home.remember(place, Effect::Allow, "a.example.com:443");
    assert!(
        matches!(kept, Err(DecisionsError::Broken(ConfigError { problems: again })) if again == problems)
    );
    let pattern = Pattern::parse("a.example.com:443").unwrap();
    assert!(matches!(forget(&home.paths, place, &pattern, None), Err(DecisionsError::Broken(_))));
    assert_eq!(home.text(place), text);
}

#[test]
fn what_is_no_file_of_answers_is_refused_with_its_line() {
    for (text, expected) in [
        (
            "allow: [",
            "global.yaml:2: is not valid YAML: while parsing a node, did not find expected node content",
        ),
        ("- a", "global.yaml:1: expected a map of `allow`, `deny`, found a list"),
        ("alow: []", "global.yaml:1: `alow`: is not a known key; did you mean `allow`?"),
        (
            "project: {name: demo}",
            "global.yaml:1: `project`: is not a known key; the keys known here are `allow`, `deny`",
        ),
        (
            "allow: a.example.com",
            "global.yaml:1: `allow`: expected a list of answers, found text; write each on a line such as `- {pattern: \"example.com:443\"}`",
        ),
        (
            "deny:\n  - a.example.com",
            "global.yaml:2: `deny[0]`: expected a map of keys, found text; write it such as `{pattern: \"example.com:443\"}`",
        ),
        (
            "deny: [[]]",
            "global.yaml:1: `deny[0]`: expected a map of `pattern`, `at`, `who`, `cloister`, `reason`, found a list",
        ),
        (
            "allow: [{patern: a.example.com}]",
            "global.yaml:1: `allow[0].patern`: is not a known key; did you mean `pattern`?",
        ),
        (
            "allow: [{reason: x}]",
            "global.yaml:1: `allow[0]`: has no `pattern`; write what it is about, such as `pattern: \"example.com:443\"`",
        ),
        (
            "allow:\n- {pattern: a.example.com, at: yesterday}",
            "global.yaml:2: `allow[0].at`: `yesterday` is no time; write one such as `2026-01-31T20:00:00Z`, or leave it out",
        ),
        (
            "allow: [{pattern: a.example.com, who: 7}]",
            "global.yaml:1: `allow[0].who`: expected text, found a number; put it in quotes if it is meant as text",
        ),
        (
            "allow: [{pattern: a.example.com, cloister: ../x}]",
            "global.yaml:1: `allow[0].cloister`: `../x` is not a cloister name: it may hold only lower case letters, digits, `-`, `_` and `.`",
        ),
        (
            "allow: []\nallow: []",
            "global.yaml:2: `allow`: sets the key `allow` a second time; the first time is in line 1",
        ),
    ] {
        let shown: Vec<String> = {
            let home = Home::new();
            home.write(&Place::Global, text);
            home.shown(&load(&home.paths, &Place::Global).unwrap_err().problems)
        };
        let _ = shown;
        check_refused(&Place::Global, text, &[expected]);
    }
}

#[test]
fn n5_no_answer_opens_the_names_of_many_owners() {
    let home = Home::new();
    for pattern in ["*.com:443", "*.co.uk", "*.github.io:443"] {
        let refused = home.remember(&Place::Global, Effect::Allow, pattern).unwrap_err();
        assert!(matches!(refused, DecisionsError::Pattern(_)), "{pattern}: {refused}");
        assert!(!Place::Global.file(&home.paths).exists());
        home.write(&Place::Global, &format!("allow: [{{pattern: '{pattern}'}}]"));
        let error = Config::load_for(&home.paths, None).unwrap_err();
        assert_eq!((error.problems.len(), error.problems[0].line), (1, Some(1)), "{error}");
        fs::remove_file(Place::Global.file(&home.paths)).unwrap();
        home.remember(&Place::Global, Effect::Deny, pattern).unwrap();
        fs::remove_file(Place::Global.file(&home.paths)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_written_is_read_back(
        texts in prop::collection::vec((any::<String>(), "\\PC{0,20}", any::<bool>()), 0..6),
        seconds in -1_000_000_000i64..4_000_000_000,
        nanos in 0..1_000_000_000i32,
        at in 0..3usize,
    ) {
        let effect = |is_allowed| if is_allowed { Effect::Allow } else { Effect::Deny };
        let decisions = texts.into_iter().enumerate().map(|(number, (reason, who, is_allowed))| Decision {
            at: Some(Timestamp::new(seconds, if seconds < 0 { -nanos } else { nanos }).unwrap()),
            who: Some(who),
            reason: Some(reason),
            ..decision(effect(is_allowed), &format!("h{number}.example.com:443"))
        });
        let mut decisions: Vec<Decision> = decisions.collect();
        let place = &places()[at];
        let text = rendering::render("", place, &decisions);
        let mut report = Report::new(Path::new("f"));
        let loaded = decode(yaml::parse(&text, &mut report).unwrap(), place, &mut report);
        prop_assert_eq!(report.into_problems(), []);
        prop_assert_eq!(loaded.foreign, None);
        decisions.sort_by_key(|decision| decision.effect);
        let lines: Vec<&str> = text.lines().collect();
        for kept in &loaded.kept {
            let (_, line) = kept.location.rsplit_once(':').unwrap();
            let line = lines[line.parse::<usize>().unwrap() - 1];
            let start = format!("  - {{pattern: \"{}\"", kept.decision.pattern);
            prop_assert!(line.starts_with(&start), "{}", line);
        }
        let read: Vec<Decision> = loaded.kept.into_iter().map(|kept| kept.decision).collect();
        prop_assert_eq!(read, decisions);
    }

    #[test]
    fn no_text_breaks_the_reader(text in "[a-z:\\-?,\\[\\]{}#'\"*. \\n0-9]{0,60}") {
        let home = Home::new();
        for start in ["", "allow: ", "allow:\n- {pattern: ", "project: "] {
            home.write(&project(), &format!("{start}{text}"));
            let _ = load(&home.paths, &project());
        }
    }
}
