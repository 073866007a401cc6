//! Who asks, for what, and what the answer says.

use std::net::IpAddr;

use tokio::io::AsyncWriteExt as _;

use super::harness::{Script, Server, read_head, within};
use crate::policy::{Authority, Origin, OriginKind, Pattern, Rule};
use crate::proxy::admission::tunnels::ConnectionId;
use crate::proxy::connection::Caller;
use crate::proxy::head::{Head, Parser};
use crate::proxy::pipeline::Accepted;
use crate::proxy::refusal::{After, Show};
use crate::proxy::{Ending, ResolveError};

fn json(error: &str, host: &str, port: u16, hint: &str) -> String {
    format!(r#"{{"error":"{error}","layer":"proxy","host":"{host}","port":{port},"hint":"{hint}"}}"#)
}

#[tokio::test]
async fn challenge_comes_first_and_the_connection_goes_on() {
    let origin = Server::start().await;
    let mut proxy = Script::allowing(origin.authority()).start();
    let mut peer = proxy.connect();
    let authority = origin.authority();
    peer.send(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")).await;
    let (head, body) = peer.answer().await;
    assert_eq!(
        head,
        format!(
            "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             X-Cloister-Reason: unauthenticated\r\nProxy-Authenticate: Basic realm=\"cloister\"\r\n\
             Connection: keep-alive\r\n\r\n",
            body.len()
        )
    );
    assert_eq!(
        body,
        r#"{"error":"unauthenticated","layer":"proxy","host":null,"port":null,"hint":"send the token of this sandbox: the proxy variables of the environment hold it"}"#
    );
    assert_eq!(proxy.events(), [""; 0], "a challenge is no denial");

    // What git does: the same connection, now with credentials.
    peer.send(proxy.connect_head(&authority)).await;
    assert_eq!(peer.head().await, "HTTP/1.1 200 Connection established\r\n\r\n");
    let mut upstream = origin.accept().await;
    upstream.write_all(b"hi").await.unwrap();
    assert_eq!(peer.exactly(2).await, b"hi");
}

#[tokio::test]
async fn i4_wrong_token_is_refused_and_audited() {
    let mut proxy = Script::allowing("origin.test").start();
    let mut peer = proxy.connect();
    for proof in ["Bearer wrong", "Basic d3Jvbmc=", "Basic ?", "Negotiate x"] {
        peer.send(format!("CONNECT origin.test:443 HTTP/1.1\r\nHost: origin.test:443\r\nProxy-Authorization: {proof}\r\n\r\n"))
            .await;
        let (head, body) = peer.answer().await;
        assert!(head.starts_with("HTTP/1.1 407 "), "{head}");
        assert!(body.starts_with(r#"{"error":"unauthenticated","layer":"proxy","host":null"#), "{body}");
        assert_eq!(proxy.event().await, "deny - unauthenticated");
    }
}

#[tokio::test]
async fn denied_host_without_token_learns_nothing_of_the_list() {
    let mut proxy = Script::allowing("origin.test").start();
    let mut answers = Vec::new();
    for host in ["origin.test:443", "denied.test:443"] {
        let mut peer = proxy.connect();
        peer.send(format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        answers.push(peer.answer().await);
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test]
async fn d3_unlisted_host_is_refused_without_a_question_to_the_dns() {
    let mut proxy = Script::allowing("other.test").start();
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head("api.unlisted.test:443")).await;
    let (head, body) = peer.answer().await;
    assert_eq!(
        head,
        format!(
            "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             X-Cloister-Reason: not_allowed\r\nConnection: keep-alive\r\n\r\n",
            body.len()
        )
    );
    assert_eq!(
        body,
        json(
            "not_allowed",
            "api.unlisted.test",
            443,
            "`api.unlisted.test:443` is not on the allowlist; on the host, add `api.unlisted.test` to proxy.allow in \
             projects/demo.yaml of Cloister's configuration and run `cloister guardian reload`"
        )
    );
    assert_eq!(proxy.event().await, "deny api.unlisted.test:443 not_allowed");

    // The other form takes the same way, on the same connection.
    peer.send(proxy.get_head("api.unlisted.test:8080", "/x")).await;
    let (_, body) = peer.answer().await;
    assert!(body.contains("add `api.unlisted.test:8080` to proxy.allow"), "{body}");
    assert_eq!(proxy.names.asked(), [""; 0]);
}

#[tokio::test]
async fn deny_rule_is_not_shown_to_the_sandbox() {
    let mut proxy =
        Script { allow: vec!["*.b.test".into()], deny: vec!["*.c.b.test".into()], ..Script::default() }
            .start();
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head("a.c.b.test:443")).await;
    let (head, body) = peer.answer().await;
    assert!(head.contains("X-Cloister-Reason: denied_by_rule\r\n"), "{head}");
    assert!(!body.contains("*.c"), "{body}");
    assert_eq!(proxy.event().await, "deny a.c.b.test:443 denied_by_rule by *.c.b.test");
}

#[tokio::test]
async fn n9_connect_never_goes_to_port_80() {
    let mut proxy = Script::allowing("origin.test:80").start();
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head("origin.test:80")).await;
    let (_, body) = peer.answer().await;
    let hint = "CONNECT never goes to port 80: ask for `http://origin.test/` instead";
    assert_eq!(body, json("not_allowed", "origin.test", 80, hint));
}

#[tokio::test]
async fn d7_a_local_name_is_told_to_be_pinned_whether_or_not_it_is_listed() {
    for allow in [vec!["db".to_owned()], Vec::new()] {
        let mut proxy = Script { allow, ..Script::default() }.start();
        let mut peer = proxy.connect();
        for (head, pattern) in
            [(proxy.connect_head("db:443"), "db"), (proxy.get_head("db:8080", "/"), "db:8080")]
        {
            peer.send(head).await;
            let (head, body) = peer.answer().await;
            assert!(head.contains("X-Cloister-Reason: not_allowed\r\n"), "{head}");
            let hint = format!(
                "`db` is a local name, which is never resolved; on the host, add `{pattern}` to proxy.allow and an \
                 address for `db` to proxy.hosts in projects/demo.yaml"
            );
            assert!(body.contains(&hint), "{body}");
        }
    }
}

#[tokio::test]
async fn what_a_human_denied_is_told_as_such() {
    let mut proxy = Script::allowing("a.test").start();
    let denied = Rule::deny(Pattern::parse("a.test").unwrap(), Origin::new(OriginKind::Decision));
    proxy.policies.replace(Some(Script::allowing("a.test").policy_with(vec![denied])));
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head("a.test:443")).await;
    let (head, body) = peer.answer().await;
    assert!(head.contains("X-Cloister-Reason: denied_by_user\r\n"), "{head}");
    let hint = "a human denied `a.test:443`; on the host, `cloister why a.test:443` tells more";
    assert_eq!(body, json("denied_by_user", "a.test", 443, hint));
    assert_eq!(proxy.event().await, "deny a.test:443 denied_by_user by a.test");
}

#[tokio::test]
async fn d4_private_answer_for_a_public_name_is_refused() {
    for answer in [vec!["10.1.2.3"], vec!["93.184.216.34", "127.0.0.1"], vec!["169.254.169.254"], vec!["::1"]]
    {
        let answer: Vec<IpAddr> = answer.iter().map(|text| text.parse().unwrap()).collect();
        let mut proxy = Script { answers: vec![Ok(answer.clone())], ..Script::allowing("a.test") }.start();
        let mut peer = proxy.connect();
        peer.send(proxy.connect_head("a.test:443")).await;
        let (head, body) = peer.answer().await;
        assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
        let hint = "`a.test` leads to an address that no sandbox may reach; on the host, `cloister why a.test:443` tells more";
        assert_eq!(body, json("address_forbidden", "a.test", 443, hint), "{answer:?}");
        assert!(
            proxy.event().await.starts_with("deny a.test:443 address_forbidden by a.test ("),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn d5_what_was_checked_is_what_is_dialled() {
    let answers = vec![Ok(vec![IpAddr::from([8, 8, 8, 8])]), Ok(vec![IpAddr::from([127, 0, 0, 1])])];
    let mut proxy = Script { answers, ..Script::allowing("a.test") }.start();
    let head = parse(&proxy.connect_head("a.test:443"));
    // Up to the step before dialling, which opens a socket to nothing but what is recorded here.
    let accepted =
        Accepted { client: &proxy.client.clone(), caller: &Caller::new(ConnectionId(1)), head: &head };
    let permitted = accepted.authenticate().unwrap().evaluate().await.unwrap().resolve().await.unwrap();
    let recorded = permitted.record().await.unwrap();
    assert_eq!(proxy.names.asked(), ["a.test"]);
    assert_eq!(proxy.event().await, "allow a.test:443 by a.test at [8.8.8.8:443]");
    drop(recorded);
    assert_eq!(proxy.event().await, "close a.test:443 aborted 0/0");
}

#[tokio::test]
async fn dns_errors_have_reasons_of_their_own() {
    for (error, reason, hint) in [
        (ResolveError::Failed(None), "dns_failed", "is the name right?"),
        (ResolveError::TooMany, "dns_failed", "`a.test` has more addresses than make sense"),
        (ResolveError::Timeout, "dns_timeout", "try again later"),
        (ResolveError::Refused, "dns_refused", "it may be filtered there"),
    ] {
        let mut proxy = Script { answers: vec![Err(error)], ..Script::allowing("a.test") }.start();
        let mut peer = proxy.connect();
        peer.send(proxy.connect_head("a.test:443")).await;
        let (head, body) = peer.answer().await;
        assert!(head.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{head}");
        assert!(head.contains(&format!("X-Cloister-Reason: {reason}\r\n")), "{head}");
        assert!(body.contains(hint), "{body}");
        assert!(proxy.event().await.starts_with(&format!("deny a.test:443 {reason} (")));
    }
}

#[tokio::test]
async fn closed_port_is_a_failed_connection() {
    let gone = Server::start().await;
    let authority = gone.authority();
    drop(gone);
    let mut proxy = Script::allowing(&authority).start();
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head(&authority)).await;
    let (head, body) = peer.answer().await;
    assert!(head.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{head}");
    assert!(
        body.contains(r#""error":"connect_failed""#) && body.contains("it refuses connections"),
        "{body}"
    );
    assert!(!body.contains("127.0.0.1"), "{body}");
    assert!(proxy.event().await.starts_with("allow "));
    let close = proxy.event().await;
    assert!(close.starts_with(&format!("close {authority} connect_failed 0/0 (`127.0.0.1:")), "{close}");
    assert!(close.ends_with("Connection refused (os error 111))"), "{close}");
}

#[tokio::test]
async fn i9_without_a_record_nothing_flows() {
    for via in ["CONNECT", "GET"] {
        let origin = Server::start().await;
        let mut proxy = Script { journal_fails: true, ..Script::allowing(origin.authority()) }.start();
        let mut peer = proxy.connect();
        let request = match via {
            "CONNECT" => proxy.connect_head(&origin.authority()),
            _ => proxy.get_head(&origin.authority(), "/"),
        };
        peer.send(request).await;
        let (head, body) = peer.answer().await;
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
        assert!(body.contains(r#""error":"policy_unavailable""#), "{body}");
        assert!(origin.stayed_untouched());
    }
}

#[tokio::test]
async fn i9_without_a_policy_nothing_flows() {
    let origin = Server::start().await;
    let mut proxy = Script::allowing(origin.authority()).start();
    proxy.policies.replace(None);
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head(&origin.authority())).await;
    let (head, _) = peer.answer().await;
    assert!(head.contains("X-Cloister-Reason: policy_unavailable\r\n"), "{head}");
    assert!(origin.stayed_untouched());
}

#[tokio::test]
async fn malformed_heads_are_answered_and_the_connection_ends() {
    for (text, status, reason) in [
        ("GET / HTTP/1.1\r\nHost: cloister-guardian\r\n\r\n", "404 Not Found", "bad_request"),
        ("TRACE http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "405 Method Not Allowed", "bad_request"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400 Bad Request", "bad_request"),
        ("SSH-2.0-OpenSSH_9.6\r\n\r\n", "400 Bad Request", "bad_request"),
        ("GET http://a.test/ HTTP/1.1\nHost: a.test\n\n", "400 Bad Request", "bad_request"),
    ] {
        let mut proxy = Script::default().start();
        let mut peer = proxy.connect();
        peer.send(text).await;
        let answer = String::from_utf8(peer.rest().await).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        assert!(
            answer.contains(&format!("X-Cloister-Reason: {reason}\r\nConnection: close\r\n"))
                || answer.contains(&format!("X-Cloister-Reason: {reason}\r\nAllow: ")),
            "{answer}"
        );
        assert_eq!(proxy.events(), [""; 0]);
    }
}

#[tokio::test]
async fn h15_head_that_is_too_large_is_answered() {
    let mut proxy = Script::default().start();
    let mut peer = proxy.connect();
    peer.send(format!("GET http://a.test/ HTTP/1.1\r\nX: {}", "a".repeat(20_000))).await;
    let answer = String::from_utf8(peer.rest().await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{answer}");
    assert!(answer.contains("at most 16 KiB and 100 header fields"), "{answer}");
}

#[tokio::test]
async fn h1_refused_request_with_a_body_ends_the_connection() {
    let mut proxy = Script::default().start();
    let mut peer = proxy.connect();
    let smuggled = proxy.get_head("b.test", "/");
    peer.send(format!(
        "POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\n{}Content-Length: {}\r\n\r\n{smuggled}",
        proxy.proof(),
        smuggled.len()
    ))
    .await;
    let answer = String::from_utf8(peer.rest().await).unwrap();
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn early_bytes_behind_a_refused_connect_are_no_request() {
    let mut proxy = Script::default().start();
    let mut peer = proxy.connect();
    let both = proxy.connect_head("a.test:443") + &proxy.get_head("b.test", "/");
    peer.send(both).await;
    let answer = String::from_utf8(peer.rest().await).unwrap();
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

#[tokio::test]
async fn head_request_is_refused_without_a_body() {
    let mut proxy = Script::default().start();
    let mut peer = proxy.connect();
    peer.send(format!(
        "HEAD http://a.test/ HTTP/1.1\r\nHost: a.test\r\n{}Connection: close\r\n\r\n",
        proxy.proof()
    ))
    .await;
    let answer = String::from_utf8(peer.rest().await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn k12_h11_both_forms_meet_the_same_refusal() {
    for authority in
        ["169.254.169.254:8080", "metadata.google.internal:8080", "127.0.0.1:8080", "denied.test:8080"]
    {
        let script = || Script {
            allow: ["169.254.169.254:8080", "metadata.google.internal:8080", "127.0.0.1:8080"]
                .map(str::to_owned)
                .into(),
            ..Script::default()
        };
        let mut reasons = Vec::new();
        for connect in [true, false] {
            let mut proxy = script().start();
            let mut peer = proxy.connect();
            let head = if connect { proxy.connect_head(authority) } else { proxy.get_head(authority, "/") };
            peer.send(head).await;
            let (head, _) = peer.answer().await;
            reasons.push(head.lines().find(|line| line.starts_with("X-Cloister-Reason")).unwrap().to_owned());
            assert_eq!(proxy.names.asked(), [""; 0]);
        }
        assert_eq!(reasons[0], reasons[1], "{authority}");
    }
}

#[tokio::test]
async fn credentials_do_not_reach_the_upstream() {
    let origin = Server::start().await;
    let mut proxy = Script::allowing(origin.authority()).start();
    let mut peer = proxy.connect();
    peer.send(proxy.get_head(&origin.authority(), "/a?b")).await;
    let mut upstream = origin.accept().await;
    let head = read_head(&mut upstream).await;
    assert_eq!(
        head.to_ascii_lowercase(),
        format!("get /a?b http/1.1\r\nhost: {}\r\n\r\n", origin.authority())
    );
}

fn parse(text: &str) -> Head {
    Parser::default().parse(&mut bytes::BytesMut::from(text)).unwrap().unwrap()
}

#[test]
fn only_port_443_is_kept_to_tls() {
    use crate::proxy::connect::Inside;
    let inside = |text| Inside::of(&Authority::parse(text).unwrap());
    assert!(matches!(inside("a.test:443"), Inside::Tls(host) if host.to_string() == "a.test"));
    assert!(matches!(inside("192.0.2.1:443"), Inside::Tls(_)));
    assert!(matches!(inside("a.test:8443"), Inside::Anything));
}

#[tokio::test]
async fn t11_a_name_that_leads_to_this_machine_is_refused() {
    let own = IpAddr::from([8, 8, 4, 4]);
    let script = Script { answers: vec![Ok(vec![own])], own: vec![own], ..Script::allowing("a.test") };
    let mut proxy = script.start();
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head("a.test:443")).await;
    assert!(peer.head().await.contains("X-Cloister-Reason: address_forbidden\r\n"));
    assert_eq!(
        proxy.event().await,
        "deny a.test:443 address_forbidden by a.test (`8.8.4.4` belongs to this machine)"
    );
}

#[tokio::test]
async fn s4_a_denied_address_closes_the_tunnel_of_a_name() {
    let origin = Server::start().await;
    let mut proxy = Script::allowing(origin.authority()).start();
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head(&origin.authority())).await;
    peer.head().await;
    assert!(proxy.event().await.starts_with("allow "));
    let denying = Script { deny: vec!["127.0.0.1".to_owned()], ..Script::allowing(origin.authority()) };
    proxy.policies.replace(Some(denying.policy()));
    assert_eq!(proxy.client.revalidate(), 1);
    assert_eq!(peer.rest().await, b"");
    assert_eq!(proxy.event().await, format!("close {} rule_withdrawn 0/0", origin.authority()));
    peer = proxy.connect();
    peer.send(proxy.connect_head(&origin.authority())).await;
    assert!(peer.head().await.contains("X-Cloister-Reason: denied_by_rule\r\n"));
    let event = proxy.event().await;
    assert!(
        event.starts_with(&format!("deny {} denied_by_rule by 127.0.0.1 (", origin.authority())),
        "{event}"
    );
}

#[tokio::test]
async fn d3_a16_a_question_to_the_dns_leaves_a_record_also_when_the_client_has_gone() {
    let mut proxy = Script::allowing("silent.test").start();
    for (head, port) in
        [(proxy.connect_head("silent.test:443"), 443), (proxy.get_head("silent.test:80", "/"), 80)]
    {
        let mut peer = proxy.connect();
        peer.send(head).await;
        drop(peer);
        assert_eq!(proxy.event().await, format!("deny silent.test:{port} client_reset"));
    }
    assert_eq!(proxy.client.open_tunnels(), 0);
}

#[tokio::test]
async fn d3_a16_a_question_to_the_dns_leaves_a_record_also_when_it_is_ended() {
    for (ending, reason, detail, hint) in [
        (None, "not_allowed", "rule_withdrawn", "was withdrawn meanwhile; try again"),
        (Some(Ending::Revoked), "shutting_down", "token_revoked", "this sandbox was stopped"),
        (
            Some(Ending::ShuttingDown),
            "shutting_down",
            "shutting_down",
            "the guardian is shutting down; try again",
        ),
    ] {
        let mut proxy = Script::allowing("silent.test").start();
        let mut peer = proxy.connect();
        peer.send(proxy.connect_head("silent.test:443")).await;
        within(async {
            while proxy.names.asked().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        if let Some(ending) = ending {
            proxy.client.end(ending);
        } else {
            proxy.policies.replace(Some(Script::default().policy()));
            assert_eq!(proxy.client.revalidate(), 1);
        }
        let (head, body) = peer.answer().await;
        assert!(head.contains(&format!("X-Cloister-Reason: {reason}\r\n")), "{head}");
        assert!(body.contains(hint), "{body}");
        assert_eq!(proxy.events(), [format!("deny silent.test:443 {reason} ({detail})")]);
    }
}

#[tokio::test]
async fn i4_a_request_that_comes_behind_the_end_is_refused_and_recorded() {
    let mut proxy = Script::allowing("a.test").start();
    let head = parse(&proxy.connect_head("a.test:443"));
    proxy.client.end(Ending::Revoked);
    let accepted =
        Accepted { client: &proxy.client.clone(), caller: &Caller::new(ConnectionId(1)), head: &head };
    let refusal = accepted.authenticate().unwrap().evaluate().await.err().unwrap();
    let answer = String::from_utf8(refusal.render(After::Close, Show::Whole)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    assert!(answer.contains("this sandbox was stopped"), "{answer}");
    proxy.client.write_denial(&refusal);
    assert_eq!(proxy.events(), ["deny a.test:443 shutting_down (token_revoked)"]);
    assert_eq!(proxy.names.asked(), [""; 0]);
}
