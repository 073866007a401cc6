//! The configuration: built-in defaults, `config.yaml`, and the host-side file of a project (DESIGN 5).
//!
//! A file goes three steps: text to a tree with lines (`yaml`), tree to a mirror of the schema (`raw`), mirror
//! to domain values (`validate`). What people answered stands in files of its own ([`decisions`]). Problems of all files and steps are collected and reported at once. Later files
//! add: lists grow, scalars and entries of maps are replaced. A later file can't undo a deny rule, since deny beats
//! allow in [`crate::policy`].

pub mod decisions;
mod effective;
pub mod keys;
mod problem;
mod proxy;
mod raw;
mod sandbox;
#[cfg(test)]
mod tests;
mod validate;
mod yaml;

pub use decisions::Owner;
pub use effective::{Effective, Row, Shown};
pub use problem::{ConfigError, Problem};
pub use proxy::duration::{InvalidDuration, parse as parse_duration};
pub use proxy::{Approvals, Audit, Proxy, RateLimit, UpstreamCredentials, UpstreamProxy, UpstreamScheme};
pub use sandbox::environment::{EnvName, EnvValue, Environment, RefusedVariable};
pub use sandbox::{Files, Limits, Mount, MountMode, Network};

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use crate::paths::Paths;
use crate::policy::{Origin, OriginKind, Pattern, PolicyInput, Rule, Unlisted};
use decisions::Place;
use problem::Report;
use raw::Raw;
use yaml::tree::Node;

/// Bounds a configuration file, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Lists the hosts of the models' vendors, which every sandbox may reach.
const BUILTIN_HOSTS: [&str; 3] = ["api.anthropic.com", "api.openai.com", "generativelanguage.googleapis.com"];

/// Holds what was configured, checked whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What builds the sandbox.
    pub backend: Backend,
    /// How far a sandbox reaches.
    pub network: Network,
    /// The shell of a session without a command, as a path inside the sandbox.
    pub shell: PathBuf,
    /// Where a sandbox may connect.
    pub proxy: Proxy,
    /// How people learn that a request waits for them.
    pub approvals: Approvals,
    /// What of the project is read-only or hidden inside.
    pub files: Files,
    /// Directories of the host that are seen read-only at `/refs/<name>`.
    pub refs: Vec<PathBuf>,
    /// What else of the host is seen.
    pub mounts: Vec<Mount>,
    /// The variables that a sandbox gets besides Cloister's own.
    pub env: Environment,
    /// What all processes of a sandbox may use together.
    pub limits: Limits,
    /// Store paths whose programs a sandbox gets in place of the whole Nix store.
    pub tools: Vec<PathBuf>,
    /// How the audit log is kept; for all projects alike.
    pub audit: Audit,
    /// Files of answers whose rules are not used, since they are about another project.
    pub unused: Vec<Problem>,
}

/// Chooses what builds the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// What fits the host and the project.
    Auto,
    /// A Docker-compatible engine.
    Docker,
    /// bubblewrap, without a daemon.
    Bubblewrap,
}

impl Default for Config {
    /// Gives the built-in defaults.
    fn default() -> Self {
        let builtin = |host| {
            let pattern = Pattern::parse(host).expect("a built-in host is a pattern");
            Rule::allow(pattern, Origin::new(OriginKind::Builtin))
        };
        Self {
            backend: Backend::Auto,
            network: Network::Guarded,
            shell: PathBuf::from("/bin/bash"),
            proxy: Proxy {
                rules: BUILTIN_HOSTS.map(builtin).into(),
                unlisted: Unlisted::Ask,
                pins: BTreeMap::new(),
                private: Vec::new(),
                rate_limit: RateLimit::default(),
                max_tunnels: 512,
                idle_timeout: Duration::from_mins(10),
                max_duration: Duration::from_hours(24),
                upstream: None,
                approval_timeout: Duration::from_mins(1),
            },
            approvals: Approvals::default(),
            files: Files::default(),
            refs: Vec::new(),
            mounts: Vec::new(),
            env: Environment::default(),
            limits: Limits::default(),
            tools: Vec::new(),
            audit: Audit::default(),
            unused: Vec::new(),
        }
    }
}

impl Config {
    /// Loads the files in their order, each adding to the ones before; a file that is missing adds nothing.
    ///
    /// # Errors
    /// All problems of all files; no file is ever changed.
    pub fn load(sources: &[Source]) -> Result<Self, ConfigError> {
        Self::load_seen(sources, |_, _| {})
    }

