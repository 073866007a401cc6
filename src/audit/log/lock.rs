//! The lock of the one writer.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::audit::AuditError;

/// Names the file whose lock the one writer holds.
const LOCK_FILE: &str = "audit.lock";

/// The file whose lock the one writer of the log in `dir` holds.
pub fn lock_file(dir: &Path) -> PathBuf {
    dir.join(LOCK_FILE)
}

/// Tells whether a guardian has ever written the log in `dir`; where that can't be seen, it may have.
pub(in crate::audit) fn has_lock(dir: &Path) -> bool {
    lock_file(dir).try_exists().unwrap_or(true)
}

/// Tells whether a guardian writes the log in `dir` at present.
pub(in crate::audit) fn is_written(dir: &Path) -> bool {
    let Ok(file) = File::open(lock_file(dir)) else { return false };
    flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

/// Takes the lock; it is held until the file is closed.
pub(super) fn lock(dir: &Path) -> Result<File, AuditError> {
    let path = lock_file(dir);
    let failed = |source| AuditError::Open { path: path.clone(), source };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(AuditError::Busy { dir: dir.to_owned() }),
        Err(error) => Err(failed(error.into())),
    }
}
