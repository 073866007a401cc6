//! Keeps and forgets answers, so that two processes lose nothing and a crash leaves the old file or the new one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::{Decision, Loaded, Place, rendering};
use crate::config::problem::{ConfigError, Problem, Report};
use crate::config::{MAX_FILE_BYTES, yaml};
use crate::name::{CloisterId, CloisterName};
use crate::paths::{self, Lock, Paths, PathsError};
use crate::policy::{Effect, InvalidPattern, Pattern, Rule};

/// How long to wait for whoever changes the same kind of file.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long between two looks at a lock.
const PAUSE: Duration = Duration::from_millis(5);

/// Says why an answer could not be kept or forgotten; the file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum DecisionsError {
    /// The file can't be read, so nothing is written over it.
    #[error(transparent)]
    Broken(#[from] ConfigError),
    /// The file is another project's or another cloister's.
    #[error("cannot keep answers in the file of another: {0}")]
    Foreign(Problem),
    /// An allow rule may not be as wide as that.
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    /// There is no room for more.
    #[error("`{0}` is full: a file of answers has at most 1 MiB")]
    Full(PathBuf),
    /// Another process changes the file, or was stopped while it did.
    #[error("another process holds `{0}`; try again")]
    Busy(PathBuf),
    /// A file could not be locked or written.
    #[error(transparent)]
    Paths(#[from] PathsError),
}

/// Tells what became of an answer that was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Where it stands, as rules name it: `decisions/global.yaml:4`.
    pub location: String,
    /// The answers to the same pattern that it took the place of, with either effect.
    pub replaced: Vec<Decision>,
}

/// Keeps an answer. One to the same pattern gives way, whatever it said: a deny would make an allow void.
///
/// Waits a while for whoever changes the same kind of file.
///
/// # Errors
/// Nothing has changed then.
pub fn remember(paths: &Paths, place: &Place, decision: Decision) -> Result<Remembered, DecisionsError> {
    // What is written has to be readable.
    Pattern::parse_for(decision.effect, &decision.pattern.to_string())?;
    let mut file = Changing::begin(paths, place)?;
    let replaced = file.extract(|known| known.pattern == decision.pattern);
    let (effect, pattern) = (decision.effect, decision.pattern.clone());
    file.decisions.push(decision);
    let written = file.write()?;
    let stands = |kept: &&super::Kept| kept.decision.effect == effect && kept.decision.pattern == pattern;
    let location =
        written.kept.iter().find(stands).map_or_else(|| place.label(), |kept| kept.location.clone());
    Ok(Remembered { location, replaced })
}

/// Forgets the answers to a pattern, with one effect or with either; gives those that there were.
///
/// # Errors
/// Nothing has changed then.
pub fn forget(
    paths: &Paths,
    place: &Place,
    pattern: &Pattern,
    effect: Option<Effect>,
) -> Result<Vec<Decision>, DecisionsError> {
    if is_absent(&place.file(paths)) {
        return Ok(Vec::new());
    }
    let mut file = Changing::begin(paths, place)?;
    let forgotten =
        file.extract(|known| known.pattern == *pattern && effect.is_none_or(|effect| known.effect == effect));
    if !forgotten.is_empty() {
        file.write()?;
    }
    Ok(forgotten)
}

/// Reads the answers of a place.
///
/// # Errors
/// All problems of the file.
pub fn load(paths: &Paths, place: &Place) -> Result<Loaded, ConfigError> {
    read(&place.file(paths), place).map(|(loaded, _)| loaded)
}

/// Reads the answers for a cloister as rules; a file of an earlier cloister of that name gives none, and a problem.
///
/// # Errors
/// All problems of the file.
pub fn load_grants(
    paths: &Paths,
    name: &CloisterName,
    id: &CloisterId,
) -> Result<(Vec<Rule>, Option<Problem>), ConfigError> {
    let place = Place::Session(name.clone(), id.clone());
    let loaded = load(paths, &place)?;
    Ok((loaded.kept.iter().map(|kept| kept.rule(place.origin_kind())).collect(), loaded.foreign))
}

