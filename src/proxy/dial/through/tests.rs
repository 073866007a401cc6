//! Proxies of a company, by script.

use crate::proxy::Spliceable as _;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::config::UpstreamCredentials;
use crate::policy::{Authority, DomainName};
use crate::proxy::dial::resolve::{ResolveError, Resolving};

/// A certificate for `proxy.corp` that is its own authority, valid from 2020 to 2120.
const CERTIFICATE: &str = "\
    MIIBYTCCAQegAwIBAgIBATAKBggqhkjOPQQDAjAVMRMwEQYDVQQDDApwcm94eS5jb3JwMCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAw\
    MTAxMDAwMDAwWjAVMRMwEQYDVQQDDApwcm94eS5jb3JwMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEvdlya9Og065aBESzLy2a\
    IAMOQ88Y2iwljqxu+TLWojP547pplWQw2zvWW95kWEqCN82I9rUZZtYvMkSUSSQR5qNGMEQwFQYDVR0RBA4wDIIKcHJveHkuY29y\
    cDAMBgNVHRMBAf8EAjAAMB0GA1UdDgQWBBRU6ylt9hjKmMMJMAlWlosFxM6FLTAKBggqhkjOPQQDAgNIADBFAiEAvF1iEMlaeHxU\
    m3uEt3W6MrtLR5apolYhJbe0u9XVnUUCIHsFleImZzjpkFJLmjHYtwCtc8Q06hOP+tT1LKwtQZaC";
/// The key of that certificate: it proves nothing anywhere.
const KEY: &str = "\
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgPgr4zf+zkB34t3oali1t2Do4LMcd/PEhowBYjadSAyqhRANCAAS9\
    2XJr06DTrloERLMvLZogAw5DzxjaLCWOrG75MtaiM/njummVZDDbO9Zb3mRYSoI3zYj2tRlm1i8yRJRJJBHm";

const OK: &[u8] = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 corp\r\n\r\n";

/// A DNS that knows the proxy alone, and takes every other question for a fault.
struct Dns(Vec<IpAddr>);

impl Resolve for Dns {
    fn resolve<'a>(&'a self, name: &'a DomainName) -> Resolving<'a> {
        assert_eq!(name.as_str(), "proxy.corp", "a name of the sandbox is asked for");
        let answer = if self.0.is_empty() { Err(ResolveError::Failed(None)) } else { Ok(self.0.clone()) };
        Box::pin(std::future::ready(answer))
    }
}

/// What the proxy does with one connection after the other, the last for all that follow.
#[derive(Clone)]
enum Does {
    /// Says this, and then gives back what comes.
    Say(Vec<u8>),
    /// Says this, and ends.
    End(Vec<u8>),
    Nothing,
}

fn say(bytes: &[u8]) -> Does {
    Does::Say(bytes.to_vec())
}

/// A running proxy.
struct Corp {
    port: u16,
    heads: mpsc::UnboundedReceiver<String>,
}

impl Corp {
    async fn start(script: Vec<Does>) -> Self {
        Self::listen(script, None).await
    }

    async fn start_tls(script: Vec<Does>) -> Self {
        let key = PrivatePkcs8KeyDer::from(BASE64_STANDARD.decode(KEY).unwrap());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate()], key.into())
            .unwrap();
        Self::listen(script, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn listen(script: Vec<Does>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, heads) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut script = script.into_iter();
            let mut does = script.next().unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                let (does_now, sender, tls) = (does.clone(), sender.clone(), tls.clone());
                does = script.next().unwrap_or(does);
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, does_now, sender).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, does_now, sender).await;
                            }
                        }
                    }
                });
            }
        });
        Self { port, heads }
    }

    fn named(&self, scheme: UpstreamScheme, host: &str, password: Option<&str>) -> UpstreamProxy {
        UpstreamProxy {
            scheme,
            authority: Authority::parse(&format!("{host}:{}", self.port)).unwrap(),
            credentials: password.map(|password| UpstreamCredentials::new("user", password)),
        }
    }

    fn heads(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.heads.try_recv().ok()).collect()
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    does: Does,
    heads: mpsc::UnboundedSender<String>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    // A test that has ended reads no more heads.
    let _ = heads.send(String::from_utf8(head).unwrap());
    match does {
        Does::Say(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.flush().await;
            let (mut reader, mut writer) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
            let _ = writer.shutdown().await;
        }
        Does::End(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
        Does::Nothing => {
            let _ = stream.read_u8().await;
        }
    }
}

