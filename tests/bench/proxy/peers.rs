//! The ways to the origin that are measured, and the processes that they need.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use cloister::config::Network;
use cloister::guardian::client::{Guardian, Registration};
use cloister::name::{CloisterName, ProjectName};
use cloister::paths::Paths;

use super::load::{Peer, Way};
use super::process::{Process, Running};
use super::stream::Address;

/// Where the origin listens: loopback, on an address that nobody else uses.
pub(crate) const ORIGIN: &str = "127.88.0.1";
/// Its name for the guardian, which is given no address.
pub(crate) const ORIGIN_NAME: &str = "origin.test";
/// `cloister:secret`, in Base64 and as a line of a password file.
const BASIC: &str = "Proxy-Authorization: Basic Y2xvaXN0ZXI6c2VjcmV0\r\n";
const PASSWORD_LINE: &str = "cloister:$apr1$mjry1SQG$JPz0Py5yiHTY/62F6hxQb0\n";
const SQUID_PORT: u16 = 13_128;
const TINYPROXY_PORT: u16 = 18_888;

/// Everything that runs for the benchmark.
pub(crate) struct Stage {
    directory: tempfile::TempDir,
    port: u16,
    running: Vec<Running>,
    /// Whether the origin listens on port 443 too.
    pub(crate) has_tls_port: bool,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("cl").tempdir_in("/tmp").unwrap();
        let (origin, address) = Running::start(&mut this(&["origin", &format!("{ORIGIN}:0")]));
        let port = address.parse::<SocketAddr>().unwrap().port();
        let mut stage = Self { directory, port, running: vec![origin], has_tls_port: false };
        if rustix::process::geteuid().is_root() {
            stage.run(&["origin", &format!("{ORIGIN}:443")]);
            stage.has_tls_port = true;
        }
        stage
    }

    fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    /// Runs this program in another role; gives its process and what it says when it is ready.
    fn run(&mut self, words: &[&str]) -> (Process, String) {
        let (running, said) = Running::start(&mut this(words));
        let process = running.process();
        self.running.push(running);
        (process, said)
    }

    /// The load goes straight to the origin.
    pub(crate) fn direct(&self) -> Peer {
        let address = Address::Tcp(format!("{ORIGIN}:{}", self.port).parse().unwrap());
        Peer { name: "direct", address, way: Way::Direct, process: None }
    }

    /// A reference on a Unix socket.
    pub(crate) fn on_unix(&mut self, name: &'static str, kind: &str) -> Peer {
        let path = self.path(&format!("{kind}.sock"));
        let (process, _) = self.run(&[kind, path.to_str().unwrap()]);
        Peer { name, address: Address::Unix(path), way: self.by_address(), process: Some(process) }
    }

    /// A reference on TCP.
    pub(crate) fn on_tcp(&mut self, name: &'static str, kind: &str) -> Peer {
        let (process, address) = self.run(&[kind, "127.0.0.1:0"]);
        Peer { name, address: Address::parse(&address), way: self.by_address(), process: Some(process) }
    }

    fn by_address(&self) -> Way {
        Way::Proxy { host: ORIGIN, port: self.port, credentials: BASIC.to_owned() }
    }

    /// What runs in a sandbox between its programs and the guardian.
    pub(crate) fn behind_inner_relay(&mut self, name: &'static str, guardian: &Peer) -> Peer {
        let Address::Unix(socket) = &guardian.address else { panic!("a guardian listens on a path") };
        // The relay is told its port, as in a sandbox.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        self.run(&["inner-relay", &port.to_string(), socket.to_str().unwrap()]);
        Peer { name, address: Address::parse(&format!("127.0.0.1:{port}")), ..guardian.clone() }
    }

    /// A guardian of its own home that serves so many sandboxes, each with its socket.
    pub(crate) async fn guardian(&mut self, home: &str, sandboxes: usize) -> Vec<Peer> {
        let home = self.path(home);
        write(
            &home.join(".config/cloister/config.yaml"),
            &format!(
                "proxy:\n  allow: ['{ORIGIN_NAME}:{port}', '{ORIGIN_NAME}']\n  unlisted: reject\n  \
                 hosts: {{{ORIGIN_NAME}: ['{ORIGIN}']}}\n  max_tunnels: 65536\n  \
                 rate_limit: {{per_minute: 6000000, burst: 1000000}}\n",
                port = self.port
            ),
        );
        let mut command = program(env!("CARGO_BIN_EXE_cloister"));
        let (running, _) = Running::start(command.args(["guardian", "run"]).env("HOME", &home));
        let process = running.process();
        self.running.push(running);
        let paths = Paths::from_environment(|name| (name == "HOME").then(|| home.clone().into())).unwrap();
        let guardian = Guardian::connect(&paths).await.unwrap();
        let mut peers = Vec::new();
        for number in 0..sandboxes {
            let cloister = CloisterName::parse(&format!("bench-{number}")).unwrap();
            let registration = Registration {
                cloister: cloister.clone(),
                project: ProjectName::parse("bench").unwrap(),
                directory: home.join(format!("bench-{number}")),
                branch: None,
                network: Network::Guarded,
            };
            let token = guardian.register(&registration).await.unwrap();
            peers.push(Peer {
                name: "cloister",
                address: Address::Unix(paths.by_name_link(&cloister).join("proxy.sock")),
                way: Way::Proxy {
                    host: ORIGIN_NAME,
                    port: self.port,
                    credentials: format!("Proxy-Authorization: Bearer {token}\r\n"),
                },
                process: Some(process),
            });
        }
        peers
    }

    /// Squid with a password, a list of hosts and an access log, where it is installed.
    pub(crate) fn squid(&mut self) -> Option<Peer> {
        let binary = installed(&["/usr/sbin/squid"])?;
        let helper = installed(&["/usr/lib/squid/basic_ncsa_auth"])?;
        let directory = self.path("squid");
        let shown = directory.display();
        let settings = format!(
            "http_port 127.0.0.1:{SQUID_PORT}\npid_filename {shown}/pid\ncoredump_dir {shown}\n\
             cache deny all\naccess_log daemon:{shown}/access.log\nbuffered_logs on\ncache_log {shown}/cache.log\n\
             shutdown_lifetime 0 seconds\npinger_enable off\nserver_persistent_connections on\n\
             auth_param basic program {helper} {shown}/passwords\n\
             acl known proxy_auth REQUIRED\nacl origin dstdomain {ORIGIN}\n\
             acl CONNECT method CONNECT\nhttp_access deny !known\nhttp_access allow origin\nhttp_access deny all\n"
        );
        write(&directory.join("passwords"), PASSWORD_LINE);
        let squid = Installed { name: "squid", binary, arguments: ["-N", "-f"], port: SQUID_PORT };
        Some(self.run_installed(&squid, &directory, &settings))
    }

    /// Tinyproxy with a password, a list of hosts and a log of its connections, where it is installed.
    pub(crate) fn tinyproxy(&mut self) -> Option<Peer> {
        let binary = installed(&["/usr/bin/tinyproxy", "/usr/sbin/tinyproxy"])?;
        let directory = self.path("tinyproxy");
        let shown = directory.display();
        let settings = format!(
            "Port {TINYPROXY_PORT}\nListen 127.0.0.1\nTimeout 600\nMaxClients 1000\nLogFile \"{shown}/log\"\n\
             LogLevel Connect\nBasicAuth cloister secret\nFilter \"{shown}/allowed\"\nFilterDefaultDeny Yes\n"
        );
        write(&directory.join("allowed"), &format!("{ORIGIN}\n"));
        let arguments = ["-d", "-c"];
        let tinyproxy = Installed { name: "tinyproxy", binary, arguments, port: TINYPROXY_PORT };
        Some(self.run_installed(&tinyproxy, &directory, &settings))
    }

    fn run_installed(&mut self, proxy: &Installed, directory: &Path, settings: &str) -> Peer {
        let file = directory.join("settings");
        write(&file, settings);
        // Such a proxy gives up root.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(self.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let running = Running::start_quiet(program(&proxy.binary).args(proxy.arguments).arg(&file));
        let process = running.process();
        self.running.push(running);
        let address: SocketAddr = format!("127.0.0.1:{}", proxy.port).parse().unwrap();
        #[expect(clippy::disallowed_methods, reason = "the benchmark waits until its proxy listens")]
        while std::net::TcpStream::connect(address).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Peer {
            name: proxy.name,
            address: Address::Tcp(address),
            way: self.by_address(),
            process: Some(process),
        }
    }
}

/// A proxy of the machine: its settings' file is its last argument.
struct Installed {
    name: &'static str,
    binary: String,
    arguments: [&'static str; 2],
    port: u16,
}

fn installed(places: &[&str]) -> Option<String> {
    places.iter().find(|place| Path::new(place).exists()).map(|place| (*place).to_owned())
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

#[expect(clippy::disallowed_methods, reason = "the benchmark starts programs of the host")]
fn program(path: impl Into<OsString>) -> Command {
    let mut command = Command::new(path.into());
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command
}

/// This program, in another role.
fn this(words: &[&str]) -> Command {
    let mut command = program(std::env::current_exe().unwrap());
    command.arg("--role").args(words);
    command
}
