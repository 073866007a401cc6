//! Starting programs, and telling a process from a later one with the same number.
//!
//! A program starts with an empty environment; what it needs is named. A process is remembered by its
//! number, its start time and the boot it belongs to, and is signalled through a descriptor that stays
//! with the one process that was checked.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// Prepares the start of `program` with an empty environment.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    #[allow(
        clippy::disallowed_methods,
        reason = "the owning module: the environment is cleared here, for all"
    )]
    let mut command = Command::new(program);
    command.env_clear();
    command
}

/// Keeps every descriptor that this process was started with from the programs that it starts (K4): a shell's open
/// file would be open in the sandbox too.
pub fn keep_descriptors() {
    keep_descriptors_but(&[]);
}

/// Like [`keep_descriptors`], less the ones that the next program is to have.
pub fn keep_descriptors_but(inherited: &[i32]) {
    close_fds::set_fds_cloexec(3, inherited);
}

/// Lets the next program that is started inherit `descriptor` under its present number.
///
/// Only sound while no other thread starts programs: all callers are single-threaded.
pub fn make_inheritable(descriptor: impl AsFd) -> io::Result<()> {
    Ok(fcntl_setfd(descriptor, FdFlags::empty())?)
}

/// Finds the executable files of a name along a `PATH` value; empty and relative entries are passed over.
pub fn find_programs(name: &str, search_path: &OsStr) -> Vec<PathBuf> {
    let is_program = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let directories = std::env::split_paths(search_path).filter(|directory| directory.is_absolute());
    directories.map(|directory| directory.join(name)).filter(is_program).collect()
}

/// Finds a program along this process's `PATH` that nobody but root can change.
pub fn find_trusted(name: &str) -> Option<PathBuf> {
    let found = find_programs(name, &environment("PATH")?).into_iter();
    let mut resolved = found.filter_map(|program| fs::canonicalize(program).ok());
    resolved.find(|program| is_trusted_program(program).unwrap_or(false))
}

/// The environment of this process, read by name.
pub fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The signals that this process was told to ignore, as `nohup` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ignored(u64);

impl Ignored {
    /// Asks the kernel; none where it does not say.
    pub fn of_this_process() -> Self {
        let mask = || {
            let status = fs::read_to_string("/proc/self/status").ok()?;
            let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        };
        Self(mask().unwrap_or(0))
    }

    /// Tells whether a signal is one of them.
    pub fn contains(self, signal: i32) -> bool {
        let place = u32::try_from(signal).ok().and_then(|signal| signal.checked_sub(1));
        place.and_then(|place| 1_u64.checked_shl(place)).is_some_and(|bit| self.0 & bit != 0)
    }
}

/// The inode of a process's process name space; `None` where it may not be read.
pub fn pid_namespace(pid: i32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/pid")).ok().map(|namespace| namespace.ino())
}

/// What tells one process from every other, also after its number was given to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    pid: i32,
    /// Clock ticks between the boot and the start of the process (field 22 of `/proc/PID/stat`).
    start_ticks: u64,
    boot_id: String,
}

impl Identity {
    /// Reads the identity of a running process; `None` when there is no such process.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        let (state, start_ticks) = parse_stat(&stat)?;
        (state != 'Z' && state != 'X').then_some(Self { pid, start_ticks, boot_id })
    }

    /// The process number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Opens the process if it still is the one that was remembered.
    pub fn open(&self) -> Option<Handle> {
        let descriptor = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // The descriptor is taken first: if the number was reused before, the identity differs now.
        (Self::of(self.pid).as_ref() == Some(self)).then_some(Handle { descriptor })
    }

    /// Tells whether the process still runs.
    pub fn is_alive(&self) -> bool {
        self.open().is_some()
    }
}

/// The state letter and start time of a line of `/proc/PID/stat`; the name in parentheses may hold anything.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// A descriptor of one running process.
#[derive(Debug)]
pub struct Handle {
    descriptor: OwnedFd,
}

