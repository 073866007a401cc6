//! Every error as the user sees it: what kind it is, its message, and the next command to type.

mod session;

use std::error::Error;
use std::io;
use std::process::ExitCode;

use crate::audit::{AuditError, InvalidSince, Problem, ReadError, VerifyError};
use crate::config::ConfigError;
use crate::config::decisions::DecisionsError;
use crate::files::FilesError;
use crate::git::GitError;
use crate::guardian::DaemonError;
use crate::guardian::client::{API_VERSION, ClientError, TokenError};
use crate::init::{AskError, ConnectError};
use crate::paths::PathsError;
use crate::project::{ProjectError, Refusal, SharesError};
use crate::sandbox::{ClosureError, ReceiptError};
use crate::session::doctor::DoctorError;
use crate::session::{SessionError, StartError, StopError};
use session::{doctor_hint, start_hint, stop_hint};

/// What an error means for the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The user or the configuration: 1.
    User,
    /// Cloister or the system: 3.
    Internal,
    /// A command was given and never began: 125.
    NeverBegan,
    /// The sandbox ended, and with it a command that ran: 137, as for every program that is killed.
    Killed,
}

/// An error at the edge.
#[derive(Debug)]
pub(super) struct CommandError {
    kind: Kind,
    source: Box<dyn Error + Send + Sync>,
    context: Option<&'static str>,
    hints: Vec<String>,
    is_quiet: bool,
    has_begun: bool,
}

impl CommandError {
    fn new(kind: Kind, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            kind,
            source: source.into(),
            context: None,
            hints: Vec::new(),
            is_quiet: false,
            has_begun: false,
        }
    }

    pub(super) fn user(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Kind::User, source)
    }

    pub(super) fn internal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Kind::Internal, source)
    }

    /// The result can't be printed; a reader that has left is told nothing more.
    pub(super) fn output(error: io::Error) -> Self {
        let is_quiet = error.kind() == io::ErrorKind::BrokenPipe;
        Self { is_quiet, ..Self::internal(error).because("cannot print the result") }
    }

    /// Says what was being done.
    pub(super) fn because(self, context: &'static str) -> Self {
        Self { context: Some(context), ..self }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Marks that a command was given; unless it had begun, the code says that it never did.
    pub(super) fn never_began(self) -> Self {
        if self.has_begun { self } else { Self { kind: Kind::NeverBegan, ..self } }
    }

    pub(super) fn code(&self) -> ExitCode {
        ExitCode::from(match self.kind {
            Kind::User => 1,
            Kind::Internal => 3,
            Kind::NeverBegan => 125,
            Kind::Killed => 137,
        })
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    pub(super) fn message(&self) -> String {
        self.context.map_or_else(|| self.source.to_string(), str::to_owned)
    }

    /// What stands behind the message.
    pub(super) fn cause(&self) -> Option<&(dyn Error + 'static)> {
        let source: &(dyn Error + 'static) = self.source.as_ref();
        if self.context.is_some() { Some(source) } else { source.source() }
    }

    pub(super) fn hints(&self) -> &[String] {
        &self.hints
    }
}

/// Makes every conversion of one kind of error.
macro_rules! conversions {
    ($($error:ty: $hint:expr;)+) => {$(
        impl From<$error> for CommandError {
            fn from(error: $error) -> Self {
                let hint: Option<String> = $hint(&error);
                hint.into_iter().fold(Self::user(error), Self::hint)
            }
        }
    )+};
}

conversions! {
    PathsError: paths_hint;
    ConfigError: no_hint;
    ProjectError: project_hint;
    ReceiptError: receipt_hint;
    ClientError: client_hint;
    DaemonError: daemon_hint;
    StartError: start_hint;
    StopError: stop_hint;
    DoctorError: doctor_hint;
    AuditError: audit_hint;
    ReadError: read_hint;
    VerifyError: verify_hint;
    InvalidSince: no_hint;
    ConnectError: connect_hint;
    AskError: ask_hint;
    DecisionsError: decisions_hint;
}

impl From<SessionError> for CommandError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Start(error) => error.into(),
            error @ SessionError::Failed(_) => Self::user(error).never_began(),
            SessionError::Silent => {
                Self::user(error).hint("`cloister stop`, then `cloister start`, makes it anew")
            }
            SessionError::Begun(error) => {
                let kind = if matches!(*error, SessionError::Ended) { Kind::Killed } else { Kind::Internal };
                Self { kind, has_begun: true, ..Self::from(*error) }
            }
            SessionError::Ended => {
                Self::user(error).hint("see `cloister list`; `cloister start` makes it anew")
            }
            error @ (SessionError::Garbage(_) | SessionError::Io { .. }) => Self::internal(error),
        }
    }
}

