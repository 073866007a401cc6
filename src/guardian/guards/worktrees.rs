//! Which worktrees are the host's: those that it adds while a sandbox is up are none of the sandbox's business (F3).
//!
//! A sandbox can write any path into an entry, and lay directories and links where that leads, so the work must not
//! depend on what is there: git writes real paths, and so no link is followed. What is left is a walk of at most as many
//! directories as fit into [`MAX_BYTES`].

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, openat2};

use super::links::reach;

/// The longest path that is read.
const MAX_BYTES: u64 = 4096;

/// Tells whether an entry of `worktrees` belongs to a worktree outside of the project: its `gitdir` names a `.git` on
/// the host that names the entry in turn. Git writes both before it is done, and the sandbox can't write the latter.
pub(super) fn is_of_the_host(entry: &Path, project: &Path) -> bool {
    let named = || {
        let opened = reach(entry, OFlags::PATH).ok()?;
        let worktree = worktree(entry, &line(&opened, "gitdir")?, project)?;
        let pointer = line(&reach(&worktree, OFlags::PATH).ok()?, ".git")?;
        let back = normal(&worktree, OsStr::from_bytes(pointer.as_bytes().strip_prefix(b"gitdir: ")?));
        let (back, entry) = (fstat(reach(&back, OFlags::PATH).ok()?).ok()?, fstat(&opened).ok()?);
        Some((back.st_dev, back.st_ino) == (entry.st_dev, entry.st_ino))
    };
    named().unwrap_or(false)
}

/// The worktree that an entry names, unless it lies where a sandbox can write: in the project or the git directory.
fn worktree(entry: &Path, named: &OsStr, project: &Path) -> Option<PathBuf> {
    let pointer = normal(entry, named);
    // Nothing else is opened for a sandbox.
    (pointer.file_name()? == ".git").then_some(())?;
    let (worktree, git_dir) = (pointer.parent()?, entry.parent()?.parent()?);
    let is_outside = !worktree.starts_with(project) && !worktree.starts_with(git_dir);
    is_outside.then(|| worktree.to_owned())
}

/// A path as seen from a directory, without `.` and `..`, and without a look at the disk.
fn normal(directory: &Path, path: &OsStr) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in directory.join(path).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => drop(normal.pop()),
            other => normal.push(other),
        }
    }
    normal
}

/// The path in a file of one line.
fn line(directory: &OwnedFd, file: &str) -> Option<OsString> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat2(directory, file, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
    let end = text.iter().rposition(|byte| *byte != b'\n').map_or(0, |last| last + 1);
    text.truncate(end);
    Some(OsString::from_vec(text))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// A directory with a project and what may be its worktree, and the entry for that one in the project.
    fn stage() -> (TempDir, PathBuf, PathBuf, PathBuf, PathBuf) {
        let keep = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(keep.path()).unwrap();
        let (project, other) = (top.join("demo"), top.join("other"));
        let entry = project.join(".git/worktrees/other");
        fs::create_dir_all(&entry).unwrap();
        fs::create_dir_all(&other).unwrap();
        (keep, top, project, other, entry)
    }

    #[test]
    fn f3_only_what_a_worktree_outside_of_the_project_names_in_turn_is_the_hosts() {
        let (_keep, _, project, other, entry) = stage();
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

    #[test]
    fn f3_paths_in_what_a_sandbox_can_write_are_not_even_looked_at() {
        let judge = |entry: &str, gitdir: &str| {
            worktree(Path::new(entry), OsStr::new(gitdir), Path::new("/src/demo"))
                .map(PathBuf::into_os_string)
        };
        let own = "/src/demo/.git/worktrees/e";
        let steps = "x/../".repeat(800);
        for hostile in
            ["/src/demo/.d/l0/.git", "../../../.d/l0/.git", "/other/../src/./demo//own/.git", "l0/.git"]
        {
            assert_eq!(judge(own, hostile), None, "{hostile}");
        }
        assert_eq!(judge(own, &format!("../../../.d/{steps}l0/.git")), None);
        assert_eq!(judge("/src/main/.git/worktrees/e", "/src/main/.git/x/.git"), None, "it is shared");
        assert_eq!(judge(own, "/other/file"), None);
        assert_eq!(judge(own, "../../../../../.."), None);
        for good in ["/src/other/.git", "../../../../other/.git", "../../../../../../../src/other/.git"] {
            assert_eq!(judge(own, good), Some("/src/other".into()), "{good}");
        }
    }

    #[test]
    fn f3_no_link_is_followed_to_judge_an_entry() {
        let (_keep, top, project, other, entry) = stage();
        for number in 0..39 {
            symlink(format!("l{}", number + 1), top.join(format!("l{number}"))).unwrap();
        }
        symlink("other", top.join("l39")).unwrap();
        symlink("demo", top.join("project")).unwrap();
        let names = |gitdir: &str, back: &str| {
            fs::write(entry.join("gitdir"), format!("{gitdir}\n")).unwrap();
            fs::write(other.join(".git"), format!("gitdir: {back}\n")).unwrap();
            is_of_the_host(&entry, &project)
        };
        let (forth, back) = ("../../../../other/.git", "../demo/.git/worktrees/other");
        assert!(names(forth, back));
        for hostile in ["l39", "l20", "l0"].map(|link| format!("../../../../{link}/.git")) {
            assert!(!names(&hostile, back), "{hostile}");
        }
        assert!(!names(forth, "../project/.git/worktrees/other"));
        fs::rename(entry.join("gitdir"), top.join("gitdir")).unwrap();
        symlink(top.join("gitdir"), entry.join("gitdir")).unwrap();
        assert!(!is_of_the_host(&entry, &project));
    }
}
