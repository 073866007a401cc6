//! What people do at a terminal in the sandbox: editors, multiplexers, keys, job control, and leaving it.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::harness::Host;
use crate::requirement;
use crate::terminal::Terminal;

/// A host for sandboxes with these programs; `None`, with the reason told, where one is missing.
fn host_with(programs: &[&str]) -> Option<Host> {
    for program in programs {
        if !Path::new("/usr/bin").join(program).exists() {
            requirement::skip("terminals", &format!("there is no `{program}`"));
            return None;
        }
    }
    Host::with_bubblewrap()
}

#[track_caller]
fn leaves(mut terminal: Terminal, mut child: Child, code: i32) {
    terminal.types(format!("exit {code}\n"));
    while terminal.reads(Duration::from_secs(20)).is_some_and(|count| count > 0) {}
    assert_eq!(child.wait().unwrap().code(), Some(code));
    assert!(terminal.is_cooked(), "the terminal stayed raw");
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// The first process of the host's only sandbox.
fn first_process(host: &Host) -> Pid {
    let receipt = fs::read(host.path("home/.local/state/cloister/receipts/demo.json")).unwrap();
    let receipt: serde_json::Value = serde_json::from_slice(&receipt).unwrap();
    Pid::from_raw(i32::try_from(receipt["first"]["pid"].as_i64().unwrap()).unwrap()).unwrap()
}

#[test]
fn the_terminal_is_a_device_of_the_sandbox() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let (mut terminal, child) = Terminal::shell(&host);
    terminal.does("tty", "/dev/pts/0\r\n");
    terminal.does("ls -l $(tty) | cut -c1-2", "cr\r\n");
    terminal.does("test -w /dev/tty && echo so > /dev/tty", "so\r\n");
    terminal.does("echo $TERM-$COLORTERM.", "xterm-256color-.\r\n");
    // A second session has a terminal of its own.
    let (mut second, other) = Terminal::shell(&host);
    second.does("tty", "/dev/pts/1\r\n");
    leaves(second, other, 3);
    leaves(terminal, child, 4);
}

#[test]
fn colours_and_every_other_byte_arrive_as_they_were_sent() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let colours: Vec<u8> = (0..=255_u8)
        .flat_map(|n| {
            format!("\x1b[38;2;{n};{};7m\x1b[48:2::{n}:1:2m\x1b[4:3mä\u{1f980}", 255 - n).into_bytes()
        })
        .chain(0..=255)
        .collect();
    host.write(&host.repository().join("colours"), &colours);
    let mut command = host.program("/usr/bin/setsid");
    let (mut terminal, slave) = Terminal::open();
    command.env("COLORTERM", "truecolor").arg("--ctty").arg(host.binary());
    command.args(["start", "--", "sh", "-c", "stty raw; echo \"<$COLORTERM>\"; cat colours; echo '<end>'"]);
    let mut child = crate::terminal::attach(command, &slave);
    terminal.sees("<truecolor>\n");
    assert_eq!(terminal.sees("<end>"), colours);
    assert!(child.wait().unwrap().success());
}

#[test]
fn tmux_splits_detaches_and_attaches_again() {
    let Some(host) = host_with(&["tmux"]) else { return };
    let (mut terminal, child) = Terminal::shell(&host);
    terminal.types("tmux -f /dev/null new-session -s desk 'bash --norc -i'\n");
    terminal.sees("[desk]");
    terminal.types("echo in-$TMUX_PANE-$(tty)\n");
    terminal.sees("in-%0-/dev/pts/1");
    terminal.types("\x02%");
    terminal.types("echo in-$TMUX_PANE-$(tty)\n");
    terminal.sees("in-%1-/dev/pts/2");
    terminal.types("\x02d");
    terminal.sees("[detached (from session desk)]");
    terminal.sees("<p>");
    terminal.does("tmux list-panes -t desk | wc -l", "2\r\n");
    // Another session of the sandbox finds it.
    let listed = host.ok(&["exec", "demo", "--", "tmux", "list-sessions", "-F", "#{session_name}"]);
    assert_eq!(listed, "desk\n");
    terminal.types("tmux attach -t desk\n");
    terminal.sees("in-%1-/dev/pts/2");
    terminal.types("tmux kill-server\n");
    terminal.sees("[server exited]");
    terminal.sees("<p>");
    leaves(terminal, child, 0);
}

