//! Measures the guardian's proxy beside others: `cargo bench --bench proxy`, or with `-- --quick`, `-- --soak`, or
//! `-- --only CONNECT` for one kind of work.
//!
//! Every round asks every peer once, in an order that is reversed every other round; a ratio is taken within a round,
//! so that a machine that is busy for a while is so for both. The guardian is the real binary with a home of its own.
//! It listens on a Unix socket, and so do the bare relay and the bare hyper server that it is compared with. Squid and
//! tinyproxy listen on TCP alone: there both are put over the bare server on the same kind of socket, and apart from
//! that the guardian is measured behind the relay that runs in a sandbox. Everything stays on loopback.
#![allow(clippy::print_stdout, reason = "a benchmark's result goes to standard output")]
#![allow(clippy::unwrap_used, reason = "a step that fails should stop the benchmark there")]
#![allow(clippy::cast_precision_loss, reason = "what is counted here is small")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use load::{Peer, Work};
use peers::{ORIGIN_NAME, Stage};
use stream::Address;
use table::{CPU, Goal, P50, RATE, Results, print_row, print_title};

#[path = "proxy/load.rs"]
mod load;
#[path = "proxy/origin.rs"]
mod origin;
#[path = "proxy/peers.rs"]
mod peers;
#[path = "proxy/process.rs"]
mod process;
#[path = "proxy/reference.rs"]
mod reference;
#[path = "../../src/init/relay.rs"]
mod relay;
#[path = "proxy/soak.rs"]
mod soak;
#[path = "proxy/stream.rs"]
mod stream;
#[path = "proxy/table.rs"]
mod table;

/// What the relay of the sandbox imports.
mod boot {
    pub(crate) use cloister::init::Relay;
}

const ROUNDS: usize = 9;
const QUICK_ROUNDS: usize = 3;
/// Peers, as the table names them.
const DIRECT: &str = "direct";
const RELAY: &str = "bare relay";
const HYPER: &str = "bare hyper";
const CLOISTER: &str = "cloister";
const RELAY_TCP: &str = "bare relay, TCP";
const HYPER_TCP: &str = "bare hyper, TCP";
const INSIDE: &str = "from inside";
const SQUID: &str = "squid";
const TINYPROXY: &str = "tinyproxy";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--role", role, ref rest @ ..] => play(role, rest),
        [.., "--only", work] | [.., "--only", work, "--bench"] => run_alone(measure_one(work)),
        _ => run_alone(measure(words.contains(&"--quick"), words.contains(&"--soak"))),
    }
}

/// Does what this program does besides the load, in a process of its own.
fn play(role: &str, words: &[&str]) {
    match (role, words) {
        ("origin", [address]) => run_alone(origin::serve(address.parse().unwrap())).unwrap(),
        ("relay", [address]) => {
            run_on_two(reference::serve(reference::Kind::Relay, Address::parse(address)));
        }
        ("hyper", [address]) => {
            run_on_two(reference::serve(reference::Kind::Hyper, Address::parse(address)));
        }
        ("inner-relay", [port, socket]) => {
            let relay = boot::Relay { port: port.parse().unwrap(), socket: (*socket).to_owned() };
            run_alone(async {
                relay::open(relay).await.unwrap();
                say_ready("");
                std::future::pending::<()>().await;
            });
        }
        _ => panic!("there is no role {role} {words:?}"),
    }
}

/// Tells the process that started this one that it may go on.
fn say_ready(what: &str) {
    println!("ready {what}");
}

fn run_alone<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// In a task on a worker: the root of a runtime would have to wake one for every connection.
fn run_on_two(future: impl Future<Output = std::io::Result<()>> + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::spawn(future).await }).unwrap().unwrap();
}

/// Twice 9 500 descriptors are needed.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

async fn measure_one(work: &str) {
    raise_descriptor_limit();
    let mut stage = Stage::new();
    let all = series(stage.has_tls_port).into_iter().filter(|series| series.name == work).collect();
    let results = compare(&mut stage, ROUNDS, all).await;
    results.print_medians();
    print_title();
    print_at_the_socket(&results);
    print_over_tcp(&results);
}

async fn measure(quick: bool, soak: bool) {
    raise_descriptor_limit();
    let mut stage = Stage::new();
    if soak {
        return soak::run(&mut stage).await;
    }
    let rounds = if quick { QUICK_ROUNDS } else { ROUNDS };
    let all = series(stage.has_tls_port);
    let results = compare(&mut stage, rounds, all).await;
    results.print_medians();
    print_title();
    print_at_the_socket(&results);
    print_over_tcp(&results);
    soak::idle(&mut stage, if quick { 1000 } else { soak::IDLE_TUNNELS }, Duration::from_secs(2)).await;
}

/// A kind of work, how often it is done in a round, and by whom.
struct Series {
    name: &'static str,
    work: Work,
    count: usize,
    peers: &'static [&'static str],
}

