//! Gives the entries of a file back, also while it grows.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};

use super::Entry;
use crate::name::CloisterName;

/// Reads the entries of one file in order.
///
/// After the end the iterator gives nothing, and goes on when it is asked again after the file has grown: that is how
/// `--follow` works. An incomplete last line is kept until its rest arrives.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    filter: Filter,
    line: Vec<u8>,
    number: u64,
}

/// Chooses entries; an empty filter takes all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Takes only this cloister's entries.
    pub cloister: Option<CloisterName>,
    /// Takes only entries from this time on.
    pub since: Option<Timestamp>,
}

impl Filter {
    fn takes(&self, entry: &Entry) -> bool {
        self.cloister.as_ref().is_none_or(|name| entry.cloister.as_ref() == Some(name))
            && self.since.is_none_or(|since| entry.time >= since)
    }
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
    /// Opens a file of the log for reading.
    pub fn open(path: &Path, filter: Filter) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|source| ReadError::Read { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file: BufReader::new(file), filter, line: Vec::new(), number: 0 })
    }

    /// Reads the next whole line, or nothing at the end.
    fn next_entry(&mut self) -> Result<Option<Entry>, ReadError> {
        let read = self.file.read_until(b'\n', &mut self.line);
        read.map_err(|source| ReadError::Read { path: self.path.clone(), source })?;
        if self.line.pop_if(|last| *last == b'\n').is_none() {
            return Ok(None);
        }
        self.number += 1;
        let entry = serde_json::from_slice(&self.line);
        self.line.clear();
        entry.map(Some).map_err(|source| ReadError::NotAnEntry {
            path: self.path.clone(),
            line: self.number,
            source,
        })
    }
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

/// Parses `--since`: a time in RFC 3339, or an age (`90s`, `10m`, `2h`, `3d`) counted back from `now`.
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
