//! Compares the cloisters' own files with the unified one, as far back as both reach.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::lines::Lines;
use super::{Difference, FileReport, VerifyError};
use crate::audit::entry::{Link, shared_parts};
use crate::audit::log::WINDOW_BYTES;
use crate::audit::{cloister_file, unified_file};
use crate::name::CloisterName;

/// How many own files are open at a time; each run over the unified file compares so many.
const MAX_OPEN: usize = 128;

/// Is what is compared, as it was listed.
pub(super) struct Files<'a> {
    pub(super) dir: &'a Path,
    /// The unified file, listed after the others: whatever they copy has to be here.
    pub(super) unified: Lines,
    /// The own files that can be read, by their path.
    pub(super) owns: BTreeMap<PathBuf, Lines>,
    /// Up to which record of the unified file the others have to be complete.
    pub(super) complete: u64,
    /// Whether the next guardian may still have to copy what is missing at their ends.
    pub(super) may_lag: bool,
}

/// Enters every difference in the report of the own file, unless that one is bad already, and how far it is behind.
pub(super) fn compare(files: &Files<'_>, reports: &mut Vec<FileReport>) {
    let mut done: Option<CloisterName> = None;
    let mut compared = BTreeSet::new();
    let oldest = loop {
        let mut run = Run { files, after: done.as_ref(), owns: BTreeMap::new(), oldest: None, bytes: 0 };
        if let Err(error) = run.read() {
            return enter(reports, unified_file(files.dir), error);
        }
        let Run { owns, oldest, bytes, .. } = run;
        let is_more = owns.len() == MAX_OPEN;
        done = owns.keys().next_back().cloned();
        for own in owns.into_values() {
            let path = own.path.clone();
            compared.insert(path.clone());
            match own.finish(oldest, bytes) {
                Ok(behind) => enter_behind(reports, &path, behind),
                Err(error) => enter(reports, path, error),
            }
        }
        if !is_more {
            break oldest;
        }
    };
    // The unified file names none of these cloisters.
    let others = reports.iter().skip(1).map(|report| report.path.clone());
    for path in others.filter(|path| !compared.contains(path)).collect::<Vec<_>>() {
        if let Err(error) = Own::open(files, path.clone()).finish(oldest, 0) {
            enter(reports, path, error);
        }
    }
}

pub(super) fn enter(reports: &mut Vec<FileReport>, path: PathBuf, error: VerifyError) {
    match reports.iter_mut().find(|report| report.path == path) {
        Some(report) if report.outcome.is_ok() => report.outcome = Err(error),
        Some(_) => {}
        None => reports.push(FileReport { path, outcome: Err(error) }),
    }
}

fn enter_behind(reports: &mut [FileReport], path: &Path, behind: u64) {
    let report = reports.iter_mut().find(|report| report.path == path);
    if let Some(verified) = report.and_then(|report| report.outcome.as_mut().ok()) {
        verified.behind = behind;
    }
}

/// Is one run over the unified file.
struct Run<'a> {
    files: &'a Files<'a>,
    /// The last cloister of the run before.
    after: Option<&'a CloisterName>,
    owns: BTreeMap<CloisterName, Own>,
    /// The first record of the unified file that is kept.
    oldest: Option<u64>,
    /// How many bytes of it were read.
    bytes: u64,
}

