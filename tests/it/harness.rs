//! A host of a test's own: home, repository, binary, and an ordinary user even when the tests run as root.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::requirement;

/// Whom the tests run Cloister as when they are root themselves; no account is needed.
const ORDINARY: u32 = 12_345;

/// Where the tests look for programs.
const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Which user runs Cloister.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    /// An ordinary one.
    Ordinary,
    /// The one who runs the tests.
    Same,
}

/// A home with a repository `demo` and a Cloister that belongs to it; all of it ends with the value.
pub(crate) struct Host {
    directory: tempfile::TempDir,
    user: User,
}

/// What a program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Host {
    /// A host for sandboxes; `None`, with the reason told, where `bwrap` is missing.
    pub(crate) fn with_bubblewrap() -> Option<Self> {
        if !Path::new("/usr/bin/bwrap").exists() {
            requirement::skip("bubblewrap", "there is no `bwrap`");
            return None;
        }
        Some(Self::new(User::Ordinary))
    }

    /// Both users whose sandboxes have to hold: an ordinary one, and root where the tests run as root.
    pub(crate) fn both() -> Vec<Self> {
        let Some(ordinary) = Self::with_bubblewrap() else { return Vec::new() };
        let mut hosts = vec![ordinary];
        if rustix::process::geteuid().is_root() {
            hosts.push(Self::new(User::Same));
        }
        hosts
    }

    pub(crate) fn new(user: User) -> Self {
        let directory = tempfile::Builder::new().prefix("cl").tempdir_in("/tmp").unwrap();
        // The path as Cloister sees it, short enough for sockets.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let host = Self { directory, user };
        fs::create_dir(host.home()).unwrap();
        fs::create_dir(host.path("bin")).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_cloister"), host.binary()).unwrap();
        fs::set_permissions(host.binary(), fs::Permissions::from_mode(0o755)).unwrap();
        host.own(&host.home());
        host.configure("");
        let repository = host.repository();
        host.git(&["init", "--quiet", "--initial-branch=main", repository.to_str().unwrap()]);
        host
    }

    fn git(&self, arguments: &[&str]) {
        let mut command = self.program("git");
        assert!(command.args(arguments).status().unwrap().success(), "git {arguments:?}");
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.path("home")
    }

    pub(crate) fn binary(&self) -> PathBuf {
        self.path("bin/cloister")
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.path("home/demo")
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.path("home/.local/state/cloister/run")
    }

    fn is_other_user(&self) -> bool {
        self.user == User::Ordinary && rustix::process::geteuid().is_root()
    }

    /// Gives a path to the user who runs Cloister.
    pub(crate) fn own(&self, path: &Path) {
        if self.is_other_user() {
            chown(path, Some(ORDINARY), Some(ORDINARY)).unwrap();
        }
    }

    /// Writes a file of the user's, with its directories.
    pub(crate) fn write(&self, path: &Path, content: impl AsRef<[u8]>) {
        let mut missing: Vec<&Path> =
            path.ancestors().skip(1).take_while(|parent| !parent.exists()).collect();
        while let Some(directory) = missing.pop() {
            fs::create_dir(directory).unwrap();
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
            self.own(directory);
        }
        fs::write(path, content).unwrap();
        self.own(path);
    }

    /// Writes `config.yaml`. Nobody is there to be asked: unless it says otherwise, what is unlisted is refused.
    pub(crate) fn configure(&self, yaml: &str) {
        let settings = match yaml {
            _ if yaml.contains("unlisted") => yaml.to_owned(),
            _ if yaml.contains("proxy: {") => yaml.replacen("proxy: {", "proxy: {unlisted: reject, ", 1),
            _ if yaml.contains("proxy:\n") => {
                // Behind the section's last line, so that every line keeps its number.
                let mut lines: Vec<&str> = yaml.lines().collect();
                let begin = lines.iter().position(|line| *line == "proxy:").unwrap();
                let length = lines[begin + 1..].iter().take_while(|line| line.starts_with(' ')).count();
                lines.insert(begin + 1 + length, "  unlisted: reject");
                lines.join("\n") + "\n"
            }
            _ => format!("{yaml}\nproxy: {{unlisted: reject}}\n"),
        };
        self.write(&self.path("home/.config/cloister/config.yaml"), settings);
    }

    /// A program run as the user, in the repository, with an environment of four names.
    pub(crate) fn program(&self, program: impl Into<OsString>) -> Command {
        let mut command = plain(program);
        command.env("HOME", self.home()).env("PATH", SEARCH_PATH);
        command.env("TERM", "xterm-256color").env("LANG", "C.UTF-8");
        let repository = self.repository();
        command.current_dir(if repository.exists() { repository } else { self.home() });
        if self.is_other_user() {
            command.uid(ORDINARY).gid(ORDINARY);
        }
        command
    }

    /// `cloister` with these arguments.
    pub(crate) fn cloister(&self, arguments: &[&str]) -> Command {
        let mut command = self.program(self.binary());
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs `cloister` to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Done {
        finish(self.cloister(arguments))
    }

    /// Runs a shell script in the sandbox.
    pub(crate) fn inside(&self, script: &str) -> Done {
        self.run(&["start", "--", "sh", "-c", script])
    }

    /// Runs `cloister` and expects success.
    #[track_caller]
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(done.code, 0, "{arguments:?}: {done:?}");
        done.stdout
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A test that failed early may have started nothing.
        let _ = self.cloister(&["shutdown"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// A program run as the tests' own user, with an empty environment.
#[expect(clippy::disallowed_methods, reason = "the tests start programs of the host")]
pub(crate) fn plain(program: impl Into<OsString>) -> Command {
    let mut command = Command::new(program.into());
    command.env_clear().env("PATH", SEARCH_PATH);
    command
}

/// Runs a program to its end.
pub(crate) fn finish(mut command: Command) -> Done {
    collect(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// Runs a program to its end with this input.
pub(crate) fn feed(mut command: Command, input: &[u8]) -> Done {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let done = collect(child);
    writer.join().unwrap();
    done
}

/// Waits for a program and reads what it wrote.
pub(crate) fn collect(child: Child) -> Done {
    let output = child.wait_with_output().unwrap();
    let code = output.status.code().or_else(|| output.status.signal().map(|signal| 128 + signal));
    Done {
        code: code.unwrap(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
