//! The audit log: JSON lines, each chained to the one before by its SHA-256 (A15, A17; INTERFACES 6).
//!
//! The unified file and each cloister's file are chains of their own. [`AuditLog`] is the one writer; [`verify`](fn@verify)
//! recomputes a chain and names the first bad line; [`Reader`] gives the entries back, also while they are written.
//! A chain shows every change in its middle by itself; only a [`Head`] that was noted elsewhere shows that its end
//! was cut off or rewritten.
//!
//! **Files.** A chain grows in `audit.jsonl` (or `cloisters/demo.jsonl`). When a line has no place in it any more, the
//! file is brought to disk and gets its full name, after its first record: `audit@000000000001.jsonl`; the first
//! record of the next file links to the last one of this. Where there are more full files than are kept, a record
//! `audit.removed` names in `removed` the last record that goes, is brought to disk, and then the oldest files are
//! removed: a chain that begins in its middle without that record lost a file to somebody else. Whatever step of this
//! a crash cuts short is done again by the next writer.
//!
//! **Copies.** A record in a cloister's own file names in `unified` the unified file's record that it repeats word for
//! word. It follows that one within 100 ms; what a crash keeps from it, the next writer copies from the end of the
//! unified file. [`verify_all`] compares both ways; what that writer is going to copy, it counts and does not call bad.
//! Where `audit.per_cloister` is off, the record in the unified file
//! says `"own_file": false`.
//!
//! **Floods.** A repeated event (same cloister, event, reason and subject) is written once and then counted; a record
//! with `repeated`, `from` and `to` follows each minute, and before the end of its cloister or of the guardian. Each
//! reason of a cloister has a budget of subjects a minute; what goes beyond is counted by event and reason, without a
//! host, and `detail` names a few of them.
//!
//! **Crashes.** What a crash leaves of a line without its line feed is kept: the next start closes it with a line feed
//! and a record `audit.recovered`, whose `prev` is the hash of the remains and whose `recovers` is the hash of the last
//! whole line. A killed guardian loses at most the `proxy.close` records of the last 100 ms, and repetitions that were
//! counted and not yet summed up; a power failure loses what was not on disk, at most about a second.

mod chain;
mod entry;
mod event;
mod head;
mod log;
mod read;
mod record;
mod show;
#[cfg(test)]
mod tests;
mod verify;

pub use entry::Entry;
pub use event::{Event, UnknownEvent};
pub use head::{Head, InvalidHead, LineHash};
pub use log::{AuditLog, Lag, Noted, Repeatable, Storage, lock_file};
pub use read::{Filter, HostFilter, InvalidHostFilter, InvalidSince, ReadError, Reader, parse_since};
pub use record::Record;
pub use verify::{Difference, FileReport, Problem, Verified, VerifyError, Writer, verify, verify_all};

use std::io;
use std::path::{Path, PathBuf};

/// Names the unified file in the audit directory.
const UNIFIED_FILE: &str = "audit.jsonl";
/// Names the folder of the cloisters' own files in the audit directory.
const CLOISTERS_FOLDER: &str = "cloisters";

/// Returns the path of the unified file in the audit directory `dir`.
pub fn unified_file(dir: &Path) -> PathBuf {
    dir.join(UNIFIED_FILE)
}

/// Returns the path of one cloister's file in the audit directory `dir`.
pub fn cloister_file(dir: &Path, cloister: &crate::name::CloisterName) -> PathBuf {
    dir.join(CLOISTERS_FOLDER).join(format!("{cloister}.jsonl"))
}

/// Tells whether there is a log in the audit directory `dir`, or something that a log has left: then the unified file
/// has to be there too.
pub fn exists(dir: &Path) -> bool {
    let has_chain = |dir: &Path| {
        let names = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.into_iter().any(|name| name.to_str().is_some_and(|name| chain::split_name(name).is_some()))
    };
    log::has_lock(dir) || has_chain(dir) || has_chain(&dir.join(CLOISTERS_FOLDER))
}

/// Says why the audit log can't be opened or written: without audit there is no traffic (invariant 7).
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A file or directory can't be made or opened.
    #[error("cannot open the audit file `{}`", path.display())]
    Open {
        /// What was to be opened.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process holds the log.
    #[error("cannot write the audit log in `{}`: another guardian is writing it", dir.display())]
    Busy {
        /// The audit directory.
        dir: PathBuf,
    },
    /// The path names something else than a regular file.
    #[error("cannot use `{}` as audit file: it is not a regular file", path.display())]
    NotAFile {
        /// What stands there.
        path: PathBuf,
    },
    /// The end of the file holds no record to continue from.
    #[error(
        "cannot continue the audit file `{}`: its last {searched} bytes hold no record; move the file away to start a new one",
        path.display()
    )]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// How much of the end was searched.
        searched: u64,
    },
    /// A write failed or was cut short; what it left has been or will be removed.
    #[error("cannot write to the audit file `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else removed, cut or wrote the open file.
    #[error(
        "cannot write to the audit file `{}`: another program changed it; run `cloister audit verify`, then restart the guardian",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The data can't be brought to disk.
    #[error("cannot bring the audit file `{}` to disk", path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An earlier call panicked half-way.
    #[error("cannot write the audit log: an earlier write failed half-way; restart the guardian")]
    Poisoned,
}

impl AuditError {
    /// Tells whether the same log may be written again later: the disk is full, and nobody else has changed the files.
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Open { .. } | Self::Write { .. } | Self::Sync { .. })
    }
}
