//! One look at the host: what it offers to a sandbox, and what the settings share of it.

use std::path::{Path, PathBuf};

use super::StartError;
use crate::config::{Config, MountMode};
use crate::paths::{Paths, resolve_existing};
use crate::process;
use crate::project::{self, Project, Share, Surroundings, shares};
use crate::sandbox::{Facts, Mount, Search, Store, Tools, closure};

/// What stands in a file that holds credentials on the host.
const EMPTIED: &str = "# Cloister shows nothing of this file: on the host it holds credentials.\n";

/// What was found.
pub(in crate::session) struct Host {
    pub(in crate::session) facts: Facts,
    pub(in crate::session) tools: Tools,
    pub(in crate::session) shares: Vec<Share>,
}

/// For what the host is looked at.
pub(super) struct Look<'a> {
    pub(super) config: &'a Config,
    pub(super) project: &'a Project,
    pub(super) paths: &'a Paths,
    pub(super) binary: &'a Path,
    /// What is guarded in the project.
    pub(super) guarded: &'a [PathBuf],
}

impl Host {
    /// Looks at the host, and checks what the settings share.
    pub(super) fn gather(look: &Look<'_>) -> Result<Self, StartError> {
        let chosen = &look.config.tools;
        let search_path = process::environment("PATH").unwrap_or_default();
        let store = if chosen.is_empty() { Store::Whole } else { closure(chosen, &search_path)? };
        let facts = Facts::gather(&store);
        let home = resolve_existing(look.paths.home());
        let tools = Tools::find(&Search {
            variable: &process::environment,
            home: &home,
            opt: Path::new("/opt"),
            alternatives: Path::new("/etc/alternatives"),
            seen: &facts.seen(),
            hidden: &look.hidden()?,
            chosen,
        });
        let directories = std::env::split_paths(&search_path).filter(|directory| directory.is_absolute());
        let programs: Vec<PathBuf> = directories.chain(tools.sources().map(Path::to_owned)).collect();
        let shares = shares(
            look.config,
            &Surroundings {
                paths: look.paths,
                project: look.project,
                binary: look.binary,
                programs: &programs,
                guarded: look.guarded,
                taken: &look.taken(&facts, &tools),
            },
        )?;
        Ok(Self { facts, tools, shares })
    }

    /// What the settings share, as mounts.
    pub(super) fn shared(&self) -> Vec<Mount> {
        self.shares.iter().flat_map(mounts).collect()
    }
}

impl Look<'_> {
    /// What is never shown of the host's programs: keys, Cloister's own files, and what a sandbox can write.
    fn hidden(&self) -> Result<Vec<PathBuf>, StartError> {
        let own = self.paths.own_dirs().into_iter().map(resolve_existing);
        let here =
            [Some(self.project.directory.as_path()), self.project.outside_repository(), Some(self.binary)];
        let here = here.into_iter().flatten().map(Path::to_owned);
        let known = project::all_registered(self.paths)?.into_iter().map(|project| project.path);
        Ok(self.paths.private_places().into_iter().chain(own).chain(here).chain(known).collect())
    }

    /// Where the sandbox shows something of the host before anything is shared.
    fn taken(&self, facts: &Facts, tools: &Tools) -> Vec<PathBuf> {
        let tools = tools.mounts.iter().filter_map(|mount| match mount {
            Mount::ReadOnly { target, .. } | Mount::Link { target, .. } => Some(target.clone()),
            _ => None,
        });
        let repository = self.project.outside_repository().map(Path::to_owned);
        facts.directories.iter().cloned().chain(tools).chain(repository).collect()
    }
}

fn mounts(share: &Share) -> Vec<Mount> {
    let (source, target) = (share.source.clone(), share.target.clone());
    let inside = |path: &Path| share.target.join(path.strip_prefix(&share.source).unwrap_or(path));
    let whole = match share.mode {
        MountMode::ReadOnly => Mount::ReadOnly { source, target },
        MountMode::ReadWrite => Mount::ReadWrite { source, target },
    };
    let guarded = share.guarded().into_iter().map(|(source, is_writable)| {
        let target = inside(&source);
        if is_writable { Mount::ReadWrite { source, target } } else { Mount::ReadOnly { source, target } }
    });
    let emptied =
        share.emptied.iter().map(|path| Mount::File { target: inside(path), content: EMPTIED.to_owned() });
    [whole].into_iter().chain(guarded).chain(emptied).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f1_the_data_of_a_shared_repository_is_read_only_and_pinned_and_shows_no_credentials() {
        let share = Share {
            source: "/src".into(),
            target: "/data".into(),
            mode: MountMode::ReadWrite,
            sealed: vec!["/src/lib/deep/.git".into(), "/src/.git".into(), "/src/lib/.git".into()],
            emptied: vec!["/src/lib/.git/config".into()],
        };
        let open = |below: &str| Mount::ReadWrite {
            source: format!("/src{below}").into(),
            target: format!("/data{below}").into(),
        };
        let closed = |below: &str| Mount::ReadOnly {
            source: format!("/src{below}").into(),
            target: format!("/data{below}").into(),
        };
        let expected = [
            open(""),
            closed("/.git"),
            open("/lib"),
            closed("/lib/.git"),
            open("/lib/deep"),
            closed("/lib/deep/.git"),
            Mount::File { target: "/data/lib/.git/config".into(), content: EMPTIED.to_owned() },
        ];
        assert_eq!(mounts(&share), expected);
    }
}
