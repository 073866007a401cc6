//! The attempts to break out, threat by threat: each with the same attempt outside, where it has to succeed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::kernel;
use super::stage::{ALLOWED_NAME, LIMITS, allowed_canary};
use crate::init::probe::{Attack, Canaries, Endpoint};
use crate::session::environment::PROXY_PORT;

/// The threats that are probed, and what they are about.
pub(super) const ROWS: [(&str, &str); 22] = [
    ("T1", "direct connections past the proxy"),
    ("T2", "UDP, DNS, raw and rare sockets"),
    ("T3", "connections over IPv6"),
    ("T4", "changing interfaces and firewall"),
    ("T5", "child containers and nested networks"),
    ("T11", "services of the host on loopback"),
    ("T12", "other sandboxes"),
    ("F16", "typing into the host's terminals"),
    ("I1", "the control interface"),
    ("I3", "secrets of the first process"),
    ("K1", "container engines' sockets"),
    ("K2", "D-Bus and systemd"),
    ("K3", "abstract sockets"),
    ("K4", "inherited descriptors and io_uring"),
    ("K5", "SSH agents and key rings"),
    ("K6", "other processes"),
    ("K7", "kernel settings"),
    ("K8", "files outside, by path and by handle"),
    ("K9", "name spaces, mounts, capabilities"),
    ("K11", "rare kernel code and foreign calls"),
    ("K12", "cloud metadata"),
    ("K14", "fork bombs, memory, disk and descriptors"),
];

/// Where attacks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The first throw-away sandbox.
    Sandbox,
    /// Outside, as the user.
    Host,
    /// Outside, in name spaces with every capability over them.
    Privileged,
    /// The second throw-away sandbox.
    Neighbour,
}

impl Place {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sandbox => "the sandbox",
            Self::Host => "the host",
            Self::Privileged => "a name space",
            Self::Neighbour => "the second sandbox",
        }
    }
}

/// What an attack has to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// It is stopped here and succeeds at one of the controls.
    Stopped,
    /// It is stopped here; whether a control succeeds depends on the host.
    StoppedIfAnywhere,
    /// It succeeds here: without that, others prove nothing.
    Works,
}

/// One attempt.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    pub(super) id: &'static str,
    pub(super) what: String,
    pub(super) place: Place,
    pub(super) attack: Attack,
    /// The same elsewhere, where it has to succeed.
    pub(super) controls: Vec<(Place, Attack)>,
    pub(super) goal: Goal,
}

impl Probe {
    /// An attempt in the sandbox.
    pub(super) fn here(id: &'static str, what: impl Into<String>, attack: Attack) -> Self {
        Self {
            id,
            what: what.into(),
            place: Place::Sandbox,
            attack,
            controls: Vec::new(),
            goal: Goal::Stopped,
        }
    }

    /// Adds a control.
    pub(super) fn with(mut self, place: Place, attack: Attack) -> Self {
        self.controls.push((place, attack));
        self
    }

    /// Adds the attack itself, on the host, as the control.
    fn shown_on_the_host(self) -> Self {
        let attack = self.attack.clone();
        self.with(Place::Host, attack)
    }

    /// Not every host can show it.
    pub(super) fn maybe(self) -> Self {
        Self { goal: Goal::StoppedIfAnywhere, ..self }
    }

    /// It has to succeed.
    pub(super) fn works(self) -> Self {
        Self { goal: Goal::Works, ..self }
    }

    /// Tells whether the attack may cost its process its life, so that it must not share it with others.
    pub(super) fn is_alone(&self) -> bool {
        matches!(
            self.attack,
            Attack::Processes { .. }
                | Attack::Memories { .. }
                | Attack::OpenFiles { .. }
                | Attack::Disk { .. }
                | Attack::Inodes { .. }
        )
    }
}

/// The second sandbox.
#[derive(Debug, Clone)]
pub(super) struct Neighbour {
    pub(super) greeting: String,
    pub(super) canaries: Canaries,
    pub(super) abstract_name: String,
    /// Its sockets on the host.
    pub(super) sockets: Vec<PathBuf>,
}

/// Where everything is that is attacked.
#[derive(Debug, Clone)]
pub(super) struct Aim {
    pub(super) greeting: String,
    pub(super) canaries: Canaries,
    pub(super) abstract_name: String,
    /// Like a container engine's, a bus's, an agent's.
    pub(super) sockets: [PathBuf; 3],
    pub(super) file: PathBuf,
    pub(super) terminal: PathBuf,
    pub(super) canary_pid: i32,
    pub(super) token: String,
    pub(super) control_socket: PathBuf,
    pub(super) control_key: (PathBuf, String),
    pub(super) tokens: PathBuf,
    /// The sandbox's processes as the host numbers them.
    pub(super) processes: Vec<i32>,
    pub(super) neighbour: Neighbour,
    pub(super) may_trace: bool,
    /// Why the sandbox's processes are root's on the host, where they are.
    pub(super) roots_own: Option<String>,
}

