//! Requests that go out through the company's proxy.

use tokio::io::AsyncWriteExt as _;

use super::harness::{Script, Server, read_exactly, read_head, read_to_end};
use crate::config::{UpstreamProxy, UpstreamScheme};
use crate::policy::Authority;
use crate::proxy::Outbound;

const OK: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

fn through(corp: &Server) -> Outbound {
    let authority = Authority::parse(&format!("127.0.0.1:{}", corp.port)).unwrap();
    Outbound::Through(UpstreamProxy { scheme: UpstreamScheme::Http, authority, credentials: None })
}

#[tokio::test]
async fn n16_the_dns_is_asked_once_and_its_checked_answer_is_dialled() {
    let corp = Server::start().await;
    let lies = vec![Ok(vec!["93.184.216.34".parse().unwrap()]), Ok(vec!["10.0.0.1".parse().unwrap()])];
    let mut proxy =
        Script { answers: lies, outbound: through(&corp), ..Script::allowing("api.test:8443") }.start();
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head("api.test:8443")).await;
    let mut upstream = corp.accept().await;
    let head = read_head(&mut upstream).await;
    assert_eq!(head, "CONNECT 93.184.216.34:8443 HTTP/1.1\r\nHost: 93.184.216.34:8443\r\n\r\n");
    upstream.write_all(&[OK, b"hi"].concat()).await.unwrap();
    assert_eq!(peer.head().await, "HTTP/1.1 200 Connection established\r\n\r\n");
    assert_eq!(peer.exactly(2).await, b"hi");
    peer.send("ping").await;
    assert_eq!(read_exactly(&mut upstream, 4).await, b"ping");
    drop(upstream);
    drop(peer);
    assert_eq!(proxy.names.asked(), ["api.test"]);
    assert!(proxy.event().await.starts_with("allow "));
    assert!(proxy.event().await.starts_with("close api.test:8443 "));
    let dialled = *proxy.dialled.lock().unwrap();
    assert_eq!(dialled, Some("93.184.216.34:8443".parse().unwrap()));
}

#[tokio::test]
async fn d4_what_may_not_be_dialled_may_not_be_dialled_through_a_proxy() {
    let corp = Server::start().await;
    let answers = vec![
        Ok(vec!["93.184.216.34".parse().unwrap(), "10.0.0.1".parse().unwrap()]),
        Ok(vec!["127.0.0.1".parse().unwrap()]),
        Ok(vec!["169.254.169.254".parse().unwrap()]),
    ];
    let mut proxy = Script { answers, outbound: through(&corp), ..Script::allowing("api.test") }.start();
    for _ in 0..3 {
        let mut peer = proxy.connect();
        peer.send(proxy.connect_head("api.test:443")).await;
        assert!(peer.answer().await.1.contains(r#""error":"address_forbidden""#));
    }
    assert!(corp.stayed_untouched());
}

#[tokio::test]
async fn an_absolute_form_request_goes_through_a_tunnel_and_the_proxy_sees_no_field_of_it() {
    let corp = Server::start().await;
    let answers = vec![Ok(vec!["93.184.216.34".parse().unwrap()])];
    let mut proxy = Script { answers, outbound: through(&corp), ..Script::allowing("api.test:80") }.start();
    let mut peer = proxy.connect();
    peer.send(proxy.get_head("api.test:80", "/path")).await;
    let mut upstream = corp.accept().await;
    let head = read_head(&mut upstream).await;
    assert_eq!(head, "CONNECT 93.184.216.34:80 HTTP/1.1\r\nHost: 93.184.216.34:80\r\n\r\n");
    upstream.write_all(OK).await.unwrap();
    let request = read_head(&mut upstream).await;
    assert!(request.starts_with("GET /path HTTP/1.1\r\n"), "{request}");
    assert!(request.to_ascii_lowercase().contains("\r\nhost: api.test\r\n"), "{request}");
    upstream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await.unwrap();
    let (head, body) = peer.answer().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert_eq!(body, "hi");
}

#[tokio::test]
async fn a_refusal_of_the_proxy_is_a_failed_connection_with_its_status() {
    let corp = Server::start().await;
    let answers = vec![Ok(vec!["93.184.216.34".parse().unwrap()])];
    let mut proxy = Script { answers, outbound: through(&corp), ..Script::allowing("api.test") }.start();
    let mut peer = proxy.connect();
    peer.send(proxy.connect_head("api.test:443")).await;
    let mut upstream = corp.accept().await;
    read_head(&mut upstream).await;
    upstream.write_all(b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\n\r\nbody").await.unwrap();
    let (head, body) = peer.answer().await;
    assert!(head.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{head}");
    assert!(!head.contains("Proxy-Authenticate"), "{head}");
    assert!(body.contains(r#""error":"connect_failed""#) && body.contains("(status 407)"), "{body}");
    assert!(proxy.event().await.starts_with("allow "));
    let close = proxy.event().await;
    assert!(close.starts_with("close api.test:443 connect_failed 0/0 ("), "{close}");
    assert!(close.contains("are the credentials in `proxy.upstream` right?"), "{close}");
    assert_eq!(*proxy.dialled.lock().unwrap(), None);
}

#[tokio::test]
async fn nobody_is_waited_for_when_the_client_has_gone_or_the_rule_was_withdrawn() {
    for withdrawn in [false, true] {
        let corp = Server::start().await;
        let answers = vec![Ok(vec!["93.184.216.34".parse().unwrap()])];
        let mut proxy = Script { answers, outbound: through(&corp), ..Script::allowing("api.test") }.start();
        let mut peer = proxy.connect();
        peer.send(proxy.connect_head("api.test:443")).await;
        let mut upstream = corp.accept().await;
        read_head(&mut upstream).await;
        let reason = if withdrawn {
            proxy.policies.replace(Some(Script::allowing("other.test").policy()));
            assert_eq!(proxy.client.revalidate(), 1);
            let (head, body) = peer.answer().await;
            assert!(head.contains("X-Cloister-Reason: not_allowed\r\n"), "{head}");
            assert!(body.contains("was withdrawn meanwhile; try again"), "{body}");
            "rule_withdrawn"
        } else {
            drop(peer);
            "client_reset"
        };
        assert_eq!(read_to_end(&mut upstream).await, b"");
        assert!(proxy.event().await.starts_with("allow "));
        assert_eq!(proxy.event().await, format!("close api.test:443 {reason} 0/0"));
        assert_eq!(proxy.events(), [""; 0], "one end is enough");
    }
}
