//! Names and addresses: the real resolver of the running guardian before a name server that lies.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::network::{FAR, FARTHER, Network, Wired};
use super::{Cloister, Recorder};

/// One answer to a question for A records; all others are empty.
#[derive(Debug, Clone)]
enum Reply {
    /// These addresses, to be forgotten at once.
    Addresses(&'static [[u8; 4]]),
    /// Another name that has these addresses.
    Alias(&'static str, &'static [[u8; 4]]),
}

/// A name server that answers each name with its replies one after the other, the last one for ever.
struct NameServer {
    asked: Arc<Mutex<Vec<(String, u8)>>>,
}

const A: u8 = 1;
const AAAA: u8 = 28;

impl NameServer {
    fn start(network: &Network, table: &[(&'static str, &[Reply])]) -> Self {
        let socket = network.socket(FAR, 53);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&asked);
        let mut table: BTreeMap<String, Vec<Reply>> =
            table.iter().map(|(name, replies)| ((*name).to_owned(), replies.to_vec())).collect();
        std::thread::spawn(move || {
            let mut packet = [0; 1500];
            while let Ok((length, client)) = socket.recv_from(&mut packet) {
                let (name, kind, end) = question(&packet[..length]);
                notes.lock().unwrap().push((name.clone(), kind));
                let replies = table.get_mut(&name);
                let known = replies.is_some();
                let reply = replies
                    .filter(|_| kind == A)
                    .map(|replies| if replies.len() > 1 { replies.remove(0) } else { replies[0].clone() });
                // The one who asked may have gone.
                let _ = socket.send_to(&answer(&packet[..end], known, reply.as_ref()), client);
            }
        });
        Self { asked }
    }

    /// The names that were asked for, each once.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.asked.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// How often a name's addresses of one kind were asked for.
    fn count(&self, name: &str, kind: u8) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| **asked == (name.to_owned(), kind)).count()
    }
}

/// The name and type of a question, and where it ends (RFC 1035, 4.1.2).
fn question(query: &[u8]) -> (String, u8, usize) {
    let (mut at, mut labels) = (12, Vec::new());
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8(query[at + 1..end].to_vec()).unwrap());
        at = end;
    }
    (labels.join("."), query[at + 2], at + 5)
}

fn answer(query: &[u8], known: bool, reply: Option<&Reply>) -> Vec<u8> {
    let mut packet = query.to_vec();
    let code = if known { 0 } else { 3 };
    packet[2..12].copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, 0, 0, 0, 0, 0]);
    let (alias, addresses) = match reply {
        None => (None, &[][..]),
        Some(Reply::Addresses(addresses)) => (None, *addresses),
        Some(Reply::Alias(alias, addresses)) => (Some(encode(alias)), *addresses),
    };
    packet[7] = u8::try_from(addresses.len() + usize::from(alias.is_some())).unwrap();
    let mut owner = vec![0xc0, 12];
    if let Some(alias) = alias {
        packet.extend(&owner);
        packet.extend([0, 5, 0, 1, 0, 0, 0, 0, 0, u8::try_from(alias.len()).unwrap()]);
        packet.extend(&alias);
        owner = alias;
    }
    for address in addresses {
        packet.extend(&owner);
        packet.extend([0, A, 0, 1, 0, 0, 0, 0, 0, 4]);
        packet.extend(address);
    }
    packet
}

