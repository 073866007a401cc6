//! Attacks on the kernel's surface: the table of refused calls, and what lies beside it.

use super::attacks::{Aim, Goal, Place, Probe};
use crate::init::probe::Attack;
use crate::sandbox::seccomp_trials;

/// The numbers of the call's arguments beyond those that are named.
const REST: u64 = 0;
const PTRACE_SEIZE: u64 = 0x4206;
/// A user and a network name space.
const NESTED: u64 = 0x5000_0000;

fn attack(number: i64, arguments: [u64; 3]) -> Attack {
    let [a, b, c] = arguments;
    Attack::Call { number, arguments: [a, b, c, REST, REST, REST], errno: libc::EPERM }
}

/// Every trial of the table of calls: with a filter they are refused, without one the kernel answers otherwise.
pub(super) fn table() -> impl Iterator<Item = Probe> {
    seccomp_trials().into_iter().map(|trial| {
        let attack = Attack::Call { number: trial.number, arguments: trial.arguments, errno: trial.errno };
        Probe {
            id: trial.id,
            what: trial.label,
            place: Place::Sandbox,
            controls: vec![(Place::Host, attack.clone()), (Place::Privileged, attack.clone())],
            attack,
            // Some calls ask for a right before they look at their arguments: without it the kernel's answer is the
            // filter's, whoever asks.
            goal: Goal::StoppedIfAnywhere,
        }
    })
}

/// What the table does not say by itself.
pub(super) fn beside(aim: &Aim) -> Vec<Probe> {
    let mut probes = vec![
        Probe::here("K9", "any capability", Attack::Capabilities)
            .with(Place::Privileged, Attack::Capabilities),
        Probe::here("K11", "a call of the i386 kind", Attack::ForeignCall)
            .with(Place::Host, Attack::ForeignCall)
            .maybe(),
        Probe::here("K6", "debugging one's own child", Attack::Debug).works(),
        Probe::here("T4", "changing an interface", Attack::Interface)
            .with(Place::Privileged, Attack::Interface),
        Probe::here("T4", "a netfilter socket", attack(libc::SYS_socket, [16, 3, 12]))
            .with(Place::Host, attack(libc::SYS_socket, [16, 3, 12])),
        Probe::here("T4", "a packet socket", attack(libc::SYS_socket, [17, 3, 0]))
            .with(Place::Privileged, attack(libc::SYS_socket, [17, 3, 0])),
        Probe::here("T2", "a raw socket", attack(libc::SYS_socket, [2, 3, 1]))
            .with(Place::Privileged, attack(libc::SYS_socket, [2, 3, 1])),
        Probe::here("T5", "a nested network", attack(libc::SYS_unshare, [NESTED, 0, 0]))
            .with(Place::Host, attack(libc::SYS_unshare, [NESTED, 0, 0]))
            .with(Place::Privileged, attack(libc::SYS_unshare, [NESTED, 0, 0])),
        Probe::here("K4", "an inherited descriptor", Attack::Descriptors)
            .with(Place::Host, Attack::Descriptors),
    ];
    let canary = u64::try_from(aim.canary_pid).unwrap_or_default();
    let tracing = [
        Probe::here("K6", "tracing the first process", attack(libc::SYS_ptrace, [PTRACE_SEIZE, 1, 0]))
            .with(Place::Host, attack(libc::SYS_ptrace, [PTRACE_SEIZE, canary, 0])),
        Probe::here("K6", "the first process's memory", Attack::Memory { pid: 1 })
            .with(Place::Host, Attack::Memory { pid: aim.canary_pid }),
    ];
    probes.extend(tracing.map(|probe| if aim.may_trace { probe } else { probe.maybe() }));
    probes
}
