//! Names and addresses: a guardian whose system asks a name server of the test's.

use std::io::Read;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use super::origin::address;
use crate::harness::{Host, User};
use crate::requirement;

/// A name server that answers A questions from a table and notes every name that it is asked.
struct NameServer {
    address: Ipv4Addr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    fn start(table: &'static [(&'static str, &'static [[u8; 4]])]) -> Self {
        let address = address();
        let socket = UdpSocket::bind((address, 53)).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut packet = [0; 1500];
            while let Ok((length, client)) = socket.recv_from(&mut packet) {
                let (name, kind, end) = question(&packet[..length]);
                let found = table.iter().find(|(known, _)| *known == name);
                let addresses = found.filter(|_| kind == 1).map_or(&[][..], |(_, addresses)| addresses);
                notes.lock().unwrap().push(name);
                socket.send_to(&answer(&packet[..end], found.is_some(), addresses), client).unwrap();
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        let mut names = self.asked.lock().unwrap().clone();
        names.dedup();
        names
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

fn answer(query: &[u8], exists: bool, addresses: &[[u8; 4]]) -> Vec<u8> {
    let mut packet = query.to_vec();
    let code = if exists { 0 } else { 3 };
    packet[2..12].copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, 0, 0, 0, 0, 0]);
    packet[7] = u8::try_from(addresses.len()).unwrap();
    for address in addresses {
        packet.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        packet.extend(address);
    }
    packet
}

/// A guardian in a mount name space where `/etc/resolv.conf` names the test's server.
fn guardian(host: &Host, server: &NameServer) -> Child {
    let settings = host.path("resolv.conf");
    host.write(&settings, format!("nameserver {}\nsearch corp.test\n", server.address));
    let script = format!(
        "mount --bind {} /etc/resolv.conf && exec {} guardian run",
        settings.display(),
        host.binary().display()
    );
    let mut command = host.program("unshare");
    command.args(["--mount", "sh", "-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut guardian = command.spawn().unwrap();
    let mut ready = [0; 5];
    guardian.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready");
    guardian
}

#[test]
fn d3_d4_d7_only_allowed_names_are_asked_and_every_address_is_judged() {
    if !rustix::process::geteuid().is_root() {
        return requirement::skip("bubblewrap", "only root may listen on port 53 and mount");
    }
    if Host::with_bubblewrap().is_none() {
        return;
    }
    let host = Host::new(User::Same);
    let server = NameServer::start(&[
        ("private.test", &[[10, 1, 2, 3]]),
        ("rebound.test", &[[93, 184, 216, 34], [127, 0, 0, 1]]),
        ("metadata.test", &[[169, 254, 169, 254]]),
    ]);
    host.configure(
        "proxy:\n  allow: [private.test, rebound.test, metadata.test, missing.test]\n  deny: [denied.test]\n",
    );
    let mut guardian = guardian(&host, &server);
    let script = "for name in unlisted.test denied.test localhost.test. router 169.254.169.254 \
                  private.test rebound.test metadata.test missing.test; do \
                    printf '%s ' $name; curl -s -o /dev/null -x $HTTP_PROXY -w '%{http_code}\\n' \
                      http://$name/ || echo failed; done";
    let done = host.inside(script);
    assert_eq!(
        done.stdout,
        "unlisted.test 403\ndenied.test 403\nlocalhost.test. 403\nrouter 403\n169.254.169.254 403\n\
         private.test 403\nrebound.test 403\nmetadata.test 403\nmissing.test 502\n",
        "{done:?}"
    );
    let mut asked = server.asked();
    asked.sort();
    asked.dedup();
    assert_eq!(asked, ["metadata.test", "missing.test", "private.test", "rebound.test"]);
    let log = host.ok(&["audit"]);
    for (host, reason) in [
        ("unlisted.test", "not_allowed"),
        ("denied.test", "denied_by_rule"),
        ("router", "not_allowed"),
        ("169.254.169.254", "address_forbidden"),
        ("private.test", "address_forbidden"),
        ("rebound.test", "address_forbidden"),
        ("metadata.test", "address_forbidden"),
        ("missing.test", "dns_failed"),
    ] {
        let line = log.lines().find(|line| line.contains(&format!(" {host}:80 ")));
        assert!(line.is_some_and(|line| line.contains(reason)), "{host} {reason}: {log}");
    }
    host.ok(&["shutdown"]);
    guardian.wait().unwrap();
}
