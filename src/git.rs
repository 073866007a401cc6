//! Reading repositories: where one begins, where its shared directory lies, what is checked out.
//!
//! libgit2 reads files and runs nothing: no hook, filter, pager or `fsmonitor` of the repository is started.

use std::path::{Path, PathBuf};

/// A repository as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// The top of the working tree.
    pub root: PathBuf,
    /// The directory that all worktrees share (`.git` of the main one).
    pub common_dir: PathBuf,
    /// The branch that is checked out; `None` while detached.
    pub branch: Option<String>,
}

/// Why no repository was found.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// There is none here or above.
    #[error("`{0}` is not in a git repository")]
    NoRepository(PathBuf),
    /// There is one without a working tree.
    #[error("the repository `{0}` has no working tree")]
    Bare(PathBuf),
    /// There is one that belongs to somebody else.
    #[error("the repository around `{0}` belongs to another user")]
    ForeignOwner(PathBuf),
    /// There is one that can't be read.
    #[error("cannot read the repository around `{path}`")]
    Read {
        /// Where the search began.
        path: PathBuf,
        /// Why.
        #[source]
        source: git2::Error,
    },
}

impl Repository {
    /// Finds the repository around a directory.
    pub fn find(directory: &Path) -> Result<Self, GitError> {
        let repository = git2::Repository::discover(directory).map_err(|source| match source.code() {
            git2::ErrorCode::NotFound => GitError::NoRepository(directory.to_owned()),
            git2::ErrorCode::Owner => GitError::ForeignOwner(directory.to_owned()),
            _ => GitError::Read { path: directory.to_owned(), source },
        })?;
        let root = repository.workdir().ok_or_else(|| GitError::Bare(repository.path().to_owned()))?;
        Ok(Self {
            root: without_trailing_slash(root),
            common_dir: without_trailing_slash(repository.commondir()),
            branch: branch(&repository),
        })
    }

    /// The files and directories of the repository that git on the host would execute or obey, as far as they
    /// exist: hooks and settings of the shared directory and of this worktree.
    pub fn executable_state(&self) -> Vec<PathBuf> {
        ["hooks", "config", "config.worktree"]
            .iter()
            .map(|name| self.common_dir.join(name))
            .filter(|path| path.exists())
            .collect()
    }
}

fn without_trailing_slash(path: &Path) -> PathBuf {
    path.components().collect()
}

/// The branch that `HEAD` names, also before its first commit.
fn branch(repository: &git2::Repository) -> Option<String> {
    let head = repository.find_reference("HEAD").ok()?;
    let target = head.symbolic_target().ok().flatten()?;
    target.strip_prefix("refs/heads/").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn repository() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap().join("demo");
        git2::Repository::init_opts(&root, git2::RepositoryInitOptions::new().initial_head("trunk")).unwrap();
        (directory, root)
    }

    #[test]
    fn a_repository_is_found_from_below() {
        let (_keep, root) = repository();
        let below = root.join("a/b");
        fs::create_dir_all(&below).unwrap();
        let found = Repository::find(&below).unwrap();
        let expected = Repository {
            root: root.clone(),
            common_dir: root.join(".git"),
            branch: Some("trunk".to_owned()),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_directory_outside_and_a_bare_repository_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(Repository::find(directory.path()), Err(GitError::NoRepository(_))));
        git2::Repository::init_bare(directory.path().join("bare.git")).unwrap();
        assert!(matches!(Repository::find(&directory.path().join("bare.git")), Err(GitError::Bare(_))));
    }

    #[test]
    fn f2_nothing_of_the_repository_is_run() {
        let (_keep, root) = repository();
        let canary = root.join("canary");
        let script = root.join("evil.sh");
        fs::write(&script, format!("#!/bin/sh\ntouch {}\n", canary.display())).unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let config = root.join(".git/config");
        let mut settings = git2::Config::open(&config).unwrap();
        for key in ["core.fsmonitor", "core.sshCommand", "core.pager", "core.hooksPath"] {
            settings.set_str(key, script.to_str().unwrap()).unwrap();
        }
        Repository::find(&root).unwrap();
        assert!(!canary.exists());
    }
}
