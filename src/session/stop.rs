//! `stop`: ends a sandbox, revokes its token, and leaves nothing behind; goes on past errors and reports all.

use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::guardian::client::{self, ClientError, Guardian, TokenError};
use crate::init::wire::FromHost;
use crate::name::CloisterName;
use crate::paths::{self, Lock, Paths, PathsError};
use crate::sandbox::{Receipt, ReceiptError, TeardownError};

/// How long the processes of a sandbox have to end by themselves.
const GRACE: Duration = Duration::from_secs(2);

/// What `stop` did.
#[derive(Debug)]
pub struct Stopped {
    /// Which cloister.
    pub name: CloisterName,
    /// What could not be cleared away.
    pub problems: Vec<StopProblem>,
}

/// Why there was nothing to stop.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// There is no such cloister.
    #[error("no cloister `{0}` is running")]
    NotRunning(CloisterName),
    /// The lock can't be had.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// The record can't be read.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
}

/// What went wrong while stopping went on.
#[derive(Debug, thiserror::Error)]
pub enum StopProblem {
    /// A process or socket stays.
    #[error(transparent)]
    Teardown(#[from] TeardownError),
    /// A file stays.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// The token's file stays.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The guardian still knows the token.
    #[error(transparent)]
    Guardian(#[from] ClientError),
}

/// Stops one cloister.
pub async fn stop(name: &CloisterName, paths: &Paths) -> Result<Stopped, StopError> {
    // Under the lock: what is read here must be what is stopped.
    let _lock = Lock::acquire(&paths.cloister_lock(name))?;
    stop_locked(name, paths).await
}

/// Clears away what a cloister left that runs no more; `None` when it runs.
pub(super) async fn clear(name: &CloisterName, paths: &Paths) -> Result<Option<Stopped>, StopError> {
    let _lock = Lock::acquire(&paths.cloister_lock(name))?;
    if Receipt::load(&paths.receipt_file(name))?.is_some_and(|receipt| receipt.is_running()) {
        return Ok(None);
    }
    match stop_locked(name, paths).await {
        // Somebody else was faster.
        Err(StopError::NotRunning(_)) => Ok(None),
        other => other.map(Some),
    }
}

async fn stop_locked(name: &CloisterName, paths: &Paths) -> Result<Stopped, StopError> {
    let file = paths.receipt_file(name);
    let Some(receipt) = Receipt::load(&file)? else {
        // A start that was killed before its receipt may have left a token.
        return match revoke(name, None, paths).await {
            Ok(true) => Ok(Stopped { name: name.clone(), problems: Vec::new() }),
            Ok(false) => Err(StopError::NotRunning(name.clone())),
            Err(problem) => Ok(Stopped { name: name.clone(), problems: vec![problem] }),
        };
    };
    if receipt.is_running() {
        ask_to_end(&receipt.socket).await;
    }
    let torn_down = {
        let _shared = Lock::acquire(&paths.placeholder_lock())?;
        let in_use = Receipt::placeholders_in_use(&paths.receipts_dir(), name)?;
        receipt.tear_down(&in_use)
    };
    let mut problems: Vec<StopProblem> = torn_down.into_iter().map(StopProblem::Teardown).collect();
    problems.extend(revoke(name, Some(&receipt), paths).await.err());
    if problems.is_empty() {
        problems.extend(paths::remove_if_present(&file).err().map(StopProblem::Paths));
    }
    Ok(Stopped { name: name.clone(), problems })
}

/// Stops every cloister that left a record, running or not.
pub async fn stop_all(paths: &Paths) -> Result<Vec<Result<Stopped, StopError>>, ReceiptError> {
    let mut stopped = Vec::new();
    for receipt in Receipt::load_all(&paths.receipts_dir())? {
        stopped.push(stop(&receipt.cloister, paths).await);
    }
    Ok(stopped)
}

/// Lets the first process end the others in order; what it does with that is its own affair, and bounded.
async fn ask_to_end(socket: &Path) {
    let ended = timeout(GRACE, async {
        let mut stream = UnixStream::connect(socket).await?;
        FromHost::Stop.write(&mut stream).await?;
        // The connection closes when the sandbox has ended.
        stream.read_u8().await
    });
    // Whatever came of it, the sandbox is ended by force next.
    drop(ended.await);
}

/// Takes a cloister's token back: through the guardian, or from the disk when none runs. Tells whether there was one.
async fn revoke(name: &CloisterName, receipt: Option<&Receipt>, paths: &Paths) -> Result<bool, StopProblem> {
    // A token that can't be read is as good as any to be removed; what it belonged to is not known then.
    let kept = client::token_kept_for(paths, name);
    let existed = !matches!(kept, Ok(None));
    let id = receipt.map(|receipt| receipt.id.clone()).or(kept.ok().flatten());
    let was_served = match Guardian::connect(paths).await {
        Ok(guardian) => guardian.revoke(name).await?,
        Err(ClientError::NotRunning) => {
            client::forget_token(paths, name)?;
            false
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(id) = id {
        paths::remove_directory(&paths.sockets_dir(&id))?;
        paths::remove_if_present(&paths.by_name_link(name))?;
        // Made before the receipt: a start that was killed in between left it alone.
        paths::remove_if_present(&paths.init_socket(&id))?;
    }
    Ok(existed || was_served)
}
