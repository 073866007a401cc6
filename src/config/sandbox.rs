//! What a sandbox may reach, see and use: tiers, paths, variables, sizes and counts as they are written.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(super) mod environment;

/// How far a sandbox reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Nowhere: nothing answers.
    None,
    /// Through the guardian and nowhere else.
    Guarded,
    /// The internet and no private network.
    Inet,
    /// Whatever the host reaches.
    Full,
}

impl Network {
    /// The name that users read and write.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Guarded => "guarded",
            Self::Inet => "inet",
            Self::Full => "full",
        }
    }
}

/// Holds the section `files`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// Paths below the project that are read-only inside.
    pub protect: Vec<String>,
    /// Patterns of paths below the project that are hidden inside; `!` before one shows what it matches.
    pub mask: Vec<String>,
}

/// Is one entry of `mounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The absolute path on the host.
    pub source: PathBuf,
    /// The absolute path inside.
    pub target: PathBuf,
    /// Whether it can be written.
    pub mode: MountMode,
}

/// Tells whether a mount can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountMode {
    /// It can be read.
    ReadOnly,
    /// It can be read and written.
    ReadWrite,
}

/// Holds the section `limits`: what all processes of a sandbox may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Processors, in thousandths of one.
    pub cpus_milli: u32,
    /// Processes and threads.
    pub pids: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: 8 * GIB, cpus_milli: 4000, pids: 4096 }
    }
}

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// Says why a text is none of the values here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidValue {
    #[error("is no size; write a whole number with the unit `MiB` or `GiB`, such as `512MiB` or `8GiB`")]
    Size,
    #[error("is out of range; memory lies between `64MiB` and `1048576GiB`")]
    MemoryRange,
    #[error("is no number of processors; write one between `0.1` and `4096`, with at most three decimals")]
    Cpus,
    #[error("is no number of processes; write a whole number between `16` and `4194304`")]
    Pids,
    #[error(
        "a path below the project is relative, and holds no `..`, no empty part and no control character"
    )]
    ProjectPath,
    #[error("a path of the host begins with `/` or `~/`, and holds no `..` and no control character")]
    HostPath,
    #[error("a path inside the sandbox begins with `/`, and holds no `.`, no `..` and no control character")]
    InsidePath,
    #[error("is no store path; write one such as `/nix/store/<hash>-jq-1.7`")]
    StorePath,
}

/// Reads a size of memory, in bytes.
pub(super) fn memory(text: &str) -> Result<u64, InvalidValue> {
    let (number, unit) = [("KiB", 1024), ("MiB", MIB), ("GiB", GIB)]
        .into_iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
        .ok_or(InvalidValue::Size)?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = is_number.then(|| number.parse().ok()).flatten().ok_or(InvalidValue::Size)?;
    let bytes = number.checked_mul(unit).ok_or(InvalidValue::MemoryRange)?;
    (64 * MIB..=1024 * 1024 * GIB).contains(&bytes).then_some(bytes).ok_or(InvalidValue::MemoryRange)
}

/// Reads a number of processors, in thousandths.
pub(super) fn cpus(text: &str) -> Result<u32, InvalidValue> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || fraction.len() > 3 || whole.len() > 4 {
        return Err(InvalidValue::Cpus);
    }
    let milli = format!("{whole}{fraction:0<3}").parse().map_err(|_| InvalidValue::Cpus)?;
    (100..=4_096_000).contains(&milli).then_some(milli).ok_or(InvalidValue::Cpus)
}

/// Reads a number of processes.
pub(super) fn pids(text: &str) -> Result<u32, InvalidValue> {
    let number = text.parse().map_err(|_| InvalidValue::Pids)?;
    (16..=4_194_304).contains(&number).then_some(number).ok_or(InvalidValue::Pids)
}

/// Reads a path below the project.
pub(super) fn project_path(text: &str) -> Result<String, InvalidValue> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let is_plain = !text.contains(char::is_control)
        && text.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    is_plain.then(|| text.to_owned()).ok_or(InvalidValue::ProjectPath)
}

