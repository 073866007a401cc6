//! What is wrong with a configuration file, and how to mend it.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

use crate::text::Untrusted;

/// Says what is wrong at one place of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1; none when the whole file is meant.
    pub line: Option<usize>,
    /// The key, as in `proxy.allow[2]`; empty when the whole file is meant.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to write instead or to do, when that is known.
    pub repair: Option<String>,
}

impl Display for Problem {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", Untrusted(&self.path.to_string_lossy()))?;
        if let Some(line) = self.line {
            write!(formatter, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(formatter, ": `{}`", Untrusted(&self.key))?;
        }
        write!(formatter, ": {}", Untrusted(&self.what))?;
        match &self.repair {
            Some(repair) => write!(formatter, "; {}", Untrusted(repair)),
            None => Ok(()),
        }
    }
}

/// Holds everything that is wrong with the configuration, in the order of files and lines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot use the configuration{}", Lines(.problems))]
pub struct ConfigError {
    /// The problems; never empty.
    pub problems: Vec<Problem>,
}

/// Shows every problem on a line of its own.
struct Lines<'a>(&'a [Problem]);

impl Display for Lines<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| write!(formatter, "\n  {problem}"))
    }
}

/// Collects the problems of one file.
pub(super) struct Report<'a> {
    path: &'a Path,
    problems: Vec<Problem>,
}

impl<'a> Report<'a> {
    pub(super) const fn new(path: &'a Path) -> Self {
        Self { path, problems: Vec::new() }
    }

    /// Gives the file.
    pub(super) const fn path(&self) -> &'a Path {
        self.path
    }

    /// Counts the problems so far.
    pub(super) const fn len(&self) -> usize {
        self.problems.len()
    }

    /// Adds a problem.
    pub(super) fn add(
        &mut self,
        line: Option<usize>,
        key: &str,
        what: impl Into<String>,
        repair: Option<String>,
    ) {
        let (key, what) = (key.to_owned(), what.into());
        self.problems.push(Problem { path: self.path.to_owned(), line, key, what, repair });
    }

    /// Gives the problems in the order of their lines.
    pub(super) fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|problem| problem.line);
        self.problems
    }
}
