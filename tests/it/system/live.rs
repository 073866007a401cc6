//! Settings that change while the guardian runs, what it measures, and how it says so.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::control::{Client, Tunnel, json, raw};
use super::origin::Plain;
use crate::harness::{Host, User};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// A guardian with cloisters, and an origin behind which connections stay open.
struct Scene {
    host: Host,
    origin: Plain,
}

impl Scene {
    fn new() -> Self {
        let origin = Plain::serve(|mut stream| drop(stream.read(&mut [0])));
        Self { host: Host::new(User::Ordinary), origin }
    }

    /// Settings under which `web.test` leads to the origin, if `is_open`.
    fn rules(&self, is_open: bool) -> String {
        let (address, port) = (self.origin.address.ip(), self.origin.address.port());
        let allow = if is_open { format!("['web.test:{port}']") } else { "[]".to_owned() };
        format!("proxy:\n  unlisted: reject\n  allow: {allow}\n  hosts: {{web.test: [{address}]}}\n")
    }

    fn config(&self) -> PathBuf {
        self.host.path("home/.config/cloister/config.yaml")
    }

    fn project(&self, name: &str) -> PathBuf {
        self.host.path(&format!("home/.config/cloister/projects/{name}.yaml"))
    }

    /// Starts the guardian and registers a cloister of the project of the same name.
    fn serve(&self, name: &str) -> Client {
        self.host.ok(&["guardian", "start"]);
        Client::register(&self.host, name)
    }

    fn tunnel(&self, client: &Client) -> Tunnel {
        client.connect(&format!("web.test:{}", self.origin.address.port())).unwrap()
    }

    /// Tries until a new tunnel is let through.
    fn wait_until_open(&self, client: &Client) -> Tunnel {
        let authority = format!("web.test:{}", self.origin.address.port());
        wait(|| client.connect(&authority).ok())
    }

    fn replace(&self, path: &Path, content: &str) {
        let new = path.with_extension("new");
        self.host.write(&new, content);
        fs::rename(new, path).unwrap();
    }

    fn status(&self) -> Value {
        json(&raw(&self.host, "GET /status", b""))
    }

    fn wait_for_status(&self, holds: impl Fn(&Value) -> bool) -> Value {
        wait(|| Some(self.status()).filter(&holds))
    }
}

#[track_caller]
fn wait<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < end, "it did not come");
    }
}

fn is_broken(status: &Value) -> bool {
    status["settings_problems"].as_array().is_some_and(|problems| !problems.is_empty())
}

#[test]
fn t10_an_edit_by_rename_by_writing_over_and_by_removal_each_closes_the_tunnel() {
    let scene = Scene::new();
    scene.host.write(&scene.config(), scene.rules(true));
    let client = scene.serve("demo");
    let edits: [&dyn Fn(); 4] = [
        &|| scene.replace(&scene.config(), &scene.rules(false)),
        &|| fs::write(scene.config(), scene.rules(false)).unwrap(),
        &|| fs::remove_file(scene.config()).unwrap(),
        &|| fs::rename(scene.config().parent().unwrap(), scene.host.path("home/.config/away")).unwrap(),
    ];
    let mut tunnel = scene.tunnel(&client);
    for edit in edits {
        edit();
        tunnel.wait_for_its_end();
        // A directory that is made anew is noticed too.
        scene.host.write(&scene.config(), scene.rules(true));
        tunnel = scene.wait_until_open(&client);
    }
    let log = scene.host.ok(&["audit"]);
    assert!(log.contains("config.reload") && log.contains("closed tunnels: 1"), "{log}");
    assert!(log.contains("rule_withdrawn"), "{log}");
}

