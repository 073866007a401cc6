//! The whole description of one sandbox, the same for every backend.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::facts::Facts;
use crate::config::{Limits, Network};
use crate::name::{CloisterId, CloisterName};

/// The user inside a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// The user's name inside.
    pub name: String,
    /// The user's number inside.
    pub uid: u32,
    /// The group's number inside.
    pub gid: u32,
}

impl Default for User {
    fn default() -> Self {
        Self { name: "cloister".to_owned(), uid: 1000, gid: 1000 }
    }
}

/// One entry of the sandbox's file tree; later entries lie over earlier ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mount {
    /// A file or directory of the host's system, which every user there can read, read-only at its own place.
    System {
        /// Where it lies on the host and is seen.
        path: PathBuf,
    },
    /// A host file or directory that can be read.
    ReadOnly {
        /// Where it lies on the host.
        source: PathBuf,
        /// Where it is seen.
        target: PathBuf,
    },
    /// A host directory that can be written.
    ReadWrite {
        /// Where it lies on the host.
        source: PathBuf,
        /// Where it is seen.
        target: PathBuf,
    },
    /// An empty directory in memory.
    Memory {
        /// Where it is seen.
        target: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The most that it can hold, in bytes; without it, half of the machine's memory.
        size_bytes: Option<u64>,
    },
    /// A directory on the file system that lies there.
    Directory {
        /// Where it is made.
        target: PathBuf,
    },
    /// A symbolic link.
    Link {
        /// What it points to.
        points_to: PathBuf,
        /// Where it is made.
        target: PathBuf,
    },
    /// A generated file that can be read by all and written by nobody.
    File {
        /// Where it is seen.
        target: PathBuf,
        /// What it holds.
        content: String,
    },
    /// A small host file, as it is at the start, that can be read by all and written by nobody. Unlike a mount, it
    /// costs next to nothing.
    Copy {
        /// Where it lies on the host.
        source: PathBuf,
        /// Where it is seen: in a directory of the sandbox's own.
        target: PathBuf,
    },
    /// The process table of the sandbox.
    Processes {
        /// Where it is seen.
        target: PathBuf,
    },
    /// The harmless devices and a terminal name space of the sandbox's own.
    Devices {
        /// Where it is seen.
        target: PathBuf,
    },
    /// Something that can't be opened, laid over what is there.
    Hidden {
        /// What is hidden.
        target: PathBuf,
        /// Whether a directory is hidden, not a file.
        is_directory: bool,
    },
    /// A mount made earlier in the list that can't be written from here on.
    Sealed {
        /// Which one.
        target: PathBuf,
    },
}

/// What a user wants, from which the spec is made.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The cloister's name.
    pub name: &'a CloisterName,
    /// Its number.
    pub id: &'a CloisterId,
    /// The project's directory on the host.
    pub work: &'a Path,
    /// Further directories of the repository that lie outside `work` (a linked worktree's common directory).
    pub repository: Option<&'a Path>,
    /// What is laid over itself, so that it can't be renamed or replaced, and whether it can be written; in the order
    /// of the paths, so that nothing covers what lies in it.
    pub guarded: &'a [(PathBuf, bool)],
    /// What is hidden, and whether it is a directory.
    pub masked: &'a [(PathBuf, bool)],
    /// What a hidden file holds.
    pub mask_text: &'static str,
    /// The persistent home on the host.
    pub home: &'a Path,
    /// The socket directory on the host.
    pub sockets: &'a Path,
    /// The binary that becomes the first process.
    pub binary: &'a Path,
    /// The host's programs beyond the system's directories.
    pub tools: &'a [Mount],
    /// What the settings share with the sandbox.
    pub shared: &'a [Mount],
    /// How far it reaches.
    pub network: Network,
    /// What it may use.
    pub limits: Limits,
}

/// Everything that a sandbox will see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Spec {
    /// The cloister's name.
    pub name: CloisterName,
    /// Its number.
    pub id: CloisterId,
    /// The user inside.
    pub user: User,
    /// How far it reaches.
    pub network: Network,
    /// What all its processes may use together.
    pub limits: Limits,
    /// The file tree, in order.
    pub mounts: Vec<Mount>,
}

/// The project inside a sandbox.
pub const WORK: &str = "/work";
/// The user's home inside a sandbox.
pub const HOME: &str = "/home/cloister";
/// The guardian's sockets inside a sandbox.
pub const SOCKETS: &str = "/run/cloister";
/// The first process's binary inside a sandbox.
pub const BINARY: &str = "/run/cloister/bin/cloister";

