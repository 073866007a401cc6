//! Watching over what sandboxes must not write, and over what they must not make.
//!
//! The kernel tells of every entry that comes into the directories that are watched:
//! - A guard that a program of the host replaced is covered again, and where it removed one, something empty is put. What
//!   a sandbox itself does there can't concern a guard that stands: a mount point can be neither renamed nor removed from
//!   inside. A guardian that takes a sandbox over covers all of its guards, since nobody watched before.
//! - A sandbox whose guards lie in a directory that the host removed, moved or replaced is ended.
//! - An entry of `worktrees` that the host's git makes is sealed as soon as it and its worktree name each other.
//! - A link in a git directory is removed. No git makes one there, and the host's would write through it; a sandbox
//!   that goes on is ended, and one that makes what can't be looked at. Sandboxes that share a git directory answer for
//!   it together: who made it can't be told.
//!
//! Each of these is a race of milliseconds: what a sandbox does between the host's step and the answer is done, and a
//! file that it opened in between stays open to it.

mod ending;
mod kept;
mod links;
mod missing;
mod table;
mod unwatched;
mod worktrees;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::{MaybeUninit, take};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use crate::audit::Event;
use crate::init::Adjustment;
use crate::name::CloisterName;
use crate::paths::Paths;
use crate::process::wait_readable;
use crate::sandbox::{Guard, Receipt};
use table::{Place, Role, Sandbox, Table, Task, Verdict};
pub(super) use unwatched::Unwatched;

/// How much the kernel may tell at once, in bytes: what is asked for many times in it is done once.
const BUFFER_BYTES: usize = 64 * 1024;

/// How many directories of logs are watched for one sandbox, and how deep they may nest.
const MAX_LOGS: usize = 2048;
const MAX_DEPTH: usize = 16;

/// How many entries of worktrees are watched for one sandbox, besides those that are sealed from the start.
const MAX_ENTRIES: usize = 1024;

/// Receives what was done, or why it could not be.
pub(super) type Report = dyn Fn(&CloisterName, Event, &str) + Send + Sync;

/// The guards of all sandboxes.
pub(super) struct Guards {
    inotify: OwnedFd,
    table: Mutex<Table>,
    report: Box<Report>,
    paths: Paths,
}

/// What is to be done, and for which sandbox.
type Tasks = Vec<(CloisterName, Task)>;

/// A watch and what happened to which name there.
type Happening = (i32, ReadFlags, OsString);

