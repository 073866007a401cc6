//! Notices that a file of settings changed: the kernel tells, and a cheap look twice a second finds what it can't.
//!
//! An event says only that it is time to look. What counts is the mark of each followed file, seen through all
//! links: so editors that rename, links that are replaced, directories that appear later, a kernel without watches
//! left and file systems that tell nothing are all the same case.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::Registry;

/// How often it is looked without being told: a rule that was withdrawn has to hold within a second (T10).
const LOOK: Duration = Duration::from_millis(500);
/// How long files must be left alone before they are read: an editor may still be writing.
const QUIET: Duration = Duration::from_millis(100);
/// How long files that never are left alone are waited for.
const MAX_WAIT: Duration = Duration::from_millis(400);
/// How long a file's time can't tell two writes apart, in the worst case.
const COARSE: Duration = Duration::from_secs(1);
/// How many links one path may lead through, as in the kernel.
const MAX_LINKS: usize = 40;

impl Registry {
    /// Follows the settings from now on, until all has ended or another guardian has taken over.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(in crate::guardian) fn follow_settings(self: &Arc<Self>) -> io::Result<()> {
        let (waker, events) = sync_channel(1);
        let mut follower = Follower {
            registry: Arc::downgrade(self),
            seen: Marks::of(self.followed()),
            watcher: watcher(waker),
            watched: BTreeSet::new(),
        };
        thread::Builder::new().name("settings".into()).spawn(move || follower.run(&events)).map(drop)
    }
}

/// A watcher that wakes the follower; without one, looking now and then has to do.
fn watcher(waker: SyncSender<()>) -> Option<RecommendedWatcher> {
    let tell = move |event: notify::Result<notify::Event>| {
        let is_of_reading = event.is_ok_and(|event| event.kind.is_access());
        if !is_of_reading {
            // A full channel has woken it already.
            let _ = waker.try_send(());
        }
    };
    notify::recommended_watcher(tell)
        .inspect_err(|error| {
            tracing::warn!(error = error as &dyn std::error::Error, "no watch over the settings");
        })
        .ok()
}

struct Follower {
    registry: Weak<Registry>,
    seen: Marks,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
}

impl Follower {
    fn run(&mut self, events: &Receiver<()>) {
        loop {
            let Some(registry) = self.registry.upgrade().filter(|registry| registry.follows()) else {
                return;
            };
            // A panic in here must not leave the rules as they are for ever.
            let looked = catch_unwind(AssertUnwindSafe(|| self.look(&registry, events)));
            if looked.is_err() {
                tracing::error!("a look at the settings broke off");
            }
            drop(registry);
            wait(events, LOOK);
        }
    }

    /// Reads the settings when one of the files is another than before.
    fn look(&mut self, registry: &Registry, events: &Receiver<()>) {
        let mut marks = Marks::of(registry.followed());
        if marks == self.seen && self.seen.is_certain {
            return self.watch(&marks);
        }
        if marks.files != self.seen.files {
            marks = settled(registry, marks, events);
        }
        self.watch(&marks);
        registry.refresh();
        // Taken before the files were read: what changed meanwhile is seen as a difference at the next look.
        self.seen = marks;
    }

    /// Has the kernel watch the directories through which the files are reached.
    fn watch(&mut self, marks: &Marks) {
        let Some(watcher) = &mut self.watcher else { return };
        let wanted: BTreeSet<PathBuf> = marks.files.keys().flat_map(|path| trail(path)).collect();
        for gone in self.watched.difference(&wanted) {
            // A directory that was removed is not watched any more.
            let _ = watcher.unwatch(gone);
        }
        // One that the kernel refuses is tried again at the next look.
        self.watched.retain(|path| wanted.contains(path));
        for new in wanted {
            if !self.watched.contains(&new) && watcher.watch(&new, RecursiveMode::NonRecursive).is_ok() {
                self.watched.insert(new);
            }
        }
    }
}

/// Waits until the files are left alone, but not for ever.
fn settled(registry: &Registry, mut marks: Marks, events: &Receiver<()>) -> Marks {
    let end = Instant::now() + MAX_WAIT;
    loop {
        let is_told = wait(events, QUIET);
        let now = Marks::of(registry.followed());
        if (!is_told && now.files == marks.files) || Instant::now() >= end {
            return now;
        }
        marks = now;
    }
}

