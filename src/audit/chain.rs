//! One chain of the log: opening at its end, appending whole lines, beginning the next file, closing the remains of
//! a crash.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

pub(super) use files::{ChainFiles, FullFile, first_link, split_name};

use super::entry::{FRONT_BYTES, time_text, write_front};
use super::{AuditError, Event, Head, LineHash, Record};
use crate::name::CloisterName;
use tail::{Tail, Torn};

mod files;
mod tail;

/// How long a look at the open file holds: so long a change by another program may stay unseen.
const LOOK: Duration = Duration::from_millis(100);

/// Bounds what is kept in memory of one chain.
pub(super) const MAX_PENDING_BYTES: usize = 64 * 1024;

/// Says how large the files of a chain grow and how many are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotation {
    pub(super) max_bytes: u64,
    pub(super) max_files: usize,
}

/// Tells when a line has to stand in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Before the call returns.
    Now,
    /// Before [`Chain::settle`] returns.
    Grouped,
    /// With the next line that is urgent, or with the next flush. It is taken in any case: what it tells has happened.
    Soon,
}

/// Is one chain of the log, open at its end.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a step that may still have to be done")]
pub(super) struct Chain {
    files: ChainFiles,
    rotation: Rotation,
    cloister: Option<CloisterName>,
    file: Arc<File>,
    /// The number of the file's first record.
    first: u64,
    /// The last record, written or pending.
    head: Head,
    /// In a cloister's own file: the record of the unified file that was taken last.
    unified: Option<u64>,
    /// How long the file is after the last whole line.
    length: u64,
    /// Whole lines that are not written yet.
    pending: Vec<u8>,
    /// The number of the last record that was written.
    written: u64,
    /// Whether a failed write may have left something after `length`.
    has_remains: bool,
    /// Whether something was written since the last sync.
    is_dirty: bool,
    /// Whether the file's name may not be on disk yet.
    is_new: bool,
    /// Whether the file has got its full name already, and the next one could not be made yet.
    is_renamed: bool,
    /// Whether there may be more full files than are kept.
    is_crowded: bool,
    /// When the file was last seen to be as this process left it.
    seen: Option<Instant>,
}

impl Chain {
    /// Opens or makes the current file, finds the head of its chain and closes a torn last line.
    pub(super) fn open(
        current: &Path,
        rotation: Rotation,
        cloister: Option<CloisterName>,
    ) -> Result<Self, AuditError> {
        let files = ChainFiles::of(current);
        let failed = |source| AuditError::Open { path: current.to_owned(), source };
        let full = files.list_full().map_err(failed)?;
        let newest = full.last();
        if let Some(newest) = newest {
            finish_rotation(current, newest).map_err(failed)?;
        }
        let (file, is_new) = open_file(current)?;
        let length = file.metadata().map_err(failed)?.len();
        let tail = Tail::read(&file, current)?;
        let (head, unified) = match (tail.last, newest.filter(|newest| newest.path.exists())) {
            (Some(last), _) => (last.head, last.unified),
            (None, Some(newest)) => last_of(newest)?,
            (None, None) => (Head::START, cloister.as_ref().map(|_| 0)),
        };
        let front = first_link(current).map_err(failed)?;
        let mut chain = Self {
            files,
            rotation,
            cloister,
            file: Arc::new(file),
            first: front.map_or(head.seq + 1, |link| link.seq),
            head,
            unified,
            length,
            pending: Vec::new(),
            written: head.seq,
            has_remains: false,
            is_dirty: false,
            is_new,
            is_renamed: false,
            is_crowded: full.len() > rotation.max_files,
            seen: None,
        };
        if let Some(torn) = tail.torn {
            chain.close(torn)?;
        }
        Ok(chain)
    }

    /// Returns the number and hash of the last record.
    pub(super) const fn head(&self) -> Head {
        self.head
    }

    /// Returns the number of the unified file's record that was taken last.
    pub(super) const fn unified(&self) -> Option<u64> {
        self.unified
    }

    /// Tells whether lines wait to be written.
    pub(super) const fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Tells whether something was written since the last sync.
    pub(super) const fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Tells whether so much waits to be written that it should not wait any longer.
    pub(super) const fn is_full(&self) -> bool {
        self.pending.len() >= MAX_PENDING_BYTES
    }

    /// Appends a record, given as what its copies share. Only what has to be written now can fail; the chain is as it
    /// was then.
    pub(super) fn append(&mut self, shared: &[u8], time: &str, urgency: Urgency) -> Result<(), AuditError> {
        let (head, pending) = (self.head, self.pending.len());
        self.take(shared, time);
        let length = self.pending.len() - pending;
        if urgency != Urgency::Now {
            return Ok(());
        }
        self.flush().inspect_err(|_| {
            // Lines before it may have been written, but not its end.
            self.pending.truncate(self.pending.len() - length);
            self.head = head;
        })
    }

    /// Takes the copy of a record of the unified file; it is written with the next flush.
    pub(super) fn take_own(&mut self, shared: &[u8], time: &str, unified: u64) {
        self.unified = Some(unified);
        self.take(shared, time);
    }