fn connect_hint(error: &ConnectError) -> Option<String> {
    match error {
        ConnectError::Refused { hint, .. } => Some(hint.clone()),
        ConnectError::NoToken | ConnectError::NoHost(_) | ConnectError::Io { .. } => None,
    }
}

fn decisions_hint(error: &DecisionsError) -> Option<String> {
    match error {
        DecisionsError::Full(path) => {
            Some(format!("take lines that are not needed out of `{}`", path.display()))
        }
        DecisionsError::Paths(error) => paths_hint(error),
        // They say it themselves.
        DecisionsError::Broken(_)
        | DecisionsError::Foreign(_)
        | DecisionsError::Pattern(_)
        | DecisionsError::Busy(_) => None,
    }
}

fn ask_hint(error: &AskError) -> Option<String> {
    match error {
        AskError::Outside => Some(
            "on the host, see `cloister approvals`, or add a rule to `proxy.allow` in your settings".into(),
        ),
        AskError::NoWayOut => {
            Some("ask the host's user to stop it and to run `cloister start --network guarded`".into())
        }
        AskError::Reason { .. } => Some("say it shorter, and put the rest where the user can read it".into()),
        AskError::Refused { hint, .. } => hint.clone(),
        AskError::Silent { .. } => Some("ask the host's user to look at `cloister guardian status`".into()),
        AskError::Target(_) | AskError::Io { .. } => None,
    }
}

/// For errors whose message says what to do.
fn no_hint<T>(_: &T) -> Option<String> {
    None
}

fn audit_hint(error: &AuditError) -> Option<String> {
    match error {
        AuditError::Open { source, .. }
        | AuditError::Write { source, .. }
        | AuditError::Sync { source, .. } => io_hint(source),
        AuditError::Busy { .. } => Some(ending(None, "kill")),
        AuditError::NotAFile { path } => Some(format!("move `{}` away", path.display())),
        // They say it themselves.
        AuditError::Damaged { .. } | AuditError::Changed { .. } | AuditError::Poisoned => None,
    }
}

fn read_hint(error: &ReadError) -> Option<String> {
    match error {
        ReadError::Read { source, .. } => io_hint(source),
        ReadError::NotAnEntry { .. } => {
            Some("see with `cloister audit verify` whether somebody changed it".into())
        }
    }
}

fn verify_hint(error: &VerifyError) -> Option<String> {
    match error {
        VerifyError::Read { source, .. } => io_hint(source),
        // A head was compared with, or the message tells what to do.
        VerifyError::BadLine { problem: Problem::WrongHead, .. }
        | VerifyError::Truncated { .. }
        | VerifyError::Removed { .. } => None,
        VerifyError::Gone { .. } | VerifyError::BadLine { .. } | VerifyError::Differs { .. } => {
            Some("compare with a head that you noted: `cloister audit verify --expect HEAD`".into())
        }
    }
}

fn paths_hint(error: &PathsError) -> Option<String> {
    match error {
        PathsError::NoHome => Some("set `HOME`".into()),
        PathsError::SocketPathTooLong { .. } => Some("set `XDG_RUNTIME_DIR` to a shorter path".into()),
        PathsError::NotPrivate { path, .. } => {
            Some(format!("run `chmod go-w {}` if it is yours, or move it away", path.display()))
        }
        PathsError::Io { source, .. } => io_hint(source),
    }
}

fn io_hint(error: &io::Error) -> Option<String> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("the disk is full: free some space and try again; nothing was left half-done".into())
        }
        io::ErrorKind::PermissionDenied => Some("see who owns it with `ls -ld`".into()),
        io::ErrorKind::ReadOnlyFilesystem => Some("it has to be a place that can be written".into()),
        _ => None,
    }
}