fn certificate() -> CertificateDer<'static> {
    BASE64_STANDARD.decode(CERTIFICATE).unwrap().into()
}

fn corp_roots() -> Roots {
    let mut roots = RootCertStore::empty();
    roots.add(certificate()).unwrap();
    Roots::of(roots)
}

const PATIENCE: Patience = Patience { attempt: Duration::from_secs(10), whole: Duration::from_secs(30) };
const NEAR: [u8; 4] = [127, 0, 0, 1];

async fn dial(
    proxy: &UpstreamProxy,
    roots: &Roots,
    patience: Patience,
    targets: &[&str],
) -> Result<(Upstream, SocketAddr), DialError> {
    let resolver = Dns(vec![NEAR.into()]);
    let targets: Vec<SocketAddr> = targets.iter().map(|target| target.parse().unwrap()).collect();
    Through { proxy, resolver: &resolver, roots, patience }.dial(&targets).await
}

/// Fails, and gives what the sandbox and what the audit log is told.
async fn fail(proxy: &UpstreamProxy, targets: &[&str]) -> (String, String) {
    let patience = Patience { attempt: Duration::from_millis(100), whole: Duration::from_millis(300) };
    let error = dial(proxy, &corp_roots(), patience, targets).await.err().expect("a tunnel stands");
    (error.sentence(), error.detail())
}

#[tokio::test]
async fn n16_the_proxy_is_given_the_checked_address_and_the_credentials() {
    for (target, password, expected) in [
        ("192.0.2.1:443", None, "CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: 192.0.2.1:443\r\n\r\n"),
        (
            "[2001:db8::1]:80",
            Some("se:cret"),
            "CONNECT [2001:db8::1]:80 HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\
             Proxy-Authorization: Basic dXNlcjpzZTpjcmV0\r\n\r\n",
        ),
    ] {
        let mut corp = Corp::start(vec![say(OK)]).await;
        for host in ["proxy.corp", "127.0.0.1"] {
            let proxy = corp.named(UpstreamScheme::Http, host, password);
            let (mut upstream, address) = dial(&proxy, &corp_roots(), PATIENCE, &[target]).await.unwrap();
            assert_eq!(address.to_string(), target);
            assert_eq!(corp.heads(), [expected]);
            upstream.write_all(b"ping").await.unwrap();
            let mut pong = [0; 4];
            upstream.read_exact(&mut pong).await.unwrap();
            assert_eq!(&pong, b"ping");
            assert!(upstream.socket().is_some());
        }
    }
}

#[tokio::test]
async fn early_bytes_stay_in_front() {
    let corp = Corp::start(vec![say(&[OK, b"early"].concat())]).await;
    let proxy = corp.named(UpstreamScheme::Http, "proxy.corp", None);
    let open = || async { dial(&proxy, &corp_roots(), PATIENCE, &["192.0.2.1:25"]).await.unwrap().0 };
    let mut upstream = open().await;
    upstream.write_all(b"-late").await.unwrap();
    let mut bytes = [0; 10];
    upstream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"early-late");
    assert!(upstream.socket().is_some());
}

#[tokio::test]
async fn interim_answers_are_skipped() {
    for interim in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.0 199 x\r\nA: b\r\n\r\nHTTP/1.1 102\r\n\r\n"] {
        let corp = Corp::start(vec![say(&[interim.as_bytes(), b"HTTP/1.1 299\r\n\r\n"].concat())]).await;
        let proxy = corp.named(UpstreamScheme::Http, "proxy.corp", None);
        assert!(dial(&proxy, &corp_roots(), PATIENCE, &["192.0.2.1:443"]).await.is_ok(), "{interim}");
    }
}

#[tokio::test]
async fn addresses_are_tried_in_turn_until_a_tunnel_stands() {
    let refuses = |status: u16| say(format!("HTTP/1.1 {status} No\r\n\r\nwhy it does not").as_bytes());
    let mut corp =
        Corp::start(vec![refuses(403), refuses(502), Does::End(Vec::new()), Does::Nothing, say(OK)]).await;
    let proxy = corp.named(UpstreamScheme::Http, "proxy.corp", None);
    let patience = Patience { attempt: Duration::from_millis(300), ..PATIENCE };
    let targets = ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1", "192.0.2.4:1", "192.0.2.5:1", "192.0.2.6:1"];
    let (_, address) = dial(&proxy, &corp_roots(), patience, &targets).await.unwrap();
    assert_eq!(address.to_string(), "192.0.2.5:1");
    assert_eq!(corp.heads().len(), 5);
}

