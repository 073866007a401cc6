//! The system calls that a sandbox is refused, and why.
//!
//! The filter lets everything pass that is not listed: a sandbox is a place to work in, and the name spaces,
//! the missing capabilities and the absent devices are the first line. What stands here opens kernel surface
//! that developers' tools don't need, or undoes one of those lines.

mod table;
#[cfg(test)]
mod tests;
mod trial;

pub use table::RULES;
pub use trial::{Trial, trials};

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

/// Why a filter could not be built for this machine.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// No filter is known for this processor.
    #[error("no system call filter is known for the processor `{0}`")]
    Architecture(String),
    /// The table of rules does not make a valid program.
    #[error("cannot build the system call filter")]
    Build(#[source] BackendError),
}

/// What a refused call answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// "Not permitted" (`EPERM`).
    NotPermitted,
    /// "No such call" (`ENOSYS`), where programs are known to fall back to an older call.
    NotImplemented,
}

/// When a call is refused.
#[derive(Debug, Clone, Copy)]
pub enum When {
    /// With whatever arguments.
    Always,
    /// When the low 32 bits of the argument equal the value. The kernel itself looks at no more bits, and a
    /// comparison of all 64 can be dodged (CVE-2019-10063).
    Equals(u8, u32),
    /// When one of these bits of the argument is set.
    AnyBit(u8, &'static [u64]),
    /// When one of these bits of the first argument is set, and one of those of the second.
    BothBits((u8, &'static [u64]), (u8, &'static [u64])),
    /// When the argument is not zero.
    NotZero(u8),
    /// When it asks for a socket outside the families and types that are listed in the code.
    Socket,
}

/// Calls that are refused for the same reason.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Why they are refused.
    pub reason: &'static str,
    /// What they answer.
    pub answer: Answer,
    /// The calls.
    pub calls: &'static [Call],
}

/// One refused call.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Its name as the C library's headers write it.
    pub name: &'static str,
    /// Its number.
    pub number: i64,
    /// When it is refused.
    pub when: When,
    /// Arguments with which the call changes nothing, whoever makes it and whatever it is allowed: where it passes
    /// the filter, the kernel refuses them for another reason. Its trials are made from them.
    pub harmless: [u64; 6],
}

const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const AF_NETLINK: u64 = 16;
/// The families that can be opened.
const FAMILIES: [u64; 4] = [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK];
const SOCK_RAW: u64 = 3;
const SOCK_SEQPACKET: u64 = 5;
/// `SOCK_RDM`, `SOCK_DCCP` and `SOCK_PACKET`, in no family.
const RARE_TYPES: [u64; 3] = [4, 6, 10];
const SOCK_TYPE_MASK: u64 = 0xf;
/// DCCP, L2TP, SCTP and UDP-Lite: kernel modules that a mere socket loads.
const RARE_PROTOCOLS: [u64; 4] = [33, 115, 132, 136];
const NETLINK_ROUTE: u64 = 0;

fn condition(argument: u8, operator: Op, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Width::Dword, operator, value)
}

/// The alternatives under which a rule refuses; each is a conjunction.
fn alternatives(when: When) -> Result<Vec<SeccompRule>, BackendError> {
    let all = |conditions: Vec<SeccompCondition>| SeccompRule::new(conditions);
    let has_bit = |argument, bit| condition(argument, Op::MaskedEq(bit), bit);
    match when {
        When::Always => Ok(Vec::new()),
        When::Equals(argument, value) => Ok(vec![all(vec![condition(argument, Op::Eq, u64::from(value))?])?]),
        When::NotZero(argument) => Ok(vec![all(vec![condition(argument, Op::Ne, 0)?])?]),
        When::AnyBit(argument, bits) => bits.iter().map(|bit| all(vec![has_bit(argument, *bit)?])).collect(),
        When::BothBits((one, ones), (other, others)) => {
            let pairs = ones.iter().flat_map(|bit| others.iter().map(move |with| (*bit, *with)));
            pairs.map(|(bit, with)| all(vec![has_bit(one, bit)?, has_bit(other, with)?])).collect()
        }
        When::Socket => socket_alternatives(),
    }
}

fn socket_alternatives() -> Result<Vec<SeccompRule>, BackendError> {
    let all = |conditions: Vec<SeccompCondition>| SeccompRule::new(conditions);
    let has_type = |kind| condition(1, Op::MaskedEq(SOCK_TYPE_MASK), kind);
    let mut alternatives = vec![
        all(FAMILIES.into_iter().map(|family| condition(0, Op::Ne, family)).collect::<Result<_, _>>()?)?,
        all(vec![condition(0, Op::Eq, AF_NETLINK)?, condition(2, Op::Ne, NETLINK_ROUTE)?])?,
        // `getifaddrs` opens its route socket as raw; that is no raw socket of the network.
        all(vec![condition(0, Op::Ne, AF_NETLINK)?, has_type(SOCK_RAW)?])?,
        all(vec![condition(0, Op::Ne, AF_UNIX)?, has_type(SOCK_SEQPACKET)?])?,
    ];
    for kind in RARE_TYPES {
        alternatives.push(all(vec![has_type(kind)?])?);
    }
    for protocol in RARE_PROTOCOLS {
        alternatives.push(all(vec![condition(2, Op::Eq, protocol)?])?);
    }
    Ok(alternatives)
}

/// Builds the filter programs, in the bytes that `bwrap --add-seccomp-fd` reads; all of them apply together.
pub fn filter() -> Result<Vec<Vec<u8>>, FilterError> {
    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(|_| FilterError::Architecture(std::env::consts::ARCH.to_owned()))?;
    [(Answer::NotPermitted, libc::EPERM), (Answer::NotImplemented, libc::ENOSYS)]
        .into_iter()
        .map(|(answer, errno)| program(answer, errno.unsigned_abs(), arch).map_err(FilterError::Build))
        .collect()
}

fn program(answer: Answer, errno: u32, arch: TargetArch) -> Result<Vec<u8>, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in RULES.iter().filter(|rule| rule.answer == answer).flat_map(|rule| rule.calls) {
        rules.entry(call.number).or_default().extend(alternatives(call.when)?);
    }
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), arch)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(foreign_numbers(arch).iter().chain(&program).flat_map(encode).collect())
}

/// Refuses the x32 calls, which reach the same kernel code under numbers that the rules don't name. (Calls of
/// another architecture are killed by the prologue that the library writes.)
fn foreign_numbers(arch: TargetArch) -> Vec<sock_filter> {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_IF_GE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const X32_BIT: u32 = 0x4000_0000;
    const RET_ERRNO_ENOSYS: u32 = 0x0005_0026;
    match arch {
        TargetArch::x86_64 => vec![
            sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 },
            sock_filter { code: JUMP_IF_GE, jt: 0, jf: 1, k: X32_BIT },
            sock_filter { code: RETURN, jt: 0, jf: 0, k: RET_ERRNO_ENOSYS },
        ],
        TargetArch::aarch64 | TargetArch::riscv64 => Vec::new(),
    }
}

/// `struct sock_filter` in the machine's byte order (linux/filter.h).
fn encode(instruction: &sock_filter) -> Vec<u8> {
    let mut bytes = instruction.code.to_ne_bytes().to_vec();
    bytes.extend([instruction.jt, instruction.jf]);
    bytes.extend(instruction.k.to_ne_bytes());
    bytes
}