/// What a login shell reads first. The host's would set its own `PATH`, and a proxy's password may stand in
/// `/etc/profile.d`.
const PROFILE: &str = "# Written by Cloister: a login shell keeps the PATH and the proxy of the sandbox.\n\
    if [ -n \"${BASH_VERSION-}\" ] && [ -n \"${PS1-}\" ] && [ -r /etc/bash.bashrc ]; then . /etc/bash.bashrc; fi\n";
/// The same in every sandbox: the host's would tell hosts apart.
const MACHINE_ID: &str = "c1015e00000040008000000000000001\n";

impl Spec {
    /// The mounts whose sources lie below these directories, as (source, target).
    pub fn mounts_from<'a>(&'a self, roots: &'a [&Path]) -> impl Iterator<Item = (&'a Path, &'a Path)> {
        self.mounts.iter().filter_map(|mount| match mount {
            Mount::ReadOnly { source, target } | Mount::ReadWrite { source, target } => roots
                .iter()
                .any(|root| source.starts_with(root))
                .then_some((source.as_path(), target.as_path())),
            Mount::System { .. }
            | Mount::Memory { .. }
            | Mount::Directory { .. }
            | Mount::Link { .. }
            | Mount::File { .. }
            | Mount::Copy { .. }
            | Mount::Processes { .. }
            | Mount::Devices { .. }
            | Mount::Hidden { .. }
            | Mount::Sealed { .. } => None,
        })
    }

    /// The directories in memory whose size is bounded, each with the most bytes and files that it may hold. A file
    /// costs the kernel about a kilobyte besides its bytes.
    pub fn bounded(&self) -> impl Iterator<Item = (&Path, u64, u64)> {
        const BYTES_PER_FILE: u64 = 8192;
        self.mounts.iter().filter_map(|mount| {
            let Mount::Memory { target, size_bytes: Some(bytes), .. } = mount else { return None };
            Some((target.as_path(), *bytes, bytes / BYTES_PER_FILE))
        })
    }

    /// What is read-only and lies below these directories, as (source, target).
    pub fn guards<'a>(&'a self, roots: &'a [&Path]) -> impl Iterator<Item = (&'a Path, &'a Path)> {
        self.mounts_from(roots).filter(|(_, target)| {
            self.mounts
                .iter()
                .any(|mount| matches!(mount, Mount::ReadOnly { target: at, .. } if at == target))
        })
    }

    /// Describes the sandbox that is wanted, on a host that offers `facts`.
    pub fn new(wanted: &Wanted<'_>, facts: &Facts) -> Self {
        let user = User::default();
        let mut mounts: Vec<Mount> = system(facts).collect();
        mounts.extend(kernel(facts));
        mounts.extend(scratch(&wanted.limits));
        mounts.extend(etc(facts, &user, wanted.name));
        mounts.extend_from_slice(wanted.tools);
        mounts.extend(guardian(wanted));
        mounts.extend(project(wanted));
        mounts.extend_from_slice(wanted.shared);
        mounts.push(Mount::Sealed { target: "/run".into() });
        mounts.push(Mount::Sealed { target: "/".into() });
        Self {
            name: wanted.name.clone(),
            id: wanted.id.clone(),
            user,
            network: wanted.network,
            limits: wanted.limits,
            mounts,
        }
    }
}

fn same(path: &Path) -> Mount {
    Mount::System { path: path.to_owned() }
}

/// The programs and libraries of the host.
fn system(facts: &Facts) -> impl Iterator<Item = Mount> {
    let directories = facts.directories.iter().map(|path| same(path));
    let links = facts
        .links
        .iter()
        .map(|(link, target)| Mount::Link { points_to: target.clone(), target: link.clone() });
    directories.chain(links)
}

/// Processes and devices: of the sandbox's own, without the paths through which a kernel is changed or read.
fn kernel(facts: &Facts) -> impl Iterator<Item = Mount> {
    let hidden = |paths: &[PathBuf], is_directory| -> Vec<Mount> {
        paths.iter().map(|target| Mount::Hidden { target: target.clone(), is_directory }).collect()
    };
    [Mount::Processes { target: "/proc".into() }]
        .into_iter()
        .chain(facts.read_only.iter().map(|path| same(path)))
        .chain(hidden(&facts.masked_files, false))
        .chain(hidden(&facts.masked_directories, true))
        .chain([Mount::Devices { target: "/dev".into() }])
}

