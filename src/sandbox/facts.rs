//! What the host offers to a sandbox: the one look at the disk from which a [`Spec`](super::Spec) is made.

use std::fs;
use std::path::{Path, PathBuf};

/// The entries of the host's file tree that a sandbox may see, as they were found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// System directories that exist as directories.
    pub directories: Vec<PathBuf>,
    /// System directories that are links, with their targets (`/bin` → `usr/bin`).
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Files and directories of `/etc` that exist and hold no secret.
    pub etc: Vec<PathBuf>,
    /// Sensitive files below `/proc` that exist and have to be hidden.
    pub masked_files: Vec<PathBuf>,
    /// Sensitive directories below `/proc` that exist and have to be hidden.
    pub masked_directories: Vec<PathBuf>,
    /// Paths below `/proc` that exist and must not be written.
    pub read_only: Vec<PathBuf>,
}

/// The directories that hold a system's programs and libraries.
const SYSTEM: [&str; 8] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store"];

/// Entries of `/etc` without which programs misbehave; none of them holds a secret.
const ETC: [&str; 24] = [
    "/etc/alternatives",
    "/etc/bash.bashrc",
    "/etc/bash_completion.d",
    "/etc/ca-certificates",
    "/etc/ca-certificates.conf",
    "/etc/debian_version",
    "/etc/fonts",
    "/etc/inputrc",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/locale.alias",
    "/etc/localtime",
    "/etc/magic",
    "/etc/mime.types",
    "/etc/os-release",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/terminfo",
    "/etc/timezone",
];

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

impl Facts {
    /// Looks at the host.
    pub fn gather() -> Self {
        let (masked_directories, masked_files) =
            existing(&MASKED).into_iter().partition(|path| path.is_dir());
        let mut facts = Self {
            etc: existing(&ETC),
            masked_files,
            masked_directories,
            read_only: existing(&READ_ONLY),
            ..Self::default()
        };
        for path in SYSTEM.map(PathBuf::from) {
            match fs::read_link(&path) {
                Ok(target) => facts.links.push((path, target)),
                Err(_) if path.is_dir() => facts.directories.push(path),
                Err(_) => {}
            }
        }
        facts
    }
}

fn existing(candidates: &[&str]) -> Vec<PathBuf> {
    candidates.iter().map(Path::new).filter(|path| path.exists()).map(Path::to_owned).collect()
}
