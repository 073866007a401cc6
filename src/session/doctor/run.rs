//! Running attacks where they belong: in a sandbox, outside, or in a name space with every capability.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::attacks::{Place, Probe};
use super::stage::Stage;
use super::{DoctorError, io_error};
use crate::init::probe::{Attack, Finding};
use crate::init::wire::{FromHost, FromSandbox, MAX_DATA_BYTES};
use crate::process;
use crate::sandbox::{BINARY, find_bwrap};
use crate::session::Sandbox;

/// How long the attacks of one place may take together.
const PATIENCE: Duration = Duration::from_mins(2);
/// The probe, in a sandbox.
const PROBE: [&str; 3] = [BINARY, "sandbox-init", "probe"];

/// What came of one attack at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The number of the probe in the list.
    pub(super) probe: usize,
    /// Whether this was the attack itself, and not one of its controls.
    pub(super) is_attack: bool,
    pub(super) finding: Finding,
}

/// Runs every attack and every control.
pub(super) async fn everywhere(stage: &mut Stage<'_>, probes: &[Probe]) -> Result<Vec<Found>, DoctorError> {
    let mut found = Vec::new();
    for place in [Place::Host, Place::Privileged, Place::Neighbour, Place::Sandbox] {
        let mut order: Vec<(usize, bool)> = Vec::new();
        let mut attacks: Vec<&Attack> = Vec::new();
        for (number, probe) in probes.iter().enumerate() {
            let own = (probe.place == place && !probe.is_alone()).then_some((true, &probe.attack));
            let controls = probe.controls.iter().filter(|control| control.0 == place);
            for (is_attack, attack) in own.into_iter().chain(controls.map(|control| (false, &control.1))) {
                order.push((number, is_attack));
                attacks.push(attack);
            }
        }
        let findings = at(stage, place, &attacks).await?;
        found.extend(order.into_iter().zip(findings).map(|((probe, is_attack), finding)| Found {
            probe,
            is_attack,
            finding,
        }));
    }
    found.extend(alone(stage, probes).await?);
    Ok(found)
}

/// Runs the attacks that may cost their process its life, each by itself.
async fn alone(stage: &mut Stage<'_>, probes: &[Probe]) -> Result<Vec<Found>, DoctorError> {
    let mut found = Vec::new();
    for (number, probe) in probes.iter().enumerate().filter(|(_, probe)| probe.is_alone()) {
        let input = list(&[&probe.attack])?;
        let (finding, is_clean) = match in_sandbox(stage.sandbox(Place::Sandbox)?, &PROBE, &input).await {
            Ok((code, output)) => told(code, &output),
            Err(_) if stage.has_ended()? => {
                (Finding::Refused("stopped: the whole sandbox was ended".to_owned()), false)
            }
            Err(error) => return Err(error),
        };
        found.push(Found { probe: number, is_attack: true, finding });
        // Who was killed could not clear away, and the next one must not stumble over it.
        if !is_clean {
            stage.restart().await?;
        }
    }
    Ok(found)
}

/// What a lone attack came to, and whether it lived to clear away.
fn told(code: u8, output: &[u8]) -> (Finding, bool) {
    match serde_json::from_slice::<Vec<Finding>>(output) {
        Ok(mut findings) if findings.len() == 1 => (findings.swap_remove(0), true),
        _ if code > 128 => (Finding::Refused(format!("stopped: killed by signal {}", code - 128)), false),
        _ => (Finding::Failed(format!("the probe ended with {code}")), false),
    }
}

fn list(attacks: &[&Attack]) -> Result<Vec<u8>, DoctorError> {
    serde_json::to_vec(attacks).map_err(|source| DoctorError::Answer { place: "the list", source })
}

async fn at(stage: &Stage<'_>, place: Place, attacks: &[&Attack]) -> Result<Vec<Finding>, DoctorError> {
    if attacks.is_empty() {
        return Ok(Vec::new());
    }
    let input = list(attacks)?;
    let output = match place {
        Place::Host => outside(host_command(stage)?, &input)?,
        Place::Privileged => match outside(privileged_command()?, &input) {
            Ok(output) if !output.is_empty() => output,
            // A host may permit sandboxes and forbid this; then nothing is shown by it.
            _ => {
                return Ok(vec![
                    Finding::Failed("no name space with capabilities".to_owned());
                    attacks.len()
                ]);
            }
        },
        Place::Sandbox | Place::Neighbour => in_sandbox(stage.sandbox(place)?, &PROBE, &input).await?.1,
    };
    let name = place.name();
    let findings: Vec<Finding> =
        serde_json::from_slice(&output).map_err(|source| DoctorError::Answer { place: name, source })?;
    if findings.len() == attacks.len() {
        return Ok(findings);
    }
    let source = serde::de::Error::invalid_length(findings.len(), &"as many findings as attacks");
    Err(DoctorError::Answer { place: name, source })
}

