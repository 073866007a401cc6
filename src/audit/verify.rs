//! Recomputes the chains, names the first bad line, and compares the chains with each other (A17).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::chain::{ChainFiles, split_name};
use super::log::is_written;
use super::{CLOISTERS_FOLDER, Head, unified_file};
use compare::Files;
#[cfg(test)]
use lines::LinePlace;
use lines::Lines;
use walk::Walk;

mod compare;
mod lines;
mod walk;

/// How long the cloisters' own files and the unified one may be apart while the guardian writes; see the keeper.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often all is verified again while rotation removes what is read.
const MAX_TRIES: usize = 3;
/// Bounds the files that are held open against rotation.
const MAX_HELD: usize = 256;

/// Says what an unbroken chain holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Verified {
    /// The last record.
    pub head: Head,
    /// The number of the oldest record that is kept.
    pub oldest: u64,
    /// How many records there are.
    pub records: u64,
    /// How many of them close the remains of a crash.
    pub recoveries: u64,
    /// With an expected head: the last record that the log says was removed after that head.
    pub removed_since: Option<u64>,
    /// Whether the last record is `guardian.stop`: the guardian has written all copies and closed the log in order.
    pub is_closed: bool,
    /// In a cloister's own file: how many records it lacks at its end, which the guardian is going to copy from the
    /// unified file.
    pub behind: u64,
}

