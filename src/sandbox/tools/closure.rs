//! The part of the Nix store that chosen tools need.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use super::super::facts::Store;
use super::STORE;
use crate::process;

/// How many store paths are mounted one by one; each makes a start slower.
const MAX_PATHS: usize = 1000;

/// Why the tools can't be shown.
#[derive(Debug, thiserror::Error)]
pub enum ClosureError {
    /// They are not in the store.
    #[error("the key `tools` names what is not in the Nix store: {}", list(.0))]
    Missing(Vec<PathBuf>),
    /// Somebody else could change the program that chooses what a sandbox sees.
    #[error("`{0}` can be changed by others than root")]
    UntrustedNix(PathBuf),
    /// Nix does not say what they need.
    #[error("`nix-store` cannot say what the `tools` need: {0}")]
    Refused(String),
    /// They need too much.
    #[error("the `tools` need {0} store paths; at most {MAX_PATHS} are mounted one by one")]
    TooMany(usize),
    /// `nix-store` can't be started.
    #[error("cannot start `nix-store`")]
    Start(#[source] io::Error),
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>().join(", ")
}

/// The part of the store that these tools and the shell of the system need; all of it where no Nix can tell.
pub fn closure(tools: &[PathBuf], search_path: &OsStr) -> Result<Store, ClosureError> {
    let missing: Vec<PathBuf> = tools.iter().filter(|tool| !tool.exists()).cloned().collect();
    if !missing.is_empty() {
        return Err(ClosureError::Missing(missing));
    }
    let Some(program) = nix_store(search_path)? else { return Ok(Store::Whole) };
    let mut command = process::command(program);
    // Nix is one program under many names, and looks at the name by which it is called.
    // It wants a home, and is to read no settings there.
    command.env("HOME", "/nonexistent");
    command.arg0("nix-store").args(["--query", "--requisites"]).args(tools).args(system());
    let output = command.output().map_err(ClosureError::Start)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(ClosureError::Refused(said.trim().chars().take(1000).collect()));
    }
    parse(&String::from_utf8_lossy(&output.stdout)).map(Store::Paths)
}

/// The paths that `nix-store --query --requisites` prints, one on a line.
fn parse(output: &str) -> Result<Vec<PathBuf>, ClosureError> {
    let mut paths: Vec<PathBuf> = output.lines().map(PathBuf::from).collect();
    if let Some(odd) = paths.iter().find(|path| path.parent() != Some(Path::new(STORE))) {
        return Err(ClosureError::Refused(format!("`{}` is no store path", odd.display())));
    }
    paths.sort_unstable();
    paths.dedup();
    if paths.len() > MAX_PATHS { Err(ClosureError::TooMany(paths.len())) } else { Ok(paths) }
}

/// The program that knows the store; none where there is no Nix.
fn nix_store(search_path: &OsStr) -> Result<Option<PathBuf>, ClosureError> {
    let mut untrusted = None;
    for found in process::find_programs("nix-store", search_path) {
        let program = fs::canonicalize(&found).map_err(ClosureError::Start)?;
        if process::is_trusted_program(&program).map_err(ClosureError::Start)? {
            return Ok(Some(program));
        }
        untrusted.get_or_insert(program);
    }
    untrusted.map_or(Ok(None), |program| Err(ClosureError::UntrustedNix(program)))
}

/// The store paths of the shell and of `env`, where the system itself comes from the store (NixOS).
fn system() -> Vec<PathBuf> {
    ["/bin/sh", "/usr/bin/env"]
        .iter()
        .filter_map(|program| fs::canonicalize(program).ok())
        .filter_map(|real| {
            let name = real.strip_prefix(STORE).ok()?.components().next()?.as_os_str().to_owned();
            Some(Path::new(STORE).join(name))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_store_paths_are_taken() {
        let two = "/nix/store/b-two\n/nix/store/a-one\n/nix/store/b-two\n";
        let expected: Vec<PathBuf> = vec!["/nix/store/a-one".into(), "/nix/store/b-two".into()];
        assert_eq!(parse(two).unwrap(), expected);
        for odd in ["/etc", "/nix/store", "/nix/store/a/b", "warning: x", ""] {
            let odd = format!("/nix/store/a-one\n{odd}\n");
            assert!(matches!(parse(&odd), Err(ClosureError::Refused(_))), "{odd}");
        }
        let many: Vec<String> = (0..=MAX_PATHS).map(|number| format!("/nix/store/{number}")).collect();
        assert!(
            matches!(parse(&many.join("\n")), Err(ClosureError::TooMany(count)) if count == MAX_PATHS + 1)
        );
    }

    #[test]
    fn what_is_not_there_is_named() {
        let tool = PathBuf::from("/nix/store/00000000000000000000000000000000-nothing");
        let error = closure(std::slice::from_ref(&tool), OsStr::new("/usr/bin")).unwrap_err();
        assert!(matches!(error, ClosureError::Missing(missing) if missing == [tool]));
    }

    #[test]
    fn a_program_that_others_can_change_is_not_asked() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(nix_store(directory.path().as_os_str()), Ok(None)));
        let planted = directory.path().join("nix-store");
        fs::write(&planted, "").unwrap();
        fs::set_permissions(&planted, fs::Permissions::from_mode(0o777)).unwrap();
        let found = nix_store(directory.path().as_os_str());
        assert!(matches!(found, Err(ClosureError::UntrustedNix(path)) if path.ends_with("nix-store")));
    }
}