impl Aim {
    /// Why a threat can't be probed on this host.
    pub(super) fn absent(&self, id: &str) -> Option<&'static str> {
        let mut tcp = self.canaries.tcp.iter().map(SocketAddr::ip);
        match id {
            "T1" if !tcp.any(|ip| ip.is_ipv4() && !ip.is_loopback()) => {
                Some("this host has no IPv4 address but loopback")
            }
            "T3" if !tcp.any(|ip| ip.is_ipv6()) => Some("this host has no IPv6 address"),
            _ => None,
        }
    }
}

/// Every attempt.
pub(super) fn probes(aim: &Aim) -> Vec<Probe> {
    let mut probes: Vec<Probe> = kernel::table().collect();
    probes.extend(kernel::beside(aim));
    probes.extend(network(aim));
    probes.extend(proxied(aim));
    probes.extend(lateral(aim));
    probes.extend(control(aim));
    probes.extend(services(aim));
    probes.extend(files(aim));
    probes.extend(metadata(aim));
    probes.extend(appetite());
    probes
}

fn connect(to: Endpoint, expect: &str) -> Attack {
    Attack::Connect { to, expect: expect.to_owned() }
}

/// Straight to the canaries of the host.
fn network(aim: &Aim) -> impl Iterator<Item = Probe> {
    let tcp = aim.canaries.tcp.iter().flat_map(|address| {
        let ids: &[&'static str] = match (address.ip().is_loopback(), address.is_ipv6()) {
            (true, true) => &["T11", "T3"],
            (true, false) => &["T11"],
            (false, true) => &["T3"],
            (false, false) => &["T1"],
        };
        let attack = connect(Endpoint::Tcp(*address), &aim.greeting);
        ids.iter()
            .map(move |id| Probe::here(id, format!("TCP to {address}"), attack.clone()).shown_on_the_host())
    });
    let udp = aim.canaries.udp.iter().map(|address| {
        let id = if address.is_ipv6() { "T3" } else { "T2" };
        let attack = Attack::Datagram { to: *address, expect: aim.greeting.clone() };
        Probe::here(id, format!("UDP to {address}"), attack).shown_on_the_host()
    });
    tcp.chain(udp)
}

fn relay() -> Endpoint {
    Endpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], PROXY_PORT)))
}

fn ask(to: Endpoint, request: String, expect: &str) -> Attack {
    Attack::Ask { to, request, expect: expect.to_owned() }
}

fn tunnel(aim: &Aim, target: &str, expect: &str) -> Attack {
    let token = &aim.token;
    let request =
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Bearer {token}\r\n\r\n");
    ask(relay(), request, expect)
}

/// Through the guardian to where it must not lead: the proof that it serves at all stands first.
fn proxied(aim: &Aim) -> Vec<Probe> {
    let Some(canary) = allowed_canary(&aim.canaries) else { return Vec::new() };
    let allowed = format!("{ALLOWED_NAME}:{}", canary.port());
    let mut probes = vec![
        Probe::here("T11", "the allowed way through the guardian", tunnel(aim, &allowed, &aim.greeting))
            .works(),
    ];
    for address in &aim.canaries.tcp {
        let attack = tunnel(aim, &address.to_string(), &aim.greeting);
        let direct = connect(Endpoint::Tcp(*address), &aim.greeting);
        probes.push(
            Probe::here("T11", format!("{address} through the guardian"), attack).with(Place::Host, direct),
        );
    }
    let port = canary.port();
    let aliases = ["localhost", "host.docker.internal", "gateway.docker.internal", "cloister-guardian"];
    probes.extend(aliases.map(|alias| {
        let attack = tunnel(aim, &format!("{alias}:{port}"), &aim.greeting);
        Probe::here("T11", format!("{alias} through the guardian"), attack).maybe()
    }));
    probes
}

/// To the second sandbox.
fn lateral(aim: &Aim) -> Vec<Probe> {
    let Neighbour { greeting, canaries, abstract_name, sockets } = &aim.neighbour;
    let shown_there =
        |what: &str, attack: Attack| Probe::here("T12", what, attack.clone()).with(Place::Neighbour, attack);
    let mut probes = vec![
        shown_there("its abstract socket", connect(Endpoint::Abstract(abstract_name.clone()), greeting)),
        shown_there("its processes", Attack::FindProcess { needle: greeting.clone() }),
    ];
    probes.extend(
        canaries.tcp.iter().map(|port| shown_there("its TCP port", connect(Endpoint::Tcp(*port), greeting))),
    );
    probes.extend(sockets.iter().map(|path| {
        let attack = connect(Endpoint::Unix(path.clone()), "");
        Probe::here("T12", "its socket on the host", attack).shown_on_the_host()
    }));
    probes
}