impl Guards {
    /// Begins to watch; `report` hears of everything that was done.
    pub(super) fn new(paths: Paths, report: Box<Report>) -> io::Result<Arc<Self>> {
        let inotify = inotify::init(CreateFlags::CLOEXEC).map_err(unwatched::without_instance)?;
        let guards = Arc::new(Self { inotify, table: Mutex::default(), report, paths });
        std::thread::Builder::new().name("guards".to_owned()).spawn({
            let guards = Arc::clone(&guards);
            move || guards.run()
        })?;
        Ok(guards)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whether this sandbox, and not an earlier one of the name, is watched over.
    pub(super) fn watch_over(&self, receipt: &Receipt) -> bool {
        let table = self.table();
        table
            .sandboxes
            .get(&receipt.cloister)
            .is_some_and(|known| known.is_whole && receipt.first.as_ref() == Some(&known.first))
    }

    /// Watches over a sandbox; tells what can't be watched, and goes on past it.
    fn add(&self, receipt: &Receipt) -> Result<(), Unwatched> {
        let Some(first) = &receipt.first else { return Ok(()) };
        let cloister = &receipt.cloister;
        let mut unwatched = Unwatched::default();
        {
            // Held from the first watch on: an event that comes at once must find its guard.
            let mut table = self.table();
            match table.sandboxes.get_mut(cloister).filter(|known| known.first == *first) {
                // A further try: what was counted stays.
                Some(known) => known.unseen = Unwatched::default(),
                None => drop(table.sandboxes.insert(cloister.clone(), Sandbox::of(first, receipt))),
            }
            for guard in &receipt.guards {
                let Some(directory) = guard.host.parent() else { continue };
                let role = Role::Holds(guard.clone());
                let place = Place { cloister: cloister.clone(), path: directory.to_owned(), role };
                if let Err(error) = self.watch(&mut table, place) {
                    unwatched.add(&guard.host, &error);
                }
            }
            self.keep_around(&mut table, receipt, &mut unwatched);
        }
        let git_dirs = table::git_dirs(&receipt.guards).into_iter().map(|(host, inside)| {
            let role = Role::GitDir { inside: inside.to_owned() };
            (cloister.clone(), Task::Enter { path: host.to_owned(), role })
        });
        self.perform(git_dirs.collect());
        let mut table = self.table();
        let Some(sandbox) = table.sandboxes.get_mut(cloister) else {
            return Err(format!("the sandbox `{cloister}`: it has ended").into());
        };
        unwatched.extend(take(&mut sandbox.unseen));
        sandbox.is_whole = !unwatched.is_open;
        unwatched.into_result()
    }

    /// Watches over a sandbox that nobody watched over until now, and covers what lost its cover. Can be tried again.
    ///
    /// # Errors
    /// What can't be watched; the rest is.
    pub(super) fn take_over(&self, receipt: &Receipt) -> Result<(), Unwatched> {
        let added = self.add(receipt);
        let covers =
            receipt.guards.iter().map(|guard| (receipt.cloister.clone(), Task::Cover(guard.clone())));
        self.perform(covers.collect());
        added
    }

    /// Stops watching over the guards of a sandbox.
    pub(super) fn remove(&self, cloister: &CloisterName) {
        for watch in self.table().forget(cloister) {
            self.unwatch(watch);
        }
    }

    fn watch(&self, table: &mut Table, place: Place) -> io::Result<()> {
        let mut flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        // One directory may be watched for several reasons.
        flags |= WatchFlags::DONT_FOLLOW | WatchFlags::MASK_ADD;
        match place.role {
            Role::Entry { .. } => flags |= WatchFlags::CLOSE_WRITE,
            Role::Holds(_) => flags |= WatchFlags::DELETE | WatchFlags::MOVED_FROM,
            Role::Keeps(_) => {
                flags |= WatchFlags::DELETE | WatchFlags::MOVED_FROM;
                flags |= WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
            }
            Role::GitDir { .. } | Role::Logs { .. } | Role::Worktrees { .. } => {}
        }
        let watch = links::insist(&place.path, || inotify::add_watch(&self.inotify, &place.path, flags))?;
        let places = table.places.entry(watch).or_default();
        if !places.contains(&place) {
            places.push(place);
        }
        Ok(())
    }

    fn unwatch(&self, watch: i32) {
        // The directory may have gone, and its watch with it.
        let _ = inotify::remove_watch(&self.inotify, watch);
    }

    fn run(&self) {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        let mut events = Reader::new(&self.inotify, &mut buffer);
        loop {
            let patience = self.refill();
            // An error comes again when the event is read.
            if matches!(wait_readable(self.inotify.as_fd(), patience), Ok(false)) {
                continue;
            }
            let happenings = match read_all(&mut events) {
                Ok(happenings) => happenings,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "guards are watched no more");
                    return;
                }
            };
            self.answer(&happenings);
        }
    }

    fn answer(&self, happenings: &[Happening]) {
        let mut tasks = Tasks::new();
        {
            let mut table = self.table();
            for (watch, flags, name) in happenings {
                tasks.extend(if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                    table.all_tasks()
                } else {
                    table.tasks(*watch, name, *flags)
                });
                if flags.contains(ReadFlags::IGNORED) {
                    table.places.remove(watch);
                }
            }
        }
        let concerned: BTreeSet<CloisterName> = tasks.iter().map(|(cloister, _)| cloister.clone()).collect();
        // What no sandbox can bring about comes before what one can ask for without end.
        let (covers, others): (Tasks, Tasks) =
            tasks.into_iter().partition(|(_, task)| matches!(task, Task::Cover(_)));
        for tasks in [covers, others] {
            // What can't be dealt with must not end the watch over all else.
            if catch_unwind(AssertUnwindSafe(|| self.perform(tasks))).is_err() {
                tracing::error!("what happened could not be dealt with");
            }
        }
        for cloister in &concerned {
            self.forget_ended(cloister);
        }
    }

    /// Drops a sandbox that has ended, whoever ended it: from now on nobody but the host writes there.
    fn forget_ended(&self, cloister: &CloisterName) {
        let first = self.table().sandboxes.get(cloister).map(|sandbox| sandbox.first.clone());
        if first.is_some_and(|first| !first.is_alive()) {
            self.remove(cloister);
        }
    }

    /// Does everything once, however often it is asked for; what is to be covered, at once for each sandbox.
    fn perform(&self, mut tasks: Tasks) {
        let mut adjustments: BTreeMap<CloisterName, Adjustment> = BTreeMap::new();
        let mut begun = HashSet::new();
        while let Some((cloister, task)) = tasks.pop() {
            if !begun.insert((cloister.clone(), task.clone())) {
                continue;
            }
            match task {
                Task::Cover(guard) if guard.is_missing() => self.table().miss(&cloister, guard.host),
                Task::Cover(Guard { inside, is_hidden, .. }) => {
                    self.adjust(&mut adjustments, &cloister, |adjustment| {
                        if is_hidden { &mut adjustment.hidden } else { &mut adjustment.sealed }.push(inside);
                    });
                }
                Task::Judge { entry, worktrees } => {
                    let project =
                        self.table().sandboxes.get(&cloister).map(|sandbox| sandbox.project.clone());
                    let Some(name) = entry.file_name() else { continue };
                    if project.is_some_and(|project| worktrees::is_of_the_host(&entry, &project)) {
                        self.adjust(&mut adjustments, &cloister, |adjustment| {
                            adjustment.sealed.push(worktrees.join(name));
                            adjustment.pinned.push(worktrees);
                        });
                    }
                }
                Task::Unlink { directory, name } => match links::remove(&directory, &name) {
                    Ok(target) => {
                        self.count_links(&cloister, &directory, target.map(|target| (name, target)));
                    }
                    Err(error) => self.cannot(&cloister, &directory, &error),
                },
                Task::Keep(path) => self.keep(&cloister, &path),
                Task::Enter { path, role } => tasks.extend(self.enter(&cloister, &path, role)),
            }
        }
        for (cloister, mut adjustment) in adjustments {
            // What lies in another guard comes after it, as when the sandbox was made.
            adjustment.sealed.sort();
            adjustment.sealed.dedup();
            self.adjust_mounts(&cloister, &adjustment);
        }
    }

    fn adjust(
        &self,
        adjustments: &mut BTreeMap<CloisterName, Adjustment>,
        cloister: &CloisterName,
        change: impl FnOnce(&mut Adjustment),
    ) {
        let first = self.table().sandboxes.get(cloister).map(|sandbox| sandbox.first.clone());
        if let Some(first) = first {
            change(adjustments.entry(cloister.clone()).or_insert_with(|| Adjustment::new(first)));
        }
    }

    fn adjust_mounts(&self, cloister: &CloisterName, adjustment: &Adjustment) {
        let done = adjustment.perform();
        // There is nothing to guard in a sandbox that has ended, and nothing to say.
        if !adjustment.first.is_alive() {
            return;
        }
        let text = match done {
            Err(error) => format!("cannot seal anything: {error}"),
            Ok(done) => {
                let covered: Vec<_> = done.covered.iter().map(|path| path.display().to_string()).collect();
                let failed: Vec<_> = done
                    .failed
                    .iter()
                    .map(|(path, error)| format!("cannot seal {}: {error}", path.display()))
                    .collect();
                let parts = [covered.join(", "), failed.join(", ")];
                parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
            }
        };
        if !text.is_empty() {
            self.report(cloister, Event::SandboxReseal, &text);
        }
    }

    /// Watches a directory and looks at what is in it already; gives what that asks for.
    fn enter(&self, cloister: &CloisterName, path: &Path, role: Role) -> Tasks {
        let place = Place { cloister: cloister.clone(), path: path.to_owned(), role: role.clone() };
        if !self.watch_within_bounds(place) {
            return Vec::new();
        }
        let next = |path: PathBuf, role| (cloister.clone(), Task::Enter { path, role });
        match role {
            Role::Entry { worktrees } => {
                vec![(cloister.clone(), Task::Judge { entry: path.to_owned(), worktrees })]
            }
            Role::Worktrees { inside } => {
                let sealed = self.table().guarded_in(cloister, path);
                let entries = self.sweep(cloister, path).into_iter().map(|name| path.join(name));
                let entries = entries.filter(|entry| !sealed.contains(entry)).take(MAX_ENTRIES + 1);
                entries.map(|entry| next(entry, Role::Entry { worktrees: inside.clone() })).collect()
            }
            Role::GitDir { inside } => {
                let directories = self.sweep(cloister, path).into_iter();
                let roles = directories.filter_map(|name| match name.to_str()? {
                    "logs" => Some(next(path.join(name), Role::Logs { depth: 0 })),
                    "worktrees" => {
                        Some(next(path.join(&name), Role::Worktrees { inside: inside.join(name) }))
                    }
                    _ => None,
                });
                roles.collect()
            }
            Role::Logs { depth } => {
                let directories = self.sweep(cloister, path).into_iter();
                let directories = directories.take(MAX_LOGS + 1);
                directories.map(|name| next(path.join(name), Role::Logs { depth: depth + 1 })).collect()
            }
            Role::Holds(_) | Role::Keeps(_) => Vec::new(),
        }
    }

    /// Watches a directory that a sandbox can make; false when it has gone, or there are too many.
    fn watch_within_bounds(&self, place: Place) -> bool {
        let mut table = self.table();
        if !table.sandboxes.contains_key(&place.cloister) {
            return false;
        }
        let (cloister, path) = (place.cloister.clone(), place.path.clone());
        let most = match place.role {
            Role::Logs { depth } if depth > MAX_DEPTH || table.count_others(&place) >= MAX_LOGS => Some(
                format!("there are more than {MAX_LOGS} directories of logs, or {MAX_DEPTH} in each other"),
            ),
            Role::Entry { .. } if table.count_others(&place) >= MAX_ENTRIES => {
                Some(format!("there are more than {MAX_ENTRIES} worktrees"))
            }
            _ => None,
        };
        if let Some(most) = most {
            drop(table);
            self.cannot(&cloister, &path, &io::Error::other(most));
            return false;
        }
        let watched = self.watch(&mut table, place);
        drop(table);
        match watched {
            Ok(()) => true,
            Err(error) => {
                self.cannot(&cloister, &path, &error);
                false
            }
        }
    }

    /// Removes the links that a sandbox made in a directory; gives the directories in it.
    fn sweep(&self, cloister: &CloisterName, directory: &Path) -> Vec<OsString> {
        let Some(since) = self.table().sandboxes.get(cloister).map(|sandbox| sandbox.started) else {
            return Vec::new();
        };
        match links::sweep(directory, since) {
            Ok(found) => {
                self.count_links(cloister, directory, found.removed);
                if let Some(error) = found.failed {
                    self.cannot(cloister, directory, &error);
                }
                found.directories
            }
            Err(error) => {
                self.cannot(cloister, directory, &error);
                Vec::new()
            }
        }
    }

    /// Reports something that a sandbox can bring about as often as it likes.
    fn report(&self, cloister: &CloisterName, event: Event, what: &str) {
        let verdict = match self.table().sandboxes.get_mut(cloister) {
            Some(sandbox) => sandbox.quota.count(Instant::now()),
            None => return,
        };
        match verdict {
            Verdict::Write => (self.report)(cloister, event, what),
            Verdict::WriteThatNoMoreAre => {
                (self.report)(cloister, event, "there is more, which is not written down for an hour");
            }
            Verdict::Drop => {}
        }
    }
}

/// Waits for something to happen, and gives all that the kernel told with it.
fn read_all(events: &mut Reader<'_, &OwnedFd>) -> Result<Vec<Happening>, Errno> {
    let mut happenings = Vec::new();
    loop {
        let event = events.next()?;
        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
        happenings.push((event.wd(), event.events(), name.unwrap_or_default()));
        if events.is_buffer_empty() {
            return Ok(happenings);
        }
    }
}
