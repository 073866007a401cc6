//! Tunnels to port 443 of the running guardian: the `ClientHello` names the authority, or nothing goes upstream.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::network::{FAR, FARTHER, Network, Wired};
use super::{Cloister, Wire};

/// `unrecognized_name`, fatal.
const ALERT: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 0x70];
/// What an upstream says that has heard enough: `handshake_failure`, fatal.
const GOOD_BYE: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 40];

const SERVER_NAME: u16 = 0;
/// RFC 9849: the outer hello of ECH.
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// One extension of a hello.
fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &long(body)].concat()
}

/// Bytes behind their length in two bytes.
fn long(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn server_name(name: &str) -> Vec<u8> {
    extension(SERVER_NAME, &long(&[&[0][..], &long(name.as_bytes())].concat()))
}

/// What browsers send to every server (GREASE), and what names another host in secret: nobody can tell them apart.
fn encrypted() -> Vec<u8> {
    // The outer type, HKDF-SHA256 and AES-128-GCM, a config id, a key share, and a sealed hello.
    let body = [&[0, 0, 1, 0, 1, 0x42][..], &long(&[9; 32]), &long(&[7; 208])].concat();
    extension(ENCRYPTED_CLIENT_HELLO, &body)
}

/// A TLS 1.3 hello in one record, with these extensions before those that every hello has.
fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    let usual = [
        extension(10, &[0, 2, 0, 29]),
        extension(13, &[0, 2, 4, 3]),
        extension(43, &[2, 3, 4]),
        extension(51, &long(&[&[0, 29][..], &long(&[5; 32])].concat())),
    ];
    let extensions = long(&[extensions.concat(), usual.concat()].concat());
    let body = [&[3, 3][..], &[5; 32], &[0, 0, 2, 0x13, 1, 1, 0], &extensions].concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[1][..], &length[1..], &body].concat();
    [&[0x16, 3, 1][..], &long(&message)].concat()
}

/// An upstream that keeps what it hears, and answers once.
struct Upstream(Arc<Mutex<Vec<Vec<u8>>>>);

impl Upstream {
    fn start(listener: TcpListener) -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&heard);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, notes) = (stream.unwrap(), Arc::clone(&notes));
                std::thread::spawn(move || {
                    let mut bytes = vec![0; 4096];
                    let read = stream.read(&mut bytes).unwrap_or(0);
                    bytes.truncate(read);
                    // An empty connection is one that the guardian gave up.
                    if read > 0 {
                        notes.lock().unwrap().push(bytes);
                        let _ = stream.write_all(&GOOD_BYE);
                    }
                });
            }
        });
        Self(heard)
    }

    fn heard(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().clone()
    }
}

fn stage() -> Option<(Network, Wired, Cloister, Upstream)> {
    let network = Network::new()?;
    let settings = format!(
        "proxy:\n  allow: [web.test, \"{FARTHER}\", other.test]\n  hosts: {{web.test: [{FAR}], other.test: [{FAR}]}}\n"
    );
    let wired = network.guardian(&settings);
    let upstream = Upstream::start(network.listener(FAR, 443));
    let cloister = wired.guardian.register("demo");
    Some((network, wired, cloister, upstream))
}

fn tunnel(cloister: &Cloister, authority: &str) -> Wire {
    let mut wire = cloister.connect();
    wire.send(cloister.connect_head(authority));
    assert_eq!(wire.answer().status, 200, "{authority}");
    wire
}

