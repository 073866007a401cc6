//! Real clients inside a sandbox, with nothing set by the user: what the README's table says of each.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;

use serde_json::Value;

use super::origin::{self, Tls, address, may_listen_on_443};
use crate::harness::{Done, Host, finish, plain};
use crate::requirement;

/// How many hosts a package client asks for at most before it has its package.
const MAX_HOSTS: usize = 6;

/// What carries connections on a loopback address to port 443 of a host.
///
/// The tests' registries may have addresses that no policy lets through (a documentation range on one build machine);
/// the sandbox's way up to the guardian's dial is the same.
struct Forwarder {
    address: Ipv4Addr,
}

impl Forwarder {
    fn start(host: &str, number: usize) -> Self {
        let [net, high, middle, low] = address().octets();
        let shift = u8::try_from(number).unwrap() * 32;
        let address = Ipv4Addr::new(net, high, middle.wrapping_add(shift), low);
        let target: SocketAddr = (host, 443).to_socket_addrs().unwrap().next().unwrap();
        let listener = TcpListener::bind((address, 443)).unwrap();
        thread::spawn(move || {
            for client in listener.incoming() {
                thread::spawn(move || forward(client.unwrap(), target));
            }
        });
        Self { address }
    }
}

#[expect(clippy::disallowed_methods, reason = "the tests' own way to a registry")]
fn forward(client: TcpStream, target: SocketAddr) {
    let Ok(server) = TcpStream::connect(target) else { return };
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let up = thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (server, client);
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    up.join().unwrap();
}

/// Runs a client inside as a user would who allows host after host, until it has what it wants.
#[track_caller]
fn install(host: &Host, settings: &str, script: &str) -> Done {
    let mut forwarders: BTreeMap<String, Forwarder> = BTreeMap::new();
    for _ in 0..=MAX_HOSTS {
        let allow = forwarders.keys().cloned().collect::<Vec<_>>().join(", ");
        let pins = forwarders.iter().map(|(name, forwarder)| format!("{name}: [{}]", forwarder.address));
        let pins = pins.collect::<Vec<_>>().join(", ");
        host.configure(&format!("proxy: {{allow: [{allow}], hosts: {{{pins}}}}}\n{settings}"));
        host.ok(&["guardian", "reload"]);
        let done = host.inside(script);
        if done.code == 0 {
            assert!(!forwarders.is_empty(), "nothing was asked for: {done:?}");
            return done;
        }
        let log: Value = serde_json::from_str(&host.ok(&["audit", "--json"])).unwrap();
        let refused = log.as_array().unwrap().iter().filter(|entry| entry["reason"] == "not_allowed");
        let new: Vec<String> = refused
            .map(|entry| entry["host"].as_str().unwrap().to_owned())
            .filter(|name| !forwarders.contains_key(name))
            .collect();
        assert!(!new.is_empty(), "{done:?}");
        for name in new {
            let number = forwarders.len();
            forwarders.entry(name.clone()).or_insert_with(|| Forwarder::start(&name, number));
        }
    }
    panic!("the client asks for more than {MAX_HOSTS} hosts");
}

/// A host whose guardian runs, so that its settings can be read again.
fn started() -> Option<Host> {
    let host = Host::with_bubblewrap()?;
    if !may_listen_on_443() {
        requirement::skip("bubblewrap", "only root may listen on port 443");
        return None;
    }
    host.ok(&["guardian", "start"]);
    Some(host)
}

#[test]
fn pip_installs_a_package() {
    let Some(host) = started() else { return };
    let script = "python3 -m pip --version >/dev/null 2>&1 || exit 7; \
                  /usr/bin/python3 -m pip install --quiet --retries 0 --no-cache-dir --target /tmp/p iniconfig 2>&1 \
                  && PYTHONPATH=/tmp/p /usr/bin/python3 -c 'import iniconfig; print(iniconfig.__name__)'";
    let done = install(&host, "", script);
    assert!(done.stdout.ends_with("iniconfig\n"), "{done:?}");
}

#[test]
fn npm_installs_a_package() {
    let Some(host) = started() else { return };
    let script = "cd /tmp && npm install --no-audit --no-fund --no-update-notifier --loglevel=error is-number@7.0.0 2>&1 \
                  && node -p 'require(\"is-number\")(7)'";
    // The tests' machine may hand out the registry's certificate under an authority of its own.
    let settings = format!("env: {{set: {{NODE_EXTRA_CA_CERTS: {CERTIFICATES}}}}}\n");
    let done = install(&host, &settings, script);
    assert!(done.stdout.ends_with("true\n"), "{done:?}");
}

const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

#[test]
fn cargo_builds_with_a_package() {
    let toolchain = toolchain();
    let settings = format!("mounts: [{{source: {}, target: /opt/rust, mode: ro}}]\n", toolchain.display());
    let Some(host) = started() else { return };
    let script = "export PATH=/opt/rust/bin:$PATH CARGO_NET_RETRY=0; cd /tmp && rm -rf c && \
                  cargo new --quiet --vcs none c 2>&1 && cd c && cargo add --quiet itoa@1 2>&1 && \
                  printf 'fn main() { println!(\"{}\", itoa::Buffer::new().format(42)); }' > src/main.rs && \
                  cargo run --quiet 2>&1";
    let done = install(&host, &settings, script);
    assert!(done.stdout.ends_with("42\n"), "{done:?}");
}

