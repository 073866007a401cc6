//! Tests of what is kept, forgotten, read back and refused.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::config::problem::Report;
use crate::config::{Config, ConfigError, yaml};
use crate::paths::{Lock, PathsError};

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
        .map(ToString::to_string)
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
            "global.yaml:2: sets the key `allow` a second time; the first time is in line 1; keep one of the two",
        ),
    ] {
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

#[test]
fn a_file_says_whose_it_is() {
    let id = owner("/home/u/demo").id();
    let header = format!("project: {{name: demo, path: /home/u/demo, id: '{id}'}}\n");
    let answers = "deny: [{pattern: a.example.com}]";
    let home = Home::new();
    // Comments, other orders and other names of the project are fine; so is a file that says nothing at all.
    for (text, rules) in [
        (format!("# mine\n{header}{answers}"), 1),
        (format!("{answers}\n{header}"), 1),
        (format!("{}{answers}", header.replace("name: demo", "name: other")), 1),
        (header.clone(), 0),
        ("allow:\ndeny: []".to_owned(), 0),
        (String::new(), 0),
    ] {
        home.write(&project(), &text);
        assert_eq!(home.rules(Some(&owner("/home/u/demo"))).len(), rules, "{text}");
        assert_eq!(Config::load_for(&home.paths, Some(&owner("/home/u/demo"))).unwrap().unused, []);
    }
    let own = format!("write `project: {{name: \"demo\", path: \"/home/u/demo\", id: \"{id}\"}}`");
    for (text, expected) in [
        (answers.to_owned(), format!("demo.yaml: `project`: is missing: nothing says whose file this is; {own}")),
        (
            format!("project: {{path: /home/u/demo}}\n{answers}"),
            format!("demo.yaml:1: `project`: needs `name`, `path`, `id`; {own}"),
        ),
        (
            format!("project: demo\n{answers}"),
            "demo.yaml:1: `project`: expected a map of `name`, `path`, `id`, found text".to_owned(),
        ),
        (
            format!("project: {{name: demo, path: /home/u/demo, id: 7}}\n{answers}"),
            "demo.yaml:1: `project.id`: expected text, found a number; put it in quotes if it is meant as text"
                .to_owned(),
        ),
        (
            format!("cloister: {{name: demo}}\n{header}{answers}"),
            "demo.yaml:1: `cloister`: is not a known key; the keys known here are `project`, `allow`, `deny`"
                .to_owned(),
        ),
    ] {
        check_refused(&project(), &text, &[&expected]);
    }
}

/// Either alone is not enough: a moved directory has another path, and a path can be written by anybody.
#[test]
fn path_and_id_have_to_be_the_projects() {
    let home = Home::new();
    let (own, other) = (owner("/home/u/demo"), owner("/tmp/demo"));
    for (path, id) in [("/home/u/demo", other.id()), ("/tmp/demo", own.id()), ("/tmp/demo", other.id())] {
        let header = format!("project: {{name: demo, path: {path}, id: '{id}'}}");
        home.write(&project(), &format!("{header}\nallow: [{{pattern: a.example.com}}]"));
        let config = Config::load_for(&home.paths, Some(&own)).unwrap();
        assert_eq!((home.rules(Some(&own)).len(), config.unused.len()), (0, 1), "{header}");
    }
}

#[test]
fn a_broken_file_of_answers_breaks_the_configuration() {
    let home = Home::new();
    home.write(&project(), "allow: [{pattern: 'https://a.example.com/'}]");
    home.write(&Place::Global, "allow: [\n");
    let broken = Config::load_for(&home.paths, Some(&owner("/home/u/demo"))).unwrap_err();
    let files: Vec<_> = broken.problems.iter().map(|problem| problem.path.clone()).collect();
    assert_eq!(files, [Place::Global.file(&home.paths), project().file(&home.paths)]);
    assert_eq!(Config::load_for(&home.paths, None).unwrap_err().problems.len(), 1);
}

#[test]
fn an_answer_is_found_wherever_it_stands_and_whoevers_it_is() {
    let home = Home::new();
    let stopped = Place::Project(Owner {
        name: ProjectName::parse("gone").unwrap(),
        directory: "/home/u/elsewhere".into(),
    });
    let all = [Place::Global, project(), stopped, session("/home/u/demo")];
    for place in &all {
        home.remember(place, Effect::Allow, "other.test:443").unwrap();
        home.remember(place, Effect::Deny, "a.test:443").unwrap();
    }
    let found = |pattern: &str| {
        let Found { kept, problems } = find(&home.paths, &Pattern::parse(pattern).unwrap());
        let locations: Vec<String> = kept.iter().map(|(_, kept)| kept.location.clone()).collect();
        let places: Vec<Place> = kept.into_iter().map(|(place, _)| place).collect();
        (places, locations, home.shown(&problems))
    };
    let lines = [
        "decisions/global.yaml:6",
        "decisions/projects/demo.yaml:7",
        "decisions/projects/gone.yaml:7",
        "grants/demo-main.yaml:7",
    ];
    assert_eq!(found("a.test:443"), (all.to_vec(), lines.map(str::to_owned).to_vec(), vec![]));
    assert_eq!(found("b.test:443"), (vec![], vec![], vec![]));
    assert_eq!(found("a.test"), (vec![], vec![], vec![]));

    // What can't be read is told and hides nothing else.
    let directory = home.paths.project_decisions_dir();
    fs::write(directory.join("demo.yaml"), "allow: [").unwrap();
    fs::write(directory.join("empty.yaml"), "# nothing\n").unwrap();
    fs::write(directory.join("Not A Name.yaml"), "project: {name: a, path: /a, id: b}\n").unwrap();
    fs::write(directory.join("whose.yaml"), "allow: [{pattern: \"a.test:443\"}]\n").unwrap();
    fs::write(
        directory.join("forged.yaml"),
        "project: {name: a, path: /a, id: b}\nallow: [{pattern: \"a.test:443\"}]\n",
    )
    .unwrap();
    fs::write(directory.join("notes.txt"), "allow: [").unwrap();
    let (places, _, problems) = found("a.test:443");
    assert_eq!(places, [all[0].clone(), all[2].clone(), all[3].clone()]);
    let of = |file: &str| problems.iter().filter(|problem| problem.contains(file)).count();
    assert_eq!(["demo.yaml", "Not A Name.yaml", "whose.yaml", "forged.yaml"].map(of), [1; 4], "{problems:?}");
    assert_eq!(problems.len(), 4, "{problems:?}");
}

#[test]
fn comments_at_the_top_stay() {
    let home = Home::new();
    home.write(
        &Place::Global,
        "\u{feff}# mine: don't touch\r\n#\n\n# not this\nallow:\n  - {pattern: a.example.com} # nor this\n",
    );
    home.remember(&Place::Global, Effect::Allow, "b.example.com:443").unwrap();
    let expected = "# mine: don't touch\n#\nallow:\n  - {pattern: \"a.example.com\"}\n  - {pattern: \"b.example.com:443\"}\n";
    assert_eq!(home.text(&Place::Global), expected);
    // A lone carriage return ends the comment for YAML, and so for us.
    home.write(&Place::Global, "# mine\rallow: [{pattern: a.example.com}]\n");
    home.remember(&Place::Global, Effect::Allow, "b.example.com:443").unwrap();
    assert_eq!(decisions(&home, &Place::Global), [allow("a.example.com"), allow("b.example.com:443")]);
}

#[test]
fn a_link_to_a_file_elsewhere_is_kept() {
    let home = Home::new();
    let elsewhere = home.dir.path().join("dotfiles/global.yaml");
    fs::create_dir(elsewhere.parent().unwrap()).unwrap();
    fs::write(&elsewhere, "").unwrap();
    let file = Place::Global.file(&home.paths);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    symlink(&elsewhere, &file).unwrap();
    home.remember(&Place::Global, Effect::Allow, "a.example.com:443").unwrap();
    assert!(file.is_symlink());
    assert!(fs::read_to_string(&elsewhere).unwrap().contains("a.example.com:443"));
}

#[test]
fn a_file_never_grows_so_large_that_it_can_not_be_read() {
    let home = Home::new();
    let long = |pattern, length| Decision { reason: Some("x".repeat(length)), ..allow(pattern) };
    remember(&home.paths, &Place::Global, long("a.example.com:443", 1_000_000)).unwrap();
    let before = home.text(&Place::Global);
    let refused = remember(&home.paths, &Place::Global, long("b.example.com:443", 100_000)).unwrap_err();
    assert!(matches!(&refused, DecisionsError::Full(path) if *path == Place::Global.file(&home.paths)));
    assert_eq!(home.text(&Place::Global), before);
}

#[test]
fn who_holds_the_lock_holds_nobody_up_for_ever() {
    let home = Home::new();
    let places = [Place::Global, session("/home/u/demo")];
    for place in &places {
        home.remember(place, Effect::Allow, "a.example.com:443").unwrap();
    }
    let _held = places.each_ref().map(|place| Lock::acquire(&place.lock(&home.paths)).unwrap());
    let is_busy = |refused: DecisionsError, place: &Place| matches!(refused, DecisionsError::Busy(path) if path == place.lock(&home.paths));
    thread::scope(|scope| {
        let (home, is_busy) = (&home, &is_busy);
        for place in &places {
            scope.spawn(move || {
                assert!(is_busy(home.remember(place, Effect::Deny, "a.example.com:443").unwrap_err(), place));
            });
            scope.spawn(move || {
                let pattern = Pattern::parse("a.example.com:443").unwrap();
                assert!(is_busy(forget(&home.paths, place, &pattern, None).unwrap_err(), place));
            });
        }
        scope.spawn(|| {
            let error = remove_grants(&home.paths, &CloisterName::parse("demo-main").unwrap()).unwrap_err();
            assert!(crate::text::with_causes(&error).ends_with("another process holds it; try again"));
        });
    });
    assert_eq!(decisions(&home, &Place::Global), [allow("a.example.com:443")]);
}

/// Tries until others leave the lock for a moment.
fn insist<T>(mut change: impl FnMut() -> Result<T, DecisionsError>) -> T {
    loop {
        match change() {
            Err(DecisionsError::Busy(_)) => {}
            other => return other.unwrap(),
        }
    }
}

#[test]
fn nothing_is_lost_between_writers_at_once() {
    let home = Home::new();
    let pattern = |writer, number| format!("h{number}.w{writer}.example.com:443");
    thread::scope(|scope| {
        for writer in 0..4 {
            let home = &home;
            scope.spawn(move || {
                for number in 0..25 {
                    let pattern = pattern(writer, number);
                    insist(|| home.remember(&Place::Global, Effect::Allow, &pattern));
                    if number % 5 == 0 {
                        let pattern = Pattern::parse(&pattern).unwrap();
                        let forgotten = insist(|| forget(&home.paths, &Place::Global, &pattern, None));
                        assert_eq!(forgotten.len(), 1);
                    }
                }
            });
        }
    });
    let kept = decisions(&home, &Place::Global);
    assert_eq!(kept.len(), 4 * 20);
    let left = fs::read_dir(Place::Global.file(&home.paths).parent().unwrap()).unwrap();
    let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "the file and its lock: {names:?}");
}