#[test]
fn n10_n12_n13_the_hello_names_the_authority_or_nothing_goes_upstream() {
    let Some((network, wired, cloister, upstream)) = stage() else { return };
    let by_address = Upstream::start(network.listener(FARTHER, 443));
    for (authority, extensions) in [
        // Another host, one that is allowed too, one behind the same address, and one that looks alike.
        ("web.test:443", vec![server_name("evil.test")]),
        ("web.test:443", vec![server_name("other.test")]),
        ("web.test:443", vec![server_name("web.test.evil.test")]),
        ("web.test:443", vec![server_name("www.web.test")]),
        // None, and one that ECH hides.
        ("web.test:443", vec![]),
        ("web.test:443", vec![encrypted()]),
        ("web.test:443", vec![server_name("cloudflare-ech.com"), encrypted()]),
        // The name of an allowed host leads nowhere but to that host's addresses (N12).
        ("11.0.0.3:443", vec![server_name("web.test")]),
        ("11.0.0.3:443", vec![server_name("11.0.0.3")]),
    ] {
        let mut wire = tunnel(&cloister, authority);
        wire.send(hello(&extensions));
        assert_eq!(wire.rest(), ALERT, "{authority} {extensions:?}");
    }
    // Two names are no hello at all.
    let mut wire = tunnel(&cloister, "web.test:443");
    wire.send(hello(&[server_name("web.test"), server_name("evil.test")]));
    assert_eq!(wire.rest(), b"");
    assert_eq!((upstream.heard(), by_address.heard()), (vec![], vec![]));
    // An address that no rule names is none of an allowed host's, whatever the hello would say.
    let answer = cloister.ask(cloister.connect_head("11.0.0.9:443"));
    assert_eq!((answer.status, answer.reason()), (403, "not_allowed"));
    // The right name passes, as it is, with what browsers send besides; an address has no name.
    let right = hello(&[server_name("web.test"), encrypted()]);
    let mut wire = tunnel(&cloister, "web.test:443");
    wire.send(&right);
    assert_eq!(wire.rest(), GOOD_BYE);
    let bare = hello(&[]);
    let mut wire = tunnel(&cloister, "11.0.0.3:443");
    wire.send(&bare);
    assert_eq!(wire.rest(), GOOD_BYE);
    assert_eq!((upstream.heard(), by_address.heard()), (vec![right], vec![bare]));
    let log = wired.guardian.audit();
    assert!(log.matches("reason=sni_mismatch").count() >= 9 && log.contains("reason=not_tls"), "{log}");
}

#[test]
fn t8_n17_what_is_not_tls_goes_nowhere_on_port_443() {
    let Some((_network, wired, cloister, upstream)) = stage() else { return };
    for bytes in [
        &b"SSH-2.0-OpenSSH_9.2p1\r\n"[..],
        b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n",
        b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x05\x01\0",
        b"\x04\x01\x01\xbb\x7f\0\0\x01\0",
        // Records that are no handshake, and a handshake that is no hello.
        b"\x17\x03\x03\0\x05hello",
        b"\x15\x03\x03\0\x02\x01\0",
        b"\x16\x03\x01\0\x04\x02\0\0\0",
        // The hello of SSL 2.
        b"\x80\x2e\x01\0\x02\0\x15\0\0\0\x10",
    ] {
        let mut wire = tunnel(&cloister, "web.test:443");
        let _ = wire.try_send(bytes);
        assert_eq!(wire.rest(), b"", "{bytes:?}");
    }
    assert_eq!(upstream.heard(), [[0; 0]; 0]);
    assert!(wired.guardian.audit().contains("reason=not_tls"));
}

#[test]
fn a15_no_name_in_a_hello_writes_into_the_log() {
    let Some((_network, wired, cloister, _upstream)) = stage() else { return };
    for name in [
        "evil.test\r\n{\"seq\":1}",
        "evil.test\n2026-01-01T00:00:00Z proxy.allow demo evil.test:443",
        "\u{1b}[2Jevil.test",
        "\u{1b}]52;c;ZXZpbA==\u{7}",
        "evil\",\"event\":\"proxy.allow",
        "evil\\u0000.test",
        "evil\0.test",
        "\u{202e}tset.live",
        &"x".repeat(4000),
    ] {
        let mut wire = tunnel(&cloister, "web.test:443");
        wire.send(hello(&[server_name(name)]));
        let _ = wire.rest();
    }
    let shown = wired.guardian.audit();
    assert!(!shown.contains(|shown: char| shown.is_control() && shown != '\n'), "{shown}");
    assert!(!shown.contains("\u{202e}") && !shown.lines().any(|line| line.contains("proxy.allow demo evil")));
    let file = wired.guardian.host.path("home/.local/share/cloister/audit/audit.jsonl");
    let text = std::fs::read_to_string(file).unwrap();
    for line in text.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(entry["seq"].is_u64() && entry["prev"].is_string(), "{line}");
        assert!(line.len() < 4000, "{line}");
    }
    wired.guardian.host.ok(&["audit", "verify"]);
}
