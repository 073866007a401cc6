//! The filter as a whole: read, run on a small machine of the tests' own, and compared with the table.

use std::collections::BTreeSet;
use std::fmt::Write;

use proptest::prelude::*;

use super::*;

/// What the kernel does for a call (linux/seccomp.h).
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
/// `AUDIT_ARCH_…` (linux/audit.h).
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const AARCH64: u32 = 0xc000_00b7;
/// No descriptor.
const BAD: u64 = u64::MAX;
const OWN: u32 = if cfg!(target_arch = "aarch64") { AARCH64 } else { X86_64 };

#[derive(Clone, Copy)]
struct Instruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

fn decode(program: &[u8]) -> Vec<Instruction> {
    let instruction = |bytes: &[u8]| Instruction {
        code: u16::from_ne_bytes([bytes[0], bytes[1]]),
        jt: bytes[2],
        jf: bytes[3],
        k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    program.chunks_exact(8).map(instruction).collect()
}

/// `struct seccomp_data`.
fn data(architecture: u32, number: i64, arguments: [u64; 6]) -> Vec<u8> {
    let mut bytes = i32::try_from(number).unwrap().to_ne_bytes().to_vec();
    bytes.extend(architecture.to_ne_bytes());
    bytes.extend(0_u64.to_ne_bytes());
    bytes.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
    bytes
}

/// Runs one program; knows the instructions that filters are made of, and no others.
fn run(program: &[Instruction], data: &[u8]) -> u32 {
    let (mut accumulator, mut at) = (0_u32, 0_usize);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let mut jump = |holds: bool| at += usize::from(if holds { jt } else { jf });
        match code {
            0x20 => {
                let place = usize::try_from(k).unwrap();
                accumulator = u32::from_ne_bytes(data[place..place + 4].try_into().unwrap());
            }
            0x54 => accumulator &= k,
            0x05 => at += usize::try_from(k).unwrap(),
            0x15 => jump(accumulator == k),
            0x25 => jump(accumulator > k),
            0x35 => jump(accumulator >= k),
            0x45 => jump(accumulator & k != 0),
            0x06 => return k,
            other => panic!("an instruction {other:#x}"),
        }
    }
}

fn programs() -> Vec<Vec<Instruction>> {
    filter().unwrap().iter().map(|program| decode(program)).collect()
}

/// All programs together, as the kernel joins them: the strictest answer counts.
fn answer(programs: &[Vec<Instruction>], data: &[u8]) -> u32 {
    let strictness = |answer: &u32| match answer & 0xffff_0000 {
        KILL_PROCESS => 0,
        0 => 1,
        ERRNO => 2,
        ALLOW => 3,
        other => panic!("an answer {other:#x}"),
    };
    programs.iter().map(|program| run(program, data)).min_by_key(strictness).unwrap()
}

fn refusal(errno: i32) -> u32 {
    ERRNO | errno.unsigned_abs()
}

/// The meaning of a condition, told once more and without the library.
fn refuses(when: When, arguments: [u64; 6]) -> bool {
    let low = |argument: u8| u32::try_from(arguments[usize::from(argument)] & 0xffff_ffff).unwrap();
    match when {
        When::Always => true,
        When::Equals(argument, value) => low(argument) == value,
        When::NotZero(argument) => low(argument) != 0,
        When::AnyBit(argument, bits) => bits.iter().any(|bit| u64::from(low(argument)) & bit != 0),
        When::BothBits((one, ones), (other, others)) => {
            let has = |argument, bits: &[u64]| bits.iter().any(|bit| u64::from(low(argument)) & bit != 0);
            has(one, ones) && has(other, others)
        }
        When::Socket => {
            let (family, kind, protocol) = (low(0), low(1) & 0xf, low(2));
            let is_known = match family {
                1 => matches!(kind, 1 | 2 | 3 | 5) || kind == 0 || kind > 6 && kind != 10,
                2 | 10 => !matches!(kind, 3 | 4 | 5 | 6 | 10),
                16 => protocol == 0 && !matches!(kind, 4 | 5 | 6 | 10),
                _ => false,
            };
            let is_raw = kind == 3 && family != 16;
            !is_known || is_raw || matches!(protocol, 33 | 115 | 132 | 136)
        }
    }
}

