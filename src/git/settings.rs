//! Which files of the working tree git's settings name: git on the host would run or obey them (F4).

use std::path::{Component, Path, PathBuf};

use super::{GitError, Repository, bounded};

/// A path of the working tree that the settings name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Where it lies, below the top of the working tree.
    pub path: PathBuf,
    /// Whether it is read as settings: an empty directory in its place would be an error to git.
    pub is_settings: bool,
}

/// The last part of the settings whose values are programs (git-config(1)).
const PROGRAMS: [&str; 22] = [
    "alternaterefscommand",
    "askpass",
    "clean",
    "cmd",
    "command",
    "defaultkeycommand",
    "difffilter",
    "driver",
    "editor",
    "external",
    "fsmonitor",
    "gitproxy",
    "helper",
    "pager",
    "path",
    "process",
    "program",
    "receivepack",
    "smudge",
    "sshcommand",
    "textconv",
    "uploadpack",
];

impl Repository {
    /// The paths of the working tree that git would run or obey because its settings name them, the user's own
    /// settings included.
    pub fn named_by_settings(&self) -> Result<Vec<Named>, GitError> {
        let settings = self.settings()?;
        let mut named = Vec::new();
        for (key, value) in &settings {
            let name = key.rsplit('.').next().unwrap_or_default();
            if key == "core.hookspath" {
                named.extend(self.hooks_in_tree(value)?.map(|path| Named { path, is_settings: false }));
            } else if name == "path" && (key.starts_with("include.") || key.starts_with("includeif.")) {
                let from = self.common_dir.join(value);
                named.extend(self.in_tree(&from).map(|path| Named { path, is_settings: true }));
            } else if names_program(key, name, value) {
                // Any of the words may be the program: `sh tools/x`, `env A=1 tools/x`.
                let words = value.split(|part: char| part.is_whitespace() || "!'\";&|()=".contains(part));
                let paths = words.filter(|word| !word.is_empty());
                let paths = paths.filter_map(|word| self.in_tree(&self.root.join(word)));
                let files = paths.filter(|path| self.root.join(path).is_file());
                named.extend(files.map(|path| Named { path, is_settings: false }));
            } else if key == "init.templatedir" {
                // Hooks of every new repository are copied from it.
                let path = self.in_tree(&self.root.join(value)).filter(|path| !path.as_os_str().is_empty());
                named.extend(path.map(|path| Named { path, is_settings: false }));
            }
        }
        named.dedup();
        Ok(named)
    }

    /// The directories of hooks that the settings name inside the git directory.
    pub(super) fn hooks_in_git_dir(&self) -> Result<Vec<PathBuf>, GitError> {
        let settings = self.settings()?;
        let hooks = settings.iter().filter(|(key, _)| key == "core.hookspath");
        let paths = hooks.map(|(_, value)| clean(&self.root.join(value)));
        let inside = paths.filter(|path| path.starts_with(&self.common_dir));
        inside
            .map(|path| if path == self.common_dir { Err(GitError::OpenHooks(path)) } else { Ok(path) })
            .collect()
    }

    /// The directory of hooks in the working tree. What husky generates in `_` runs what lies beside it.
    fn hooks_in_tree(&self, value: &str) -> Result<Option<PathBuf>, GitError> {
        let Some(path) = self.in_tree(&self.root.join(value)) else { return Ok(None) };
        let above = path.parent().filter(|above| path.ends_with("_") && !above.as_os_str().is_empty());
        let path = above.map_or_else(|| path.clone(), Path::to_owned);
        if path.as_os_str().is_empty() { Err(GitError::OpenHooks(self.root.clone())) } else { Ok(Some(path)) }
    }

    /// A path relative to the working tree, unless it lies elsewhere or in the git directory.
    fn in_tree(&self, path: &Path) -> Option<PathBuf> {
        let path = clean(path);
        if path.starts_with(&self.common_dir) {
            return None;
        }
        path.strip_prefix(&self.root).ok().map(Path::to_owned)
    }

    /// All settings with their values; `~` is resolved in those that are paths.
    fn settings(&self) -> Result<Vec<(String, String)>, GitError> {
        let root = self.root.clone();
        bounded(&self.root, move || {
            let failed = |source| GitError::Read { path: root.clone(), source };
            let repository = git2::Repository::open(&root).map_err(failed)?;
            let config = repository.config().and_then(|mut config| config.snapshot()).map_err(failed)?;
            let mut settings = Vec::new();
            let entries = config.entries(None).map_err(failed)?;
            entries
                .for_each(|entry| {
                    if let (Ok(name), Ok(value)) = (entry.name(), entry.value()) {
                        settings.push((name.to_lowercase(), value.to_owned()));
                    }
                })
                .map_err(failed)?;
            let home = crate::process::environment("HOME").map(PathBuf::from).unwrap_or_default();
            for (_, value) in &mut settings {
                if let Some(below) = value.strip_prefix("~/") {
                    *value = home.join(below).to_string_lossy().into_owned();
                }
            }
            Ok(settings)
        })
    }
}