impl Run<'_> {
    fn read(&mut self) -> Result<(), VerifyError> {
        let mut lines = self.files.unified.again();
        while let Some(line) = lines.next()? {
            self.step(line.bytes);
            self.bytes += line.bytes.len() as u64;
        }
        Ok(())
    }

    fn step(&mut self, line: &[u8]) {
        let Some(record) = Link::parse(line) else { return };
        let oldest = *self.oldest.get_or_insert(record.seq);
        if record.own_file == Some(false) || record.is_about_its_chain() {
            return;
        }
        let Some(name) = record.cloister.filter(|name| self.after.is_none_or(|after| name > after)) else {
            return;
        };
        let original = Original { seq: record.seq, start: self.bytes, line };
        let (files, has_room) = (self.files, self.owns.len() < MAX_OPEN);
        let own = match self.owns.entry(name) {
            Entry::Occupied(own) => own.into_mut(),
            Entry::Vacant(vacant) if has_room => {
                let own = Own::open(files, cloister_file(files.dir, vacant.key()));
                vacant.insert(own)
            }
            // The names are taken in their order: the last one makes place for one before it.
            Entry::Vacant(vacant) => {
                let name = vacant.key().clone();
                if self.owns.keys().next_back().is_none_or(|last| *last < name) {
                    return;
                }
                self.owns.pop_last();
                let own = Own::open(files, cloister_file(files.dir, &name));
                self.owns.entry(name).or_insert(own)
            }
        };
        own.step(&original, oldest);
    }
}

/// Is one record of the unified file.
struct Original<'a> {
    seq: u64,
    /// How many bytes of the chain stand before it.
    start: u64,
    line: &'a [u8],
}

/// Is what an own file lacks at its end.
struct Missing {
    /// The number of the first missing record in the unified file, and where that one begins.
    first: u64,
    start: u64,
    records: u64,
}

/// Is one own file, read in step with the unified one.
struct Own {
    path: PathBuf,
    /// `None` when it is not there or can't be read; its own report says why.
    lines: Option<Lines>,
    next: Option<Copy>,
    /// The first record of the unified file that has to be here.
    begin: u64,
    /// The last one.
    complete: u64,
    may_lag: bool,
    missing: Option<Missing>,
    /// What was found; then nothing more is read.
    error: Option<VerifyError>,
}

/// Is one record of an own file.
struct Copy {
    own: u64,
    unified: u64,
    line: Vec<u8>,
}

impl Own {
    fn open(files: &Files<'_>, path: PathBuf) -> Self {
        let lines = files.owns.get(&path).map(Lines::again);
        let (complete, may_lag) = (files.complete, files.may_lag);
        let mut own =
            Self { path, lines, next: None, begin: 0, complete, may_lag, missing: None, error: None };
        match own.find_begin() {
            Ok(begin) => own.begin = begin,
            Err(error) => own.error = Some(error),
        }
        own.lines = own.lines.map(|lines| lines.again());
        own.advance();
        own
    }

    /// Finds where the file begins to tell; a file from its first record on has to tell everything.
    fn find_begin(&mut self) -> Result<u64, VerifyError> {
        let Some(lines) = &mut self.lines else { return Ok(0) };
        while let Some(line) = lines.next()? {
            let Some(link) = Link::parse(line.bytes) else { continue };
            return Ok(match link.unified {
                Some(unified) if link.seq > 1 && link.is_about_its_chain() => unified + 1,
                Some(unified) if link.seq > 1 => unified,
                _ => 0,
            });
        }
        Ok(0)
    }

    fn advance(&mut self) {
        match self.read() {
            Ok(next) => self.next = next,
            Err(error) => (self.next, self.error) = (None, self.error.take().or(Some(error))),
        }
    }

    fn read(&mut self) -> Result<Option<Copy>, VerifyError> {
        let Some(lines) = &mut self.lines else { return Ok(None) };
        while let Some(line) = lines.next()? {
            let Some(record) = Link::parse(line.bytes).filter(|record| !record.is_about_its_chain()) else {
                continue;
            };
            let Some(unified) = record.unified else {
                let difference = Difference::Unnamed { own: record.seq };
                return Err(VerifyError::Differs { path: self.path.clone(), difference });
            };
            return Ok(Some(Copy { own: record.seq, unified, line: line.bytes.to_owned() }));
        }
        Ok(None)
    }

