//! `gc`: removes what ended sandboxes, killed commands and vanished projects left behind, and nothing else.
//!
//! What is not understood stays and is told. Nothing that belongs to a running sandbox is looked at twice: each part
//! takes the lock under which that sandbox would be started or stopped.

mod files;
mod projects;
mod sandboxes;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::stop::{StopError, StopProblem, Stopped};
use crate::guardian::client::TokenError;
use crate::name::ProjectName;
use crate::paths::{Paths, PathsError};
use crate::project::ProjectError;

/// Whether anything is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// What is left over is removed.
    Remove,
    /// It is only named.
    DryRun,
}

/// One thing that was left over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub path: PathBuf,
    /// Why it is removed, or kept.
    pub reason: String,
}

/// What can be left over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The record of a sandbox.
    Receipt,
    /// The hash of a sandbox's token.
    Token,
    /// A socket, a directory of sockets, or a link to one.
    Socket,
    /// A file that was not yet whole.
    Temporary,
    /// The home of a project's sandboxes.
    Instance,
    /// The directory that a project's name belongs to.
    Project,
}

impl Kind {
    /// What people call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Receipt => "receipt",
            Self::Token => "token",
            Self::Socket => "socket",
            Self::Temporary => "temporary file",
            Self::Instance => "instance",
            Self::Project => "project",
        }
    }
}

/// What was done.
#[derive(Debug, Default)]
pub struct Collected {
    /// What was removed, or would be.
    pub removed: Vec<Leftover>,
    /// What looks left over and stays.
    pub kept: Vec<Leftover>,
    /// What could not be removed or read.
    pub problems: Vec<GcProblem>,
    /// The sandboxes that were cleared away, with what has changed of all that the host would execute.
    pub stopped: Vec<Stopped>,
}

/// What went wrong while collecting went on.
#[derive(Debug, thiserror::Error)]
pub enum GcProblem {
    /// A sandbox's remains stay.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// A part of a sandbox's remains stays.
    #[error(transparent)]
    StopPart(#[from] StopProblem),
    /// The registry of projects can't be read or written.
    #[error(transparent)]
    Project(#[from] ProjectError),
    /// The tokens can't be read.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A file or directory stays.
    #[error(transparent)]
    Paths(#[from] PathsError),
}

/// The state of one collection.
struct Collector<'a> {
    paths: &'a Paths,
    mode: Mode,
    /// The projects of running sandboxes, and of those that can't be told.
    running: BTreeSet<ProjectName>,
    /// Whether every record was understood: without that, sockets can't be told to be nobody's.
    is_certain: bool,
    found: Collected,
}

/// Removes what is left over, going on past errors.
pub async fn gc(mode: Mode, paths: &Paths) -> Collected {
    let found = Collected::default();
    let mut collector = Collector { paths, mode, running: BTreeSet::new(), is_certain: true, found };
    collector.receipts().await;
    collector.tokens().await;
    collector.sockets();
    collector.temporary_files();
    collector.projects();
    collector.found
}

impl Collector<'_> {
    /// Removes one thing, or names it.
    fn remove(
        &mut self,
        kind: Kind,
        path: &Path,
        reason: impl Into<String>,
        act: impl FnOnce() -> Result<(), GcProblem>,
    ) {
        let done = if self.mode == Mode::Remove { act() } else { Ok(()) };
        match done {
            Ok(()) => {
                self.found.removed.push(Leftover { kind, path: path.to_owned(), reason: reason.into() });
            }
            Err(problem) => self.found.problems.push(problem),
        }
    }

    fn keep(&mut self, kind: Kind, path: &Path, reason: impl Into<String>) {
        self.found.kept.push(Leftover { kind, path: path.to_owned(), reason: reason.into() });
    }
}

/// The entries of a directory in the order of their names; none where there is no directory.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}
