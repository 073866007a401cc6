//! How the table is put to the proof: calls that the filter has to refuse, made from the rules themselves, so that
//! there is no rule without a trial.

use super::table::RULES;
use super::{Answer, Call, FAMILIES, RARE_PROTOCOLS, RARE_TYPES, SOCK_RAW, SOCK_SEQPACKET, When};

/// One call that the filter refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// The threat's number, as in `K9`.
    pub id: &'static str,
    /// The call, and what is special about its arguments.
    pub label: String,
    /// Its number.
    pub number: i64,
    /// Its arguments: harmless, should the call be made after all.
    pub arguments: [u64; 6],
    /// What the filter answers.
    pub errno: i32,
}

/// Bits above those that the kernel looks at in a 32-bit argument.
const GARBAGE: u64 = 0xdead_beef_0000_0000;
/// A type of socket that is none: a kernel that is asked for it loads no module.
const NO_TYPE: u64 = 15;
const CLOEXEC_AND_NONBLOCK: u64 = 0x8_0800;
/// How many families and netlink protocols there may be.
const MAX_FAMILY: u64 = 64;
const MAX_NETLINK: u64 = 32;

impl Answer {
    /// The number of the error.
    pub fn errno(self) -> i32 {
        match self {
            Self::NotPermitted => libc::EPERM,
            Self::NotImplemented => libc::ENOSYS,
        }
    }
}

/// Every trial of every rule, those with garbage in the high bits and with the numbers of the x32 calls included.
pub fn trials() -> Vec<Trial> {
    let of_rules = RULES.iter().flat_map(|rule| {
        let id = threat(rule.reason);
        rule.calls.iter().flat_map(move |call| {
            arguments(call).into_iter().map(move |(detail, arguments)| Trial {
                id,
                label: format!("{}{detail}", call.name),
                number: call.number,
                arguments,
                errno: rule.answer.errno(),
            })
        })
    });
    let mut all: Vec<Trial> = of_rules.collect();
    all.extend(foreign_numbers());
    all
}

/// What stands in parentheses at the end of a reason.
fn threat(reason: &'static str) -> &'static str {
    reason.rsplit_once('(').map_or(reason, |(_, id)| id.trim_end_matches(')'))
}

/// The x32 numbers of all refused calls: another way to the same code.
fn foreign_numbers() -> impl Iterator<Item = Trial> {
    const X32_BIT: i64 = 0x4000_0000;
    let calls = RULES.iter().flat_map(|rule| rule.calls).filter(|_| cfg!(target_arch = "x86_64"));
    calls.map(|call| Trial {
        id: "K11",
        label: format!("x32 {}", call.name),
        number: call.number | X32_BIT,
        arguments: call.harmless,
        errno: libc::ENOSYS,
    })
}

/// The arguments with which a call is refused, each with a note.
fn arguments(call: &Call) -> Vec<(String, [u64; 6])> {
    let with = |argument: u8, value: u64| {
        let mut arguments = call.harmless;
        arguments[usize::from(argument)] = value;
        arguments
    };
    let of = |argument: u8| call.harmless[usize::from(argument)];
    let both = |argument: u8, value: u64, note: String| {
        [
            (note.clone(), with(argument, value)),
            (format!("{note} with high bits"), with(argument, value | GARBAGE)),
        ]
    };
    match call.when {
        When::Always => vec![(String::new(), call.harmless)],
        When::Equals(argument, value) => both(argument, value.into(), format!(" {value:#x}")).into(),
        When::NotZero(argument) => both(argument, of(argument), String::new()).into(),
        When::AnyBit(argument, bits) => {
            bits.iter().flat_map(|bit| both(argument, of(argument) | bit, format!(" {bit:#x}"))).collect()
        }
        When::BothBits((one, ones), (other, others)) => ones
            .iter()
            .flat_map(|bit| others.iter().map(move |with| (bit, with)))
            .flat_map(|(bit, with)| {
                let note = format!(" {bit:#x} with {with:#x}");
                both(one, of(one) | bit, note).map(|(note, mut arguments)| {
                    arguments[usize::from(other)] |= with;
                    (note, arguments)
                })
            })
            .collect(),
        When::Socket => sockets()
            .into_iter()
            .flat_map(|[family, kind, protocol]| {
                let note = format!(" {family} {kind} {:#x}", protocol & 0xffff_ffff);
                let high = [family | GARBAGE, kind | GARBAGE, protocol | GARBAGE];
                [
                    (note.clone(), [family, kind, protocol, 0, 0, 0]),
                    (format!("{note} with high bits"), [high[0], high[1], high[2], 0, 0, 0]),
                ]
            })
            .collect(),
    }
}

/// Family, type and protocol of sockets that are refused; none of them can be made where there is no filter.
fn sockets() -> Vec<[u64; 3]> {
    const BAD_PROTOCOL: u64 = u64::MAX;
    let [local, inet, inet6, netlink] = FAMILIES;
    let foreign = (0..MAX_FAMILY).filter(|family| !FAMILIES.contains(family));
    let mut sockets: Vec<[u64; 3]> = foreign.map(|family| [family, NO_TYPE, 0]).collect();
    sockets.extend((1..MAX_NETLINK).map(|protocol| [netlink, NO_TYPE, protocol]));
    for family in [inet, inet6] {
        sockets.extend([SOCK_RAW, SOCK_SEQPACKET].map(|kind| [family, kind, BAD_PROTOCOL]));
        sockets.push([family, SOCK_RAW | CLOEXEC_AND_NONBLOCK, BAD_PROTOCOL]);
        sockets.extend(RARE_PROTOCOLS.map(|protocol| [family, NO_TYPE, protocol]));
    }
    sockets.extend(RARE_TYPES.map(|kind| [local, kind, 0]));
    sockets
}
