//! What editors, shells and agents on the host execute on opening a project: read-only inside, also when absent
//! (F6, F8, F11).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::FilesError;

/// What is protected in every project, and who executes it.
const DEFAULTS: [(&str, &str); 11] = [
    (".claude", "Claude Code: permissions, hooks and servers in `settings*.json`"),
    (".codex", "Codex: settings and servers"),
    (".cursor", "Cursor: servers, hooks and rules"),
    (".devcontainer", "editors: commands at the start of a container"),
    (".envrc", "direnv, on entering the directory"),
    (".gemini", "Gemini CLI: settings and servers"),
    (".idea", "JetBrains: run configurations, file watchers, startup tasks"),
    (".mcp.json", "agents: programs that are started as servers"),
    (".vscode", "VS Code: tasks, settings that name programs"),
    (".zed", "Zed: tasks and settings"),
    (".devcontainer.json", "editors: commands at the start of a container"),
];

/// What stays writable in a protected directory: agents keep plans and instructions there. None of it runs by
/// itself; the trust diff names it.
const OPENED: [&str; 6] = [
    ".claude/agents",
    ".claude/commands",
    ".claude/plans",
    ".claude/rules",
    ".claude/skills",
    ".claude/worktrees",
];

/// What takes the place of something that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// An empty directory, also under a file's name: git neither shows nor adds it.
    Directory,
    /// An empty file, for what is read as settings.
    File,
}

/// A path that must be guarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protected {
    /// Where it lies, below the project.
    pub path: PathBuf,
    /// What takes its place when it does not exist.
    pub absent: Absent,
}

/// How the protected paths are guarded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Protection {
    /// What is laid over itself, parents first, and whether it can be written.
    pub mounts: Vec<(PathBuf, bool)>,
    /// What has to be made first, parents first.
    pub placeholders: Vec<(PathBuf, Absent)>,
    /// What is read-only, existing or not, and what takes its place once it does not exist.
    pub sealed: Vec<(PathBuf, Absent)>,
}

/// Plans the protection of a project: the defaults, the user's `files.protect`, and further paths.
///
/// # Errors
/// [`FilesError::Link`] or [`FilesError::Odd`] when something can't be guarded, [`FilesError::Unfit`] when a path of
/// the user's is none.
pub fn protect(root: &Path, wanted: &[String], further: Vec<Protected>) -> Result<Protection, FilesError> {
    let wanted: Vec<PathBuf> = wanted.iter().map(|path| fit(path)).collect::<Result<_, _>>()?;
    let directory = |path: PathBuf| Protected { path, absent: Absent::Directory };
    let mut sealed: BTreeMap<PathBuf, Absent> = BTreeMap::new();
    let defaults = DEFAULTS.iter().map(|(path, _)| directory(path.into()));
    let workspaces = workspaces(root).into_iter().map(directory);
    let all = defaults.chain(workspaces).chain(wanted.iter().cloned().map(directory)).chain(further);
    for one in all.filter(|one| !one.path.as_os_str().is_empty()) {
        sealed.entry(one.path).or_insert(one.absent);
    }
    let is_whole = |path: &Path| wanted.iter().any(|whole| path.starts_with(whole));
    let opened: Vec<&Path> = OPENED.iter().map(Path::new).filter(|path| !is_whole(path)).collect();
    let mut plan = Plan { root, guards: BTreeMap::new(), placeholders: BTreeMap::new() };
    for (path, absent) in &sealed {
        plan.parents(path, &sealed)?;
        plan.add(path, false, *absent)?;
    }
    for path in opened {
        plan.add(path, true, Absent::Directory)?;
    }
    Ok(Protection {
        mounts: plan.guards.into_iter().collect(),
        placeholders: plan.placeholders.into_iter().collect(),
        sealed: sealed.into_iter().collect(),
    })
}

/// A path of the user's, by its words alone.
fn fit(text: &str) -> Result<PathBuf, FilesError> {
    let parts: Vec<Component<'_>> =
        Path::new(text).components().filter(|part| *part != Component::CurDir).collect();
    let is_fit = parts.iter().all(|part| matches!(part, Component::Normal(_)));
    match parts.first() {
        Some(Component::Normal(first)) if is_fit && *first != ".git" => Ok(parts.iter().collect()),
        _ => Err(FilesError::Unfit(text.to_owned())),
    }
}

/// The workspace files that VS Code offers to open; only what exists is known by name.
fn workspaces(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let names = entries.flatten().map(|entry| PathBuf::from(entry.file_name()));
    names.filter(|name| name.extension().is_some_and(|extension| extension == "code-workspace")).collect()
}

struct Plan<'a> {
    root: &'a Path,
    /// By path: parents come before what lies in them.
    guards: BTreeMap<PathBuf, bool>,
    placeholders: BTreeMap<PathBuf, Absent>,
}