/// What the table says about a call.
fn expected(number: i64, arguments: [u64; 6]) -> u32 {
    let found = RULES.iter().find_map(|rule| {
        let applies = |call: &&Call| call.number == number && refuses(call.when, arguments);
        rule.calls.iter().find(applies).map(|_| rule.answer)
    });
    found.map_or(ALLOW, |answer| refusal(answer.errno()))
}

#[test]
fn every_number_is_answered_as_the_table_says() {
    let programs = programs();
    for number in 0..600 {
        for arguments in [[0; 6], [1, 1, 0, 0, 0, 0], [u64::MAX; 6]] {
            let found = answer(&programs, &data(OWN, number, arguments));
            assert_eq!(found, expected(number, arguments), "call {number} {arguments:?}");
        }
    }
}

#[test]
fn every_trial_is_refused_as_it_expects() {
    let programs = programs();
    for trial in trials() {
        let found = answer(&programs, &data(OWN, trial.number, trial.arguments));
        assert_eq!(found, refusal(trial.errno), "{trial:?}");
    }
}

#[test]
fn every_call_of_the_table_has_a_trial() {
    let tried: BTreeSet<i64> = trials().iter().map(|trial| trial.number).collect();
    for call in RULES.iter().flat_map(|rule| rule.calls) {
        assert!(tried.contains(&call.number), "{}", call.name);
    }
}

