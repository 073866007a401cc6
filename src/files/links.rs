//! Second names of guarded files: what is written through one is changed under the other (F12).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::FilesError;

/// How many entries are looked at; a project with more and with such a file is refused.
const MAX_ENTRIES: usize = 500_000;

/// Checks that no guarded file has a second name where a sandbox could write to it, below one of `roots`.
///
/// # Errors
/// [`FilesError::SecondName`] when one has.
pub fn check_single_names(roots: &[&Path], guarded: &[PathBuf]) -> Result<(), FilesError> {
    let mut shared = BTreeMap::new();
    for path in guarded {
        each_file(path, &mut 0, &mut |file, found| {
            if found.nlink() > 1 {
                shared.insert((found.dev(), found.ino()), file.to_owned());
            }
            None::<()>
        });
    }
    if shared.is_empty() {
        return Ok(());
    }
    let mut seen = 0;
    for root in roots {
        let other = each_file(root, &mut seen, &mut |file, found| {
            let path = shared.get(&(found.dev(), found.ino()))?;
            let is_guarded = guarded.iter().any(|guarded| file.starts_with(guarded));
            (!is_guarded).then(|| (path.clone(), file.to_owned()))
        });
        if let Some((path, other)) = other {
            return Err(FilesError::SecondName { path, other });
        }
        if let Some(path) = shared.values().next().filter(|_| seen >= MAX_ENTRIES) {
            // It was not found, and not all was looked at.
            return Err(FilesError::SecondName { path: path.clone(), other: root.join("…") });
        }
    }
    Ok(())
}

/// Calls `look` for every ordinary file at or below a path until it answers.
fn each_file<T>(
    path: &Path,
    seen: &mut usize,
    look: &mut impl FnMut(&Path, &fs::Metadata) -> Option<T>,
) -> Option<T> {
    *seen += 1;
    let found = fs::symlink_metadata(path).ok().filter(|_| *seen < MAX_ENTRIES)?;
    if found.is_file() {
        return look(path, &found);
    }
    if !found.is_dir() {
        return None;
    }
    fs::read_dir(path).ok()?.flatten().find_map(|entry| each_file(&entry.path(), seen, look))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f12_a_second_name_in_the_project_is_found_and_one_elsewhere_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (root, backup) = (directory.path().join("project"), directory.path().join("backup"));
        fs::create_dir_all(root.join(".git/hooks")).unwrap();
        fs::create_dir_all(root.join("node_modules/x")).unwrap();
        let hook = root.join(".git/hooks/pre-commit");
        fs::write(&hook, "").unwrap();
        let guarded = [root.join(".git/hooks"), root.join(".git/config")];
        let check = || check_single_names(&[&root], &guarded);
        check().unwrap();
        fs::hard_link(&hook, &backup).unwrap();
        fs::hard_link(&hook, root.join(".git/hooks/pre-push")).unwrap();
        check().unwrap();
        let alias = root.join("node_modules/x/alias");
        fs::hard_link(&hook, &alias).unwrap();
        let refused = check();
        assert!(
            matches!(&refused, Err(FilesError::SecondName { other, .. }) if *other == alias),
            "{refused:?}"
        );
    }
}