#[test]
fn gpg_makes_a_key_and_signs() {
    let Some(host) = host_with(&["gpg", "gpg-agent"]) else { return };
    let (mut terminal, child) = Terminal::shell(&host);
    terminal.types("export GPG_TTY=$(tty); gpg --batch --quiet --passphrase '' --quick-generate-key me@example.com; echo made:$?\n");
    terminal.sees("made:0\r\n");
    terminal.types("echo text | gpg --batch --sign --armor > signed; gpg --verify signed 2>&1 | grep -o 'Good sig.*[.]com'\n");
    terminal.sees("Good signature from \"me@example.com");
    leaves(terminal, child, 0);
}

#[test]
fn vim_writes_a_file_and_gives_the_screen_back() {
    let Some(host) = host_with(&["vim"]) else { return };
    let (mut terminal, child) = Terminal::shell(&host);
    terminal.types("vim -u NONE -c 'set nocompatible' note; echo vi''m-ended\n");
    terminal.sees("\x1b[?1049h");
    terminal.sees("[New File]");
    terminal.types("ihello \x1b[200~ü\x1b[201~");
    terminal.sees("INSERT");
    terminal.types("\x1b");
    terminal.types(":wq\r");
    terminal.sees("\x1b[?1049l");
    terminal.sees("vim-ended");
    let note = fs::read_to_string(host.repository().join("note")).unwrap();
    assert!(note.starts_with("hello ") && note.contains('ü'), "{note:?}");
    leaves(terminal, child, 0);
}

#[test]
fn fish_asks_its_terminal_and_controls_jobs() {
    let Some(host) = host_with(&["fish"]) else { return };
    let (mut terminal, mut child) = Terminal::cloister(&host, &["start", "--", "fish", "--private"]);
    terminal.types("function fish_prompt; echo -n '<'p'>'; end\n");
    terminal.sees("<p>");
    terminal.types("bash -c 'trap \"echo going\\-on\" CONT; echo be\\gun; while :; do sleep 0.02; done'\n");
    terminal.sees("begun");
    terminal.types("\x1a");
    terminal.sees("has stopped");
    terminal.types("jobs | string match -r 'stopp'e; fg\n");
    terminal.sees("stoppe");
    // Before it says so, the terminal is not yet the job's.
    terminal.sees("going-on");
    terminal.types("\x03");
    terminal.sees("<p>");
    terminal.types("jobs; and echo so''me; or echo no''ne\n");
    terminal.sees("none");
    terminal.types("exit 6\n");
    while terminal.reads(Duration::from_secs(20)).is_some_and(|count| count > 0) {}
    assert_eq!(child.wait().unwrap().code(), Some(6));
}

#[test]
fn jobs_are_stopped_continued_and_killed() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let (mut terminal, child) = Terminal::shell(&host);
    terminal.types("bash -c 'trap \"echo going''-on\" CONT; echo be\\gun; while :; do sleep 0.02; done'\n");
    terminal.sees("begun");
    terminal.types("\x1a");
    terminal.sees("Stopped");
    terminal.sees("<p>");
    terminal.types("bg\n");
    terminal.sees("going-on");
    terminal.types("\n");
    terminal.sees("<p>");
    terminal.does("jobs", "Running");
    terminal.does("kill -STOP %1; until jobs | grep -q Stop; do :; done; echo re''sting", "resting");
    terminal.types("fg\n");
    // Before it says so, the terminal is not yet the job's.
    terminal.sees("going-on");
    terminal.types("\x1a");
    terminal.sees("Stopped");
    terminal.sees("<p>");
    terminal.does("kill %1; wait; jobs; echo none''left", "noneleft");
    // A key makes a signal for the foreground alone.
    terminal.types("sleep 1000 & sh -c 'echo be\\gun; exec sleep 1000'\n");
    terminal.sees("begun");
    terminal.types("\x03");
    terminal.sees("<p>");
    terminal.does("jobs", "Running");
    leaves(terminal, child, 0);
}

#[test]
fn the_command_line_stops_with_its_terminal_given_back_and_goes_on_raw() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let (mut terminal, child) = Terminal::shell(&host);
    assert!(!terminal.is_cooked());
    for stop in [Signal::TSTP, Signal::STOP] {
        send(&child, stop);
        let stopped = waitpid(Some(Pid::from_child(&child)), WaitOptions::UNTRACED).unwrap().unwrap().1;
        assert!(stopped.stopped(), "{stopped:?}");
        // Nobody is told of a plain STOP: there it is the shell that keeps its terminal in order.
        assert_eq!(terminal.is_cooked(), stop == Signal::TSTP);
        terminal.resize(30, 90);
        send(&child, Signal::CONT);
        terminal.does("stty size", "30 90\r\n");
        assert!(!terminal.is_cooked());
    }
    leaves(terminal, child, 0);
}

