//! Projects whose directory is gone: their entries in the registry and their homes.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::{Collector, GcProblem, Kind, entries};
use crate::name::{CloisterName, ProjectId};
use crate::paths::{self, Lock, PathsError};
use crate::project::{self, Registered};
use crate::sandbox::Receipt;

impl Collector<'_> {
    /// Removes what is kept of projects that were deleted.
    pub(super) fn projects(&mut self) {
        let projects = match project::all_registered(self.paths) {
            Ok(projects) => projects,
            Err(error) => return self.found.problems.push(error.into()),
        };
        self.unowned(&projects);
        for project in projects {
            match is_deleted(&project.path) {
                Deleted::No => {}
                Deleted::Perhaps(reason) => self.keep(Kind::Project, &project.path, reason),
                Deleted::Yes if self.is_running(&project) => {
                    self.keep(Kind::Project, &project.path, "it is gone, but a sandbox of it is running");
                }
                Deleted::Yes => self.forget(&project),
            }
        }
    }

    /// Names the homes that belong to no registered project; somebody may want them back.
    fn unowned(&mut self, projects: &[Registered]) {
        for path in entries(&self.paths.instances_dir()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !projects.iter().any(|project| project.name.as_str() == name) {
                self.keep(Kind::Instance, &path, "it belongs to no registered project; remove it by hand");
            }
        }
    }

    fn is_running(&self, project: &Registered) -> bool {
        // A receipt that can't be read may be this project's.
        let Ok(found) = Receipt::load_all(&self.paths.receipts_dir()) else { return true };
        let is_its = |receipt: &Receipt| receipt.project == project.name || receipt.project_id == project.id;
        self.running.contains(&project.name)
            || !found.unreadable.is_empty()
            || found.receipts.iter().any(|receipt| is_its(receipt) && receipt.is_running())
    }

    fn forget(&mut self, project: &Registered) {
        let reason = format!("its project `{}` is gone", project.path.display());
        let instance = self.paths.instance_dir(&project.name);
        let paths = self.paths;
        let lock = || -> Result<Option<Lock>, GcProblem> {
            let name = CloisterName::of(&project.name, None).ok();
            Ok(name.map(|name| Lock::acquire(&paths.cloister_lock(&name))).transpose()?)
        };
        if owner(&instance).is_some_and(|id| id == project.id) {
            self.remove(Kind::Instance, &instance, reason, || {
                let _lock = lock()?;
                // Somebody may have started it in the meantime.
                if is_deleted(&project.path) == Deleted::Yes { remove_tree(&instance) } else { Ok(()) }
            });
        }
        self.remove(Kind::Project, &project.path, "it is gone", || {
            let _lock = lock()?;
            if is_deleted(&project.path) == Deleted::Yes {
                project::unregister(project, paths)?;
            }
            Ok(())
        });
    }
}

/// Whose home an instance is.
fn owner(instance: &Path) -> Option<ProjectId> {
    ProjectId::parse(fs::read_to_string(instance.join("owner")).ok()?.trim()).ok()
}

/// Whether a project's directory was deleted.
#[derive(Debug, PartialEq, Eq)]
enum Deleted {
    No,
    /// It is not there, and it may be somewhere else.
    Perhaps(&'static str),
    Yes,
}

const UNREADABLE: &str = "the directory around it can't be read: perhaps a disk that is not mounted";

fn is_deleted(directory: &Path) -> Deleted {
    match fs::symlink_metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Ok(_) => return Deleted::No,
        Err(_) => return Deleted::Perhaps("it can't be looked at"),
    }
    let Some(parent) = directory.parent().filter(|parent| parent.is_dir()) else {
        return Deleted::Perhaps("the directory around it is gone too: perhaps a disk that is not mounted");
    };
    // An empty directory is what is left of a disk that is not mounted, wherever its place is.
    match fs::read_dir(parent).and_then(|mut entries| entries.next().transpose()) {
        Ok(Some(_)) => Deleted::Yes,
        Ok(None) => Deleted::Perhaps("the directory around it is empty: perhaps a disk that is not mounted"),
        Err(_) => Deleted::Perhaps(UNREADABLE),
    }
}

/// Removes a sandbox's home; directories that were closed by `chmod` (as Go's module cache is) are opened for it.
fn remove_tree(path: &Path) -> Result<(), GcProblem> {
    if paths::remove_directory(path).is_ok() {
        return Ok(());
    }
    open_up(path).map_err(PathsError::io("open", path))?;
    Ok(paths::remove_directory(path)?)
}

fn open_up(directory: &Path) -> io::Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    for path in entries(directory) {
        if fs::symlink_metadata(&path)?.is_dir() {
            open_up(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_deleted_when_the_one_around_it_is_there() {
        let around = tempfile::tempdir().unwrap();
        let project = around.path().join("project");
        fs::create_dir(around.path().join("other")).unwrap();
        assert_eq!(is_deleted(&project), Deleted::Yes);
        assert!(matches!(is_deleted(&project.join("below")), Deleted::Perhaps(_)));
        fs::write(&project, "").unwrap();
        assert_eq!(is_deleted(&project), Deleted::No);
        assert!(matches!(is_deleted(&project.join("below")), Deleted::Perhaps(_)));
    }

    #[test]
    fn m1_a_disk_that_is_not_mounted_is_no_deletion() {
        let around = tempfile::tempdir().unwrap();
        let point = around.path().join("data/disk");
        fs::create_dir_all(&point).unwrap();
        assert!(
            matches!(is_deleted(&point.join("project")), Deleted::Perhaps(reason) if reason.contains("empty"))
        );
        fs::write(point.join("other"), "").unwrap();
        assert_eq!(is_deleted(&point.join("project")), Deleted::Yes);
        // Who may enter and not look; root always may.
        fs::set_permissions(&point, fs::Permissions::from_mode(0o300)).unwrap();
        let is_readable = fs::read_dir(&point).is_ok();
        let expected = if is_readable { Deleted::Yes } else { Deleted::Perhaps(UNREADABLE) };
        assert_eq!(is_deleted(&point.join("project")), expected);
    }

    #[test]
    fn closed_directories_are_removed_and_links_not_followed() {
        let around = tempfile::tempdir().unwrap();
        let (home, other) = (around.path().join("home"), around.path().join("other"));
        fs::create_dir_all(home.join("go/mod")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&other, home.join("go/link")).unwrap();
        for closed in ["go/mod", "go"] {
            fs::set_permissions(home.join(closed), fs::Permissions::from_mode(0o000)).unwrap();
        }
        remove_tree(&home).unwrap();
        assert!(!home.exists() && other.join("file").exists());
    }
}
