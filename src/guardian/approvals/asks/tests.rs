//! One sandbox that asks politely, over a socket, with nobody who answers.

use std::ffi::OsString;
use std::fs;
use std::sync::RwLock;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Handle;

use super::super::{Approvals, Terms};
use super::*;
use crate::audit::{AuditLog, Storage, unified_file};
use crate::config::Approvals as Wishes;
use crate::guardian::ledger::Ledger;
use crate::guardian::notify::{Bus, Caller};
use crate::paths::Paths;
use crate::policy::{Origin, Pattern, Policy, PolicyInput, Unlisted};
use crate::proxy::Policies;
use crate::token::PlainToken;

struct Rules(Arc<Policy>);

impl Policies for Rules {
    fn current(&self) -> Option<Arc<Policy>> {
        Some(Arc::clone(&self.0))
    }
}

struct Scene {
    home: tempfile::TempDir,
    approvals: Arc<Approvals>,
    token: String,
}

impl Scene {
    /// A sandbox for which one name is denied, and all others are asked for with so much patience.
    fn new(patience: Duration) -> Self {
        let home = tempfile::tempdir().unwrap();
        let variable = OsString::from(home.path());
        let paths = Paths::from_environment(|name| (name == "HOME").then(|| variable.clone())).unwrap();
        let directory = paths.audit_dir();
        fs::create_dir_all(&directory).unwrap();
        let storage = Storage { per_cloister: false, max_bytes: 1 << 20, max_files: 4 };
        let log = Ledger::open(&paths, move || AuditLog::open(&directory, storage)).unwrap();
        let caller = Caller::spawn(&Handle::current(), Bus::default());
        let approvals = Arc::new(Approvals::new(Arc::new(log), caller));
        let origin = Origin::new(OriginKind::Global).at("config.yaml:1");
        let denied = Rule::deny(Pattern::parse("denied.test:443").unwrap(), origin);
        let input = PolicyInput { rules: vec![denied], unlisted: Unlisted::Ask, ..PolicyInput::default() };
        let counsel = Counsel {
            approvals: Arc::clone(&approvals),
            cloister: "demo".parse().unwrap(),
            project: "demo".parse().unwrap(),
            branch: None,
            policy: Arc::new(Rules(Arc::new(Policy::new(input)))),
            terms: RwLock::new(Terms { patience, wishes: Wishes { notify: false, ..Wishes::default() } }),
        };
        let token = PlainToken::from_bytes([7; 32]);
        let asks = Asks::new(Arc::new(counsel), HashedToken::of(&token));
        let listener = UnixListener::bind(home.path().join("request.sock")).unwrap();
        tokio::spawn(serve(listener, Arc::new(asks)));
        Self { home, approvals, token: token.expose().to_owned() }
    }

    /// Asks, with so much behind the request.
    async fn begin(&self, host: &str, behind: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.home.path().join("request.sock")).await.unwrap();
        let (body, token) = (format!(r#"{{"host":"{host}","port":443}}"#), &self.token);
        let length = body.len();
        let request = format!(
            "POST /ask HTTP/1.1\r\nHost: x\r\nX-Cloister-Token: {token}\r\nContent-Length: {length}\r\n\r\n{body}{behind}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn ask(&self, host: &str) -> String {
        let (mut stream, mut answer) = (self.begin(host, "").await, String::new());
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Waits until so many requests wait.
    async fn waits_for(&self, count: usize) {
        let mut changes = self.approvals.queue.changes();
        while self.approvals.queue.snapshot().pending.len() != count {
            changes.changed().await.unwrap();
        }
    }

    fn log(&self) -> Vec<serde_json::Value> {
        let home = OsString::from(self.home.path());
        let paths = Paths::from_environment(|name| (name == "HOME").then(|| home.clone())).unwrap();
        let text = fs::read_to_string(unified_file(&paths.audit_dir())).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[tokio::test]
async fn a6_a_client_that_left_bytes_behind_its_request_and_went_away_withdraws_it() {
    let scene = Scene::new(Duration::from_hours(1));
    for behind in ["", "x", "POST /ask HTTP/1.1\r\n"] {
        let stream = scene.begin("a.test", behind).await;
        scene.waits_for(1).await;
        drop(stream);
        scene.waits_for(0).await;
    }
}

#[tokio::test]
async fn a6_who_asks_again_and_again_for_what_waits_is_told_to_wait() {
    let scene = Scene::new(Duration::from_hours(1));
    let held = scene.begin("a.test", "").await;
    scene.waits_for(1).await;
    let mut refused = String::new();
    // Whoever is slower than two a second is not refused.
    for _ in 0..MAX_ASKS * 10 {
        let answer = scene.ask("denied.test").await;
        if !answer.starts_with("HTTP/1.1 200") {
            refused = answer;
            break;
        }
    }
    assert!(refused.starts_with("HTTP/1.1 429") && refused.contains("rate_limited"), "{refused}");
    assert!(refused.contains("retry-after: 1\r\n") && refused.contains("asks too often"), "{refused}");
    assert_eq!(scene.approvals.queue.snapshot().pending.len(), 1, "what waits goes on waiting");
    drop(held);
}

#[tokio::test]
async fn polite_refusals_are_recorded_with_the_rule_and_grouped() {
    let scene = Scene::new(Duration::from_millis(1));
    for _ in 0..3 {
        assert!(scene.ask("denied.test").await.contains("denied_by_rule"));
    }
    assert!(scene.ask("a.test").await.contains("approval_timeout"));
    let log = scene.log();
    let denials: Vec<_> = log.iter().filter(|record| record["event"] == "proxy.deny").collect();
    let told = |record: &serde_json::Value| {
        ["host", "reason", "detail", "rule", "origin"]
            .map(|key| record[key].as_str().unwrap_or("").to_owned())
    };
    let by_rule = ["denied.test", "denied_by_rule", "asked politely", "denied.test:443"];
    assert_eq!(told(denials[0])[..4], by_rule);
    assert!(told(denials[0])[4].contains("config.yaml:1"), "{}", denials[0]);
    assert_eq!(told(denials[1]), ["a.test", "approval_timeout", "asked politely", "", ""]);
    assert_eq!((denials.len(), log[log.len() - 2]["event"].as_str()), (2, Some("proxy.ask")));
}
