//! What the settings share with a sandbox (`mounts`, `refs`), checked against the host.
//!
//! A source is judged by what it really is, links resolved. Nothing is shared that holds keys, sockets, Cloister's
//! own files (invariant 5) or the project itself; what the host's programs are started from or obey can't be shared
//! read-write, nor can a repository's data: what a sandbox writes there would run outside it.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use super::Project;
use crate::config::{Config, Mount, MountMode};
use crate::paths::{Paths, Reach, Survey, Unseen, overlap, survey};
use crate::text::Untrusted;

/// Where references are seen.
const REFS: &str = "/refs";
/// The project inside.
const WORK: &str = "/work";
/// The user's home inside.
const HOME: &str = "/home/cloister";

/// How far a directory is searched for sockets and repositories.
const REACH: Reach = Reach { levels: 4, entries: 5000 };

/// The same where a sandbox can write. What lies beyond is refused: a repository that is not seen is not sealed.
const WRITABLE_REACH: Reach = Reach { levels: 64, entries: 100_000 };

/// Places of the host from which the kernel and running programs are reached.
const ALIVE: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/var/run"];

/// How names in `/tmp` begin that running programs use.
const ALIVE_IN_TMP: [&str; 9] =
    [".X11-unix", ".ICE-unix", ".XIM-unix", "ssh-", "tmux-", "dbus-", "gpg-", "pulse-", "systemd-private-"];

/// Places of the host that the system's programs are started from or obey.
const OBEYED: [&str; 11] =
    ["/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/nix", "/sbin", "/usr", "/var/spool"];

/// Places inside, at, in or above which nothing is mounted.
const RESERVED: [&str; 13] = [
    "/bin", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/nix", "/proc", "/run", "/sbin", "/sys",
    "/usr",
];

/// Places inside, at or above which nothing is mounted; in them, something may.
const KEPT: [&str; 6] = [WORK, HOME, REFS, "/tmp", "/var/tmp", "/var/run"];

/// A file or directory of the host that a sandbox sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Where it lies, with links resolved.
    pub source: PathBuf,
    /// Where it is seen.
    pub target: PathBuf,
    /// Whether it can be written.
    pub mode: MountMode,
    /// Parts of it that are read-only all the same, below the source.
    pub sealed: Vec<PathBuf>,
    /// Files in it that hold credentials, below the source.
    pub emptied: Vec<PathBuf>,
}

/// What shares are checked against.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Cloister's own files.
    pub paths: &'a Paths,
    /// The project of the sandbox.
    pub project: &'a Project,
    /// The running binary.
    pub binary: &'a Path,
    /// From where the host starts programs: the directories of `PATH`, and what the tools inside come from.
    pub programs: &'a [PathBuf],
    /// What is guarded in the project: nothing is mounted at, in or above it.
    pub guarded: &'a [PathBuf],
    /// Where the sandbox shows something of the host already.
    pub taken: &'a [PathBuf],
}

/// Everything that can't be shared, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot share what `mounts` and `refs` name{}", Lines(.0))]
pub struct SharesError(pub Vec<ShareProblem>);

/// One thing that can't be shared.
#[derive(Debug, PartialEq, Eq)]
pub struct ShareProblem {
    /// Which, as it was written.
    pub path: PathBuf,
    /// Why.
    pub refusal: Refusal,
}