fn project_hint(error: &ProjectError) -> Option<String> {
    match error {
        ProjectError::Git(GitError::NoRepository(_)) => {
            Some("run `git init`, or go to a repository, or pass `--allow-no-git`".into())
        }
        ProjectError::Git(GitError::Bare(_)) => Some("go to one of its worktrees".into()),
        ProjectError::Git(GitError::ForeignOwner(path)) => {
            Some(format!("run `git config --global --add safe.directory {}` if you trust it", path.display()))
        }
        ProjectError::Git(GitError::Redirected { .. }) => {
            Some("see who wrote its `.git`; in a submodule, go to the repository around it".into())
        }
        ProjectError::Git(GitError::Link(_)) => Some("replace the link by a copy of what it leads to".into()),
        ProjectError::Git(GitError::Closed { path, .. }) => Some(format!("chmod u+rwx {}", path.display())),
        ProjectError::Git(GitError::Odd(path)) => {
            Some(format!("look at `{}`: a sandbox may have made it", path.display()))
        }
        ProjectError::Git(GitError::Endless(_)) => {
            Some("look for pipes in its `.git`, and in what it includes".into())
        }
        ProjectError::Git(GitError::OpenHooks(_)) => {
            Some("give the hooks a directory of their own: `git config core.hooksPath .githooks`".into())
        }
        ProjectError::Widened { .. } => {
            Some("put its `.git` back, or start in the other project's own directory".into())
        }
        ProjectError::Git(GitError::Read { .. }) => Some("run `git status` there".into()),
        ProjectError::Name(_) | ProjectError::NameTaken { .. } => {
            Some("choose another name: `cloister start -p NAME`".into())
        }
        ProjectError::Directory { .. } => Some("go to a directory that exists".into()),
        ProjectError::NotText(_) => Some("rename the directory".into()),
        ProjectError::AboveHome { .. } => Some("go to the project's own directory".into()),
        ProjectError::HoldsOwnFiles { .. } => {
            Some("move one of them away; a binary is installed outside by `make install`".into())
        }
        ProjectError::Paths(error) => paths_hint(error),
        ProjectError::Registry { path, .. } => Some(format!("mend `{0}`, or move it away", path.display())),
    }
}

/// The next step for the first problem; the others get theirs when it is mended.
fn shares_hint(error: &SharesError) -> Option<String> {
    Some(match &error.0.first()?.refusal {
        Refusal::Missing | Refusal::Unknown(_) => "make it, or take it out of the settings".into(),
        Refusal::NoFile | Refusal::Socket(_) | Refusal::Alive(_) => {
            "share a directory without sockets; services are reached through the guardian".into()
        }
        Refusal::Private(_) => "share a directory beside it, or a part without keys".into(),
        Refusal::Own(_) | Refusal::Project(_) => "share a directory that lies elsewhere".into(),
        Refusal::Obeyed(_) => "share it read-only (`mode: ro`), or a copy that the host does not use".into(),
        Refusal::GitData(_) => "share the working tree, or share it read-only (`mode: ro`)".into(),
        Refusal::TooLarge(_) => {
            "share the part of it that is needed, or share it read-only (`mode: ro`)".into()
        }
        Refusal::Closed(place) => {
            format!(
                "look at what `{}` is and open or remove it, or share read-only (`mode: ro`)",
                place.display()
            )
        }
        Refusal::Place { .. } => "choose another `target`, such as `/mnt/NAME` or `/data/NAME`".into(),
        Refusal::NoPoint { point, .. } => {
            format!(
                "make `{}` (no link, of the same kind as the source), or choose another `target`",
                point.display()
            )
        }
        Refusal::SamePlace(place) => {
            let name = place.file_name().unwrap_or_default().to_string_lossy();
            format!("give one of them another place: `mounts: [{{source: …, target: /refs/{name}-2}}]`")
        }
    })
}

fn closure_hint(error: &ClosureError) -> Option<String> {
    match error {
        ClosureError::Missing(paths) => {
            let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            Some(format!("run `nix-store --realise {}`, or take them out of `tools`", paths.join(" ")))
        }
        ClosureError::UntrustedNix(_) => Some("install Nix for all users, or leave `tools` empty".into()),
        ClosureError::Refused(_) => Some("run `nix-store --verify`".into()),
        ClosureError::TooMany(_) => Some("leave `tools` empty: the whole store is shown then".into()),
        ClosureError::Start(source) => io_hint(source),
    }
}