    /// Compares with one record of the unified file, whose oldest record is `oldest`.
    fn step(&mut self, original: &Original<'_>, oldest: u64) {
        let unified = original.seq;
        while self.error.is_none()
            && let Some(copy) = self.next.take_if(|copy| copy.unified < unified)
        {
            self.miss(&copy, oldest);
            self.advance();
        }
        if self.error.is_some() || unified < self.begin {
            return;
        }
        match self.next.take_if(|copy| copy.unified == unified) {
            Some(copy) if is_same(&copy.line, original.line) => self.advance(),
            Some(copy) => self.differ(Difference::Other { own: copy.own, unified }),
            // While the guardian writes, the unified file is ahead of what was read of this one.
            None if self.next.is_none() && unified > self.complete => {}
            None if self.next.is_none() => {
                let (first, start) = (unified, original.start);
                self.missing.get_or_insert(Missing { first, start, records: 0 }).records += 1;
            }
            None => self.differ(Difference::MissingHere { unified }),
        }
    }

    /// Notes a record that the unified file lacks, unless rotation removed it there.
    fn miss(&mut self, copy: &Copy, oldest: u64) {
        if copy.unified >= oldest {
            self.differ(Difference::MissingThere { own: copy.own, unified: copy.unified });
        }
    }

    fn differ(&mut self, difference: Difference) {
        self.error = Some(VerifyError::Differs { path: self.path.clone(), difference });
    }

    /// Gives how far it is behind a unified chain of so many bytes.
    fn finish(mut self, oldest: Option<u64>, bytes: u64) -> Result<u64, VerifyError> {
        while self.error.is_none()
            && let Some(copy) = self.next.take()
        {
            self.miss(&copy, oldest.unwrap_or(0));
            self.advance();
        }
        let behind = self.missing.take().map_or(0, |missing| {
            // A file that is not there at all was removed: it is made before the first record.
            let is_excused = self.may_lag && self.lines.is_some() && bytes - missing.start <= WINDOW_BYTES;
            if !is_excused && self.error.is_none() {
                self.differ(Difference::MissingHere { unified: missing.first });
            }
            missing.records
        });
        self.error.map_or(Ok(behind), Err)
    }
}

fn is_same(one: &[u8], other: &[u8]) -> bool {
    let (one, other) = (one.trim_ascii_end(), other.trim_ascii_end());
    shared_parts(one).is_some_and(|parts| shared_parts(other) == Some(parts))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::audit::chain::ChainFiles;
    use crate::audit::verify::verify;
    use crate::audit::{AuditLog, Event, Record, Storage};
    use crate::name::ProjectName;

    fn listed(path: &Path) -> Lines {
        Lines::of(&ChainFiles::of(path)).unwrap()
    }

    fn report(path: &Path) -> FileReport {
        FileReport { path: path.to_owned(), outcome: verify(path, None) }
    }

    #[test]
    fn a17_a_file_that_was_removed_meanwhile_is_an_error_of_its_report() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path();
        let name = CloisterName::of(&ProjectName::parse("demo").unwrap(), None).unwrap();
        let storage = Storage { per_cloister: true, max_bytes: 1 << 20, max_files: 1 };
        let log = AuditLog::open(dir, storage).unwrap();
        log.append(Record::new(Event::ProxyAllow).cloister(&name)).unwrap();
        drop(log);
        let paths = [unified_file(dir), cloister_file(dir, &name)];
        for (removed, other) in [(0, 1), (1, 0)] {
            let content = fs::read(&paths[removed]).unwrap();
            let owns = BTreeMap::from([(paths[1].clone(), listed(&paths[1]))]);
            let files = Files { dir, unified: listed(&paths[0]), owns, complete: u64::MAX, may_lag: false };
            let mut reports = paths.iter().map(|path| report(path)).collect();
            fs::remove_file(&paths[removed]).unwrap();
            compare(&files, &mut reports);
            assert!(reports[other].outcome.is_ok(), "{reports:?}");
            let error = reports[removed].outcome.as_ref().unwrap_err();
            assert!(error.may_pass() && matches!(error, VerifyError::Read { .. }), "{error}");
            fs::write(&paths[removed], content).unwrap();
        }
    }
}
