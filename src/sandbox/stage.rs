//! What makes a sandbox that root starts safe: its processes are an unprivileged user's on the host.
//!
//! The stage is this binary, started in the place of `bwrap`. In a mount table of its own it lays out copies of
//! everything that lies outside the host's system (project, home, sockets, …) on which the owner on the disk is seen
//! as that user; then it becomes that user, and then `bwrap`, with the same process number. What is written through
//! the copies belongs to the owner on the disk. Nothing of it shows in the host's mount table, and the kernel clears
//! it away with the last process.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount,
    open_tree,
};
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use serde::{Deserialize, Serialize};

use super::spec::Mount;
use crate::kernel::{self, IdRange, Trees};
use crate::process;

/// The user and group that the processes of a sandbox are on the host when root starts it: nobody's account, and above
/// the ranges that distributions give to containers.
const PAYLOAD: u32 = 2_000_000;
/// Where others than the owner are seen: a number for each, and none that a process has.
const OTHERS: u32 = 1 << 31;
/// How many users and groups are told apart on the disk.
const KNOWN: u32 = OTHERS - 2;
/// Where the copies are laid out: a directory that `bwrap` needs too, and in which nothing of the system lies.
const PLACE: &str = "/tmp";

/// One copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Staged {
    /// What is copied.
    source: PathBuf,
    /// Whose owner is seen as the payload's user: `source`, or what it lies in.
    owned_like: PathBuf,
    /// Whether it can be written.
    is_writable: bool,
}

/// Everything that is laid out for one sandbox, in the order of its places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stage {
    staged: Vec<Staged>,
}

/// What a stage is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Instructions {
    staged: Vec<Staged>,
    /// The descriptor that takes the reason when it fails.
    report: i32,
    /// The descriptors that the next program is to have.
    inherited: Vec<i32>,
}

/// What is reported in the place of a process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Refusal {
    stage: StageError,
}

/// Why the processes can't be an unprivileged user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StageError {
    /// The kernel is too old.
    #[error("this kernel has no idmapped mounts (Linux has them since 5.12)")]
    NoIdmaps,
    /// The user name space around this shell lacks the numbers.
    #[error("the user name space around this shell has no uid {PAYLOAD}")]
    NoUser,
    /// The file system can't.
    #[error("the file system of `{}` can't be mounted with other owners (idmapped mounts)", _0.display())]
    FileSystem(PathBuf),
    /// A container or an idmapped mount is in the way.
    #[error("mounting `{}` with other owners (idmapped mounts) is not permitted here", _0.display())]
    Forbidden(PathBuf),
    /// The owners can't be mapped.
    #[error("no user name space can be made here: {0}")]
    NoNameSpace(String),
    /// Something else failed.
    #[error("cannot {action} `{}`: {reason}", path.display())]
    Failed {
        /// What was tried.
        action: String,
        /// With which path.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

impl StageError {
    /// Judges what the kernel said to a copy with other owners.
    fn of_copy(path: &Path, error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::NOSYS) => Self::NoIdmaps,
            Some(Errno::INVAL) => Self::FileSystem(path.to_owned()),
            Some(Errno::PERM) => Self::Forbidden(path.to_owned()),
            _ => Self::failed("mount with other owners", path)(error),
        }
    }

    fn failed<E: ToString>(action: &str, path: &Path) -> impl FnOnce(E) -> Self {
        move |error| {
            let (action, path) = (action.to_owned(), path.to_owned());
            Self::Failed { action, path, reason: error.to_string() }
        }
    }
}

