//! The host's programs inside: which files and links beyond the system's directories show them, and the `PATH` that
//! finds them.
//!
//! A directory of the host's `PATH` that the sandbox shows already is used under its resolved path. In any other
//! (`~/.local/bin`, `~/.cargo/bin`) every program is shown on its own, read-only and at its own path, together with
//! the links that lead to it and the tree that it needs: its virtual environment, its `node_modules`, its part of
//! `/opt`, or the prefix in which `bin` stands beside `lib`. Nothing is shown that holds keys, that Cloister reads,
//! or that a sandbox can write: no sandbox chooses what the next one sees.

mod closure;
mod finder;

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::spec::Mount;
pub use closure::{ClosureError, closure};
use finder::Finder;

/// Where programs lie inside before any of the host's: the user's own, which only this sandbox can write, and
/// Cloister's.
const OWN: [&str; 2] = ["/home/cloister/.local/bin", "/run/cloister/bin"];

/// Where a system's programs lie.
const STANDARD: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Where Nix keeps programs: its links never lead out of it.
const STORE: &str = "/nix/store";

/// The host's variables that name a file or directory which programs need; passed on when the sandbox shows it.
const PATHS_TO_PASS: [&str; 9] = [
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "LOCALE_ARCHIVE",
    "NIX_SSL_CERT_FILE",
    "NODE_EXTRA_CA_CERTS",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TZDIR",
];

/// Where programs are looked for, and what must not be shown.
pub struct Search<'a> {
    /// The host's variables.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// The user's home directory.
    pub home: &'a Path,
    /// Where programs from outside the distribution are unpacked: `/opt`.
    pub opt: &'a Path,
    /// Where the system's links choose between programs: `/etc/alternatives`.
    pub alternatives: &'a Path,
    /// What the sandbox shows already.
    pub seen: &'a [PathBuf],
    /// What is never shown: keys, Cloister's own files, what a sandbox can write; with links resolved.
    pub hidden: &'a [PathBuf],
    /// Store paths that were asked for; their programs come first.
    pub chosen: &'a [PathBuf],
}

/// The host's programs as a sandbox will see them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tools {
    /// Further mounts and links.
    pub mounts: Vec<Mount>,
    /// The value of `PATH`, in order.
    pub path: Vec<PathBuf>,
    /// Further variables.
    pub variables: BTreeMap<String, String>,
}

impl Tools {
    /// Looks at the host once.
    pub fn find(search: &Search<'_>) -> Self {
        let mut finder = Finder::new(search);
        let mut path: Vec<PathBuf> = OWN.map(PathBuf::from).into();
        path.extend(search.chosen.iter().map(|chosen| chosen.join("bin")).filter(|bin| bin.is_dir()));
        let mut variables = BTreeMap::new();
        for directory in directories(search) {
            let Some(resolved) = finder.directory(&directory) else { continue };
            if resolved.join("rustup").exists() {
                variables.extend(rustup(search, &mut finder));
            }
            path.push(resolved);
        }
        path.extend(STANDARD.map(PathBuf::from));
        let mut known = HashSet::new();
        path.retain(|directory| known.insert(directory.clone()));
        variables.extend(PATHS_TO_PASS.iter().filter_map(|name| {
            let real = fs::canonicalize((search.variable)(name)?).ok().filter(|real| finder.is_seen(real))?;
            Some(((*name).to_owned(), real.into_os_string().into_string().ok()?))
        }));
        Self { mounts: finder.into_mounts(), path, variables }
    }

    /// The host's directories and files that are shown.
    pub fn sources(&self) -> impl Iterator<Item = &Path> {
        self.mounts.iter().filter_map(|mount| match mount {
            Mount::ReadOnly { source, .. } => Some(source.as_path()),
            _ => None,
        })
    }

    /// The value of `PATH` as text; what is none is left out.
    pub fn search_path(&self) -> String {
        let parts: Vec<&str> = self.path.iter().filter_map(|directory| directory.to_str()).collect();
        parts.join(":")
    }
}

/// The directories of the host's `PATH` in order, and `~/.local/bin` where it is not among them.
fn directories(search: &Search<'_>) -> Vec<PathBuf> {
    let value = (search.variable)("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = Vec::new();
    for directory in std::env::split_paths(&value) {
        let is_usable = directory.is_absolute() && !directory.to_string_lossy().contains(['\n', '\0']);
        if is_usable && !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    let own = search.home.join(".local/bin");
    if !directories.contains(&own) {
        directories.insert(0, own);
    }
    directories
}

/// Shows the toolchains of `rustup`, whose programs (`cargo`, `rustc`) only look for them.
fn rustup(search: &Search<'_>, finder: &mut Finder<'_>) -> Option<(String, String)> {
    let home = (search.variable)("RUSTUP_HOME").map_or_else(|| search.home.join(".rustup"), PathBuf::from);
    let real = fs::canonicalize(home).ok().filter(|home| home.join("toolchains").is_dir())?;
    let shown = finder.show_tree(&real).then_some(real)?;
    Some(("RUSTUP_HOME".to_owned(), shown.into_os_string().into_string().ok()?))
}

#[cfg(test)]
mod tests;
