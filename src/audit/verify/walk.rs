//! One walk over the lines of a chain.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::lines::LinePlace;
use super::{Problem, Verified, VerifyError};
use crate::audit::entry::Link;
use crate::audit::{Head, LineHash};

/// Is the state between two lines.
pub(super) struct Walk {
    expect: Option<Head>,
    verified: Verified,
    remains: Option<Remains>,
    /// Where the chain begins, when not with its first record.
    front: Option<Front>,
}

/// Is a run of lines that are no records; only `audit.recovered` may follow.
struct Remains {
    path: PathBuf,
    first_line: u64,
    hash: Sha256,
}

/// Is a beginning in the middle, good only when the log says that rotation removed what was before.
struct Front {
    path: PathBuf,
    line: u64,
    /// The last record that is missing.
    before: Head,
    is_explained: bool,
}

impl Walk {
    pub(super) const fn new(expect: Option<Head>) -> Self {
        let verified = Verified {
            head: Head::START,
            oldest: 1,
            records: 0,
            recoveries: 0,
            removed_since: None,
            is_closed: false,
            behind: 0,
        };
        Self { expect, verified, remains: None, front: None }
    }

    pub(super) fn step(&mut self, place: LinePlace<'_>, line: &[u8]) -> Result<(), VerifyError> {
        let Some(record) = Link::parse(line) else {
            self.remains = Some(match self.remains.take() {
                Some(remains) => {
                    Remains { hash: remains.hash.chain_update(b"\n").chain_update(line), ..remains }
                }
                None => Remains {
                    path: place.path.to_owned(),
                    first_line: place.line,
                    hash: Sha256::new_with_prefix(line),
                },
            });
            return Ok(());
        };
        let is_first = self.verified.records == 0 && self.remains.is_none();
        if is_first && record.seq > 1 {
            self.begin_at(&record, place);
        }
        let before = match self.remains.take() {
            Some(remains) if record.is_recovery() => LineHash::from_digest(remains.hash),
            Some(remains) => return Err(remains.bad()),
            None => self.verified.head.hash,
        };
        self.check(&record, before).map_err(|problem| place.bad(problem))?;
        self.explain(&record);
        if self.expect.is_some_and(|expect| record.seq > expect.seq) {
            self.verified.removed_since =
                record.removal().map(|last| last.seq).or(self.verified.removed_since);
        }
        self.verified.head = Head { seq: record.seq, hash: LineHash::of(line) };
        self.verified.records += 1;
        self.verified.is_closed = record.is_stop();
        self.verified.recoveries += u64::from(record.is_recovery());
        match self.expect {
            Some(expect) if expect.seq == record.seq && expect != self.verified.head => {
                Err(place.bad(Problem::WrongHead))
            }
            _ => Ok(()),
        }
    }

    fn begin_at(&mut self, record: &Link, place: LinePlace<'_>) {
        let before = Head { seq: record.seq - 1, hash: record.prev };
        self.front =
            Some(Front { path: place.path.to_owned(), line: place.line, before, is_explained: false });
        self.verified.head = before;
        self.verified.oldest = record.seq;
    }

    /// Takes the log's own word for what rotation removed. A crash may have kept some of the files.
    fn explain(&mut self, record: &Link) {
        if let (Some(front), Some(removed)) = (&mut self.front, record.removal()) {
            front.is_explained |= removed == front.before || removed.seq > front.before.seq;
        }
    }

    fn check(&self, record: &Link, before: LineHash) -> Result<(), Problem> {
        let expected = self.verified.head.seq + 1;
        match record.seq {
            found if found > expected => return Err(Problem::Missing { expected, found }),
            found if found < expected => return Err(Problem::Duplicate { expected, found }),
            _ => {}
        }
        if record.prev != before {
            return Err(Problem::WrongPrev);
        }
        if record.is_recovery() && record.recovers != Some(self.verified.head.hash) {
            return Err(Problem::WrongRecovery);
        }
        Ok(())
    }

    /// Judges the chain as a whole; `path` is its newest file.
    pub(super) fn finish(self, path: &Path) -> Result<Verified, VerifyError> {
        if let Some(remains) = self.remains {
            return Err(remains.bad());
        }
        let Verified { head, oldest, .. } = self.verified;
        if let Some(front) = self.front.filter(|front| !front.is_explained) {
            let problem = Problem::Missing { expected: 1, found: oldest };
            return Err(LinePlace { path: &front.path, line: front.line }.bad(problem));
        }
        match self.expect {
            Some(expect) if expect.seq > head.seq => {
                Err(VerifyError::Truncated { path: path.to_owned(), last: head.seq, expected: expect.seq })
            }
            Some(expect) if expect.seq > 0 && expect.seq < oldest => {
                Err(VerifyError::Removed { path: path.to_owned(), expected: expect.seq, oldest })
            }
            _ => Ok(self.verified),
        }
    }
}

impl Remains {
    fn bad(&self) -> VerifyError {
        LinePlace { path: &self.path, line: self.first_line }.bad(Problem::NotARecord)
    }
}
