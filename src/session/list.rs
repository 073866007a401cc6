//! Which sandboxes run, and where.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::name::{CloisterName, ProjectName};
use crate::paths::Paths;
use crate::project::{self, ProjectError};
use crate::sandbox::{Receipt, ReceiptError};

/// One running sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// What was done to make it.
    pub receipt: Receipt,
    /// How long it has been running.
    pub uptime: Duration,
}

/// The sandboxes that can be told to run.
#[derive(Debug)]
pub struct Listing {
    /// Those that run now; a receipt whose first process is gone is none.
    pub running: Vec<Running>,
    /// The receipts that can't be read.
    pub unreadable: Vec<ReceiptError>,
}

/// The sandboxes that run now.
pub fn running(paths: &Paths) -> Result<Listing, ReceiptError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let found = Receipt::load_all(&paths.receipts_dir())?;
    let alive = found.receipts.into_iter().filter(Receipt::is_running);
    let running = alive.map(|receipt| {
        let uptime = now.saturating_sub(Duration::from_secs(receipt.started));
        Running { receipt, uptime }
    });
    Ok(Listing { running: running.collect(), unreadable: found.unreadable })
}

/// The host directory of a cloister, running or known by its project; `None` when there is no such name.
pub fn directory_of(name: &CloisterName, paths: &Paths) -> Result<Option<PathBuf>, ProjectError> {
    // A receipt that can't be read says nothing; the registry still may.
    if let Ok(Some(receipt)) = Receipt::load(&paths.receipt_file(name)) {
        return Ok(Some(receipt.directory));
    }
    match ProjectName::parse(name.as_str()) {
        Ok(project) => project::registered(&project, paths),
        Err(_) => Ok(None),
    }
}
