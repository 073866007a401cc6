//! Attacks on files, processes and the kernel.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::Finding;
use crate::kernel::attempt::{self, Answer};

/// How much of a file is read, in bytes: some below `/proc` have no end.
const MAX_BYTES: u64 = 64 * 1024;

fn nothing(why: impl Into<String>) -> io::Error {
    io::Error::other(why.into())
}

fn beginning(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn holds(bytes: &[u8], needle: &str) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// Reads a file or lists a directory.
pub(super) fn read(path: &Path, expect: Option<&str>) -> io::Result<String> {
    if path.is_dir() {
        let count = fs::read_dir(path)?.count();
        return if count > 0 { Ok(format!("{count} entries")) } else { Err(nothing("empty")) };
    }
    let bytes = beginning(path)?;
    match expect {
        None if bytes.is_empty() => Err(nothing("empty")),
        None => Ok(format!("{} bytes", bytes.len())),
        Some(text) if holds(&bytes, text) => Ok("the canary's text".to_owned()),
        Some(_) => Err(nothing("another file")),
    }
}

pub(super) fn open_for_writing(path: &Path) -> io::Result<String> {
    fs::OpenOptions::new().write(true).open(path).map(|_| "opened".to_owned())
}

/// Looks through the process table, which knows this process too: itself it does not count.
pub(super) fn find_process(needle: &str) -> io::Result<String> {
    let own = std::process::id().to_string();
    let mut seen = 0_usize;
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if *name == own || !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        seen += 1;
        for file in ["cmdline", "environ"] {
            if beginning(&entry.path().join(file)).is_ok_and(|bytes| holds(&bytes, needle)) {
                return Ok(format!("process {name}, {file}"));
            }
        }
    }
    Err(nothing(format!("not among {seen} processes")))
}

pub(super) fn environment(names: &[String]) -> io::Result<String> {
    let set = names.iter().find(|name| std::env::var_os(name).is_some());
    set.map(|name| format!("`{name}` is set")).ok_or_else(|| nothing("none is set"))
}

/// Looks through the descriptors; the one that lists them does not count.
pub(super) fn descriptors() -> io::Result<String> {
    let directory = Path::new("/proc/self/fd");
    for entry in fs::read_dir(directory)?.flatten() {
        let name = entry.file_name();
        let number: u32 = name.to_string_lossy().parse().map_err(io::Error::other)?;
        let target = fs::read_link(directory.join(&name)).unwrap_or_default();
        let is_the_list = target.to_string_lossy().ends_with("/fd");
        if number > 2 && !is_the_list {
            return Ok(format!("descriptor {number}: {}", target.display()));
        }
    }
    Err(nothing("the standard ones only"))
}

/// Looks for any capability, also one that could be had again.
pub(super) fn capabilities() -> io::Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default().to_owned()
    };
    for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        let value = field(name);
        if value.bytes().any(|digit| digit != b'0') {
            return Ok(format!("{name} {value}"));
        }
    }
    match field("NoNewPrivs:").as_str() {
        "1" => Err(nothing("no capability, and none to be had")),
        other => Ok(format!("NoNewPrivs: {other}")),
    }
}

/// Makes a call; everything but the refusal that is asked for means that it reached the kernel.
pub(super) fn call(number: i64, arguments: [u64; 6], errno: i32) -> Finding {
    match attempt::call(number, arguments) {
        Err(error) => Finding::Failed(error.to_string()),
        Ok(Answer::Errno(found)) if found == errno => Finding::Refused(described(errno)),
        Ok(Answer::Errno(found)) => Finding::Reached(described(found)),
        Ok(Answer::Value(value)) => Finding::Reached(format!("returned {value}")),
        Ok(Answer::Killed(signal)) => Finding::Reached(format!("killed by signal {signal}")),
    }
}

fn described(errno: i32) -> String {
    io::Error::from_raw_os_error(errno).to_string()
}

/// Refused means killed, or no such call: nothing else keeps a 32-bit program from running.
pub(super) fn foreign_call() -> Finding {
    match attempt::foreign_call() {
        Err(error) => Finding::Failed(error.to_string()),
        Ok(None) => Finding::Refused("this processor has no such gate".to_owned()),
        Ok(Some(Answer::Value(value))) => Finding::Reached(format!("returned {value}")),
        Ok(Some(Answer::Killed(signal))) => Finding::Refused(format!("killed by signal {signal}")),
        Ok(Some(Answer::Errno(errno))) => Finding::Refused(described(errno)),
    }
}

/// Reads a byte of a process's memory, at the first address that it maps.
pub(super) fn memory(pid: i32) -> io::Result<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let address = maps.split('-').next().unwrap_or_default();
    let address = u64::from_str_radix(address, 16).map_err(|_| nothing("it maps nothing"))?;
    let mut file = fs::File::open(format!("/proc/{pid}/mem"))?;
    file.seek(SeekFrom::Start(address))?;
    file.read_exact(&mut [0])?;
    Ok("read its memory".to_owned())
}

/// Tells the loopback interface to be up, which it is.
pub(super) fn interface() -> Finding {
    match attempt::raise_loopback() {
        Err(error) => Finding::Failed(error.to_string()),
        Ok(Answer::Value(_)) => Finding::Reached("changed the flags of `lo`".to_owned()),
        Ok(Answer::Errno(errno)) => Finding::Refused(described(errno)),
        Ok(Answer::Killed(signal)) => Finding::Refused(format!("killed by signal {signal}")),
    }
}

pub(super) fn debug() -> io::Result<String> {
    attempt::trace_own_child().map(|steps| format!("{steps} single steps"))
}
