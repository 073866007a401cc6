//! Tunnels to port 443 of the running guardian: the `ClientHello` names the authority, or nothing goes upstream.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use super::network::{FAR, FARTHER, Network, Wired};
use super::{Cloister, Wire};
use crate::harness::plain;
use crate::system::origin::certificate;

/// `unrecognized_name`, fatal.
const ALERT: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 0x70];
const CHANGE_CIPHER_SPEC: [u8; 6] = [20, 3, 3, 0, 1, 1];
const SERVER_HELLO: u8 = 2;
/// How the random of a `ServerHello` begins that asks for another hello (RFC 8446, 4.1.3).
const RETRY_RANDOM: [u8; 8] = [0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11];
/// What an upstream says that has heard enough: `handshake_failure`, fatal.
const GOOD_BYE: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 40];

/// Groups of keys.
const X25519: [u8; 2] = [0, 29];
const P384: [u8; 2] = [0, 24];
/// A public key of P-384 that is on the curve, as servers check: the base point.
const P384_KEY: &str = "04\
    aa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a385502f25dbf55296c3a545e3872760ab7\
    3617de4a96262c6f5d9e98bf9292dc29f8f41dbd289a147ce9da3113b5f0b8c00a60b1ce1d7e819d7a431d7c90ea0e5f";

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
    hello_with_key(X25519, &[5; 32], extensions)
}

/// The same with this key, of one of the two groups that every hello names.
fn hello_with_key(group: [u8; 2], key: &[u8], extensions: &[Vec<u8>]) -> Vec<u8> {
    let usual = [
        extension(10, &long(&[X25519, P384].concat())),
        extension(13, &[0, 2, 4, 3]),
        extension(43, &[2, 3, 4]),
        extension(51, &long(&[&group[..], &long(key)].concat())),
    ];
    let extensions = long(&[extensions.concat(), usual.concat()].concat());
    // A random, the session id that asks for compatibility mode, a cipher suite, no compression.
    let body = [&[3, 3][..], &[5; 32], &[32], &[6; 32], &[0, 2, 0x13, 1, 1, 0], &extensions].concat();
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

/// `openssl s_server`, which takes keys of P-384 alone: a hello with another one is followed by a request for a second.
struct Particular(Child);

impl Particular {
    fn start(network: &Network, folder: &Path) -> Self {
        certificate(folder, "web.test");
        let mut server = network.inside(|| {
            plain("openssl")
                .args(["s_server", "-accept", &format!("{FAR}:443"), "-groups", "P-384"])
                .args(["-cert", "cert.pem", "-key", "key.pem"])
                .current_dir(folder)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        });
        let mut lines = BufReader::with_capacity(1, server.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "ACCEPT"), "it does not listen");
        Self(server)
    }
}

impl Drop for Particular {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The body of the next handshake record; what is between them in compatibility mode is passed over.
fn handshake_record(wire: &mut Wire) -> Vec<u8> {
    loop {
        let header = wire.exactly(5);
        let body = wire.exactly(usize::from(u16::from_be_bytes([header[3], header[4]])));
        match header[0] {
            22 => return body,
            kind => assert_eq!(kind, CHANGE_CIPHER_SPEC[0], "{header:?} {body:?}"),
        }
    }
}

#[test]
fn n10_a_real_server_that_asks_for_a_second_hello_never_hears_another_name() {
    let Some(network) = Network::new() else { return };
    let wired = network.guardian(&format!("proxy:\n  allow: [web.test]\n  hosts: {{web.test: [{FAR}]}}\n"));
    let _server = Particular::start(&network, &wired.guardian.host.path(""));
    let cloister = wired.guardian.register("demo");
    let asked_again = || {
        let mut wire = tunnel(&cloister, "web.test:443");
        wire.send(hello(&[server_name("web.test")]));
        let retry = handshake_record(&mut wire);
        assert_eq!((retry[0], &retry[6..14]), (SERVER_HELLO, &RETRY_RANDOM[..]));
        wire
    };
    let key: Vec<u8> = (0..P384_KEY.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&P384_KEY[at..at + 2], 16).unwrap())
        .collect();
    let second = |names: &[Vec<u8>]| [&CHANGE_CIPHER_SPEC[..], &hello_with_key(P384, &key, names)].concat();
    for names in [vec![server_name("evil.test")], vec![server_name("www.web.test")], vec![]] {
        let mut wire = asked_again();
        wire.send(second(&names));
        let rest = wire.rest();
        let rest = rest.strip_prefix(&CHANGE_CIPHER_SPEC).unwrap_or(&rest);
        assert_eq!(rest, ALERT, "{names:?}");
    }
    // Every name has a record of its own.
    let is_denied = |line: &&str| line.contains("proxy.deny") && line.contains("reason=sni_mismatch");
    assert_eq!(wired.guardian.audit().lines().filter(is_denied).count(), 3);
    // With the right name the server goes on.
    let mut wire = asked_again();
    wire.send(second(&[server_name("web.test")]));
    let answer = handshake_record(&mut wire);
    assert_eq!(answer[0], SERVER_HELLO);
    assert_ne!(answer[6..14], RETRY_RANDOM);
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
