//! Ending sandboxes that make links in git directories, or what can't be looked at: nothing but an attack does either;
//! and those whose guards went with a directory of the host's.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Guards;
use super::unwatched::{Unwatched, is_gone, is_the_hosts};
use crate::audit::Event;
use crate::name::CloisterName;

/// How many links end a sandbox.
const MAX_LINKS: usize = 16;

/// How long the end of a sandbox is waited for.
const END_PATIENCE: Duration = Duration::from_secs(2);

impl Guards {
    /// Reports links that were removed, and ends the sandbox when there were too many.
    pub(super) fn count_links(
        &self,
        cloister: &CloisterName,
        directory: &Path,
        removed: impl IntoIterator<Item = (OsString, PathBuf)>,
    ) {
        for (name, target) in removed {
            let link = directory.join(name);
            let what = format!("removed the link {} to {}", link.display(), target.display());
            self.report(cloister, Event::SandboxLink, &what);
            for cloister in self.answering(cloister, directory) {
                self.count_link(&cloister);
            }
        }
    }

    fn count_link(&self, cloister: &CloisterName) {
        {
            let mut table = self.table();
            let Some(sandbox) = table.sandboxes.get_mut(cloister) else { return };
            sandbox.links += 1;
            if sandbox.links != MAX_LINKS {
                return;
            }
        }
        let why = format!("it made {MAX_LINKS} links in git directories, which nothing but an attack does");
        self.end(cloister, Event::SandboxLink, &why);
    }

    /// Answers for a directory that can't be looked at: any link may lie there, and so the sandboxes are ended that can
    /// write there. One that is still being taken over is only told of where the host may be the reason.
    pub(super) fn cannot(&self, cloister: &CloisterName, path: &Path, error: &io::Error) {
        // What came has gone again, which concerns nobody.
        if is_gone(error) {
            return;
        }
        if let Some(sandbox) = self.table().sandboxes.get_mut(cloister)
            && !sandbox.is_whole
        {
            sandbox.unseen.add_first(path, error);
            if is_the_hosts(error) {
                return;
            }
        }
        let why = Unwatched::of(path, error).to_string();
        for cloister in self.answering(cloister, path) {
            self.end(&cloister, Event::SandboxLink, &why);
        }
    }

    /// Every sandbox that can write to a directory answers for it.
    fn answering(&self, cloister: &CloisterName, directory: &Path) -> BTreeSet<CloisterName> {
        let table = self.table();
        let is_there = |place: &Path| place == directory || Some(place) == directory.parent();
        let there = table.places.values().flatten().filter(|place| is_there(&place.path));
        there.map(|place| place.cloister.clone()).chain([cloister.clone()]).collect()
    }

    pub(super) fn end(&self, cloister: &CloisterName, event: Event, why: &str) {
        let first = {
            let mut table = self.table();
            let Some(sandbox) = table.sandboxes.get_mut(cloister) else { return };
            if mem::replace(&mut sandbox.is_ended, true) {
                return;
            }
            sandbox.first.clone()
        };
        // Said whatever else was said: it is why the sandbox is gone.
        (self.report)(cloister, event, &format!("ended: {why}"));
        let ended = first.open().map(|process| process.kill(END_PATIENCE));
        match ended {
            None | Some(Ok(true)) => self.remove(cloister),
            Some(Ok(false)) => (self.report)(cloister, event, "its first process does not end"),
            Some(Err(error)) => {
                (self.report)(cloister, event, &format!("cannot end it: {error}"));
            }
        }
    }
}
