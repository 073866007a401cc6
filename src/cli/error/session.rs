//! What to do when a sandbox can't be started, stopped or probed.

use super::{
    client_hint, closure_hint, files_hint, io_hint, paths_hint, project_hint, receipt_hint, shares_hint,
};
use crate::sandbox::LaunchError;
use crate::session::doctor::DoctorError;
use crate::session::{StartError, StopError};

pub(super) fn start_hint(error: &StartError) -> Option<String> {
    match error {
        StartError::Root(_) => Some(
            "work as an ordinary user, or pass `--allow-root` if that is acceptable on this machine".into(),
        ),
        StartError::NoDocker => Some("set `backend: bubblewrap` or `backend: auto`".into()),
        StartError::Project(error) => project_hint(error),
        StartError::Shares(error) => shares_hint(error),
        StartError::Tools(error) => closure_hint(error),
        StartError::Files(error) => files_hint(error),
        StartError::Guardian(error) => client_hint(error),
        StartError::Paths(error) => paths_hint(error),
        StartError::Receipt(error) => receipt_hint(error),
        StartError::Launch(error) => launch_hint(error),
        StartError::Io { source, .. } => io_hint(source),
        StartError::Forbidden { diagnosis, .. } => Some(diagnosis.fix().into()),
        StartError::OtherDirectory { name, .. } => {
            Some(format!("run `cloister stop {name}`, or choose another name: `cloister start -p NAME`"))
        }
        StartError::NotRunning(_) => {
            Some("see `cloister list`, or run `cloister start` in its directory".into())
        }
        StartError::Teardown(_) => Some("run `cloister stop`, then try again".into()),
        StartError::Config(_) | StartError::Branch(_) => None,
        StartError::NoTier(_) => Some("use `guarded` or `none`".into()),
        StartError::OtherNetwork { name, .. } => {
            Some(format!("run `cloister stop {name}` first, or leave the network as it is"))
        }
    }
}

fn launch_hint(error: &LaunchError) -> Option<String> {
    match error {
        LaunchError::NoBwrap => {
            Some("install it: `sudo apt-get install bubblewrap` (or your system's package)".into())
        }
        LaunchError::UntrustedBwrap(_) => {
            Some("install your system's: `sudo apt-get install bubblewrap`".into())
        }
        LaunchError::Io { source, .. } => io_hint(source),
        LaunchError::Paths(error) => paths_hint(error),
        LaunchError::Receipt(error) => receipt_hint(error),
        LaunchError::Settings(_) => None,
        LaunchError::Filter(_) | LaunchError::Stage(_) | LaunchError::Refused(_) => {
            Some("run `cloister start --dry-run` to see the command that fails".into())
        }
    }
}

pub(super) fn doctor_hint(error: &DoctorError) -> Option<String> {
    match error {
        DoctorError::Start(error) => {
            start_hint(error).or_else(|| Some("run `cloister doctor` to see what this host lacks".into()))
        }
        DoctorError::Stop(error) => stop_hint(error),
        DoctorError::Guardian(error) => client_hint(error),
        DoctorError::Paths(error) => paths_hint(error),
        DoctorError::Project(error) => project_hint(error),
        DoctorError::Receipt(error) => receipt_hint(error),
        DoctorError::Bubblewrap(error) => launch_hint(error),
        DoctorError::Leftover(_) => Some("see `cloister list`, and stop what begins with `probe-`".into()),
        DoctorError::Answer { .. } | DoctorError::Garbage(_) => {
            Some("run `cloister doctor --probe` again with `--debug`".into())
        }
        DoctorError::Io { source, .. } => io_hint(source),
        DoctorError::Name(_) | DoctorError::Interrupted => None,
    }
}

pub(super) fn stop_hint(error: &StopError) -> Option<String> {
    match error {
        StopError::NotRunning(_) => Some("see `cloister list`".into()),
        StopError::Paths(error) => paths_hint(error),
        StopError::Receipt(error) => receipt_hint(error),
    }
}
