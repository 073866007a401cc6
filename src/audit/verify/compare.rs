//! Compares the cloisters' own files with the unified one, as far back as both reach.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::lines::Lines;
use super::{Difference, Ending, FileReport, VerifyError};
use crate::audit::chain::ChainFiles;
use crate::audit::cloister_file;
use crate::audit::entry::{Link, shared_parts};
use crate::name::CloisterName;

/// How many own files are open at a time; each run over the unified file compares so many.
const MAX_OPEN: usize = 128;

/// Enters every difference in the report of the own file, unless that one is bad already.
pub(super) fn compare(dir: &Path, unified: &Lines, ending: Ending, reports: &mut Vec<FileReport>) {
    let mut done: Option<CloisterName> = None;
    let mut compared = BTreeSet::new();
    let (oldest, newest) = loop {
        let mut lines = unified.again();
        let mut run = Run { dir, after: done.as_ref(), owns: BTreeMap::new(), oldest: None, newest: 0 };
        // What can't be read stands in the unified file's own report.
        while let Ok(Some(line)) = lines.next() {
            run.step(line.bytes);
        }
        let Run { owns, newest, oldest, .. } = run;
        let is_more = owns.len() == MAX_OPEN;
        done = owns.keys().next_back().cloned();
        for own in owns.into_values() {
            let path = own.path.clone();
            compared.insert(path.clone());
            if let Some(error) = own.finish(oldest, newest, ending) {
                enter(reports, path, error);
            }
        }
        if !is_more {
            break (oldest, newest);
        }
    };
    // The unified file names none of these cloisters.
    let others = reports.iter().skip(1).map(|report| report.path.clone());
    for path in others.filter(|path| !compared.contains(path)).collect::<Vec<_>>() {
        if let Some(error) = Own::open(&path).finish(oldest, newest, ending) {
            enter(reports, path, error);
        }
    }
}

fn enter(reports: &mut Vec<FileReport>, path: PathBuf, error: VerifyError) {
    match reports.iter_mut().find(|report| report.path == path) {
        Some(report) if report.outcome.is_ok() => report.outcome = Err(error),
        Some(_) => {}
        None => reports.push(FileReport { path, outcome: Err(error) }),
    }
}

/// Is one run over the unified file.
struct Run<'a> {
    dir: &'a Path,
    /// The last cloister of the run before.
    after: Option<&'a CloisterName>,
    owns: BTreeMap<CloisterName, Own>,
    /// The first record of the unified file that is kept.
    oldest: Option<u64>,
    /// The last one.
    newest: u64,
}

impl Run<'_> {
    fn step(&mut self, line: &[u8]) {
        let Some(record) = Link::parse(line) else { return };
        let oldest = *self.oldest.get_or_insert(record.seq);
        self.newest = record.seq;
        if record.own_file == Some(false) || record.is_about_its_chain() {
            return;
        }
        let Some(name) = record.cloister.filter(|name| self.after.is_none_or(|after| name > after)) else {
            return;
        };
        let (dir, has_room) = (self.dir, self.owns.len() < MAX_OPEN);
        let own = match self.owns.entry(name) {
            Entry::Occupied(own) => own.into_mut(),
            Entry::Vacant(vacant) if has_room => {
                let own = Own::open(&cloister_file(dir, vacant.key()));
                vacant.insert(own)
            }
            // The names are taken in their order: the last one makes place for one before it.
            Entry::Vacant(vacant) => {
                let name = vacant.key().clone();
                if self.owns.keys().next_back().is_none_or(|last| *last < name) {
                    return;
                }
                self.owns.pop_last();
                let own = Own::open(&cloister_file(dir, &name));
                self.owns.entry(name).or_insert(own)
            }
        };
        own.step(record.seq, line, oldest);
    }
}

/// Is one own file, read in step with the unified one.
struct Own {
    path: PathBuf,
    /// `None` when it can't be read: its own report says why.
    lines: Option<Lines>,
    next: Option<Copy>,
    /// The first record of the unified file that has to be here.
    begin: u64,
    difference: Option<Difference>,
}

/// Is one record of an own file.
struct Copy {
    own: u64,
    unified: u64,
    line: Vec<u8>,
}

impl Own {
    fn open(path: &Path) -> Self {
        let lines = Lines::of(&ChainFiles::of(path)).ok();
        let mut own = Self { path: path.to_owned(), lines, next: None, begin: 0, difference: None };
        own.begin = own.find_begin().unwrap_or(0);
        own.lines = own.lines.map(|lines| lines.again());
        own.next = own.read();
        own
    }

    /// Finds where the file begins to tell; a file from its first record on has to tell everything.
    fn find_begin(&mut self) -> Option<u64> {
        let lines = self.lines.as_mut()?;
        while let Some(line) = lines.next().ok()? {
            let Some(link) = Link::parse(line.bytes) else { continue };
            match link.unified {
                Some(_) if link.seq == 1 => return Some(0),
                Some(unified) if link.is_about_its_chain() => return Some(unified + 1),
                Some(unified) => return Some(unified),
                // Records of a version that did not name the unified file's can't be compared.
                None => {}
            }
        }
        None
    }

    fn read(&mut self) -> Option<Copy> {
        let lines = self.lines.as_mut()?;
        loop {
            let line = lines.next().ok()??;
            let Some(record) = Link::parse(line.bytes).filter(|record| !record.is_about_its_chain()) else {
                continue;
            };
            if let Some(unified) = record.unified {
                return Some(Copy { own: record.seq, unified, line: line.bytes.to_owned() });
            }
        }
    }

    /// Compares with one record of the unified file, whose oldest record is `oldest`.
    fn step(&mut self, unified: u64, line: &[u8], oldest: u64) {
        while self.difference.is_none()
            && let Some(copy) = self.next.take_if(|copy| copy.unified < unified)
        {
            self.miss(&copy, oldest);
            self.next = self.read();
        }
        if self.difference.is_some() || unified < self.begin {
            return;
        }
        self.difference = match self.next.take_if(|copy| copy.unified == unified) {
            Some(copy) if is_same(&copy.line, line) => None,
            Some(copy) => Some(Difference::Other { own: copy.own, unified }),
            None => Some(Difference::MissingHere { unified }),
        };
        if self.next.is_none() {
            self.next = self.read();
        }
    }

    /// Notes a record that the unified file lacks, unless rotation removed it there.
    fn miss(&mut self, copy: &Copy, oldest: u64) {
        if copy.unified >= oldest {
            self.difference = Some(Difference::MissingThere { own: copy.own, unified: copy.unified });
        }
    }

    fn finish(mut self, oldest: Option<u64>, newest: u64, ending: Ending) -> Option<VerifyError> {
        while self.difference.is_none()
            && let Some(copy) = self.next.take()
        {
            // While the guardian writes, the own file may be ahead of what was read of the unified one.
            if copy.unified <= newest || ending == Ending::Whole {
                self.miss(&copy, oldest.unwrap_or(0));
            }
            self.next = self.read();
        }
        let Self { path, difference, .. } = self;
        difference.map(|difference| VerifyError::Differs { path, difference })
    }
}

fn is_same(one: &[u8], other: &[u8]) -> bool {
    let (one, other) = (one.trim_ascii_end(), other.trim_ascii_end());
    shared_parts(one).is_some_and(|parts| shared_parts(other) == Some(parts))
}
