//! Gives the cloisters' own files the records that a crash kept in memory.
//!
//! The unified file is at most [`MAX_AHEAD_BYTES`] ahead of them, so that only its end has to be read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;

use super::{MAX_AHEAD_BYTES, State, own_chain};
use crate::audit::chain::{ChainFiles, MAX_PENDING_BYTES};
use crate::audit::entry::{Link, shared_parts};
use crate::audit::{AuditError, unified_file};

/// How much of the unified chain's end is read: what may be ahead, one buffer, and one line of the largest size.
pub(in crate::audit) const WINDOW_BYTES: u64 = (MAX_AHEAD_BYTES + MAX_PENDING_BYTES + 512 * 1024) as u64;

impl State {
    /// Completes the own files that are behind. They are closed again after the next sync.
    pub(super) fn repair(&mut self) -> Result<(), AuditError> {
        if !self.storage.per_cloister {
            return Ok(());
        }
        let current = unified_file(&self.dir);
        let failed = |source| AuditError::Open { path: current.clone(), source };
        let mut left = WINDOW_BYTES;
        let mut ends = Vec::new();
        let full = ChainFiles::of(&current).list_full().map_err(failed)?;
        let newest_first =
            std::iter::once(current.clone()).chain(full.into_iter().rev().map(|file| file.path));
        for path in newest_first {
            let length = path.metadata().map_err(failed)?.len();
            ends.push((path, length.saturating_sub(left)));
            left = left.saturating_sub(length);
            if left == 0 {
                break;
            }
        }
        for (path, start) in ends.into_iter().rev() {
            self.repair_from(&path, start)?;
        }
        self.flush_all()
    }

    fn repair_from(&mut self, path: &Path, start: u64) -> Result<(), AuditError> {
        each_line(path, start, |line| self.repair_one(line))
    }

    /// Appends this line of the unified file to the own file that lacks it.
    fn repair_one(&mut self, line: &[u8]) -> Result<(), AuditError> {
        let Some(record) = line.strip_suffix(b"\n").and_then(Link::parse) else { return Ok(()) };
        let Some(name) = record.cloister.filter(|_| record.own_file != Some(false)) else { return Ok(()) };
        let chain = &mut own_chain(&mut self.cloisters, &self.dir, self.storage, &name)?.chain;
        // A file of a version that did not name the unified file's records is left as it is.
        if let Some((time, shared)) = shared_parts(line)
            && chain.unified().is_some_and(|last| last < record.seq)
        {
            chain.make_room(shared)?;
            chain.take_own(shared, time, record.seq);
        }
        Ok(())
    }
}

/// Calls with every line that begins behind `start`.
fn each_line(
    path: &Path,
    start: u64,
    mut take: impl FnMut(&[u8]) -> Result<(), AuditError>,
) -> Result<(), AuditError> {
    let failed = |source: io::Error| AuditError::Open { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut line = Vec::new();
    // The line feed before a line that begins right there belongs to the one before.
    file.seek(SeekFrom::Start(start.saturating_sub(1))).map_err(failed)?;
    let mut lines = BufReader::new(file);
    if start > 0 {
        lines.read_until(b'\n', &mut line).map_err(failed)?;
        line.clear();
    }
    while lines.read_until(b'\n', &mut line).map_err(failed)? > 0 {
        take(&line)?;
        line.clear();
    }
    Ok(())
}