    fn take(&mut self, shared: &[u8], time: &str) {
        let start = self.pending.len();
        write_front(&mut self.pending, self.head, time, self.unified);
        self.pending.extend_from_slice(shared);
        let line = &self.pending[start..self.pending.len() - 1];
        self.head = Head { seq: self.head.seq + 1, hash: LineHash::of(line) };
    }

    /// Writes what is pending, unless the record with this number is written already.
    pub(super) fn settle(&mut self, seq: u64) -> Result<(), AuditError> {
        if self.written >= seq { Ok(()) } else { self.flush() }
    }

    /// Writes what is pending with one `write(2)`; after an error, what had no room still is.
    pub(super) fn flush(&mut self) -> Result<(), AuditError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if self.has_remains || self.seen.is_none_or(|seen| seen.elapsed() >= LOOK) {
            self.check_unchanged()?;
        }
        let pending = std::mem::take(&mut self.pending);
        let length = self.length;
        let outcome = self.write(&pending);
        self.pending = pending;
        if outcome.is_ok() {
            self.pending.clear();
            self.written = self.head.seq;
        } else {
            let kept = usize::try_from(self.length - length).expect("no more than what was pending");
            self.written += self.pending.drain(..kept).filter(|byte| *byte == b'\n').count() as u64;
        }
        outcome
    }

    /// Takes what has to be brought to disk, if anything was written since the last call.
    pub(super) fn take_unsynced(&mut self) -> Option<Unsynced> {
        if !std::mem::take(&mut self.is_dirty) {
            return None;
        }
        let is_new = std::mem::take(&mut self.is_new);
        Some(Unsynced { path: self.files.current().to_owned(), file: Arc::clone(&self.file), is_new })
    }

    /// Remembers that a sync failed.
    pub(super) const fn mark_dirty(&mut self) {
        self.is_dirty = true;
        self.is_new = true;
    }

    /// Closes the remains of a crash with a record that names their hash.
    fn close(&mut self, torn: Torn) -> Result<(), AuditError> {
        let mut record = Record::new(Event::AuditRecovered)
            .detail(format_args!("{} bytes without a record", torn.bytes))
            .recovers(self.head.hash);
        if let Some(cloister) = &self.cloister {
            record = record.cloister(cloister);
        }
        let before = Head { seq: self.head.seq, hash: torn.hash };
        let mut lines = if torn.is_ended { Vec::new() } else { vec![b'\n'] };
        let start = lines.len();
        write_front(&mut lines, before, &time_text(Timestamp::now()), self.unified);
        lines.extend_from_slice(&record.shared());
        self.write(&lines)?;
        self.head = Head { seq: self.head.seq + 1, hash: LineHash::of(&lines[start..lines.len() - 1]) };
        self.written = self.head.seq;
        Ok(())
    }

    /// Writes whole lines with one call. Of a call that was cut short, the whole lines that had room stay, and the rest
    /// is cut off again.
    fn write(&mut self, lines: &[u8]) -> Result<(), AuditError> {
        self.is_dirty = true;
        let source = match (&*self.file).write(lines) {
            Ok(written) if written == lines.len() => {
                self.length += written as u64;
                return Ok(());
            }
            Ok(written) => {
                let kept = lines[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                self.length += kept as u64;
                let message =
                    format!("no room is left: only {written} of {} bytes were written", lines.len());
                io::Error::new(io::ErrorKind::StorageFull, message)
            }
            Err(error) => error,
        };
        self.has_remains = self.file.set_len(self.length).is_err();
        Err(AuditError::Write { path: self.path(), source })
    }

    /// Makes sure that the file is still in its place and ends where this process left it.
    pub(super) fn check_unchanged(&mut self) -> Result<(), AuditError> {
        self.seen = None;
        let path = self.path();
        let failed = |source| AuditError::Write { path: path.clone(), source };
        if self.has_remains {
            self.file.set_len(self.length).map_err(failed)?;
            self.has_remains = false;
        }
        let own = self.file.metadata().map_err(failed)?;
        let is_there = fs::symlink_metadata(&path).is_ok_and(|there| is_same(&there, &own));
        if own.len() != self.length || !is_there {
            return Err(AuditError::Changed { path });
        }
        self.seen = Some(Instant::now());
        Ok(())
    }

    /// Where the open file stands.
    fn path(&self) -> PathBuf {
        if self.is_renamed { self.files.full(self.first) } else { self.files.current().to_owned() }
    }

    /// Tells whether nothing has to be done before the record is appended.
    pub(super) fn has_room(&self, shared: &[u8]) -> bool {
        !self.is_crowded && self.fits(shared)
    }

    /// Tells whether the record has a place in the file.
    fn fits(&self, shared: &[u8]) -> bool {
        let length = self.length + self.pending.len() as u64;
        length == 0 || length + (FRONT_BYTES + shared.len()) as u64 <= self.rotation.max_bytes
    }

    /// Begins the next file when the record has no place in this one, and removes files beyond those that are kept.
    pub(super) fn make_room(&mut self, shared: &[u8]) -> Result<(), AuditError> {
        if !self.fits(shared) {
            self.rotate()?;
        }
        if self.is_crowded { self.remove_oldest() } else { Ok(()) }
    }

    /// Gives the file its full name and begins the next one. The old file is on disk before the new one is begun,
    /// so that not even a power failure tears lines out between them; whatever step fails is done by the next call.
    fn rotate(&mut self) -> Result<(), AuditError> {
        self.flush()?;
        let (current, full) = (self.files.current().to_owned(), self.files.full(self.first));
        if !self.is_renamed {
            self.check_unchanged()?;
            let synced = self.file.sync_data();
            synced.map_err(|source| AuditError::Sync { path: current.clone(), source })?;
            rename_to_new(&current, &full).map_err(|source| AuditError::Open { path: full, source })?;
            self.is_renamed = true;
        }
        let mut options = private_file();
        let file = options.create_new(true).open(&current);
        self.file = Arc::new(file.map_err(|source| AuditError::Open { path: current, source })?);
        self.is_renamed = false;
        self.first = self.head.seq + 1;
        self.length = 0;
        self.mark_dirty();
        self.is_crowded = true;
        self.seen = Some(Instant::now());
        Ok(())
    }

    /// Removes the oldest full files when there are more than are kept. The record that says so is on disk before
    /// the first of them goes.
    fn remove_oldest(&mut self) -> Result<(), AuditError> {
        let current = self.files.current().to_owned();
        let failed = |source| AuditError::Open { path: current.clone(), source };
        let full = self.files.list_full().map_err(failed)?;
        let (removed, kept) = full.split_at(full.len().saturating_sub(self.rotation.max_files));
        let Some(oldest_kept) = kept.first().filter(|_| !removed.is_empty()) else {
            self.is_crowded = false;
            return Ok(());
        };
        let front = first_link(&oldest_kept.path).map_err(failed)?;
        let front = front.ok_or_else(|| AuditError::Changed { path: oldest_kept.path.clone() })?;
        let last = Head { seq: front.seq.saturating_sub(1), hash: front.prev };
        let mut record = Record::new(Event::AuditRemoved)
            .removed(last)
            .detail(format_args!("{} full files; `audit.max_files` are kept", removed.len()));
        if let Some(cloister) = &self.cloister {
            record = record.cloister(cloister);
        }
        self.append(&record.shared(), &time_text(Timestamp::now()), Urgency::Now)?;
        if let Some(unsynced) = self.take_unsynced() {
            unsynced.sync().inspect_err(|_| self.mark_dirty())?;
        }
        for file in removed {
            if let Err(error) = fs::remove_file(&file.path) {
                // The next rotation tries again; a disk that fills up meanwhile stops the log by itself.
                tracing::error!(error = &error as &dyn std::error::Error, path = %file.path.display(), "an old audit file stays");
            }
        }
        self.is_crowded = false;
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

/// Undoes a rotation that a crash stopped before the next file had a record: the newest full file is the current one
/// again, and the next append rotates anew.
fn finish_rotation(current: &Path, newest: &FullFile) -> io::Result<()> {
    let is_unused = match fs::symlink_metadata(current) {
        Ok(metadata) => metadata.is_file() && metadata.len() == 0,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if is_unused { fs::rename(&newest.path, current) } else { Ok(()) }
}

/// Gives the last record of a full file: the file after it holds none yet.
fn last_of(full: &FullFile) -> Result<(Head, Option<u64>), AuditError> {
    let failed = |source| AuditError::Open { path: full.path.clone(), source };
    let file = private_file().open(&full.path).map_err(failed)?;
    let last = Tail::read(&file, &full.path)?.last;
    let searched = file.metadata().map_err(failed)?.len();
    let last = last.ok_or_else(|| AuditError::Damaged { path: full.path.clone(), searched })?;
    Ok((last.head, last.unified))
}

/// Renames a file and replaces none.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems can't; the lock keeps other guardians away.
        Err(Errno::INVAL | Errno::NOSYS) if fs::symlink_metadata(to).is_err() => fs::rename(from, to),
        Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => {
            let message = "there is such a file already, which the log has not made; move it away";
            Err(io::Error::new(io::ErrorKind::AlreadyExists, message))
        }
        renamed => Ok(renamed?),
    }
}

fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Opens for appending what is no link and no pipe, with the rights of the user alone.
fn private_file() -> OpenOptions {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(0o600).custom_flags(flags.bits().cast_signed());
    options
}

/// Opens a file that only the user can read, and tells whether it is new (or empty).
fn open_file(path: &Path) -> Result<(File, bool), AuditError> {
    let failed = |source| AuditError::Open { path: path.to_owned(), source };
    let file = private_file().create(true).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(AuditError::NotAFile { path: path.to_owned() });
    }
    file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
    Ok((file, metadata.len() == 0))
}
