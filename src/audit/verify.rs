//! Recomputes the chains, names the first bad line, and compares the chains with each other (A17).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::chain::{ChainFiles, split_name};
use super::log::is_written;
use super::{CLOISTERS_FOLDER, Head, unified_file};
#[cfg(test)]
use lines::LinePlace;
use lines::Lines;
use walk::Walk;

mod compare;
mod lines;
mod walk;

/// How long the cloisters' own files may be behind the unified one while the guardian writes; see the keeper.
const PATIENCE: Duration = Duration::from_millis(500);

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
/// end is still there. Works in constant memory.
///
/// # Errors
/// The first bad line, or the missing end.
pub fn verify(current: &Path, expect: Option<Head>) -> Result<Verified, VerifyError> {
    let lines = Lines::of(&ChainFiles::of(current))?;
    verify_chain(lines, expect, Ending::Whole)
}

/// Tells whether the last line may be on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Whole,
    Written,
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
/// compares them with each other.
///
/// # Errors
/// When the directory can't be listed; what is wrong with a chain stands in its report.
pub fn verify_all(dir: &Path, expect: Option<Head>) -> io::Result<Vec<FileReport>> {
    let ending = if is_written(dir) { Ending::Written } else { Ending::Whole };
    let unified = unified_file(dir);
    let lines = Lines::of(&ChainFiles::of(&unified));
    if ending == Ending::Written {
        // The cloisters' own files follow the unified one.
        std::thread::sleep(PATIENCE);
    }
    let copy = lines.as_ref().ok().map(Lines::again);
    let outcome = lines.and_then(|lines| verify_chain(lines, expect, ending));
    let mut reports = vec![FileReport { outcome, path: unified }];
    for stem in stems(&dir.join(CLOISTERS_FOLDER))? {
        let path = dir.join(CLOISTERS_FOLDER).join(format!("{stem}.jsonl"));
        let lines = Lines::of(&ChainFiles::of(&path));
        reports.push(FileReport { outcome: lines.and_then(|lines| verify_chain(lines, None, ending)), path });
    }
    if let Some(copy) = copy {
        compare::compare(dir, &copy, ending, &mut reports);
    }
    Ok(reports)
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
