//! Holding all processes of a sandbox to their limits, with the strongest means that the host offers (K14).
//!
//! The processes are put in their place before the first of them gets its settings, so nothing that they start is
//! outside. In order: a scope of systemd's; a cgroup of our own (v2, then v1) where its directory can be written;
//! `RLIMIT_NPROC`, which counts the processes of the sandbox's own user name space since Linux 5.14 and binds
//! everybody but root. Never `RLIMIT_AS`: it counts address space, which WebAssembly reserves without using it.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::Limits;
use crate::name::CloisterId;
use crate::process;

/// How long systemd may take to move the processes.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(2);
/// The length over which processor time is counted, in microseconds (the kernel's default).
const PERIOD_US: u64 = 100_000;

/// What holds a sandbox to its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enforcement {
    /// A control group, version 2: memory, processors and processes.
    Cgroup2,
    /// Control groups, version 1: memory, processors and processes.
    Cgroup1,
    /// `RLIMIT_NPROC`: processes alone.
    Rlimit,
    /// Nothing.
    None,
}

impl Display for Enforcement {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Cgroup2 => "cgroup2",
            Self::Cgroup1 => "cgroup1",
            Self::Rlimit => "rlimit",
            Self::None => "none",
        })
    }
}

/// How one sandbox is held to its limits, and what has to be removed after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confinement {
    /// By what.
    pub by: Enforcement,
    /// The directories that were made for it.
    pub directories: Vec<PathBuf>,
}

impl Confinement {
    /// Puts processes in their place; where one means fails, the next is tried.
    pub(super) fn of(limits: &Limits, id: &CloisterId, pids: &[i32]) -> Self {
        let group = Group { name: format!("cloister-{id}"), limits: *limits, pids };
        if group.systemd_scope() {
            return Self { by: Enforcement::Cgroup2, directories: Vec::new() };
        }
        let hierarchies = Hierarchy::read_all(Path::new("/"));
        if let Some(directory) = group.version_2(&hierarchies) {
            return Self { by: Enforcement::Cgroup2, directories: vec![directory] };
        }
        if let Some(directories) = group.version_1(&hierarchies) {
            return Self { by: Enforcement::Cgroup1, directories };
        }
        let by = if pids.iter().any(|pid| is_roots(*pid)) { Enforcement::None } else { Enforcement::Rlimit };
        Self { by, directories: Vec::new() }
    }

    /// Removes what was made, once the processes have ended.
    pub(super) fn remove(&self) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        self.directories.iter().try_for_each(|directory| remove_group(directory, end))
    }
}

/// Tells whether the kernel takes a process for root's, which no `RLIMIT_NPROC` binds.
fn is_roots(pid: i32) -> bool {
    fs::metadata(format!("/proc/{pid}")).is_ok_and(|found| found.uid() == 0)
}

/// Removes a control group; the kernel refuses as long as an ended process has not been collected.
fn remove_group(directory: &Path, end: Instant) -> io::Result<()> {
    loop {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < end => {
                std::thread::sleep(LOOK);
            }
            other => return other,
        }
    }
}

/// A control group to be made, and who goes into it.
struct Group<'a> {
    name: String,
    limits: Limits,
    pids: &'a [i32],
}

