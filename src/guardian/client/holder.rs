//! Which process holds the guardian's lock, where the guardian itself can't be asked.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::audit;
use crate::paths::{Lock, Paths};

/// How long a guardian may take to end that has given up its socket.
const END_PATIENCE: Duration = Duration::from_secs(4);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// Who holds the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    Nobody,
    /// With its number, where it can be seen.
    Process(Option<i32>),
}

impl Holder {
    /// Looks who holds the lock and does not give it up at once.
    pub(super) async fn lasting(paths: &Paths) -> Self {
        let end = Instant::now() + END_PATIENCE;
        loop {
            let holder = Self::now(paths);
            if holder == Self::Nobody || Instant::now() > end {
                return holder;
            }
            sleep(LOOK).await;
        }
    }

    fn now(paths: &Paths) -> Self {
        let lock = paths.guardian_lock();
        let process = process(&locks(paths));
        // A lock that can't be opened is held by nobody that is known.
        let is_held = || lock.exists() && matches!(Lock::try_acquire(&lock), Ok(None));
        if process.is_some() || is_held() { Self::Process(process) } else { Self::Nobody }
    }
}

/// The locks that a guardian holds. The path of the second does not vanish with the runtime directory.
pub(super) fn locks(paths: &Paths) -> [PathBuf; 2] {
    [paths.guardian_lock(), audit::lock_file(&paths.audit_dir())]
}

/// The guardian that has one of these locks open, be it that the file was removed since: the lock itself names only the
/// process that took it first, and not the one to which it was handed over.
pub(super) fn process(locks: &[PathBuf]) -> Option<i32> {
    let removed = locks.iter().map(|lock| {
        let mut removed = lock.clone().into_os_string();
        removed.push(" (deleted)");
        PathBuf::from(removed)
    });
    let wanted: Vec<PathBuf> = locks.iter().cloned().chain(removed).collect();
    // Elsewhere, the same path is another file.
    let is_here = |pid: i32| match fs::read_link(format!("/proc/{pid}/ns/mnt")) {
        Ok(found) => fs::read_link("/proc/self/ns/mnt").is_ok_and(|own| own == found),
        Err(_) => false,
    };
    let holds = |pid: &i32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut files = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        files.any(|file| wanted.contains(&file))
    };
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(|pid| is_guardian(*pid) && is_here(*pid) && holds(pid))
}

/// Tells whether a process was started as a guardian: others have the lock open for a moment.
fn is_guardian(pid: i32) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let arguments: Vec<&[u8]> = arguments.split(|byte| *byte == 0).collect();
    arguments.windows(2).any(|pair| pair == [b"guardian".as_slice(), b"run"])
}
