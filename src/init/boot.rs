//! What the first process is told at its start, and how it takes over its descriptors.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use serde::{Deserialize, Serialize};

use super::InitError;

/// A port inside the sandbox and the guardian's socket behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// The TCP port on 127.0.0.1.
    pub port: u16,
    /// The path of the Unix socket.
    pub socket: String,
}

/// The settings of the first process. They hold the sandbox's token and are written to a pipe, never to a file
/// or a command line.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// How many processes there may be, where nothing outside counts them.
    pub max_processes: Option<u32>,
    /// The variables that every session gets.
    pub environment: BTreeMap<String, String>,
    /// The ways to the guardian.
    pub relays: Vec<Relay>,
    /// What must be found mounted.
    pub anchors: Vec<Anchor>,
}

/// A directory or file that was checked on the host, and where it is seen inside. Between check and mount a path can
/// be made to lead elsewhere (F10); the thing itself can't be exchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchor {
    /// Where it is seen.
    pub target: String,
    /// The number of its file system.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

impl Anchor {
    fn holds(&self) -> bool {
        fs::symlink_metadata(&self.target)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode))
    }
}

/// Becomes undumpable, reads the settings, and lets go of the inherited descriptors.
pub(super) fn take_over() -> Result<(UnixListener, Boot), InitError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| InitError::setup("become undumpable")(error.into()))?;
    let own = |descriptor: &dyn AsFd| descriptor.as_fd().try_clone_to_owned();
    let listener = own(&io::stdin()).map_err(InitError::setup("take over the socket"))?;
    let mut text = Vec::new();
    let pipe = own(&io::stdout()).map_err(InitError::Boot)?;
    File::from(pipe).read_to_end(&mut text).map_err(InitError::Boot)?;
    let boot: Boot = serde_json::from_slice(&text).map_err(InitError::Settings)?;
    if let Some(lost) = boot.anchors.iter().find(|anchor| !anchor.holds()) {
        return Err(InitError::Exchanged(lost.target.clone()));
    }
    if let Some(most) = boot.max_processes {
        let most = Some(u64::from(most));
        setrlimit(Resource::Nproc, Rlimit { current: most, maximum: most })
            .map_err(|error| InitError::setup("limit the number of processes")(error.into()))?;
    }
    silence().map_err(InitError::setup("close the inherited descriptors"))?;
    Ok((UnixListener::from(listener), boot))
}

/// Points the standard descriptors at nothing: sessions have their own, and the start's must not stay open.
fn silence() -> io::Result<()> {
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    Ok(())
}
