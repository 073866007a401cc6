//! Follows links to programs, and collects what has to be shown.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::super::spec::{HOME, Mount, WORK};
use super::{STORE, Search};
use crate::paths::{Reach, survey};

/// How many links one path may go through, as in the kernel.
const MAX_LINKS: usize = 40;

/// How many entries of directories that are not shown whole are looked at.
const MAX_ENTRIES: usize = 2000;

/// How far a tree is searched for sockets before it is shown.
const SOCKETS: Reach = Reach { levels: 3, entries: 1000 };

/// Places inside that are the sandbox's own: nothing of the host is shown in, at or above them.
const INSIDE: [&str; 6] = [HOME, WORK, "/refs", "/proc", "/dev", "/run/cloister"];

/// Places inside above which nothing of the host is shown.
const ABOVE: [&str; 6] = ["/etc", "/home", "/run", "/sys", "/tmp", "/var"];

/// A path with all links on its way.
#[derive(Debug, PartialEq, Eq)]
struct Way {
    /// Where the links lie, and what they say.
    links: Vec<(PathBuf, PathBuf)>,
    /// Where the path leads.
    real: PathBuf,
}

/// Collects what has to be shown.
pub(super) struct Finder<'a> {
    search: &'a Search<'a>,
    roots: BTreeSet<PathBuf>,
    links: BTreeMap<PathBuf, PathBuf>,
    /// Directories that are known to be no links.
    plain: HashSet<PathBuf>,
    entries_left: usize,
}

impl<'a> Finder<'a> {
    pub(super) fn new(search: &'a Search<'a>) -> Self {
        Self {
            search,
            roots: BTreeSet::new(),
            links: BTreeMap::new(),
            plain: HashSet::new(),
            entries_left: MAX_ENTRIES,
        }
    }

    /// Shows the programs of one directory; gives the path under which they are found inside, if there are any.
    pub(super) fn directory(&mut self, directory: &Path) -> Option<PathBuf> {
        let way = self.follow(directory)?;
        let metadata = fs::metadata(&way.real).ok().filter(Metadata::is_dir)?;
        if self.is_seen(&way.real) {
            self.outside_links(&way.real);
            return Some(way.real);
        }
        // Such programs ask for the rest of a version manager or for a daemon, and would stand before ones that work.
        let is_useless = way.real.ends_with("shims") || way.real.ends_with("snap/bin");
        if is_useless || self.is_hidden(&way) || is_open_to_all(&metadata) {
            return None;
        }
        if let Some(tree) = self.tree_of(&way.real.join("program")) {
            self.insert_tree(tree);
            self.outside_links(&way.real);
        } else if self.programs(&way.real) == 0 {
            return None;
        }
        self.links.extend(way.links);
        Some(way.real)
    }

    /// Shows the programs of a directory one by one; tells how many.
    fn programs(&mut self, directory: &Path) -> usize {
        let entries: Vec<PathBuf> = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .flatten()
            .take(self.entries_left)
            .map(|entry| entry.path())
            .collect();
        self.entries_left -= entries.len();
        entries.iter().filter(|entry| self.show(entry)).count()
    }

