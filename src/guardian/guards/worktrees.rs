//! Which worktrees are the host's: those that it adds while a sandbox is up are none of the sandbox's business (F3).

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

/// The longest path that is read.
const MAX_BYTES: u64 = 4096;

/// Tells whether an entry of `worktrees` belongs to a worktree outside of the project: its `gitdir` names a `.git` on
/// the host that names the entry in turn. Git writes both before it is done, and the sandbox can't write the latter.
pub(super) fn is_of_the_host(entry: &Path, project: &Path) -> bool {
    let named = || {
        let pointer = entry.join(line(&entry.join("gitdir"))?);
        // Nothing else is opened for a sandbox.
        (pointer.file_name()? == ".git").then_some(())?;
        let directory = fs::canonicalize(pointer.parent()?).ok()?;
        let back = directory.join(line(&directory.join(".git"))?.strip_prefix("gitdir: ")?);
        let is_named = fs::canonicalize(back).ok()? == fs::canonicalize(entry).ok()?;
        Some(is_named && !directory.starts_with(project))
    };
    named().unwrap_or(false)
}

/// The path in a file of one line.
fn line(file: &Path) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, file, flags, Mode::empty()).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f3_only_what_a_worktree_outside_of_the_project_names_in_turn_is_the_hosts() {
        let keep = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(keep.path()).unwrap();
        let (project, other) = (top.join("demo"), top.join("other"));
        let entry = project.join(".git/worktrees/other");
        fs::create_dir_all(&entry).unwrap();
        fs::create_dir_all(&other).unwrap();
        let is_the_hosts = || is_of_the_host(&entry, &project);
        assert!(!is_the_hosts());
        fs::write(entry.join("gitdir"), format!("{}\n", other.join(".git").display())).unwrap();
        assert!(!is_the_hosts(), "the worktree names nothing yet");
        fs::write(other.join(".git"), "gitdir: /elsewhere\n").unwrap();
        assert!(!is_the_hosts());
        fs::write(other.join(".git"), format!("gitdir: {}\n", entry.display())).unwrap();
        assert!(is_the_hosts());
        fs::write(entry.join("gitdir"), "../../../../other/.git\n").unwrap();
        fs::write(other.join(".git"), "gitdir: ../demo/.git/worktrees/other\n").unwrap();
        assert!(is_the_hosts(), "paths may be relative");
        let own = project.join("own");
        fs::create_dir(&own).unwrap();
        fs::write(own.join(".git"), format!("gitdir: {}\n", entry.display())).unwrap();
        fs::write(entry.join("gitdir"), format!("{}\n", own.join(".git").display())).unwrap();
        assert!(!is_the_hosts(), "a sandbox could have made it");
        fs::write(entry.join("gitdir"), format!("{}\n", other.join("file").display())).unwrap();
        assert!(!is_the_hosts());
    }
}