/// To the control interface, with the sandbox's token; outside with the key.
fn control(aim: &Aim) -> Vec<Probe> {
    let request = |route: &str, secret: &str| {
        format!(
            "{route} HTTP/1.1\r\nHost: guardian\r\nAuthorization: Bearer {secret}\r\nConnection: close\r\n\r\n"
        )
    };
    let socket = || Endpoint::Unix(aim.control_socket.clone());
    let (key_file, key) = &aim.control_key;
    let mut probes = Vec::new();
    for route in ["GET /version", "GET /status"] {
        let shown = ask(socket(), request(route, key), "HTTP/1.1 2");
        for (way, to) in [("control socket", socket()), ("relay", relay())] {
            let attack = ask(to, request(route, &aim.token), "HTTP/1.1 2");
            probes.push(
                Probe::here("I1", format!("{route} on the {way}"), attack).with(Place::Host, shown.clone()),
            );
        }
    }
    probes.extend([
        Probe::here("I1", "the control key", read(key_file, Some(key))).shown_on_the_host(),
        Probe::here("I1", "the tokens of all sandboxes", read(&aim.tokens, None)).shown_on_the_host(),
    ]);
    probes.extend(secrets(aim));
    probes
}

/// The token where it must not stand: in what the first process shows inside, and in what the host sees of it.
fn secrets(aim: &Aim) -> Vec<Probe> {
    let of = |pid: i32, file: &str, text: &str| {
        let path = PathBuf::from(format!("/proc/{pid}/{file}"));
        Attack::Read { path, expect: Some(text.to_owned()) }
    };
    let mut probes = Vec::new();
    for file in ["cmdline", "environ"] {
        let shown = of(aim.canary_pid, file, &aim.greeting);
        probes.push(
            Probe::here("I3", format!("the first process's {file}"), of(1, file, &aim.token))
                .with(Place::Host, shown.clone()),
        );
        probes.extend(aim.processes.iter().map(|pid| {
            let probe =
                Probe::here("I3", format!("{file} of process {pid} on the host"), of(*pid, file, &aim.token));
            Probe { place: Place::Host, ..probe }.with(Place::Host, shown.clone())
        }));
    }
    probes
}

fn read(path: &Path, expect: Option<&str>) -> Attack {
    Attack::Read { path: path.to_owned(), expect: expect.map(str::to_owned) }
}

/// To the services of the host that listen on sockets of the file tree, or are named by variables.
fn services(aim: &Aim) -> Vec<Probe> {
    const ENGINES: &[&str] = &[
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/run/containerd/containerd.sock",
        "/run/podman/podman.sock",
        "/run/crio/crio.sock",
        "/run/libvirt/libvirt-sock",
    ];
    const BUSES: &[&str] = &["/run/dbus/system_bus_socket", "/run/systemd/private", "/run/user/1000/bus"];
    let [engine, bus, agent] = &aim.sockets;
    let engines = ["DOCKER_HOST", "CONTAINER_HOST"];
    let mut probes = service(aim, "K1", engine, ENGINES, engines);
    probes.extend(service(aim, "T5", engine, ENGINES, engines));
    let buses = ["DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS"];
    probes.extend(service(aim, "K2", bus, BUSES, buses));
    probes.extend(service(aim, "K5", agent, &[], ["SSH_AUTH_SOCK", "GPG_AGENT_INFO"]));
    let abstract_socket = connect(Endpoint::Abstract(aim.abstract_name.clone()), &aim.greeting);
    probes.push(Probe::here("K3", "an abstract socket of the host", abstract_socket).shown_on_the_host());
    probes
}

/// To one kind of service: a canary like it, the variables that lead to it, and where it is known to listen.
fn service(aim: &Aim, id: &'static str, canary: &Path, known: &[&str], variables: [&str; 2]) -> Vec<Probe> {
    let names = variables.map(str::to_owned).into();
    let canary = connect(Endpoint::Unix(canary.to_owned()), &aim.greeting);
    let known = known.iter().map(|path| {
        let attack = connect(Endpoint::Unix((*path).into()), "");
        Probe::here(id, *path, attack).shown_on_the_host().maybe()
    });
    [
        Probe::here(id, "a socket of its kind", canary).shown_on_the_host(),
        Probe::here(id, "its variable", Attack::Environment { names }).shown_on_the_host(),
    ]
    .into_iter()
    .chain(known)
    .collect()
}

