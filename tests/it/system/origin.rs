//! Servers for the tests, on loopback addresses of their own.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::{Host, plain};

/// A loopback address that no other test of this run uses.
pub(crate) fn address() -> Ipv4Addr {
    let id = std::process::id();
    let [_, high, middle, low] = id.to_be_bytes();
    // 127.0.0.0/16 is left to everybody else.
    Ipv4Addr::new(127, 64 | (high ^ middle >> 2), middle, low.max(1))
}

/// A plain origin that counts its connections and answers each request head with one page.
pub(crate) struct Plain {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Plain {
    pub(crate) fn start(page: &'static str) -> Self {
        Self::serve(move |mut stream| {
            read_head(&stream);
            let length = page.len();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{page}")
                .unwrap();
        })
    }

    /// Calls `answer` for every connection.
    pub(crate) fn serve(answer: impl Fn(TcpStream) + Clone + Send + 'static) -> Self {
        let listener = TcpListener::bind((IpAddr::V4(address()), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                let answer = answer.clone();
                std::thread::spawn(move || answer(stream.unwrap()));
            }
        });
        Self { address, connections }
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Reads up to the empty line behind a request head, and gives the line before it all.
pub(crate) fn read_head(stream: &TcpStream) -> String {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    while lines.next().is_some_and(|line| !line.is_empty()) {}
    first
}

/// A TLS origin on port 443, with a certificate of a test authority.
pub(crate) struct Tls {
    pub(crate) address: Ipv4Addr,
    server: Child,
}

impl Tls {
    /// Serves `page` as `name`; the authority's certificate is written to `ca.pem` in the repository.
    pub(crate) fn start(host: &Host, name: &str, page: &str) -> Self {
        let folder = host.path("origin");
        fs::create_dir_all(&folder).unwrap();
        certificate(&folder, name);
        host.write(&host.repository().join("ca.pem"), fs::read(folder.join("cert.pem")).unwrap());
        fs::write(folder.join("page"), page).unwrap();
        Self::spawn("tls_origin.py", &folder, &[])
    }

    /// Runs a server script with a certificate until it says that it listens.
    pub(crate) fn spawn(script: &str, folder: &Path, arguments: &[&str]) -> Self {
        let address = address();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/system").join(script);
        let mut server = plain("python3")
            .arg(script)
            .args(["--bind", &address.to_string(), "--port", "443"])
            .args(["--cert", "cert.pem", "--key", "key.pem"])
            .args(arguments)
            .current_dir(folder)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(server.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("listening"), "{line}");
        Self { address, server }
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

/// Makes a self-signed certificate for a name, which serves as its own authority.
pub(crate) fn certificate(folder: &Path, name: &str) {
    let made = plain("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", &format!("/CN={name}"), "-addext", &format!("subjectAltName=DNS:{name}")])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(folder)
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success());
}

/// Whether this process may listen on port 443.
pub(crate) fn may_listen_on_443() -> bool {
    TcpListener::bind((address(), 443)).is_ok()
}
