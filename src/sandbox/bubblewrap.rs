//! The backend without a daemon: one `bwrap` command line, made from a spec as a plain value.
//!
//! Order matters twice. In the arguments, a later mount lies over an earlier one. In time, the first process
//! gets its settings only after the receipt is on disk: a start that is killed half-way leaves a first process
//! that finds its pipe empty and ends.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::pipe::{PipeFlags, pipe_with};

use super::limits::Confinement;
use super::seccomp::{FilterError, filter};
use super::spec::{BINARY, Mount, Spec};
use super::stage::{self, Stage, StageError};
use crate::config::Limits;
use crate::name::CloisterId;
use crate::paths::{self, PathsError};
use crate::process::{self, Identity};

/// How long `bwrap` may take to report the process that it made.
const INFO_PATIENCE: Duration = Duration::from_secs(20);

/// The first process of a sandbox.
const FIRST: [&str; 3] = [BINARY, "sandbox-init", "first"];

/// The bubblewrap backend with the program that it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bubblewrap {
    program: PathBuf,
}

/// Whose a sandbox's processes are on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostUser {
    /// The caller's.
    Caller,
    /// An unprivileged user's, though root is the caller.
    Unprivileged,
}

/// One word of the command line, or a descriptor that takes its place when the plan is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Text(OsString),
    /// A descriptor from which this text is read.
    Content(String),
    /// A descriptor from which this file is read.
    Opened(PathBuf),
    /// A descriptor from which this system call filter is read.
    Filter(Vec<u8>),
    /// The descriptor to which `bwrap` reports the first process.
    Info,
}

/// The command that makes one sandbox, and what has to be laid out for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    stage: Option<Stage>,
    program: PathBuf,
    words: Vec<Word>,
    id: CloisterId,
    limits: Limits,
}

/// The processes of a sandbox that was made.
#[derive(Debug)]
pub struct Launched {
    /// The process outside that waits for the sandbox.
    pub monitor: Identity,
    /// The first process.
    pub first: Identity,
    /// The inode of its process name space.
    pub pid_namespace: u64,
    /// What holds it to its limits.
    pub confinement: Confinement,
}

