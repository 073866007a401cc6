//! Gives the entries of a chain back, also while it grows.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};

pub use filter::{Filter, HostFilter, InvalidHostFilter};

use super::Entry;
use super::chain::{ChainFiles, FullFile};
use super::entry::Link;

mod filter;

/// Reads the entries of one chain in order, over all its files.
///
/// After the end the iterator gives nothing, and goes on when it is asked again after the chain has grown: that is how
/// `--follow` works, also when the next file was begun meanwhile. An incomplete last line is kept until its rest
/// arrives.
#[derive(Debug)]
pub struct Reader {
    files: ChainFiles,
    filter: Filter,
    open: Option<OpenFile>,
    line: Vec<u8>,
    /// The last record that was read, or the last one before the first that is to be read.
    last: u64,
}

#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    file: BufReader<File>,
    /// The number of the line that was read last.
    number: u64,
    /// Whether records are still written to it.
    is_current: bool,
    /// Records up to this one were read from another file.
    skipped: u64,
}

/// Says why an entry can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file can't be read.
    #[error("cannot read the audit file `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A line is no entry: the remains of a crash, or damage; reading can go on behind it.
    #[error("cannot read line {line} of the audit file `{}`", path.display())]
    NotAnEntry {
        /// The file.
        path: PathBuf,
        /// The number of the line, from 1.
        line: u64,
        /// What the decoder says.
        #[source]
        source: serde_json::Error,
    },
}

impl Reader {
    /// Opens a chain for reading, given by its current file.
    pub fn open(current: &Path, filter: Filter) -> Result<Self, ReadError> {
        let files = ChainFiles::of(current);
        let mut reader = Self { files, filter, open: None, line: Vec::new(), last: 0 };
        reader.skip_files().and_then(|()| reader.find_next()).map_err(|source| reader.failed(source))?;
        match reader.open {
            Some(_) => Ok(reader),
            None => Err(reader.failed(io::ErrorKind::NotFound.into())),
        }
    }

    fn failed(&self, source: io::Error) -> ReadError {
        let path = self.open.as_ref().map_or(self.files.current(), |open| &open.path);
        ReadError::Read { path: path.to_owned(), source }
    }

    /// Leaves out the full files that end before the time from which entries are wanted.
    fn skip_files(&mut self) -> io::Result<()> {
        let Some(since) = self.filter.since else { return Ok(()) };
        for pair in self.files.list_full()?.windows(2) {
            if first_time(&pair[1].path).is_none_or(|time| time >= since) {
                break;
            }
            self.last = pair[1].first - 1;
        }
        Ok(())
    }

    /// Reads the next whole line, or nothing at the end.
    fn next_entry(&mut self) -> Result<Option<Entry>, ReadError> {
        loop {
            if let Some(open) = &mut self.open {
                let read = open.file.read_until(b'\n', &mut self.line);
                read.map_err(|source| ReadError::Read { path: open.path.clone(), source })?;
            }
            if self.line.pop_if(|last| *last == b'\n').is_some() {
                if let Some(entry) = self.take_line()? {
                    return Ok(Some(entry));
                }
            } else if !self.advance().map_err(|source| self.failed(source))? {
                return Ok(None);
            }
        }
    }

    /// Decodes the line; one that was read before gives nothing.
    fn take_line(&mut self) -> Result<Option<Entry>, ReadError> {
        let line = std::mem::take(&mut self.line);
        let Some(open) = &mut self.open else { return Ok(None) };
        open.number += 1;
        let entry = serde_json::from_slice::<Entry>(&line);
        let seq =
            entry.as_ref().map_or_else(|_| Link::parse(&line).map(|link| link.seq), |entry| Some(entry.seq));
        if seq.is_some_and(|seq| seq <= open.skipped) {
            return Ok(None);
        }
        self.last = seq.unwrap_or(self.last);
        let (path, line) = (open.path.clone(), open.number);
        entry.map(Some).map_err(|source| ReadError::NotAnEntry { path, line, source })
    }

