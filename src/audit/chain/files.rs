//! The files of one chain: the one that is written, and the full ones before it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::audit::entry::Link;

/// Bounds how much of a file's beginning is searched for its first record.
const MAX_FRONT_BYTES: u64 = 1024 * 1024;

/// Names the files of one chain.
///
/// A full file is called after its first record: `audit@000000000001.jsonl`. No cloister's name holds an `@`, so the
/// files of two cloisters never meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::audit) struct ChainFiles {
    current: PathBuf,
    stem: String,
}

/// Is a full file and the number of its first record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::audit) struct FullFile {
    pub(in crate::audit) first: u64,
    pub(in crate::audit) path: PathBuf,
}

impl ChainFiles {
    /// Names the files of the chain whose current file is this one.
    pub(in crate::audit) fn of(current: &Path) -> Self {
        let stem = current.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Self { current: current.to_owned(), stem }
    }

    /// Gives the path of the file that is written.
    pub(in crate::audit) fn current(&self) -> &Path {
        &self.current
    }

    /// Gives the name of a full file by its first record.
    pub(in crate::audit) fn full(&self, first: u64) -> PathBuf {
        self.current.with_file_name(format!("{}@{first:012}.jsonl", self.stem))
    }

    /// Lists the full files, the oldest first.
    pub(in crate::audit) fn list_full(&self) -> io::Result<Vec<FullFile>> {
        let mut full = Vec::new();
        let Some(directory) = self.current.parent() else { return Ok(full) };
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if let Some((stem, Some(first))) = entry.file_name().to_str().and_then(split_name)
                && stem == self.stem
            {
                full.push(FullFile { first, path: entry.path() });
            }
        }
        full.sort_by_key(|file| file.first);
        Ok(full)
    }
}

/// Takes a file's name apart: the chain's, and of a full file the number of its first record.
pub(in crate::audit) fn split_name(name: &str) -> Option<(&str, Option<u64>)> {
    let stem = name.strip_suffix(".jsonl")?;
    match stem.split_once('@') {
        None => Some((stem, None)),
        Some((stem, digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some((stem, Some(digits.parse().ok()?)))
        }
        Some(_) => None,
    }
}

/// Gives the first record of a file, if its beginning holds one.
pub(in crate::audit) fn first_link(path: &Path) -> io::Result<Option<Link>> {
    let mut lines = BufReader::new(File::open(path)?.take(MAX_FRONT_BYTES));
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        if let Some(link) = Link::parse(line.strip_suffix(b"\n").unwrap_or(&line)) {
            return Ok(Some(link));
        }
        line.clear();
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{ChainFiles, split_name};

    #[test]
    fn names_of_full_files_are_read_back_and_sort_by_their_first_record() {
        let files = ChainFiles::of(Path::new("/a/cloisters/demo-1.2.jsonl"));
        assert_eq!(files.full(17), Path::new("/a/cloisters/demo-1.2@000000000017.jsonl"));
        assert!(files.full(999) < files.full(1000));
        assert_eq!(split_name("demo-1.2@000000000017.jsonl"), Some(("demo-1.2", Some(17))));
        assert_eq!(split_name("demo.000000000017.jsonl"), Some(("demo.000000000017", None)));
        for name in [
            "audit.lock",
            "audit@.jsonl",
            "audit@x.jsonl",
            "audit@+1.jsonl",
            "audit@99999999999999999999.jsonl",
        ] {
            assert_eq!(split_name(name), None, "{name}");
        }
    }
}
