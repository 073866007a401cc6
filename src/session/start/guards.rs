//! What guards the files of one project, brought together: its repositories, what the host executes, what is hidden.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::StartError;
use crate::config::Config;
use crate::files::{
    self, Absent, Baseline, Hiding, Kept, MASK_TEXT, Mask, Masks, Protected, Protection, Walk,
};
use crate::git::{Guards, Repository};
use crate::project::{Project, ProjectError};
use crate::sandbox::Placeholder;

/// What guards a project's files.
#[derive(Debug)]
pub(in crate::session) struct Guarding {
    /// What is laid over itself, in the order of the paths, and whether it can be written.
    pub(super) guarded: Vec<(PathBuf, bool)>,
    /// What is hidden, and whether it is a directory.
    pub(super) masked: Vec<(PathBuf, bool)>,
    /// What is hidden, to be remembered.
    pub(super) kept: Kept,
    /// Where nothing else is mounted, in or above it.
    pub(super) occupied: Vec<PathBuf>,
    /// What has to be made first, parents first.
    pub(super) placeholders: Vec<Placeholder>,
    /// What takes the place of something read-only that the host removes.
    pub(super) spare: Vec<Placeholder>,
    /// What the host would execute now.
    pub(in crate::session) baseline: Baseline,
    /// What the user should know.
    pub(super) notes: Vec<String>,
}

impl Guarding {
    /// Looks at a project. Nothing is changed.
    pub(super) fn of(project: &Project, config: &Config, kept: &Kept) -> Result<Self, StartError> {
        let root = &project.directory;
        let walk = files::walk(root)?;
        let nested: Vec<PathBuf> = walk.repositories.iter().map(|path| root.join(path)).collect();
        let git = project.guards(&nested)?;
        files::check_git_dirs(&git.git_dirs)?;
        let gitlinks = project.repository.as_ref().map(Repository::gitlinks).transpose();
        let gitlinks = gitlinks.map_err(ProjectError::Git)?.unwrap_or_default();
        let named = project.repository.as_ref().map(Repository::named_by_settings).transpose();
        let named =
            named.map_err(ProjectError::Git)?.unwrap_or_default().into_iter().map(|named| Protected {
                path: named.path,
                absent: if named.is_settings { Absent::File } else { Absent::Directory },
            });
        let protection = files::protect(root, &config.files.protect, named.collect())?;
        let mut guarded = together(root, &walk, &git, &protection);
        let closed: Vec<PathBuf> =
            guarded.iter().filter(|(_, is_writable)| !**is_writable).map(|(path, _)| path.clone()).collect();
        let roots: Vec<_> = [root.as_path()].into_iter().chain(project.outside_repository()).collect();
        files::check_single_names(&roots, &closed)?;
        let hiding = Hiding { root, walk: &walk, wanted: &config.files.mask, kept };
        let Masks { masks, kept } = masks(project, &hiding)?;
        let masked: Vec<_> = masks.iter().map(|mask| (root.join(&mask.path), mask.is_directory)).collect();
        let occupied = guarded.keys().chain(masked.iter().map(|(path, _)| path)).cloned().collect();
        pin_above(root, &mut guarded, &masks);
        Ok(Self {
            masked,
            kept,
            occupied,
            placeholders: placeholders(project, &git, &protection.placeholders),
            spare: placeholders(project, &git, &protection.sealed),
            baseline: Baseline::take(root, &walk, &git.git_dirs, &gitlinks),
            notes: notes(&walk),
            guarded: guarded.into_iter().collect(),
        })
    }
}

/// All guards in the order of their paths. What is closed stays closed, and nothing in it is opened but what was
/// planned together with it.
fn together(root: &Path, walk: &Walk, git: &Guards, protection: &Protection) -> BTreeMap<PathBuf, bool> {
    let mut guarded: BTreeMap<PathBuf, bool> =
        protection.mounts.iter().map(|(path, is_writable)| (root.join(path), *is_writable)).collect();
    let closed: Vec<PathBuf> =
        guarded.iter().filter(|(_, is_writable)| !**is_writable).map(|(path, _)| path.clone()).collect();
    // A submodule or nested repository could be renamed as a whole, and another one put in its place.
    let above = walk.repositories.iter().flat_map(|path| path.ancestors().skip(1));
    let above = above.filter(|above| !above.as_os_str().is_empty()).map(|above| (root.join(above), true));
    let pinned = git.pinned.iter().map(|one| (one.path.clone(), one.is_writable));
    let closed_by_git = git.guarded.iter().map(|one| (one.path.clone(), false));
    for (path, is_writable) in above.chain(pinned).chain(closed_by_git) {
        let is_writable = is_writable && !closed.iter().any(|closed| path.starts_with(closed));
        guarded.entry(path).and_modify(|before| *before &= is_writable).or_insert(is_writable);
    }
    guarded
}

/// Pins the directories above what is hidden: a sandbox could move one, and the next would find the secret elsewhere,
/// or not at all. Each can be written where what it lies in can.
fn pin_above(root: &Path, guarded: &mut BTreeMap<PathBuf, bool>, masks: &[Mask]) {
    for mask in masks {
        let mut above: Vec<&Path> =
            mask.path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()).collect();
        above.reverse();
        let mut is_writable = true;
        for path in above {
            is_writable = *guarded.entry(root.join(path)).or_insert(is_writable);
        }
    }
}

fn masks(project: &Project, hiding: &Hiding<'_>) -> Result<Masks, StartError> {
    Ok(files::masks(hiding, |files| {
        // What can't be told to be known is hidden.
        let unchanged = project.repository.as_ref().map(|repository| repository.unchanged(files));
        unchanged.and_then(Result::ok).unwrap_or_default()
    })?)
}

fn placeholders(project: &Project, git: &Guards, protected: &[(PathBuf, Absent)]) -> Vec<Placeholder> {
    let of_git = git.guarded.iter().map(|one| Placeholder::new(&one.path, one.placeholder));
    let of_project = protected.iter().map(|(path, absent)| {
        let content = match absent {
            Absent::Directory => None,
            Absent::File => Some(""),
        };
        Placeholder::new(&project.directory.join(path), content)
    });
    of_git.chain(of_project).collect()
}

fn notes(walk: &Walk) -> Vec<String> {
    let cut = "the project is too large to be looked through: secrets that lie deep in it are not hidden by their \
               names (name them in `files.mask`), and `stop` does not compare what lies there";
    walk.is_cut_short.then(|| cut.to_owned()).into_iter().collect()
}

/// What a hidden file holds inside.
pub(super) const HIDDEN: &str = MASK_TEXT;
