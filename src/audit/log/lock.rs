//! The lock of the one writer.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::audit::AuditError;

/// Names the file whose lock the one writer holds.
const LOCK_FILE: &str = "audit.lock";

/// Tells whether a guardian has ever written the log in `dir`; where that can't be seen, it may have.
pub(in crate::audit) fn has_lock(dir: &Path) -> bool {
    dir.join(LOCK_FILE).try_exists().unwrap_or(true)
}

/// Tells whether a guardian writes the log in `dir` at present.
pub(in crate::audit) fn is_written(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(LOCK_FILE)) else { return false };
    flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

/// Takes the lock; it is held until the file is closed.
pub(super) fn lock(dir: &Path) -> Result<File, AuditError> {
    let path = dir.join(LOCK_FILE);
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