impl Group<'_> {
    /// How much processor time it gets in one period, in microseconds.
    fn quota_us(&self) -> u64 {
        u64::from(self.limits.cpus_milli) * PERIOD_US / 1000
    }

    /// Has systemd make a scope: the user's own, or the system's for root.
    fn systemd_scope(&self) -> bool {
        if !Path::new("/run/systemd/system").is_dir() {
            return false;
        }
        let Some(busctl) = process::find_trusted("busctl") else { return false };
        let is_root = rustix::process::geteuid().is_root();
        let mut command = process::command(busctl);
        command.args(self.scope_request(is_root));
        for name in ["XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"] {
            command.envs(process::environment(name).map(|value| (name, value)));
        }
        let asked = command.output().is_ok_and(|output| output.status.success());
        asked && self.wait_for_scope()
    }

    /// The call that makes the scope (`org.freedesktop.systemd1(5)`, `StartTransientUnit`).
    fn scope_request(&self, is_root: bool) -> Vec<String> {
        let bus = if is_root { "--system" } else { "--user" };
        let head = [
            bus,
            "--quiet",
            "call",
            "org.freedesktop.systemd1",
            "/org/freedesktop/systemd1",
            "org.freedesktop.systemd1.Manager",
            "StartTransientUnit",
            "ssa(sv)a(sa(sv))",
            &self.scope(),
            "fail",
            "5",
        ]
        .map(str::to_owned);
        let mut words = head.to_vec();
        words.extend(["PIDs".to_owned(), "au".to_owned(), self.pids.len().to_string()]);
        words.extend(self.pids.iter().map(i32::to_string));
        let per_second_us = u64::from(self.limits.cpus_milli) * 1000;
        for (name, value) in [
            ("MemoryMax", self.limits.memory_bytes),
            ("MemorySwapMax", 0),
            ("TasksMax", u64::from(self.limits.pids)),
            ("CPUQuotaPerSecUSec", per_second_us),
        ] {
            words.extend([name.to_owned(), "t".to_owned(), value.to_string()]);
        }
        words.push("0".to_owned());
        words
    }

    fn scope(&self) -> String {
        format!("{}.scope", self.name)
    }

    /// Waits until every process is in the scope.
    fn wait_for_scope(&self) -> bool {
        let end = Instant::now() + PATIENCE;
        let is_inside = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&self.scope()))
        };
        while !self.pids.iter().all(is_inside) {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }

    /// Makes a group below or beside the one of this process.
    fn version_2(&self, hierarchies: &[Hierarchy]) -> Option<PathBuf> {
        let own = hierarchies.iter().find(|hierarchy| hierarchy.controllers.is_empty())?.own.clone();
        let beside = own.parent().map(Path::to_owned);
        [own].into_iter().chain(beside).find_map(|parent| {
            // Fails where processes are in it or the controllers are not delegated; then the files are missing.
            let _ = write(&parent, "cgroup.subtree_control", "+memory +pids +cpu");
            self.make(&parent, |directory| {
                write(directory, "memory.max", self.limits.memory_bytes)?;
                write(directory, "pids.max", self.limits.pids)?;
                optional(write(directory, "memory.swap.max", 0))?;
                optional(write(directory, "cpu.max", format_args!("{} {PERIOD_US}", self.quota_us())))
            })
        })
    }

    /// Makes a group in each of the hierarchies that count memory, processes and processor time.
    fn version_1(&self, hierarchies: &[Hierarchy]) -> Option<Vec<PathBuf>> {
        let of = |controller: &str| {
            hierarchies.iter().find(|hierarchy| hierarchy.controllers.iter().any(|one| one == controller))
        };
        let memory = self.make(&of("memory")?.own, |directory| {
            write(directory, "memory.limit_in_bytes", self.limits.memory_bytes)?;
            optional(write(directory, "memory.memsw.limit_in_bytes", self.limits.memory_bytes))
        })?;
        let pids = of("pids").and_then(|found| {
            self.make(&found.own, |directory| write(directory, "pids.max", self.limits.pids))
        });
        let Some(pids) = pids else {
            // Half of the limits would be called all of them; the processes go back to where they were.
            self.leave(&memory);
            return None;
        };
        let cpu = of("cpu").and_then(|found| {
            self.make(&found.own, |directory| {
                write(directory, "cpu.cfs_period_us", PERIOD_US)?;
                write(directory, "cpu.cfs_quota_us", self.quota_us())
            })
        });
        Some([memory, pids].into_iter().chain(cpu).collect())
    }

    /// Makes a group, sets its limits and moves the processes in; takes all of it back when a part fails.
    fn make(&self, parent: &Path, set: impl FnOnce(&Path) -> io::Result<()>) -> Option<PathBuf> {
        let directory = parent.join(&self.name);
        let made = match fs::create_dir(&directory) {
            // A start that was killed left it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        };
        let moved = made
            .and_then(|()| set(&directory))
            .and_then(|()| self.pids.iter().try_for_each(|pid| write(&directory, "cgroup.procs", pid)));
        if moved.is_ok() {
            return Some(directory);
        }
        self.leave(&directory);
        None
    }

    /// Moves the processes out of a group and removes it.
    fn leave(&self, directory: &Path) {
        if let Some(parent) = directory.parent() {
            // What was never in it can't leave it.
            let _ = self.pids.iter().try_for_each(|pid| write(parent, "cgroup.procs", pid));
        }
        // A directory that can't be removed is empty and holds nobody.
        let _ = fs::remove_dir(directory);
    }
}

fn write(directory: &Path, file: &str, value: impl Display) -> io::Result<()> {
    // Never create: a directory without the file is no control group with this controller.
    let mut file = fs::OpenOptions::new().write(true).open(directory.join(file))?;
    io::Write::write_all(&mut file, value.to_string().as_bytes())
}

/// A setting that not every kernel has.
fn optional(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// One mounted hierarchy of control groups.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// What it counts; empty for version 2.
    controllers: Vec<String>,
    /// The directory of this process's own group.
    own: PathBuf,
}

