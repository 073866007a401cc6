//! Whether this host can run sandboxes: each check is a function of files below a root, or of what a program said.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::{Access, access};
use serde::Serialize;

use crate::paths::{self, Paths};
use crate::process;
use crate::sandbox::{Bubblewrap, LaunchError, diagnose, find_bwrap, in_container};

/// How a part of the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// Sandboxes start, and something is weaker or missing.
    Warning,
    /// No sandbox can be started.
    Problem,
}

impl State {
    /// The word that a person reads.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// One part of the host that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Which part.
    pub check: &'static str,
    /// How it is.
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What mends it; `None` where nothing is to be mended.
    pub fix: Option<String>,
}

impl Check {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, state: State::Ok, detail: detail.into(), fix: None }
    }

    fn bad(check: &'static str, state: State, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, state, detail: detail.into(), fix: Some(fix.into()) }
    }
}

/// Looks at this host.
pub fn check_host(paths: &Paths) -> Vec<Check> {
    let root = Path::new("/");
    let found = find_bwrap(&process::environment("PATH").unwrap_or_default());
    let tried = found.as_ref().ok().map(try_sandbox);
    let version = found.as_ref().ok().and_then(version_of);
    let mode = found.as_ref().ok().and_then(|bwrap| fs::metadata(bwrap.program()).ok());
    let is_setuid = mode.is_some_and(|metadata| metadata.permissions().mode() & 0o4000 != 0);
    let mut checks = vec![
        kernel(root),
        bubblewrap(found.as_ref(), version.as_deref(), is_setuid),
        namespaces(tried, root),
        runtime(paths.runtime_dir()),
        user(rustix::process::geteuid().is_root(), root),
        container(root),
        limits(root),
        tun(root),
    ];
    checks.extend(settings(root));
    checks
}

fn setting(root: &Path, path: &str) -> Option<String> {
    fs::read_to_string(root.join(path)).ok().map(|value| value.trim().to_owned())
}