/// The toolchain that builds these tests, where the sandboxes' user can read it.
fn toolchain() -> PathBuf {
    let mut rustc = plain("rustc");
    rustc.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", std::env::var_os("HOME").unwrap());
    rustc.envs(["RUSTUP_HOME", "CARGO_HOME"].iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    let sysroot = finish({
        rustc.args(["--print", "sysroot"]);
        rustc
    });
    let source = PathBuf::from(sysroot.stdout.trim());
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rust");
    if !copy.join("bin/cargo").exists() {
        let half = copy.with_extension(format!("{}", std::process::id()));
        fs::create_dir_all(half.join("lib")).unwrap();
        for part in ["bin", "lib"] {
            let done = finish({
                let mut cp = plain("cp");
                cp.args(["-rl", "--no-preserve=ownership"]).arg(source.join(part)).arg(&half);
                cp
            });
            if done.code != 0 {
                let mut cp = plain("cp");
                cp.arg("-rf").arg(source.join(part)).arg(&half);
                assert_eq!(finish(cp).code, 0, "{done:?}");
            }
        }
        // Another test process may have been quicker.
        let _ = fs::rename(&half, &copy);
    }
    copy
}

/// What a client says that fetched the page of a TLS origin whose authority it is told to trust.
#[track_caller]
fn fetches(program: &str, script: &str) {
    let Some((host, _origin)) = with_page() else { return };
    let done = host.inside(&format!("command -v {program} >/dev/null || exit 7; {script}"));
    if done.code == 7 {
        return requirement::skip("clients", &format!("there is no `{program}`"));
    }
    assert_eq!((done.code, done.stdout.as_str()), (0, "the page\n"), "{done:?}");
    let log = host.ok(&["audit"]);
    assert!(log.contains("proxy.allow demo web.test:443"), "{log}");
}

fn with_page() -> Option<(Host, Tls)> {
    let host = Host::with_bubblewrap()?;
    if !may_listen_on_443() {
        requirement::skip("bubblewrap", "only root may listen on port 443");
        return None;
    }
    let origin = Tls::start(&host, "web.test", "the page\n");
    host.configure(&format!("proxy: {{allow: [web.test], hosts: {{web.test: [{}]}}}}\n", origin.address));
    Some((host, origin))
}

#[test]
fn curl_fetches() {
    fetches("curl", "curl -sS --cacert ca.pem https://web.test/");
}

#[test]
fn wget_fetches() {
    fetches("wget", "wget -q -O - --ca-certificate=ca.pem https://web.test/");
}

#[test]
fn python_urllib_fetches() {
    let script = "SSL_CERT_FILE=ca.pem /usr/bin/python3 -c \
                  'import urllib.request as r; print(end=r.urlopen(\"https://web.test/\").read().decode())'";
    fetches("/usr/bin/python3", script);
}

#[test]
fn python_requests_fetches() {
    let script = "REQUESTS_CA_BUNDLE=ca.pem /usr/bin/python3 -c \
                  'import requests; print(end=requests.get(\"https://web.test/\").text)'";
    fetches("/usr/bin/python3", script);
}

#[test]
fn python_httpx_fetches() {
    let script = "SSL_CERT_FILE=ca.pem /usr/bin/python3 -c \
                  'import httpx; print(end=httpx.get(\"https://web.test/\").text)'";
    fetches("/usr/bin/python3", script);
}

#[test]
fn go_fetches() {
    let program = r#"package main
import ("fmt"; "io"; "net/http"; "os")
func main() {
	answer, err := http.Get("https://web.test/")
	if err != nil { fmt.Println(err); os.Exit(1) }
	io.Copy(os.Stdout, answer.Body)
}"#;
    let script =
        format!("cat > /tmp/f.go <<'END'\n{program}\nEND\nSSL_CERT_FILE=/work/ca.pem go run /tmp/f.go");
    fetches("go", &script);
}

#[test]
fn node_fetches_from_version_24_on() {
    let Some(node) = node_24() else { return };
    let Some((host, _origin)) = with_page() else { return };
    fs::copy(node, host.path("home/demo/node24")).unwrap();
    host.own(&host.path("home/demo/node24"));
    let script = "NODE_EXTRA_CA_CERTS=ca.pem ./node24 -e \
                  'fetch(\"https://web.test/\").then(a => a.text()).then(t => process.stdout.write(t))'";
    let done = host.inside(script);
    assert_eq!((done.code, done.stdout.as_str()), (0, "the page\n"), "{done:?}");
}

/// Node 24, installed once from the npm registry.
fn node_24() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("node-24");
    let program = folder.join("node_modules/node/bin/node");
    if !program.exists() {
        fs::create_dir_all(&folder).unwrap();
        let mut npm = plain("npm");
        // npm wants its user's settings.
        npm.envs(std::env::vars_os()).args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(&folder);
        npm.arg("node@24").stdout(Stdio::null()).stderr(Stdio::null());
        if !npm.status().is_ok_and(|status| status.success()) {
            requirement::skip("npm", "`npm install node@24` failed");
            return None;
        }
    }
    Some(program)
}