#[test]
fn t10_a_link_to_the_settings_is_followed_wherever_it_is_changed() {
    let scene = Scene::new();
    let store = |below: &str| scene.host.path(&format!("home/store/{below}"));
    scene.host.write(&store("1/config.yaml"), scene.rules(true));
    scene.host.write(&store("2/config.yaml"), scene.rules(false));
    symlink(store("1"), scene.host.path("home/generation")).unwrap();
    fs::remove_file(scene.config()).unwrap();
    symlink(scene.host.path("home/generation/config.yaml"), scene.config()).unwrap();
    let client = scene.serve("demo");
    let lead = |path: &Path, target: &Path| {
        let new = path.with_extension("link");
        symlink(target, &new).unwrap();
        fs::rename(new, path).unwrap();
    };
    let generation = scene.host.path("home/generation");
    // The directory on the way is switched.
    let mut tunnel = scene.tunnel(&client);
    lead(&generation, &store("2"));
    tunnel.wait_for_its_end();
    lead(&generation, &store("1"));
    // The link itself is replaced.
    let mut tunnel = scene.wait_until_open(&client);
    lead(&scene.config(), &store("2/config.yaml"));
    tunnel.wait_for_its_end();
    lead(&scene.config(), &store("1/config.yaml"));
    // What it leads to is written.
    let mut tunnel = scene.wait_until_open(&client);
    fs::write(store("1/config.yaml"), scene.rules(false)).unwrap();
    tunnel.wait_for_its_end();
}

#[test]
fn t10_pins_private_names_and_deny_rules_withdraw_too() {
    let scene = Scene::new();
    scene.host.write(&scene.config(), scene.rules(true));
    let client = scene.serve("demo");
    let port = scene.origin.address.port();
    let other = [
        format!("proxy:\n  allow: ['web.test:{port}']\n  hosts: {{web.test: [127.9.9.9]}}\n"),
        format!("{}  deny: ['web.test:{port}']\n", scene.rules(true)),
        format!("{}  deny: ['{}']\n", scene.rules(true), scene.origin.address),
    ];
    for rules in other.iter().take(2) {
        let mut tunnel = scene.wait_until_open(&client);
        scene.replace(&scene.config(), rules);
        tunnel.wait_for_its_end();
        scene.replace(&scene.config(), &scene.rules(true));
    }
    // A deny rule for the address behind the name.
    let mut tunnel = scene.wait_until_open(&client);
    scene.replace(&scene.config(), &other[2]);
    tunnel.wait_for_its_end();
}

/// Whoever answered once and takes it back withdraws a rule like any other (T10, invariant 10).
#[test]
fn t10_answers_that_are_kept_hold_and_are_withdrawn_at_once() {
    let scene = Scene::new();
    let port = scene.origin.address.port();
    let answer = format!("allow: [{{pattern: 'web.test:{port}'}}]\n");
    let decisions = |below: &str| scene.host.path(&format!("home/.config/cloister/decisions/{below}"));
    scene.host.write(&scene.config(), scene.rules(false));
    scene.host.write(&decisions("global.yaml"), &answer);
    let client = scene.serve("demo");
    let mut tunnel = scene.tunnel(&client);
    scene.replace(&decisions("global.yaml"), "");
    tunnel.wait_for_its_end();
    // The project's own file, which may come to be only now. `printf /src/demo | sha256sum`
    let own = format!("project: {{name: demo, path: /src/demo, id: '24fb704b11269946'}}\n{answer}");
    let foreign = own.replace("/src/demo", "/src/other");
    scene.host.write(&decisions("projects/demo.yaml"), &own);
    let mut tunnel = scene.wait_until_open(&client);
    scene.replace(&decisions("projects/demo.yaml"), "allow: [");
    let status = scene.wait_for_status(is_broken);
    let path = status["settings_problems"][0]["path"].as_str().unwrap();
    assert!(path.ends_with("decisions/projects/demo.yaml"), "{status}");
    assert_eq!(status["cloisters"][0]["is_stale"], true, "{status}");
    tunnel.assert_open();
    scene.replace(&decisions("projects/demo.yaml"), &foreign);
    tunnel.wait_for_its_end();
    assert!(!is_broken(&scene.wait_for_status(|status| !is_broken(status))));
    let why = scene.host.ok(&["why", &format!("web.test:{port}"), "--cloister", "demo"]);
    assert!(why.contains("is refused"), "{why}");
}