impl Hierarchy {
    /// Reads the hierarchies; `root` is `/` but in tests.
    fn read_all(root: &Path) -> Vec<Self> {
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        Self::parse(&read("proc/self/mountinfo"), &read("proc/self/cgroup"))
    }

    /// Joins what is mounted (`proc_pid_mountinfo(5)`) with where this process is (`cgroups(7)`).
    fn parse(mounts: &str, groups: &str) -> Vec<Self> {
        let found = groups.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let controllers: Vec<String> =
                controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
            if controllers.iter().any(|name| name.starts_with("name=")) {
                return None;
            }
            let own =
                mounts.lines().find_map(|mount| group_directory(mount, &controllers, Path::new(path)))?;
            Some(Self { controllers, own })
        });
        found.collect()
    }
}

/// Where a group lies below a mount, if the mount is of the hierarchy with these controllers.
fn group_directory(mount: &str, controllers: &[String], group: &Path) -> Option<PathBuf> {
    let (place, kind) = mount.split_once(" - ")?;
    let place: Vec<&str> = place.split(' ').collect();
    let (root, point) = (place.get(3)?, place.get(4)?);
    let mut kind = kind.split(' ');
    let (name, options) = (kind.next()?, kind.nth(1)?);
    let is_wanted = match (name, controllers) {
        ("cgroup2", []) => true,
        ("cgroup", [_, ..]) => controllers.iter().all(|wanted| options.split(',').any(|one| one == wanted)),
        _ => false,
    };
    let below = is_wanted.then(|| group.strip_prefix(root).ok()).flatten()?;
    Some(Path::new(point).join(below).components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 20 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 /docker/1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";

    #[test]
    fn hierarchies_are_found_where_they_are_mounted() {
        let groups =
            "4:memory:/docker/1/x\n3:cpu,cpuacct:/\n2:pids:/\n1:name=systemd:/\n0::/user.slice/a.scope\n";
        let hierarchy = |controllers: &[&str], own: &str| Hierarchy {
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
            own: own.into(),
        };
        assert_eq!(
            Hierarchy::parse(MOUNTS, groups),
            [
                hierarchy(&["memory"], "/sys/fs/cgroup/memory/x"),
                hierarchy(&["cpu", "cpuacct"], "/sys/fs/cgroup/cpu,cpuacct"),
                hierarchy(&[], "/sys/fs/cgroup/unified/user.slice/a.scope"),
            ]
        );
        assert_eq!(Hierarchy::parse(MOUNTS, "4:memory:/elsewhere\n"), []);
        assert_eq!(Hierarchy::parse("nonsense\n", "nonsense\n0::/\n"), []);
    }

    fn group(pids: &[i32]) -> Group<'_> {
        let limits = Limits { memory_bytes: 1024, cpus_milli: 1500, pids: 64 };
        Group { name: "cloister-1".to_owned(), limits, pids }
    }

    #[test]
    fn the_whole_request_to_systemd() {
        assert_eq!(
            group(&[7, 8]).scope_request(false).join(" "),
            "--user --quiet call org.freedesktop.systemd1 /org/freedesktop/systemd1 \
             org.freedesktop.systemd1.Manager StartTransientUnit ssa(sv)a(sa(sv)) cloister-1.scope fail 5 \
             PIDs au 2 7 8 MemoryMax t 1024 MemorySwapMax t 0 TasksMax t 64 CPUQuotaPerSecUSec t 1500000 0"
        );
        assert_eq!(group(&[7]).scope_request(true)[0], "--system");
    }

    #[test]
    fn a_directory_that_is_no_control_group_is_left_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let hierarchy = |controllers: &[&str]| Hierarchy {
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
            own: directory.path().to_owned(),
        };
        let all = [hierarchy(&[]), hierarchy(&["memory"]), hierarchy(&["pids"])];
        assert_eq!(group(&[1]).version_2(&all), None);
        assert_eq!(group(&[1]).version_1(&all), None);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn half_a_version_1_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let memory = directory.path().join("cloister-1");
        fs::create_dir(&memory).unwrap();
        for file in ["memory.limit_in_bytes", "cgroup.procs", "../cgroup.procs"] {
            fs::write(memory.join(file), "").unwrap();
        }
        let only = [Hierarchy { controllers: vec!["memory".to_owned()], own: directory.path().to_owned() }];
        assert_eq!(group(&[7]).version_1(&only), None);
        assert_eq!(fs::read_to_string(memory.join("memory.limit_in_bytes")).unwrap(), "1024");
        assert_eq!(fs::read_to_string(directory.path().join("cgroup.procs")).unwrap(), "7");
    }
}