/// Why a sandbox could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// There is no `bwrap`.
    #[error("cannot find `bwrap` in `PATH`")]
    NoBwrap,
    /// Somebody else could change the program that is trusted to contain the sandbox.
    #[error("`{0}` can be changed by others than root")]
    UntrustedBwrap(PathBuf),
    /// The filter could not be built.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A descriptor, pipe or process could not be made.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file could not be made.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// The processes can't be an unprivileged user's.
    #[error("cannot lay out what the sandbox sees")]
    Stage(#[source] StageError),
    /// `bwrap` gave up.
    #[error("bubblewrap cannot make the sandbox: {0}")]
    Refused(String),
    /// The settings of the first process could not be written.
    #[error("cannot write the settings of the sandbox's first process")]
    Settings(#[source] serde_json::Error),
    /// The receipt could not be kept, so nothing was started.
    #[error("cannot keep the receipt of the sandbox")]
    Receipt(#[source] super::ReceiptError),
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::Io { action, source }
}

/// Finds `bwrap` along a `PATH` value; one that anybody but root could change is passed over.
pub fn find_bwrap(search_path: &OsStr) -> Result<Bubblewrap, LaunchError> {
    let mut refused = None;
    for found in process::find_programs("bwrap", search_path) {
        let program = std::fs::canonicalize(&found).map_err(io_error("resolve the path of `bwrap`"))?;
        if process::is_trusted_program(&program).map_err(io_error("inspect `bwrap`"))? {
            return Ok(Bubblewrap { program });
        }
        refused.get_or_insert(program);
    }
    Err(refused.map_or(LaunchError::NoBwrap, LaunchError::UntrustedBwrap))
}

impl Bubblewrap {
    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Turns a spec into the command that makes it. Pure but for the filter, which depends on the processor.
    pub fn plan(&self, spec: &Spec, user: HostUser) -> Result<Plan, LaunchError> {
        let (stage, mounts) = match user {
            HostUser::Caller => (None, spec.mounts.clone()),
            HostUser::Unprivileged => {
                let (stage, mounts) = Stage::of(&spec.mounts);
                (Some(stage), mounts)
            }
        };
        let mut words = isolation(spec);
        for program in filter()? {
            words.extend([Word::Text("--add-seccomp-fd".into()), Word::Filter(program)]);
        }
        words.extend([Word::Text("--info-fd".into()), Word::Info]);
        words.extend(mounts.iter().flat_map(mount));
        words.extend(text(["--chdir", "/"]));
        Ok(Plan { stage, program: self.program.clone(), words, id: spec.id.clone(), limits: spec.limits })
    }
}

fn text<const N: usize>(words: [&str; N]) -> [Word; N] {
    words.map(|word| Word::Text(word.into()))
}

/// Every name space of its own, no further ones, no capability, no controlling terminal, no environment.
fn isolation(spec: &Spec) -> Vec<Word> {
    let mut words = text([
        "--unshare-user",
        "--unshare-ipc",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-uts",
        "--unshare-cgroup",
        "--disable-userns",
        "--new-session",
        "--as-pid-1",
        "--clearenv",
    ])
    .to_vec();
    words.extend(text(["--cap-drop", "ALL"]));
    words.extend(text(["--uid", &spec.user.uid.to_string(), "--gid", &spec.user.gid.to_string()]));
    words.extend(text(["--hostname", spec.name.as_str()]));
    words
}

fn mount(mount: &Mount) -> Vec<Word> {
    let path = |path: &Path| Word::Text(path.as_os_str().to_owned());
    let option = |option: &str| Word::Text(option.into());
    match mount {
        Mount::System { path: at } => vec![option("--ro-bind"), path(at), path(at)],
        Mount::ReadOnly { source, target } => vec![option("--ro-bind"), path(source), path(target)],
        Mount::ReadWrite { source, target } => vec![option("--bind"), path(source), path(target)],
        Mount::Memory { target, mode, size_bytes } => {
            let size = size_bytes.map(|size| [option("--size"), Word::Text(size.to_string().into())]);
            let mode = [option("--perms"), Word::Text(format!("{mode:04o}").into())];
            let mounted = [option("--tmpfs"), path(target)];
            size.into_iter().flatten().chain(mode).chain(mounted).collect()
        }
        Mount::Directory { target } => vec![option("--dir"), path(target)],
        Mount::Link { points_to, target } => vec![option("--symlink"), path(points_to), path(target)],
        Mount::File { target, content } => {
            // A file on the sandbox's own root, which is sealed in the end, needs no mount of its own.
            let how = if target.starts_with("/etc") { "--file" } else { "--ro-bind-data" };
            vec![option("--perms"), option("0444"), option(how), Word::Content(content.clone()), path(target)]
        }
        Mount::Copy { source, target } => vec![
            option("--perms"),
            option("0444"),
            option("--file"),
            Word::Opened(source.clone()),
            path(target),
        ],
        Mount::Processes { target } => vec![option("--proc"), path(target)],
        Mount::Devices { target } => vec![option("--dev"), path(target)],
        Mount::Hidden { target, is_directory: false } => {
            vec![option("--ro-bind"), option("/dev/null"), path(target)]
        }
        Mount::Hidden { target, is_directory: true } => vec![
            option("--perms"),
            option("0000"),
            option("--tmpfs"),
            path(target),
            option("--remount-ro"),
            path(target),
        ],
        Mount::Sealed { target } => vec![option("--remount-ro"), path(target)],
    }
}

impl Plan {
    /// The command as a person reads it; descriptors are named by what they carry.
    pub fn display(&self) -> Vec<String> {
        let words = self.words.iter().map(|word| match word {
            Word::Text(text) => text.to_string_lossy().into_owned(),
            Word::Content(content) => format!("<{} bytes>", content.len()),
            Word::Opened(path) => format!("<{}>", path.display()),
            Word::Filter(program) => format!("<filter of {} instructions>", program.len() / 8),
            Word::Info => "<report>".to_owned(),
        });
        let first = FIRST.map(str::to_owned);
        let program = self.program.display().to_string();
        std::iter::once(program).chain(words).chain(["--".to_owned()]).chain(first).collect()
    }

    /// What is laid out before the command runs, as a person reads it; empty where it needs nothing.
    pub fn display_stage(&self) -> Vec<String> {
        self.stage.as_ref().map(Stage::display).unwrap_or_default()
    }

    /// Tries, without changing anything, whether this host can do what the plan says about users.
    pub fn probe(&self) -> Result<(), StageError> {
        self.stage.as_ref().map_or(Ok(()), Stage::probe)
    }

    /// Makes the sandbox, whose first process listens on `socket`. `keep` is called with its processes before the
    /// first of them gets its settings, and gives them; when it fails, nothing stays.
    pub fn apply(
        &self,
        socket: &Path,
        keep: impl FnOnce(&Launched) -> Result<Vec<u8>, LaunchError>,
    ) -> Result<Monitor, LaunchError> {
        if let Some(directory) = socket.parent() {
            paths::ensure_private_dir(directory)?;
        }
        paths::remove_if_present(socket)?;
        let listener = UnixListener::bind(socket).map_err(io_error("listen for sessions"))?;
        let result = self.spawn(listener.into(), keep);
        if result.is_err() {
            // The socket may be gone already; the failure that is reported is the one that matters.
            let _ = paths::remove_if_present(socket);
        }
        result
    }

    fn spawn(
        &self,
        listener: OwnedFd,
        keep: impl FnOnce(&Launched) -> Result<Vec<u8>, LaunchError>,
    ) -> Result<Monitor, LaunchError> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|error| io_error("make a pipe")(error.into()));
        let ((boot_read, boot_write), (info_read, info_write)) = (pipe()?, pipe()?);
        let (arguments, mut inherited) = self.arguments(&info_write)?;
        let mut command = match &self.stage {
            None => process::command(&self.program),
            Some(stage) => {
                let numbers =
                    inherited.iter().chain([&info_write, &info_read]).map(AsRawFd::as_raw_fd).collect();
                let instructions = stage.instructions(info_write.as_raw_fd(), numbers);
                let instructions = instructions.map_err(io_error("write the instructions of the stage"))?;
                self.staged(hold(&mut inherited, in_memory(&instructions)?))
            }
        };
        command.args(arguments);
        // `bwrap` has the reading end too: if this process is killed before it reads, `bwrap` must not end of a broken
        // pipe, for then its child would wait for it for ever. The first process passes it on to nobody.
        for descriptor in inherited.iter().map(AsFd::as_fd).chain([info_write.as_fd(), info_read.as_fd()]) {
            process::make_inheritable(descriptor).map_err(io_error("pass a descriptor on"))?;
        }
        // The first process finds its listening socket as standard input and its settings as standard output
        // (see `init`): descriptors with fixed numbers, which safe code can take over.
        command.stdin(listener).stdout(boot_read).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(io_error("start `bwrap`"))?;
        drop((command, info_write, inherited));
        let finish = self.identify(&child, info_read).and_then(|launched| {
            let boot = keep(&launched)?;
            File::from(boot_write).write_all(&boot).map_err(io_error("send the first process its settings"))
        });
        match finish {
            Ok(()) => Ok(Monitor(child)),
            Err(error) => Err(abandon(&mut child, error)),
        }
    }
}

