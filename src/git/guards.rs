//! What a sandbox must not change of a repository: by class of path, in every git directory that is known.
//!
//! A git directory stays writable, since git keeps its own files there; what names programs or other directories
//! in it is read-only, whether it exists or not. Renaming is refused by binding a directory over itself.

use std::fs;
use std::path::{Path, PathBuf};

use super::{GitError, Repository};

/// How many git directories of submodules are opened to a sandbox; further ones are read-only.
const MAX_SUBMODULES: usize = 256;

/// How deep a submodule's name may nest (`modules/a/b/c`).
const MAX_NAME_DEPTH: usize = 8;

/// Everything that guards a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guards {
    /// Directories that can't be renamed or replaced, in the order in which they are laid over each other.
    pub pinned: Vec<Pinned>,
    /// What can be read and not written, to be laid over the pinned directories.
    pub guarded: Vec<Guarded>,
    /// The git directories that are guarded.
    pub git_dirs: Vec<PathBuf>,
}

/// A directory of a repository that can't be renamed or replaced from inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// Where it lies.
    pub path: PathBuf,
    /// Whether what is in it can be written.
    pub is_writable: bool,
}

/// A file or directory of a repository that a sandbox may read and not write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded {
    /// Where it lies.
    pub path: PathBuf,
    /// What it holds when it has to be made first: text, or nothing for a directory.
    pub placeholder: Option<&'static str>,
}

impl Repository {
    /// What git on the host would execute or obey, and what names the repository's parts to each other (F1, F2, F3).
    /// `nested` are further `.git` in the working tree: directories of other repositories, or submodules' pointers.
    ///
    /// # Errors
    /// [`GitError::Link`] when one of them is a link: mounting it would open what it leads to.
    pub fn guards(&self, nested: &[PathBuf]) -> Result<Guards, GitError> {
        let mut guards = Guards::default();
        if self.is_linked() {
            guards.git_dir(&self.common_dir, Some(&self.git_dir))?;
            guards.pin(&self.git_dir);
            guards.file(self.root.join(".git"), "");
            guards.file(self.git_dir.join("commondir"), "");
            guards.file(self.git_dir.join("gitdir"), "");
            guards.file(self.git_dir.join("config.worktree"), "");
            guards.directory(self.git_dir.join("config.worktree.lock"));
            guards.git_dirs.push(self.git_dir.clone());
        } else {
            guards.pin(&self.git_dir);
            guards.git_dir(&self.common_dir, None)?;
        }
        guards.nested(nested)?;
        for directory in self.hooks_in_git_dir()? {
            if guards.guarded.iter().all(|one| !directory.starts_with(&one.path)) {
                guards.directory(directory);
            }
        }
        guards.without_links()
    }

    /// Tells whether this is a linked worktree.
    pub(super) fn is_linked(&self) -> bool {
        self.git_dir != self.common_dir
    }
}

impl Guards {
    /// What guards the `.git` in a directory that is no repository itself.
    pub fn of_nested(nested: &[PathBuf]) -> Result<Self, GitError> {
        let mut guards = Self::default();
        guards.nested(nested)?;
        guards.without_links()
    }

    fn nested(&mut self, nested: &[PathBuf]) -> Result<(), GitError> {
        for path in nested {
            if path.is_dir() {
                self.pin(path);
                self.git_dir(path, None)?;
            } else {
                self.file(path.clone(), "");
            }
        }
        Ok(())
    }

    /// Guards one git directory, all that it keeps for worktrees but `own`, and the submodules in it.
    fn git_dir(&mut self, git_dir: &Path, own: Option<&Path>) -> Result<(), GitError> {
        self.git_dirs.push(git_dir.to_owned());
        self.worktrees(&git_dir.join("worktrees"), own)?;
        // Without them git would take no repository here, and look for another one above.
        for kept in ["objects", "refs"].map(|name| git_dir.join(name)) {
            if kept.symlink_metadata().is_ok() {
                self.pin(&kept);
            }
        }
        self.directory(git_dir.join("hooks"));
        // Addresses from before there were settings for them: `git push NAME` obeys them.
        self.directory(git_dir.join("remotes"));
        self.directory(git_dir.join("branches"));
        self.file(git_dir.join("config"), "");
        self.file(git_dir.join("config.worktree"), "");
        // Git writes its settings into these files and renames them into place. What the host's git writes there could be
        // changed from inside before the rename, and the rename drops the mount on the settings: there must be none.
        self.directory(git_dir.join("config.lock"));
        self.directory(git_dir.join("config.worktree.lock"));
        // Git and libgit2 take `./` for the directory itself; without the file, a sandbox could name another one.
        self.file(git_dir.join("commondir"), "./\n");
        self.modules(&git_dir.join("modules"))
    }

    /// Worktrees can be added and removed inside; those that exist are none of the sandbox's business.
    fn worktrees(&mut self, worktrees: &Path, own: Option<&Path>) -> Result<(), GitError> {
        if worktrees.symlink_metadata().is_err() {
            return Ok(());
        }
        self.pin(worktrees);
        for entry in directories(worktrees)? {
            if Some(entry.as_path()) != own {
                self.seal(&entry);
            }
        }
        Ok(())
    }

    /// Submodules stay usable, and none can be added: git would take up a git directory that lies there.
    fn modules(&mut self, modules: &Path) -> Result<(), GitError> {
        if modules.symlink_metadata().is_err() {
            self.directory(modules.to_owned());
            return Ok(());
        }
        self.seal(modules);
        self.modules_below(modules, MAX_NAME_DEPTH)
    }

