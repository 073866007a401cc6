//! `stop`: ends a sandbox, revokes its token, and leaves nothing behind; goes on past errors and reports all.

use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::files::{Baseline, Change, FilesError};
use crate::git::{GitError, Repository};
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
    /// What has changed of all that the host would execute, since the sandbox was made.
    pub changes: Vec<Change>,
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
    /// What it left in the repository stays: another sandbox may need it.
    #[error(transparent)]
    Receipt(ReceiptError),
    /// What has changed can't be told.
    #[error(transparent)]
    Files(#[from] FilesError),
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
            Ok(true) => Ok(Stopped { name: name.clone(), problems: Vec::new(), changes: Vec::new() }),
            Ok(false) => Err(StopError::NotRunning(name.clone())),
            Err(problem) => Ok(Stopped { name: name.clone(), problems: vec![problem], changes: Vec::new() }),
        };
    };
    if receipt.is_running() {
        ask_to_end(&receipt.socket).await;
    }
    let mut problems: Vec<StopProblem> = {
        let _shared = Lock::acquire(&paths.placeholder_lock())?;
        let in_use = Receipt::placeholders_in_use(&paths.receipts_dir(), name)?;
        let torn_down = receipt.tear_down(&in_use).into_iter().map(StopProblem::Teardown).collect::<Vec<_>>();
        // What it left in the repository stays on record as long as somebody else may need it.
        let unreadable = in_use.unreadable.into_iter().filter(|_| !receipt.placeholders.is_empty());
        torn_down.into_iter().chain(unreadable.map(StopProblem::Receipt)).collect()
    };
    problems.extend(revoke(name, Some(&receipt), paths).await.err());
    let baseline = paths.baseline_file(name);
    let changes = changes(&receipt, &baseline).unwrap_or_else(|error| {
        problems.push(StopProblem::Files(error));
        Vec::new()
    });
    // What only the user can mend is said once.
    let is_over = |problem: &StopProblem| matches!(problem, StopProblem::Teardown(error) if error.is_users());
    if problems.iter().all(is_over) {
        let removed = [&file, &baseline].map(|file| paths::remove_if_present(file));
        problems.extend(removed.into_iter().filter_map(Result::err).map(StopProblem::Paths));
    }
    Ok(Stopped { name: name.clone(), problems, changes })
}

/// What has changed since the baseline was taken.
fn changes(receipt: &Receipt, file: &Path) -> Result<Vec<Change>, FilesError> {
    match Baseline::load(file)? {
        // A project that has gone can't be executed.
        Some(baseline) if baseline.directory == receipt.directory && baseline.directory.exists() => {
            // Without its `.git`, a project has no index; git on the host takes the one above.
            let nested = match Repository::find(&baseline.directory) {
                Ok(repository) => repository.gitlinks().ok(),
                Err(GitError::NoRepository(_)) => Some(Vec::new()),
                Err(_) => None,
            };
            baseline.changes(nested.as_deref())
        }
        _ => Ok(Vec::new()),
    }
}

/// Stops every cloister that left a record, running or not.
pub async fn stop_all(paths: &Paths) -> Result<Vec<Result<Stopped, StopError>>, ReceiptError> {
    let mut stopped = Vec::new();
    let found = Receipt::load_all(&paths.receipts_dir())?;
    for receipt in found.receipts {
        stopped.push(stop(&receipt.cloister, paths).await);
    }
    stopped.extend(found.unreadable.into_iter().map(|error| Err(error.into())));
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