/// Names the home in which this process, a part of another test, keeps answers without end.
const WRITER: &str = "CLOISTER_TEST_WRITER_HOME";

/// Is no test of its own: the two below run it as a process that is killed or may not write.
#[test]
fn writer_process() {
    let Some(home) = std::env::var_os(WRITER) else { return };
    let paths = Paths::from_environment(|name| (name == "HOME").then(|| home.clone())).unwrap();
    for number in 0.. {
        let answer = explained(Effect::Allow, &format!("h{number}.example.com:443"));
        if let Err(error) = remember(&paths, &Place::Global, answer) {
            let chain = crate::text::with_causes(&error);
            assert!(
                matches!(error, DecisionsError::Paths(PathsError::Io { action: "write", .. })),
                "{chain}"
            );
            return;
        }
    }
}

/// This program as the process above, after a line of shell.
fn writer(home: &Home, first: &str) -> Child {
    #[expect(clippy::disallowed_methods, reason = "a process that can be killed is wanted")]
    let mut command = Command::new("/bin/sh");
    let script = format!("{first}\nexec \"$0\" --exact config::decisions::tests::writer_process");
    command.arg("-c").arg(script).arg(std::env::current_exe().unwrap());
    command.env(WRITER, home.dir.path()).stdout(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn a_killed_writer_leaves_a_whole_file_and_no_lock() {
    let home = Home::new();
    let mut before = 0;
    for _ in 0..5 {
        let mut child = writer(&home, "");
        // Wherever it is, once it has written anew.
        let count = || load(&home.paths, &Place::Global).unwrap().kept.len();
        let mut seen = count();
        while seen <= before + 3 {
            assert!(child.try_wait().unwrap().is_none(), "it writes until it is killed");
            thread::yield_now();
            let now = count();
            assert!(now >= seen, "{now} answers after {seen}");
            seen = now;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        home.remember(&Place::Global, Effect::Deny, "last.example.com:443").unwrap();
        before = decisions(&home, &Place::Global).len();
    }
}

/// As on a full disk, the write breaks off in its midst.
#[test]
fn a_write_that_breaks_off_keeps_the_old_file() {
    let home = Home::new();
    // Two blocks of 512 bytes, or of 1024.
    let mut child = writer(&home, "trap '' XFSZ; ulimit -f 2");
    assert!(child.wait().unwrap().success());
    let kept = decisions(&home, &Place::Global);
    assert!(kept.len() > 1, "{kept:?}");
    let names = fs::read_dir(Place::Global.file(&home.paths).parent().unwrap()).unwrap();
    assert_eq!(names.count(), 2, "the file and its lock");
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
