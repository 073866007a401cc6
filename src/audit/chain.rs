//! One file of the log: opening at its end, appending whole lines, closing the remains of a crash.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::OFlags;

use super::entry::Link;
use super::{AuditError, Event, Head, LineHash, Record};
use crate::name::CloisterName;

/// Bounds how much of a file's end is searched for its last record; a line is far shorter.
const MAX_TAIL_BYTES: u64 = 1024 * 1024;

/// Is one file of the log, open at its end.
#[derive(Debug)]
pub(super) struct Chain {
    path: PathBuf,
    file: Arc<File>,
    head: Head,
    /// How long the file is after the last whole line.
    length: u64,
    /// Whether a failed write may have left something after `length`.
    has_remains: bool,
    /// Whether something was written since the last sync.
    is_dirty: bool,
    /// Whether the file's name may not be on disk yet.
    is_new: bool,
}

impl Chain {
    /// Opens or makes the file, finds the head of its chain and closes a torn last line.
    pub(super) fn open(path: PathBuf, cloister: Option<&CloisterName>) -> Result<Self, AuditError> {
        let (file, is_new) = open_file(&path)?;
        let length = file.metadata().map_err(|source| AuditError::Open { path: path.clone(), source })?.len();
        let tail = Tail::read(&file, length, &path)?;
        let file = Arc::new(file);
        let mut chain =
            Self { path, file, head: tail.head, length, has_remains: false, is_dirty: false, is_new };
        if let Some(torn) = tail.torn {
            chain.close(torn, cloister)?;
        }
        Ok(chain)
    }

    /// Returns the number and hash of the last record.
    pub(super) const fn head(&self) -> Head {
        self.head
    }

    /// Appends a record with one `write(2)`; on an error the file is as it was, or will be before the next append.
    pub(super) fn append(&mut self, record: &mut Record, time: Timestamp) -> Result<(), AuditError> {
        self.check_unchanged()?;
        let line = record.line_after(self.head, time);
        self.write(&line)?;
        self.head = Head { seq: self.head.seq + 1, hash: LineHash::of(&line[..line.len() - 1]) };
        Ok(())
    }

    /// Takes what has to be brought to disk, if anything was written since the last call.
    pub(super) fn take_unsynced(&mut self) -> Option<Unsynced> {
        if !std::mem::take(&mut self.is_dirty) {
            return None;
        }
        let is_new = std::mem::take(&mut self.is_new);
        Some(Unsynced { path: self.path.clone(), file: Arc::clone(&self.file), is_new })
    }

    /// Remembers that a sync failed.
    pub(super) const fn mark_dirty(&mut self) {
        self.is_dirty = true;
        self.is_new = true;
    }

    fn close(&mut self, torn: Torn, cloister: Option<&CloisterName>) -> Result<(), AuditError> {
        let mut record = Record::new(Event::AuditRecovered)
            .detail(format_args!("{} bytes without a record", torn.bytes))
            .recovers(self.head.hash);
        if let Some(cloister) = cloister {
            record = record.cloister(cloister);
        }
        let before = Head { seq: self.head.seq, hash: torn.hash };
        let mut lines = if torn.is_ended { Vec::new() } else { vec![b'\n'] };
        let line = record.line_after(before, Timestamp::now());
        lines.extend_from_slice(&line);
        self.write(&lines)?;
        self.head = Head { seq: self.head.seq + 1, hash: LineHash::of(&line[..line.len() - 1]) };
        Ok(())
    }

    /// Writes whole lines with one call; whatever a failed call left is cut off again.
    fn write(&mut self, lines: &[u8]) -> Result<(), AuditError> {
        self.is_dirty = true;
        let source = match (&*self.file).write(lines) {
            Ok(written) if written == lines.len() => {
                self.length += written as u64;
                return Ok(());
            }
            Ok(written) => {
                let message =
                    format!("no room is left: only {written} of {} bytes were written", lines.len());
                io::Error::new(io::ErrorKind::StorageFull, message)
            }
            Err(error) => error,
        };
        self.has_remains = self.file.set_len(self.length).is_err();
        Err(AuditError::Write { path: self.path.clone(), source })
    }

