//! Which directory is watched for what, and what an event in it asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::mem::discriminant;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::inotify::ReadFlags;

use crate::name::CloisterName;
use crate::process::Identity;
use crate::sandbox::{Guard, Receipt};

use super::unwatched::Unwatched;

/// How many records one sandbox can cause within [`WINDOW`].
const MAX_RECORDS: usize = 20;
const WINDOW: Duration = Duration::from_hours(1);

/// The files of a worktree's entry after whose writing it is looked at; git writes them in this order.
const ENTRY_FILES: [&str; 3] = ["gitdir", "commondir", "HEAD"];

/// All that is watched, by watch and by sandbox.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) sandboxes: BTreeMap<CloisterName, Sandbox>,
    pub(super) places: BTreeMap<i32, Vec<Place>>,
    /// Guards that the host removed, by sandbox and path, and when something is put in their place.
    pub(super) missing: BTreeMap<(CloisterName, PathBuf), Instant>,
}

/// What is known of one sandbox.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) first: Identity,
    /// When it was started, in seconds since 1970.
    pub(super) started: u64,
    pub(super) project: PathBuf,
    /// How many links it made in git directories.
    pub(super) links: usize,
    pub(super) quota: Quota,
    /// Whether all of its guards are watched.
    pub(super) is_whole: bool,
    /// What could not be looked at while it was taken over.
    pub(super) unseen: Unwatched,
    /// Whether it was to be ended.
    pub(super) is_ended: bool,
}

impl Sandbox {
    pub(super) fn of(first: &Identity, receipt: &Receipt) -> Self {
        Self {
            first: first.clone(),
            started: receipt.started,
            project: receipt.directory.clone(),
            links: 0,
            quota: Quota::default(),
            is_whole: false,
            unseen: Unwatched::default(),
            is_ended: false,
        }
    }
}

/// Bounds the records that one sandbox can cause.
#[derive(Debug, Default)]
pub(super) struct Quota {
    window: Option<Instant>,
    written: usize,
}

/// Whether something is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Write,
    WriteThatNoMoreAre,
    Drop,
}

impl Quota {
    /// Counts one record.
    pub(super) fn count(&mut self, now: Instant) -> Verdict {
        if self.window.is_none_or(|window| now.duration_since(window) > WINDOW) {
            *self = Self { window: Some(now), written: 0 };
        }
        self.written = self.written.saturating_add(1);
        match self.written {
            ..=MAX_RECORDS => Verdict::Write,
            written if written == MAX_RECORDS + 1 => Verdict::WriteThatNoMoreAre,
            _ => Verdict::Drop,
        }
    }
}

/// A directory that is watched for one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) cloister: CloisterName,
    pub(super) path: PathBuf,
    pub(super) role: Role,
}

/// What it is watched for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// It holds a guard.
    Holds(Guard),
    /// It is this directory around guards, or holds it.
    Keeps(PathBuf),
    /// It is a git directory, seen inside under this path.
    GitDir { inside: PathBuf },
    /// It is a directory of logs in a git directory, so many levels deep.
    Logs { depth: usize },
    /// It is the `worktrees` of a git directory, seen inside under this path.
    Worktrees { inside: PathBuf },
    /// It is the entry of a worktree; its `worktrees` is seen inside under this path.
    Entry { worktrees: PathBuf },
}

/// What is to be done for one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Task {
    /// Seal or hide a path inside, or put something in its place when it is missing.
    Cover(Guard),
    /// End the sandbox unless a directory around guards still is the same one.
    Keep(PathBuf),
    /// Remove a link.
    Unlink { directory: PathBuf, name: OsString },
    /// Watch a directory that has come, and look at what is in it.
    Enter { path: PathBuf, role: Role },
    /// Seal the entry of a worktree if it is the host's.
    Judge { entry: PathBuf, worktrees: PathBuf },
}