/// Removes the answers for a cloister, whatever its file says; one that is absent is as good as removed.
///
/// # Errors
/// When the file is still there.
pub fn remove_grants(paths: &Paths, name: &CloisterName) -> Result<(), PathsError> {
    let file = paths.grants_file(name);
    if is_absent(&file) {
        return Ok(());
    }
    let lock = paths.grants_lock();
    let Some(_lock) = patiently(&lock)? else {
        let busy = io::Error::new(io::ErrorKind::WouldBlock, "another process holds it; try again");
        return Err(PathsError::io("lock", &lock)(busy));
    };
    paths::remove_if_present(&file)
}

/// Takes a lock; `None` when others hold it for longer than a change takes: a process that is stopped would hold up the
/// guardian for ever.
fn patiently(path: &Path) -> Result<Option<Lock>, PathsError> {
    let begun = Instant::now();
    loop {
        match Lock::try_acquire(path)? {
            Some(lock) => return Ok(Some(lock)),
            None if begun.elapsed() >= PATIENCE => return Ok(None),
            None => thread::sleep(PAUSE),
        }
    }
}

fn is_absent(path: &Path) -> bool {
    matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Is a file that is being changed; nobody else changes it meanwhile.
struct Changing<'a> {
    place: &'a Place,
    path: PathBuf,
    comment: String,
    decisions: Vec<Decision>,
    _lock: Lock,
}

impl<'a> Changing<'a> {
    fn begin(paths: &Paths, place: &'a Place) -> Result<Self, DecisionsError> {
        let lock = place.lock(paths);
        let lock = patiently(&lock)?.ok_or(DecisionsError::Busy(lock))?;
        let path = place.file(paths);
        let (loaded, text) = read(&path, place)?;
        if let Some(problem) = loaded.foreign {
            return Err(DecisionsError::Foreign(problem));
        }
        let decisions = loaded.kept.into_iter().map(|kept| kept.decision).collect();
        Ok(Self { place, path, comment: comment(&text), decisions, _lock: lock })
    }

    /// Takes out what fits.
    fn extract(&mut self, fits: impl Fn(&Decision) -> bool) -> Vec<Decision> {
        let (taken, left) = std::mem::take(&mut self.decisions).into_iter().partition(fits);
        self.decisions = left;
        taken
    }

    /// Writes the file, once it is sure that it can be read again; gives what it says now.
    fn write(self) -> Result<Loaded, DecisionsError> {
        let text = rendering::render(&self.comment, self.place, &self.decisions);
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(DecisionsError::Full(self.path));
        }
        let mut report = Report::new(&self.path);
        let loaded = parsed(&text, self.place, &mut report);
        let loaded = checked(loaded, report)?;
        // Who keeps the file elsewhere and has a link here finds the answers there.
        let target = fs::canonicalize(&self.path).unwrap_or(self.path);
        paths::write_atomic(&target, text.as_bytes())?;
        Ok(loaded)
    }
}

/// Reads a file and its text; one that is absent says nothing.
fn read(path: &Path, place: &Place) -> Result<(Loaded, String), ConfigError> {
    let mut report = Report::new(path);
    let text = crate::config::read(path, &mut report).unwrap_or_default();
    let loaded = parsed(&text, place, &mut report);
    Ok((checked(loaded, report)?, text))
}

fn parsed(text: &str, place: &Place, report: &mut Report<'_>) -> Loaded {
    yaml::parse(text, report).map(|tree| super::decode(tree, place, report)).unwrap_or_default()
}

fn checked(loaded: Loaded, report: Report<'_>) -> Result<Loaded, ConfigError> {
    let problems = report.into_problems();
    if problems.is_empty() { Ok(loaded) } else { Err(ConfigError { problems }) }
}

/// The lines of comment at the top of a text.
fn comment(text: &str) -> String {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // For YAML a carriage return ends a line, and so a comment.
    let lines = text.lines().take_while(|line| line.starts_with('#') && !line.contains('\r'));
    lines.flat_map(|line| [line, "\n"]).collect()
}