#[test]
fn a_broken_file_keeps_the_rules_and_is_told_until_it_is_mended() {
    let scene = Scene::new();
    scene.host.write(&scene.config(), scene.rules(true));
    let client = scene.serve("demo");
    let mut tunnel = scene.tunnel(&client);
    scene.replace(&scene.config(), "proxy:\n  alow: []\n");
    let status = scene.wait_for_status(is_broken);
    let problem = &status["settings_problems"][0];
    assert_eq!(
        (&problem["line"], &status["cloisters"][0]["is_stale"]),
        (&2.into(), &true.into()),
        "{status}"
    );
    assert!(problem["path"].as_str().unwrap().ends_with("config.yaml"), "{status}");
    assert!(problem["problems"][0].as_str().unwrap().contains("`allow`"), "{status}");
    let shown = scene.host.ok(&["guardian", "status"]);
    assert!(
        shown.contains("BROKEN") && shown.contains("config.yaml:2") && shown.contains("demo*"),
        "{shown}"
    );
    assert!(shown.lines().all(|line| line.chars().count() <= 160), "{shown}");
    let why =
        scene.host.ok(&["why", &format!("web.test:{}", scene.origin.address.port()), "--cloister", "demo"]);
    assert!(why.contains("is allowed") && why.contains("by the rules from before"), "{why}");
    // Both the open tunnel and a new one pass by the rules before.
    tunnel.assert_open();
    drop(scene.tunnel(&client));
    let reload = scene.host.run(&["guardian", "reload"]);
    assert!(reload.code == 1 && reload.stderr.contains("config.yaml:2"), "{reload:?}");
    // A new sandbox is refused, and so is this one's renewal: it keeps its way out.
    for name in ["second", "demo"] {
        let answer = Client::try_register(&scene.host, name).unwrap_err();
        assert!(answer.starts_with("HTTP/1.1 500") && answer.contains("config.yaml:2"), "{answer}");
    }
    tunnel.assert_open();
    scene.replace(&scene.config(), &scene.rules(true));
    scene.wait_for_status(|status| !is_broken(status));
    tunnel.assert_open();
    let log = scene.host.ok(&["audit"]);
    let invalid: Vec<&str> = log.lines().filter(|line| line.contains("config.invalid")).collect();
    assert!(matches!(invalid.as_slice(), [line] if line.contains("config.yaml:2")), "{log}");
    assert!(log.contains("is good again"), "{log}");
}

#[test]
fn a_broken_project_file_concerns_its_project_alone() {
    let scene = Scene::new();
    for name in ["one", "two"] {
        scene.host.write(&scene.project(name), scene.rules(true));
    }
    let (one, two) = (scene.serve("one"), scene.serve("two"));
    let (mut first, mut second) = (scene.tunnel(&one), scene.tunnel(&two));
    scene.replace(&scene.project("one"), "proxy: [");
    let status = scene.wait_for_status(is_broken);
    let stale: Vec<_> = status["cloisters"].as_array().unwrap().iter().map(|one| &one["is_stale"]).collect();
    assert_eq!(stale, [true, false], "{status}");
    // The other one's changes still hold at once.
    scene.replace(&scene.project("two"), &scene.rules(false));
    second.wait_for_its_end();
    first.assert_open();
    fs::remove_file(scene.project("one")).unwrap();
    first.wait_for_its_end();
    scene.wait_for_status(|status| !is_broken(status));
}

#[test]
fn every_way_to_be_broken_keeps_the_rules() {
    let scene = Scene::new();
    scene.host.write(&scene.config(), scene.rules(true));
    let client = scene.serve("demo");
    let mut tunnel = scene.tunnel(&client);
    let config = scene.config();
    let breaks: [(&str, &dyn Fn()); 6] = [
        ("is not UTF-8", &|| fs::write(&config, b"\xff\xfe").unwrap()),
        ("larger than 1 MiB", &|| fs::write(&config, "# long\n".repeat(200_000)).unwrap()),
        ("cannot be read", &|| fs::set_permissions(&config, fs::Permissions::from_mode(0o000)).unwrap()),
        ("not a regular file", &|| {
            fs::remove_file(&config).unwrap();
            fs::create_dir(&config).unwrap();
        }),
        ("cannot be read", &|| {
            fs::remove_dir(&config).unwrap();
            symlink("nowhere", &config).unwrap();
        }),
        ("not a regular file", &|| {
            fs::remove_file(&config).unwrap();
            rustix::fs::mkfifoat(rustix::fs::CWD, &config, rustix::fs::Mode::RWXU).unwrap();
        }),
    ];
    for (said, breaking) in breaks {
        if said == "cannot be read" && config.is_file() && !rustix::process::geteuid().is_root() {
            // The mode of the file is what is tested here, whoever owns it.
            fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
        }
        breaking();
        scene.wait_for_status(|status| status["settings_problems"].to_string().contains(said));
        tunnel.assert_open();
    }
    fs::remove_file(&config).unwrap();
    scene.host.write(&config, scene.rules(true));
    scene.wait_for_status(|status| !is_broken(status));
    tunnel.assert_open();
}