impl Plan {
    /// The arguments of `bwrap`, and the descriptors that they name besides the one for the report.
    fn arguments(&self, report: &OwnedFd) -> Result<(Vec<OsString>, Vec<OwnedFd>), LaunchError> {
        let mut inherited = Vec::new();
        // Hundreds of mounts would not fit on a command line: `bwrap` reads them from a descriptor.
        let mut mounts = Vec::new();
        for word in &self.words {
            let number = match word {
                Word::Text(text) => {
                    mounts.extend_from_slice(text.as_bytes());
                    mounts.push(0);
                    continue;
                }
                Word::Content(content) => hold(&mut inherited, in_memory(content.as_bytes())?),
                Word::Opened(path) => {
                    hold(&mut inherited, File::open(path).map_err(io_error("open a file to copy"))?.into())
                }
                Word::Filter(program) => hold(&mut inherited, in_memory(program)?),
                Word::Info => report.as_raw_fd(),
            };
            mounts.extend_from_slice(number.to_string().as_bytes());
            mounts.push(0);
        }
        let mounts = hold(&mut inherited, in_memory(&mounts)?).to_string();
        let arguments = ["--args", &mounts, "--"].into_iter().chain(FIRST).map(OsString::from).collect();
        Ok((arguments, inherited))
    }