    /// Makes sure that the file is still there and ends where this process left it.
    fn check_unchanged(&mut self) -> Result<(), AuditError> {
        let failed = |source| AuditError::Write { path: self.path.clone(), source };
        if self.has_remains {
            self.file.set_len(self.length).map_err(failed)?;
            self.has_remains = false;
        }
        let metadata = self.file.metadata().map_err(failed)?;
        if metadata.len() != self.length || metadata.nlink() == 0 {
            return Err(AuditError::Changed { path: self.path.clone() });
        }
        Ok(())
    }
}

/// Is a file with lines that may not be on disk yet.
pub(super) struct Unsynced {
    path: PathBuf,
    file: Arc<File>,
    is_new: bool,
}

impl Unsynced {
    /// Brings the lines, and a new file's name, to disk.
    pub(super) fn sync(&self) -> Result<(), AuditError> {
        let directory = self.path.parent().filter(|_| self.is_new);
        let synced = self.file.sync_data().and_then(|()| match directory {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        });
        synced.map_err(|source| AuditError::Sync { path: self.path.clone(), source })
    }
}

/// Makes a directory that only the user can enter.
pub(super) fn make_private_directory(path: &Path) -> Result<(), AuditError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o700)))
        .map_err(|source| AuditError::Open { path: path.to_owned(), source })
}

/// Opens a file that only the user can read, and tells whether it is new (or empty).
fn open_file(path: &Path) -> Result<(File, bool), AuditError> {
    let failed = |source| AuditError::Open { path: path.to_owned(), source };
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600).custom_flags(flags.bits().cast_signed());
    let file = options.open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(AuditError::NotAFile { path: path.to_owned() });
    }
    file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    Ok((file, metadata.len() == 0))
}

/// Is what the end of a file says: the last record, and what follows it.
struct Tail {
    head: Head,
    torn: Option<Torn>,
}

/// Is what follows the last record: the remains of a line, or a line without its line feed.
#[derive(Clone, Copy)]
struct Torn {
    hash: LineHash,
    bytes: usize,
    is_ended: bool,
}

impl Tail {
    /// Reads backwards until a record is found.
    fn read(file: &File, length: u64, path: &Path) -> Result<Self, AuditError> {
        let mut window = 16 * 1024;
        loop {
            let searched = length.min(window);
            let mut bytes = vec![0; usize::try_from(searched).expect("the window is small")];
            file.read_exact_at(&mut bytes, length - searched)
                .map_err(|source| AuditError::Open { path: path.to_owned(), source })?;
            if let Some(tail) = Self::find(&bytes, searched == length) {
                return Ok(tail);
            }
            if window >= MAX_TAIL_BYTES {
                return Err(AuditError::Damaged { path: path.to_owned(), searched });
            }
            window *= 4;
        }
    }

    /// Finds the last record in the end of a file; `None` means that more has to be read.
    fn find(bytes: &[u8], is_whole: bool) -> Option<Self> {
        let mut end = bytes.len();
        while end > 0 {
            let without_feed = end - usize::from(bytes[end - 1] == b'\n');
            let feed_before = bytes[..without_feed].iter().rposition(|byte| *byte == b'\n');
            let start = feed_before.map(|at| at + 1).or(is_whole.then_some(0))?;
            let line = &bytes[start..without_feed];
            if let Some(link) = Link::parse(line) {
                let head = Head { seq: link.seq, hash: LineHash::of(line) };
                let torn = if without_feed == end {
                    Some(Torn { hash: head.hash, bytes: 0, is_ended: false })
                } else {
                    Torn::of(&bytes[end..])
                };
                return Some(Self { head, torn });
            }
            end = start;
        }
        is_whole.then(|| Self { head: Head::START, torn: Torn::of(bytes) })
    }
}

impl Torn {
    /// Describes what follows the last record's line feed.
    fn of(remains: &[u8]) -> Option<Self> {
        if remains.is_empty() {
            return None;
        }
        let (remains, is_ended) =
            remains.strip_suffix(b"\n").map_or((remains, false), |remains| (remains, true));
        Some(Self { hash: LineHash::of(remains), bytes: remains.len(), is_ended })
    }
}
