//! Files that have to exist so that something can be mounted over them, and that go away with the sandbox.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::paths::PathsError;

/// A file or directory that is made where nothing is, and removed as long as it is what was made.
///
/// It is known by what it holds, not by who made it: one that a killed command left is removed like any other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placeholder {
    path: PathBuf,
    /// What the file holds; a directory without it.
    content: Option<String>,
}

impl Placeholder {
    /// Describes a file with this content, or an empty directory.
    pub fn new(path: &Path, content: Option<&str>) -> Self {
        Self { path: path.to_owned(), content: content.map(str::to_owned) }
    }

    /// Makes it; what exists already stays as it is.
    pub fn make(&self) -> Result<(), PathsError> {
        let made = match &self.content {
            None => DirBuilder::new().create(&self.path),
            Some(content) => OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&self.path)
                .and_then(|mut file| file.write_all(content.as_bytes())),
        };
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(PathsError::io("make the placeholder", &self.path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes it, unless something else has taken its place.
    pub fn remove(&self) -> Result<(), PathsError> {
        let removed = match &self.content {
            None => fs::remove_dir(&self.path),
            Some(content) if holds(&self.path, content) => fs::remove_file(&self.path),
            Some(_) => Ok(()),
        };
        match removed {
            Err(error)
                if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) =>
            {
                Err(PathsError::io("remove the placeholder", &self.path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Tells whether an ordinary file holds exactly this.
fn holds(path: &Path, content: &str) -> bool {
    let is_same_size =
        fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == content.len() as u64);
    is_same_size && fs::read(path).is_ok_and(|found| found == content.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_removed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let (file, folder) = (directory.path().join("file"), directory.path().join("folder"));
        let placeholders = [Placeholder::new(&file, Some(".\n")), Placeholder::new(&folder, None)];
        let make = || placeholders.iter().try_for_each(Placeholder::make).unwrap();
        let remove = || placeholders.iter().try_for_each(Placeholder::remove).unwrap();
        make();
        make();
        assert_eq!(fs::read_to_string(&file).unwrap(), ".\n");
        remove();
        remove();
        assert!(!file.exists() && !folder.exists());
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("hook"), "").unwrap();
        fs::write(&file, "mine").unwrap();
        make();
        remove();
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
        assert!(folder.join("hook").exists());
    }
}
