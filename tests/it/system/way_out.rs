//! The only way out: the guardian's proxy, seen from inside a real sandbox.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::origin::{Plain, Tls, may_listen_on_443};
use crate::harness::{Done, Host, collect, finish};
use crate::requirement;

/// A host whose settings lead `web.test` to a TLS origin, if this process may serve on port 443.
fn with_tls_origin(page: &str) -> Option<(Host, Tls)> {
    let host = Host::with_bubblewrap()?;
    if !may_listen_on_443() {
        requirement::skip("bubblewrap", "only root may listen on port 443");
        return None;
    }
    let origin = Tls::start(&host, "web.test", page);
    host.configure(&format!("proxy:\n  allow: [web.test]\n  hosts: {{web.test: [{}]}}\n", origin.address));
    Some((host, origin))
}

fn guardian_pid(host: &Host) -> i32 {
    let status: Value = serde_json::from_str(&host.ok(&["guardian", "status", "--json"])).unwrap();
    i32::try_from(status[0]["pid"].as_i64().unwrap()).unwrap()
}

#[test]
fn a_listed_host_is_reached_and_audited() {
    let Some((host, _origin)) = with_tls_origin("the page\n") else { return };
    assert_eq!(
        host.run(&["start", "--", "curl", "-sS", "--cacert", "/work/ca.pem", "https://web.test/"]),
        Done { code: 0, stdout: "the page\n".to_owned(), stderr: String::new() }
    );
    let log = host.ok(&["audit"]);
    assert!(log.contains("proxy.allow demo web.test:443"), "{log}");
    let verified = host.ok(&["audit", "verify"]);
    assert!(verified.contains("audit.jsonl: good"), "{verified}");
}

#[test]
fn an_unlisted_host_is_refused_with_reason_and_hint() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let script = "curl -s -o /dev/null -w '%{http_connect}' https://unlisted.example; echo; \
                  curl -s -i -x $HTTP_PROXY http://unlisted.example/";
    let done = host.inside(script);
    assert!(done.stdout.starts_with("403\n"), "{done:?}");
    let (head, body) = done.stdout.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("HTTP/1.1 403") && head.contains("X-Cloister-Reason: not_allowed"), "{head}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        (&body["error"], &body["layer"], &body["host"], &body["port"]),
        (&"not_allowed".into(), &"proxy".into(), &"unlisted.example".into(), &80.into())
    );
    assert!(body["hint"].as_str().unwrap().contains("proxy.allow"), "{body}");
    let why = host.ok(&["why", "unlisted.example"]);
    assert!(
        why.contains("not_allowed") && why.contains("last refusal") && why.contains("projects/demo.yaml"),
        "{why}"
    );
}

#[test]
fn t1_t2_t3_nothing_is_reached_past_the_proxy() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let origin = Plain::start("outside\n");
    let url = format!("http://{}/", origin.address);
    let reached = finish({
        let mut command = host.program("curl");
        command.args(["-s", &url]);
        command
    });
    assert_eq!(reached.stdout, "outside\n", "the canary is reachable from the host");
    let script = format!(
        "curl -s -m 3 --noproxy '*' {url}; echo $?; env -i curl -s -m 3 {url}; echo $?; \
         env -i curl -s -m 3 http://1.1.1.1/; echo $?; env -i curl -6 -s -m 3 'http://[2606:4700::1111]/'; echo $?; \
         getent hosts example.com; ip -o addr 2>/dev/null | awk '{{print $2}}' | sort -u; \
         perl -MSocket -e 'socket(S, PF_INET, SOCK_DGRAM, 0); \
           print send(S, qq(x), 0, sockaddr_in(53, inet_aton(qq(8.8.8.8)))) ? qq(sent\\n) : qq(unreachable\\n)'"
    );
    let done = host.inside(&script);
    assert_eq!(done.stdout, "7\n7\n7\n7\nlo\nunreachable\n", "{done:?}");
    assert_eq!(origin.connections(), 1, "only the host's own");
}

#[test]
fn i4_a_token_opens_no_other_sandboxs_socket() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    host.ok(&["start", "-p", "second", "-d"]);
    let token = host.ok(&["exec", "second", "--", "printenv", "CLOISTER_TOKEN"]);
    let script = format!(
        "curl -s -o /dev/null -w '%{{http_code}}\\n' -x http://cloister:{}@127.0.0.1:3128 http://web.test/",
        token.trim()
    );
    assert_eq!(host.ok(&["exec", "demo", "--", "sh", "-c", &script]), "407\n");
    let log = host.ok(&["audit", "--cloister", "demo"]);
    assert!(log.contains("unauthenticated"), "{log}");
    assert!(!log.contains(token.trim()), "a token in the audit log");
}