impl Stage {
    /// Describes the stage for these mounts, and the mounts as they are made from what it lays out.
    pub(super) fn of(mounts: &[Mount]) -> (Self, Vec<Mount>) {
        let mut staged: Vec<Staged> = Vec::new();
        let mut writable: Vec<&Path> = Vec::new();
        let mut lay_out = |source: &Path, owned_like: &Path, is_writable| {
            let place = place(staged.len());
            staged.push(Staged { source: source.to_owned(), owned_like: owned_like.to_owned(), is_writable });
            place
        };
        let mut placed = Vec::with_capacity(mounts.len());
        for mount in mounts {
            placed.push(match mount {
                Mount::ReadWrite { source, target } => {
                    let owned_like = around(&writable, source);
                    writable.push(source);
                    Mount::ReadWrite { source: lay_out(source, owned_like, true), target: target.clone() }
                }
                Mount::ReadOnly { source, target } => {
                    let source = lay_out(source, around(&writable, source), false);
                    Mount::ReadOnly { source, target: target.clone() }
                }
                Mount::System { .. }
                | Mount::Memory { .. }
                | Mount::Directory { .. }
                | Mount::Link { .. }
                | Mount::File { .. }
                | Mount::Copy { .. }
                | Mount::Processes { .. }
                | Mount::Devices { .. }
                | Mount::Hidden { .. }
                | Mount::Sealed { .. } => mount.clone(),
            });
        }
        (Self { staged }, placed)
    }

    /// The copies as a person reads them.
    pub(super) fn display(&self) -> Vec<String> {
        let line = |(number, staged): (usize, &Staged)| {
            let Staged { source, owned_like, is_writable } = staged;
            let access = if *is_writable { "read-write" } else { "read-only" };
            let owner = if source == owned_like {
                "its owner".to_owned()
            } else {
                format!("the owner of {}", owned_like.display())
            };
            let place = place(number);
            format!("{} = {} ({access}, {owner} seen as uid {PAYLOAD})", place.display(), source.display())
        };
        self.staged.iter().enumerate().map(line).collect()
    }

    /// The instructions for [`perform`].
    pub(super) fn instructions(&self, report: i32, inherited: Vec<i32>) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(&Instructions { staged: self.staged.clone(), report, inherited })?)
    }

    /// Tries whether this host can do it, and changes nothing. What does not exist yet stands for by the directory in
    /// which it will be made.
    pub(super) fn probe(&self) -> Result<(), StageError> {
        for map in ["/proc/self/uid_map", "/proc/self/gid_map"].map(Path::new) {
            let text = fs::read_to_string(map).map_err(StageError::failed("read", map))?;
            if !has_numbers(&text) {
                return Err(StageError::NoUser);
            }
        }
        let owners = seen_as_payload((0, 0))?;
        let own_owner = self.staged.iter().filter(|staged| staged.source == staged.owned_like);
        for Staged { source, .. } in own_owner {
            let existing = source.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
            let trees = if existing == source { Trees::All } else { Trees::One };
            copy(existing, &open(existing)?, trees, &owners, 0)?;
        }
        Ok(())
    }
}

/// Reads from a report why a stage failed.
pub(super) fn refusal(report: &str) -> Option<StageError> {
    serde_json::from_str(report).ok().map(|Refusal { stage }| stage)
}

fn place(number: usize) -> PathBuf {
    Path::new(PLACE).join(number.to_string())
}

/// The first of these directories that holds a path, or the path itself.
fn around<'a>(directories: &[&'a Path], path: &'a Path) -> &'a Path {
    directories.iter().find(|directory| path.starts_with(directory)).copied().unwrap_or(path)
}

/// Tells whether a map of a user name space has the payload's number and those of the others.
fn has_numbers(map: &str) -> bool {
    let wanted = [(PAYLOAD, 1), (OTHERS, KNOWN)];
    let ranges: Vec<(u64, u64)> = map
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let first = words.next()?.parse().ok()?;
            Some((first, words.nth(1)?.parse().ok()?))
        })
        .collect();
    wanted.iter().all(|&(start, length)| {
        let (start, length) = (u64::from(start), u64::from(length));
        ranges.iter().any(|&(first, count)| first <= start && start + length <= first + count)
    })
}

