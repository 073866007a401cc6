//! Clients that wait for a human.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::harness::{Proxy, Script, Server, read_exactly, within};
use crate::policy::{Effect, Origin, OriginKind, Pattern, Rule, Unlisted};
use crate::proxy::{Ending, Verdict};

fn asking() -> Script {
    Script { unlisted: Unlisted::Ask, ..Script::default() }
}

fn rule(effect: Effect, pattern: &str) -> Rule {
    let (pattern, origin) = (Pattern::parse(pattern).unwrap(), Origin::new(OriginKind::Session).at("once"));
    match effect {
        Effect::Allow => Rule::allow(pattern, origin),
        Effect::Deny => Rule::deny(pattern, origin),
    }
}

/// Asks for a host, and says how the proxy refuses it once the human has said this.
async fn refusal(authority: &str, verdict: Verdict) -> (String, String) {
    let mut proxy = asking().start();
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head(authority)).await;
    let shown = proxy.question().await;
    assert_eq!((shown.authority.as_str(), shown.user_agent), (authority, None));
    assert_eq!(proxy.events(), [""; 0], "nothing is decided yet");
    shown.answer.send(verdict).unwrap();
    let (head, _) = peer.answer().await;
    assert_eq!(proxy.names.asked(), [""; 0], "D3: the DNS is not asked");
    (head, proxy.event().await)
}

#[tokio::test]
async fn a8_a_client_is_held_until_the_answer_and_a_grant_is_its_own() {
    let server = Server::start().await;
    let mut proxy = asking().start();
    let mut peer = proxy.connect();
    let head = proxy.connect_head(&server.authority());
    let head = head.replacen("\r\n", "\r\nUser-Agent: curl/7.88 \u{202e}x\r\n", 1);
    peer.send(&head).await;
    let shown = proxy.question().await;
    assert_eq!(shown.user_agent.as_deref(), Some("curl/7.88 \u{202e}x"));
    shown.answer.send(Verdict::Judge(Some(Arc::new(rule(Effect::Allow, &server.authority()))))).unwrap();
    let mut upstream = server.accept().await;
    assert_eq!(peer.head().await, "HTTP/1.1 200 Connection established\r\n\r\n");
    assert!(proxy.event().await.starts_with(&format!("allow {0} by {0} ", server.authority())));
    peer.send("ping").await;
    assert_eq!(read_exactly(&mut upstream, 4).await, b"ping");
    // T10: other rules do not take the grant away, unless they deny it.
    proxy.policies.replace(Some(Script { allow: vec!["b.test".to_owned()], ..asking() }.policy()));
    assert_eq!(proxy.client.revalidate(), 0);
    // The next one asks anew.
    let mut other = proxy.connect();
    other.send(&head).await;
    drop(proxy.question().await);
    proxy.policies.replace(Some(Script { deny: vec!["origin.test".to_owned()], ..asking() }.policy()));
    assert_eq!(proxy.client.revalidate(), 1);
    assert!(peer.rest().await.is_empty());
}

#[tokio::test]
async fn n9_a_grant_for_another_port_has_the_human_asked_again() {
    let mut proxy = asking().start();
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head("a.test:8443")).await;
    let grant = Arc::new(rule(Effect::Allow, "a.test:443"));
    proxy.question().await.answer.send(Verdict::Judge(Some(grant))).unwrap();
    assert_eq!(proxy.question().await.authority, "a.test:8443");
}

#[tokio::test]
async fn an_answer_that_is_a_rule_for_all_is_judged_like_any_other() {
    let server = Server::start().await;
    let mut proxy = asking().start();
    let mut peer = proxy.connect();
    peer.send(proxy.get_head(&server.authority(), "/x")).await;
    let shown = proxy.question().await;
    let allow = vec![server.authority()];
    proxy.policies.replace(Some(Script { allow, ..asking() }.policy()));
    shown.answer.send(Verdict::Judge(None)).unwrap();
    let mut upstream = server.accept().await;
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await.unwrap();
    assert_eq!(peer.answer().await.1, "hi");
}

#[tokio::test]
async fn every_way_of_not_being_allowed_has_its_own_answer() {
    let denied = Verdict::Judge(Some(Arc::new(rule(Effect::Deny, "a.test:443"))));
    for (verdict, status, event) in [
        (denied, "HTTP/1.1 403 Forbidden\r\n", "deny a.test:443 denied_by_user by a.test:443"),
        (
            Verdict::TimedOut(Duration::from_mins(1)),
            "HTTP/1.1 403 Forbidden\r\n",
            "deny a.test:443 approval_timeout",
        ),
        (
            Verdict::TooMany(Duration::from_secs(5)),
            "HTTP/1.1 429 Too Many Requests\r\n",
            "deny a.test:443 too_many_questions",
        ),
    ] {
        let (head, written) = refusal("a.test:443", verdict).await;
        assert!(head.starts_with(status), "{head}");
        assert_eq!(written, event);
    }
}

#[tokio::test]
async fn i9_what_can_not_be_recorded_is_not_allowed() {
    let mut proxy = asking().start();
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head("a.test:443")).await;
    proxy.question().await.answer.send(Verdict::Unrecorded).unwrap();
    assert!(peer.answer().await.0.contains("X-Cloister-Reason: policy_unavailable\r\n"));
}

async fn held() -> (Proxy, super::harness::Peer, super::harness::Shown) {
    let mut proxy = asking().start();
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head("a.test:443")).await;
    let shown = proxy.question().await;
    (proxy, peer, shown)
}

#[tokio::test]
async fn a6_a_client_that_goes_away_or_only_ends_its_direction_withdraws_its_question() {
    let (_proxy, peer, mut shown) = held().await;
    drop(peer);
    within(shown.answer.closed()).await;
    // Behind the relay, the end of a killed client shows as the end of its direction alone.
    let (_proxy, mut peer, mut shown) = held().await;
    peer.stream.shutdown().await.unwrap();
    within(shown.answer.closed()).await;
}

#[tokio::test]
async fn i9_a_held_client_ends_with_its_sandbox_and_its_guardian() {
    for ending in [Ending::Revoked, Ending::ShuttingDown] {
        let (proxy, mut peer, mut shown) = held().await;
        proxy.client.end(ending);
        assert!(peer.answer().await.0.contains("X-Cloister-Reason: shutting_down\r\n"));
        within(shown.answer.closed()).await;
    }
    let (proxy, mut peer, mut shown) = held().await;
    proxy.client.drain();
    assert!(peer.answer().await.0.contains("X-Cloister-Reason: shutting_down\r\n"));
    within(shown.answer.closed()).await;
}