#[test]
fn i9_a_killed_guardian_lets_nothing_through_and_the_next_request_works() {
    let Some((host, _origin)) = with_tls_origin("the page\n") else { return };
    let fetch = "curl -sS --cacert /work/ca.pem https://web.test/";
    let endless = format!(
        "{fetch}endless > /dev/null & echo $! > /tmp/pid; \
        until grep -q 'web.test' /proc/$!/cmdline; do :; done; echo begun; wait $!; echo ended:$?"
    );
    let mut download = host.cloister(&["start", "--", "sh", "-c", &endless]);
    let mut download = download.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    read_line(&mut download, "begun\n");
    while !host.ok(&["guardian", "status", "--json"]).contains("\"tunnels\": 1") {}
    let token = host.ok(&["exec", "demo", "--", "printenv", "CLOISTER_TOKEN"]);
    kill_process(Pid::from_raw(guardian_pid(&host)).unwrap(), Signal::KILL).unwrap();
    let ended = collect(download);
    assert!(ended.stdout.starts_with("ended:") && ended.stdout != "ended:0\n", "{ended:?}");
    // The next command starts a guardian; the sandbox and its token are the same.
    assert_eq!(host.inside(fetch).stdout, "the page\n");
    assert_eq!(host.ok(&["exec", "demo", "--", "printenv", "CLOISTER_TOKEN"]), token);
    let verified = host.run(&["audit", "verify"]);
    assert_eq!(verified.code, 0, "{verified:?}");
}

fn read_line(child: &mut Child, expected: &str) {
    let mut line = vec![0; expected.len()];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(String::from_utf8(line).unwrap(), expected);
}

#[test]
fn while_the_guardian_is_away_the_relay_says_so() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let script = "touch ready; until test -e go; do sleep 0.02; done; \
                  curl -s -o /dev/null -w '%{http_code}' -x $HTTP_PROXY http://web.test/";
    let mut session = host.cloister(&["start", "--", "sh", "-c", script]);
    let session = session.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !host.repository().join("ready").exists() {}
    host.ok(&["guardian", "stop", "--yes"]);
    host.write(&host.repository().join("go"), "");
    assert_eq!(collect(session).stdout, "503");
}

#[test]
fn n10_a_foreign_server_name_gets_the_alert_and_the_audit_log_tells() {
    let Some((host, origin)) = with_tls_origin("the page\n") else { return };
    let fronted = format!(
        "curl -sS --cacert /work/ca.pem --connect-to other.test:443:web.test:443 https://other.test/; \
         echo $?; (printf 'SSH-2.0-x\\r\\n'; sleep 1) | curl -s -m 5 -p -x $HTTPS_PROXY telnet://web.test:443; \
         echo $?; : {}",
        origin.address
    );
    let done = host.inside(&fronted);
    assert!(done.stderr.contains("alert") || done.stderr.contains("unrecognized name"), "{done:?}");
    let log = host.ok(&["audit"]);
    assert!(log.contains("reason=sni_mismatch"), "{log}");
    assert!(log.contains("reason=not_tls"), "{log}");
    let why = host.ok(&["why", "web.test"]);
    assert!(why.contains("is allowed") && why.contains("last refusal"), "{why}");
}

#[test]
fn t10_a_reload_closes_the_tunnels_that_no_rule_allows_any_more() {
    let Some((host, origin)) = with_tls_origin("the page\n") else { return };
    let script = "curl -sS --cacert /work/ca.pem https://web.test/endless > /dev/null; echo ended:$?";
    let mut download = host.cloister(&["start", "--", "sh", "-c", script]);
    let download = download.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !host.run(&["guardian", "status", "--json"]).stdout.contains("\"tunnels\": 1") {}
    host.configure(&format!(
        "proxy:\n  allow: [web.test]\n  deny: [web.test]\n  hosts: {{web.test: [{}]}}\n",
        origin.address
    ));
    let reloaded = host.run(&["guardian", "reload"]);
    // The change may have been noticed before: then the tunnel is closed already.
    assert!(reloaded.stderr.starts_with("read the settings of 1 cloister; "), "{reloaded:?}");
    let ended = collect(download);
    assert!(ended.stdout.starts_with("ended:") && ended.stdout != "ended:0\n", "{ended:?}");
    let why = host.ok(&["why", "web.test"]);
    assert!(why.contains("denied_by_rule") && why.contains("config.yaml:3"), "{why}");
    // A broken file keeps the rules that hold.
    host.configure("proxy: {alow: []}\n");
    let broken = host.run(&["guardian", "reload"]);
    assert_eq!(broken.code, 1);
    assert!(broken.stderr.contains("alow") && broken.stderr.contains("allow"), "{broken:?}");
}