/// Directories in memory that end with the sandbox; all that can be written in them is bounded (K14).
fn scratch(limits: &Limits) -> [Mount; 7] {
    let memory = |target: &str, mode, size_bytes| Mount::Memory { target: target.into(), mode, size_bytes };
    [
        memory("/dev/shm", 0o1777, Some(limits.memory_bytes / 4)),
        Mount::Sealed { target: "/dev".into() },
        memory("/tmp", 0o1777, Some(limits.memory_bytes / 2)),
        Mount::Link { points_to: "/tmp".into(), target: "/var/tmp".into() },
        memory("/run", 0o755, None),
        Mount::Link { points_to: "/run".into(), target: "/var/run".into() },
        Mount::Directory { target: "/etc".into() },
    ]
}

/// An `/etc` of the sandbox's own: generated where names and addresses stand, the host's where it is harmless.
fn etc(facts: &Facts, user: &User, name: &CloisterName) -> Vec<Mount> {
    let User { name: account, uid, gid } = user;
    let file = |target: &str, content: String| Mount::File { target: target.into(), content };
    let mut mounts = facts.etc.clone();
    mounts.extend([
        file(
            "/etc/passwd",
            format!(
                "root:x:0:0:root:/root:/usr/sbin/nologin\n\
                 {account}:x:{uid}:{gid}:{account}:{HOME}:/bin/bash\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            ),
        ),
        file("/etc/group", format!("root:x:0:\n{account}:x:{gid}:\nnogroup:x:65534:\n")),
        file(
            "/etc/hosts",
            format!(
                "127.0.0.1 localhost cloister-guardian {name}\n::1 localhost ip6-localhost ip6-loopback\n"
            ),
        ),
        file("/etc/hostname", format!("{name}\n")),
        file(
            "/etc/nsswitch.conf",
            "passwd: files\ngroup: files\nshadow: files\nhosts: files\nnetworks: files\nethers: files\n\
             services: files\nprotocols: files\nrpc: files\n"
                .into(),
        ),
        file(
            "/etc/resolv.conf",
            "# This sandbox has no resolver: the guardian resolves the names that it allows.\n".into(),
        ),
        file("/etc/shells", "/bin/sh\n/bin/bash\n".into()),
        file(
            "/etc/ssh/ssh_config",
            format!("Host * !localhost !127.0.0.1\n    ProxyCommand {BINARY} sandbox-init connect %h %p\n"),
        ),
        file("/etc/profile", PROFILE.into()),
        file("/etc/machine-id", MACHINE_ID.into()),
        Mount::Link { points_to: "/proc/self/mounts".into(), target: "/etc/mtab".into() },
    ]);
    mounts
}

/// The way to the guardian, and the binary of the first process.
///
/// In the tier `none` there is no way: not even the sockets are there.
fn guardian(wanted: &Wanted<'_>) -> Vec<Mount> {
    let bin = Path::new(BINARY).parent().unwrap_or(Path::new("/")).to_owned();
    let sockets = Mount::ReadOnly { source: wanted.sockets.to_owned(), target: SOCKETS.into() };
    let binary = [
        Mount::Memory { target: bin.clone(), mode: 0o755, size_bytes: None },
        Mount::ReadOnly { source: wanted.binary.to_owned(), target: BINARY.into() },
        Mount::Sealed { target: bin },
    ];
    (wanted.network != Network::None).then_some(sockets).into_iter().chain(binary).collect()
}

/// What may be written: the home and the project, less what the host's git would execute or obey.
fn project(wanted: &Wanted<'_>) -> Vec<Mount> {
    let inside = |path: &Path| {
        path.strip_prefix(wanted.work).map_or_else(|_| path.to_owned(), |below| Path::new(WORK).join(below))
    };
    let mut mounts = vec![
        Mount::ReadWrite { source: wanted.home.to_owned(), target: HOME.into() },
        Mount::ReadWrite { source: wanted.work.to_owned(), target: WORK.into() },
    ];
    if let Some(common) = wanted.repository {
        mounts.push(Mount::ReadWrite { source: common.to_owned(), target: common.to_owned() });
    }
    // A mount point can't be renamed; its parents can, and what is protected would go with them.
    mounts.extend(wanted.guarded.iter().map(|(path, is_writable)| {
        let (source, target) = (path.clone(), inside(path));
        if *is_writable { Mount::ReadWrite { source, target } } else { Mount::ReadOnly { source, target } }
    }));
    for (path, is_directory) in wanted.masked {
        let target = inside(path);
        if *is_directory {
            mounts.push(Mount::Memory { target: target.clone(), mode: 0o555, size_bytes: Some(4096) });
            mounts.push(Mount::Sealed { target });
        } else {
            mounts.push(Mount::File { target, content: wanted.mask_text.to_owned() });
        }
    }
    mounts
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            directories: vec!["/usr".into()],
            links: vec![("/bin".into(), "usr/bin".into())],
            etc: vec![
                same(Path::new("/etc/ssl/certs")),
                Mount::Copy { source: "/etc/services".into(), target: "/etc/services".into() },
            ],
            masked_files: vec!["/proc/kcore".into()],
            masked_directories: vec!["/proc/acpi".into()],
            read_only: vec!["/proc/sys".into()],
        }
    }

    /// A small sandbox on a small host.
    pub(in crate::sandbox) fn spec() -> Spec {
        let name = CloisterName::parse("demo").unwrap();
        let id = CloisterId::of(&name, "/src/demo");
        Spec::new(
            &Wanted {
                name: &name,
                id: &id,
                work: Path::new("/src/demo"),
                repository: None,
                guarded: &[("/src/demo/.git".into(), true), ("/src/demo/.git/hooks".into(), false)],
                masked: &[("/src/demo/.env".into(), false), ("/src/demo/secrets".into(), true)],
                mask_text: "hidden",
                home: Path::new("/data/home"),
                sockets: Path::new("/run/s/1"),
                binary: Path::new("/opt/cloister"),
                tools: &[same(Path::new("/opt/go"))],
                shared: &[same(Path::new("/data"))],
                network: Network::Guarded,
                limits: Limits::default(),
            },
            &facts(),
        )
    }

    fn position(spec: &Spec, target: &str) -> usize {
        let found = spec.mounts.iter().position(|mount| match mount {
            Mount::System { path: at }
            | Mount::ReadOnly { target: at, .. }
            | Mount::ReadWrite { target: at, .. }
            | Mount::Memory { target: at, .. }
            | Mount::Directory { target: at }
            | Mount::Link { target: at, .. }
            | Mount::File { target: at, .. }
            | Mount::Copy { target: at, .. }
            | Mount::Processes { target: at }
            | Mount::Devices { target: at }
            | Mount::Hidden { target: at, .. } => at == Path::new(target),
            Mount::Sealed { .. } => false,
        });
        found.unwrap_or_else(|| panic!("`{target}` is not in the spec"))
    }

    #[test]
    fn only_home_and_the_project_can_be_written() {
        let writable: Vec<_> = spec()
            .mounts
            .into_iter()
            .filter_map(|mount| match mount {
                Mount::ReadWrite { target, .. } => Some(target),
                _ => None,
            })
            .collect();
        assert_eq!(writable, [HOME, WORK, "/work/.git"].map(PathBuf::from));
    }

    #[test]
    fn k7_kernel_settings_are_read_only_over_the_process_table() {
        let spec = spec();
        assert!(position(&spec, "/proc") < position(&spec, "/proc/sys"));
        assert!(position(&spec, "/proc") < position(&spec, "/proc/kcore"));
    }

    #[test]
    fn f1_what_the_hosts_git_executes_is_read_only_over_the_project() {
        let spec = spec();
        let hooks =
            Mount::ReadOnly { source: "/src/demo/.git/hooks".into(), target: "/work/.git/hooks".into() };
        assert_eq!(spec.mounts[position(&spec, "/work/.git/hooks")], hooks);
        assert!(position(&spec, WORK) < position(&spec, "/work/.git"));
        assert!(position(&spec, "/work/.git") < position(&spec, "/work/.git/hooks"));
    }

    #[test]
    fn what_is_shared_lies_over_the_project_and_tools_under_cloisters_own() {
        let spec = spec();
        assert!(position(&spec, "/run") < position(&spec, "/opt/go"));
        assert!(position(&spec, "/opt/go") < position(&spec, SOCKETS));
        assert!(position(&spec, "/work/.git/hooks") < position(&spec, "/data"));
    }

    #[test]
    fn f15_what_is_hidden_lies_over_everything_else() {
        let spec = spec();
        let hidden = Mount::File { target: "/work/.env".into(), content: "hidden".to_owned() };
        assert_eq!(spec.mounts[position(&spec, "/work/.env")], hidden);
        assert!(position(&spec, "/work/.git/hooks") < position(&spec, "/work/.env"));
        let sealed = spec.mounts.iter().position(
            |mount| matches!(mount, Mount::Sealed { target } if target == Path::new("/work/secrets")),
        );
        assert_eq!(sealed, Some(position(&spec, "/work/secrets") + 1));
    }

    #[test]
    fn the_root_is_sealed_last() {
        assert_eq!(spec().mounts.last(), Some(&Mount::Sealed { target: "/".into() }));
    }

    #[test]
    fn names_are_resolved_from_files_alone() {
        let spec = spec();
        let Mount::File { content, .. } = &spec.mounts[position(&spec, "/etc/nsswitch.conf")] else {
            panic!("a file is generated");
        };
        assert!(content.contains("hosts: files\n"));
    }
}