/// The map on which one number is the payload's. All others stay apart: a file of somebody else's can be read and
/// removed as its permissions say, and a file of the owner's in somebody else's group can be written.
fn ranges(owner: u32) -> Vec<IdRange> {
    let others = |first: u32, end: u32| IdRange { on_disk: first, seen: OTHERS + first, count: end - first };
    let mut ranges = vec![IdRange { on_disk: owner, seen: PAYLOAD, count: 1 }];
    if owner > 0 {
        ranges.push(others(0, owner.min(KNOWN)));
    }
    if owner < KNOWN - 1 {
        ranges.push(others(owner + 1, KNOWN));
    }
    ranges
}

/// A user name space for mounts, on which an owner on the disk is seen as the payload's user.
fn seen_as_payload((uid, gid): (u32, u32)) -> Result<OwnedFd, StageError> {
    kernel::user_namespace(&ranges(uid), &ranges(gid))
        .map_err(|error| StageError::NoNameSpace(error.to_string()))
}

/// Opens what a path leads to without any link: what was checked is what is copied (F10).
fn open(path: &Path) -> Result<OwnedFd, StageError> {
    // Not with `NOFOLLOW`: with it, a link at the end would itself be opened, and mounted, and followed later.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
        .map_err(StageError::failed("open", path))
}

/// Copies the mount of an open file or directory, from there on downwards; the copy is attached nowhere.
fn copy(
    path: &Path,
    source: &OwnedFd,
    trees: Trees,
    owners: &OwnedFd,
    attributes: u64,
) -> Result<OwnedFd, StageError> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if trees == Trees::All {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree =
        open_tree(source, c"", flags).map_err(|error| StageError::of_copy(path, &io::Error::from(error)))?;
    match kernel::set_tree_attributes(tree.as_fd(), trees, attributes, Some(owners.as_fd())) {
        Ok(()) => Ok(tree),
        Err(error) => Err(StageError::of_copy(&culprit(path, trees, owners), &error)),
    }
}

/// The mount at or below a path that can't be copied with other owners.
fn culprit(path: &Path, trees: Trees, owners: &OwnedFd) -> PathBuf {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let below = points.filter(|point| trees == Trees::All && point != path && point.starts_with(path));
    let mut all = std::iter::once(path.to_owned()).chain(below);
    let fails =
        |path: &PathBuf| open(path).is_ok_and(|source| copy(path, &source, Trees::One, owners, 0).is_err());
    if trees == Trees::One {
        return path.to_owned();
    }
    all.find(fails).unwrap_or_else(|| path.to_owned())
}

/// Lays everything out, becomes the payload's user, and then the program; returns only when that fails.
///
/// `instructions` is the number of an inherited descriptor. This process must have one thread.
pub fn perform(instructions: i32, argv: &[std::ffi::OsString]) -> io::Error {
    let read = |number: i32| fs::read(format!("/proc/self/fd/{number}"));
    let parsed = read(instructions).and_then(|text| Ok(serde_json::from_slice::<Instructions>(&text)?));
    let Instructions { staged, report, inherited } = match parsed {
        Ok(instructions) => instructions,
        Err(error) => return error,
    };
    process::keep_descriptors_but(&inherited);
    // While this process still may: after the change of user, its own table of descriptors is closed to it.
    let report = match File::options().write(true).open(format!("/proc/self/fd/{report}")) {
        Ok(report) => report,
        Err(error) => return error,
    };
    let error =
        lay_out(&staged).and_then(|()| become_payload()).err().unwrap_or_else(|| become_program(argv));
    let failure = io::Error::other(error.clone());
    let told = serde_json::to_vec(&Refusal { stage: error }).map_err(io::Error::from);
    told.and_then(|text| (&report).write_all(&text)).err().unwrap_or(failure)
}

/// A directory whose owner is seen as the payload's user, with all that lies in it.
struct Place {
    path: PathBuf,
    file: OwnedFd,
    owners: OwnedFd,
}

impl Place {
    fn open(path: &Path) -> Result<Self, StageError> {
        let file = open(path)?;
        let owners = seen_as_payload(owner(&file, path)?)?;
        Ok(Self { path: path.to_owned(), file, owners })
    }