#[test]
fn a_storm_of_sizes_ends_with_the_last() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let (mut terminal, child) = Terminal::shell(&host);
    terminal.does("n=0; trap 'n=$((n+1))' WINCH; echo o''k", "ok");
    for number in 0..500 {
        terminal.resize(20 + number % 50, 100 + number % 70);
    }
    terminal.resize(41, 141);
    terminal.types(
        "until test \"$(stty size)\" = '41 141'; do sleep 0.01; done; test $n -gt 0 && echo re''sized\n",
    );
    terminal.sees("resized");
    leaves(terminal, child, 0);
}

#[test]
fn a_mebibyte_is_pasted_whole() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let bytes: Vec<u8> = b"\x1b[200~"
        .iter()
        .copied()
        .chain((0..1_048_576_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8))
        .chain(*b"\x1b[201~")
        .collect();
    let script = format!("stty raw -echo; echo ready; head -c {} > pasted; echo done", bytes.len());
    let (mut terminal, mut child) = Terminal::cloister(&host, &["start", "--", "sh", "-c", &script]);
    terminal.sees("ready");
    let paste = terminal.pastes(bytes.clone());
    terminal.sees("done");
    paste.join().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(fs::read(host.repository().join("pasted")).unwrap() == bytes, "it was changed on the way");
}

#[test]
fn an_interrupt_ends_a_flood_at_once() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let (mut terminal, child) = Terminal::shell(&host);
    terminal.types("yes\n");
    for _ in 0..100 {
        terminal.reads(Duration::from_secs(20)).unwrap();
    }
    let typed = Instant::now();
    terminal.types("\x03");
    terminal.sees("<p>");
    let needed = typed.elapsed();
    assert!(needed < Duration::from_secs(2), "{needed:?}");
    leaves(terminal, child, 0);
}

#[test]
fn children_that_hold_the_terminal_do_not_hold_the_user() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let (mut terminal, child) = Terminal::shell(&host);
    terminal.does("(trap '' HUP; while :; do echo noise; sleep 0.01; done) & echo pi''d:$!", "pid:");
    leaves(terminal, child, 5);
    assert_eq!(host.inside("pgrep -f noise > /dev/null").code, 0, "a child has ended with the session");
}

/// What ends a session from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blow {
    SandboxKilled,
    Terminated,
    HungUp,
    Stopped,
}

#[test]
fn the_terminal_is_given_back_whatever_ends_the_session() {
    let Some(host) = Host::with_bubblewrap() else { return };
    for (blow, code) in
        [(Blow::SandboxKilled, 137), (Blow::Terminated, 143), (Blow::HungUp, 129), (Blow::Stopped, 137)]
    {
        // The shell ignores the request to end, and has asked for marked pastes.
        let (mut terminal, mut child) = Terminal::shell(&host);
        terminal.does("trap '' TERM; printf '\\033[?2004h'", "\x1b[?2004h");
        match blow {
            Blow::SandboxKilled => kill_process(first_process(&host), Signal::KILL).unwrap(),
            Blow::Terminated => send(&child, Signal::TERM),
            Blow::HungUp => send(&child, Signal::HUP),
            Blow::Stopped => drop(host.ok(&["stop"])),
        }
        terminal.sees("\x1b[?2004l");
        assert_eq!(child.wait().unwrap().code(), Some(code), "{blow:?}: {}", terminal.shown());
        assert!(terminal.is_cooked(), "{blow:?}");
    }
}

#[test]
fn a_terminal_that_goes_away_is_gone_inside_too() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let told = "trap 'echo hung up > bye; exit' HUP; echo re\\ady; while :; do sleep 0.05; done";
    let deaf = "trap '' HUP; echo re\\ady; cat; echo end > bye";
    for (script, word) in [(told, "hung up"), (deaf, "end")] {
        let (mut terminal, mut child) = Terminal::cloister(&host, &["start", "--", "sh", "-c", script]);
        terminal.sees("ready");
        drop(terminal);
        assert_eq!(child.wait().unwrap().code(), Some(129));
        let seen = host.inside("until test -s bye; do sleep 0.05; done; cat bye; rm bye");
        assert_eq!(seen.stdout, format!("{word}\n"));
    }
}
