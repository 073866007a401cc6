//! The command line: words in, results on standard output, everything else on standard error, an exit code.

mod approvals;
mod arguments;
mod audit;
mod config;
mod doctor;
mod error;
mod guardian;
mod output;
mod sandbox;
mod why;

use std::process::ExitCode;

use clap::Parser;

use crate::init::Console;
use crate::paths::Paths;
use crate::process;
use crate::sandbox::SOCKETS;

use arguments::{ApprovalsCommand, Arguments, Command, ConfigCommand, GuardianCommand, InitCommand};
use error::CommandError;
use output::{Output, complain, line, trace};

/// Runs the command of this process and gives its exit code.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    // A stage hands on what it was given, and is told which descriptors those are.
    if !matches!(arguments.command, Command::SandboxInit(InitCommand::Stage { .. })) {
        process::keep_descriptors();
    }
    let output = Output::new(&arguments.global);
    match &arguments.command {
        Command::SandboxInit(command) => return inside(command, &output),
        // It runs inside, where none of this host's files are.
        Command::Request { target, reason } => {
            return approvals::request::run(target, reason.as_deref(), &output);
        }
        _ => {}
    }
    match run(arguments, &output) {
        Ok(code) => code,
        Err(error) => {
            output.error(&error);
            error.code()
        }
    }
}

/// Shows what the parser says: help on standard output, mistakes on standard error.
fn usage(error: &clap::Error) -> ExitCode {
    // Where nothing can be printed, the code still tells.
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Runs this binary's part inside a sandbox, or on the way there.
fn inside(command: &InitCommand, output: &Output) -> ExitCode {
    match command {
        InitCommand::Stage { instructions, argv } => {
            output.error(&CommandError::internal(crate::sandbox::perform_stage(*instructions, argv)));
            ExitCode::from(3)
        }
        InitCommand::First => match crate::init::first() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                output.error(&CommandError::internal(error));
                ExitCode::from(3)
            }
        },
        InitCommand::Adjust => match crate::init::adjust() {
            Ok(done) => line(&done).map_or(ExitCode::from(3), |()| ExitCode::SUCCESS),
            Err(error) => {
                complain(&error.to_string());
                ExitCode::from(3)
            }
        },
        InitCommand::Session { terminal, argv } => {
            let console = if *terminal { Console::Terminal } else { Console::Pipes };
            let (code, reason) = crate::init::become_command(console, argv);
            complain(&reason);
            ExitCode::from(code)
        }
        InitCommand::Connect { host, port } => {
            let token = process::environment("CLOISTER_TOKEN").and_then(|token| token.into_string().ok());
            match crate::init::connect(host, *port, &format!("{SOCKETS}/proxy.sock"), token.as_deref()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    let error = CommandError::from(error);
                    output.error(&error);
                    error.code()
                }
            }
        }
        InitCommand::Probe => told(crate::init::probe::run(), output),
        InitCommand::Canary { .. } => told(crate::init::probe::serve_as_canary(), output),
        InitCommand::Hold { bytes } => told(crate::init::probe::hold_memory(*bytes), output),
    }
}

fn told(result: std::io::Result<()>, output: &Output) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&CommandError::internal(error));
            ExitCode::from(3)
        }
    }
}

fn run(arguments: Arguments, output: &Output) -> Result<ExitCode, CommandError> {
    let paths = Paths::from_environment(process::environment)?;
    trace::begin(&arguments.global, &paths)?;
    if let Command::Guardian(GuardianCommand::Run { replace }) = &arguments.command {
        return guardian::run_daemon(*replace, &paths);
    }
    crate::session::sweep(&paths);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::internal(error).because("cannot start the event loop"))?;
    let result = runtime.block_on(dispatch(arguments.command, &paths, output));
    // A thread may still wait for input that nobody wants any more.
    runtime.shutdown_background();
    result
}

async fn dispatch(command: Command, paths: &Paths, output: &Output) -> Result<ExitCode, CommandError> {
    match command {
        Command::Start(arguments) => sandbox::start(arguments, paths, output).await,
        Command::Exec { name, argv } => sandbox::exec(&name, argv, paths).await,
        Command::Stop { name, all } => sandbox::stop(name, all, paths, output).await,
        Command::Shutdown => sandbox::shutdown(paths, output).await,
        Command::List => sandbox::list(paths, output),
        Command::Gc { dry_run } => sandbox::gc::run(dry_run, paths, output).await,
        Command::Path { name } => sandbox::path(&name, paths),
        Command::Guardian(GuardianCommand::Start { upgrade }) => {
            guardian::start(upgrade, paths, output).await
        }
        Command::Guardian(GuardianCommand::Stop { yes, drain }) => {
            guardian::stop(yes, drain.unwrap_or_default(), paths, output).await
        }
        Command::Guardian(GuardianCommand::Status { metrics }) => {
            guardian::status(metrics, paths, output).await
        }
        Command::Guardian(GuardianCommand::Reload) => guardian::reload(paths, output).await,
        Command::Guardian(GuardianCommand::Run { replace }) => guardian::run_daemon(replace, paths),
        Command::Audit(arguments) => audit::run(arguments, paths, output).await,
        Command::Why { target, cloister } => why::run(&target, cloister.as_ref(), paths, output).await,
        Command::Config(ConfigCommand::Show { origins }) => config::show(origins, paths, output),
        Command::Config(ConfigCommand::Path) => config::path(paths),
        Command::Doctor { probe: false } => doctor::diagnose(paths, output),
        Command::Doctor { probe: true } => doctor::probe(paths, output).await,
        Command::Approvals(arguments) => {
            let command = arguments.command.unwrap_or(ApprovalsCommand::List);
            approvals::run(command, paths, output).await
        }
        Command::Request { target, reason } => {
            Ok(approvals::request::run(&target, reason.as_deref(), output))
        }
        Command::SandboxInit(_) => Err(CommandError::user("`sandbox-init` runs inside a sandbox only")),
    }
}
