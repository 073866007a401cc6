//! What can't be watched, and how much that matters.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;

/// What of a sandbox can't be watched.
#[derive(Debug, Default)]
pub(in crate::guardian) struct Unwatched {
    failures: Vec<String>,
    /// Whether something that is there is not watched; what has gone can't be replaced.
    pub(in crate::guardian) is_open: bool,
    /// Whether the kernel has no watch left for this user.
    pub(in crate::guardian) is_exhausted: bool,
}

impl Unwatched {
    pub(super) fn of(path: &Path, error: &io::Error) -> Self {
        let mut unwatched = Self::default();
        unwatched.add(path, error);
        unwatched
    }

    pub(super) fn add(&mut self, path: &Path, error: &io::Error) {
        self.is_exhausted |= is_exhaustion(error);
        self.is_open |= !is_gone(error);
        self.failures.push(format!("{}: {error}", path.display()));
    }

    /// Adds it unless something was before: a sandbox can bring about any number.
    pub(super) fn add_first(&mut self, path: &Path, error: &io::Error) {
        if self.failures.is_empty() {
            self.add(path, error);
        }
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.failures.extend(other.failures);
        self.is_open |= other.is_open;
        self.is_exhausted |= other.is_exhausted;
    }

    pub(super) fn into_result(self) -> Result<(), Self> {
        if self.failures.is_empty() { Ok(()) } else { Err(self) }
    }
}

/// What keeps a sandbox from being watched at all.
impl From<String> for Unwatched {
    fn from(failure: String) -> Self {
        Self { failures: vec![failure], is_open: true, is_exhausted: false }
    }
}

impl Display for Unwatched {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "cannot watch over {}", self.failures.join(", "))?;
        if self.is_exhausted {
            let more = more("max_user_watches");
            write!(
                formatter,
                "; this user has no inotify watch left: close what watches many files, or {more}"
            )?;
        }
        Ok(())
    }
}

/// Says what an error means that comes when nothing can be watched at all.
pub(super) fn without_instance(error: Errno) -> io::Error {
    match error {
        Errno::MFILE => {
            let more = more("max_user_instances");
            let what = "this user has no inotify instance, or this process no descriptor, left";
            io::Error::other(format!("{what}: close what watches files, or {more}"))
        }
        other => other.into(),
    }
}

/// How to have twice as much of what the kernel bounds for a user.
fn more(name: &str) -> String {
    let bound = fs::read_to_string(format!("/proc/sys/fs/inotify/{name}"));
    let twice =
        bound.ok().and_then(|text| text.trim().parse::<u64>().ok()).map_or(1 << 10, |bound| bound * 2);
    format!("run `sudo sysctl fs.inotify.{name}={twice}`")
}

/// Tells whether there is nothing to be watched: it has gone again, or was no directory.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR))
}

/// Tells whether the host can be the reason: it has used up what there is, or its repository is larger than our bounds.
pub(super) fn is_the_hosts(error: &io::Error) -> bool {
    is_exhaustion(error) || error.raw_os_error().is_none()
}

/// Tells whether the kernel has nothing left to watch with.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOSPC | Errno::NOMEM))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(errors: &[Errno]) -> Unwatched {
        let mut unwatched = Unwatched::default();
        for error in errors {
            unwatched.add(Path::new("/x"), &(*error).into());
        }
        unwatched
    }

    #[test]
    fn what_has_gone_leaves_nothing_open_and_everything_else_does() {
        assert!(of(&[]).into_result().is_ok());
        let cases = [
            (Errno::NOENT, false, false),
            (Errno::NOTDIR, false, false),
            (Errno::ACCESS, true, false),
            (Errno::NOSPC, true, true),
            (Errno::NOMEM, true, true),
        ];
        for (error, is_open, is_exhausted) in cases {
            let found = of(&[Errno::NOENT, error]).into_result().unwrap_err();
            assert_eq!((found.is_open, found.is_exhausted), (is_open, is_exhausted), "{error}");
        }
    }
}