    /// The start of this binary as the stage, which becomes `bwrap` with the arguments that follow.
    fn staged(&self, instructions: i32) -> Command {
        // The very binary that runs, also after its file was replaced.
        let mut command = process::command("/proc/self/exe");
        command.arg0("cloister").args(["sandbox-init", "stage", "--instructions"]);
        command.arg(instructions.to_string()).arg("--").arg(&self.program);
        command
    }

    /// Reads which process `bwrap` made, and holds it to its limits before it has started anything.
    fn identify(&self, monitor: &Child, info: OwnedFd) -> Result<Launched, LaunchError> {
        let Info { child_pid, pid_namespace } = read_info(info)?;
        let own = i32::try_from(monitor.id()).ok();
        let identities = (own.and_then(Identity::of), Identity::of(child_pid));
        let (Some(own), (Some(monitor), Some(first))) = (own, identities) else { return Err(silent()) };
        let confinement = Confinement::of(&self.limits, &self.id, &[own, child_pid]);
        Ok(Launched { monitor, first, pid_namespace, confinement })
    }
}

/// What `bwrap` reports.
#[derive(serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    child_pid: i32,
    pid_namespace: u64,
}

fn silent() -> LaunchError {
    LaunchError::Refused("it reported no process".to_owned())
}

fn read_info(info: OwnedFd) -> Result<Info, LaunchError> {
    let ready = process::wait_readable(info.as_fd(), INFO_PATIENCE).map_err(io_error("wait for `bwrap`"))?;
    if !ready {
        return Err(silent());
    }
    let mut text = String::new();
    File::from(info).read_to_string(&mut text).map_err(io_error("read the report of `bwrap`"))?;
    serde_json::from_str(&text).map_err(|_| stage::refusal(&text).map_or_else(silent, LaunchError::Stage))
}

/// The process outside that waits for the sandbox, as long as this process is its parent.
#[derive(Debug)]
pub struct Monitor(Child);

impl Monitor {
    /// Ends a sandbox whose first process never answered, and tells what was said about it.
    pub fn abandon(mut self) -> LaunchError {
        abandon(&mut self.0, LaunchError::Refused("its first process ended at once".to_owned()))
    }
}

fn hold(inherited: &mut Vec<OwnedFd>, descriptor: OwnedFd) -> i32 {
    let number = descriptor.as_raw_fd();
    inherited.push(descriptor);
    number
}

