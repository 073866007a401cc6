//! The words of the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::approvals::Start;
use crate::approval::Scope;
use crate::audit::{Event, Head, HostFilter};
use crate::config::{Network, parse_duration};
use crate::name::{CloisterName, ProjectName};

/// Runs an AI coding agent in a sandbox where it may do anything and harm nothing.
#[derive(Debug, Parser)]
#[command(name = "cloister", version, max_term_width = 100, disable_help_subcommand = true)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// Write what happens inside to the developer's log
    #[arg(long, global = true)]
    pub(super) debug: bool,
    /// Show results and errors only
    #[arg(long, global = true)]
    pub(super) silent: bool,
    /// Print results as JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Use colours
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    pub(super) color: Color,
    /// Write the developer's log to this file
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) debuglog: Option<PathBuf>,
}

/// When colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// On a terminal, unless `NO_COLOR` is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create or enter the sandbox of this directory: a shell at /work, or CMD with its exit code
    Start(StartArguments),
    /// Run a command in a running sandbox
    Exec {
        /// The cloister
        name: CloisterName,
        /// The command
        #[arg(last = true, required = true, value_name = "CMD")]
        argv: Vec<OsString>,
    },
    /// Stop a sandbox: this directory's, the named one, or all
    Stop {
        /// The cloister
        #[arg(conflicts_with = "all")]
        name: Option<CloisterName>,
        /// Stop every sandbox
        #[arg(long)]
        all: bool,
    },
    /// Stop every sandbox and the guardian
    Shutdown,
    /// List the running sandboxes
    #[command(visible_alias = "ls")]
    List,
    /// Print the host directory of a cloister
    Path {
        /// The cloister
        name: CloisterName,
    },
    /// Remove what ended sandboxes, killed commands and vanished projects left behind
    Gc {
        /// Show what would be removed, and remove nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// The proxy through which every sandbox reaches the network
    #[command(subcommand)]
    Guardian(GuardianCommand),
    /// List and answer what sandboxes ask for
    Approvals(ApprovalsArguments),
    /// Inside a sandbox: ask its user whether a host may be reached, and wait for the answer
    Request {
        /// HOST or HOST:PORT
        #[arg(value_name = "HOST[:PORT]")]
        target: String,
        /// Say why, in at most 1 KiB
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Show, follow or check the audit log
    Audit(AuditArguments),
    /// Say whether a host can be reached, by which rule, and what to type to change that
    Why {
        /// HOST or HOST:PORT
        #[arg(value_name = "HOST[:PORT]")]
        target: String,
        /// The cloister that asks; this directory's by default
        #[arg(long, value_name = "NAME")]
        cloister: Option<CloisterName>,
    },
    /// The settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Say whether this host can run sandboxes, and how to mend what it lacks
    Doctor {
        /// Start a throw-away sandbox and try to break out of it
        #[arg(long)]
        probe: bool,
    },
    /// The processes inside a sandbox
    #[command(subcommand, hide = true)]
    SandboxInit(InitCommand),
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Show the settings that hold for this directory's project, as they could be written into a file
    Show {
        /// Say where each value comes from; with what is granted to the running session
        #[arg(long)]
        origins: bool,
    },
    /// Print the path of the file that holds for all projects
    Path,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that is given or not")]
pub(super) struct StartArguments {
    /// Name the project (default: its directory)
    #[arg(short, long = "project", value_name = "NAME")]
    pub(super) project: Option<ProjectName>,
    /// Open no session, and print the cloister's name
    #[arg(short, long, conflicts_with = "argv")]
    pub(super) detach: bool,
    /// Do without a git repository
    #[arg(long)]
    pub(super) allow_no_git: bool,
    /// As root, run even where the sandbox's processes are root's on this host
    #[arg(long)]
    pub(super) allow_root: bool,
    /// How far it reaches: nowhere, or through the guardian (default: key `network`)
    #[arg(long, value_name = "TIER", value_enum, env = "CLOISTER_NETWORK")]
    pub(super) network: Option<Tier>,
    /// Show what would be started, and start nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// The command (default: a shell)
    #[arg(last = true, value_name = "CMD")]
    pub(super) argv: Vec<OsString>,
}

/// How far a sandbox reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Tier {
    /// Nowhere: nothing answers
    None,
    /// Through the guardian
    Guarded,
    /// The internet and no private network (not yet)
    Inet,
    /// Whatever the host reaches (not yet)
    Full,
}

impl From<Tier> for Network {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::None => Self::None,
            Tier::Guarded => Self::Guarded,
            Tier::Inet => Self::Inet,
            Tier::Full => Self::Full,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum GuardianCommand {
    /// Start it in the background
    Start {
        /// Put this binary in the place of a guardian that runs: no connection breaks, new ones come to the new guardian,
        /// and the old one ends with its last tunnel. An older version is replaced like this by every command that needs
        /// the guardian
        #[arg(long)]
        upgrade: bool,
    },
    /// Stop it: open connections end at once, and running sandboxes then have no way out
    Stop {
        /// Stop it although sandboxes are running
        #[arg(long)]
        yes: bool,
        /// First let open connections go on for so long, such as 30s; new ones are refused. A second `stop` ends the wait
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        drain: Option<Duration>,
    },
    /// Say how it is: settings, audit log, and what each cloister does
    Status {
        /// Print its measurements as text for Prometheus
        #[arg(long)]
        metrics: bool,
    },
    /// Read the settings again; changed files are noticed without it
    Reload,
    /// Run it in the foreground
    Run {
        /// Take over from a guardian that runs, as `start --upgrade` does
        #[arg(long)]
        replace: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct ApprovalsArguments {
    #[command(subcommand)]
    pub(super) command: Option<ApprovalsCommand>,
}

#[derive(Debug, Subcommand)]
pub(super) enum ApprovalsCommand {
    /// List what waits for an answer (the default)
    List,
    /// Allow what is asked for
    Allow(AnswerArguments),
    /// Deny what is asked for
    Deny(AnswerArguments),
    /// Take a remembered answer back
    Forget {
        /// Its pattern, such as `api.example.org:443`
        rule: String,
        /// Only an answer of this scope: session, project or global
        #[arg(long)]
        scope: Option<Scope>,
        /// The cloister whose answer it is; any by default
        #[arg(long, value_name = "NAME")]
        cloister: Option<CloisterName>,
    },
    /// Show and answer what comes, live in this terminal
    Watch,
    /// Print a link to the page on which requests are answered, and open it; it logs in one browser, once
    Open,
}

/// An answer, and what it is to.
#[derive(Debug, Args)]
pub(super) struct AnswerArguments {
    /// The requests: their numbers, or at least four digits with which they begin
    #[arg(value_name = "ID", required = true)]
    pub(super) ids: Vec<Start>,
    /// How far it reaches: once (what waits now), session (this cloister until it is stopped), project or global (for
    /// good)
    #[arg(long, default_value_t = Scope::Once)]
    pub(super) scope: Scope,
    /// It is about all hosts beside the one that is asked for, such as `*.example.org`
    #[arg(long)]
    pub(super) wildcard: bool,
    /// Why, for those who read the log
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct AuditArguments {
    #[command(subcommand)]
    pub(super) command: Option<AuditCommand>,
    /// Go on with what is written from now on
    #[arg(long)]
    pub(super) follow: bool,
    /// Only this cloister's records
    #[arg(long, value_name = "NAME")]
    pub(super) cloister: Option<CloisterName>,
    /// Only records from this time on: RFC 3339, or a duration such as 1h
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<String>,
    /// Only records up to this time
    #[arg(long, value_name = "TIME")]
    pub(super) until: Option<String>,
    /// Only this event, such as proxy.deny or sandbox.start; may be given again
    #[arg(long, value_name = "EVENT", conflicts_with = "decision")]
    pub(super) event: Vec<Event>,
    /// Only what the proxy decided so
    #[arg(long, value_enum)]
    pub(super) decision: Option<Verdict>,
    /// Only records about this host, or about all below it: *.example.com
    #[arg(long, value_name = "HOST")]
    pub(super) host: Option<HostFilter>,
    /// Only records with this reason, such as `not_allowed`
    #[arg(long, value_name = "REASON")]
    pub(super) reason: Option<String>,
    /// Only the last ones, so many
    #[arg(short = 'n', long, value_name = "N")]
    pub(super) lines: Option<usize>,
}

/// What the proxy decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Verdict {
    /// Let through
    Allow,
    /// Refused
    Deny,
}

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Recompute the chains and name the first bad line
    Verify {
        /// A head that was noted elsewhere; finds records that were cut off
        #[arg(long, value_name = "HEAD")]
        expect: Option<Head>,
    },
    /// Print the head of the log, to be noted elsewhere
    Head,
}

#[derive(Debug, Subcommand)]
pub(super) enum InitCommand {
    /// Lays out what the sandbox of root sees, becomes an unprivileged user, and then the program
    Stage {
        /// The descriptor from which its instructions are read
        #[arg(long)]
        instructions: i32,
        #[arg(last = true)]
        argv: Vec<OsString>,
    },
    /// The first process of a sandbox
    First,
    /// Changes the mounts of a running sandbox
    Adjust,
    /// Heads a session and becomes its command
    Session {
        #[arg(long)]
        terminal: bool,
        #[arg(last = true)]
        argv: Vec<OsString>,
    },
    /// Carries standard input and output through the guardian, as `ssh` wants it from its `ProxyCommand`
    Connect {
        /// The host
        host: String,
        /// The port
        port: u16,
    },
    /// Tries what a sandbox must not be able to do
    Probe,
    /// What such attempts are aimed at
    Canary {
        /// By which its process can be found
        mark: String,
    },
    /// Holds so many bytes of memory
    Hold { bytes: u64 },
}