    /// At the end of a file, goes on to the next one; tells whether there may be more to read.
    fn advance(&mut self) -> io::Result<bool> {
        let Some(open) = &mut self.open else { return self.find_next() };
        if !open.is_current {
            return self.find_next();
        }
        match fs::metadata(self.files.current()) {
            Ok(there) if there.ino() == open.file.get_ref().metadata()?.ino() => Ok(false),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            // It got its full name: what was written before has to be read to its end.
            Ok(_) | Err(_) => {
                open.is_current = false;
                Ok(true)
            }
        }
    }

    /// Opens the file with the records behind the last one; tells whether there is one.
    fn find_next(&mut self) -> io::Result<bool> {
        loop {
            if let Some(full) = self.next_full()? {
                match File::open(&full.path) {
                    Ok(file) => {
                        self.begin(full.path, file, false);
                        self.last = self.last.max(full.first - 1);
                        return Ok(true);
                    }
                    // Rotation has just removed it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
            }
            let file = match File::open(self.files.current()) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            };
            // A guardian that starts may have given a full file its first name back.
            let inode = file.metadata()?.ino();
            if let Some(open) = &mut self.open
                && open.file.get_ref().metadata()?.ino() == inode
            {
                open.is_current = true;
                return Ok(true);
            }
            if self.next_full()?.is_none() {
                self.begin(self.files.current().to_owned(), file, true);
                return Ok(true);
            }
        }
    }

    /// Gives the first full file with records behind the last one that was read.
    fn next_full(&self) -> io::Result<Option<FullFile>> {
        let full = self.files.list_full()?;
        let is_open = |file: &FullFile| self.open.as_ref().is_some_and(|open| open.path == file.path);
        Ok(full.into_iter().find(|file| file.first > self.last && !is_open(file)))
    }

    fn begin(&mut self, path: PathBuf, file: File, is_current: bool) {
        self.line.clear();
        let skipped = self.last;
        self.open = Some(OpenFile { path, file: BufReader::new(file), number: 0, is_current, skipped });
    }
}

/// Gives the time of a file's first entry.
fn first_time(path: &Path) -> Option<Timestamp> {
    let mut line = String::new();
    BufReader::new(File::open(path).ok()?).read_line(&mut line).ok()?;
    serde_json::from_str::<Entry>(&line).ok().map(|entry| entry.time)
}

impl Iterator for Reader {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_entry().transpose()? {
                Ok(entry) if !self.filter.takes(&entry) => {}
                taken => return Some(taken),
            }
        }
    }
}

/// Says that a text is no point in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot read `{text}` as a time: give an age such as `90s`, `10m`, `2h`, `3d`, or a time such as `2026-01-31T12:00:00Z`"
)]
pub struct InvalidSince {
    text: String,
}

/// Parses `--since` and `--until`: a time in RFC 3339, or an age (`90s`, `10m`, `2h`, `3d`) counted back from `now`.
pub fn parse_since(text: &str, now: Timestamp) -> Result<Timestamp, InvalidSince> {
    let invalid = || InvalidSince { text: text.to_owned() };
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let age: Span = text.parse().map_err(|_| invalid())?;
    let age = age.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| invalid())?;
    if age < SignedDuration::ZERO {
        return Err(invalid());
    }
    now.checked_sub(age).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::parse_since;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        let since = parse_since(text, now).ok().map(|time| time.to_string());
        assert_eq!(since.as_deref(), expected, "{text}");
    }

    #[test]
    fn since_is_a_time_or_an_age() {
        check("2026-01-30T00:00:00Z", Some("2026-01-30T00:00:00Z"));
        check("2026-01-30T00:00:00+02:00", Some("2026-01-29T22:00:00Z"));
        check("90s", Some("2026-01-31T11:58:30Z"));
        check("10m", Some("2026-01-31T11:50:00Z"));
        check("2h", Some("2026-01-31T10:00:00Z"));
        check("3d", Some("2026-01-28T12:00:00Z"));
        for text in
            ["", "h", "yesterday", "-1h", "1h ago", "12", "99999999999999h", "2026-13-01T00:00:00Z", "1y"]
        {
            check(text, None);
        }
    }
}
