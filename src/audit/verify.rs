//! Recomputes a chain and names the first bad line (A17).

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::entry::Link;
use super::{CLOISTERS_FOLDER, Head, LineHash, unified_file};

/// Says what an unbroken chain holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Verified {
    /// The last record.
    pub head: Head,
    /// How many records there are.
    pub records: u64,
    /// How many of them close the remains of a crash.
    pub recoveries: u64,
}

/// Says why a chain can't be trusted.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The file can't be read.
    #[error("cannot read the audit file `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A line breaks the chain.
    #[error("cannot verify the audit file `{}`: line {line} {problem}", path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// The number of the line, from 1.
        line: u64,
        /// What is wrong with it.
        problem: Problem,
    },
    /// The expected head lies behind the end.
    #[error(
        "cannot verify the audit file `{}`: it ends at record {last}, but record {expected} was there; the end was cut off",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The number of the last record.
        last: u64,
        /// The number of the expected head.
        expected: u64,
    },
}

/// Says what is wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It can't be read, and no record `audit.recovered` follows.
    #[error("is no record, and the log does not say that a crash tore it")]
    NotARecord,
    /// The last line has no line feed.
    #[error(
        "is not complete: a crash tore it (the guardian closes it when it starts), or the end was cut off"
    )]
    Torn,
    /// It does not follow the line before.
    #[error("does not follow the line before: that line was changed, added or removed")]
    WrongPrev,
    /// Records are missing before it.
    #[error("has number {found} instead of {expected}: records before it are missing")]
    Missing {
        /// The number that should come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// A number comes again.
    #[error("has number {found} instead of {expected}: a record is there twice")]
    Duplicate {
        /// The number that should come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// A record `audit.recovered` does not name the last whole line.
    #[error("closes a torn line, but names another line as the last whole one")]
    WrongRecovery,
    /// The record with the expected head's number is another one.
    #[error("is not the record of the expected head: the log was rewritten")]
    WrongHead,
}

/// Reads a whole file and checks every link; with an expected head also that its end is still there.
///
/// # Errors
/// The first bad line, or the missing end.
pub fn verify(path: &Path, expect: Option<Head>) -> Result<Verified, VerifyError> {
    match File::open(path) {
        Ok(file) => verify_lines(BufReader::new(file), path, expect),
        Err(source) => Err(VerifyError::Read { path: path.to_owned(), source }),
    }
}

/// Checks lines that are called `path` in errors.
pub(super) fn verify_lines(
    mut lines: impl BufRead,
    path: &Path,
    expect: Option<Head>,
) -> Result<Verified, VerifyError> {
    let failed = |source| VerifyError::Read { path: path.to_owned(), source };
    let mut walk = Walk::new(expect);
    let mut number = 0;
    let mut line = Vec::new();
    let bad = |line, problem| VerifyError::BadLine { path: path.to_owned(), line, problem };
    while lines.read_until(b'\n', &mut line).map_err(failed)? > 0 {
        number += 1;
        let Some(whole) = line.strip_suffix(b"\n") else {
            return Err(bad(number, Problem::Torn));
        };
        walk.step(number, whole).map_err(|(line, problem)| bad(line, problem))?;
        line.clear();
    }
    if let Some(remains) = walk.remains {
        return Err(bad(remains.first_line, Problem::NotARecord));
    }
    match expect {
        Some(head) if head.seq > walk.verified.head.seq => Err(VerifyError::Truncated {
            path: path.to_owned(),
            last: walk.verified.head.seq,
            expected: head.seq,
        }),
        _ => Ok(walk.verified),
    }
}

/// Is the outcome for one file of the log.
#[derive(Debug)]
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// What was found in it.
    pub outcome: Result<Verified, VerifyError>,
}

/// Verifies the unified file (against the expected head, if one is known) and every cloister's file in `dir`.
///
/// # Errors
/// When the directory can't be listed; what is wrong with a file stands in its report.
pub fn verify_all(dir: &Path, expect: Option<Head>) -> io::Result<Vec<FileReport>> {
    let unified = unified_file(dir);
    let mut reports = vec![FileReport { outcome: verify(&unified, expect), path: unified }];
    let mut paths = match fs::read_dir(dir.join(CLOISTERS_FOLDER)) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    paths.sort();
    reports.extend(paths.into_iter().map(|path| FileReport { outcome: verify(&path, None), path }));
    Ok(reports)
}

/// Is the state between two lines.
struct Walk {
    expect: Option<Head>,
    verified: Verified,
    remains: Option<Remains>,
}

/// Is a run of lines that are no records; only `audit.recovered` may follow.
struct Remains {
    first_line: u64,
    hash: Sha256,
}

impl Walk {
    const fn new(expect: Option<Head>) -> Self {
        let verified = Verified { head: Head::START, records: 0, recoveries: 0 };
        Self { expect, verified, remains: None }
    }

    fn step(&mut self, number: u64, line: &[u8]) -> Result<(), (u64, Problem)> {
        let Some(record) = Link::parse(line) else {
            self.remains = Some(match self.remains.take() {
                Some(remains) => {
                    Remains { hash: remains.hash.chain_update(b"\n").chain_update(line), ..remains }
                }
                None => Remains { first_line: number, hash: Sha256::new_with_prefix(line) },
            });
            return Ok(());
        };
        let before = match self.remains.take() {
            Some(remains) if record.is_recovery() => LineHash::from_digest(remains.hash),
            Some(remains) => return Err((remains.first_line, Problem::NotARecord)),
            None => self.verified.head.hash,
        };
        self.check(&record, before).map_err(|problem| (number, problem))?;
        self.verified.head = Head { seq: record.seq, hash: LineHash::of(line) };
        self.verified.records += 1;
        self.verified.recoveries += u64::from(record.is_recovery());
        match self.expect {
            Some(expect) if expect.seq == record.seq && expect != self.verified.head => {
                Err((number, Problem::WrongHead))
            }
            _ => Ok(()),
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
}