/// Why something can't be shared.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is not there.
    #[error("does not exist")]
    Missing,
    /// It can't be looked at.
    #[error("cannot be looked at: {0}")]
    Unknown(io::ErrorKind),
    /// It is something else than a file or a directory.
    #[error("is a socket, a device or a pipe")]
    NoFile,
    /// Keys lie there.
    #[error("would show `{}`, where keys or credentials lie", .0.display())]
    Private(PathBuf),
    /// Cloister itself reads it.
    #[error("overlaps Cloister's own `{}`", .0.display())]
    Own(PathBuf),
    /// Running programs and the kernel are reached there.
    #[error("overlaps `{}`, where the kernel and running programs are reached", .0.display())]
    Alive(PathBuf),
    /// Somebody listens in it.
    #[error("holds the socket `{}`: who connects to it leaves the sandbox", .0.display())]
    Socket(PathBuf),
    /// It is in the sandbox already.
    #[error("overlaps the project `{}`, which is at `/work` already", .0.display())]
    Project(PathBuf),
    /// What a sandbox wrote there would run on the host.
    #[error("cannot be read-write: programs of the host are started from `{place}` or obey it", place = .0.display())]
    Obeyed(PathBuf),
    /// What a sandbox wrote there would be run by git on the host.
    #[error("cannot be read-write: `{}` is git's own, and git on the host runs what lies there", .0.display())]
    GitData(PathBuf),
    /// It is too large for all repositories in it to be found.
    #[error("cannot be read-write: `{}` was not looked through, and a repository may lie there (it is too deep, or \
             there are too many files)", .0.display())]
    TooLarge(PathBuf),
    /// A repository may lie where nobody can look.
    #[error("cannot be read-write: `{}` cannot be read, and a repository may lie there", .0.display())]
    Closed(PathBuf),
    /// Its place inside belongs to something else.
    #[error("cannot be seen at `{}`: `{}` is the sandbox's own", target.display(), place.display())]
    Place {
        /// Where it should be seen.
        target: PathBuf,
        /// What is there.
        place: PathBuf,
    },
    /// Nothing is there over which it could lie.
    #[error("cannot be seen at `{}`: `{}` is not there, or is something else", target.display(), point.display())]
    NoPoint {
        /// Where it should be seen.
        target: PathBuf,
        /// What it would lie over.
        point: PathBuf,
    },
    /// Two things would be seen in one place.
    #[error("would be seen at `{}`, and so would something else", .0.display())]
    SamePlace(PathBuf),
}

impl Display for ShareProblem {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let path = self.path.to_string_lossy();
        write!(formatter, "`{}` {}", Untrusted(&path), Untrusted(&self.refusal.to_string()))
    }
}

/// Shows every problem on a line of its own.
struct Lines<'a>(&'a [ShareProblem]);

impl Display for Lines<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| write!(formatter, "\n  {problem}"))
    }
}

/// Checks everything that the settings share.
///
/// # Errors
/// All that can't be shared, at once.
pub fn shares(config: &Config, around: &Surroundings<'_>) -> Result<Vec<Share>, SharesError> {
    let private = around.paths.private_places();
    let refs = config.refs.iter().map(|source| Mount {
        source: source.clone(),
        target: Path::new(REFS).join(reference_name(source)),
        mode: MountMode::ReadOnly,
    });
    let (mut shares, mut problems): (Vec<Share>, Vec<ShareProblem>) = Default::default();
    for wanted in refs.chain(config.mounts.iter().cloned()) {
        let is_taken = shares.iter().any(|other| other.target == wanted.target);
        let checked = around.check(&wanted, &private);
        match checked
            .and_then(|share| if is_taken { Err(Refusal::SamePlace(share.target)) } else { Ok(share) })
        {
            Ok(share) => shares.push(share),
            Err(refusal) => problems.push(ShareProblem { path: wanted.source, refusal }),
        }
    }
    // One that lies in another's place comes after it.
    shares.sort_by(|one, other| one.target.cmp(&other.target));
    problems.extend(shares.iter().filter_map(|share| unfounded(share, &shares)));
    if problems.is_empty() { Ok(shares) } else { Err(SharesError(problems)) }
}

/// The problem of a share that lies in another one's place, where the other has nothing over which it could lie:
/// nothing is made in what the host shares.
fn unfounded(share: &Share, all: &[Share]) -> Option<ShareProblem> {
    let around =
        all.iter().rfind(|other| other.target != share.target && share.target.starts_with(&other.target))?;
    let below = share.target.strip_prefix(&around.target).ok()?;
    let point = first_odd(&around.source, below, &fs::metadata(&share.source).ok()?)?;
    let refusal = Refusal::NoPoint { target: share.target.clone(), point };
    Some(ShareProblem { path: share.source.clone(), refusal })
}

/// The name of a reference: the last part of its path, without what is odd in a name.
fn reference_name(source: &Path) -> String {
    let name = source.file_name().unwrap_or_default().to_string_lossy();
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "._-+".contains(letter);
    name.chars().map(|letter| if is_plain(letter) { letter } else { '-' }).collect()
}

