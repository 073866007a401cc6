//! Directories that guards lie in, up to the project: when the host removes, moves or replaces one, what covered the
//! guards is gone or went along, and what lies there now is the sandbox's to write. The sandbox is ended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, WatchFlags};

use super::table::{self, Place, Role};
use super::unwatched::Unwatched;
use super::{Guards, Table, links};
use crate::audit::Event;
use crate::init::Adjustment;
use crate::name::CloisterName;
use crate::process::Identity;
use crate::sandbox::{Guard, Receipt};

/// What git can't do without, which is pinned although nothing in it is guarded.
const PARTS: [&str; 2] = ["objects", "refs"];

/// The directories that must stay what they are, on the host and inside.
fn kept(project: &Path, guards: &[Guard]) -> BTreeMap<PathBuf, PathBuf> {
    let git_dirs = table::git_dirs(guards);
    let is_within =
        |path: &Path| path.starts_with(project) || git_dirs.iter().any(|(host, _)| path.starts_with(host));
    // Git removes it together with the last worktree, and makes it again with the next.
    let is_worktrees = |path: &Path| {
        path.ends_with("worktrees") && git_dirs.iter().any(|(host, _)| path.parent() == Some(*host))
    };
    let above = |guard: &Guard| {
        let pairs = guard.host.ancestors().zip(guard.inside.ancestors()).skip(1);
        let pairs = pairs.skip_while(|(host, _)| is_worktrees(host)).take_while(|(host, _)| is_within(host));
        pairs.map(|(host, inside)| (host.to_owned(), inside.to_owned())).collect::<Vec<_>>()
    };
    let parts =
        git_dirs.iter().flat_map(|(host, inside)| PARTS.map(|part| (host.join(part), inside.join(part))));
    guards.iter().flat_map(above).chain(parts.filter(|(host, _)| host.is_dir())).collect()
}

impl Guards {
    /// Watches whether the directories around the guards stay what they are.
    pub(super) fn keep_around(&self, table: &mut Table, receipt: &Receipt, unwatched: &mut Unwatched) {
        let kept = kept(&receipt.directory, &receipt.guards);
        for path in kept.keys() {
            // What is taken away is told by what it lay in, at once; by itself only when nobody has it open.
            let above = path.parent().filter(|above| kept.contains_key(*above));
            for watched in [Some(path.as_path()), above].into_iter().flatten() {
                let role = Role::Keeps(path.clone());
                let place = Place { cloister: receipt.cloister.clone(), path: watched.to_owned(), role };
                if let Err(error) = self.watch(table, place) {
                    unwatched.add(watched, &error);
                }
            }
        }
    }

    /// Ends a sandbox unless a directory still is the one that is watched: the kernel gives no other its number.
    pub(super) fn keep(&self, cloister: &CloisterName, path: &Path) {
        let is_kept = {
            let table = self.table();
            let flags =
                WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW | WatchFlags::MASK_ADD;
            let found = links::insist(path, || inotify::add_watch(&self.inotify, path, flags));
            found.is_ok_and(|watch| {
                let Some(places) = table.places.get(&watch) else {
                    self.unwatch(watch);
                    return false;
                };
                places.iter().any(|place| place.cloister == *cloister && place.path == path)
            })
        };
        if !is_kept {
            self.end_replaced(cloister, path);
        }
    }

    /// Ends a sandbox of whose directories the host replaced one while nobody watched: what is there now is not pinned.
    ///
    /// # Errors
    /// When it can't be found out.
    pub(in crate::guardian) fn check_kept(&self, receipt: &Receipt) -> Result<(), Unwatched> {
        let Some(first) = receipt.first.clone() else { return Ok(()) };
        let git_dirs = table::git_dirs(&receipt.guards);
        // Of what lies in a git directory, not all is pinned.
        let is_pinned = |host: &Path| {
            let mut around = git_dirs.iter().filter(|(git_dir, _)| host.starts_with(git_dir)).peekable();
            around.peek().is_none() || around.any(|(git_dir, _)| host == *git_dir)
        };
        let kept = kept(&receipt.directory, &receipt.guards).into_iter().filter(|(host, _)| is_pinned(host));
        let by_inside: BTreeMap<PathBuf, PathBuf> = kept.map(|(host, inside)| (inside, host)).collect();
        let mut adjustment = Adjustment::new(first);
        adjustment.pinned = by_inside.keys().cloned().collect();
        let done = match adjustment.perform() {
            _ if !adjustment.first.is_alive() => return Ok(()),
            Err(error) => return Err(error.to_string().into()),
            Ok(done) => done,
        };
        if let Some(host) = done.covered.iter().find_map(|inside| by_inside.get(inside)) {
            self.end_replaced(&receipt.cloister, host);
        }
        match done.failed.first() {
            Some((inside, error)) => Err(format!("{}: {error}", inside.display()).into()),
            None => Ok(()),
        }
    }

    /// Ends a sandbox some of whose guards went with a directory of the host's.
    pub(super) fn end_replaced(&self, cloister: &CloisterName, path: &Path) {
        let first = self.table().sandboxes.get(cloister).map(|sandbox| sandbox.first.clone());
        // After its end, the host may do what it likes.
        if first.as_ref().is_some_and(Identity::is_alive) {
            let what = "was removed, moved or replaced on the host, and what lies there is not guarded";
            let next = "look at it with `cloister stop`, then `cloister start` guards it anew";
            self.end(cloister, Event::SandboxReseal, &format!("{} {what}: {next}", path.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f1_f2_what_lies_around_guards_is_kept_and_the_worktrees_of_git_are_not() {
        let guard = |path: &str| Guard {
            host: Path::new("/src").join(path),
            inside: Path::new("/work").join(path),
            is_hidden: false,
        };
        let files = ["config", "config.worktree", "commondir", "worktrees/other"];
        let of_git = files.map(|file| guard(&format!(".git/{file}")));
        let guards: Vec<_> = of_git.into_iter().chain([guard(".envrc"), guard("a/b/settings")]).collect();
        let found = kept(Path::new("/src"), &guards);
        let pairs = ["", ".git", "a", "a/b"]
            .map(|path| (Path::new("/src").join(path), Path::new("/work").join(path)));
        assert_eq!(found, BTreeMap::from(pairs));
    }
}