impl Plan<'_> {
    /// Pins the directories above a path: they could be renamed, and what is guarded would go with them. One that is
    /// guarded itself stays so.
    fn parents(&mut self, path: &Path, sealed: &BTreeMap<PathBuf, Absent>) -> Result<(), FilesError> {
        let above = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
        for parent in above {
            if !parent.ancestors().any(|one| sealed.contains_key(one)) {
                self.add(parent, true, Absent::Directory)?;
                if !self.is_directory(parent)? {
                    return Err(FilesError::Odd(self.root.join(parent)));
                }
            }
        }
        Ok(())
    }

    fn is_directory(&self, path: &Path) -> Result<bool, FilesError> {
        Ok(self.placeholders.contains_key(path) || self.look(path)?.is_none_or(|kind| kind.is_dir()))
    }

    fn look(&self, path: &Path) -> Result<Option<fs::FileType>, FilesError> {
        let whole = self.root.join(path);
        match fs::symlink_metadata(&whole) {
            Err(_) => Ok(None),
            Ok(found) if found.is_symlink() => Err(FilesError::Link(whole)),
            Ok(found) if found.is_file() || found.is_dir() => Ok(Some(found.file_type())),
            Ok(_) => Err(FilesError::Odd(whole)),
        }
    }

    fn add(&mut self, path: &Path, is_writable: bool, absent: Absent) -> Result<(), FilesError> {
        // In what is a file, nothing can lie.
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            if self.look(above)?.is_some_and(|kind| kind.is_file()) {
                return Ok(());
            }
        }
        if self.look(path)?.is_none() {
            self.placeholders.insert(path.to_owned(), absent);
        }
        self.guards.entry(path.to_owned()).or_insert(is_writable);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn project() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        (directory, root)
    }

    fn planned(root: &Path, wanted: &[&str]) -> Result<Protection, FilesError> {
        let wanted: Vec<String> = wanted.iter().map(|&path| path.to_owned()).collect();
        protect(root, &wanted, Vec::new())
    }

    fn access(protection: &Protection, path: &str) -> Option<bool> {
        protection.mounts.iter().find(|(at, _)| at == Path::new(path)).map(|(_, is_writable)| *is_writable)
    }

    #[test]
    fn f6_f8_f11_what_is_absent_is_made_and_protected() {
        let (_keep, root) = project();
        fs::create_dir(root.join(".vscode")).unwrap();
        fs::write(root.join("a.code-workspace"), "{}").unwrap();
        let protection = planned(&root, &[]).unwrap();
        for path in [".vscode", ".mcp.json", ".envrc", ".claude", ".idea", "a.code-workspace"] {
            assert_eq!(access(&protection, path), Some(false), "{path}");
        }
        assert_eq!(access(&protection, ".claude/plans"), Some(true));
        let made: Vec<_> = protection.placeholders.iter().map(|(path, _)| path.to_str().unwrap()).collect();
        assert!(made.contains(&".envrc") && made.contains(&".claude") && made.contains(&".claude/plans"));
        assert!(!made.contains(&".vscode") && !made.contains(&"a.code-workspace"));
    }

    #[test]
    fn parents_are_pinned_and_never_open_what_is_protected() {
        let (_keep, root) = project();
        let protection = planned(&root, &["a/b/c.json", ".vscode/deep/file", "a/b/c.json/x"]).unwrap();
        assert_eq!((access(&protection, "a"), access(&protection, "a/b")), (Some(true), Some(true)));
        assert_eq!(access(&protection, "a/b/c.json"), Some(false));
        assert_eq!(access(&protection, ".vscode"), Some(false));
        assert_eq!(access(&protection, ".vscode/deep"), None);
        let order: Vec<_> = protection.mounts.iter().map(|(path, _)| path.clone()).collect();
        assert!(order.is_sorted(), "parents come first");
    }

    #[test]
    fn what_the_user_protects_as_a_whole_stays_closed() {
        let (_keep, root) = project();
        let protection = planned(&root, &[".claude"]).unwrap();
        assert_eq!(
            (access(&protection, ".claude"), access(&protection, ".claude/plans")),
            (Some(false), None)
        );
    }

    #[test]
    fn f10_links_and_odd_files_are_refused() {
        let (_keep, root) = project();
        symlink("/etc", root.join(".vscode")).unwrap();
        assert!(matches!(planned(&root, &[]), Err(FilesError::Link(path)) if path == root.join(".vscode")));
        fs::remove_file(root.join(".vscode")).unwrap();
        symlink("elsewhere", root.join("up")).unwrap();
        assert!(
            matches!(planned(&root, &["up/file"]), Err(FilesError::Link(path)) if path == root.join("up"))
        );
        let _socket = std::os::unix::net::UnixListener::bind(root.join(".envrc")).unwrap();
        assert!(matches!(planned(&root, &[]), Err(FilesError::Odd(path)) if path == root.join(".envrc")));
    }

    #[test]
    fn unfit_paths_are_refused() {
        let (_keep, root) = project();
        for path in ["/etc/passwd", "../other", "a/../../b", "", ".", ".git/config", "./.git"] {
            assert!(matches!(planned(&root, &[path]), Err(FilesError::Unfit(_))), "`{path}`");
        }
    }

    #[test]
    fn a_file_in_the_place_of_a_directory_is_protected_itself() {
        let (_keep, root) = project();
        fs::write(root.join(".claude"), "").unwrap();
        let protection = planned(&root, &[]).unwrap();
        assert_eq!(
            (access(&protection, ".claude"), access(&protection, ".claude/plans")),
            (Some(false), None)
        );
    }
}
