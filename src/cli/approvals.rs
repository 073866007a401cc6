//! `cloister approvals …`: what waits for an answer, answering it, and taking answers back.

mod answer;
mod describe;
mod list;
mod page;
pub(super) mod request;
mod watch;

use std::process::ExitCode;

use super::arguments::ApprovalsCommand;
use super::error::CommandError;
use super::output::Output;
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
        ApprovalsCommand::Forget { .. } => Err(CommandError::internal("not written yet")),
        ApprovalsCommand::Watch => watch::run(paths, output).await,
        ApprovalsCommand::Open => page::run(paths, output).await,
    }
}