    /// Opens what is copied from this place and not by its path once more: whoever owns the place could have put
    /// another directory there in between, with another owner.
    fn open_beneath(&self, path: &Path) -> Result<OwnedFd, StageError> {
        let failed = |error: io::Error| StageError::failed("open", path)(error);
        match path.strip_prefix(&self.path) {
            Ok(below) if below.as_os_str().is_empty() => self.file.try_clone().map_err(failed),
            Ok(below) => {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
                openat2(&self.file, below, flags, Mode::empty(), resolve)
                    .map_err(|error| failed(error.into()))
            }
            Err(_) => Err(failed(io::ErrorKind::InvalidInput.into())),
        }
    }
}

fn lay_out(staged: &[Staged]) -> Result<(), StageError> {
    let root = Path::new("/");
    kernel::unshare_mounts().map_err(StageError::failed("unshare the mounts below", root))?;
    // What is mounted here shows nowhere else; what the host unmounts goes from here too.
    mount_change(root, MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(StageError::failed("detach the mounts below", root))?;
    let mut places: Vec<Place> = Vec::new();
    let mut copies = Vec::with_capacity(staged.len());
    for one in staged {
        if !places.iter().any(|place| place.path == one.owned_like) {
            places.push(Place::open(&one.owned_like)?);
        }
        let place = places.iter().find(|place| place.path == one.owned_like);
        let place = place.expect("it was opened above, if not before");
        let (source, owners) = (place.open_beneath(&one.source)?, &place.owners);
        let read_only = if one.is_writable { 0 } else { libc::MOUNT_ATTR_RDONLY };
        let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | read_only;
        let tree = copy(&one.source, &source, Trees::All, owners, attributes)?;
        let is_directory = metadata(&source, &one.source)?.is_dir();
        copies.push((tree, is_directory));
    }
    attach(&copies)
}

/// Attaches copies in a directory in memory, which lies over [`PLACE`] for this process alone.
fn attach(copies: &[(OwnedFd, bool)]) -> Result<(), StageError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("cloister", PLACE, "tmpfs", flags, c"mode=0755,size=1m")
        .map_err(StageError::failed("mount a directory in memory over", Path::new(PLACE)))?;
    for (number, (tree, is_directory)) in copies.iter().enumerate() {
        let place = place(number);
        let made = if *is_directory { fs::create_dir(&place) } else { File::create(&place).map(drop) };
        made.map_err(StageError::failed("make", &place))?;
        move_mount(tree, c"", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(StageError::failed("mount", &place))?;
    }
    Ok(())
}

fn metadata(file: &OwnedFd, path: &Path) -> Result<fs::Metadata, StageError> {
    let failed = StageError::failed("inspect", path);
    file.try_clone().and_then(|file| File::from(file).metadata()).map_err(failed)
}

fn owner(file: &OwnedFd, path: &Path) -> Result<(u32, u32), StageError> {
    metadata(file, path).map(|found| (found.uid(), found.gid()))
}

/// Gives up everything that is root's: groups, user, capabilities, keys, and the way back.
fn become_payload() -> Result<(), StageError> {
    let (user, group) = (Uid::from_raw(PAYLOAD), Gid::from_raw(PAYLOAD));
    let root = Path::new("/");
    std::env::set_current_dir(root).map_err(StageError::failed("go to", root))?;
    let nothing = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(group, group, group))
        .and_then(|()| set_thread_res_uid(user, user, user))
        // The kernel does this too, unless whoever started this process told it not to (securebits).
        .and_then(|()| set_capabilities(None, nothing))
        .and_then(|()| set_no_new_privs(true))
        .map_err(|error| match error {
            Errno::INVAL => StageError::NoUser,
            error => StageError::failed("give up root's rights at", root)(error),
        })?;
    match kernel::forget_keys() {
        // A kernel without keys, or a container that closes them.
        Err(error) if !matches!(Errno::from_io_error(&error), Some(Errno::NOSYS | Errno::PERM)) => {
            Err(StageError::failed("give up root's keys at", root)(error))
        }
        _ => Ok(()),
    }
}