#[tokio::test]
async fn wrong_credentials_are_said_once_and_nowhere_shown() {
    let mut corp =
        Corp::start(vec![say(b"HTTP/1.1 407 Proxy Authentication Required\r\nX: secret\r\n\r\n")]).await;
    let proxy = corp.named(UpstreamScheme::Http, "proxy.corp", Some("secret"));
    let error = dial(&proxy, &corp_roots(), PATIENCE, &["192.0.2.1:1", "192.0.2.2:1"]).await.err().unwrap();
    assert_eq!(
        (error.sentence().as_str(), error.detail().as_str()),
        (
            "the proxy that the host goes through wants other credentials (status 407)",
            "the proxy of `proxy.upstream`: it answered with status 407; are the credentials in `proxy.upstream` right?"
        )
    );
    assert_eq!(corp.heads().len(), 1, "another address would fare no better");
    for shown in [format!("{error:?}"), format!("{error}"), format!("{proxy:?}")] {
        assert!(!shown.contains("secret") && !shown.contains("c2VjcmV0"), "{shown}");
    }
}

#[tokio::test]
async fn the_status_of_a_refusal_is_all_that_gets_through() {
    let corp = Corp::start(vec![say(b"HTTP/1.0 403 secret\r\nX: secret\r\n\r\n<h1>secret</h1>")]).await;
    let proxy = corp.named(UpstreamScheme::Http, "proxy.corp", None);
    let (told, detail) = fail(&proxy, &["192.0.2.1:443"]).await;
    assert_eq!(told, "the proxy that the host goes through opens no tunnel to it (status 403)");
    assert_eq!(detail, "the proxy of `proxy.upstream`: it answered with status 403");
}

#[tokio::test]
async fn what_is_no_answer_opens_no_tunnel() {
    let long = [&b"HTTP/1.1 200 OK\r\nX: "[..], &[b'x'; MAX_HEAD_BYTES]].concat();
    let endless = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(MAX_HEAD_BYTES / 10);
    for (script, expected) in [
        (say(b"SSH-2.0-OpenSSH\r\n"), "it does not begin with `HTTP/1.`"),
        (say(b"HTTP/2 200 OK\r\n\r\n"), "it does not begin with `HTTP/1.`"),
        (say(b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), "it does not begin with `HTTP/1.`"),
        (say(b"HTTP/1.1 2000 OK\r\n\r\n"), "its first line is no status line"),
        (say(b"HTTP/1.1  200 OK\r\n\r\n"), "its first line is no status line"),
        (say(b"HTTP/1.x 200 OK\r\n\r\n"), "its first line is no status line"),
        (say(b"HTTP/1.1 +20 OK\r\n\r\n"), "its status is no number"),
        (say(b"HTTP/1.1 020 OK\r\n\r\n"), "its status is no number"),
        (say(&long), "its head is too long"),
        (say(&endless), "it never comes to its end"),
        (say(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), "it answered with status 101"),
        (say(b"HTTP/1.1 302 Found\r\nLocation: http://login.corp/\r\n\r\n"), "it answered with status 302"),
        (say(b"HTTP/1.1 200 OK\r\nX: y\r\n"), "it did not answer in time"),
        (Does::Nothing, "it did not answer in time"),
        (
            Does::End(b"HTTP/1.1 200 OK\r\nX: y\r\n".to_vec()),
            "the connection to it broke: unexpected end of file",
        ),
        (Does::End(Vec::new()), "the connection to it broke: unexpected end of file"),
    ] {
        let corp = Corp::start(vec![script]).await;
        let proxy = corp.named(UpstreamScheme::Http, "proxy.corp", None);
        let (told, detail) = fail(&proxy, &["192.0.2.1:443"]).await;
        assert!(detail.ends_with(expected), "{expected}: {detail}");
        assert!(
            !told.contains("127.0.0.1") && told.starts_with("the proxy that the host goes through "),
            "{told}"
        );
    }
}

