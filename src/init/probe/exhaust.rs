//! Attacks by appetite (K14): each takes until something stops it or its own ceiling is met, and gives all back.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Finding;
use crate::kernel::attempt::Crowd;
use crate::process;

const MEBIBYTE: usize = 1024 * 1024;

fn stopped_at(count: impl std::fmt::Display, error: &io::Error) -> Finding {
    Finding::Refused(format!("stopped at {count}: {error}"))
}

pub(super) fn processes(ceiling: usize) -> Finding {
    let mut crowd = Crowd::default();
    match crowd.grow(ceiling) {
        Some(error) => stopped_at(crowd.len(), &error),
        None => Finding::Reached(format!("{} processes at once", crowd.len())),
    }
}

/// Fills the memory of a child: what stops a hog is a kill.
pub(super) fn memory(ceiling: u64) -> Finding {
    let hog = || {
        let mut command = process::command(process::own_binary()?);
        command.args(["sandbox-init", "hold", &ceiling.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut said = Vec::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_end(&mut said)?;
        }
        drop(child.stdin.take());
        let status = child.wait()?;
        Ok((!said.is_empty(), status.to_string()))
    };
    match hog() {
        Ok((true, _)) => Finding::Reached(format!("held {} MiB", ceiling / MEBIBYTE as u64)),
        Ok((false, status)) => Finding::Refused(format!("stopped: {status}")),
        Err(error) => Finding::Failed(io::Error::to_string(&error)),
    }
}

/// Writes to memory page by page, then says so.
pub(super) fn hold_memory(bytes: u64) -> io::Result<()> {
    let pieces = usize::try_from(bytes).map_err(io::Error::other)? / MEBIBYTE;
    let mut held = Vec::new();
    for piece in 0..pieces {
        let mut memory: Vec<u8> = Vec::new();
        memory.try_reserve_exact(MEBIBYTE).map_err(io::Error::other)?;
        memory.resize(MEBIBYTE, u8::try_from(piece % 255).unwrap_or(1) + 1);
        held.push(memory);
    }
    let total: usize = held.iter().map(Vec::len).sum();
    writeln!(io::stdout().lock(), "{total}")
}

pub(super) fn open_files(ceiling: usize) -> Finding {
    // A process may raise its own limit as far as this goes.
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        return Finding::Failed(error.to_string());
    }
    let mut files = Vec::new();
    while files.len() < ceiling {
        match File::open("/dev/null") {
            Ok(file) => files.push(file),
            Err(error) => return stopped_at(files.len(), &error),
        }
    }
    Finding::Reached(format!("{ceiling} descriptors at once"))
}

pub(super) fn disk(directory: &Path, ceiling: u64) -> Finding {
    let path = directory.join("probe-disk");
    let chunk = vec![0x55; MEBIBYTE];
    let fill = |written: &mut u64| -> io::Result<()> {
        let mut file = File::create(&path)?;
        // Whatever ends this process ends the file.
        fs::remove_file(&path)?;
        while *written < ceiling {
            file.write_all(&chunk)?;
            *written += chunk.len() as u64;
        }
        Ok(())
    };
    let mut written = 0;
    match fill(&mut written) {
        Err(error) => stopped_at(format_args!("{} MiB", written / MEBIBYTE as u64), &error),
        Ok(()) => Finding::Reached(format!("wrote {} MiB", written / MEBIBYTE as u64)),
    }
}

pub(super) fn inodes(directory: &Path, ceiling: usize) -> Finding {
    let folder = directory.join("probe-inodes");
    let fill = |made: &mut usize| -> io::Result<()> {
        fs::create_dir(&folder)?;
        while *made < ceiling {
            File::create(folder.join(made.to_string()))?;
            *made += 1;
        }
        Ok(())
    };
    let mut made = 0;
    let result = fill(&mut made);
    // What was never made needs no removing.
    let _ = fs::remove_dir_all(&folder);
    match result {
        Err(error) => stopped_at(format_args!("{made} files"), &error),
        Ok(()) => Finding::Reached(format!("made {made} files")),
    }
}