    /// Loads files and shows each to somebody else, too.
    fn load_seen(sources: &[Source], mut see: impl FnMut(&Source, &Node)) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut problems = Vec::new();
        for source in sources {
            let mut report = Report::new(&source.path);
            if let Some(text) = read(&source.path, &mut report)
                && let Some(tree) = yaml::parse(&text, &mut report)
            {
                see(source, &tree);
                source.apply(tree, &mut config, &mut report);
            }
            problems.extend(report.into_problems());
        }
        if problems.is_empty() { Ok(config) } else { Err(ConfigError { problems }) }
    }

    /// Loads what holds for a project, or for all of them: the user's file and the project's, and the answers that
    /// were kept for either.
    ///
    /// # Errors
    /// All problems of all files.
    pub fn load_for(paths: &Paths, project: Option<&Owner>) -> Result<Self, ConfigError> {
        Self::load(&sources_for(paths, project))
    }

    /// Lists the files that [`Config::load_for`] reads, whether they exist or not.
    pub fn files_for(paths: &Paths, project: Option<&Owner>) -> Vec<PathBuf> {
        sources_for(paths, project).into_iter().map(|source| source.path).collect()
    }

    /// Gives what the policy is built from; `listening` are the guardian's own sockets.
    pub fn policy_input(&self, listening: Vec<SocketAddr>) -> PolicyInput {
        PolicyInput {
            rules: self.proxy.rules.clone(),
            unlisted: self.proxy.unlisted,
            pins: self.proxy.pins.clone(),
            private: self.proxy.private.clone(),
            listening,
        }
    }
}

/// What holds for a project, or for all of them, in the order in which it adds up.
fn sources_for(paths: &Paths, project: Option<&Owner>) -> Vec<Source> {
    let own = |owner: &Owner| Source::project(&paths.project_file(&owner.name), paths.home());
    let places = [Some(Place::Global), project.cloned().map(Place::Project)];
    [Source::global(&paths.config_file(), paths.home())]
        .into_iter()
        .chain(project.map(own))
        .chain(places.into_iter().flatten().map(|place| Source::decisions(place, paths)))
        .collect()
}

/// Is a file to load, and whose word it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    path: PathBuf,
    kind: OriginKind,
    /// How rules name the file, as in `projects/demo.yaml`.
    label: String,
    /// What `~` stands for in it.
    home: PathBuf,
    /// Whose answers it holds; none when it holds settings.
    place: Option<Place>,
}

impl Source {
    /// Is the user's `config.yaml`.
    pub fn global(path: &Path, home: &Path) -> Self {
        let (path, label) = (path.to_owned(), file_name(path));
        Self { path, kind: OriginKind::Global, label, home: home.to_owned(), place: None }
    }

    /// Is the host-side file of a project, `projects/<project>.yaml`.
    pub fn project(path: &Path, home: &Path) -> Self {
        let label = format!("projects/{}", file_name(path));
        Self { path: path.to_owned(), kind: OriginKind::Project, label, home: home.to_owned(), place: None }
    }

    /// Is the file of the answers for a place.
    pub fn decisions(place: Place, paths: &Paths) -> Self {
        Self {
            path: place.file(paths),
            kind: place.origin_kind(),
            label: place.label(),
            home: paths.home().to_owned(),
            place: Some(place),
        }
    }

    /// Adds what the file says to the configuration.
    fn apply(&self, tree: Node, config: &mut Config, report: &mut Report<'_>) {
        let Some(place) = &self.place else {
            return validate::apply(Raw::decode(tree, report), self, config, report);
        };
        let loaded = decisions::decode(tree, place, report);
        config.proxy.rules.extend(loaded.kept.iter().map(|kept| kept.rule(self.kind)));
        config.unused.extend(loaded.foreign);
    }

    fn origin(&self, line: Option<usize>) -> Origin {
        Origin::new(self.kind).at(self.location(line))
    }

    /// Names a line of the file.
    fn location(&self, line: Option<usize>) -> String {
        line.map_or_else(|| self.label.clone(), |line| format!("{}:{line}", self.label))
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Reads a file's text; a missing file gives nothing, and so does one whose problem was reported.
fn read(path: &Path, report: &mut Report<'_>) -> Option<String> {
    let is_new = |error: &io::Error| {
        let is_missing = error.kind() == io::ErrorKind::NotFound;
        is_missing && fs::symlink_metadata(path).is_ok_and(|found| !found.is_symlink())
    };
    // A file that comes to be in between is read after all.
    match read_bytes(path).or_else(|error| if is_new(&error) { read_bytes(path) } else { Err(error) }) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Some(text),
            Err(error) => {
                let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = before.split(|byte| *byte == b'\n').count();
                report.add(Some(line), "", "is not UTF-8", Some("save the file as UTF-8".to_owned()));
                None
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => None,
        Err(error) => {
            report.add(None, "", format!("cannot be read: {error}"), None);
            None
        }
    }
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    // A named pipe must not make this wait.
    let file =
        OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(bytes)
}
