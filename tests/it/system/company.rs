//! A company's proxy on the way out, in front of the real guardian (`proxy.upstream`).

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::origin::Plain;
use crate::harness::Host;

/// `user:s3cret`, as the proxy wants to see it.
const PROOF: &str = "Proxy-Authorization: Basic dXNlcjpzM2NyZXQ=";

/// A proxy that opens tunnels for who proves to be the user, and the heads that it was sent.
fn start_proxy() -> (Plain, Arc<Mutex<Vec<String>>>) {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&heads);
    let proxy = Plain::serve(move |mut client| {
        let lines = BufReader::new(&client).lines().map(Result::unwrap);
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        seen.lock().unwrap().push(head.join("\n"));
        if !head.iter().any(|line| line == PROOF) {
            let answer = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\nthe company's page";
            return client.write_all(answer.as_bytes()).unwrap();
        }
        let target = head[0].split(' ').nth(1).unwrap();
        #[expect(clippy::disallowed_methods, reason = "this is another proxy, which the test plays")]
        let upstream = TcpStream::connect(target).unwrap();
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
        let (mut from_client, mut to_upstream) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
        std::thread::spawn(move || io::copy(&mut from_client, &mut to_upstream));
        // The end of either side is the end.
        let _ = io::copy(&mut &upstream, &mut client);
    });
    (proxy, heads)
}

#[test]
fn n16_the_guardian_goes_through_the_companys_proxy_by_the_checked_address() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let origin = Plain::start("the page\n");
    let (proxy, heads) = start_proxy();
    let (address, port) = (origin.address.ip(), origin.address.port());
    let configure = |credentials: &str| {
        host.configure(&format!(
            "proxy:\n  upstream: \"http://{credentials}@{}\"\n  allow: [\"web.test:{port}\"]\n  \
             hosts: {{web.test: [{address}]}}\n",
            proxy.address
        ));
    };
    configure("user:s3cret");
    let plain = format!("curl -sS http://web.test:{port}/");
    let tunnel = format!("curl -sS --proxytunnel http://web.test:{port}/");
    let done = host.inside(&format!("{plain} && {tunnel}"));
    assert_eq!((done.code, done.stdout.as_str()), (0, "the page\nthe page\n"), "{done:?}");
    let expected = format!("CONNECT {address}:{port} HTTP/1.1\nHost: {address}:{port}\n{PROOF}");
    assert_eq!(*heads.lock().unwrap(), [expected.clone(), expected]);

    configure("user:0ther");
    host.ok(&["guardian", "reload"]);
    let before = origin.connections();
    let refused = host.inside(&format!("curl -s http://web.test:{port}/"));
    let body: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(body["error"], "connect_failed", "{body}");
    assert!(body["hint"].as_str().unwrap().contains("(status 407)"), "{body}");
    assert_eq!(origin.connections(), before, "no other way out");
    // The end of a connection is written a moment after it.
    let told = |audit: &String| audit.contains("are the credentials in `proxy.upstream` right?");
    let audit = (0..100).map(|_| host.ok(&["audit", "--json"])).find(told).unwrap();

    let status: Value = serde_json::from_str(&host.ok(&["guardian", "status", "--json"])).unwrap();
    let arguments = fs::read(format!("/proc/{}/cmdline", status[0]["pid"])).unwrap();
    for shown in [audit, status.to_string(), String::from_utf8(arguments).unwrap(), refused.stdout] {
        for secret in ["s3cret", "0ther", "dXNlcjpzM2NyZXQ", "the company's page"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }
}
