//! Watching over what sandboxes must not write: when a program of the host replaces it, it is sealed again.
//!
//! The kernel tells of every entry that changes in the directories that hold a guard. What a sandbox itself does
//! there can't concern a guard that stands: a mount point can be neither renamed nor removed from inside.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

use crate::init::Adjustment;
use crate::name::CloisterName;
use crate::process::Identity;
use crate::sandbox::{Guard, Receipt};

/// How much the kernel may tell at once, in bytes.
const BUFFER_BYTES: usize = 16 * 1024;

/// Receives what was sealed again, or why it could not be.
pub(super) type Report = dyn Fn(&CloisterName, &str) + Send;

/// The guards of all sandboxes.
pub(super) struct Guards {
    inotify: OwnedFd,
    watched: Mutex<BTreeMap<i32, Vec<Watched>>>,
}

/// One guard in a directory that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Watched {
    cloister: CloisterName,
    first: Identity,
    name: OsString,
    inside: PathBuf,
    is_hidden: bool,
}

impl Guards {
    /// Begins to watch; `report` hears of everything that was done.
    pub(super) fn new(report: Box<Report>) -> io::Result<Arc<Self>> {
        let guards =
            Arc::new(Self { inotify: inotify::init(CreateFlags::CLOEXEC)?, watched: Mutex::default() });
        std::thread::Builder::new().name("guards".to_owned()).spawn({
            let guards = Arc::clone(&guards);
            move || guards.run(&*report)
        })?;
        Ok(guards)
    }

    fn watched(&self) -> MutexGuard<'_, BTreeMap<i32, Vec<Watched>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches over the guards of a sandbox.
    pub(super) fn add(&self, receipt: &Receipt) -> io::Result<()> {
        let Some(first) = &receipt.first else { return Ok(()) };
        // Held from the first watch on: an event that comes at once must find its guard.
        let mut watched = self.watched();
        for Guard { host, inside, is_hidden } in &receipt.guards {
            let (Some(directory), Some(name)) = (host.parent(), host.file_name()) else { continue };
            let one = Watched {
                cloister: receipt.cloister.clone(),
                first: first.clone(),
                name: name.to_owned(),
                inside: inside.clone(),
                is_hidden: *is_hidden,
            };
            watched.entry(self.watch(directory)?).or_default().push(one);
        }
        Ok(())
    }

    fn watch(&self, directory: &Path) -> io::Result<i32> {
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        Ok(inotify::add_watch(&self.inotify, directory, flags)?)
    }

    /// Stops watching over the guards of a sandbox.
    pub(super) fn remove(&self, cloister: &CloisterName) {
        self.watched().retain(|watch, guards| {
            guards.retain(|guard| guard.cloister != *cloister);
            if guards.is_empty() {
                // The directory may have gone, and its watch with it.
                let _ = inotify::remove_watch(&self.inotify, *watch);
            }
            !guards.is_empty()
        });
    }

    fn run(&self, report: &Report) {
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut events = Reader::new(&self.inotify, &mut buffer);
        loop {
            let concerned = match events.next() {
                // Too much happened at once: look after every guard.
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    self.guards_that(|_, _| true)
                }
                Ok(event) => {
                    let name = event.file_name().map(|name| name.to_bytes().to_vec()).unwrap_or_default();
                    let place = event.wd();
                    self.guards_that(|watch, guard| watch == place && guard.name.as_bytes() == name)
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "guards are watched no more");
                    return;
                }
            };
            for (cloister, request) in concerned {
                match request.perform() {
                    Ok(0) => {}
                    Ok(_) => report(&cloister, &paths(&request)),
                    Err(error) => report(&cloister, &format!("cannot seal {}: {error}", paths(&request))),
                }
            }
        }
    }

    /// What has to be sealed again, sandbox by sandbox.
    fn guards_that(
        &self,
        is_concerned: impl Fn(i32, &Watched) -> bool,
    ) -> BTreeMap<CloisterName, Adjustment> {
        let mut requests: BTreeMap<CloisterName, Adjustment> = BTreeMap::new();
        for (watch, guards) in &*self.watched() {
            for guard in guards.iter().filter(|guard| is_concerned(*watch, guard)) {
                let request = requests.entry(guard.cloister.clone()).or_insert_with(|| Adjustment {
                    first: guard.first.clone(),
                    sealed: Vec::new(),
                    hidden: Vec::new(),
                    bounded: Vec::new(),
                });
                let list = if guard.is_hidden { &mut request.hidden } else { &mut request.sealed };
                list.push(guard.inside.clone());
            }
        }
        requests
    }
}

fn paths(request: &Adjustment) -> String {
    request
        .sealed
        .iter()
        .chain(&request.hidden)
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}
