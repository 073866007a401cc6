//! Shows what a record costs, and that ten million decisions leave bounded files and memory and a good log:
//! `cargo bench --bench audit`, or with another number of decisions behind `--`.
#![allow(clippy::print_stdout, reason = "a benchmark's result goes to standard output")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use cloister::audit::{AuditLog, Event, Record, Repeatable, Storage, Writer, verify_all};
use cloister::name::CloisterName;

const DECISIONS: u64 = 10_000_000;
const CLOISTERS: u64 = 8;
const MEASURED: u64 = 200_000;
/// The default of `audit.max_size`, and fewer files than by default, so that the oldest ones have to go.
const STORAGE: Storage = Storage { per_cloister: true, max_bytes: 64 << 20, max_files: 8 };

fn main() {
    let decisions = std::env::args().find_map(|text| text.parse().ok()).unwrap_or(DECISIONS);
    measure();
    soak(decisions);
}

fn names() -> Vec<CloisterName> {
    let parsed = (0..CLOISTERS).map(|number| CloisterName::parse(&format!("agent-{number}")));
    parsed.map(|name| name.expect("the name is valid")).collect()
}

fn allow(name: &CloisterName) -> Record {
    let record = Record::new(Event::ProxyAllow).cloister(name).host("registry.example.com").port(443);
    record.rule("*.example.com").origin("config.yaml:12").addresses(&[([192, 0, 2, 1], 443).into()])
}

fn close(name: &CloisterName, bytes: u64) -> Record {
    let record = Record::new(Event::ProxyClose).cloister(name).host("registry.example.com").port(443);
    record.bytes(517, bytes).duration(Duration::from_millis(bytes % 5000))
}

fn deny(log: &AuditLog, name: &CloisterName, host: &str) {
    let what =
        Repeatable { cloister: name, event: Event::ProxyDeny, reason: "not_allowed", subject: Some(&host) };
    let record = || Record::new(Event::ProxyDeny).cloister(name).host(host).port(443).reason("not_allowed");
    log.append_repeatable(what, record).expect("the disk has room");
}

/// Gives the time of one call of each kind.
fn measure() {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let log = AuditLog::open(directory.path(), STORAGE).expect("the log opens");
    let names = names();
    let time = |what: &str, call: &dyn Fn(u64)| {
        let start = Instant::now();
        (0..MEASURED).for_each(call);
        let each = start.elapsed().as_nanos() / u128::from(MEASURED);
        println!("{what:<24} {each:>6} ns");
    };
    let name = |number: u64| &names[usize::try_from(number % CLOISTERS).expect("it is small")];
    time("allowed tunnel", &|number| {
        log.append(allow(name(number))).expect("the disk has room");
        log.append(close(name(number), number)).expect("the disk has room");
    });
    time("denial, repeated", &|number| deny(&log, name(number), "denied.example"));
    time("denial, another host", &|number| deny(&log, name(number), &format!("h{number}.example")));
}

/// Writes decisions as busy agents cause them: mostly allowed tunnels, some repeated denials, few new hosts.
fn soak(decisions: u64) {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let log = AuditLog::open(directory.path(), STORAGE).expect("the log opens");
    let names = names();
    let start = Instant::now();
    let before = resident_bytes();
    for number in 0..decisions {
        let name = &names[usize::try_from(number % CLOISTERS).expect("it is small")];
        match number % 20 {
            0..14 => {
                log.append(allow(name)).expect("the disk has room");
                log.append(close(name, number)).expect("the disk has room");
            }
            14..19 => deny(&log, name, "telemetry.example"),
            _ => deny(&log, name, &format!("h{number}.example")),
        }
    }
    log.sync().expect("the disk has room");
    let head = log.head().expect("the log is whole");
    let written = start.elapsed();
    println!(
        "{decisions} decisions in {:.1} s, {} records, {} MiB on disk, memory grew by {} KiB",
        written.as_secs_f64(),
        head.seq,
        size(directory.path()) >> 20,
        resident_bytes().saturating_sub(before) >> 10
    );
    drop(log);
    let (start, before) = (Instant::now(), resident_bytes());
    let reports = verify_all(directory.path(), None, Writer::Steady).expect("the directory can be read");
    let bad = reports.iter().filter(|report| report.outcome.is_err()).count();
    for report in reports.iter().filter(|report| report.outcome.is_err()) {
        println!("BAD: {:?}", report.outcome);
    }
    println!(
        "verified {} chains in {:.1} s, {bad} bad, memory grew by {} KiB",
        reports.len(),
        start.elapsed().as_secs_f64(),
        resident_bytes().saturating_sub(before) >> 10
    );
    assert_eq!(bad, 0, "the log is good");
}

fn size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).expect("the directory can be read").flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}
