//! Sessions: exit codes, signals, input and output, a real terminal.

use std::io::Read;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Done, Host, collect, feed};
use crate::terminal::Terminal;

#[track_caller]
fn code(host: &Host, argv: &[&str], expected: i32) -> Done {
    let done = host.run(&[&["start", "--"], argv].concat());
    assert_eq!(done.code, expected, "{argv:?}: {done:?}");
    done
}

#[test]
fn exit_codes_are_the_commands_own_and_those_of_docker() {
    let Some(host) = Host::with_bubblewrap() else { return };
    code(&host, &["true"], 0);
    code(&host, &["sh", "-c", "exit 7"], 7);
    code(&host, &["sh", "-c", "kill -TERM $$"], 143);
    code(&host, &["sh", "-c", "kill -KILL $$"], 137);
    let missing = code(&host, &["no-such-program"], 127);
    assert_eq!(missing.stderr, "cannot run `no-such-program`: not found in this sandbox\n");
    let directory = code(&host, &["/etc"], 126);
    assert!(directory.stderr.starts_with("cannot run `/etc`: Permission denied"), "{directory:?}");
}

fn done(code: i32, stdout: &str) -> Done {
    Done { code, stdout: stdout.to_owned(), stderr: String::new() }
}

#[test]
fn output_and_error_output_stay_apart() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let expected = Done { code: 3, stdout: "out\n".to_owned(), stderr: "err\n".to_owned() };
    assert_eq!(host.inside("echo out; echo err >&2; exit 3"), expected);
}

#[test]
fn input_is_passed_byte_for_byte_with_back_pressure() {
    let Some(host) = Host::with_bubblewrap() else { return };
    // More than every buffer between here and there, and every byte value.
    let input: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let done = feed(host.cloister(&["start", "--", "sha256sum"]), &input);
    let expected = feed(host.program("/usr/bin/sha256sum"), &input);
    assert_eq!(done, expected);
}

#[test]
fn much_output_arrives_whole_although_the_command_ends_at_once() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let done = host.inside("head -c 5000000 /dev/zero | tr '\\0' x");
    assert_eq!((done.code, done.stdout.len()), (0, 5_000_000));
}

#[test]
fn a_session_ends_with_its_command_and_children_live_on() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let first =
        host.inside("sh -c 'sleep 0.2; echo late; echo done > /tmp/late; exec sleep 1000' & echo now");
    assert_eq!(first, done(0, "now\n"));
    let later = host.inside("until test -e /tmp/late; do sleep 0.05; done; cat /tmp/late");
    assert_eq!(later, done(0, "done\n"));
}

#[test]
fn a_signal_reaches_the_command() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let mut command = host.cloister(&[
        "start",
        "--",
        "sh",
        "-c",
        "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done",
    ]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready\n");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(collect(child), done(9, "caught\n"));
}

#[test]
fn a_command_killed_by_a_passed_signal_gives_its_number() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let mut command = host.cloister(&["start", "--", "sh", "-c", "echo ready; exec sleep 1000"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(collect(child).code, 143);
}

#[test]
fn when_the_users_end_dies_the_command_gets_a_hang_up() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let script = "trap 'echo gone > /work/gone; exit' HUP; echo ready; while :; do sleep 0.05; done";
    let mut child =
        host.cloister(&["start", "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(host.inside("until test -e gone; do sleep 0.05; done").code, 0);
}

#[test]
fn a_shell_in_a_real_terminal() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let (mut terminal, mut child) = Terminal::cloister(&host, &["start"]);
    terminal.sees("started demo");
    // What is typed is shown too, so nothing that is waited for is typed as it will be printed.
    terminal.types("PS1=\\<p\\>\n");
    terminal.sees("<p>");
    terminal.types("echo tty:$(tty) size:$(stty size)\n");
    terminal.sees("tty:/dev/pts/0 size:24 80");
    terminal.resize(40, 100);
    terminal.types("until test \"$(stty size)\" = '40 100'; do sleep 0.05; done; echo res''ized\n");
    terminal.sees("resized");
    // An interrupt ends the command, not the shell.
    terminal.types("sh -c 'echo be\\gun; exec sleep 1000'\n");
    terminal.sees("begun");
    terminal.types("\x03");
    terminal.sees("<p>");
    terminal.types("echo still''here; exit 5\n");
    terminal.sees("stillhere");
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[test]
fn several_sessions_share_one_sandbox() {
    let Some(host) = Host::with_bubblewrap() else { return };
    host.inside("echo shared > /tmp/note");
    assert_eq!(host.run(&["exec", "demo", "--", "cat", "/tmp/note"]), done(0, "shared\n"));
    let unknown = host.run(&["exec", "other", "--", "true"]);
    assert_eq!(unknown.code, 125, "{unknown:?}");
    assert!(unknown.stderr.contains("no cloister `other` is running"), "{unknown:?}");
}
