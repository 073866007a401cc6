//! Projects: which directory a command is about, under which name, and whether it may be opened to a sandbox.
//!
//! A name belongs to one path. The registry remembers which; a second path that would get the same name is
//! refused with the way to choose another.

mod shares;

pub use shares::{Refusal, Share, ShareProblem, SharesError, Surroundings, shares};

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Owner;
use crate::git::{GitError, Guards, Repository};
use crate::name::{CloisterId, CloisterName, InvalidName, ProjectId, ProjectName};
use crate::paths::{self, Lock, Paths, PathsError};

/// A directory that may be opened to a sandbox, with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// The name.
    pub name: ProjectName,
    /// What decisions, tokens and instances belong to: the path, hashed.
    pub id: ProjectId,
    /// The directory, with links resolved.
    pub directory: PathBuf,
    /// Where in it the user stands, with links resolved.
    pub standing: PathBuf,
    /// The repository around it; `None` where a directory without one was permitted.
    pub repository: Option<Repository>,
}

/// Whether a directory without a repository will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitNeed {
    /// A repository is needed.
    Required,
    /// Any directory will do.
    Optional,
}

/// Why a directory can't be opened to a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// There is no repository, or it can't be read.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The name is none.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The directory can't be looked at.
    #[error("cannot open the directory `{path}`")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directory's path is no text, and the files that record it are.
    #[error("the path `{}` is not valid UTF-8", .0.display())]
    NotText(PathBuf),
    /// The home directory lies in the project.
    #[error("`{directory}` contains your home directory: a sandbox would see everything in it")]
    AboveHome {
        /// The directory.
        directory: PathBuf,
    },
    /// The project in which the user stands has lost its repository, and one around it was found.
    #[error(
        "the project `{inner}` has no repository any more; the one around it, `{outer}`, is not opened in its place"
    )]
    Widened {
        /// The project that is known.
        inner: PathBuf,
        /// What was found instead.
        outer: PathBuf,
    },
    /// Cloister reads files there.
    #[error("`{directory}` and Cloister's own `{own}` overlap: a sandbox could change what guards it")]
    HoldsOwnFiles {
        /// The directory.
        directory: PathBuf,
        /// What Cloister reads.
        own: PathBuf,
    },
    /// The name belongs to another directory.
    #[error("the project name `{name}` belongs to `{owner}`")]
    NameTaken {
        /// The name.
        name: ProjectName,
        /// Who has it.
        owner: PathBuf,
    },
    /// A file could not be read, written or locked.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// The registry can't be read.
    #[error("cannot read `{path}`: {reason}")]
    Registry {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Project {
    /// Finds the project around a directory. Nothing is recorded.
    ///
    /// `binary` is the program that runs now: it must not lie where the sandbox may write.
    pub fn find(
        directory: &Path,
        name: Option<ProjectName>,
        git: GitNeed,
        paths: &Paths,
        binary: &Path,
    ) -> Result<Self, ProjectError> {
        let resolved = fs::canonicalize(directory)
            .map_err(|source| ProjectError::Directory { path: directory.to_owned(), source })?;
        let repository = match (Repository::find(&resolved), git) {
            (Ok(repository), _) => Some(repository),
            (Err(GitError::NoRepository(_)), GitNeed::Optional) => None,
            (Err(error), _) => return Err(error.into()),
        };
        let directory =
            repository.as_ref().map_or_else(|| resolved.clone(), |repository| repository.root.clone());
        let text = directory.to_str().ok_or_else(|| ProjectError::NotText(directory.clone()))?;
        let id = ProjectId::of(text);
        check_not_widened(&resolved, &directory, paths)?;
        check_place(&directory, paths, binary)?;
        if let Some(outside) = repository.as_ref().and_then(|repository| outside(&directory, repository)) {
            check_place(outside, paths, binary)?;
        }
        let base = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = name.map_or_else(|| ProjectName::from_directory(base), Ok)?;
        Ok(Self { name, id, directory, standing: resolved, repository })
    }

    /// Whose settings and decisions are the project's.
    pub fn owner(&self) -> Owner {
        Owner { name: self.name.clone(), directory: self.directory.clone() }
    }

    /// The repository's shared directory where it lies outside the project (a linked worktree).
    pub fn outside_repository(&self) -> Option<&Path> {
        outside(&self.directory, self.repository.as_ref()?)
    }

    /// What a sandbox must not change of the repository and of those in `nested` (further `.git` in the project).
    pub fn guards(&self, nested: &[PathBuf]) -> Result<Guards, ProjectError> {
        Ok(match &self.repository {
            Some(repository) => repository.guards(nested)?,
            None => Guards::of_nested(nested)?,
        })
    }

    /// The cloister of this directory.
    pub fn cloister(&self) -> Result<(CloisterName, CloisterId), ProjectError> {
        let name = CloisterName::of(&self.name, None)?;
        let id = CloisterId::of(&name, &self.directory.to_string_lossy());
        Ok((name, id))
    }

    /// Checks that the name can belong to this directory. Nothing is recorded.
    ///
    /// # Errors
    /// [`ProjectError::NameTaken`] when it belongs to another one that still exists.
    pub fn check_name(&self, paths: &Paths) -> Result<(), ProjectError> {
        self.check_owner(&Registry::load(&paths.projects_file())?)
    }

    fn check_owner(&self, registry: &Registry) -> Result<(), ProjectError> {
        match registry.projects.get(&self.name) {
            Some(owner) if owner.path != self.directory && owner.path.exists() => {
                Err(ProjectError::NameTaken { name: self.name.clone(), owner: owner.path.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Records that the name belongs to this directory.
    ///
    /// # Errors
    /// [`ProjectError::NameTaken`] when it belongs to another one that still exists.
    pub fn register(&self, paths: &Paths) -> Result<(), ProjectError> {
        let file = paths.projects_file();
        let _lock = Lock::acquire(&file.with_extension("lock"))?;
        let mut registry = Registry::load(&file)?;
        self.check_owner(&registry)?;
        let entry = Entry { path: self.directory.clone(), id: self.id.clone() };
        if registry.projects.insert(self.name.clone(), entry.clone()) == Some(entry) {
            return Ok(());
        }
        registry.save(&file)
    }
}

/// The directory that is registered under a name, if any.
pub fn registered(name: &ProjectName, paths: &Paths) -> Result<Option<PathBuf>, ProjectError> {
    Ok(Registry::load(&paths.projects_file())?.projects.remove(name).map(|entry| entry.path))
}

/// A project as it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// Its name.
    pub name: ProjectName,
    /// Its directory.
    pub path: PathBuf,
    /// Its number.
    pub id: ProjectId,
}

/// Every registered project, in the order of their names.
pub fn all_registered(paths: &Paths) -> Result<Vec<Registered>, ProjectError> {
    let projects = Registry::load(&paths.projects_file())?.projects;
    Ok(projects.into_iter().map(|(name, Entry { path, id })| Registered { name, path, id }).collect())
}

/// Forgets that a name belongs to a directory, unless it belongs to another by now.
pub fn unregister(project: &Registered, paths: &Paths) -> Result<(), ProjectError> {
    let file = paths.projects_file();
    let _lock = Lock::acquire(&file.with_extension("lock"))?;
    let mut registry = Registry::load(&file)?;
    if registry.projects.get(&project.name).is_none_or(|entry| entry.path != project.path) {
        return Ok(());
    }
    registry.projects.remove(&project.name);
    registry.save(&file)
}

/// Refuses a project that contains a known one in which the user stands: its sandbox may have removed its `.git`
/// to have the next start open more.
fn check_not_widened(standing: &Path, directory: &Path, paths: &Paths) -> Result<(), ProjectError> {
    let mut known = all_registered(paths)?.into_iter().map(|project| project.path);
    match known
        .find(|inner| inner != directory && inner.starts_with(directory) && standing.starts_with(inner))
    {
        Some(inner) => Err(ProjectError::Widened { inner, outer: directory.to_owned() }),
        None => Ok(()),
    }
}

fn outside<'a>(directory: &Path, repository: &'a Repository) -> Option<&'a Path> {
    Some(repository.common_dir.as_path()).filter(|common| !common.starts_with(directory))
}

fn check_place(directory: &Path, paths: &Paths, binary: &Path) -> Result<(), ProjectError> {
    if paths::resolve_existing(paths.home()).starts_with(directory) {
        return Err(ProjectError::AboveHome { directory: directory.to_owned() });
    }
    let own = paths.own_dirs().into_iter().find(|own| paths::overlap(own, directory));
    match own.or_else(|| paths::resolve_existing(binary).starts_with(directory).then_some(binary)) {
        Some(own) => {
            Err(ProjectError::HoldsOwnFiles { directory: directory.to_owned(), own: own.to_owned() })
        }
        None => Ok(()),
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registry {
    projects: BTreeMap<ProjectName, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: PathBuf,
    id: ProjectId,
}

impl Registry {
    fn load(file: &Path) -> Result<Self, ProjectError> {
        let failed = |reason: String| ProjectError::Registry { path: file.to_owned(), reason };
        match fs::read(file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| failed(error.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    fn save(&self, file: &Path) -> Result<(), ProjectError> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|error| ProjectError::Registry { path: file.to_owned(), reason: error.to_string() })?;
        text.push(b'\n');
        Ok(paths::write_atomic(file, &text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host {
        root: PathBuf,
        paths: Paths,
        _keep: tempfile::TempDir,
    }

    fn host() -> Host {
        let keep = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(keep.path()).unwrap();
        let home = root.join("home");
        fs::create_dir_all(home.join("src")).unwrap();
        let variable = home.clone().into_os_string();
        let paths = Paths::from_environment(|name| (name == "HOME").then(|| variable.clone())).unwrap();
        Host { root, paths, _keep: keep }
    }

    fn repository(path: &Path) {
        git2::Repository::init(path).unwrap();
    }

    fn find(host: &Host, directory: &Path) -> Result<Project, ProjectError> {
        Project::find(directory, None, GitNeed::Required, &host.paths, Path::new("/usr/bin/cloister"))
    }

    #[test]
    fn a_project_is_named_after_its_directory() {
        let host = host();
        let directory = host.root.join("home/src/My App");
        repository(&directory);
        let project = find(&host, &directory).unwrap();
        assert_eq!((project.name.as_str(), project.directory), ("my-app", directory));
    }

    #[test]
    fn home_and_what_is_above_it_are_refused() {
        let host = host();
        repository(&host.root.join("home"));
        assert!(matches!(find(&host, &host.root.join("home/src")), Err(ProjectError::AboveHome { .. })));
        let above =
            Project::find(Path::new("/"), None, GitNeed::Optional, &host.paths, Path::new("/usr/bin/x"));
        assert!(matches!(above, Err(ProjectError::AboveHome { .. })), "{above:?}");
    }

    #[test]
    fn a_project_that_holds_cloisters_own_files_is_refused() {
        let host = host();
        let dotfiles = host.root.join("dotfiles");
        repository(&dotfiles);
        fs::create_dir_all(dotfiles.join("cloister")).unwrap();
        fs::create_dir_all(host.root.join("home/.config")).unwrap();
        std::os::unix::fs::symlink(dotfiles.join("cloister"), host.root.join("home/.config/cloister"))
            .unwrap();
        assert!(matches!(find(&host, &dotfiles), Err(ProjectError::HoldsOwnFiles { .. })));
        let share = host.root.join("home/.local/share/cloister");
        repository(&share);
        assert!(matches!(find(&host, &share), Err(ProjectError::HoldsOwnFiles { .. })));
    }

    #[test]
    fn a_project_that_holds_the_running_binary_is_refused() {
        let host = host();
        let directory = host.root.join("home/src/cloister");
        repository(&directory);
        let binary = directory.join("target/release/cloister");
        let found = Project::find(&directory, None, GitNeed::Required, &host.paths, &binary);
        assert!(matches!(found, Err(ProjectError::HoldsOwnFiles { own, .. }) if own == binary));
    }

    #[test]
    fn a_name_belongs_to_one_path() {
        let host = host();
        let (one, two) = (host.root.join("a/demo"), host.root.join("b/demo"));
        repository(&one);
        repository(&two);
        find(&host, &one).unwrap().register(&host.paths).unwrap();
        find(&host, &one).unwrap().register(&host.paths).unwrap();
        let taken = find(&host, &two).unwrap().register(&host.paths);
        assert!(matches!(taken, Err(ProjectError::NameTaken { owner, .. }) if owner == one));
        fs::remove_dir_all(&one).unwrap();
        find(&host, &two).unwrap().register(&host.paths).unwrap();
        assert_eq!(registered(&ProjectName::parse("demo").unwrap(), &host.paths).unwrap(), Some(two));
    }

    #[test]
    fn a_project_that_lost_its_repository_is_not_widened_to_the_one_around_it() {
        let host = host();
        let (outer, inner) = (host.root.join("mono"), host.root.join("mono/sub"));
        repository(&outer);
        repository(&inner);
        find(&host, &inner).unwrap().register(&host.paths).unwrap();
        fs::rename(inner.join(".git"), inner.join(".x")).unwrap();
        assert!(matches!(find(&host, &inner), Err(ProjectError::Widened { .. })));
        assert_eq!(find(&host, &outer).unwrap().directory, outer);
    }

    #[test]
    fn a_registry_that_is_garbage_is_not_overwritten() {
        let host = host();
        let directory = host.root.join("demo");
        repository(&directory);
        paths::write_atomic(&host.paths.projects_file(), b"{ no").unwrap();
        assert!(matches!(find(&host, &directory), Err(ProjectError::Registry { .. })));
        assert_eq!(fs::read(host.paths.projects_file()).unwrap(), b"{ no");
    }
}