#[test]
fn foreign_architectures_are_killed_whatever_they_call() {
    let programs = programs();
    let foreign = [I386, AARCH64, X86_64, 0].into_iter().filter(|architecture| *architecture != OWN);
    for architecture in foreign {
        for number in [0, 20, 39, 103, 220] {
            let found = answer(&programs, &data(architecture, number, [0; 6]));
            assert!(matches!(found, KILL_PROCESS | 0), "{architecture:#x} {number}: {found:#x}");
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn x32_numbers_do_not_exist() {
    let programs = programs();
    for number in 0..600 {
        let found = answer(&programs, &data(OWN, number | 0x4000_0000, [0; 6]));
        // Whichever of the programs refuses it first.
        assert_eq!(found, refusal(libc::ENOSYS), "call {number}");
    }
}

#[test]
fn developers_tools_keep_their_calls() {
    const THREAD: u64 = 0x003d_0f00;
    const VFORK: u64 = 0x4111;
    let programs = programs();
    let needed: [(&str, i64, [u64; 6]); 29] = [
        ("threads", libc::SYS_clone, [THREAD, 0, 0, 0, 0, 0]),
        ("vfork", libc::SYS_clone, [VFORK, 0, 0, 0, 0, 0]),
        ("a debugger's fixed addresses", libc::SYS_personality, [0x0004_0000, 0, 0, 0, 0, 0]),
        ("tracing", libc::SYS_ptrace, [16, 5, 0, 0, 0, 0]),
        ("a process's descriptor", libc::SYS_pidfd_open, [5, 0, 0, 0, 0, 0]),
        ("its signals", libc::SYS_pidfd_send_signal, [5, 9, 0, 0, 0, 0]),
        ("landlock", libc::SYS_landlock_create_ruleset, [0; 6]),
        ("a filter of one's own", libc::SYS_seccomp, [1, 0, 0, 0, 0, 0]),
        ("limits of one's own", libc::SYS_prlimit64, [0, 7, 0, 0, 0, 0]),
        ("unsharing files", libc::SYS_unshare, [0x400, 0, 0, 0, 0, 0]),
        ("memory files", libc::SYS_memfd_create, [0; 6]),
        ("watching files", libc::SYS_inotify_init1, [0; 6]),
        ("nodes of one's own memory", libc::SYS_mbind, [0; 6]),
        ("pages of one's own", libc::SYS_move_pages, [0; 6]),
        ("window size", libc::SYS_ioctl, [0, 0x5413, 0, 0, 0, 0]),
        ("terminal attributes", libc::SYS_ioctl, [0, 0x5402, 0, 0, 0, 0]),
        ("TCP", libc::SYS_socket, [2, 1 | 0x8_0800, 6, 0, 0, 0]),
        ("multipath TCP", libc::SYS_socket, [10, 1, 262, 0, 0, 0]),
        ("UDP", libc::SYS_socket, [2, 2, 17, 0, 0, 0]),
        ("local packets", libc::SYS_socket, [1, 5, 0, 0, 0, 0]),
        ("interfaces", libc::SYS_socket, [16, 3, 0, 0, 0, 0]),
        ("a program's mode", libc::SYS_fchmodat, [BAD, 0, 0o755, 0, 0, 0]),
        ("a directory for all", libc::SYS_fchmod, [BAD, 0o1777, 0, 0, 0, 0]),
        ("a directory", libc::SYS_mkdirat, [BAD, 0, 0o777, 0, 0, 0]),
        ("a pipe", libc::SYS_mknodat, [BAD, 0, 0o10_644, 0, 0, 0]),
        ("a new file", libc::SYS_openat, [BAD, 0, 0o1101, 0o755, 0, 0]),
        // A mode that nobody set.
        ("a file", libc::SYS_openat, [BAD, 0, 0o200_000, u64::MAX, 0, 0]),
        ("a nameless file", libc::SYS_openat, [BAD, 0, 0o20_200_002, 0o600, 0, 0]),
        ("a local pair", libc::SYS_socketpair, [1, 1 | 0x8_0000, 0, 0, 0, 0]),
    ];
    for (name, number, arguments) in needed {
        assert_eq!(answer(&programs, &data(OWN, number, arguments)), ALLOW, "{name}");
    }
}

proptest! {
    #[test]
    fn conditions_mean_what_the_table_says(
        which in any::<prop::sample::Index>(),
        small in prop::array::uniform6(0_u64..300),
        high in prop::array::uniform6(any::<u32>()),
    ) {
        let calls: Vec<&Call> = RULES.iter().flat_map(|rule| rule.calls).collect();
        let call = which.get(&calls);
        let programs = programs();
        for arguments in [small, std::array::from_fn(|place| small[place] | u64::from(high[place]) << 32), high.map(u64::from)] {
            prop_assert_eq!(
                answer(&programs, &data(OWN, call.number, arguments)),
                expected(call.number, arguments),
                "{} {:?}", call.name, arguments
            );
        }
    }
}

#[test]
fn the_kernel_takes_the_programs() {
    let programs = programs();
    assert_eq!(programs.len(), 2);
    assert!(programs.iter().all(|program| program.len() < 4096));
}

#[test]
fn every_rule_has_a_reason_that_names_a_threat() {
    for rule in RULES {
        assert!(rule.reason.ends_with(')') && !rule.calls.is_empty(), "{rule:?}");
    }
}

/// The table as a person reads it.
fn table() -> String {
    let mut text = String::new();
    for Rule { reason, answer, calls } in RULES {
        writeln!(text, "{reason} → {answer:?}").unwrap();
        for Call { name, when, .. } in *calls {
            let condition = match when {
                When::Always => String::new(),
                When::Equals(argument, value) => format!(" if argument {argument} is {value:#x}"),
                When::NotZero(argument) => format!(" if argument {argument} is not zero"),
                When::AnyBit(argument, bits) => {
                    format!(
                        " if argument {argument} has a bit of {:#x}",
                        bits.iter().fold(0, |all, bit| all | bit)
                    )
                }
                When::BothBits((one, ones), (other, others)) => {
                    let all = |bits: &[u64]| bits.iter().fold(0, |all, bit| all | bit);
                    format!(
                        " if argument {one} has a bit of {:#o}, and argument {other} one of {:#o}",
                        all(ones),
                        all(others)
                    )
                }
                When::Socket => " but for the families and types that are allowed".to_owned(),
            };
            writeln!(text, "    {}{condition}", name.trim_start_matches("SYS_")).unwrap();
        }
    }
    text
}

fn disassemble(program: &[Instruction]) -> String {
    let mut text = String::new();
    for (at, Instruction { code, jt, jf, k }) in program.iter().enumerate() {
        let to = |offset: u8| at + 1 + usize::from(offset);
        let jump = |sign: &str| format!("if A {sign} {k:#x} goto {} else {}", to(*jt), to(*jf));
        let line = match code {
            0x20 => format!("A = data[{k}]"),
            0x54 => format!("A &= {k:#x}"),
            0x05 => format!("goto {}", at + 1 + usize::try_from(*k).unwrap()),
            0x15 => jump("=="),
            0x25 => jump(">"),
            0x35 => jump(">="),
            0x45 => jump("&"),
            0x06 => format!("return {k:#x}"),
            other => panic!("an instruction {other:#x}"),
        };
        writeln!(text, "{at:4}: {line}").unwrap();
    }
    text
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_table_and_its_programs() {
    insta::assert_snapshot!("table", table());
    let both: Vec<String> = programs().iter().map(|program| disassemble(program)).collect();
    insta::assert_snapshot!("programs", both.join("\n"));
}
