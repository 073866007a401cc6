//! What the host offers to a sandbox: the one look at the disk from which a [`Spec`](super::Spec) is made.

mod etc;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::spec::Mount;

/// The entries of the host's file tree that a sandbox may see, as they were found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// System directories that exist as directories.
    pub directories: Vec<PathBuf>,
    /// System directories that are links, with their targets (`/bin` → `usr/bin`).
    pub links: Vec<(PathBuf, PathBuf)>,
    /// What is shown of the host's `/etc`: it exists and holds no secret.
    pub etc: Vec<Mount>,
    /// Sensitive files below `/proc` that exist and have to be hidden.
    pub masked_files: Vec<PathBuf>,
    /// Sensitive directories below `/proc` that exist and have to be hidden.
    pub masked_directories: Vec<PathBuf>,
    /// Paths below `/proc` that exist and must not be written.
    pub read_only: Vec<PathBuf>,
}

/// The directories that hold a system's programs and libraries.
const SYSTEM: [&str; 8] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store"];

/// Databases of the system's packages: programs ask them, and they hold no secret.
const PACKAGES: [&str; 3] = ["/var/lib/dpkg", "/var/lib/pacman/local", "/var/lib/rpm"];

/// What programs read about the processors (`lscpu`, `java`, `numactl`); the rest of `/sys` stays out.
const PROCESSORS: &str = "/sys/devices/system/cpu";

/// The place of everything that Nix builds.
const STORE: &str = "/nix/store";

/// What OCI runtimes hide below `/proc` (runtime-spec, `maskedPaths` of the common default), and what shows the
/// kernel's memory to a sandbox that root started.
const MASKED: [&str; 17] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/pagetypeinfo",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/timer_list",
    "/proc/vmallocinfo",
];

/// What OCI runtimes make read-only below `/proc` (`readonlyPaths`).
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// How much of the Nix store is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// All of it.
    Whole,
    /// These paths and nothing else.
    Paths(Vec<PathBuf>),
}

impl Facts {
    /// Looks at the host.
    pub fn gather(store: &Store) -> Self {
        let (masked_directories, masked_files) =
            existing(&MASKED).into_iter().partition(|path| path.is_dir());
        let mut facts =
            Self { masked_files, masked_directories, read_only: existing(&READ_ONLY), ..Self::default() };
        for path in SYSTEM.map(PathBuf::from) {
            match fs::read_link(&path) {
                Ok(target) => facts.links.push((path, target)),
                Err(_) if path.is_dir() => facts.directories.push(path),
                Err(_) => {}
            }
        }
        if let Store::Paths(paths) = store {
            facts.directories.retain(|directory| directory != Path::new(STORE));
            facts.directories.extend(paths.iter().cloned());
        }
        let open = |path: &PathBuf| {
            fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.mode() & 0o005 == 0o005)
        };
        let more = PACKAGES.into_iter().chain([PROCESSORS]).map(PathBuf::from).filter(open);
        facts.directories.extend(more);
        facts.etc = etc::gather(Path::new("/etc"), &facts.seen());
        facts
    }

    /// The paths at or below which the sandbox shows what the host has there.
    pub fn seen(&self) -> Vec<PathBuf> {
        let links = self.links.iter().map(|(link, _)| link.clone());
        let etc = self.etc.iter().filter_map(|mount| match mount {
            Mount::System { path: target }
            | Mount::ReadOnly { target, .. }
            | Mount::Copy { target, .. }
            | Mount::Link { target, .. } => Some(target.clone()),
            _ => None,
        });
        self.directories.iter().cloned().chain(links).chain(etc).collect()
    }
}

fn existing(candidates: &[&str]) -> Vec<PathBuf> {
    candidates.iter().map(Path::new).filter(|path| path.exists()).map(Path::to_owned).collect()
}
