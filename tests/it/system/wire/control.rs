//! Who may ask the guardian, what it keeps to itself, and that nothing passes while there is none.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Cloister, Guardian, Recorder, Wire};
use crate::harness::{Host, User, finish, plain};

const ROUTES: [&str; 9] = [
    "GET /version",
    "GET /status",
    "GET /metrics",
    "POST /reload",
    "POST /shutdown",
    "POST /tokens",
    "DELETE /tokens/demo",
    "POST /tokens/demo/started",
    "GET /unknown",
];

#[test]
fn i1_i2_i5_the_control_socket_hears_nobody_without_its_key() {
    let guardian = Guardian::start("");
    let cloister = guardian.register("demo");
    let key = guardian.key();
    let token = &cloister.token;
    let half = &key[..key.len() / 2];
    let refused = [
        String::new(),
        "Authorization:\r\n".to_owned(),
        "Authorization: Bearer\r\n".to_owned(),
        "Authorization: Bearer \r\n".to_owned(),
        format!("Authorization: {key}\r\n"),
        format!("Authorization: Bearer {half}\r\n"),
        format!("Authorization: Bearer {key}0\r\n"),
        format!("Authorization: Bearer {}\r\n", key.to_uppercase()),
        format!("Authorization: Basic {key}\r\n"),
        format!("Authorization: Bearer {token}\r\n"),
        format!("Proxy-Authorization: Bearer {key}\r\n"),
        format!("X-Cloister-Token: {key}\r\n"),
        format!("Authorization: Bearer x\r\nAuthorization: Bearer {key}\r\n"),
    ];
    for route in ROUTES {
        for authorization in &refused {
            let mut wire = guardian.control();
            wire.send(format!(
                "{route} HTTP/1.1\r\nHost: guardian\r\n{authorization}Connection: close\r\nContent-Length: 0\r\n\r\n"
            ));
            assert_eq!(wire.answer().status, 403, "{route} {authorization}");
        }
    }
    assert_eq!(guardian.ask("GET /unknown", "").status, 404);
    // The token opens what it opened before: nothing was revoked or replaced.
    assert_eq!(cloister.ask(cloister.get_head("unlisted.test", "/")).status, 403);
}

#[test]
fn i5_socket_and_key_are_their_users_alone_and_another_user_gains_nothing_by_the_key() {
    let guardian = Guardian::start("");
    let runtime = guardian.host.runtime();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&runtime), 0o700);
    assert_eq!(mode(&runtime.join("control.key")), 0o600);
    assert_eq!(mode(&runtime.join("control.sock")) & 0o077, 0);
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // Even if every file stood open: the kernel says whose process it is.
    let home = guardian.host.home();
    for directory in runtime.ancestors().take_while(|directory| *directory != home) {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(runtime.join("control.sock"), fs::Permissions::from_mode(0o666)).unwrap();
    let status = |user: u32| {
        let mut command = plain("curl");
        command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket"]);
        command.arg(runtime.join("control.sock"));
        command.args(["-H", &format!("Authorization: Bearer {}", guardian.key()), "http://guardian/version"]);
        command.uid(user).gid(user);
        finish(command).stdout
    };
    assert_eq!(status(54_321), "403");
    assert_eq!(status(0), "200");
}

#[test]
fn i4_a_token_opens_its_own_socket_alone_and_dies_with_its_cloister() {
    let origin = Recorder::start();
    let guardian = Guardian::before(&origin);
    let (one, two) = (guardian.register("one"), guardian.register("two"));
    let through =
        |socket: &Cloister, token: &Cloister| socket.ask(token.get_head(&origin.authority(), "/")).status;
    assert_eq!((through(&one, &one), through(&two, &two)), (200, 200));
    assert_eq!((through(&one, &two), through(&two, &one)), (407, 407));
    // Whoever registers again has a new token, and the old one is worth nothing.
    let again = guardian.register("one");
    assert_eq!((through(&again, &one), through(&again, &again)), (407, 200));
    assert_eq!(guardian.ask("DELETE /tokens/one", "").status, 200);
    assert!(UnixStream::connect(&again.socket).is_err(), "no socket without a cloister");
    assert_eq!(through(&two, &again), 407);
    assert_eq!(through(&two, &two), 200);
}

