//! The lines of all files of a chain, as far as they were written when the reading began.
//!
//! Files that are held are read to their end, also when a rotation removes them meanwhile.

use std::collections::VecDeque;
use std::fs::{self, File, Metadata};
use std::io::{self, BufRead, BufReader, Read, Take};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::{Problem, VerifyError};
use crate::audit::chain::ChainFiles;

/// How often a chain is listed again that is rotated at the same time.
const MAX_LISTINGS: usize = 10;
/// How long a rotation gets to begin the next file before the listing is made again.
const ROTATION: Duration = Duration::from_millis(2);

/// Gives the lines of a chain, one after the other.
pub(super) struct Lines {
    chain: ChainFiles,
    /// The files in their order.
    files: Vec<Part>,
    rest: VecDeque<Part>,
    open: Option<(PathBuf, BufReader<Take<Shared>>)>,
    number: u64,
    line: Vec<u8>,
    has_current: bool,
}

/// Is a file of the chain as it was listed.
#[derive(Debug, Clone)]
struct Part {
    path: PathBuf,
    inode: u64,
    /// Up to where it is read.
    length: u64,
    held: Option<Arc<File>>,
}

/// Is a file that is read from its beginning, whoever else reads it.
struct Shared {
    file: Arc<File>,
    offset: u64,
}

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

impl Part {
    fn new(path: PathBuf, metadata: &Metadata) -> Self {
        Self { path, inode: metadata.ino(), length: metadata.len(), held: None }
    }

    /// Opens the file that was listed, by the name that it has now: a rotation may have renamed it.
    fn open(&mut self, chain: &ChainFiles) -> io::Result<Arc<File>> {
        if let Some(held) = &self.held {
            return Ok(Arc::clone(held));
        }
        if let Some(file) = self.open_as(&self.path)? {
            return Ok(file);
        }
        for full in chain.list_full()? {
            if let Some(file) = self.open_as(&full.path)? {
                self.path = full.path;
                return Ok(file);
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "it was removed meanwhile"))
    }

    /// Opens the file if it has this name.
    fn open_as(&self, path: &Path) -> io::Result<Option<Arc<File>>> {
        match File::open(path) {
            Ok(file) => Ok((file.metadata()?.ino() == self.inode).then(|| Arc::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
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
        let has_current = files.last().is_some_and(|part| part.path == chain.current());
        Ok(Self::new(chain.clone(), files, has_current))
    }

    fn new(chain: ChainFiles, files: Vec<Part>, has_current: bool) -> Self {
        let rest = files.iter().cloned().collect();
        Self { chain, rest, files, open: None, number: 0, line: Vec::new(), has_current }
    }

    /// Begins anew, with what was there when these were begun.
    pub(super) fn again(&self) -> Self {
        Self::new(self.chain.clone(), self.files.clone(), self.has_current)
    }

    /// Opens the files now, as long as there is room for them, so that no rotation takes them away.
    pub(super) fn hold(mut self, room: &mut usize) -> Result<Self, VerifyError> {
        for _ in 1..MAX_LISTINGS {
            let is_held = self.files.iter_mut().take(*room).all(|part| {
                part.held = part.open(&self.chain).ok();
                part.held.is_some()
            });
            if is_held {
                break;
            }
            self = Self::of(&self.chain)?;
        }
        *room = room.saturating_sub(self.files.len());
        Ok(self.again())
    }

    /// Tells whether the file that is written is there, and not only full ones.
    pub(super) const fn has_current(&self) -> bool {
        self.has_current
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
            self.open = Some((part.path, BufReader::new(Shared { file, offset: 0 }.take(part.length))));
            self.number = 0;
        }
        self.number += 1;
        let path = self.open.as_ref().map_or(Path::new(""), |(path, _)| path);
        let place = LinePlace { path, line: self.number };
        Ok(Some(Line { place, bytes: &self.line, is_last: self.rest.is_empty() }))
    }
}

/// Lists the files with their lengths.
///
/// A rotation meanwhile shows by the name of the newest full file; a removal by two lists that differ: what the log
/// says of it may stand behind the length that was seen.
fn snapshot(chain: &ChainFiles) -> io::Result<Vec<Part>> {
    for listing in 1..=MAX_LISTINGS {
        let before = chain.list_full()?;
        let current = part(chain.current())?;
        let mut files = Vec::new();
        let mut is_settled = true;
        for full in &before {
            let Some(part) = part(&full.path)? else {
                is_settled = false;
                continue;
            };
            is_settled &= current.as_ref().is_none_or(|current| current.inode != part.inode);
            files.push(part);
        }
        if current.is_none() && files.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        if current.is_none() && listing < MAX_LISTINGS {
            thread::sleep(ROTATION);
            continue;
        }
        if is_settled && chain.list_full()? == before {
            files.extend(current);
            return Ok(files);
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "its files change faster than they can be listed"))
}

/// Lists one file, if it is there.
fn part(path: &Path) -> io::Result<Option<Part>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(Part::new(path.to_owned(), &metadata))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
