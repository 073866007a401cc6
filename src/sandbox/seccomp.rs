//! The system calls that a sandbox is refused, and why.
//!
//! The filter lets everything pass that is not listed: a sandbox is a place to work in, and the name spaces,
//! the missing capabilities and the absent devices are the first line. What stands here opens kernel surface
//! that developers' tools don't need, or undoes one of those lines.

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
}

/// `CLONE_NEW*`: mount, cgroup, UTS, IPC, user, process and network name space (clone(2)).
const NEW_NAMESPACE: &[u64] =
    &[0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
/// The same for unshare(2), which also knows the time name space.
const UNSHARE_NAMESPACE: &[u64] =
    &[0x80, 0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541C;

macro_rules! call {
    ($name:ident) => {
        call!($name, When::Always)
    };
    ($name:ident, $when:expr) => {
        Call { name: stringify!($name), number: libc::$name, when: $when }
    };
}

/// Every refused call with its reason.
pub const RULES: &[Rule] = &[
    Rule {
        reason: "changes the limits of other processes, the first one's among them (K6)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_prlimit64, When::NotZero(0))],
    },
    Rule {
        reason: "watches or lists mounts and quotas beyond the sandbox's own (K7)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_fanotify_init),
            call!(SYS_quotactl_fd),
            // Newer than the C library's headers; the numbers are the same on every processor.
            Call { name: "SYS_statmount", number: 457, when: When::Always },
            Call { name: "SYS_listmount", number: 458, when: When::Always },
            Call { name: "SYS_open_tree_attr", number: 467, when: When::Always },
        ],
    },
    Rule {
        reason: "types into the terminal that started the sandbox (F16)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_ioctl, When::Equals(1, TIOCSTI))],
    },
    Rule {
        reason: "pastes into the console that started the sandbox (F16)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_ioctl, When::Equals(1, TIOCLINUX))],
    },
    Rule {
        reason: "reaches the host user's key rings, which no name space separates (K5)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_keyctl), call!(SYS_add_key), call!(SYS_request_key)],
    },
    Rule {
        reason: "performs calls past this filter (K4)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_io_uring_setup), call!(SYS_io_uring_enter), call!(SYS_io_uring_register)],
    },
    Rule {
        reason: "loads programs into the kernel (K11)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_bpf)],
    },
    Rule {
        reason: "reads kernel and processor counters (K11)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_perf_event_open)],
    },
    Rule {
        reason: "stalls the kernel at will, the lever of many exploits (K11)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_userfaultfd)],
    },
    Rule {
        reason: "opens files by number past the mounts (K8)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_open_by_handle_at), call!(SYS_name_to_handle_at)],
    },
    Rule {
        reason: "enters other name spaces (K9)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_setns)],
    },
    Rule {
        reason: "makes name spaces, in which much kernel code opens to anyone (K9)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_unshare, When::AnyBit(0, UNSHARE_NAMESPACE)),
            call!(SYS_clone, When::AnyBit(0, NEW_NAMESPACE)),
        ],
    },
    Rule {
        reason: "hides its flags in memory where a filter can't look; programs fall back to clone (K9)",
        answer: Answer::NotImplemented,
        calls: &[call!(SYS_clone3)],
    },
    Rule {
        reason: "changes the file tree (K9)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_mount),
            call!(SYS_umount2),
            call!(SYS_pivot_root),
            call!(SYS_chroot),
            call!(SYS_mount_setattr),
            call!(SYS_move_mount),
            call!(SYS_open_tree),
            call!(SYS_fsopen),
            call!(SYS_fsconfig),
            call!(SYS_fsmount),
            call!(SYS_fspick),
        ],
    },
    Rule {
        reason: "reads and writes other processes past ptrace's checks (K6)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_process_vm_readv),
            call!(SYS_process_vm_writev),
            call!(SYS_pidfd_getfd),
            call!(SYS_kcmp),
        ],
    },
    Rule {
        reason: "loads or replaces kernel code (K11)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_init_module),
            call!(SYS_finit_module),
            call!(SYS_delete_module),
            call!(SYS_kexec_load),
            call!(SYS_kexec_file_load),
        ],
    },
    Rule {
        reason: "administers the machine (K7)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_reboot),
            call!(SYS_swapon),
            call!(SYS_swapoff),
            call!(SYS_acct),
            call!(SYS_quotactl),
            call!(SYS_syslog),
            call!(SYS_settimeofday),
            call!(SYS_clock_settime),
            call!(SYS_clock_adjtime),
            call!(SYS_adjtimex),
            call!(SYS_sethostname),
            call!(SYS_setdomainname),
            call!(SYS_vhangup),
        ],
    },
    Rule {
        reason: "opens sockets below or beside the network name space: packet, raw, vsock and rare families (T2)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_socket, When::Socket), call!(SYS_socketpair, When::Socket)],
    },
];

const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
const AF_NETLINK: u64 = 16;
const SOCK_RAW: u64 = 3;
const SOCK_PACKET: u64 = 10;
const SOCK_TYPE_MASK: u64 = 0xf;
const NETLINK_ROUTE: u64 = 0;

fn condition(argument: u8, operator: Op, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Width::Dword, operator, value)
}

/// The alternatives under which a rule refuses; each is a conjunction.
fn alternatives(when: When) -> Result<Vec<SeccompRule>, BackendError> {
    let all = |conditions: Vec<SeccompCondition>| SeccompRule::new(conditions);
    match when {
        When::Always => Ok(Vec::new()),
        When::Equals(argument, value) => Ok(vec![all(vec![condition(argument, Op::Eq, u64::from(value))?])?]),
        When::NotZero(argument) => Ok(vec![all(vec![condition(argument, Op::Ne, 0)?])?]),
        When::AnyBit(argument, bits) => {
            bits.iter().map(|bit| all(vec![condition(argument, Op::MaskedEq(*bit), *bit)?])).collect()
        }
        When::Socket => Ok(vec![
            all([AF_UNIX, AF_INET, AF_INET6, AF_NETLINK]
                .into_iter()
                .map(|family| condition(0, Op::Ne, family))
                .collect::<Result<_, _>>()?)?,
            all(vec![condition(0, Op::Eq, AF_NETLINK)?, condition(2, Op::Ne, NETLINK_ROUTE)?])?,
            // `getifaddrs` opens its route socket as raw; that is no raw socket of the network.
            all(vec![
                condition(0, Op::Ne, AF_NETLINK)?,
                condition(1, Op::MaskedEq(SOCK_TYPE_MASK), SOCK_RAW)?,
            ])?,
            all(vec![condition(1, Op::MaskedEq(SOCK_TYPE_MASK), SOCK_PACKET)?])?,
        ]),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_makes_valid_programs() {
        let programs = filter().unwrap();
        assert_eq!(programs.len(), 2);
        for program in programs {
            assert_eq!(program.len() % 8, 0);
            assert!(program.len() / 8 < 4096, "the kernel takes at most 4096 instructions");
        }
    }

    #[test]
    fn every_rule_has_a_reason_that_names_a_threat() {
        for rule in RULES {
            assert!(rule.reason.ends_with(')') && !rule.calls.is_empty(), "{rule:?}");
        }
    }

    #[test]
    fn f16_terminal_requests_compare_32_bits_only() {
        let rules = alternatives(When::Equals(1, TIOCSTI)).unwrap();
        let expected = SeccompRule::new(vec![
            SeccompCondition::new(1, Width::Dword, Op::Eq, u64::from(TIOCSTI)).unwrap(),
        ]);
        assert_eq!(rules, vec![expected.unwrap()]);
    }
}