/// Reads a path of the host; `~` stands for `home`.
pub(super) fn host_path(text: &str, home: &Path) -> Result<PathBuf, InvalidValue> {
    let path = match text.strip_prefix("~/") {
        Some(below) => home.join(below),
        None => PathBuf::from(text),
    };
    let is_plain = path.is_absolute()
        && !text.contains(char::is_control)
        && !path.components().any(|part| part == Component::ParentDir);
    is_plain.then(|| path.components().collect()).ok_or(InvalidValue::HostPath)
}

/// Reads a path inside the sandbox.
pub(super) fn inside_path(text: &str) -> Result<PathBuf, InvalidValue> {
    let below = text.strip_prefix('/').ok_or(InvalidValue::InsidePath)?;
    project_path(below).map(|below| Path::new("/").join(below)).map_err(|_| InvalidValue::InsidePath)
}

/// Reads the path of one thing in the Nix store.
pub(super) fn store_path(text: &str) -> Result<PathBuf, InvalidValue> {
    let name = text.strip_prefix("/nix/store/").ok_or(InvalidValue::StorePath)?;
    let is_name = name.len() > 33
        && name.as_bytes()[32] == b'-'
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte));
    is_name.then(|| PathBuf::from(text)).ok_or(InvalidValue::StorePath)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_and_a_range() {
        assert_eq!(memory("512MiB"), Ok(512 * MIB));
        assert_eq!(memory("8GiB"), Ok(8 * GIB));
        assert_eq!(memory("65536KiB"), Ok(64 * MIB));
        for text in ["", "8", "GiB", "8GB", "8 GiB", "-1GiB", "1.5GiB", "+8GiB"] {
            assert_eq!(memory(text), Err(InvalidValue::Size), "{text}");
        }
        for text in ["63MiB", "0GiB", "1048577GiB", "99999999999999GiB"] {
            assert_eq!(memory(text), Err(InvalidValue::MemoryRange), "{text}");
        }
    }

    #[test]
    fn processors_are_counted_in_thousandths() {
        for (text, milli) in [("4", 4000), ("1.5", 1500), ("0.1", 100), ("2.125", 2125), ("4096", 4_096_000)]
        {
            assert_eq!(cpus(text), Ok(milli), "{text}");
        }
        for text in ["", "0", "0.05", "1.2345", "-1", "1e3", ".5", "1.", "4097", "99999"] {
            assert_eq!(cpus(text), Err(InvalidValue::Cpus), "{text}");
        }
    }

    #[test]
    fn processes_are_a_whole_number_in_range() {
        assert_eq!(pids("16"), Ok(16));
        for text in ["15", "0", "-1", "1.5", "4194305", "many"] {
            assert_eq!(pids(text), Err(InvalidValue::Pids), "{text}");
        }
    }

    #[test]
    fn paths_lead_nowhere_else() {
        let home = Path::new("/home/u");
        assert_eq!(host_path("~/a/b/", home), Ok("/home/u/a/b".into()));
        assert_eq!(host_path("/srv/x", home), Ok("/srv/x".into()));
        for text in ["", "~", "x", "~other/x", "/a/../b", "~/../x", "/a\nb"] {
            assert_eq!(host_path(text, home), Err(InvalidValue::HostPath), "{text}");
        }
        assert_eq!(project_path("ci/"), Ok("ci".to_owned()));
        for text in ["", "/", "/etc", "..", "a/../b", "./a", "a//b", "a\u{7}"] {
            assert_eq!(project_path(text), Err(InvalidValue::ProjectPath), "{text}");
        }
        assert_eq!(inside_path("/data/x"), Ok("/data/x".into()));
        for text in ["", "/", "data", "/a/../b", "/./a", "//a"] {
            assert_eq!(inside_path(text), Err(InvalidValue::InsidePath), "{text}");
        }
        assert!(store_path("/nix/store/00000000000000000000000000000000-jq-1.7").is_ok());
        for text in
            ["/nix/store", "/nix/store/jq", "/usr/bin/jq", "/nix/store/00000000000000000000000000000000-a/b"]
        {
            assert_eq!(store_path(text), Err(InvalidValue::StorePath), "{text}");
        }
    }
}