impl Surroundings<'_> {
    fn check(&self, wanted: &Mount, private: &[PathBuf]) -> Result<Share, Refusal> {
        let unknown = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Refusal::Missing,
            kind => Refusal::Unknown(kind),
        };
        let source = fs::canonicalize(&wanted.source).map_err(unknown)?;
        let found = fs::metadata(&source).map_err(unknown)?;
        let target = &wanted.target;
        self.check_source(&source, &found, private)?;
        self.check_place(target)?;
        self.check_point(target, &found)?;
        let is_writable = wanted.mode == MountMode::ReadWrite;
        let reach = if is_writable { WRITABLE_REACH } else { REACH };
        let Survey { socket, repositories, unseen } =
            if found.is_dir() { survey(&source, reach) } else { Survey::default() };
        if let Some(socket) = socket {
            return Err(Refusal::Socket(socket));
        }
        if is_writable {
            self.check_obeyed(&source)?;
            check_no_git_data(&source)?;
            let is_link = |git: &&PathBuf| fs::symlink_metadata(git).is_ok_and(|found| found.is_symlink());
            if let Some(link) = repositories.iter().find(is_link) {
                return Err(Refusal::GitData(link.clone()));
            }
            match unseen {
                Some(Unseen::Beyond(place)) => return Err(Refusal::TooLarge(place)),
                Some(Unseen::Closed(place)) => return Err(Refusal::Closed(place)),
                None => {}
            }
        }
        let configs = repositories.iter().map(|git| git.join("config"));
        let emptied = configs.filter(|config| holds_credentials(config)).collect();
        let sealed = if is_writable { repositories } else { Vec::new() };
        Ok(Share { source, target: target.clone(), mode: wanted.mode, sealed, emptied })
    }

    /// Refuses what no sandbox may see.
    fn check_source(&self, source: &Path, found: &Metadata, private: &[PathBuf]) -> Result<(), Refusal> {
        let overlaps = |place: &&Path| source.starts_with(place) || place.starts_with(source);
        if !(found.is_file() || found.is_dir()) {
            return Err(Refusal::NoFile);
        }
        if let Some(place) = self.paths.own_dirs().into_iter().find(|own| overlap(own, source)) {
            return Err(Refusal::Own(place.to_owned()));
        }
        if self.binary.starts_with(source) && source != self.binary {
            return Err(Refusal::Own(self.binary.to_owned()));
        }
        if let Some(place) = private.iter().map(PathBuf::as_path).find(overlaps) {
            return Err(Refusal::Private(place.to_owned()));
        }
        if let Some(place) = self.alive(source) {
            return Err(Refusal::Alive(place));
        }
        let mut project =
            [Some(self.project.directory.as_path()), self.project.outside_repository()].into_iter().flatten();
        match project.find(overlaps) {
            Some(place) => Err(Refusal::Project(place.to_owned())),
            None => Ok(()),
        }
    }

    /// The place that a source overlaps and where running programs are reached.
    fn alive(&self, source: &Path) -> Option<PathBuf> {
        let runtime = self.paths.runtime_dir().parent().map(Path::to_owned);
        let mut places = ALIVE.map(PathBuf::from).into_iter().chain(runtime);
        let in_tmp = || {
            let name = source.strip_prefix("/tmp").ok()?.components().next()?.as_os_str().to_string_lossy();
            ALIVE_IN_TMP.iter().any(|start| name.starts_with(start)).then(|| Path::new("/tmp").join(&*name))
        };
        let shared = ["/tmp", "/var/tmp"].map(Path::new).into_iter().find(|tmp| *tmp == source);
        places
            .find(|place| source.starts_with(place) || place.starts_with(source))
            .or_else(|| shared.map(Path::to_owned))
            .or_else(in_tmp)
    }

    /// Refuses to make writable what programs of the host are started from, or obey.
    fn check_obeyed(&self, source: &Path) -> Result<(), Refusal> {
        if let Some(place) = self.programs.iter().find(|program| overlap(program, source)) {
            return Err(Refusal::Obeyed(place.clone()));
        }
        if let Some(place) = OBEYED
            .map(Path::new)
            .into_iter()
            .find(|place| source.starts_with(place) || place.starts_with(source))
        {
            return Err(Refusal::Obeyed(place.to_owned()));
        }
        // What is hidden in a home is settings, programs, or caches of what is compiled and run (F14).
        let home = fs::canonicalize(self.paths.home()).unwrap_or_else(|_| self.paths.home().to_owned());
        let first = source.strip_prefix(&home).ok().and_then(|below| below.components().next());
        match first.map(Component::as_os_str) {
            Some(name) if name == "bin" || name.as_encoded_bytes().starts_with(b".") => {
                Err(Refusal::Obeyed(home.join(name)))
            }
            _ => Ok(()),
        }
    }

    /// Refuses places inside that are the sandbox's own.
    fn check_place(&self, target: &Path) -> Result<(), Refusal> {
        let reserved = RESERVED.map(Path::new).into_iter().chain(self.taken.iter().map(PathBuf::as_path));
        let at_or_in = reserved.clone().find(|place| target.starts_with(place));
        let above = reserved.chain(KEPT.map(Path::new)).find(|place| place.starts_with(target));
        match at_or_in.or(above) {
            Some(place) => Err(Refusal::Place { target: target.to_owned(), place: place.to_owned() }),
            None => Ok(()),
        }
    }

    /// Refuses places in what a sandbox can write that are not there, lead elsewhere or are guarded: a sandbox may
    /// have laid a link there.
    fn check_point(&self, target: &Path, found: &Metadata) -> Result<(), Refusal> {
        if let Ok(below) = target.strip_prefix(WORK) {
            let point = self.project.directory.join(below);
            let mut guarded =
                self.guarded.iter().filter(|one| one.starts_with(&point) || point.starts_with(one));
            let is_git = below.components().any(|part| part.as_os_str() == ".git");
            if is_git || guarded.next().is_some() {
                return Err(Refusal::Place { target: target.to_owned(), place: target.to_owned() });
            }
            return match first_odd(&self.project.directory, below, found) {
                Some(point) => Err(Refusal::NoPoint { target: target.to_owned(), point }),
                None => Ok(()),
            };
        }
        let Ok(below) = target.strip_prefix(HOME) else { return Ok(()) };
        let home = self.paths.instance_dir(&self.project.name).join("home");
        match first_odd(&home, below, found) {
            // What is missing in the sandbox's home is made there.
            Some(point) if fs::symlink_metadata(&point).is_ok() => {
                Err(Refusal::NoPoint { target: target.to_owned(), point })
            }
            _ => Ok(()),
        }
    }
}

