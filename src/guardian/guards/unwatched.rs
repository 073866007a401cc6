//! What can't be watched, and how much that matters.

use std::fmt::{self, Display, Formatter};
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
    pub(super) fn add(&mut self, path: &Path, error: &io::Error) {
        self.is_exhausted |= is_exhaustion(error);
        self.is_open |= !is_gone(error);
        self.failures.push(format!("{}: {error}", path.display()));
    }

    /// Adds what the kernel had no watch left for.
    pub(super) fn exhausted(&mut self, failure: String) {
        (self.is_open, self.is_exhausted) = (true, true);
        self.failures.push(failure);
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
        write!(formatter, "cannot watch over {}", self.failures.join(", "))
    }
}

/// Tells whether there is nothing to be watched: it has gone again, or was no directory.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR))
}

/// Tells whether the kernel has nothing left to watch with.
pub(super) fn is_exhaustion(error: &io::Error) -> bool {
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