    fn modules_below(&mut self, directory: &Path, depth: usize) -> Result<(), GitError> {
        for entry in directories(directory)? {
            if depth == 0 || self.git_dirs.len() > MAX_SUBMODULES {
                return Ok(());
            }
            if entry.join("HEAD").is_file() && entry.join("objects").is_dir() {
                self.pin(&entry);
                self.git_dir(&entry, None)?;
            } else {
                self.modules_below(&entry, depth - 1)?;
            }
        }
        Ok(())
    }

    fn pin(&mut self, path: &Path) {
        self.pinned.push(Pinned { path: path.to_owned(), is_writable: true });
    }

    fn seal(&mut self, path: &Path) {
        self.pinned.push(Pinned { path: path.to_owned(), is_writable: false });
    }

    fn directory(&mut self, path: PathBuf) {
        self.guarded.push(Guarded { path, placeholder: None });
    }

    fn file(&mut self, path: PathBuf, placeholder: &'static str) {
        self.guarded.push(Guarded { path, placeholder: Some(placeholder) });
    }

    fn without_links(self) -> Result<Self, GitError> {
        let is_link = |path: &&PathBuf| fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
        let pinned = self.pinned.iter().map(|one| &one.path);
        let link = pinned.chain(self.guarded.iter().map(|one| &one.path)).find(is_link).cloned();
        link.map_or(Ok(self), |link| Err(GitError::Link(link)))
    }
}

/// The directories in a directory, in the order of their names.
///
/// # Errors
/// [`GitError::Link`] when one of them, or the directory itself, is a link; [`GitError::Closed`] when it can't be read.
fn directories(directory: &Path) -> Result<Vec<PathBuf>, GitError> {
    if directory.is_symlink() {
        return Err(GitError::Link(directory.to_owned()));
    }
    let closed = |source| GitError::Closed { path: directory.to_owned(), source };
    let mut found = Vec::new();
    // From inside, what is closed can be opened again.
    for entry in fs::read_dir(directory).map_err(closed)? {
        let entry = entry.map_err(closed)?;
        match entry.file_type() {
            Ok(kind) if kind.is_symlink() => return Err(GitError::Link(entry.path())),
            Ok(kind) if kind.is_dir() => found.push(entry.path()),
            _ => {}
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap().join("demo");
        git2::Repository::init(&root).unwrap();
        (directory, root)
    }

    fn pins(root: &Path, guards: &Guards) -> Vec<(String, bool)> {
        let name = |path: &Path| path.strip_prefix(root).unwrap().display().to_string();
        guards.pinned.iter().map(|one| (name(&one.path), one.is_writable)).collect()
    }

    #[test]
    fn f1_f2_f3_every_class_of_path_is_guarded_whether_it_exists_or_not() {
        let (_keep, root) = repository();
        let guards = Repository::find(&root).unwrap().guards(&[]).unwrap();
        let git = root.join(".git");
        let names: Vec<_> =
            guards.guarded.iter().map(|one| one.path.strip_prefix(&git).unwrap().to_str().unwrap()).collect();
        let expected = [
            "hooks",
            "remotes",
            "branches",
            "config",
            "config.worktree",
            "config.lock",
            "config.worktree.lock",
            "commondir",
            "modules",
        ];
        assert_eq!(names, expected);
        let pinned = [".git", ".git/objects", ".git/refs"].map(|path| (path.to_owned(), true));
        assert_eq!(pins(&root, &guards), pinned);
    }

    #[test]
    fn f3_submodules_and_other_worktrees_are_guarded_in_order() {
        let (_keep, root) = repository();
        let git = root.join(".git");
        for module in ["modules/libs/one", "modules/two", "modules/two/modules/three"] {
            fs::create_dir_all(git.join(module).join("objects")).unwrap();
            fs::write(git.join(module).join("HEAD"), "ref: refs/heads/main\n").unwrap();
        }
        fs::create_dir_all(git.join("worktrees/other")).unwrap();
        let guards = Repository::find(&root).unwrap().guards(&[]).unwrap();
        let expected = [
            (".git", true),
            (".git/worktrees", true),
            (".git/worktrees/other", false),
            (".git/objects", true),
            (".git/refs", true),
            (".git/modules", false),
            (".git/modules/libs/one", true),
            (".git/modules/libs/one/objects", true),
            (".git/modules/two", true),
            (".git/modules/two/objects", true),
            (".git/modules/two/modules", false),
            (".git/modules/two/modules/three", true),
            (".git/modules/two/modules/three/objects", true),
        ];
        assert_eq!(pins(&root, &guards), expected.map(|(path, is_writable)| (path.to_owned(), is_writable)));
        for guarded in ["libs/one/hooks", "libs/one/modules", "two/config", "two/modules/three/commondir"] {
            let path = git.join("modules").join(guarded);
            assert!(guards.guarded.iter().any(|one| one.path == path), "{guarded}");
        }
    }

    #[test]
    fn f10_a_link_among_the_submodules_is_refused() {
        let (_keep, root) = repository();
        fs::create_dir(root.join(".git/modules")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join(".git/modules/evil")).unwrap();
        let guards = Repository::find(&root).unwrap().guards(&[]);
        assert!(matches!(guards, Err(GitError::Link(path)) if path == root.join(".git/modules/evil")));
    }
}
