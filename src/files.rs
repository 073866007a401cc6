//! The files of a project that are read-only or hidden inside, and those that the host would execute.
//!
//! One bounded [`walk()`] over the project finds what is to be hidden ([`masks`], F15), the repositories nested in it,
//! and what the [`Baseline`] remembers: when the sandbox is stopped, [`Baseline::changes`] names what has changed of
//! all that the host would execute (F7). What editors and agents execute on opening a project is read-only, also
//! where it does not exist ([`protect()`], F6, F8). No link is followed anywhere.

mod beneath;
mod class;
mod inside_git;
mod kept;
mod links;
mod mask;
mod pattern;
mod protect;
mod trust;
mod walk;

pub use class::{Rank, classify};
pub use kept::Kept;
pub use links::check_single_names;
pub use mask::{Hiding, MASK_TEXT, Mask, Masks, masks};
pub use protect::{Absent, Protected, Protection, protect};
pub use trust::{Baseline, Change, Changed};
pub use walk::{Entry, Kind, Walk, walk};

use std::io;
use std::path::{Path, PathBuf};

use crate::paths::{self, PathsError};

/// Why the files of a project can't be guarded.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Something that is guarded, or a directory above it, is a link.
    #[error("`{0}` is a link: it can't be guarded")]
    Link(PathBuf),
    /// Something that is guarded is neither a file nor a directory, or lies in something that is no directory.
    #[error("`{0}` is neither an ordinary file nor a directory: it can't be guarded")]
    Odd(PathBuf),
    /// A guarded file has a second name that a sandbox could write to (F12).
    #[error("`{path}` and `{other}` are one file: a sandbox could change the first through the second")]
    SecondName {
        /// What is guarded.
        path: PathBuf,
        /// Its other name.
        other: PathBuf,
    },
    /// A git directory holds a link: the host's git would write through it.
    #[error("`{0}` is a link: git makes none there, and would write to what it leads to")]
    LinkInGit(PathBuf),
    /// A path is none that can be guarded.
    #[error("`{0}` in `files.protect` is no path below the project outside of `.git`")]
    Unfit(String),
    /// More is to be hidden than can be.
    #[error("{count} files are to be hidden, and {max} can be")]
    TooMany {
        /// How many.
        count: usize,
        /// How many can be.
        max: usize,
    },
    /// The project can't be read.
    #[error("cannot look through `{path}`")]
    Walk {
        /// What can't be read.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The record of what was there can't be kept or read.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// The record of what is hidden is garbage.
    #[error("cannot understand `{path}`")]
    Kept {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The record of what was there is garbage.
    #[error("cannot understand `{path}`")]
    Baseline {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Checks that git directories hold no links but hooks.
///
/// # Errors
/// [`FilesError::LinkInGit`] when one does.
pub fn check_git_dirs(git_dirs: &[PathBuf]) -> Result<(), FilesError> {
    let link = git_dirs.iter().find_map(|git_dir: &PathBuf| first_link(git_dir));
    link.map_or(Ok(()), |link| Err(FilesError::LinkInGit(link)))
}

fn first_link(git_dir: &Path) -> Option<PathBuf> {
    inside_git::look(git_dir).links.into_iter().find(|link| *link != git_dir.join("hooks"))
}