impl Table {
    /// What an event asks for.
    pub(super) fn tasks(&self, watch: i32, name: &OsStr, flags: ReadFlags) -> Vec<(CloisterName, Task)> {
        let places = self.places.get(&watch).into_iter().flatten();
        places.flat_map(|place| place.tasks(name, flags).map(|task| (place.cloister.clone(), task))).collect()
    }

    /// What is to be done when events were lost: everything that is watched may have changed.
    pub(super) fn all_tasks(&self) -> Vec<(CloisterName, Task)> {
        let places = self.places.values().flatten();
        places.map(|place| (place.cloister.clone(), place.every_task())).collect()
    }

    /// How many other directories are watched for the same sandbox and the same kind of reason.
    pub(super) fn count_others(&self, place: &Place) -> usize {
        let is_kin = |other: &&Place| {
            other.cloister == place.cloister
                && other.path != place.path
                && discriminant(&other.role) == discriminant(&place.role)
        };
        self.places.values().flatten().filter(is_kin).count()
    }

    /// What is guarded as a whole in a directory.
    pub(super) fn guarded_in(&self, cloister: &CloisterName, directory: &Path) -> BTreeSet<PathBuf> {
        let places = self.places.values().flatten();
        let places = places.filter(|place| place.cloister == *cloister && place.path == directory);
        places
            .filter_map(|place| match &place.role {
                Role::Holds(guard) => Some(guard.host.clone()),
                _ => None,
            })
            .collect()
    }

    /// Forgets a sandbox; gives the watches that nobody needs any more.
    pub(super) fn forget(&mut self, cloister: &CloisterName) -> Vec<i32> {
        self.sandboxes.remove(cloister);
        let mut unneeded = Vec::new();
        self.places.retain(|watch, places| {
            places.retain(|place| place.cloister != *cloister);
            if places.is_empty() {
                unneeded.push(*watch);
            }
            !places.is_empty()
        });
        unneeded
    }
}

impl Place {
    fn tasks(&self, name: &OsStr, flags: ReadFlags) -> impl Iterator<Item = Task> + use<> {
        let has_come = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        let (is_directory, path) = (flags.contains(ReadFlags::ISDIR), self.path.join(name));
        let unlink = || Task::Unlink { directory: self.path.clone(), name: name.to_owned() };
        let task = match &self.role {
            Role::Holds(guard) => (guard.host.file_name() == Some(name)).then(|| self.every_task()),
            Role::Keeps(kept) => {
                let is_itself = flags.intersects(ReadFlags::MOVE_SELF | ReadFlags::DELETE_SELF);
                let is_concerned =
                    if self.path == *kept { is_itself } else { kept.file_name() == Some(name) };
                is_concerned.then(|| self.every_task())
            }
            Role::Entry { .. } => ENTRY_FILES.iter().any(|file| *file == name).then(|| self.every_task()),
            _ if !has_come => None,
            Role::GitDir { .. } | Role::Logs { .. } | Role::Worktrees { .. } if !is_directory => {
                Some(unlink())
            }
            Role::GitDir { inside } if name == "worktrees" => {
                Some(Task::Enter { path, role: Role::Worktrees { inside: inside.join(name) } })
            }
            Role::GitDir { .. } if name == "logs" => {
                Some(Task::Enter { path, role: Role::Logs { depth: 0 } })
            }
            Role::Logs { depth } => Some(Task::Enter { path, role: Role::Logs { depth: depth + 1 } }),
            Role::Worktrees { inside } => {
                Some(Task::Enter { path, role: Role::Entry { worktrees: inside.clone() } })
            }
            Role::GitDir { .. } => None,
        };
        task.into_iter()
    }

    /// What is to be done for a place of which nothing is known any more.
    fn every_task(&self) -> Task {
        match &self.role {
            Role::Holds(guard) => Task::Cover(guard.clone()),
            Role::Keeps(kept) => Task::Keep(kept.clone()),
            Role::Entry { worktrees } => {
                Task::Judge { entry: self.path.clone(), worktrees: worktrees.clone() }
            }
            role @ (Role::GitDir { .. } | Role::Logs { .. } | Role::Worktrees { .. }) => {
                Task::Enter { path: self.path.clone(), role: role.clone() }
            }
        }
    }
}

