//! What a sandbox can leave in a git directory that makes the host's git write or run something elsewhere.

use std::fs;
use std::path::{Path, PathBuf};

/// How many entries of one git directory are looked at.
const MAX_ENTRIES: usize = 50_000;

/// What is not looked through: objects are many and named by their content, and submodules are git directories of
/// their own. Hooks are guarded, and often links.
const SKIPPED: [&str; 5] = ["objects", "modules", "hooks", "lfs", "annex"];

/// The verbs of an interactive rebase that run nothing but git itself.
const VERBS: [&str; 24] = [
    "pick",
    "p",
    "reword",
    "r",
    "edit",
    "e",
    "squash",
    "s",
    "fixup",
    "f",
    "drop",
    "d",
    "label",
    "l",
    "reset",
    "t",
    "merge",
    "m",
    "noop",
    "break",
    "b",
    "update-ref",
    "u",
    "comment",
];

/// What was found in a git directory.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Links: git makes none there.
    pub(super) links: Vec<PathBuf>,
    /// What can't be looked into, or not to its end.
    pub(super) closed: Vec<PathBuf>,
}

/// Looks for links in a git directory.
pub(super) fn look(git_dir: &Path) -> Found {
    let mut found = Found::default();
    let (mut waiting, mut seen) = (vec![git_dir.to_owned()], 0);
    while let Some(directory) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            found.closed.push(directory);
            continue;
        };
        for entry in entries.flatten() {
            seen += 1;
            if seen > MAX_ENTRIES {
                found.closed.push(git_dir.to_owned());
                return found;
            }
            let is_skipped =
                directory == git_dir && SKIPPED.iter().any(|skipped| entry.file_name() == *skipped);
            match entry.file_type() {
                Ok(kind) if kind.is_symlink() => found.links.push(entry.path()),
                Ok(kind) if kind.is_dir() && !is_skipped => waiting.push(entry.path()),
                _ => {}
            }
        }
    }
    found.links.sort();
    found
}

/// Tells whether an interrupted rebase would run more than git itself.
pub(super) fn runs_commands(todo: &str) -> bool {
    let mut verbs = todo.lines().filter_map(|line| line.split_whitespace().next());
    verbs.any(|verb| !verb.starts_with('#') && !VERBS.contains(&verb))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f2_a_rebase_that_runs_commands_is_told_from_one_that_does_not() {
        for todo in ["pick 1 x\n", "# exec\n\np 1\nbreak\n", "  fixup -C 1\n", "update-ref refs/heads/x\n"] {
            assert!(!runs_commands(todo), "{todo:?}");
        }
        for todo in ["exec evil", "x\tevil", " x evil", "\texec evil", "pick 1\nx evil", "EXEC evil"] {
            assert!(runs_commands(todo), "{todo:?}");
        }
    }
}