/// git sends its first CONNECT without credentials, and the second one with them.
#[test]
fn git_clones_over_https() {
    let Some(host) = Host::with_bubblewrap() else { return };
    if !may_listen_on_443() {
        return requirement::skip("bubblewrap", "only root may listen on port 443");
    }
    let folder = host.path("origin");
    fs::create_dir(&folder).unwrap();
    origin::certificate(&folder, "git.test");
    let script = "git init -q --initial-branch=main src && cd src && echo hello > file && git add file && \
                git -c user.name=a -c user.email=a@b commit -qm first && cd .. && \
                git clone -q --bare src served/repo.git && cd served/repo.git && git update-server-info";
    let made = finish({
        let mut sh = plain("sh");
        sh.args(["-ec", script]).env("HOME", &folder).current_dir(&folder);
        sh
    });
    assert_eq!(made.code, 0, "{made:?}");
    host.write(&host.repository().join("ca.pem"), fs::read(folder.join("cert.pem")).unwrap());
    let origin = Tls::spawn("tls_origin.py", &folder, &["--folder", "served"]);
    host.configure(&format!("proxy: {{allow: [git.test], hosts: {{git.test: [{}]}}}}\n", origin.address));
    let script = "GIT_CURL_VERBOSE=1 git -c http.sslCAInfo=/work/ca.pem clone https://git.test/repo.git /tmp/r 2>/tmp/log; \
                  cat /tmp/r/file; grep -c 'HTTP/1.1 407' /tmp/log";
    let done = host.inside(script);
    assert_eq!(done.stdout, "hello\n1\n", "{done:?}");
    let log = host.ok(&["audit"]);
    assert!(!log.contains("unauthenticated"), "a first challenge is no denial: {log}");
}

#[test]
fn ssh_goes_through_the_guardian() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let Some(server) = Sshd::start(&host) else { return };
    let listed = format!(
        "proxy: {{allow: ['ssh.test:{0}'], hosts: {{ssh.test: [{1}]}}}}\n",
        server.port, server.address
    );
    host.configure(&listed);
    let ssh = format!(
        "ssh -i /work/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/tmp/k -o LogLevel=ERROR -p {} ",
        server.port
    );
    let done = host.inside(&format!("chmod 600 key; {ssh} {}@ssh.test 'echo from outside'", server.user));
    assert_eq!(done.stdout, "from outside\n", "{done:?}");
    let log = host.ok(&["audit"]);
    assert!(log.contains(&format!("proxy.allow demo ssh.test:{}", server.port)), "{log}");
    let refused = host.inside("ssh -o StrictHostKeyChecking=no -p 22 nobody@unlisted.example true");
    assert_eq!(refused.code, 255);
    assert!(refused.stderr.contains("cannot connect to unlisted.example:22: not_allowed"), "{refused:?}");
    assert!(refused.stderr.contains("proxy.allow"), "{refused:?}");
}

/// An ssh server on loopback that lets in whoever holds the key in the repository.
struct Sshd {
    address: Ipv4Addr,
    port: u16,
    user: String,
    server: Child,
}

#[expect(clippy::disallowed_methods, reason = "the server is the test's own")]
fn listens(address: (Ipv4Addr, u16)) -> bool {
    TcpStream::connect(address).is_ok()
}

impl Sshd {
    fn start(host: &Host) -> Option<Self> {
        if !Path::new("/usr/sbin/sshd").exists() {
            requirement::skip("clients", "there is no `sshd`");
            return None;
        }
        let folder = host.path("sshd");
        fs::create_dir(&folder).unwrap();
        for key in ["host_key", "key"] {
            let mut keygen = plain("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", key]).current_dir(&folder);
            assert_eq!(finish(keygen).code, 0);
        }
        host.write(&host.repository().join("key"), fs::read(folder.join("key")).unwrap());
        let address = address();
        let port = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().port();
        let folder_name = folder.display();
        fs::write(
            folder.join("config"),
            format!(
                "ListenAddress {address}\nPort {port}\nHostKey {folder_name}/host_key\nPidFile none\n\
                 AuthorizedKeysFile {folder_name}/key.pub\nStrictModes no\nUsePAM no\n\
                 PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            ),
        )
        .unwrap();
        // Where it separates its privileges; a package's start script makes it otherwise.
        let _ = fs::create_dir_all("/run/sshd");
        let mut server = plain("/usr/sbin/sshd");
        server
            .args(["-D", "-e", "-f"])
            .arg(folder.join("config"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut server = server.spawn().unwrap();
        // Not by binding: the server could come just then, and find the port taken.
        while !listens((address, port)) {
            assert!(server.try_wait().unwrap().is_none(), "sshd has ended");
            thread::yield_now();
        }
        let user = finish({
            let mut id = plain("id");
            id.arg("-un");
            id
        });
        Some(Self { address, port, user: user.stdout.trim().to_owned(), server })
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}