/// The first two numbers of a version: everything before them and after them is left out.
fn numbers(text: &str) -> Option<(u32, u32)> {
    let start = text.find(|character: char| character.is_ascii_digit())?;
    let mut parts = text[start..].split(|character: char| !character.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel_version(root: &Path) -> Option<(u32, u32)> {
    numbers(&setting(root, "proc/sys/kernel/osrelease")?)
}

/// `openat2` came with 5.6.
fn kernel(root: &Path) -> Check {
    const OLDEST: (u32, u32) = (5, 6);
    match kernel_version(root) {
        None => Check::bad("kernel", State::Problem, "this is no Linux", "run Cloister on Linux"),
        Some(version @ (major, minor)) if version < OLDEST => Check::bad(
            "kernel",
            State::Problem,
            format!("Linux {major}.{minor} has no `openat2`"),
            "update to Linux 5.6 or later",
        ),
        Some((major, minor)) => Check::ok("kernel", format!("Linux {major}.{minor}")),
    }
}

/// `--disable-userns` came with 0.8, and a set-user-ID `bwrap` refuses it.
fn bubblewrap(found: Result<&Bubblewrap, &LaunchError>, version: Option<&str>, is_setuid: bool) -> Check {
    const OLDEST: (u32, u32) = (0, 8);
    const INSTALL: &str = "run `sudo apt-get install bubblewrap` (or install your system's package)";
    let problem = |detail: String, fix: &str| Check::bad("bubblewrap", State::Problem, detail, fix);
    let bwrap = match found {
        Err(error) => return problem(error.to_string(), INSTALL),
        Ok(bwrap) => bwrap.program().display(),
    };
    let said = version.unwrap_or("nothing").trim();
    match version.and_then(numbers) {
        None => problem(format!("`{bwrap} --version` said {said}"), INSTALL),
        Some(version) if version < OLDEST => {
            problem(format!("{bwrap}: {said} lacks `--disable-userns`"), "update to bubblewrap 0.8 or later")
        }
        Some(_) if is_setuid => {
            problem(format!("{bwrap} is set-user-ID"), "run `sudo chmod u-s` on it; it needs no such right")
        }
        Some(_) => Check::ok("bubblewrap", format!("{bwrap}: {said}, changeable by root alone")),
    }
}

fn version_of(bwrap: &Bubblewrap) -> Option<String> {
    let output = process::command(bwrap.program()).arg("--version").output().ok()?;
    String::from_utf8(output.stdout).ok()
}

/// Starts the plainest sandbox; an error is what `bwrap` said.
fn try_sandbox(bwrap: &Bubblewrap) -> Result<(), String> {
    let mut command = process::command(bwrap.program());
    command.args(["--unshare-all", "--unshare-user", "--disable-userns", "--ro-bind", "/", "/"]);
    command.args(["--proc", "/proc", "--dev", "/dev", "--", "/bin/sh", "-c", ":"]);
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

fn namespaces(tried: Option<Result<(), String>>, root: &Path) -> Check {
    const NAME: &str = "namespaces";
    let complaint = match tried {
        None => {
            return Check::bad(NAME, State::Problem, "not tried without `bwrap`", "see `bubblewrap` above");
        }
        Some(Ok(())) => return Check::ok(NAME, "a plain sandbox starts"),
        Some(Err(complaint)) => complaint,
    };
    match diagnose(&complaint, root) {
        Some(diagnosis) => Check::bad(NAME, State::Problem, diagnosis.to_string(), diagnosis.fix()),
        None => Check::bad(
            NAME,
            State::Problem,
            format!("`bwrap` said: {complaint}"),
            "run `bwrap --unshare-all --ro-bind / / true` to see it",
        ),
    }
}

/// The directory of sockets; that its path is short enough was checked when it was chosen.
fn runtime(directory: &Path) -> Check {
    match paths::ensure_private_dir(directory) {
        Err(error) => Check::bad(
            "runtime directory",
            State::Problem,
            error.to_string(),
            "set `XDG_RUNTIME_DIR` to a directory of yours",
        ),
        Ok(()) if access(directory, Access::WRITE_OK).is_err() => Check::bad(
            "runtime directory",
            State::Problem,
            format!("`{}` cannot be written", directory.display()),
            "set `XDG_RUNTIME_DIR` to a directory that can be written",
        ),
        Ok(()) => Check::ok("runtime directory", directory.display().to_string()),
    }
}

/// Idmapped mounts came with 5.12; root needs them.
fn user(is_root: bool, root: &Path) -> Check {
    const IDMAPPED: (u32, u32) = (5, 12);
    match (is_root, kernel_version(root)) {
        (false, _) => Check::ok("user", "an ordinary user"),
        (true, Some(version)) if version >= IDMAPPED => {
            Check::ok("user", "root; the kernel can give sandboxes an unprivileged user (idmapped mounts)")
        }
        (true, _) => Check::bad(
            "user",
            State::Warning,
            "root, on a kernel without idmapped mounts: a sandbox's processes would be root's",
            "work as an ordinary user",
        ),
    }
}

fn container(root: &Path) -> Check {
    let detail = if in_container(root) { "inside a container" } else { "not inside a container" };
    Check::ok("container", detail)
}

/// How a sandbox's memory and processes can be limited.
fn limits(root: &Path) -> Check {
    let base = root.join("sys/fs/cgroup");
    let groups = setting(root, "proc/self/cgroup").unwrap_or_default();
    let own = |line: &str, top: PathBuf| {
        let group = line.rsplit(':').next().unwrap_or_default().trim_start_matches('/').to_owned();
        top.join(group)
    };
    let is_writable = |directory: &Path| access(directory, Access::WRITE_OK).is_ok();
    let unified = groups.lines().find(|line| line.starts_with("0::"));
    let is_unified = base.join("cgroup.controllers").exists();
    if is_unified && unified.is_some_and(|line| is_writable(&own(line, base.clone()))) {
        return Check::ok("limits", "cgroup v2, this group can be divided");
    }
    let is_named = |line: &str, controller: &str| {
        line.split(':').nth(1).is_some_and(|names| names.split(',').any(|name| name == controller))
    };
    let has = |controller: &str| {
        let line = groups.lines().find(|line| is_named(line, controller));
        line.is_some_and(|line| is_writable(&own(line, base.join(controller))))
    };
    if has("memory") && has("pids") {
        return Check::ok("limits", "cgroup v1, groups for memory and pids can be made");
    }
    let bus = setting(root, "proc/1/comm").is_some_and(|name| name == "systemd");
    if is_unified && bus {
        return Check::ok("limits", "cgroup v2, through systemd");
    }
    Check::bad(
        "limits",
        State::Warning,
        "no cgroup can be written: only the number of an ordinary user's processes can be limited",
        "run a systemd user session (`loginctl enable-linger`), or delegate a cgroup to this user",
    )
}

fn tun(root: &Path) -> Check {
    if root.join("dev/net/tun").exists() {
        Check::ok("tun", "/dev/net/tun is there")
    } else {
        Check::bad(
            "tun",
            State::Warning,
            "no /dev/net/tun: the network tiers `inet` and `full` need it",
            "run `sudo modprobe tun`, or give the container `--device /dev/net/tun`",
        )
    }
}

/// Kernel settings behind the sandbox's own defences.
fn settings(root: &Path) -> [Check; 3] {
    let terminal = match setting(root, "proc/sys/dev/tty/legacy_tiocsti").as_deref() {
        Some("0") => Check::ok("legacy_tiocsti", "off"),
        Some(_) => Check::bad(
            "legacy_tiocsti",
            State::Warning,
            "on: programs may type into their terminal; sandboxes are refused it by their filter",
            "run `sudo sysctl dev.tty.legacy_tiocsti=0`",
        ),
        None => {
            Check::ok("legacy_tiocsti", "not known to this kernel; sandboxes are refused it by their filter")
        }
    };
    let programs = match setting(root, "proc/sys/kernel/unprivileged_bpf_disabled").as_deref() {
        Some("0") => Check::bad(
            "unprivileged_bpf",
            State::Warning,
            "every user may load kernel programs; sandboxes are refused it by their filter",
            "run `sudo sysctl kernel.unprivileged_bpf_disabled=1`",
        ),
        Some(_) => Check::ok("unprivileged_bpf", "off"),
        None => Check::ok("unprivileged_bpf", "not known to this kernel"),
    };
    let tracing = match setting(root, "proc/sys/kernel/yama/ptrace_scope").as_deref() {
        Some("2" | "3") => Check::bad(
            "ptrace_scope",
            State::Warning,
            "debuggers work for root alone, also inside",
            "run `sudo sysctl kernel.yama.ptrace_scope=1`",
        ),
        Some(level) => Check::ok("ptrace_scope", level),
        None => Check::ok("ptrace_scope", "no Yama; sandboxes see no process of the host"),
    };
    [terminal, programs, tracing]
}

#[cfg(test)]
mod tests;
