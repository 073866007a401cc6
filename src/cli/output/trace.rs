//! The developer's log: to a file, and only when asked for.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

use super::super::arguments::Global;
use super::super::error::CommandError;
use crate::paths::{self, Paths};

/// Opens the log when `--debug` or `--debuglog` asks for it.
pub(in crate::cli) fn begin(global: &Global, paths: &Paths) -> Result<(), CommandError> {
    let path = match &global.debuglog {
        Some(path) => path.clone(),
        None if global.debug => paths.debug_log(),
        None => return Ok(()),
    };
    if global.debuglog.is_none() {
        paths::ensure_private_dir(paths.state_dir())?;
    }
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| CommandError::user(error).because("cannot open the developer's log"))?;
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(EnvFilter::new("cloister=debug,warn"))
        .with_writer(Mutex::new(file))
        .init();
    Ok(())
}
