//! Opening what lies below a directory without following any link (F10).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

/// Opens the directory under which everything else is opened.
pub(super) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

/// Opens a directory or file below `root`; a pipe is not waited for.
pub(super) fn open(root: impl AsFd, path: &Path, kind: OFlags) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC | kind;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(root, path, flags, Mode::empty(), resolve)?)
}

/// Reads the beginning of an ordinary file.
pub(super) fn read(root: impl AsFd, path: &Path, max_bytes: u64) -> io::Result<(File, Vec<u8>)> {
    let mut file = File::from(open(root, path, OFlags::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not an ordinary file"));
    }
    let mut content = Vec::new();
    file.by_ref().take(max_bytes).read_to_end(&mut content)?;
    Ok((file, content))
}