/// The probe outside of any sandbox, with variables and a descriptor of the kind that a sandbox must not inherit.
fn host_command(stage: &Stage<'_>) -> Result<std::process::Command, DoctorError> {
    let mut command =
        process::command(process::own_binary().map_err(io_error("find the binary of Cloister"))?);
    command.args(["sandbox-init", "probe"]).envs(stage.betraying_variables());
    process::make_inheritable(stage.open_canary()).map_err(io_error("pass a descriptor on"))?;
    Ok(command)
}

/// The probe in name spaces of its own with every capability there and no filter.
fn privileged_command() -> Result<std::process::Command, DoctorError> {
    let bwrap = find_bwrap(&process::environment("PATH").unwrap_or_default())?;
    let binary = process::own_binary().map_err(io_error("find the binary of Cloister"))?;
    let mut command = process::command(bwrap.program());
    command.args(["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-ipc"]);
    command.args([
        "--uid",
        "0",
        "--gid",
        "0",
        "--cap-add",
        "ALL",
        "--dev-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "--",
    ]);
    command.arg(binary).args(["sandbox-init", "probe"]);
    Ok(command)
}

fn outside(mut command: std::process::Command, input: &[u8]) -> Result<Vec<u8>, DoctorError> {
    let failed = || io_error("run the probe outside");
    command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed())?;
    // It reads everything before it writes anything.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input));
    let mut output = Vec::new();
    let read = child.stdout.take().map_or(Ok(0), |mut stdout| stdout.read_to_end(&mut output));
    child.wait().map_err(failed())?;
    written.and(read).map_err(failed())?;
    Ok(output)
}

/// Runs a command in a sandbox with this input; gives its exit code and its output.
pub(super) async fn in_sandbox(
    sandbox: &Sandbox,
    argv: &[&str],
    input: &[u8],
) -> Result<(u8, Vec<u8>), DoctorError> {
    let mut stream = open(sandbox, argv).await?;
    let chunks = input.chunks(MAX_DATA_BYTES).map(|chunk| FromHost::Input(chunk.to_vec()));
    for message in chunks.chain([FromHost::InputEnd]) {
        // A command that has ended takes no input; what it said can still be heard.
        if say(&mut stream, message).await.is_err() {
            break;
        }
    }
    let mut output = Vec::new();
    loop {
        match hear(&mut stream).await? {
            Some(FromSandbox::Output(bytes)) => output.extend(bytes),
            Some(FromSandbox::ErrorOutput(_) | FromSandbox::Taken(_)) => {}
            Some(FromSandbox::Exit(code)) => return Ok((code, output)),
            other => return Err(DoctorError::Garbage(other)),
        }
    }
}

/// Starts a command in a sandbox.
pub(super) async fn open(sandbox: &Sandbox, argv: &[&str]) -> Result<UnixStream, DoctorError> {
    let mut stream = sandbox.connect().await?;
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    say(&mut stream, FromHost::Start(sandbox.session(argv, None))).await?;
    match hear(&mut stream).await? {
        Some(FromSandbox::Started) => Ok(stream),
        other => Err(DoctorError::Garbage(other)),
    }
}

pub(super) async fn say(stream: &mut UnixStream, message: FromHost) -> Result<(), DoctorError> {
    message.write(stream).await.map_err(io_error("speak with the sandbox"))
}

/// Hears one message; the sandbox is given a while, not for ever.
pub(super) async fn hear(stream: &mut UnixStream) -> Result<Option<FromSandbox>, DoctorError> {
    let heard = timeout(PATIENCE, FromSandbox::read(stream)).await;
    heard
        .map_err(|elapsed| io_error("wait for the sandbox")(elapsed.into()))?
        .map_err(io_error("hear the sandbox"))
}
