//! Two network name spaces with a wire between them: the guardian sits in one, and what it may reach in the other.
//! Nothing in them leads to the machine's own network, so that public addresses can be played.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Guardian;
use crate::harness::{Host, User, finish, plain};
use crate::requirement;

/// Where the guardian is.
const NEAR: &str = "11.0.0.1/24";
/// Where the name server and the origins are; all of `11.0.0.0/24` is on the wire.
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 2);
/// Another place of origins.
pub(crate) const FARTHER: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 3);

/// The other end of the guardian's wire.
pub(crate) struct Network {
    /// Keeps the name space; it ends when its input does.
    keeper: Child,
}

impl Network {
    /// Makes the far name space; `None`, with the reason told, where this process may not.
    pub(crate) fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            requirement::skip("bubblewrap", "only root makes network name spaces");
            return None;
        }
        let mut command = plain("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && echo up && exec cat"]);
        let keeper = started(command);
        Some(Self { keeper })
    }

    /// Starts a guardian with the wire's near end, whose system knows the name server at [`FAR`] alone.
    pub(crate) fn guardian(&self, settings: &str) -> Wired {
        let host = Host::new(User::Same);
        host.configure(settings);
        let resolv = host.path("resolv.conf");
        host.write(&resolv, format!("nameserver {FAR}\nsearch corp.test\noptions timeout:1 attempts:1\n"));
        let script = format!(
            "ip link set lo up && ip link add near type veth peer name far netns {pid} && \
             ip addr add {NEAR} dev near && ip link set near up && mount --bind {resolv} /etc/resolv.conf && \
             echo up && read go && exec {binary} guardian run",
            pid = self.keeper.id(),
            resolv = resolv.display(),
            binary = host.binary().display()
        );
        let mut command = host.program("unshare");
        command.args(["--net", "--mount", "sh", "-c", &script]);
        let mut process = started(command);
        self.inside(|| {
            let addresses = format!(
                "ip addr add {FAR}/24 dev far && ip addr add {FARTHER}/24 dev far && ip link set far up"
            );
            let mut command = plain("sh");
            command.args(["-c", &addresses]);
            let done = finish(command);
            assert_eq!(done.code, 0, "{done:?}");
        });
        let mut stdin = process.stdin.take().unwrap();
        std::io::Write::write_all(&mut stdin, b"go\n").unwrap();
        let ready = first_line(&mut process);
        assert!(ready.starts_with("ready"), "{ready}");
        Wired { guardian: Guardian { host }, process }
    }

    /// Does something in the far name space.
    pub(crate) fn inside<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let space = std::fs::File::open(format!("/proc/{}/ns/net", self.keeper.id())).unwrap();
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                action()
            });
            entered.join().unwrap()
        })
    }

    pub(crate) fn listener(&self, address: Ipv4Addr, port: u16) -> TcpListener {
        self.inside(|| TcpListener::bind((address, port)).unwrap())
    }

    pub(crate) fn socket(&self, address: Ipv4Addr, port: u16) -> UdpSocket {
        self.inside(|| UdpSocket::bind((address, port)).unwrap())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        self.keeper.wait().unwrap();
    }
}

/// A guardian at the end of a wire.
pub(crate) struct Wired {
    pub(crate) guardian: Guardian,
    process: Child,
}

impl Wired {
    /// The name space that the guardian is in, for listeners that it must not reach.
    pub(crate) fn listener(&self, port: u16) -> TcpListener {
        let space = std::fs::File::open(format!("/proc/{}/ns/net", self.process.id())).unwrap();
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                TcpListener::bind(("0.0.0.0", port)).unwrap()
            });
            entered.join().unwrap()
        })
    }
}

impl Drop for Wired {
    fn drop(&mut self) {
        // A test that failed must not leave it behind.
        let _ = self.guardian.host.run(&["shutdown"]);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts a program that says a line once it is ready, and keeps its input.
fn started(mut command: Command) -> Child {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(first_line(&mut child), "up\n");
    child
}

/// The next line, read byte by byte: what follows belongs to the next reader.
fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::with_capacity(1, child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    line
}
