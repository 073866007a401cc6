//! Refusing what reading a repository could hang on: pipes, devices and huge files in the place of small ones.

use std::fs;
use std::path::{Path, PathBuf};

use super::GitError;

/// The largest file that is read of a repository, in bytes.
pub(super) const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The files of a git directory that are read whole.
const READ: [&str; 6] = ["HEAD", "config", "config.worktree", "commondir", "gitdir", "shallow"];

/// Checks what is read to find the repository around a directory: its `.git`, and what that leads to.
pub(super) fn check(directory: &Path) -> Result<(), GitError> {
    let own = directory.ancestors().map(|above| above.join(".git"));
    let Some(own) = own.into_iter().find(|own| own.symlink_metadata().is_ok()) else { return Ok(()) };
    check_file(&own)?;
    let git_dir = if own.is_dir() { Some(own) } else { named(&own, "gitdir: ") };
    let Some(git_dir) = git_dir else { return Ok(()) };
    READ.iter().try_for_each(|name| check_file(&git_dir.join(name)))?;
    match named(&git_dir.join("commondir"), "") {
        Some(common) => READ.iter().try_for_each(|name| check_file(&common.join(name))),
        None => Ok(()),
    }
}

/// Where a file of one line points to, seen from its own directory.
fn named(file: &Path, prefix: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(file).ok()?;
    Some(file.parent()?.join(text.strip_prefix(prefix)?.trim_end()))
}

fn check_file(path: &Path) -> Result<(), GitError> {
    match fs::metadata(path) {
        Ok(found) if !found.is_dir() && (!found.is_file() || found.len() > MAX_FILE_BYTES) => {
            Err(GitError::Odd(path.to_owned()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Repository;
    use super::*;

    fn pipe(path: &Path) {
        let _ = fs::remove_file(path);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    }

    #[track_caller]
    fn refused(directory: &Path, odd: &Path) {
        let found = Repository::find(directory);
        assert!(matches!(&found, Err(GitError::Odd(path)) if path == odd), "{}: {found:?}", odd.display());
    }

    #[test]
    fn a_pipe_or_a_huge_file_does_not_hang_the_search() {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap().join("demo");
        git2::Repository::init(&root).unwrap();
        let config = root.join(".git/config.worktree");
        pipe(&config);
        refused(&root, &config);
        fs::remove_file(&config).unwrap();
        fs::File::create(&config).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        refused(&root, &config);
        fs::remove_file(&config).unwrap();
        pipe(&root.join(".git/HEAD"));
        refused(&root, &root.join(".git/HEAD"));
    }

    #[test]
    fn a_pipe_in_the_place_of_git_or_behind_a_pointer_does_not_hang_the_search() {
        let directory = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(directory.path()).unwrap();
        let (root, data) = (top.join("demo"), top.join("data"));
        fs::create_dir_all(&root).unwrap();
        pipe(&root.join(".git"));
        refused(&root, &root.join(".git"));
        fs::remove_file(root.join(".git")).unwrap();
        git2::Repository::init_bare(&data).unwrap();
        fs::write(root.join(".git"), "gitdir: ../data\n").unwrap();
        pipe(&data.join("HEAD"));
        refused(&root, &root.join("../data/HEAD"));
        fs::write(data.join("commondir"), "../common\n").unwrap();
        fs::remove_file(data.join("HEAD")).unwrap();
        fs::write(data.join("HEAD"), "ref: refs/heads/main\n").unwrap();
        fs::create_dir(top.join("common")).unwrap();
        pipe(&top.join("common/config"));
        refused(&root, &root.join("../data/../common/config"));
    }
}