fn become_program(argv: &[std::ffi::OsString]) -> StageError {
    let Some((program, arguments)) = argv.split_first() else {
        return StageError::failed("run", Path::new(""))("no program was named");
    };
    let error = process::command(program).args(arguments).exec();
    StageError::failed("run", Path::new(program))(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::spec::tests::spec;

    #[test]
    fn everything_outside_the_system_is_copied_and_what_lies_in_the_project_has_its_owner() {
        let (stage, mounts) = Stage::of(&spec().mounts);
        let expected = [
            "/tmp/0 = /run/s/1 (read-only, its owner seen as uid 2000000)",
            "/tmp/1 = /opt/cloister (read-only, its owner seen as uid 2000000)",
            "/tmp/2 = /data/home (read-write, its owner seen as uid 2000000)",
            "/tmp/3 = /src/demo (read-write, its owner seen as uid 2000000)",
            "/tmp/4 = /src/demo/.git (read-write, the owner of /src/demo seen as uid 2000000)",
            "/tmp/5 = /src/demo/.git/hooks (read-only, the owner of /src/demo seen as uid 2000000)",
        ];
        assert_eq!(stage.display(), expected);
        let outside = |mount: &Mount| match mount {
            Mount::ReadOnly { source, .. } | Mount::ReadWrite { source, .. } => !source.starts_with(PLACE),
            _ => false,
        };
        assert!(!mounts.iter().any(outside), "{mounts:?}");
        assert_eq!(mounts.len(), spec().mounts.len());
    }

    #[test]
    fn nothing_of_the_system_lies_where_the_copies_are_laid_out() {
        let facts = crate::sandbox::Facts::gather(&crate::sandbox::Store::Whole);
        let seen = facts.seen();
        let mut paths = seen.iter().chain(&facts.read_only);
        assert!(paths.all(|path| !path.starts_with(PLACE)));
    }

    #[test]
    fn the_whole_instructions() {
        let (stage, _) = Stage::of(&[Mount::ReadWrite { source: "/src".into(), target: "/work".into() }]);
        let expected = r#"{"staged":[{"source":"/src","owned_like":"/src","is_writable":true}],"report":7,"inherited":[5,7]}"#;
        assert_eq!(String::from_utf8(stage.instructions(7, vec![5, 7]).unwrap()).unwrap(), expected);
    }

    #[test]
    fn a_report_tells_a_failure_from_a_process() {
        let error = StageError::FileSystem("/x".into());
        let text = serde_json::to_string(&Refusal { stage: error.clone() }).unwrap();
        assert_eq!(refusal(&text), Some(error));
        assert_eq!(refusal(r#"{"child-pid": 7}"#), None);
        assert_eq!(refusal(""), None);
    }

    #[track_caller]
    fn check_ranges(owner: u32) {
        let ranges = ranges(owner);
        let seen = |number: u32| -> Vec<u32> {
            let holds = |range: &&IdRange| (range.on_disk..range.on_disk + range.count).contains(&number);
            ranges.iter().filter(holds).map(|range| range.seen + (number - range.on_disk)).collect()
        };
        assert_eq!(seen(owner), [PAYLOAD], "{ranges:?}");
        for other in [0, 1, 999, 1000, 1001, 65_534, PAYLOAD, KNOWN - 1] {
            if other != owner {
                assert_eq!(seen(other), [OTHERS + other], "{ranges:?}");
            }
        }
        assert!(ranges.iter().all(|range| range.count > 0), "{ranges:?}");
    }

    #[test]
    fn one_owner_is_the_payloads_user_and_all_others_stay_apart() {
        for owner in [0, 1, 1000, PAYLOAD, KNOWN - 1, KNOWN, u32::MAX - 1] {
            check_ranges(owner);
        }
    }

    #[test]
    fn a_name_space_without_the_numbers_is_known_by_its_map() {
        assert!(has_numbers("         0          0 4294967295\n"));
        assert!(!has_numbers("         0     100000      65536\n"));
        assert!(!has_numbers("0 100000 65536\n2000000 2000000 1\n"));
        assert!(!has_numbers(""));
    }
}