#[test]
fn i1_i2_the_control_socket_wants_its_key_and_a_token_is_none() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let token = host.inside("printenv CLOISTER_TOKEN").stdout.trim().to_owned();
    let control = host.runtime().join("control.sock");
    for route in [
        "GET /version",
        "GET /status",
        "POST /reload",
        "POST /shutdown",
        "POST /handover",
        "POST /tokens",
        "DELETE /tokens/demo",
    ] {
        for authorization in [String::new(), format!("Authorization: Bearer {token}\r\n")] {
            let answer = ask(
                &control,
                &format!("{route} HTTP/1.1\r\nHost: guardian\r\n{authorization}Connection: close\r\n\r\n"),
            );
            assert!(answer.starts_with("HTTP/1.1 403"), "{route}: {answer}");
        }
    }
    let key = fs::read_to_string(host.runtime().join("control.key")).unwrap();
    let answer = ask(
        &control,
        &format!(
            "GET /version HTTP/1.1\r\nHost: guardian\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n\r\n"
        ),
    );
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

fn ask(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a17_a_changed_log_is_named_line_by_line() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.inside("curl -s -x $HTTP_PROXY http://unlisted.example/");
    host.ok(&["shutdown"]);
    let file = host.path("home/.local/share/cloister/audit/audit.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    host.write(&file, text.replacen("unlisted.example", "harmless.example", 1));
    let verified = host.run(&["audit", "verify"]);
    assert_eq!(verified.code, 1, "{verified:?}");
    assert!(verified.stderr.contains("audit.jsonl"), "{verified:?}");
}

#[test]
fn the_real_claude_code_talks_through_the_guardian() {
    let Some(host) = Host::with_bubblewrap() else { return };
    if !may_listen_on_443() {
        return requirement::skip("bubblewrap", "only root may listen on port 443");
    }
    let Some(agent) = claude_code() else { return };
    let folder = host.path("origin");
    fs::create_dir(&folder).unwrap();
    super::origin::certificate(&folder, "api.anthropic.com");
    let origin = Tls::spawn("fake_anthropic.py", &folder, &["--log", "log"]);
    host.write(&host.repository().join("ca.pem"), fs::read(folder.join("cert.pem")).unwrap());
    let copied = finish({
        let mut command = host.program("cp");
        command.args(["-r".into(), agent, host.repository().join("node_modules").into_os_string()]);
        command
    });
    assert_eq!(copied.code, 0, "{copied:?}");
    host.configure(&format!(
        "proxy:\n  hosts: {{api.anthropic.com: [{}]}}\n\
         env:\n  set:\n    ANTHROPIC_API_KEY: sk-ant-fake\n    NODE_EXTRA_CA_CERTS: /work/ca.pem\n    \
         CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: \"1\"\n",
        origin.address
    ));
    let done = host.run(&["start", "--", "node_modules/.bin/claude", "-p", "ping"]);
    assert_eq!(done.stdout, "PONG-FROM-FAKE-API\n", "{done:?}");
    let log = host.ok(&["audit"]);
    assert!(log.contains("proxy.allow demo api.anthropic.com:443"), "{log}");
    assert!(fs::read_to_string(folder.join("log")).unwrap().contains("/v1/messages"));
}

/// The agent's `node_modules`, installed once from the npm registry.
fn claude_code() -> Option<std::ffi::OsString> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("claude-code");
    let modules = folder.join("node_modules");
    if !modules.join(".bin/claude").exists() {
        fs::create_dir_all(&folder).unwrap();
        let install = || {
            let mut npm = crate::harness::plain("npm");
            // npm wants its user's settings.
            npm.envs(std::env::vars_os());
            npm.args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(&folder);
            npm.arg("@anthropic-ai/claude-code@2.1.328").stdout(Stdio::null());
            npm.status().is_ok_and(|status| status.success())
        };
        // A registry may hiccup once.
        if !(install() || install()) {
            requirement::skip("npm", "`npm install` of Claude Code failed");
            return None;
        }
    }
    Some(modules.into_os_string())
}