/// Says how the guardian that runs writes the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// It writes what it has to, or there is none.
    Steady,
    /// It says that it can't write what it holds in memory, and that nobody else has changed the files.
    Failing,
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
    /// The file that is written is not there.
    #[error(
        "cannot verify the audit file `{}`: it is missing, and other files of the log are there: somebody removed it \
         (only after a crash in the middle of a rotation the next start of the guardian puts it back)",
        path.display()
    )]
    Gone {
        /// The file.
        path: PathBuf,
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
    /// The expected head was removed with the file that held it.
    #[error(
        "cannot verify the audit file `{}`: the expected record {expected} was removed by rotation, the oldest one is \
         {oldest}; note a newer head",
        path.display()
    )]
    Removed {
        /// The current file.
        path: PathBuf,
        /// The number of the expected head.
        expected: u64,
        /// The number of the oldest record.
        oldest: u64,
    },
    /// A cloister's own file and the unified one don't tell the same.
    #[error("cannot verify the audit file `{}`: {difference}", path.display())]
    Differs {
        /// The cloister's own file.
        path: PathBuf,
        /// How they differ.
        difference: Difference,
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

/// Says how a cloister's own file and the unified one differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The own file lacks a record.
    #[error("record {unified} of the unified file is missing in it: its end was cut off, or it was removed")]
    MissingHere {
        /// The record's number in the unified file.
        unified: u64,
    },
    /// The unified file lacks a record.
    #[error("its record {own} is missing in the unified file, whose record {unified} it was")]
    MissingThere {
        /// The record's number in the own file.
        own: u64,
        /// The record's number in the unified file.
        unified: u64,
    },
    /// The own file does not say whose copy a record is.
    #[error("its record {own} can't be compared: it does not name the unified file's record")]
    Unnamed {
        /// The record's number in the own file.
        own: u64,
    },
    /// Both have it, with different words.
    #[error("its record {own} says something else than record {unified} of the unified file")]
    Other {
        /// The record's number in the own file.
        own: u64,
        /// The record's number in the unified file.
        unified: u64,
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

/// Reads all files of a chain, given by the current one, and checks every link; with an expected head also that its
/// end is still there. Works in constant memory. While a guardian writes, the last line may be on its way, and what
/// rotation removes meanwhile is read again, a few times.
///
/// # Errors
/// The first bad line, or the missing end.
pub fn verify(current: &Path, expect: Option<Head>) -> Result<Verified, VerifyError> {
    let ending = Ending::of(current.parent().unwrap_or(current));
    let mut outcome = verify_written(current, expect, ending);
    for _ in 1..MAX_TRIES {
        if ending == Ending::Whole || !outcome.as_ref().is_err_and(VerifyError::may_pass) {
            break;
        }
        outcome = verify_written(current, expect, ending);
    }
    outcome
}

/// Verifies a chain whose current file has to be there.
fn verify_written(current: &Path, expect: Option<Head>, ending: Ending) -> Result<Verified, VerifyError> {
    let lines = written_lines(current)?.hold(&mut { MAX_HELD })?;
    verify_chain(lines, expect, ending)
}

/// Lists a chain whose current file has to be there.
fn written_lines(current: &Path) -> Result<Lines, VerifyError> {
    let gone = || VerifyError::Gone { path: current.to_owned() };
    match Lines::of(&ChainFiles::of(current)) {
        Ok(lines) if lines.has_current() => Ok(lines),
        Ok(_) => Err(gone()),
        Err(error) if error.is_not_found() => Err(gone()),
        Err(error) => Err(error),
    }
}

/// Tells whether the last line may be on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Whole,
    Written,
}

impl Ending {
    /// Tells how the chains of the log in `dir` may end now.
    fn of(dir: &Path) -> Self {
        if is_written(dir) { Self::Written } else { Self::Whole }
    }
}

fn verify_chain(mut lines: Lines, expect: Option<Head>, ending: Ending) -> Result<Verified, VerifyError> {
    let mut walk = Walk::new(expect);
    while let Some(line) = lines.next()? {
        if let Some(whole) = line.bytes.strip_suffix(b"\n") {
            walk.step(line.place, whole)?;
        } else if ending == Ending::Whole || !line.is_last {
            return Err(line.place.bad(Problem::Torn));
        }
    }
    walk.finish(lines.path())
}

/// Checks lines that are called `path` in errors.
#[cfg(test)]
pub(super) fn verify_lines(lines: &[u8], path: &Path, expect: Option<Head>) -> Result<Verified, VerifyError> {
    let mut walk = Walk::new(expect);
    for (line, number) in lines.split_inclusive(|byte| *byte == b'\n').zip(1..) {
        let place = LinePlace { path, line: number };
        match line.strip_suffix(b"\n") {
            Some(whole) => walk.step(place, whole)?,
            None => return Err(place.bad(Problem::Torn)),
        }
    }
    walk.finish(path)
}

/// Is the outcome for one chain of the log.
#[derive(Debug)]
pub struct FileReport {
    /// The chain's current file.
    pub path: PathBuf,
    /// What was found in the chain.
    pub outcome: Result<Verified, VerifyError>,
}

/// Verifies the unified chain (against the expected head, if one is known) and every cloister's chain in `dir`, and
/// compares them with each other. When rotation removes a file that is read, or a copy is behind while a guardian writes,
/// all is done again, a few times.
///
/// Of a guardian that was killed, or that can't write, an own file may lack its end, which the next one copies from the
/// unified file. So it is good, and [`behind`](Verified::behind), when the unified chain is good and not closed in
/// order (or the `writer` is failing), what is there is a whole beginning, and what is missing lies in the end of the
/// unified chain that the next guardian reads. Whoever cuts so much off an own file hides nothing by it: each missing
/// record stands in the unified chain, which is verified to its head; the number of those missing is told; and the next
/// guardian puts them back. To be excused after a stop in order, he would have to cut the unified chain, too, and that
/// the noted head shows, as ever.
///
/// # Errors
/// When the directory can't be listed; what is wrong with a chain stands in its report.
pub fn verify_all(dir: &Path, expect: Option<Head>, writer: Writer) -> io::Result<Vec<FileReport>> {
    let ending = Ending::of(dir);
    let mut reports = verify_once(dir, expect, ending, writer)?;
    for _ in 1..MAX_TRIES {
        let may_pass = |report: &FileReport| report.outcome.as_ref().is_err_and(VerifyError::may_pass);
        if ending == Ending::Whole || !reports.iter().any(may_pass) {
            break;
        }
        reports = verify_once(dir, expect, ending, writer)?;
    }
    Ok(reports)
}

fn verify_once(
    dir: &Path,
    expect: Option<Head>,
    ending: Ending,
    writer: Writer,
) -> io::Result<Vec<FileReport>> {
    let unified = unified_file(dir);
    let outcome = verify_written(&unified, expect, ending);
    let complete = match (ending, &outcome) {
        (Ending::Whole, _) => u64::MAX,
        (Ending::Written, Ok(verified)) => verified.head.seq,
        (Ending::Written, Err(_)) => 0,
    };
    let may_lag = match (ending, &outcome) {
        (Ending::Whole, Ok(verified)) => !verified.is_closed,
        (Ending::Written, Ok(_)) => writer == Writer::Failing,
        (_, Err(_)) => false,
    };
    let mut reports = vec![FileReport { outcome, path: unified.clone() }];
    let mut owns = BTreeMap::new();
    let mut room = MAX_HELD;
    // The own files follow the unified one: what was read of it is in them by now.
    wait(ending);
    for stem in stems(&dir.join(CLOISTERS_FOLDER))? {
        let path = dir.join(CLOISTERS_FOLDER).join(format!("{stem}.jsonl"));
        let lines = Lines::of(&ChainFiles::of(&path)).and_then(|lines| lines.hold(&mut room));
        let outcome = lines.and_then(|lines| {
            owns.insert(path.clone(), lines.again());
            verify_chain(lines, None, ending)
        });
        reports.push(FileReport { path, outcome });
    }
    // A buffer of an own file may be written before the unified one's: what was read of them is in that one by now.
    wait(ending);
    match written_lines(&unified).and_then(|lines| lines.hold(&mut { MAX_HELD })) {
        Ok(unified) => compare::compare(&Files { dir, unified, owns, complete, may_lag }, &mut reports),
        Err(error) => compare::enter(&mut reports, unified, error),
    }
    Ok(reports)
}

fn wait(ending: Ending) {
    if ending == Ending::Written {
        thread::sleep(PATIENCE);
    }
}

impl VerifyError {
    /// Tells whether this may come from what was written at the same time: a rotation, or a copy that a slow disk
    /// keeps back. What is really missing is missing the next time, too.
    fn may_pass(&self) -> bool {
        match self {
            Self::Read { source, .. } => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy)
            }
            Self::Gone { .. } => true,
            Self::Differs { difference, .. } => {
                matches!(difference, Difference::MissingHere { .. } | Difference::MissingThere { .. })
            }
            _ => false,
        }
    }

    fn is_not_found(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Names the chains of a folder.
fn stems(folder: &Path) -> io::Result<BTreeSet<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    let mut stems = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        stems.extend(name.to_str().and_then(split_name).map(|(stem, _)| stem.to_owned()));
    }
    Ok(stems)
}