#[test]
fn t10_of_a_thousand_edits_the_last_one_holds_and_nothing_is_left_open() {
    let scene = Scene::new();
    scene.host.write(&scene.config(), scene.rules(true));
    let client = scene.serve("demo");
    let before = scene.status()["process"]["descriptors"].as_u64().unwrap();
    for edit in 0..1000 {
        let rules = scene.rules(edit % 2 == 0);
        if edit % 3 == 0 {
            fs::write(scene.config(), rules).unwrap();
        } else {
            scene.replace(&scene.config(), &rules);
        }
    }
    let authority = format!("web.test:{}", scene.origin.address.port());
    wait(|| client.connect(&authority).err());
    // It stays like this: nothing older is applied later.
    scene.host.run(&["guardian", "reload"]);
    assert!(client.connect(&authority).is_err());
    scene.wait_for_status(|status| status["process"]["descriptors"].as_u64().unwrap() <= before + 2);
}

#[test]
fn limits_and_the_way_out_apply_to_new_requests_at_once() {
    let scene = Scene::new();
    scene.host.write(&scene.config(), scene.rules(true));
    let client = scene.serve("demo");
    let mut open = scene.tunnel(&client);
    scene.replace(
        &scene.config(),
        &format!("{}  max_tunnels: 1\n  upstream: 'http://me:secret@127.0.0.1:9'\n", scene.rules(true)),
    );
    let status = scene.wait_for_status(|status| status["cloisters"][0]["max_tunnels"] == 1);
    assert_eq!(status["cloisters"][0]["way_out"], "http://127.0.0.1:9");
    assert!(!scene.host.ok(&["guardian", "status"]).contains("secret"));
    open.assert_open();
    let authority = format!("web.test:{}", scene.origin.address.port());
    assert!(client.connect(&authority).unwrap_err().contains("too_many_tunnels"));
    // A silent tunnel that is opened from now on ends soon.
    scene.replace(&scene.config(), &format!("{}  idle_timeout: 1s\n", scene.rules(true)));
    scene.wait_for_status(|status| status["cloisters"][0]["max_tunnels"] == 512);
    scene.tunnel(&client).wait_for_its_end();
    open.assert_open();
    let log = scene.host.ok(&["audit"]);
    assert!(log.contains("changed: limits, the way out"), "{log}");
}

#[test]
fn at_the_start_a_broken_project_file_stops_the_guardian() {
    let scene = Scene::new();
    scene.host.write(&scene.project("demo"), scene.rules(true));
    let client = scene.serve("demo");
    let pid = i32::try_from(scene.status()["pid"].as_i64().unwrap()).unwrap();
    let mut tunnel = scene.tunnel(&client);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    tunnel.wait_for_its_end();
    scene.replace(&scene.project("demo"), "proxy:\n  allow: 5\n");
    let started =
        wait(|| Some(scene.host.run(&["guardian", "start"])).filter(|done| !done.stderr.contains("already")));
    assert_eq!(started.code, 1, "{started:?}");
    assert!(started.stderr.contains("projects/demo.yaml:2"), "{started:?}");
    scene.replace(&scene.project("demo"), &scene.rules(true));
    scene.host.ok(&["guardian", "start"]);
    drop(scene.tunnel(&client));
}

