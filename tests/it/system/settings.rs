//! `cloister config show`: what holds in this directory, and who said so.

use serde_json::Value;

use crate::harness::{Host, User};

const GLOBAL: &str = "\
proxy:
  unlisted: reject
  upstream: http://me:hunter2@127.0.0.1:3128
env: {set: {API_KEY: hunter2}}
";

const DECISIONS: &str = "\
# by hand
deny:
  - {pattern: \"*.ads.example\", reason: \"no \\x1b[2J ads\"}
";

/// A host with settings, a project's settings, and answers.
fn host() -> Host {
    let host = Host::new(User::Ordinary);
    host.configure(GLOBAL);
    host.write(&host.path("home/.config/cloister/projects/demo.yaml"), "limits: {pids: 99}\nrefs: []\n");
    host.write(&host.path("home/.config/cloister/decisions/global.yaml"), DECISIONS);
    host
}

/// Answers for a project of this name in another directory.
fn foreign(host: &Host) {
    let text = "project: {name: demo, path: /elsewhere/demo, id: '0123456789abcdef'}\n\
                allow: [{pattern: 'foreign.example.com:443'}]\n";
    host.write(&host.path("home/.config/cloister/decisions/projects/demo.yaml"), text);
}

#[test]
fn settings_are_shown_with_their_origins_and_without_secrets() {
    let host = host();
    foreign(&host);
    let done = host.run(&["config", "show", "--origins"]);
    assert_eq!(done.code, 0, "{done:?}");
    for line in [
        "backend: auto  # builtin",
        "    - api.anthropic.com  # builtin",
        "    - \"*.ads.example\"  # decisions/global.yaml:3, reason: no \\u{1b}[2J ads",
        "  unlisted: reject  # config.yaml:2",
        "  upstream: \"http://me:…@127.0.0.1:3128\"  # config.yaml:3",
        "    API_KEY: \"…\"  # config.yaml:4",
        "  pids: 99  # projects/demo.yaml:1",
        "refs: []  # builtin",
    ] {
        assert!(done.stdout.lines().any(|shown| shown == line), "{line}: {done:?}");
    }
    assert!(!done.stdout.contains("hunter2") && !done.stdout.contains("foreign.example.com"), "{done:?}");
    let said = "decisions/projects/demo.yaml:1: `project`: belongs to another project (name `demo`, path `/elsewhere/demo`";
    assert!(done.stderr.starts_with("note: ") && done.stderr.contains(said), "{done:?}");
    assert!(!host.runtime().join("control.sock").exists(), "no guardian is needed");
}

#[test]
fn settings_without_origins_can_be_pasted() {
    let host = host();
    let text = host.ok(&["config", "show"]);
    assert!(!text.contains('#'), "{text}");
    host.configure(&text);
    std::fs::remove_dir_all(host.path("home/.config/cloister/decisions")).unwrap();
    std::fs::remove_dir_all(host.path("home/.config/cloister/projects")).unwrap();
    let again = host.ok(&["config", "show", "--origins"]);
    for line in ["  pids: 99  # config.yaml:", "    - \"*.ads.example\"  # config.yaml:"] {
        assert!(again.lines().any(|shown| shown.starts_with(line)), "{line}: {again}");
    }
}

#[test]
fn settings_are_objects_for_programs() {
    let host = host();
    let rows: Value = serde_json::from_str(&host.ok(&["config", "show", "--json"])).unwrap();
    let rows = rows.as_array().unwrap();
    let of = |key: &str| rows.iter().filter(|row| row["key"] == key).collect::<Vec<_>>();
    let reason = "no \u{1b}[2J ads";
    let denied = serde_json::json!({
        "key": "proxy.deny", "value": "*.ads.example", "origin": "decisions/global.yaml:3", "reason": reason,
    });
    assert_eq!(of("proxy.deny"), [&denied]);
    let pids = serde_json::json!({"key": "limits.pids", "value": 99, "origin": "projects/demo.yaml:1"});
    assert_eq!(of("limits.pids"), [&pids]);
    let key =
        serde_json::json!({"key": "env.set", "name": "API_KEY", "value": "…", "origin": "config.yaml:4"});
    assert_eq!(of("env.set"), [&key]);
    assert_eq!(of("mounts"), [&serde_json::json!({"key": "mounts", "value": [], "origin": "builtin"})]);
}

#[test]
fn without_a_project_what_holds_for_all_is_shown() {
    let host = host();
    let mut command = host.cloister(&["config", "show", "--origins"]);
    command.current_dir(host.path("home"));
    let done = crate::harness::finish(command);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("  unlisted: reject  # config.yaml:2\n"), "{done:?}");
    assert!(done.stdout.contains("  pids: 4096  # builtin\n"), "{done:?}");
    assert!(done.stdout.contains("*.ads.example"), "{done:?}");
    assert!(done.stderr.starts_with("note: no project here"), "{done:?}");
}

#[test]
fn broken_settings_and_answers_are_told_and_not_shown() {
    let host = host();
    host.write(
        &host.path("home/.config/cloister/decisions/projects/demo.yaml"),
        "allow: [{pattern: '*.com'}]",
    );
    host.configure("proxy: {alow: []}");
    let done = host.run(&["config", "show"]);
    assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{done:?}");
    for said in ["config.yaml:1: `proxy.alow`", "decisions/projects/demo.yaml:1: `allow[0].pattern`"] {
        assert!(done.stderr.contains(said), "{said}: {done:?}");
    }
    assert_eq!(
        host.ok(&["config", "path"]),
        format!("{}\n", host.path("home/.config/cloister/config.yaml").display())
    );
}

#[test]
fn grants_of_the_running_session_are_shown_with_origins() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    let receipt = std::fs::read(host.path("home/.local/state/cloister/receipts/demo.json")).unwrap();
    let receipt: Value = serde_json::from_slice(&receipt).unwrap();
    let id = receipt["id"].as_str().unwrap();
    let text =
        format!("cloister: {{name: demo, id: '{id}'}}\nallow: [{{pattern: 'once.example.com:443'}}]\n");
    host.write(&host.path("home/.local/state/cloister/grants/demo.yaml"), text);
    let shown = host.ok(&["config", "show", "--origins"]);
    assert!(shown.contains("    - \"once.example.com:443\"  # grants/demo.yaml:2\n"), "{shown}");
    // What ends with the session is nothing to write into a file.
    assert!(!host.ok(&["config", "show"]).contains("once.example.com"));
    host.ok(&["stop"]);
    assert!(!host.ok(&["config", "show", "--origins"]).contains("once.example.com"));
}
