//! Reading repositories: where one begins, where its shared directory lies, what is checked out.
//!
//! libgit2 reads files and runs nothing: no hook, filter, pager or `fsmonitor` of the repository is started.

mod guards;
mod odd;
mod settings;
mod tracked;

pub use guards::{Guarded, Guards, Pinned};
pub use settings::Named;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use odd::MAX_FILE_BYTES;

/// How long reading a repository may take: what a sandbox can put into it must not hang a command.
const PATIENCE: Duration = Duration::from_secs(20);

/// A repository as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// The top of the working tree.
    pub root: PathBuf,
    /// The directory that all worktrees share (`.git` of the main one).
    pub common_dir: PathBuf,
    /// The directory of this worktree's own data: the shared one, or a part of it.
    pub git_dir: PathBuf,
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
    /// There is one whose parts do not belong together. What a sandbox can write (`.git`, `commondir`,
    /// `core.worktree`) must not choose what the next sandbox sees (F3).
    #[error("`{git_dir}` and the working tree `{root}` do not name each other")]
    Redirected {
        /// Where the repository's data lie.
        git_dir: PathBuf,
        /// Where its working tree is said to lie.
        root: PathBuf,
    },
    /// A part of it that is guarded is a link.
    #[error("`{0}` is a link: what it leads to would be opened to the sandbox")]
    Link(PathBuf),
    /// A directory of it can't be looked into: what lies there could not be guarded.
    #[error("`{path}` can't be looked into")]
    Closed {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A part of it is no ordinary file.
    #[error("`{0}` is not an ordinary small file")]
    Odd(PathBuf),
    /// Reading it does not come to an end.
    #[error("reading the repository around `{0}` does not end")]
    Endless(PathBuf),
    /// The directory of its hooks is one in which a sandbox has to write.
    #[error("`core.hooksPath` makes `{0}` the directory of hooks: it can't be closed to the sandbox")]
    OpenHooks(PathBuf),
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
        odd::check(directory)?;
        let start = directory.to_owned();
        bounded(directory, move || Self::read(&start))
    }

    fn read(directory: &Path) -> Result<Self, GitError> {
        let repository = git2::Repository::discover(directory).map_err(|source| match source.code() {
            git2::ErrorCode::NotFound => GitError::NoRepository(directory.to_owned()),
            git2::ErrorCode::Owner => GitError::ForeignOwner(directory.to_owned()),
            _ => GitError::Read { path: directory.to_owned(), source },
        })?;
        let root = repository.workdir().ok_or_else(|| GitError::Bare(repository.path().to_owned()))?;
        let found = Self {
            root: without_trailing_slash(root),
            common_dir: without_trailing_slash(repository.commondir()),
            git_dir: without_trailing_slash(repository.path()),
            branch: branch(&repository),
        };
        if found.holds_together() && directory.starts_with(&found.root) {
            Ok(found)
        } else {
            Err(GitError::Redirected { git_dir: found.git_dir, root: found.root })
        }
    }

    /// Tells whether this is a repository with its data in `.git`, or a worktree that its repository knows.
    fn holds_together(&self) -> bool {
        let git_dir = &self.git_dir;
        let own = self.root.join(".git");
        let Ok(kind) = fs::symlink_metadata(&own) else { return false };
        if kind.is_dir() {
            return *git_dir == own && self.common_dir == own;
        }
        // A linked worktree: written by the repository, out of reach for a sandbox of the worktree alone.
        let back = git_dir.join("gitdir");
        let is_small = fs::metadata(&back).is_ok_and(|found| found.is_file() && found.len() < MAX_FILE_BYTES);
        let back = is_small.then(|| fs::read_to_string(back).ok()).flatten().unwrap_or_default();
        let names_it = fs::canonicalize(git_dir.join(back.trim_end())).is_ok_and(|named| named == own);
        kind.is_file() && git_dir.parent() == Some(&self.common_dir.join("worktrees")) && names_it
    }
}

/// Runs what reads a repository; a reader that a pipe holds up is left behind, and ends with this process.
fn bounded<T: Send + 'static>(
    path: &Path,
    read: impl FnOnce() -> Result<T, GitError> + Send + 'static,
) -> Result<T, GitError> {
    let (sender, receiver) = mpsc::channel();
    // When nobody waits any more, nobody misses the answer.
    std::thread::spawn(move || drop(sender.send(read())));
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(GitError::Endless(path.to_owned())))
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
    use std::os::unix::fs::symlink;

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
            git_dir: root.join(".git"),
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
    fn a_linked_worktree_is_found_with_its_repository() {
        let (_keep, root) = repository();
        let repository = git2::Repository::open(&root).unwrap();
        let author = git2::Signature::now("n", "e@example.com").unwrap();
        let tree = repository.find_tree(repository.treebuilder(None).unwrap().write().unwrap()).unwrap();
        repository.commit(Some("HEAD"), &author, &author, "first", &tree, &[]).unwrap();
        let linked = root.parent().unwrap().join("linked");
        repository.worktree("linked", &linked, None).unwrap();
        let found = Repository::find(&linked).unwrap();
        assert_eq!((found.root, found.common_dir), (linked, root.join(".git")));
    }

    #[test]
    fn f3_a_repository_that_points_elsewhere_is_refused() {
        let (_keep, victim) = repository();
        let project = victim.parent().unwrap().join("project");
        let refused = |what: &str| {
            let found = Repository::find(&project);
            assert!(matches!(found, Err(GitError::Redirected { .. })), "{what}: {found:?}");
        };
        fs::create_dir(&project).unwrap();
        fs::write(project.join(".git"), format!("gitdir: {}/.git\n", victim.display())).unwrap();
        refused("a gitfile");
        fs::remove_file(project.join(".git")).unwrap();
        symlink(victim.join(".git"), project.join(".git")).unwrap();
        refused("a link");
        fs::remove_file(project.join(".git")).unwrap();
        git2::Repository::init(&project).unwrap();
        fs::write(project.join(".git/commondir"), format!("{}/.git\n", victim.display())).unwrap();
        refused("a commondir");
        fs::remove_file(project.join(".git/commondir")).unwrap();
        let mut settings = git2::Config::open(&project.join(".git/config")).unwrap();
        settings.set_str("core.worktree", victim.to_str().unwrap()).unwrap();
        refused("a working tree elsewhere");
        settings.set_str("core.worktree", "../..").unwrap();
        refused("a working tree above");
    }

    #[test]
    fn f10_a_link_in_place_of_a_guarded_file_is_refused() {
        let (_keep, root) = repository();
        fs::remove_dir_all(root.join(".git/hooks")).unwrap();
        symlink("/etc", root.join(".git/hooks")).unwrap();
        let guarded = Repository::find(&root).unwrap().guards(&[]);
        assert!(matches!(guarded, Err(GitError::Link(path)) if path == root.join(".git/hooks")));
    }

    #[test]
    fn f3_a_commondir_that_names_itself_changes_nothing() {
        let (_keep, root) = repository();
        let before = Repository::find(&root).unwrap();
        fs::write(root.join(".git/commondir"), "./\n").unwrap();
        assert_eq!(Repository::find(&root).unwrap(), before);
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