#[tokio::test]
async fn n8_a_proxy_is_never_at_a_metadata_address() {
    let corp = Corp::start(vec![say(OK)]).await;
    for address in ["169.254.169.254", "fd00:ec2::254", "0.0.0.0", "::ffff:169.254.169.254", "224.0.0.1"] {
        let resolver = Dns(vec![NEAR.into(), address.parse().unwrap()]);
        let proxy = corp.named(UpstreamScheme::Http, "proxy.corp", None);
        let through =
            Through { proxy: &proxy, resolver: &resolver, roots: &corp_roots(), patience: PATIENCE };
        let error = through.dial(&["192.0.2.1:443".parse().unwrap()]).await.err().unwrap();
        assert!(matches!(error, DialError::Proxy(ProxyError::Forbidden(_))), "{address}: {error:?}");
        assert!(!error.sentence().contains(address));
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_told_apart() {
    let corp = Corp::start(vec![say(OK)]).await;
    let proxy = corp.named(UpstreamScheme::Http, "proxy.corp", None);
    let (resolver, roots) = (Dns(Vec::new()), corp_roots());
    let through = Through { proxy: &proxy, resolver: &resolver, roots: &roots, patience: PATIENCE };
    let error = through.dial(&["192.0.2.1:443".parse().unwrap()]).await.err().unwrap();
    assert_eq!(error.detail(), "the proxy of `proxy.upstream`: its name can't be resolved: no address");
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let proxy = Corp { port: gone, ..corp }.named(UpstreamScheme::Http, "127.0.0.1", None);
    let (told, detail) = fail(&proxy, &["192.0.2.1:443", "192.0.2.2:443"]).await;
    assert_eq!(told, "the proxy that the host goes through can't be used");
    assert!(
        detail.contains(&format!("it can't be reached: `127.0.0.1:{gone}`: Connection refused")),
        "{detail}"
    );
}

#[tokio::test]
async fn tls_to_the_proxy_carries_bytes_both_ways() {
    let mut corp = Corp::start_tls(vec![say(&[OK, b"early"].concat())]).await;
    let proxy = corp.named(UpstreamScheme::Https, "proxy.corp", Some("secret"));
    let (upstream, _) = dial(&proxy, &corp_roots(), PATIENCE, &["192.0.2.1:443"]).await.unwrap();
    assert!(corp.heads()[0].contains("Proxy-Authorization: Basic "));
    let (mut reader, mut writer) = tokio::io::split(upstream);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|index| (index % 251) as u8).collect();
    let mut received = vec![0; sent.len() + 5];
    // More than any buffer on the way holds; and nobody flushes, as in a relay.
    let (written, read) = tokio::join!(writer.write_all(&sent), reader.read_exact(&mut received));
    written.unwrap();
    read.unwrap();
    assert!(received == [&b"early"[..], &sent].concat());
    writer.shutdown().await.unwrap();
    assert_eq!(reader.read(&mut received).await.unwrap(), 0);
}

#[tokio::test]
async fn tls_without_a_certificate_that_fits_opens_no_tunnel() {
    let mut corp = Corp::start_tls(vec![say(OK)]).await;
    let proxy = corp.named(UpstreamScheme::Https, "127.0.0.1", Some("secret"));
    let (told, detail) = fail(&proxy, &["192.0.2.1:443"]).await;
    assert_eq!(told, "the proxy that the host goes through can't be used");
    assert!(detail.contains("TLS to it fails: invalid peer certificate"), "{detail}");
    let proxy = corp.named(UpstreamScheme::Https, "proxy.corp", Some("secret"));
    let nobody = Roots::of(RootCertStore::empty());
    let error = dial(&proxy, &nobody, PATIENCE, &["192.0.2.1:443"]).await.err().unwrap();
    assert!(error.detail().contains("TLS to it fails: invalid peer certificate"), "{error:?}");
    assert_eq!(corp.heads(), [""; 0], "credentials went to a stranger");
    // A proxy that speaks no TLS at all.
    let corp = Corp::start(vec![say(OK)]).await;
    let proxy = corp.named(UpstreamScheme::Https, "proxy.corp", Some("secret"));
    assert!(fail(&proxy, &["192.0.2.1:443"]).await.1.contains("`proxy.upstream`"));
}