impl Handle {
    /// Kills the process and waits until it is gone; false when it outlives `patience`.
    pub fn kill(&self, patience: Duration) -> io::Result<bool> {
        match pidfd_send_signal(&self.descriptor, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        self.wait(patience)
    }

    /// Asks the process to end.
    pub fn terminate(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.descriptor, Signal::TERM) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process has ended; false when it outlives `patience`.
    pub fn wait(&self, patience: Duration) -> io::Result<bool> {
        wait_readable(self.descriptor.as_fd(), patience)
    }
}

/// Waits until a descriptor is readable or hung up; false when that takes longer than `patience`.
pub fn wait_readable(descriptor: BorrowedFd<'_>, patience: Duration) -> io::Result<bool> {
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut watched = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
        match poll(&mut watched, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The path of the running binary, with links resolved.
pub fn own_binary() -> io::Result<PathBuf> {
    fs::canonicalize("/proc/self/exe").or_else(|_| std::env::current_exe())
}

/// Tells whether nobody but root can change a program or put another in its place.
///
/// Not even the user: what runs in a sandbox writes files that belong to the user. A directory that all may write
/// will do with the sticky bit, as in `/nix/store` and `/tmp`.
pub fn is_trusted_program(path: &Path) -> io::Result<bool> {
    const STICKY: u32 = 0o1000;
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    for part in path.ancestors() {
        let metadata = fs::metadata(part)?;
        let is_closed = metadata.mode() & WRITABLE_BY_OTHERS == 0;
        if metadata.uid() != 0 || !(is_closed || metadata.is_dir() && metadata.mode() & STICKY != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_a_hostile_program_name() {
        let line = "42 (a) Z 7 (b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        assert_eq!(parse_stat(line), Some(('S', 987_654)));
        assert_eq!(parse_stat("42 (short) S 1"), None);
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn the_pipe_signal_is_ignored_by_every_rust_program_and_no_number_out_of_range() {
        let ignored = Ignored::of_this_process();
        assert!(ignored.contains(13));
        assert!(![0, -1, 1, 65, i32::MAX, i32::MIN].into_iter().any(|number| ignored.contains(number)));
    }

    #[test]
    fn a_process_is_known_until_it_ends() {
        let mut child = command("/bin/sleep").arg("1000").spawn().unwrap();
        let identity = Identity::of(i32::try_from(child.id()).unwrap()).unwrap();
        let handle = identity.open().unwrap();
        assert!(handle.kill(Duration::from_secs(10)).unwrap());
        assert!(!identity.is_alive());
        child.wait().unwrap();
        assert!(identity.open().is_none());
    }

    #[test]
    fn a_reused_number_is_another_process() {
        let own = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.is_alive());
        assert!(!Identity { start_ticks: own.start_ticks + 1, ..own.clone() }.is_alive());
        assert!(!Identity { boot_id: "another boot".to_owned(), ..own }.is_alive());
    }

    #[test]
    fn programs_are_found_along_absolute_entries_only() {
        assert_eq!(find_programs("sh", OsStr::new(":.:/bin")), [PathBuf::from("/bin/sh")]);
        assert_eq!(find_programs("sh", OsStr::new(".:relative")), [] as [PathBuf; 0]);
        assert_eq!(find_programs("no-such-program", OsStr::new("/bin:/usr/bin")), [] as [PathBuf; 0]);
    }

    #[test]
    fn only_what_root_alone_can_change_is_trusted() {
        assert!(is_trusted_program(&fs::canonicalize("/bin/sh").unwrap()).unwrap());
        let directory = tempfile::tempdir().unwrap();
        let planted = directory.path().join("bwrap");
        fs::write(&planted, "").unwrap();
        fs::set_permissions(&planted, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(!is_trusted_program(&planted).unwrap());
    }

    #[test]
    fn a_program_starts_with_an_empty_environment() {
        let output = command("/usr/bin/env").output().unwrap();
        assert_eq!(output.stdout, b"");
    }
}