fn in_memory(content: &[u8]) -> Result<OwnedFd, LaunchError> {
    let failed = |error: io::Error| io_error("hold data in memory")(error);
    let descriptor = memfd_create("cloister", MemfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    let mut file = File::from(descriptor);
    file.write_all(content).map_err(failed)?;
    seek(&file, SeekFrom::Start(0)).map_err(|error| failed(error.into()))?;
    Ok(file.into())
}

/// Ends what a failed start left, and reports what `bwrap` said if that tells more.
fn abandon(child: &mut Child, error: LaunchError) -> LaunchError {
    // Both may fail only because the process has ended, which is what is wanted.
    let _ = child.kill();
    let _ = child.wait();
    match error {
        LaunchError::Refused(_) => complaint(child).map_or(error, LaunchError::Refused),
        other => other,
    }
}

/// What `bwrap` wrote before it ended.
fn complaint(child: &mut Child) -> Option<String> {
    let mut text = String::new();
    child.stderr.take()?.take(4096).read_to_string(&mut text).ok()?;
    let text = text.trim().trim_start_matches("bwrap: ").trim_start_matches("error: ").to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::spec::tests::spec;

    /// Compares the whole command line; `sources` are those outside the system.
    #[track_caller]
    fn check(user: HostUser, sources: [&str; 5]) {
        let [sockets, binary, home, work, git] = sources;
        let hooks = if user == HostUser::Caller { "/src/demo/.git/hooks" } else { "/tmp/5" };
        let plan = Bubblewrap { program: "/usr/bin/bwrap".into() }.plan(&spec(), user).unwrap();
        let instructions: Vec<String> = filter()
            .unwrap()
            .iter()
            .map(|program| format!("<filter of {} instructions>", program.len() / 8))
            .collect();
        let expected = format!(
            "/usr/bin/bwrap --unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup \
             --disable-userns --new-session --as-pid-1 --clearenv --cap-drop ALL --uid 1000 --gid 1000 \
             --hostname demo --add-seccomp-fd {} --add-seccomp-fd {} --info-fd <report> \
             --ro-bind /usr /usr --symlink usr/bin /bin \
             --proc /proc --ro-bind /proc/sys /proc/sys --ro-bind /dev/null /proc/kcore \
             --perms 0000 --tmpfs /proc/acpi --remount-ro /proc/acpi --dev /dev \
             --size 2147483648 --perms 1777 --tmpfs /dev/shm --remount-ro /dev \
             --size 4294967296 --perms 1777 --tmpfs /tmp --symlink /tmp /var/tmp --perms 0755 --tmpfs /run \
             --symlink /run /var/run --dir /etc --ro-bind /etc/ssl/certs /etc/ssl/certs \
             --perms 0444 --file </etc/services> /etc/services \
             --perms 0444 --file <154 bytes> /etc/passwd --perms 0444 --file <44 bytes> /etc/group \
             --perms 0444 --file <84 bytes> /etc/hosts --perms 0444 --file <5 bytes> /etc/hostname \
             --perms 0444 --file <128 bytes> /etc/nsswitch.conf \
             --perms 0444 --file <80 bytes> /etc/resolv.conf \
             --perms 0444 --file <18 bytes> /etc/shells \
             --perms 0444 --file <100 bytes> /etc/ssh/ssh_config \
             --perms 0444 --file <187 bytes> /etc/profile \
             --perms 0444 --file <33 bytes> /etc/machine-id --symlink /proc/self/mounts /etc/mtab \
             --ro-bind /opt/go /opt/go \
             --ro-bind {sockets} /run/cloister --perms 0755 --tmpfs /run/cloister/bin \
             --ro-bind {binary} /run/cloister/bin/cloister --remount-ro /run/cloister/bin \
             --bind {home} /home/cloister --bind {work} /work --bind {git} /work/.git \
             --ro-bind {hooks} /work/.git/hooks \
             --perms 0444 --ro-bind-data <6 bytes> /work/.env \
             --size 4096 --perms 0555 --tmpfs /work/secrets --remount-ro /work/secrets --ro-bind /data /data \
             --remount-ro /run --remount-ro / \
             --chdir / -- /run/cloister/bin/cloister sandbox-init first",
            instructions[0], instructions[1]
        );
        assert_eq!(plan.display().join(" "), expected);
        assert_eq!(plan.display_stage().is_empty(), user == HostUser::Caller);
    }

    #[test]
    fn the_whole_command_line() {
        let sources = ["/run/s/1", "/opt/cloister", "/data/home", "/src/demo", "/src/demo/.git"];
        check(HostUser::Caller, sources);
        check(HostUser::Unprivileged, ["/tmp/0", "/tmp/1", "/tmp/2", "/tmp/3", "/tmp/4"]);
    }

    #[test]
    fn a_stage_gets_its_instructions_on_a_descriptor_and_hands_on_the_command() {
        let plan = Bubblewrap { program: "/usr/bin/bwrap".into() }.plan(&spec(), HostUser::Unprivileged);
        let command = plan.unwrap().staged(7);
        let words: Vec<_> = command.get_args().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(words, ["sandbox-init", "stage", "--instructions", "7", "--", "/usr/bin/bwrap"]);
    }

    #[test]
    fn i3_nothing_secret_stands_in_the_command_line() {
        let plan = Bubblewrap { program: "/usr/bin/bwrap".into() }.plan(&spec(), HostUser::Caller).unwrap();
        assert!(!plan.display().iter().any(|word| word.contains("--setenv")));
    }
}
