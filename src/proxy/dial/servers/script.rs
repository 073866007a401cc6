//! A name server on loopback that answers by a script, and tells what it is asked.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;

use super::Settings;

pub(in crate::proxy::dial) const A: u8 = 1;
pub(in crate::proxy::dial) const CNAME: u8 = 5;
pub(in crate::proxy::dial) const AAAA: u8 = 28;

/// A record: its name, its TTL, and what it says.
pub(in crate::proxy::dial) type Record = (&'static str, u32, Data);

#[derive(Clone, Copy)]
pub(in crate::proxy::dial) enum Data {
    A([u8; 4]),
    Aaaa([u16; 8]),
    Cname(&'static str),
}

/// What is said to a question.
#[derive(Clone)]
pub(in crate::proxy::dial) enum Says {
    Nothing,
    Code(u8),
    Records(Vec<Record>),
    /// Nothing by UDP but that it is too long, and then this.
    ByTcp(Vec<Record>),
    /// This to a question for one family, and nothing to the other.
    Only(u8, Vec<Record>),
    Bytes(&'static [u8]),
}

pub(in crate::proxy::dial) struct NameServer {
    pub(in crate::proxy::dial) port: u16,
    script: Arc<Mutex<HashMap<&'static str, Says>>>,
    questions: mpsc::UnboundedReceiver<(String, u8)>,
}

impl NameServer {
    pub(in crate::proxy::dial) async fn start() -> Self {
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let port = udp.local_addr().unwrap().port();
        let (asked, questions) = mpsc::unbounded_channel();
        let script: Arc<Mutex<HashMap<_, _>>> = Arc::default();
        script.lock().unwrap().extend([(
            "both.test.",
            Says::Records(vec![
                ("both.test.", 60, Data::A([192, 0, 2, 1])),
                ("both.test.", 60, Data::Aaaa([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])),
            ]),
        )]);
        let answers = Arc::clone(&script);
        let on_udp = asked.clone();
        tokio::spawn(async move {
            let mut packet = [0; 1500];
            while let Ok((length, client)) = udp.recv_from(&mut packet).await {
                if let Some(answer) = answer(&packet[..length], &answers, &on_udp, false) {
                    udp.send_to(&answer, client).await.unwrap();
                }
            }
        });
        let answers = Arc::clone(&script);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let (answers, asked) = (Arc::clone(&answers), asked.clone());
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut packet = vec![0; length.into()];
                        stream.read_exact(&mut packet).await.unwrap();
                        let Some(answer) = answer(&packet, &answers, &asked, true) else { return };
                        stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
                        stream.write_all(&answer).await.unwrap();
                    }
                });
            }
        });
        Self { port, script, questions }
    }

    /// A server that says this to the questions for `name`.
    pub(in crate::proxy::dial) fn say(&self, name: &'static str, says: Says) {
        self.script.lock().unwrap().insert(name, says);
    }

    /// Settings that name this server alone.
    pub(in crate::proxy::dial) fn settings(&self) -> Settings {
        Settings {
            servers: vec![(IpAddr::from(Ipv4Addr::LOCALHOST), self.port).into()],
            wait: Duration::from_millis(500),
            attempts: 1,
            ..Settings::parse("search corp.test\ndomain corp.test\noptions ndots:5")
        }
    }

    /// What was asked since the last time, in an order of its own.
    pub(in crate::proxy::dial) fn asked(&mut self) -> Vec<(String, u8)> {
        let mut asked: Vec<_> = std::iter::from_fn(|| self.questions.try_recv().ok()).collect();
        asked.sort();
        asked
    }
}

/// The name and type that a query asks for, and where its question ends.
fn question(query: &[u8]) -> (String, u8, usize) {
    let (mut at, mut name) = (12, String::new());
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        name += std::str::from_utf8(&query[at + 1..end]).unwrap();
        name.push('.');
        at = end;
    }
    (name, query[at + 2], at + 5)
}

fn answer(
    query: &[u8],
    script: &Mutex<HashMap<&'static str, Says>>,
    asked: &mpsc::UnboundedSender<(String, u8)>,
    by_tcp: bool,
) -> Option<Vec<u8>> {
    let (name, kind, end) = question(query);
    // A test that has ended reads no more questions.
    let _ = asked.send((name.clone(), kind));
    let says = script.lock().unwrap().get(&*name).cloned().unwrap_or(Says::Code(3));
    let (flags, code, records) = match says {
        Says::Nothing => return None,
        Says::Only(family, _) if family != kind => return None,
        Says::Bytes(bytes) => return Some(bytes.to_vec()),
        Says::Code(code) => (0x81, code, Vec::new()),
        Says::ByTcp(_) if !by_tcp => (0x83, 0, Vec::new()),
        Says::Records(records) | Says::ByTcp(records) | Says::Only(_, records) => (0x81, 0, records),
    };
    let mut packet = query[..end].to_vec();
    packet[2..12].copy_from_slice(&[flags, 0x80 | code, 0, 1, 0, 0, 0, 0, 0, 0]);
    for (name, ttl, data) in records {
        let (record_kind, bytes) = match data {
            Data::A(octets) => (A, octets.to_vec()),
            Data::Aaaa(parts) => (AAAA, parts.iter().flat_map(|part| part.to_be_bytes()).collect()),
            Data::Cname(target) => (CNAME, encode(target)),
        };
        if record_kind != kind && record_kind != CNAME {
            continue;
        }
        packet[7] += 1;
        packet.extend(encode(name));
        packet.extend([0, record_kind, 0, 1]);
        packet.extend(ttl.to_be_bytes());
        packet.extend([0, u8::try_from(bytes.len()).unwrap()]);
        packet.extend(bytes);
    }
    Some(packet)
}

fn encode(name: &str) -> Vec<u8> {
    let labels = name.split_terminator('.');
    let labels = labels.flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat());
    labels.chain([0]).collect()
}
