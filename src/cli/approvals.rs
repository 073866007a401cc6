//! `cloister approvals …`: what waits for an answer, answering it, and taking answers back.

mod answer;
mod describe;
mod forget;
mod list;
mod page;
pub(super) mod request;
mod watch;

use std::process::ExitCode;

use super::arguments::ApprovalsCommand;
use super::error::CommandError;
use super::output::Output;
use crate::guardian::client::ClientError;
use crate::paths::Paths;
use crate::policy::Effect;

pub(super) use answer::Start;

pub(super) async fn run(
    command: ApprovalsCommand,
    paths: &Paths,
    output: &Output,
) -> Result<ExitCode, CommandError> {
    match command {
        ApprovalsCommand::List => list::run(paths, output).await,
        ApprovalsCommand::Allow(arguments) => answer::run(Effect::Allow, arguments, paths, output).await,
        ApprovalsCommand::Deny(arguments) => answer::run(Effect::Deny, arguments, paths, output).await,
        ApprovalsCommand::Forget(arguments) => forget::run(arguments, paths, output).await,
        ApprovalsCommand::Watch => watch::run(paths, output).await,
        ApprovalsCommand::Open => page::run(paths, output).await,
    }
}

/// What the guardian does not do; it says itself why.
fn refused(error: ClientError) -> CommandError {
    match error {
        ClientError::Refused(why) => CommandError::user(why),
        other => other.into(),
    }
}