/// A guardian in the foreground, with everything that it says for developers in a file.
fn talkative(host: &Host) -> Child {
    let log = host.path("home/debug.log");
    let mut command = host.cloister(&["--debuglog", log.to_str().unwrap(), "guardian", "run"]);
    let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 5];
    std::io::Read::read_exact(process.stdout.as_mut().unwrap(), &mut line).unwrap();
    assert_eq!(&line, b"ready");
    process
}

/// All files below a directory, with what they hold.
fn files(directory: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            files(&path, found);
        } else if kind.is_file() {
            let content = fs::read(&path).unwrap();
            found.push((path, content));
        }
    }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn i3_a16_no_secret_of_a_request_stands_in_a_file_an_argument_or_an_environment() {
    let origin = Recorder::start();
    let host = Host::new(User::Ordinary);
    host.configure(&format!(
        "proxy:\n  allow: [\"{}\"]\n  hosts: {{origin.test: [{}]}}\n",
        origin.authority(),
        origin.address.ip()
    ));
    let mut process = talkative(&host);
    let guardian = Guardian { host };
    let cloister = guardian.register("demo");
    let authority = origin.authority();
    let body = "password=s3cret-of-the-body";
    let fields = "Authorization: Bearer s3cret-of-the-field\r\nCookie: id=s3cret-of-the-cookie\r\n";
    let sent = format!(
        "POST http://{authority}/s3cret-of-the-path?key=s3cret-of-the-query HTTP/1.1\r\nHost: {authority}\r\n\
         {}{fields}Content-Length: {}\r\n\r\n{body}",
        cloister.proof(),
        body.len()
    );
    assert_eq!(cloister.ask(&sent).status, 200);
    // The same where it is refused, with a wrong token, and where it breaks the grammar.
    assert_eq!(cloister.ask(sent.replace(&authority, "unlisted.test")).status, 403);
    assert_eq!(cloister.ask(sent.replace(&cloister.token, "s3cret-of-another")).status, 407);
    assert_eq!(cloister.ask(sent.replace("HTTP/1.1", "HTTP/9.9")).status, 400);
    assert_eq!(cloister.ask(cloister.connect_head("unlisted.test:443")).status, 403);
    // A token that is sent as a host name is a host name that is refused; nobody knows better.
    let pid = process.id();
    let key = guardian.key();
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("/proc/{pid}/{file}")).unwrap();
        for secret in [&cloister.token, &key, "s3cret"] {
            assert!(!holds(&text, secret), "{file}");
        }
    }
    let mut found = Vec::new();
    files(&guardian.host.home(), &mut found);
    assert!(found.iter().any(|(path, content)| path.ends_with("debug.log") && !content.is_empty()));
    assert!(found.iter().any(|(path, _)| path.ends_with("audit.jsonl")));
    for (path, content) in &found {
        assert!(!holds(content, &cloister.token), "the token is in {}", path.display());
        assert!(!holds(content, "s3cret"), "a secret is in {}", path.display());
        let is_key = path.ends_with("control.key");
        assert!(is_key || !holds(content, &key), "the control key is in {}", path.display());
    }
    // What went upstream went there without the token.
    drop(guardian);
    process.wait().unwrap();
    let requests = origin.requests();
    assert_eq!(requests.len(), 1);
    assert!(
        requests[0]
            .fields
            .iter()
            .all(|(name, value)| { !name.starts_with("proxy-") && !value.contains(&cloister.token) })
    );
}