/// Tells whether the value of a setting is a program; `name` is the key's last part.
fn names_program(key: &str, name: &str, value: &str) -> bool {
    let is_update = key.starts_with("submodule.") && name == "update" && value.starts_with('!');
    let is_mail = key.starts_with("sendemail.") && name.ends_with("cmd");
    PROGRAMS.contains(&name) || key.starts_with("alias.") || key.starts_with("pager.") || is_update || is_mail
}

/// The path without `.` and `..`, by its words alone.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[track_caller]
    fn check(settings: &[(&str, &str)], expected: &[(&str, bool)]) {
        let (_keep, root) = with(settings);
        let named = Repository::find(&root).unwrap().named_by_settings().unwrap();
        let named: Vec<_> = named.iter().map(|one| (one.path.to_str().unwrap(), one.is_settings)).collect();
        assert_eq!(named, expected, "{settings:?}");
    }

    fn with(settings: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap().join("demo");
        git2::Repository::init(&root).unwrap();
        fs::create_dir(root.join("tools")).unwrap();
        fs::write(root.join("tools/watch"), "").unwrap();
        let mut config = git2::Config::open(&root.join(".git/config")).unwrap();
        for (key, value) in settings {
            config.set_str(key, value).unwrap();
        }
        (directory, root)
    }

    #[test]
    fn f4_hooks_in_the_tree_are_found() {
        check(&[], &[]);
        check(&[("core.hooksPath", ".githooks")], &[(".githooks", false)]);
        check(&[("core.hooksPath", "./a/../b/hooks/")], &[("b/hooks", false)]);
        check(&[("core.hooksPath", ".husky/_")], &[(".husky", false)]);
        check(&[("core.hooksPath", "/dev/null")], &[]);
        check(&[("core.hooksPath", ".git/hooks")], &[]);
    }

    #[test]
    fn f4_hooks_that_cannot_be_closed_are_refused() {
        for value in [".", "tools/.."] {
            let (_keep, root) = with(&[("core.hooksPath", value)]);
            let named = Repository::find(&root).unwrap().named_by_settings();
            assert!(matches!(named, Err(GitError::OpenHooks(path)) if path == root), "{value}");
        }
        let (_keep, root) = with(&[("core.hooksPath", ".git")]);
        let guards = Repository::find(&root).unwrap().guards(&[]);
        assert!(matches!(guards, Err(GitError::OpenHooks(_))), "{guards:?}");
    }

    #[test]
    fn f2_included_settings_and_programs_in_the_tree_are_found() {
        check(&[("include.path", "../.gitconfig")], &[(".gitconfig", true)]);
        check(&[("includeIf.onbranch:main.path", "../team/config")], &[("team/config", true)]);
        check(&[("core.fsmonitor", "tools/watch --fast")], &[("tools/watch", false)]);
        check(
            &[("filter.x.clean", "./tools/watch %f"), ("user.name", "tools/watch")],
            &[("tools/watch", false)],
        );
        check(&[("alias.w", "!tools/watch")], &[("tools/watch", false)]);
    }

    #[test]
    fn m2_programs_are_found_in_every_word_and_under_every_key() {
        for (key, value) in [
            ("core.fsmonitor", "sh tools/watch"),
            ("core.editor", "env A=1 'tools/watch'"),
            ("alias.w", "!f() { true;tools/watch; }; f"),
            ("pager.log", "tools/watch"),
            ("submodule.x.update", "!tools/watch"),
            ("core.alternateRefsCommand", "tools/watch"),
            ("gpg.ssh.defaultKeyCommand", "tools/watch"),
            ("remote.origin.uploadpack", "tools/watch"),
            ("remote.origin.receivepack", "tools/watch"),
            ("sendemail.toCmd", "tools/watch"),
        ] {
            check(&[(key, value)], &[("tools/watch", false)]);
        }
        check(&[("init.templateDir", "tools")], &[("tools", false)]);
        check(&[("submodule.x.update", "tools/watch")], &[]);
    }
}
