//! Files that a killed command had begun to write.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Collector, Kind, entries};
use crate::paths;

/// What is younger may still be being written.
const AGE: Duration = Duration::from_hours(1);

impl Collector<'_> {
    /// Removes temporary files of an hour ago in the directories that Cloister writes.
    pub(super) fn temporary_files(&mut self) {
        let files: Vec<PathBuf> =
            self.directories().iter().flat_map(|directory| entries(directory)).collect();
        for path in files.iter().filter(|path| is_stale(path)) {
            let reason = "a command was killed while it wrote it";
            self.remove(Kind::Temporary, path, reason, || Ok(paths::remove_if_present(path)?));
        }
    }

    fn directories(&self) -> Vec<PathBuf> {
        let paths = self.paths;
        let mut directories: Vec<PathBuf> = paths.own_dirs().map(Path::to_owned).to_vec();
        directories.extend([
            paths.tokens_dir(),
            paths.config_dir().join("projects"),
            paths.config_dir().join("decisions"),
            paths.config_dir().join("decisions/projects"),
            paths.state_dir().join("grants"),
            paths.audit_dir(),
            paths.receipts_dir(),
            paths.state_dir().join("baselines"),
            paths.state_dir().join("masks"),
        ]);
        // The instances themselves, not their homes: those are the sandboxes'.
        directories.extend(entries(&paths.instances_dir()));
        directories
    }
}

fn is_stale(path: &Path) -> bool {
    let is_temporary = path.file_name().and_then(|name| name.to_str()).is_some_and(paths::is_temporary_name);
    let Some(found) = fs::symlink_metadata(path).ok().filter(|found| is_temporary && found.is_file()) else {
        return false;
    };
    found.modified().is_ok_and(|then| SystemTime::now().duration_since(then).is_ok_and(|age| age > AGE))
}