#[test]
fn status_and_metrics_count_what_each_cloister_does() {
    let scene = Scene::new();
    scene.host.write(&scene.config(), scene.rules(true));
    let client = scene.serve("demo");
    let tunnel = scene.tunnel(&client);
    for _ in 0..2 {
        assert!(client.connect("evil.test:443").unwrap_err().contains("not_allowed"));
    }
    assert!(client.send("GARBAGE\r\n\r\n").contains("bad_request"));
    let status = scene.wait_for_status(|status| status["cloisters"][0]["connections"] == 1);
    let one = &status["cloisters"][0];
    assert_eq!(
        (&one["tunnels"], &one["allowed"], &one["denied"]),
        (&1.into(), &1.into(), &2.into()),
        "{status}"
    );
    assert_eq!(
        (&one["last_denial"]["host"], &one["last_denial"]["reason"]),
        (&"evil.test".into(), &"not_allowed".into())
    );
    let shown = scene.host.ok(&["guardian", "status"]);
    assert!(shown.contains("evil.test:443 (not_allowed)"), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    let answer = raw(&scene.host, "GET /metrics", b"");
    assert!(
        answer.to_lowercase().contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{answer}"
    );
    for wanted in [
        "cloister_requests_total{cloister=\"demo\",decision=\"allow\",reason=\"none\"} 1\n",
        "cloister_requests_total{cloister=\"demo\",decision=\"deny\",reason=\"not_allowed\"} 2\n",
        "cloister_requests_total{cloister=\"demo\",decision=\"deny\",reason=\"bad_request\"} 1\n",
        "cloister_open_tunnels{cloister=\"demo\"} 1",
        "cloister_step_seconds_count{step=\"connect\"} 1\n",
        "cloister_step_seconds_count{step=\"refusal\"} 2\n",
        "cloister_settings_broken_files 0",
        "cloister_build_info{version=",
    ] {
        assert!(answer.contains(wanted), "{wanted}: {answer}");
    }
    assert!(answer.ends_with("# EOF\n") && !answer.contains("evil"), "{answer}");
    let printed = scene.host.ok(&["guardian", "status", "--metrics"]);
    assert!(printed.contains("# TYPE cloister_requests counter"), "{printed}");
    drop(tunnel);
    // Its end is counted, and what is revoked is gone.
    wait(|| {
        raw(&scene.host, "GET /metrics", b"").contains("cloister_ends_total{cloister=\"demo\"").then_some(())
    });
    raw(&scene.host, "DELETE /tokens/demo", b"");
    assert!(!raw(&scene.host, "GET /metrics", b"").contains("demo"));
}

#[test]
fn i1_the_control_socket_takes_no_nonsense() {
    let scene = Scene::new();
    let _client = scene.serve("demo");
    let good = r#"{"cloister":"b","project":"b","directory":"/src/b","branch":null,"network":"guarded"}"#;
    let long = format!("/{}", "x".repeat(8000));
    let cases: [(&str, &str, &str); 12] = [
        ("POST /tokens", "", "400"),
        ("POST /tokens", "{", "400"),
        ("POST /tokens", "[]", "400"),
        ("POST /tokens", "\u{0}\u{1}", "400"),
        ("POST /tokens", &good.replace("\"b\",", "\"../b\","), "400"),
        ("POST /tokens", &good.replace('}', ",\"root\":true}"), "400"),
        ("POST /tokens", &good.replace("guarded", "everywhere"), "400"),
        ("DELETE /tokens/..%2Fdemo", "", "400"),
        ("GET /tokens/%ff", "", "405"),
        ("PUT /status", "", "405"),
        ("GET /nothing", "", "404"),
        (&format!("GET {long}"), "", "404"),
    ];
    for (route, body, status) in cases {
        let answer = raw(&scene.host, route, body.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{route} {body}: {answer}");
        assert!(answer.contains("\"error\""), "{route}: {answer}");
    }
    let large = vec![b' '; 70 << 10];
    assert!(raw(&scene.host, "POST /tokens", &large).starts_with("HTTP/1.1 413"));
    for bytes in [
        &b"\0\0\0\0"[..],
        b"GET\r\n\r\n",
        "a".repeat(40_000).as_bytes(),
        "GET / HTTP/1.1\r\n".repeat(2000).as_bytes(),
    ] {
        let mut stream = UnixStream::connect(scene.host.runtime().join("control.sock")).unwrap();
        // It may hang up before all is written.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    assert_eq!(scene.status()["cloisters"].as_array().unwrap().len(), 1);
}

#[test]
fn i1_who_stays_silent_on_the_control_socket_keeps_nobody_out() {
    let scene = Scene::new();
    let _client = scene.serve("demo");
    let socket = scene.host.runtime().join("control.sock");
    let silent: Vec<_> = (0..200).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let mut slow = UnixStream::connect(&socket).unwrap();
    slow.write_all(b"GET /status HTTP/1.1\r\nHost:").unwrap();
    // They are cut off, however many they are.
    assert_eq!(scene.status()["cloisters"].as_array().unwrap().len(), 1);
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = Vec::new();
    let _ = slow.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
    drop(silent);
}