fn encode(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// Nobody must connect here.
fn untouched(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    listener.accept().is_err()
}

fn stage(
    table: &[(&'static str, &[Reply])],
    settings: &str,
) -> Option<(Network, NameServer, Wired, Cloister)> {
    let network = Network::new()?;
    let wired = network.guardian(settings);
    let server = NameServer::start(&network, table);
    let cloister = wired.guardian.register("demo");
    Some((network, server, wired, cloister))
}

const FAR_BYTES: [u8; 4] = FAR.octets();
const FARTHER_BYTES: [u8; 4] = FARTHER.octets();

#[test]
fn d3_d7_a_name_that_is_not_allowed_is_never_asked_for() {
    let settings = "proxy:\n  allow: [good.test]\n  deny: [denied.test]\n";
    let Some((network, server, _wired, cloister)) =
        stage(&[("good.test", &[Reply::Addresses(&[FAR_BYTES])])], settings)
    else {
        return;
    };
    let origin = Recorder::serving(network.listener(FAR, 80), super::origin::OK);
    for name in [
        "denied.test",
        "unlisted.test",
        "c2VjcmV0.exfil.test",
        "good.test.evil.test",
        "xgood.test",
        "localhost",
        "printer.local",
        "db.internal",
        "router",
        "good",
        "wpad",
        "metadata.google.internal",
    ] {
        for head in [cloister.get_head(name, "/"), cloister.connect_head(&format!("{name}:443"))] {
            assert_eq!(cloister.ask(head).status, 403, "{name}");
        }
    }
    // Neither who asks with a wrong token nor who asks in a broken head causes a question.
    let head = cloister.get_head("good.test", "/").replace(&cloister.token, "x");
    assert_eq!(cloister.ask(head).status, 407);
    let head = cloister.get_head("good.test", "/").replace("HTTP/1.1", "HTTP/3.0");
    assert_eq!(cloister.ask(head).status, 400);
    assert_eq!(server.names(), [""; 0]);
    // The final dot is no other name, and no search domain is tried.
    assert_eq!(cloister.ask(cloister.get_head("GOOD.test.", "/")).status, 200);
    assert_eq!(server.names(), ["good.test"]);
    assert_eq!(origin.connections(), 1);
}

#[test]
fn d4_d6_an_answer_with_one_forbidden_address_opens_nothing() {
    let settings =
        "proxy:\n  allow: [mixed.test, private.test, alias.test, cname.test, metadata.test, zero.test]\n";
    let table: &[(&str, &[Reply])] = &[
        ("mixed.test", &[Reply::Addresses(&[FAR_BYTES, [127, 0, 0, 1]])]),
        ("private.test", &[Reply::Addresses(&[[10, 0, 0, 1]])]),
        ("alias.test", &[Reply::Alias("localhost", &[[127, 0, 0, 1]])]),
        ("cname.test", &[Reply::Alias("db.corp.test", &[[192, 168, 0, 1]])]),
        ("metadata.test", &[Reply::Alias("metadata.google.internal", &[[169, 254, 169, 254]])]),
        ("zero.test", &[Reply::Addresses(&[[0, 0, 0, 0]])]),
    ];
    let Some((network, _server, wired, cloister)) = stage(table, settings) else { return };
    let origin = Recorder::serving(network.listener(FAR, 80), super::origin::OK);
    let own = wired.listener(80);
    for (name, _) in table {
        for head in [cloister.get_head(name, "/"), cloister.connect_head(&format!("{name}:443"))] {
            let answer = cloister.ask(head);
            assert_eq!((answer.status, answer.reason()), (403, "address_forbidden"), "{name}");
        }
    }
    assert!(untouched(&own));
    assert_eq!(origin.connections(), 0);
}

#[test]
fn d6_an_alias_of_a_public_name_is_followed_and_no_rule_needs_to_name_it() {
    let settings = "proxy:\n  allow: [www.test]\n";
    let table: &[(&str, &[Reply])] = &[("www.test", &[Reply::Alias("cdn.elsewhere.test", &[FAR_BYTES])])];
    let Some((network, server, _wired, cloister)) = stage(table, settings) else { return };
    let origin = Recorder::serving(network.listener(FAR, 80), super::origin::OK);
    let answer = cloister.ask(cloister.get_head("www.test", "/"));
    assert_eq!(answer.body, b"ok");
    // HTTPS and SVCB records could name another port or address: they are never asked for.
    assert!(server.asked.lock().unwrap().iter().all(|(_, kind)| [A, AAAA].contains(kind)));
    assert_eq!(origin.requests()[0].values("host"), ["www.test"]);
}

#[test]
fn d4_d5_a_name_that_changes_its_mind_is_dialled_where_it_was_checked() {
    let settings = "proxy:\n  allow: [rebind.test, flip.test]\n";
    let table: &[(&str, &[Reply])] = &[
        (
            "rebind.test",
            &[
                Reply::Addresses(&[FAR_BYTES]),
                Reply::Addresses(&[[127, 0, 0, 1]]),
                Reply::Addresses(&[FAR_BYTES]),
                Reply::Addresses(&[[11, 0, 0, 1]]),
            ],
        ),
        ("flip.test", &[Reply::Addresses(&[FAR_BYTES]), Reply::Addresses(&[FARTHER_BYTES])]),
    ];
    let Some((network, server, wired, cloister)) = stage(table, settings) else { return };
    let origin = Recorder::serving(network.listener(FAR, 80), super::origin::OK);
    let other = Recorder::serving(network.listener(FARTHER, 80), super::origin::OK);
    let own = wired.listener(80);
    let verdicts: Vec<_> = (0..4)
        .map(|_| {
            let answer = cloister.ask(cloister.get_head("rebind.test", "/"));
            (answer.status, answer.reason().to_owned(), server.count("rebind.test", A))
        })
        .collect();
    // Each connection asks once, and lives with what it heard; the last address is the guardian's own.
    let verdict = |status, reason: &str, asked| (status, reason.to_owned(), asked);
    assert_eq!(
        verdicts,
        [
            verdict(200, "", 1),
            verdict(403, "address_forbidden", 2),
            verdict(200, "", 3),
            verdict(403, "address_forbidden", 4)
        ]
    );
    assert!(untouched(&own));
    for _ in 0..2 {
        assert_eq!(cloister.ask(cloister.get_head("flip.test", "/")).status, 200);
    }
    // The third request finds the first one's connection kept: it leads to an address that was checked just now.
    assert_eq!((origin.connections(), other.connections()), (2, 1));
    assert_eq!(server.count("flip.test", A), 2, "one question for each connection");
}

#[test]
fn d8_n12_a_server_for_names_is_refused_like_every_host_that_no_rule_names() {
    let settings = "proxy:\n  allow: [good.test, \"*.google.com\", \"*.cloudflare-dns.com\"]\n";
    let Some((_network, server, wired, cloister)) = stage(&[], settings) else { return };
    for authority in [
        "dns.google:443",
        "dns.google.com:443",
        "mozilla.cloudflare-dns.com:443",
        "cloudflare-dns.com:443",
        "one.one.one.one:443",
        "dns.quad9.net:443",
        "8.8.8.8:443",
        "8.8.8.8:853",
        "1.1.1.1:443",
        "[2001:4860:4860::8888]:443",
        "www.google.com:853",
        "good.test:853",
        "good.test:53",
    ] {
        let answer = cloister.ask(cloister.connect_head(authority));
        assert_eq!((answer.status, answer.reason()), (403, "not_allowed"), "{authority}");
    }
    assert_eq!(server.names(), [""; 0]);
    let why = wired.guardian.host.ok(&["why", "dns.google.com"]);
    assert!(
        why.contains("*.google.com")
            && why.contains("public name server")
            && why.contains("add `dns.google.com`"),
        "{why}"
    );
}
