//! The lines of all files of a chain, as far as they were written when the reading began.

use std::collections::VecDeque;
use std::fs::{self, File, Metadata};
use std::io::{self, BufRead, BufReader, Read, Take};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Problem, VerifyError};
use crate::audit::chain::ChainFiles;

/// How often a chain is listed again that is rotated at the same time.
const MAX_LISTINGS: usize = 10;

/// Gives the lines of a chain, one after the other.
pub(super) struct Lines {
    chain: ChainFiles,
    /// The files in their order.
    files: Vec<Part>,
    rest: VecDeque<Part>,
    open: Option<(PathBuf, BufReader<Take<File>>)>,
    number: u64,
    line: Vec<u8>,
}

/// Is a file of the chain as it was listed.
#[derive(Debug, Clone)]
struct Part {
    path: PathBuf,
    inode: u64,
    /// Up to where it is read.
    length: u64,
}

impl Part {
    fn new(path: PathBuf, metadata: &Metadata) -> Self {
        Self { path, inode: metadata.ino(), length: metadata.len() }
    }

    /// Opens the file that was listed, by the name that it has now: a rotation may have renamed it.
    fn open(&mut self, chain: &ChainFiles) -> io::Result<File> {
        let is_it = |file: &File| Ok::<_, io::Error>(file.metadata()?.ino() == self.inode);
        match File::open(&self.path) {
            Ok(file) if is_it(&file)? => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        for full in chain.list_full()? {
            let file = File::open(&full.path)?;
            if is_it(&file)? {
                self.path = full.path;
                return Ok(file);
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "it was removed meanwhile"))
    }
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
        Ok(Self::new(chain.clone(), files))
    }

    fn new(chain: ChainFiles, files: Vec<Part>) -> Self {
        let rest = files.iter().cloned().collect();
        Self { chain, rest, files, open: None, number: 0, line: Vec::new() }
    }

    /// Begins anew, with what was there when these were begun.
    pub(super) fn again(&self) -> Self {
        Self::new(self.chain.clone(), self.files.clone())
    }

    /// Names the chain's newest file.
    pub(super) fn path(&self) -> &Path {
        self.files.last().map_or(Path::new(""), |part| &part.path)
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
            let Some(mut part) = self.rest.pop_front() else { return Ok(None) };
            let opened = part.open(&self.chain);
            let file = opened.map_err(|source| VerifyError::Read { path: part.path.clone(), source })?;
            self.open = Some((part.path, BufReader::new(file.take(part.length))));
            self.number = 0;
        }
        self.number += 1;
        let path = self.open.as_ref().map_or(Path::new(""), |(path, _)| path);
        let place = LinePlace { path, line: self.number };
        Ok(Some(Line { place, bytes: &self.line, is_last: self.rest.is_empty() }))
    }
}

/// Lists the files with their lengths. A rotation meanwhile shows by the name of the newest full one.
fn snapshot(chain: &ChainFiles) -> io::Result<Vec<Part>> {
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
                    files.push(Part::new(full.path, &metadata));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => is_settled = false,
                Err(error) => return Err(error),
            }
        }
        if current.is_none() && files.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        if is_settled {
            files.extend(current.map(|current| Part::new(chain.current().to_owned(), &current)));
            return Ok(files);
        }
    }
    Err(io::Error::other("its files change faster than they can be listed"))
}