fn series(has_tls_port: bool) -> Vec<Series> {
    let tunnel = &[RELAY, CLOISTER, RELAY_TCP, INSIDE, SQUID, TINYPROXY];
    let bytes = 512 << 20;
    let mut all = vec![
        Series { name: "CONNECT", work: Work::Tunnel, count: 3000, peers: tunnel },
        Series { name: "403", work: Work::Denied, count: 6000, peers: &[HYPER, CLOISTER, HYPER_TCP, SQUID] },
        Series {
            name: "GET",
            work: Work::Page,
            count: 8000,
            peers: &[HYPER, CLOISTER, HYPER_TCP, INSIDE, SQUID],
        },
        Series { name: "event", work: Work::Event, count: 50, peers: &[HYPER, CLOISTER] },
        Series {
            name: "ping-pong",
            work: Work::PingPong,
            count: 5000,
            peers: &[DIRECT, RELAY, CLOISTER, RELAY_TCP, INSIDE],
        },
    ];
    let transfers = &[DIRECT, RELAY, CLOISTER, RELAY_TCP, INSIDE, SQUID];
    for (name, work) in [
        ("download", Work::Download { tunnels: 1, bytes }),
        ("4 downloads", Work::Download { tunnels: 4, bytes: bytes / 2 }),
        ("4 uploads", Work::Upload { tunnels: 4, bytes: bytes / 4 }),
    ] {
        all.push(Series { name, work, count: if name == "download" { 1 } else { 4 }, peers: transfers });
    }
    if has_tls_port {
        let work = Work::TlsTunnel(client_hello());
        all.push(Series { name: "CONNECT :443", work, count: 3000, peers: &[RELAY, CLOISTER] });
    }
    all
}

/// What a TLS client says first.
fn client_hello() -> Arc<[u8]> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let settings = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = ORIGIN_NAME.try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(settings), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello.into()
}

async fn compare(stage: &mut Stage, rounds: usize, all: Vec<Series>) -> Results {
    let cloister = Peer { name: CLOISTER, ..stage.guardian("home", 1).await.remove(0) };
    let mut peers = vec![
        stage.direct(),
        stage.on_unix(RELAY, "relay"),
        stage.on_unix(HYPER, "hyper"),
        cloister.clone(),
        stage.on_tcp(RELAY_TCP, "relay"),
        stage.on_tcp(HYPER_TCP, "hyper"),
        stage.behind_inner_relay(INSIDE, &cloister),
    ];
    peers.extend(stage.squid());
    peers.extend(stage.tinyproxy());
    let mut results = Results::default();
    for round in 0..=rounds {
        let begun = Instant::now();
        peers.reverse();
        for Series { name, work, count, peers: taking_part } in &all {
            for peer in peers.iter().filter(|peer| taking_part.contains(&peer.name)) {
                let measure = peer.measure(work, *count).await;
                // The first round only warms up.
                if round > 0 {
                    results.add(name, peer.name, measure);
                }
            }
        }
        println!("round {round} of {rounds}: {:.1} s", begun.elapsed().as_secs_f64());
    }
    results
}

fn print_at_the_socket(results: &Results) {
    let row = |what, work, peers, field, goal| print_row(what, results.ratios(work, peers, field), goal);
    row("CONNECT a second, over the bare relay", "CONNECT", [CLOISTER, RELAY], RATE, Goal::AtLeast(0.95));
    row("CPU for a tunnel, over the bare relay", "CONNECT", [CLOISTER, RELAY], CPU, Goal::AtMost(1.15));
    row(
        "CONNECT :443 with its hello, over the bare relay",
        "CONNECT :443",
        [CLOISTER, RELAY],
        RATE,
        Goal::None,
    );
    row("403 a second, over bare hyper", "403", [CLOISTER, HYPER], RATE, Goal::AtLeast(0.95));
    row("GET on a kept connection, over bare hyper", "GET", [CLOISTER, HYPER], RATE, Goal::None);
    row("download, over direct", "download", [CLOISTER, DIRECT], RATE, Goal::AtLeast(0.55));
    row("4 downloads, over direct", "4 downloads", [CLOISTER, DIRECT], RATE, Goal::AtLeast(0.55));
    row("4 uploads, over direct", "4 uploads", [CLOISTER, DIRECT], RATE, Goal::None);
    row("CPU for a GB, over the bare relay", "download", [CLOISTER, RELAY], CPU, Goal::None);
    row("ping-pong p50, over the bare relay", "ping-pong", [CLOISTER, RELAY], P50, Goal::AtMost(1.15));
    let event = results.values("event", CLOISTER, P50).iter().map(|micros| micros / 1000.0).collect();
    print_row("first event, ms", event, Goal::AtMost(1.0));
}

fn print_over_tcp(results: &Results) {
    let over_bare = |work, ours: [&'static str; 2], theirs: [&'static str; 2]| {
        let (ours, theirs) = (results.ratios(work, ours, RATE), results.ratios(work, theirs, RATE));
        ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
    };
    let connect = over_bare("CONNECT", [CLOISTER, RELAY], [SQUID, RELAY_TCP]);
    print_row("CONNECT over squid, each over the relay on its socket", connect, Goal::AtLeast(1.4));
    let get = over_bare("GET", [CLOISTER, HYPER], [SQUID, HYPER_TCP]);
    print_row("GET over squid, each over hyper on its socket", get, Goal::AtLeast(3.0));
    let connect = over_bare("CONNECT", [CLOISTER, RELAY], [TINYPROXY, RELAY_TCP]);
    print_row("CONNECT over tinyproxy, each over the relay", connect, Goal::None);
    let row = |what, work, peers, field| print_row(what, results.ratios(work, peers, field), Goal::None);
    row("from inside: CONNECT over the bare relay on TCP", "CONNECT", [INSIDE, RELAY_TCP], RATE);
    row("from inside: CONNECT over squid", "CONNECT", [INSIDE, SQUID], RATE);
    row("from inside: GET over squid", "GET", [INSIDE, SQUID], RATE);
    row("from inside: download over direct", "download", [INSIDE, DIRECT], RATE);
    row("from inside: ping-pong p50 over the bare relay on TCP", "ping-pong", [INSIDE, RELAY_TCP], P50);
}
