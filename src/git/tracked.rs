//! Which files hold what git already keeps: hiding them would hide nothing.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::{GitError, Repository, bounded};

/// The largest index that is read, in bytes.
const MAX_INDEX_BYTES: u64 = 256 * 1024 * 1024;

/// The mode of an entry that stands for a repository.
const GITLINK: u32 = 0o160_000;

impl Repository {
    /// Those of the files (relative to the working tree) whose present content the index names.
    ///
    /// That a file is tracked is not enough: a sandbox writes the index, and could have what it wants to read
    /// tracked. It can't name the content without knowing it.
    pub fn unchanged(&self, files: Vec<PathBuf>) -> Result<BTreeSet<PathBuf>, GitError> {
        let Some(file) = self.index()? else { return Ok(BTreeSet::new()) };
        let root = self.root.clone();
        bounded(&self.root, move || {
            let index =
                git2::Index::open(&file).map_err(|source| GitError::Read { path: root.clone(), source })?;
            let is_unchanged = |path: &PathBuf| {
                let Some(entry) = index.get_path(path, 0) else { return false };
                let own = git2::Oid::hash_file(git2::ObjectType::Blob, root.join(path));
                own.is_ok_and(|own| own == entry.id)
            };
            Ok(files.into_iter().filter(is_unchanged).collect())
        })
    }

    /// The directories that the index names as repositories of their own: git on the host looks into each of them,
    /// and obeys its settings.
    pub fn gitlinks(&self) -> Result<Vec<PathBuf>, GitError> {
        let Some(file) = self.index()? else { return Ok(Vec::new()) };
        let root = self.root.clone();
        bounded(&self.root, move || {
            let index =
                git2::Index::open(&file).map_err(|source| GitError::Read { path: root.clone(), source })?;
            let links = index.iter().filter(|entry| entry.mode == GITLINK);
            Ok(links.map(|entry| PathBuf::from(OsString::from_vec(entry.path))).collect())
        })
    }

    /// The index, where there is one.
    fn index(&self) -> Result<Option<PathBuf>, GitError> {
        let file = self.git_dir.join("index");
        match fs::symlink_metadata(&file) {
            Err(_) => Ok(None),
            Ok(found) if !found.is_file() || found.len() > MAX_INDEX_BYTES => Err(GitError::Odd(file)),
            Ok(_) => Ok(Some(file)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f15_only_content_that_git_keeps_counts_as_known() {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap().join("demo");
        let repository = git2::Repository::init(&root).unwrap();
        let unchanged = || {
            let files = [".env", ".env.local", ".env.forged"].map(PathBuf::from);
            let found = Repository::find(&root).unwrap().unchanged(files.to_vec()).unwrap();
            found.into_iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        for name in [".env", ".env.local", ".env.forged"] {
            fs::write(root.join(name), "A=1\n").unwrap();
        }
        assert!(unchanged().is_empty());
        let mut index = repository.index().unwrap();
        index.add_path(std::path::Path::new(".env")).unwrap();
        // As a sandbox does that wants to read what it can't see.
        index.add_path(std::path::Path::new(".env.forged")).unwrap();
        index.write().unwrap();
        fs::write(root.join(".env.forged"), "SECRET=1\n").unwrap();
        assert_eq!(unchanged(), [".env"]);
    }
}