#[test]
fn i7_the_environment_of_whoever_starts_it_does_not_reach_the_guardian() {
    let origin = Recorder::start();
    let host = Host::new(User::Ordinary);
    host.configure(&format!(
        "proxy:\n  allow: [\"{}\"]\n  hosts: {{origin.test: [{}]}}\n",
        origin.authority(),
        origin.address.ip()
    ));
    let hostile = [
        ("HTTP_PROXY", "http://127.0.0.1:9"),
        ("http_proxy", "http://127.0.0.1:9"),
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("LD_PRELOAD", "/nonexistent/evil.so"),
        ("LD_LIBRARY_PATH", "/nonexistent"),
        ("RES_OPTIONS", "debug"),
        ("LOCALDOMAIN", "evil.test"),
        ("SSL_CERT_FILE", "/nonexistent/ca.pem"),
        ("SSL_CERT_DIR", "/nonexistent"),
        ("SSLKEYLOGFILE", "/tmp/keys"),
        ("RUST_LOG", "trace"),
        ("RUST_BACKTRACE", "full"),
        ("MALLOC_ARENA_MAX", "1"),
        ("MALLOC_PERTURB_", "1"),
        ("TMPDIR", "/nonexistent"),
        ("CLOISTER_TOKEN", "s3cret"),
        ("AWS_SECRET_ACCESS_KEY", "s3cret"),
    ];
    let mut command = host.cloister(&["guardian", "start"]);
    command.envs(hostile);
    let started = finish(command);
    assert_eq!(started.code, 0, "{started:?}");
    let guardian = Guardian { host };
    let environment = fs::read(format!("/proc/{}/environ", guardian.pid())).unwrap();
    let names: Vec<_> = environment
        .split(|byte| *byte == 0)
        .filter(|entry| !entry.is_empty())
        .map(|entry| String::from_utf8_lossy(entry.split(|byte| *byte == b'=').next().unwrap()).into_owned())
        .collect();
    assert!(
        names.iter().all(|name| {
            ["HOME", "PATH"].contains(&name.as_str())
                || (name.starts_with("XDG_") && (name.ends_with("_HOME") || name == "XDG_RUNTIME_DIR"))
        }),
        "{names:?}"
    );
    let cloister = guardian.register("demo");
    assert_eq!(cloister.ask(cloister.get_head(&origin.authority(), "/")).status, 200);
}

#[test]
fn i9_without_a_guardian_there_is_no_way_and_the_next_one_knows_the_same_cloisters() {
    let origin = Recorder::start();
    let guardian = Guardian::before(&origin);
    let cloister = guardian.register("demo");
    let mut tunnel = cloister.connect();
    tunnel.send(cloister.connect_head(&origin.authority()));
    assert_eq!(tunnel.answer().status, 200);
    let mut kept = cloister.connect();
    kept.send(cloister.get_head(&origin.authority(), "/1"));
    assert_eq!(kept.answer().status, 200);
    kill_process(Pid::from_raw(i32::try_from(guardian.pid()).unwrap()).unwrap(), Signal::KILL).unwrap();
    assert_eq!((tunnel.rest(), kept.rest()), (vec![], vec![]));
    assert!(UnixStream::connect(&cloister.socket).is_err());
    // The kernel closes one after the other what a killed process had open.
    let control = guardian.host.runtime().join("control.sock");
    while UnixStream::connect(&control).is_ok() {}
    // With settings that can't be read, none starts and nothing passes.
    let settings = guardian.host.path("home/.config/cloister/config.yaml");
    let good = fs::read_to_string(&settings).unwrap();
    guardian.host.configure("proxy: {alow: []}\n");
    let broken = guardian.host.run(&["guardian", "start"]);
    assert_eq!(broken.code, 1, "{broken:?}");
    assert!(UnixStream::connect(&cloister.socket).is_err());
    guardian.host.configure(&good);
    guardian.host.ok(&["guardian", "start"]);
    assert_eq!(cloister.ask(cloister.get_head(&origin.authority(), "/2")).status, 200);
    assert_eq!(cloister.ask(cloister.get_head("unlisted.test", "/")).status, 403);
    drop(guardian);
    let seen: Vec<_> = origin.requests().iter().map(|request| request.target.clone()).collect();
    assert_eq!(seen, ["/1", "/2"]);
}

