//! What was hidden once: a sandbox must not uncover it by steering the next look at the project (F15).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::mask::Mask;
use super::{FilesError, paths};

/// How many paths are remembered; those that exist come first.
const MAX_KEPT: usize = 2000;

/// What was hidden in a project in earlier sandboxes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    masks: Vec<KeptMask>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptMask {
    /// Not every name is text.
    path: OsString,
    is_directory: bool,
    /// Whether the user's patterns hid it: where they no longer do, it is shown.
    is_users: bool,
}

impl Kept {
    /// Reads what is remembered; nothing when nothing was hidden yet.
    pub fn load(path: &Path) -> Result<Self, FilesError> {
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|source| FilesError::Kept { path: path.to_owned(), source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(paths::PathsError::io("read", path)(error).into()),
        }
    }

    /// Writes what is remembered.
    pub fn keep(&self, path: &Path) -> Result<(), FilesError> {
        // What stands there already need not be brought to the disk again: that would be most of the starts.
        if Self::load(path).is_ok_and(|before| before == *self) {
            return Ok(());
        }
        let text =
            serde_json::to_vec(self).map_err(|source| FilesError::Kept { path: path.to_owned(), source })?;
        Ok(paths::write_atomic(path, &text)?)
    }

    /// What is remembered, and whether the user's patterns hid it.
    pub(super) fn masks(&self) -> impl Iterator<Item = (Mask, bool)> {
        self.masks.iter().map(|one| {
            (Mask { path: PathBuf::from(&one.path), is_directory: one.is_directory }, one.is_users)
        })
    }

    /// Remembers these, and the earlier ones that are not to be forgotten.
    pub(super) fn of(masks: Vec<(Mask, bool)>, earlier: impl Iterator<Item = (Mask, bool)>) -> Self {
        let now: BTreeSet<PathBuf> = masks.iter().map(|(mask, _)| mask.path.clone()).collect();
        let absent = earlier.filter(|(mask, _)| !now.contains(&mask.path));
        let all = masks.into_iter().chain(absent).take(MAX_KEPT);
        let masks = all.map(|(Mask { path, is_directory }, is_users)| KeptMask {
            path: path.into_os_string(),
            is_directory,
            is_users,
        });
        Self { masks: masks.collect() }
    }
}