/// Waits for the kernel to tell of something; false when it did not.
fn wait(events: &Receiver<()>, patience: Duration) -> bool {
    let told = events.recv_timeout(patience);
    if told == Err(RecvTimeoutError::Disconnected) {
        // There is no watcher.
        thread::sleep(patience);
    }
    told.is_ok()
}

/// What tells one state of the followed files from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Marks {
    files: BTreeMap<PathBuf, Mark>,
    /// Whether no file was changed so shortly before that another change could look the same.
    is_certain: bool,
}

/// What tells one state of a file from another, through all links.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mark {
    File { device: u64, inode: u64, size: u64, modified: (i64, i64), changed: (i64, i64) },
    Unreachable(io::ErrorKind),
}

impl Marks {
    fn of(paths: BTreeSet<PathBuf>) -> Self {
        let files: BTreeMap<PathBuf, Mark> = paths
            .into_iter()
            .map(|path| {
                let mark = Mark::of(&path);
                (path, mark)
            })
            .collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let is_certain = !files.values().any(|mark| mark.is_fresh(now));
        Self { files, is_certain }
    }
}

impl Mark {
    fn of(path: &Path) -> Self {
        match fs::metadata(path) {
            Ok(found) => Self::File {
                device: found.dev(),
                inode: found.ino(),
                size: found.size(),
                modified: (found.mtime(), found.mtime_nsec()),
                changed: (found.ctime(), found.ctime_nsec()),
            },
            Err(error) => Self::Unreachable(error.kind()),
        }
    }

    /// Whether it was changed about `now`, in time since 1970.
    fn is_fresh(&self, now: Duration) -> bool {
        let Self::File { changed: (seconds, nanos), .. } = self else { return false };
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(*seconds), u32::try_from(*nanos)) else { return false };
        Duration::new(seconds, nanos).abs_diff(now) < COARSE
    }
}

/// The directories in which something must change for `path` to lead to another file: those of every link on the way,
/// and the deepest that exists.
fn trail(path: &Path) -> BTreeSet<PathBuf> {
    let mut directories = BTreeSet::new();
    let mut ways = vec![path.to_owned()];
    let mut links = 0;
    while let Some(way) = ways.pop() {
        let deepest = way.ancestors().skip(1).find(|ancestor| ancestor.is_dir());
        directories.extend(deepest.map(Path::to_owned));
        for ancestor in way.ancestors() {
            let (Ok(target), Some(parent)) = (fs::read_link(ancestor), ancestor.parent()) else { continue };
            directories.insert(parent.to_owned());
            links += 1;
            if links <= MAX_LINKS {
                let rest = way.strip_prefix(ancestor).unwrap_or(Path::new(""));
                ways.push(parent.join(target).join(rest));
            }
        }
    }
    directories
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn t10_the_trail_leads_through_links_to_what_exists() {
        let home = tempfile::tempdir().unwrap();
        let at = |below: &str| home.path().join(below);
        fs::create_dir_all(at("store/1/cfg")).unwrap();
        fs::create_dir(at("home")).unwrap();
        fs::write(at("store/1/cfg/config.yaml"), "").unwrap();
        symlink("../store/1/cfg", at("home/cloister")).unwrap();
        let found = trail(&at("home/cloister/config.yaml"));
        let wanted = [at("home"), at("home/cloister"), at("home/../store/1/cfg")];
        assert!(wanted.iter().all(|path| found.contains(path)), "{found:?}");
        assert_eq!(trail(&at("home/no/such/file")), BTreeSet::from([at("home")]));
        symlink("loop", at("home/loop")).unwrap();
        assert!(trail(&at("home/loop/config.yaml")).contains(&at("home")));
    }

    #[test]
    fn t10_every_kind_of_change_changes_the_mark() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("config.yaml");
        let mark = || Marks::of(BTreeSet::from([path.clone()]));
        let missing = mark();
        assert!(missing.is_certain);
        fs::write(&path, "a").unwrap();
        let written = mark();
        assert_ne!(written, missing);
        assert!(!written.is_certain, "another write in the same moment would look the same");
        fs::write(home.path().join("new"), "a").unwrap();
        fs::rename(home.path().join("new"), &path).unwrap();
        assert_ne!(mark().files, written.files);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_ne!(mark().files, missing.files);
    }
}
