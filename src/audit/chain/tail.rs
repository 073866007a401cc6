//! What the end of a file says: its last record, and the remains of a line behind it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::audit::entry::Link;
use crate::audit::{AuditError, Head, LineHash};

/// Bounds how much of a file's end is searched for its last record; a line is far shorter.
const MAX_TAIL_BYTES: u64 = 1024 * 1024;

/// Is what the end of a file says.
pub(super) struct Tail {
    /// The last record, if the file has one.
    pub(super) last: Option<Last>,
    /// What follows it.
    pub(super) torn: Option<Torn>,
}

/// Is the last record of a file.
#[derive(Clone, Copy)]
pub(super) struct Last {
    pub(super) head: Head,
    /// The number of the unified file's record that it names.
    pub(super) unified: Option<u64>,
}

/// Is what follows the last record: the remains of a line, or a line without its line feed.
#[derive(Clone, Copy)]
pub(super) struct Torn {
    pub(super) hash: LineHash,
    pub(super) bytes: usize,
    pub(super) is_ended: bool,
}

impl Tail {
    /// Reads backwards until a record is found.
    pub(super) fn read(file: &File, path: &Path) -> Result<Self, AuditError> {
        let failed = |source| AuditError::Open { path: path.to_owned(), source };
        let length = file.metadata().map_err(failed)?.len();
        let mut window = 16 * 1024;
        loop {
            let searched = length.min(window);
            let mut bytes = vec![0; usize::try_from(searched).expect("the window is small")];
            file.read_exact_at(&mut bytes, length - searched).map_err(failed)?;
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
                return Some(Self { last: Some(Last { head, unified: link.unified }), torn });
            }
            end = start;
        }
        is_whole.then(|| Self { last: None, torn: Torn::of(bytes) })
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
