//! The lines of all files of a chain, as far as they were written when the reading began.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Take};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Problem, VerifyError};
use crate::audit::chain::ChainFiles;

/// How often a chain is listed again that is rotated at the same time.
const MAX_LISTINGS: usize = 10;

/// Gives the lines of a chain, one after the other.
pub(super) struct Lines {
    /// The files in their order, with the length up to which they are read.
    files: Vec<(PathBuf, u64)>,
    rest: VecDeque<(PathBuf, u64)>,
    open: Option<(PathBuf, BufReader<Take<File>>)>,
    number: u64,
    line: Vec<u8>,
}

/// Is one line with its line feed, and where it stands.
pub(super) struct Line<'a> {
    pub(super) place: LinePlace<'a>,
    pub(super) bytes: &'a [u8],
    /// Whether it stands in the last file.
    pub(super) is_last: bool,
}

/// Says where a line stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinePlace<'a> {
    pub(super) path: &'a Path,
    pub(super) line: u64,
}

impl LinePlace<'_> {
    pub(super) fn bad(self, problem: Problem) -> VerifyError {
        VerifyError::BadLine { path: self.path.to_owned(), line: self.line, problem }
    }
}

impl Lines {
    pub(super) fn of(chain: &ChainFiles) -> Result<Self, VerifyError> {
        let failed = |source| VerifyError::Read { path: chain.current().to_owned(), source };
        let files = snapshot(chain).map_err(failed)?;
        Ok(Self::new(files))
    }

    fn new(files: Vec<(PathBuf, u64)>) -> Self {
        Self { rest: files.iter().cloned().collect(), files, open: None, number: 0, line: Vec::new() }
    }

    /// Begins anew, with what was there when these were begun.
    pub(super) fn again(&self) -> Self {
        Self::new(self.files.clone())
    }

    /// Names the chain's newest file.
    pub(super) fn path(&self) -> &Path {
        self.files.last().map_or(Path::new(""), |(path, _)| path)
    }

    /// Gives the next line; the last one of a file may lack its line feed.
    pub(super) fn next(&mut self) -> Result<Option<Line<'_>>, VerifyError> {
        loop {
            self.line.clear();
            if let Some((path, file)) = &mut self.open {
                let read = file.read_until(b'\n', &mut self.line);
                read.map_err(|source| VerifyError::Read { path: path.clone(), source })?;
            }
            if !self.line.is_empty() {
                break;
            }
            let Some((path, length)) = self.rest.pop_front() else { return Ok(None) };
            let file =
                File::open(&path).map_err(|source| VerifyError::Read { path: path.clone(), source })?;
            self.open = Some((path, BufReader::new(file.take(length))));
            self.number = 0;
        }
        self.number += 1;
        let path = self.open.as_ref().map_or(Path::new(""), |(path, _)| path);
        let place = LinePlace { path, line: self.number };
        Ok(Some(Line { place, bytes: &self.line, is_last: self.rest.is_empty() }))
    }
}

/// Lists the files with their lengths. A rotation meanwhile shows by the name of the newest full one.
fn snapshot(chain: &ChainFiles) -> io::Result<Vec<(PathBuf, u64)>> {
    for _ in 0..MAX_LISTINGS {
        let current = match fs::metadata(chain.current()) {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut files = Vec::new();
        let mut is_settled = true;
        for full in chain.list_full()? {
            match fs::metadata(&full.path) {
                Ok(metadata) => {
                    is_settled &= current.as_ref().is_none_or(|current| current.ino() != metadata.ino());
                    files.push((full.path, metadata.len()));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => is_settled = false,
                Err(error) => return Err(error),
            }
        }
        if current.is_none() && files.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        if is_settled {
            files.extend(current.map(|current| (chain.current().to_owned(), current.len())));
            return Ok(files);
        }
    }
    Err(io::Error::other("its files change faster than they can be listed"))
}
