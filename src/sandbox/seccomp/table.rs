//! The table: every refused call, why it is refused, and how to try it without harm.

use super::{Answer, Call, Rule, When};

/// `CLONE_NEW*`: mount, cgroup, UTS, IPC, user, process and network name space (clone(2)).
const NEW_NAMESPACE: &[u64] =
    &[0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
/// The same for unshare(2), which also knows the time name space.
const UNSHARE_NAMESPACE: &[u64] =
    &[0x80, 0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];

const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541C;

/// Terminals' line disciplines are kernel modules that anyone may load.
const TIOCSETD: u32 = 0x5423;

/// The bits of a mode that give a program its file's user or group: `S_ISUID` and `S_ISGID`.
const SET_ID: &[u64] = &[0o4000, 0o2000];
/// The flags with which a call opens what was not there, and looks at the mode: `O_CREAT` and `O_TMPFILE`, without
/// the part of the latter that differs between processors.
const CREATES: &[u64] = &[0o100, 0o20_000_000];

/// No descriptor, no flag, no length that any call accepts.
const BAD: u64 = u64::MAX;
/// For calls that refuse a null pointer, or take no argument.
const NOTHING: [u64; 6] = [0; 6];

macro_rules! call {
    ($name:ident, $harmless:expr) => {
        call!($name, When::Always, $harmless)
    };
    ($name:ident, $when:expr, $harmless:expr) => {
        Call { name: stringify!($name), number: libc::$name, when: $when, harmless: $harmless }
    };
}

/// Every refused call with its reason.
pub const RULES: &[Rule] = &[
    Rule {
        reason: "changes the limits of other processes, the first one's among them (K6)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_prlimit64, When::NotZero(0), [0x7fff_ffff, 0, 0, 0, 0, 0])],
    },
    Rule {
        reason: "watches or lists mounts and quotas beyond the sandbox's own (K7)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_fanotify_init, [0x4000_0200, 0, 0, 0, 0, 0]),
            call!(SYS_quotactl_fd, [BAD, BAD, 0, 0, 0, 0]),
            // Newer than the C library's headers; the numbers are the same on every processor.
            Call { name: "SYS_statmount", number: 457, when: When::Always, harmless: [0, 0, 0, BAD, 0, 0] },
            Call { name: "SYS_listmount", number: 458, when: When::Always, harmless: [0, 0, 0, BAD, 0, 0] },
            Call {
                name: "SYS_open_tree_attr",
                number: 467,
                when: When::Always,
                harmless: [BAD, 0, BAD, 0, 0, 0],
            },
        ],
    },
    Rule {
        reason: "types into the terminal that started the sandbox (F16)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_ioctl, When::Equals(1, TIOCSTI), [BAD, 0, 0, 0, 0, 0])],
    },
    Rule {
        reason: "pastes into the console that started the sandbox (F16)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_ioctl, When::Equals(1, TIOCLINUX), [BAD, 0, 0, 0, 0, 0])],
    },
    Rule {
        reason: "reaches the host user's key rings, which no name space separates (K5)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_keyctl, [0xffff, 0, 0, 0, 0, 0]),
            call!(SYS_add_key, NOTHING),
            call!(SYS_request_key, NOTHING),
        ],
    },
    Rule {
        reason: "performs calls past this filter (K4)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_io_uring_setup, NOTHING),
            call!(SYS_io_uring_enter, [BAD, 0, 0, BAD, 0, 0]),
            call!(SYS_io_uring_register, [BAD, BAD, 0, 0, 0, 0]),
        ],
    },
    Rule {
        reason: "loads programs into the kernel (K11)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_bpf, [BAD, 0, 0, 0, 0, 0])],
    },
    Rule {
        reason: "reads kernel and processor counters (K11)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_perf_event_open, [0, 0, 0, 0, BAD, 0])],
    },
    Rule {
        reason: "stalls the kernel at will, the lever of many exploits (K11)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_userfaultfd, [0x4000_0001, 0, 0, 0, 0, 0])],
    },
    Rule {
        reason: "opens files by number past the mounts (K8)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_open_by_handle_at, [BAD, 0, 0, 0, 0, 0]),
            call!(SYS_name_to_handle_at, [BAD, 0, 0, 0, BAD, 0]),
        ],
    },
    Rule {
        reason: "enters other name spaces (K9)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_setns, [BAD, 0, 0, 0, 0, 0])],
    },
    Rule {
        reason: "makes name spaces, in which much kernel code opens to anyone (K9)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_unshare, When::AnyBit(0, UNSHARE_NAMESPACE), [0x1, 0, 0, 0, 0, 0]),
            call!(SYS_clone, When::AnyBit(0, NEW_NAMESPACE), [0x0001_0000, 0, 0, 0, 0, 0]),
        ],
    },
    Rule {
        reason: "hides its flags in memory where a filter can't look; programs fall back to clone (K9)",
        answer: Answer::NotImplemented,
        calls: &[call!(SYS_clone3, NOTHING)],
    },
    Rule {
        reason: "makes programs of the project run on the host as whom they belong to (F12)",
        answer: Answer::NotPermitted,
        calls: &[
            #[cfg(target_arch = "x86_64")]
            call!(SYS_chmod, When::AnyBit(1, SET_ID), NOTHING),
            call!(SYS_fchmod, When::AnyBit(1, SET_ID), [BAD, 0, 0, 0, 0, 0]),
            call!(SYS_fchmodat, When::AnyBit(2, SET_ID), [BAD, 0, 0, 0, 0, 0]),
            // Newer than the C library's headers on some processors; the number is the same on all.
            Call {
                name: "SYS_fchmodat2",
                number: 452,
                when: When::AnyBit(2, SET_ID),
                harmless: [BAD, 0, 0, BAD, 0, 0],
            },
            #[cfg(target_arch = "x86_64")]
            call!(SYS_mknod, When::AnyBit(1, SET_ID), NOTHING),
            call!(SYS_mknodat, When::AnyBit(2, SET_ID), [BAD, 0, 0, 0, 0, 0]),
            #[cfg(target_arch = "x86_64")]
            call!(SYS_creat, When::AnyBit(1, SET_ID), NOTHING),
            #[cfg(target_arch = "x86_64")]
            call!(SYS_open, When::BothBits((2, SET_ID), (1, CREATES)), NOTHING),
            call!(SYS_openat, When::BothBits((3, SET_ID), (2, CREATES)), [BAD, 0, 0, 0, 0, 0]),
        ],
    },
    Rule {
        reason: "hides the mode of a new file in memory where a filter can't look; programs fall back to openat (F12)",
        answer: Answer::NotImplemented,
        calls: &[call!(SYS_openat2, NOTHING)],
    },
    Rule {
        reason: "changes the file tree (K9)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_mount, NOTHING),
            call!(SYS_umount2, [0, BAD, 0, 0, 0, 0]),
            call!(SYS_pivot_root, NOTHING),
            call!(SYS_chroot, NOTHING),
            call!(SYS_mount_setattr, [BAD, 0, BAD, 0, 0, 0]),
            call!(SYS_move_mount, [BAD, 0, BAD, 0, BAD, 0]),
            call!(SYS_open_tree, [BAD, 0, BAD, 0, 0, 0]),
            call!(SYS_fsopen, [0, BAD, 0, 0, 0, 0]),
            call!(SYS_fsconfig, [BAD, BAD, 0, 0, 0, 0]),
            call!(SYS_fsmount, [BAD, BAD, BAD, 0, 0, 0]),
            call!(SYS_fspick, [BAD, 0, BAD, 0, 0, 0]),
        ],
    },
    Rule {
        reason: "reads and writes other processes past ptrace's checks (K6)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_process_vm_readv, [0x7fff_ffff, 0, 0, 0, 0, 1]),
            call!(SYS_process_vm_writev, [0x7fff_ffff, 0, 0, 0, 0, 1]),
            call!(SYS_pidfd_getfd, [BAD, BAD, 1, 0, 0, 0]),
            call!(SYS_kcmp, [0x7fff_ffff, 0x7fff_ffff, 0, 0, 0, 0]),
        ],
    },
    Rule {
        reason: "loads or replaces kernel code (K11)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_init_module, NOTHING),
            call!(SYS_finit_module, [BAD, 0, BAD, 0, 0, 0]),
            call!(SYS_delete_module, NOTHING),
            call!(SYS_kexec_load, [0, 0xffff, 0, 0x1000, 0, 0]),
            call!(SYS_kexec_file_load, [BAD, BAD, 0, 0, 0x1000, 0]),
        ],
    },
    Rule {
        reason: "administers the machine (K7)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_reboot, [BAD, BAD, BAD, 0, 0, 0]),
            call!(SYS_swapon, [0, BAD, 0, 0, 0, 0]),
            call!(SYS_swapoff, NOTHING),
            call!(SYS_acct, [1, 0, 0, 0, 0, 0]),
            call!(SYS_quotactl, [BAD, 0, 0, 0, 0, 0]),
            call!(SYS_syslog, [BAD, 0, 0, 0, 0, 0]),
            call!(SYS_settimeofday, [1, 0, 0, 0, 0, 0]),
            call!(SYS_clock_settime, [9999, 0, 0, 0, 0, 0]),
            call!(SYS_clock_adjtime, [9999, 0, 0, 0, 0, 0]),
            call!(SYS_adjtimex, NOTHING),
            call!(SYS_sethostname, [0, BAD, 0, 0, 0, 0]),
            call!(SYS_setdomainname, [0, BAD, 0, 0, 0, 0]),
            call!(SYS_vhangup, NOTHING),
        ],
    },
    Rule {
        reason: "opens sockets below or beside the network name space: packet, raw, vsock and rare families (T2)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_socket, When::Socket, NOTHING), call!(SYS_socketpair, When::Socket, NOTHING)],
    },
    Rule {
        reason: "switches a terminal to kernel code that only modems need (K11)",
        answer: Answer::NotPermitted,
        calls: &[call!(SYS_ioctl, When::Equals(1, TIOCSETD), [BAD, 0, 0, 0, 0, 0])],
    },
    Rule {
        reason: "moves the memory of other processes between nodes (K6)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_migrate_pages, When::NotZero(0), [0x7fff_ffff, 0, 0, 0, 0, 0]),
            call!(SYS_move_pages, When::NotZero(0), [0x7fff_ffff, 0, 0, 0, 0, BAD]),
        ],
    },
    Rule {
        reason: "is obsolete, and used by attacks alone (K11)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_nfsservctl, NOTHING),
            call!(SYS_lookup_dcookie, [BAD, 0, 0, 0, 0, 0]),
            #[cfg(target_arch = "x86_64")]
            call!(SYS_uselib, NOTHING),
            #[cfg(target_arch = "x86_64")]
            call!(SYS_sysfs, [BAD, 0, 0, 0, 0, 0]),
            #[cfg(target_arch = "x86_64")]
            call!(SYS_ustat, [BAD, 0, 0, 0, 0, 0]),
            #[cfg(target_arch = "x86_64")]
            call!(SYS__sysctl, NOTHING),
        ],
    },
    #[cfg(target_arch = "x86_64")]
    Rule {
        reason: "reaches the machine's ports, or the segments of 16-bit programs (K11)",
        answer: Answer::NotPermitted,
        calls: &[
            call!(SYS_iopl, [BAD, 0, 0, 0, 0, 0]),
            call!(SYS_ioperm, [BAD, BAD, 0, 0, 0, 0]),
            call!(SYS_modify_ldt, [99, 0, 0, 0, 0, 0]),
        ],
    },
];
