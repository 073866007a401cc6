//! The inside of `cloister doctor --probe`: tries what a sandbox must not be able to do, and tells what came of it.
//!
//! It is this binary once more, started as `cloister sandbox-init probe` with a list of attacks on standard input.
//! It knows nothing of sandboxes: outside of one the same attacks succeed, and that is how they are shown to be able
//! to. `cloister sandbox-init canary` is what they are aimed at.

mod canary;
mod exhaust;
mod network;
mod reach;

pub use canary::{Canaries, Order};

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One thing that is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "attack", rename_all = "snake_case", deny_unknown_fields)]
pub enum Attack {
    /// Connects and waits for the canary's greeting; nothing expected means that connecting is enough.
    Connect {
        /// Where to.
        to: Endpoint,
        /// The greeting.
        expect: String,
    },
    /// Connects, sends a request and looks for a text in the answer.
    Ask {
        /// Where to.
        to: Endpoint,
        /// What is sent.
        request: String,
        /// What the answer has to contain.
        expect: String,
    },
    /// Sends a datagram and waits for one with this text.
    Datagram {
        /// Where to.
        to: SocketAddr,
        /// The text.
        expect: String,
    },
    /// Reads a file and looks for a text in it; without one, anything readable will do. A directory is listed.
    Read {
        /// Which.
        path: PathBuf,
        /// The text.
        expect: Option<String>,
    },
    /// Opens a file for writing, and writes nothing.
    OpenForWriting {
        /// Which.
        path: PathBuf,
    },
    /// Looks for a text in the command line and the environment of every process.
    FindProcess {
        /// The text.
        needle: String,
    },
    /// Looks whether one of these variables is set.
    Environment {
        /// Their names.
        names: Vec<String>,
    },
    /// Looks for open descriptors beyond the standard ones.
    Descriptors,
    /// Looks for capabilities.
    Capabilities,
    /// Makes a system call, which has to answer so.
    Call {
        /// Its number.
        number: i64,
        /// Its arguments.
        arguments: [u64; 6],
        /// The error number of a refusal.
        errno: i32,
    },
    /// Makes a call through the gate of another architecture.
    ForeignCall,
    /// Reads the memory of a process through `/proc`.
    Memory {
        /// Which.
        pid: i32,
    },
    /// Makes a firewall or interface change that changes nothing: gives `lo` the flags that it has.
    Interface,
    /// Traces a child of its own: what debuggers do, and must be able to.
    Debug,
    /// Starts processes until something stops it or this many run.
    Processes {
        /// How many.
        ceiling: usize,
    },
    /// Fills memory until something stops it or this much is used.
    Memories {
        /// How much, in bytes.
        ceiling: u64,
    },
    /// Opens descriptors until something stops it or this many are open.
    OpenFiles {
        /// How many.
        ceiling: usize,
    },
    /// Fills a directory with bytes until something stops it or this much is written.
    Disk {
        /// The directory.
        directory: PathBuf,
        /// How much, in bytes.
        ceiling: u64,
    },
    /// Fills a directory with empty files until something stops it or there are this many.
    Inodes {
        /// The directory.
        directory: PathBuf,
        /// How many.
        ceiling: usize,
    },
}

/// Where a connection leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A Unix socket in the file tree.
    Unix(PathBuf),
    /// A Unix socket by its name alone.
    Abstract(String),
}

/// What came of an attack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "detail", rename_all = "snake_case")]
pub enum Finding {
    /// It did what it is for.
    Reached(String),
    /// It was stopped, by this.
    Refused(String),
    /// It could not be tried.
    Failed(String),
}

impl Finding {
    fn of(result: io::Result<String>) -> Self {
        match result {
            Ok(detail) => Self::Reached(detail),
            Err(error) => Self::Refused(error.to_string()),
        }
    }

    /// Tells whether the attack did what it is for.
    pub fn is_reached(&self) -> bool {
        matches!(self, Self::Reached(_))
    }

    /// What there is to say.
    pub fn detail(&self) -> &str {
        match self {
            Self::Reached(detail) | Self::Refused(detail) | Self::Failed(detail) => detail,
        }
    }
}

impl Attack {
    /// Tries it.
    pub fn run(&self) -> Finding {
        match self {
            Self::Connect { to, expect } => Finding::of(network::connect(to, None, expect)),
            Self::Ask { to, request, expect } => Finding::of(network::connect(to, Some(request), expect)),
            Self::Datagram { to, expect } => Finding::of(network::datagram(*to, expect)),
            Self::Read { path, expect } => Finding::of(reach::read(path, expect.as_deref())),
            Self::OpenForWriting { path } => Finding::of(reach::open_for_writing(path)),
            Self::FindProcess { needle } => Finding::of(reach::find_process(needle)),
            Self::Environment { names } => Finding::of(reach::environment(names)),
            Self::Descriptors => Finding::of(reach::descriptors()),
            Self::Capabilities => Finding::of(reach::capabilities()),
            Self::Call { number, arguments, errno } => reach::call(*number, *arguments, *errno),
            Self::ForeignCall => reach::foreign_call(),
            Self::Memory { pid } => Finding::of(reach::memory(*pid)),
            Self::Interface => reach::interface(),
            Self::Debug => Finding::of(reach::debug()),
            Self::Processes { ceiling } => exhaust::processes(*ceiling),
            Self::Memories { ceiling } => exhaust::memory(*ceiling),
            Self::OpenFiles { ceiling } => exhaust::open_files(*ceiling),
            Self::Disk { directory, ceiling } => exhaust::disk(directory, *ceiling),
            Self::Inodes { directory, ceiling } => exhaust::inodes(directory, *ceiling),
        }
    }
}

/// Reads attacks from standard input, tries them in order, and writes the findings to standard output.
pub fn run() -> io::Result<()> {
    let attacks: Vec<Attack> = serde_json::from_reader(io::stdin().lock())?;
    let findings: Vec<Finding> = attacks.iter().map(Attack::run).collect();
    Ok(serde_json::to_writer(io::stdout().lock(), &findings)?)
}

/// Serves as the aim of attacks until standard input ends.
pub fn serve_as_canary() -> io::Result<()> {
    canary::serve()
}

/// Holds memory, in a process that may be killed for it: prints a line when it has all of it.
pub fn hold_memory(bytes: u64) -> io::Result<()> {
    exhaust::hold_memory(bytes)
}