/// The git directories among what is guarded, on the host and inside: these two files are guarded together nowhere else.
pub(super) fn git_dirs(guards: &[Guard]) -> Vec<(&Path, &Path)> {
    let holds = |directory: &Path, name: &str| {
        let wanted = directory.join(name);
        guards.iter().any(|guard| guard.host == wanted)
    };
    let parents = guards.iter().filter(|guard| guard.host.ends_with("commondir"));
    let parents = parents.filter_map(|guard| Some((guard.host.parent()?, guard.inside.parent()?)));
    parents.filter(|(host, _)| holds(host, "config.worktree")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> CloisterName {
        CloisterName::parse(text).unwrap()
    }

    fn place(cloister: &str, path: &str, role: Role) -> Place {
        Place { cloister: name(cloister), path: path.into(), role }
    }

    fn guard(file: &str, is_hidden: bool) -> Guard {
        Guard { host: Path::new("/src").join(file), inside: Path::new("/work").join(file), is_hidden }
    }

    fn holds(file: &str, is_hidden: bool) -> Role {
        Role::Holds(guard(file, is_hidden))
    }

    fn table() -> Table {
        let git = Role::GitDir { inside: "/work/.git".into() };
        let worktrees = Role::Worktrees { inside: "/work/.git/worktrees".into() };
        let entry = Role::Entry { worktrees: "/work/.git/worktrees".into() };
        let top = vec![
            place("one", "/src", holds(".envrc", false)),
            place("two", "/src", holds(".env", true)),
            place("one", "/src", holds(".env", true)),
        ];
        let places = [
            (1, top),
            (2, vec![place("one", "/src/.git", git)]),
            (3, vec![place("one", "/src/.git/logs", Role::Logs { depth: 1 })]),
            (4, vec![place("one", "/src/.git/worktrees", worktrees)]),
            (5, vec![place("one", "/src/.git/worktrees/x", entry)]),
        ];
        Table { places: BTreeMap::from(places), ..Table::default() }
    }

    fn asked(watch: i32, file: &str, flags: ReadFlags) -> Vec<(CloisterName, Task)> {
        table().tasks(watch, OsStr::new(file), flags)
    }

    fn cover(cloister: &str, file: &str, is_hidden: bool) -> (CloisterName, Task) {
        (name(cloister), Task::Cover(guard(file, is_hidden)))
    }

    #[test]
    fn an_event_concerns_the_guards_of_its_name_in_every_sandbox() {
        assert_eq!(asked(1, ".envrc", ReadFlags::MOVED_TO), [cover("one", ".envrc", false)]);
        let both = [cover("two", ".env", true), cover("one", ".env", true)];
        assert_eq!(asked(1, ".env", ReadFlags::CREATE), both);
        assert_eq!(asked(1, ".envrc", ReadFlags::DELETE), [cover("one", ".envrc", false)]);
        assert_eq!(asked(1, "other", ReadFlags::CREATE), []);
        assert_eq!(asked(9, ".env", ReadFlags::CREATE), []);
    }

    #[test]
    fn f1_a_directory_around_guards_is_looked_at_when_it_goes_or_another_comes() {
        let keeps = |path: &str| place("one", path, Role::Keeps("/src/.git".into()));
        let asked = |path: &str, file: &str, flags| {
            let found: Vec<Task> = keeps(path).tasks(OsStr::new(file), flags).collect();
            found == [Task::Keep("/src/.git".into())]
        };
        let directory = ReadFlags::ISDIR;
        for flags in [ReadFlags::DELETE, ReadFlags::MOVED_FROM, ReadFlags::MOVED_TO, ReadFlags::CREATE] {
            assert!(asked("/src", ".git", flags | directory) && !asked("/src", "other", flags | directory));
            assert!(!asked("/src/.git", ".git", flags | directory), "another of the name lies in it");
        }
        assert!(
            asked("/src/.git", "", ReadFlags::MOVE_SELF) && asked("/src/.git", "", ReadFlags::DELETE_SELF)
        );
    }

    #[test]
    fn c3_what_may_be_a_link_in_a_git_directory_is_looked_at() {
        let unlink = |directory: &str, file: &str| {
            [(name("one"), Task::Unlink { directory: directory.into(), name: file.into() })]
        };
        assert_eq!(asked(2, "FETCH_HEAD", ReadFlags::CREATE), unlink("/src/.git", "FETCH_HEAD"));
        assert_eq!(asked(2, "worktrees", ReadFlags::MOVED_TO), unlink("/src/.git", "worktrees"));
        assert_eq!(asked(3, "main", ReadFlags::CREATE), unlink("/src/.git/logs", "main"));
        assert_eq!(asked(2, "objects", ReadFlags::CREATE | ReadFlags::ISDIR), []);
        let [(_, Task::Enter { path, role })] = &asked(3, "refs", ReadFlags::CREATE | ReadFlags::ISDIR)[..]
        else {
            panic!("a new directory is not watched");
        };
        assert_eq!((path.as_path(), role), (Path::new("/src/.git/logs/refs"), &Role::Logs { depth: 2 }));
    }

    #[test]
    fn f3_new_worktrees_are_looked_at_and_judged_when_their_files_are_written() {
        let directory = ReadFlags::CREATE | ReadFlags::ISDIR;
        let enters = |watch, file| matches!(&asked(watch, file, directory)[..], [(_, Task::Enter { .. })]);
        assert!(enters(2, "worktrees") && enters(4, "new"));
        let judges = |file| matches!(&asked(5, file, ReadFlags::CLOSE_WRITE)[..], [(_, Task::Judge { .. })]);
        assert!(judges("gitdir") && judges("commondir") && judges("HEAD") && !judges("index.lock"));
    }

    #[test]
    fn lost_events_concern_everything_the_hidden_too() {
        let all = table().all_tasks();
        assert_eq!(all.len(), 7);
        for expected in
            [cover("one", ".envrc", false), cover("one", ".env", true), cover("two", ".env", true)]
        {
            assert!(all.contains(&expected), "{expected:?}");
        }
        let judged = all.iter().any(|(_, task)| matches!(task, Task::Judge { .. }));
        assert!(judged && all.iter().filter(|(_, task)| matches!(task, Task::Enter { .. })).count() == 3);
    }

    #[test]
    fn a_sandbox_is_forgotten_without_the_others() {
        let mut table = table();
        assert_eq!(table.forget(&name("one")), [2, 3, 4, 5]);
        assert_eq!(table.all_tasks(), [cover("two", ".env", true)]);
        assert_eq!(table.forget(&name("two")), [1]);
        assert!(table.places.is_empty());
    }

    #[test]
    fn the_records_of_one_sandbox_are_bounded_for_an_hour() {
        let (mut quota, begun) = (Quota::default(), Instant::now());
        let verdicts: Vec<Verdict> = (0..30).map(|_| quota.count(begun)).collect();
        assert!(verdicts[..MAX_RECORDS].iter().all(|verdict| *verdict == Verdict::Write));
        assert_eq!(verdicts[MAX_RECORDS], Verdict::WriteThatNoMoreAre);
        assert!(verdicts[MAX_RECORDS + 1..].iter().all(|verdict| *verdict == Verdict::Drop));
        assert_eq!(quota.count(begun + WINDOW + Duration::from_secs(1)), Verdict::Write);
    }

    #[test]
    fn git_directories_are_told_by_what_is_guarded_in_them() {
        let guard = |path: &str| Guard {
            host: Path::new("/src").join(path),
            inside: Path::new("/work").join(path),
            is_hidden: false,
        };
        let guards =
            [".git/config", ".git/config.worktree", ".git/commondir", ".cargo/config", "x/commondir"];
        let guards = guards.map(guard);
        assert_eq!(git_dirs(&guards), [(Path::new("/src/.git"), Path::new("/work/.git"))]);
    }
}
