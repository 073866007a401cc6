//! The help of every command, as one picture.

use std::fmt::Write;

use crate::harness::{Host, User};

#[test]
fn help_of_every_command() {
    let host = Host::new(User::Same);
    let commands: &[&[&str]] = &[
        &[],
        &["start"],
        &["exec"],
        &["stop"],
        &["shutdown"],
        &["list"],
        &["path"],
        &["gc"],
        &["guardian"],
        &["guardian", "start"],
        &["guardian", "stop"],
        &["guardian", "status"],
        &["guardian", "reload"],
        &["guardian", "run"],
        &["audit"],
        &["audit", "verify"],
        &["audit", "head"],
        &["why"],
        &["config"],
        &["config", "show"],
        &["config", "path"],
        &["doctor"],
    ];
    let mut all = String::new();
    for command in commands {
        let mut program = host.program(host.binary());
        program.args(*command).arg("--help");
        let done = crate::harness::finish(program);
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{command:?}");
        writeln!(all, "$ cloister {} --help\n{}", command.join(" "), done.stdout).unwrap();
    }
    insta::assert_snapshot!(all);
}

#[test]
fn mistakes_on_the_command_line_are_usage_errors() {
    let host = Host::new(User::Same);
    for arguments in
        [&["nonsense"][..], &["list", "extra"], &["exec", "demo"], &["stop", "demo", "--all"], &["why"]]
    {
        let mut program = host.program(host.binary());
        program.args(arguments);
        let done = crate::harness::finish(program);
        assert_eq!((done.code, done.stdout.as_str()), (2, ""), "{arguments:?}: {done:?}");
    }
}