#[test]
fn i9_without_room_for_the_record_nothing_passes() {
    let origin = Recorder::start();
    let host = Host::new(User::Ordinary);
    host.configure(&format!(
        "proxy:\n  allow: [\"{}\"]\n  hosts: {{origin.test: [{}]}}\n",
        origin.authority(),
        origin.address.ip()
    ));
    // Files that can't grow beyond 32 blocks of the shell, as on a full disk.
    let mut command = host.program("sh");
    let script = format!("trap '' XFSZ; ulimit -f 32; exec {} guardian run", host.binary().display());
    let mut process = command
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = [0; 5];
    std::io::Read::read_exact(process.stdout.as_mut().unwrap(), &mut line).unwrap();
    let guardian = Guardian { host };
    let cloister = guardian.register("demo");
    let answers: Vec<_> = (0..200)
        .map(|_| cloister.ask(cloister.get_head(&origin.authority(), "/")))
        .map(|answer| (answer.status, answer.reason().to_owned()))
        .collect();
    let passed = answers.iter().take_while(|(status, _)| *status == 200).count();
    assert!(passed > 0 && passed < answers.len(), "{passed}");
    assert!(answers[passed..].iter().all(|answer| *answer == (503, "policy_unavailable".to_owned())));
    let entries = guardian.host.ok(&["audit", "--json"]);
    let entries: Value = serde_json::from_str(&entries).unwrap();
    let allowed = entries.as_array().unwrap().iter().filter(|entry| entry["event"] == "proxy.allow").count();
    drop(guardian);
    process.wait().unwrap();
    assert_eq!(origin.requests().len(), passed);
    assert!(allowed >= passed, "{allowed} {passed}");
}

#[test]
fn i6_h2_the_control_socket_answers_broken_requests_and_goes_on() {
    let guardian = Guardian::start("");
    let key = guardian.key();
    let long = "x".repeat(1 << 20);
    for bytes in [
        "\0\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        format!(
            "GET /version HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\nContent-Length: x\r\n\r\n"
        ),
        format!("GET /{long} HTTP/1.1\r\n\r\n"),
        "POST /tokens HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_owned(),
    ] {
        let mut wire: Wire = guardian.control();
        let _ = wire.try_send(&bytes);
        wire.end();
        let _ = wire.rest();
    }
    for body in [
        "",
        "null",
        "[]",
        "{}",
        "{\"cloister\":\"../../x\",\"project\":\"x\",\"directory\":\"/x\",\"branch\":null,\"network\":\"guarded\"}",
        "{\"cloister\":\"x\",\"project\":\"x\",\"directory\":\"/x\",\"branch\":null,\"network\":\"everything\"}",
        "{\"cloister\":\"x\",\"project\":\"x\",\"directory\":\"/x\",\"branch\":null,\"network\":\"guarded\",\"more\":1}",
        "{\"cloister\":\"x\",\"project\":\"guardian\",\"directory\":\"/x\",\"branch\":null,\"network\":\"guarded\"}",
        &"[".repeat(100_000),
    ] {
        let answer = guardian.ask("POST /tokens", body);
        assert!((400..500).contains(&answer.status), "{} for {:.80}", answer.status, body);
    }
    for path in ["/tokens/..%2f..%2fconfig", "/tokens/%00", "/tokens/.", "/tokens/"] {
        let answer = guardian.ask(&format!("DELETE {path}"), "");
        assert!((400..500).contains(&answer.status), "{path}: {answer:?}");
    }
    assert_eq!(guardian.ask("GET /version", "").status, 200);
    assert_eq!(fs::read_dir(guardian.host.runtime().join("s")).map_or(0, Iterator::count), 0);
}