/// The first part of a path below `top` that is missing, or no directory; at its end, something else than `wanted`.
fn first_odd(top: &Path, below: &Path, wanted: &Metadata) -> Option<PathBuf> {
    let mut point = top.to_owned();
    let mut parts = below.components().peekable();
    while let Some(part) = parts.next() {
        point.push(part);
        let is_right = fs::symlink_metadata(&point).is_ok_and(|found| {
            let is_last = parts.peek().is_none();
            if is_last { found.is_dir() == wanted.is_dir() && !is_odd(&found) } else { found.is_dir() }
        });
        if !is_right {
            return Some(point);
        }
    }
    None
}

impl Share {
    /// The parts of it that are laid over themselves, in the order of their paths, and whether they can be written:
    /// what is sealed, and every directory around it, which could else be moved to where the next search does not
    /// find it, or replaced.
    pub fn guarded(&self) -> Vec<(PathBuf, bool)> {
        let around = |sealed: &'_ PathBuf| {
            let above = sealed.ancestors().skip(1).map(Path::to_owned);
            above.take_while(|above| *above != self.source).collect::<Vec<_>>()
        };
        let pinned = self.sealed.iter().flat_map(around).map(|path| (path, true));
        let all: BTreeMap<_, _> =
            pinned.chain(self.sealed.iter().map(|path| (path.clone(), false))).collect();
        all.into_iter().collect()
    }
}

fn is_odd(found: &Metadata) -> bool {
    let kind = found.file_type();
    kind.is_symlink() || kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device()
}

/// Refuses a repository without a working tree, and what lies in a repository's data.
fn check_no_git_data(source: &Path) -> Result<(), Refusal> {
    let inside = source.ancestors().find(|above| {
        above.file_name().is_some_and(|name| name == ".git")
            || above.join("HEAD").is_file() && above.join("objects").is_dir() && above.join("refs").is_dir()
    });
    inside.map_or(Ok(()), |data| Err(Refusal::GitData(data.to_owned())))
}

/// Tells whether a repository's configuration names passwords: in addresses, or as headers.
fn holds_credentials(config: &Path) -> bool {
    const MAX_BYTES: u64 = 1024 * 1024;
    let Ok(found) = fs::symlink_metadata(config) else { return false };
    if !found.is_file() || found.len() > MAX_BYTES {
        return true;
    }
    let Ok(text) = fs::read(config) else { return false };
    let text = String::from_utf8_lossy(&text).to_ascii_lowercase();
    let has_user = |rest: &str| {
        let end = rest.find(['/', ' ', '"', '\n']).unwrap_or(rest.len());
        rest[..end].contains('@')
    };
    ["http://", "https://"].iter().any(|scheme| text.split(scheme).skip(1).any(has_user))
        || ["extraheader", "password", "token"].iter().any(|word| text.contains(word))
}

#[cfg(test)]
mod tests;