    /// Shows what the links of a directory lead to that the sandbox shows itself (`/usr/local/bin/x` → `/opt/x`).
    pub(super) fn outside_links(&mut self, directory: &Path) {
        if directory.starts_with(STORE) {
            return;
        }
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                continue;
            }
            let leads_out = fs::read_link(entry.path()).is_ok_and(|points_to| {
                let next = lexical(&directory.join(points_to));
                // The system's own choice between programs is one more link.
                let next = if next.starts_with(self.search.alternatives) {
                    fs::read_link(&next).unwrap_or(next)
                } else {
                    next
                };
                !self.is_seen(&next)
            });
            if leads_out {
                self.show(&entry.path());
            }
        }
    }

    /// Shows a program under its own path; tells whether it can be found there.
    fn show(&mut self, path: &Path) -> bool {
        let Some(way) = self.follow(path) else { return false };
        let is_shown = fs::metadata(&way.real).is_ok_and(|found| is_program(&way.real, &found));
        if !is_shown || self.is_hidden(&way) {
            return false;
        }
        if !self.is_seen(&way.real) {
            match self.tree_of(&way.real) {
                Some(tree) => self.insert_tree(tree),
                None => drop(self.roots.insert(way.real)),
            }
        }
        self.links.extend(way.links);
        true
    }

    fn insert_tree(&mut self, tree: PathBuf) {
        // An environment has no interpreter of its own, only a link to one.
        let interpreter = tree.join("pyvenv.cfg").is_file().then(|| tree.join("bin/python"));
        self.roots.insert(tree);
        if let Some(interpreter) = interpreter {
            self.show(&interpreter);
        }
    }

    /// Shows a whole directory; tells whether it may be.
    pub(super) fn show_tree(&mut self, real: &Path) -> bool {
        let may_be = self.is_seen(real) || self.may_show_tree(real);
        if may_be {
            self.roots.insert(real.to_owned());
        }
        may_be
    }

    /// Tells whether the sandbox shows this path, with links resolved, as the host has it.
    pub(super) fn is_seen(&self, real: &Path) -> bool {
        self.search.seen.iter().any(|seen| real.starts_with(seen))
            || real.ancestors().any(|above| self.roots.contains(above))
    }

    /// What was collected; nothing twice.
    pub(super) fn into_mounts(self) -> Vec<Mount> {
        let is_below = |path: &Path, itself: bool| {
            self.search.seen.iter().any(|seen| path.starts_with(seen))
                || path.ancestors().skip(usize::from(!itself)).any(|above| self.roots.contains(above))
        };
        let roots = self.roots.iter().filter(|root| !is_below(root, false));
        let links = self.links.iter().filter(|(link, _)| !is_below(link, true));
        let roots = roots.map(|root| Mount::ReadOnly { source: root.clone(), target: root.clone() });
        let links =
            links.map(|(link, points_to)| Mount::Link { points_to: points_to.clone(), target: link.clone() });
        roots.chain(links).collect()
    }

    /// Goes along a path as the kernel does, and notes the links.
    fn follow(&mut self, path: &Path) -> Option<Way> {
        let parts = |path: &Path| -> Vec<OsString> {
            path.components().rev().map(|part| part.as_os_str().to_owned()).collect()
        };
        let (mut links, mut real, mut left) = (Vec::new(), PathBuf::from("/"), parts(path));
        while let Some(part) = left.pop() {
            match Path::new(&part).components().next()? {
                Component::RootDir => real = PathBuf::from("/"),
                Component::ParentDir => drop(real.pop()),
                Component::CurDir | Component::Prefix(_) => {}
                Component::Normal(_) => {
                    let next = real.join(&part);
                    match self.link_at(&next).ok()? {
                        None => real = next,
                        Some(points_to) => {
                            left.extend(parts(&points_to));
                            links.push((next, points_to));
                        }
                    }
                }
            }
            if links.len() > MAX_LINKS {
                return None;
            }
        }
        Some(Way { links, real })
    }

    /// What the link says that lies here; nothing where something else lies.
    fn link_at(&mut self, path: &Path) -> io::Result<Option<PathBuf>> {
        if self.plain.contains(path) {
            return Ok(None);
        }
        match fs::read_link(path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.plain.insert(path.to_owned());
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    /// Tells whether a path leads to or through something that is never shown.
    fn is_hidden(&self, way: &Way) -> bool {
        let places = way.links.iter().map(|(link, _)| link).chain([&way.real]);
        let mut places = places.filter(|place| !self.search.seen.iter().any(|seen| place.starts_with(seen)));
        places.any(|place| {
            let hidden = self.search.hidden.iter().map(PathBuf::as_path);
            hidden.chain(INSIDE.map(Path::new)).any(|hidden| place.starts_with(hidden))
        })
    }

    /// The tree that a program needs beside itself, if there is one that may be shown.
    fn tree_of(&self, program: &Path) -> Option<PathBuf> {
        let above = || program.ancestors().skip(1);
        let environment = above().find(|above| above.join("pyvenv.cfg").is_file());
        let modules = above().filter(|above| above.file_name().is_some_and(|name| name == "node_modules"));
        let opt = above().find(|above| above.parent() == Some(self.search.opt));
        let prefix = program
            .parent()
            .filter(|bin| bin.file_name().is_some_and(|name| name == "bin"))
            .and_then(Path::parent)
            .filter(|prefix| prefix.join("lib").is_dir());
        let trees = [environment, modules.last(), opt, prefix];
        trees.into_iter().flatten().find(|tree| self.may_show_tree(tree)).map(Path::to_owned)
    }

    fn may_show_tree(&self, tree: &Path) -> bool {
        let hidden = self.search.hidden.iter().map(PathBuf::as_path).chain(INSIDE.map(Path::new));
        let mut overlapping = hidden.filter(|place| place.starts_with(tree) || tree.starts_with(place));
        let mut below = ABOVE.map(Path::new).into_iter().chain([self.search.home]);
        overlapping.next().is_none()
            && !below.any(|place| place.starts_with(tree))
            && fs::metadata(tree).is_ok_and(|found| found.is_dir() && !is_open_to_all(&found))
            && survey(tree, SOCKETS).socket.is_none()
    }
}

/// Tells whether this is a program that nobody but its owner's group can change, and that lends nobody's rights.
fn is_program(path: &Path, found: &Metadata) -> bool {
    const SET_ID: u32 = 0o6000;
    found.is_file()
        && found.mode() & 0o111 != 0
        && found.mode() & SET_ID == 0
        && !is_open_to_all(found)
        && path
            .parent()
            .and_then(|parent| fs::metadata(parent).ok())
            .is_some_and(|found| !is_open_to_all(&found))
}

fn is_open_to_all(found: &Metadata) -> bool {
    found.mode() & 0o002 != 0
}

/// The path without `.` and `..`, as text.
fn lexical(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            part => plain.push(part),
        }
        plain
    })
}