fn files_hint(error: &FilesError) -> Option<String> {
    match error {
        FilesError::Link(_) => Some("replace the link by a copy of what it leads to".into()),
        FilesError::LinkInGit(path) => {
            Some(format!("see where it leads with `ls -l {0}`, and remove it: `rm {0}`", path.display()))
        }
        FilesError::Odd(_) => Some("see what it is with `ls -l`, and move it away".into()),
        FilesError::SecondName { path, .. } => {
            Some(format!("give it a name of its own: `cp -p {0} {0}.new && mv {0}.new {0}`", path.display()))
        }
        FilesError::Unfit(_) => Some("name a path as in `files: {protect: [deploy/release.sh]}`".into()),
        FilesError::TooMany { .. } => Some("name their directory in `files.mask`".into()),
        FilesError::Walk { source, .. } => io_hint(source),
        FilesError::Paths(error) => paths_hint(error),
        FilesError::Kept { path, .. } => {
            Some(format!("move `{}` away; see with `--dry-run` what is hidden then", path.display()))
        }
        FilesError::Baseline { path, .. } => {
            Some(format!("move `{}` away; what changed until now is not shown then", path.display()))
        }
    }
}

fn receipt_hint(error: &ReceiptError) -> Option<String> {
    match error {
        ReceiptError::Paths(error) => paths_hint(error),
        ReceiptError::Read { source, .. } => io_hint(source),
        ReceiptError::Parse { path, .. } => {
            Some(format!("move `{}` away if no sandbox is running", path.display()))
        }
    }
}

fn client_hint(error: &ClientError) -> Option<String> {
    match error {
        ClientError::NotRunning => Some("run `cloister guardian start`".into()),
        ClientError::DoesNotStart(_) => {
            Some("run `cloister guardian run` to see it in the foreground".into())
        }
        ClientError::Stalled { pid, .. } => Some(ending(*pid, "kill -9")),
        ClientError::Unreachable { pid } | ClientError::DamagedKey { pid, .. } => Some(ending(*pid, "kill")),
        // What it said ends with its own hint.
        ClientError::NotReplaced(said) if said.contains("hint: ") => None,
        ClientError::NotReplaced(_) => {
            Some("run `cloister guardian stop --yes` (open connections end), then try again".into())
        }
        ClientError::OtherVersion { api, .. } if *api < API_VERSION => {
            Some("run `cloister guardian start`, which replaces it".into())
        }
        ClientError::OtherVersion { .. } => {
            let hint = "use the version that the guardian has, or run `cloister guardian stop --yes` (open connections end) and try again";
            Some(hint.into())
        }
        // It says what to do.
        ClientError::Refused(said) if said.contains("run `") => None,
        ClientError::Refused(_) | ClientError::Http(_) | ClientError::Answer(_) => {
            Some("see `cloister guardian status`".into())
        }
        ClientError::Paths(error) => paths_hint(error),
        ClientError::Io { source, .. } => io_hint(source),
    }
}

/// Says how to end a guardian that does not listen.
fn ending(pid: Option<i32>, kill: &str) -> String {
    match pid {
        Some(pid) => format!("if it does not recover, run `{kill} {pid}` and then `cloister guardian start`"),
        None => format!(
            "find its process with `pgrep -af 'guardian run'`; if it does not recover, end it with `{kill}`, then run \
             `cloister guardian start`"
        ),
    }
}

fn daemon_hint(error: &DaemonError) -> Option<String> {
    match error {
        DaemonError::Running => Some("see `cloister guardian status`".into()),
        DaemonError::Paths(error) | DaemonError::Token(TokenError::Paths(error)) => paths_hint(error),
        DaemonError::Io { source, .. } => io_hint(source),
        DaemonError::Take(_) => {
            Some("run `cloister guardian stop --yes` (open connections end), then try again".into())
        }
        DaemonError::Token(TokenError::Read { path, .. } | TokenError::Parse { path, .. }) => {
            let name = path.file_stem().unwrap_or_default().display();
            Some(format!("run `cloister stop {name}`: without its token it has no way out"))
        }
        DaemonError::Audit(error) => audit_hint(error),
        DaemonError::Restore(_) => {
            Some("run `cloister stop NAME` for the cloister that is named, then try again".into())
        }
        DaemonError::Config(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_log_says_what_to_do() {
        let path = || "audit.jsonl".into();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let hints = |error: CommandError| error.hints().join("; ");
        let written = hints(AuditError::Write { path: path(), source: full() }.into());
        assert!(written.contains("the disk is full"), "{written}");
        let begun = hints(DaemonError::Audit(AuditError::Busy { dir: path() }).into());
        assert!(begun.contains("pgrep -af 'guardian run'"), "{begun}");
        let broken = hints(VerifyError::Gone { path: path() }.into());
        assert!(broken.contains("cloister audit verify --expect HEAD"), "{broken}");
        assert_eq!(hints(VerifyError::Truncated { path: path(), last: 0, expected: 1 }.into()), "");
    }
}