/// To the host's files, processes, terminals and kernel settings. Nothing is written.
fn files(aim: &Aim) -> Vec<Probe> {
    const SETTINGS: [&str; 6] = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/panic_on_oom",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/sys/fs/cgroup/cgroup.procs",
    ];
    const SENSITIVE: [&str; 7] = [
        "/proc/keys",
        "/proc/kcore",
        "/proc/interrupts",
        "/proc/timer_list",
        "/proc/vmallocinfo",
        "/sys/kernel",
        "/sys/fs/cgroup",
    ];
    let terminal = Attack::OpenForWriting { path: aim.terminal.clone() };
    let process = Attack::FindProcess { needle: aim.greeting.clone() };
    let text = Some(aim.greeting.as_str());
    let through = |root: &str| {
        let path = PathBuf::from(format!("{root}{}", aim.file.display()));
        Attack::Read { path, expect: text.map(str::to_owned) }
    };
    let mut probes = vec![
        Probe::here("F16", "a terminal of the host", terminal).shown_on_the_host(),
        Probe::here("K6", "processes of the host", process).shown_on_the_host(),
        Probe::here("K8", "a file of the host", read(&aim.file, text)).shown_on_the_host(),
        Probe::here("K8", "a file of the host past the root", through("/proc/1/root"))
            .with(Place::Host, through("/proc/self/root")),
        Probe::here("K8", "a file of the host from above", through("/work/../../../.."))
            .with(Place::Host, through("/proc/self/root/../..")),
    ];
    probes.extend(SETTINGS.map(|path| {
        Probe::here("K7", format!("writing {path}"), Attack::OpenForWriting { path: path.into() })
            .shown_on_the_host()
            .maybe()
    }));
    probes.extend(SENSITIVE.map(|path| {
        Probe::here("K7", format!("reading {path}"), read(path.as_ref(), None)).shown_on_the_host().maybe()
    }));
    probes
}

/// To cloud metadata: straight, where no host can be made to show that it would answer, and through the guardian,
/// which has to say no itself.
fn metadata(aim: &Aim) -> Vec<Probe> {
    const ADDRESSES: [&str; 3] = ["169.254.169.254:80", "[fd00:ec2::254]:80", "100.100.100.200:80"];
    // An odd spelling of an address is no name, and refused as such.
    const NAMES: [(&str, &str); 5] = [
        ("169.254.169.254", "HTTP/1.1 403"),
        ("[fd00:ec2::254]", "HTTP/1.1 403"),
        ("metadata.google.internal", "HTTP/1.1 403"),
        ("2852039166", "HTTP/1.1 400"),
        ("0xa9fea9fe", "HTTP/1.1 400"),
    ];
    let token = &aim.token;
    let straight = ADDRESSES.iter().filter_map(|address| address.parse().ok()).map(|address: SocketAddr| {
        Probe::here("K12", format!("TCP to {address}"), connect(Endpoint::Tcp(address), "")).maybe()
    });
    let through = NAMES.map(|(name, answer)| {
        let request = format!(
            "GET http://{name}/latest/meta-data/ HTTP/1.1\r\nHost: {name}\r\n\
             Proxy-Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        let label = format!("a refusal of {name} by the guardian");
        Probe::here("K12", label, ask(relay(), request, answer)).works()
    });
    straight.chain(through).collect()
}

/// Taking all there is (K14): each attempt has a ceiling of its own, a little above the limit that should stop it.
fn appetite() -> Vec<Probe> {
    const DESCRIPTORS: usize = 1_048_640;
    const FILES: usize = 250_000;
    let memory = LIMITS.memory_bytes + 64 * 1024 * 1024;
    let processes = usize::try_from(LIMITS.pids).unwrap_or_default() + 64;
    let mut probes = vec![
        Probe::here("K14", "processes", Attack::Processes { ceiling: processes }),
        Probe::here("K14", "memory", Attack::Memories { ceiling: memory }),
        Probe::here("K14", "descriptors", Attack::OpenFiles { ceiling: DESCRIPTORS }),
    ];
    for directory in ["/tmp", "/dev/shm"].map(PathBuf::from) {
        probes.push(Probe::here(
            "K14",
            format!("bytes in {}", directory.display()),
            Attack::Disk { directory: directory.clone(), ceiling: memory },
        ));
        probes.push(Probe::here(
            "K14",
            format!("files in {}", directory.display()),
            Attack::Inodes { directory, ceiling: FILES },
        ));
    }
    probes
}
