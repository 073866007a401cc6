//! Where the session bus is.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// The sockets at which a session bus may listen, the likeliest first. A name in the abstract space begins with a zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bus(Vec<PathBuf>);

impl Bus {
    /// Reads `DBUS_SESSION_BUS_ADDRESS`; where that names no socket, `$XDG_RUNTIME_DIR/bus` may be one. An address of
    /// the network or one that starts a program is never followed.
    pub fn from_environment(read: impl Fn(&str) -> Option<OsString>) -> Self {
        let address = read("DBUS_SESSION_BUS_ADDRESS").unwrap_or_default();
        let mut sockets: Vec<PathBuf> =
            address.as_bytes().split(|byte| *byte == b';').filter_map(socket).collect();
        if sockets.is_empty() {
            let directory = read("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
            sockets.extend(directory.map(|directory| directory.join("bus")));
        }
        Self(sockets)
    }

    /// Gives the sockets.
    pub(super) fn sockets(&self) -> &[PathBuf] {
        &self.0
    }
}

/// The socket of one address, as `unix:path=/run/user/1000/bus,guid=…` (D-Bus specification, "Server Addresses").
fn socket(address: &[u8]) -> Option<PathBuf> {
    let mut keys = address.strip_prefix(b"unix:")?.split(|byte| *byte == b',');
    keys.find_map(|pair| {
        if let Some(path) = pair.strip_prefix(b"path=") {
            let path = PathBuf::from(unescaped(path)?);
            return path.is_absolute().then_some(path);
        }
        let name = unescaped(pair.strip_prefix(b"abstract=")?)?;
        let bytes: Vec<u8> = [0].into_iter().chain(name.as_bytes().iter().copied()).collect();
        Some(PathBuf::from(OsString::from_vec(bytes)))
    })
}

/// Decodes `%20`; `None` where two digits do not follow.
fn unescaped(mut value: &[u8]) -> Option<OsString> {
    let mut bytes = Vec::new();
    while let Some((first, rest)) = value.split_first() {
        value = rest;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, rest) = value.split_at_checked(2)?;
        let digits = OsStr::from_bytes(digits).to_str().filter(|digits| !digits.starts_with('+'))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        value = rest;
    }
    Some(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(address: Option<&str>, runtime: Option<&str>, sockets: &[&str]) {
        let bus = Bus::from_environment(|name| match name {
            "DBUS_SESSION_BUS_ADDRESS" => address.map(Into::into),
            "XDG_RUNTIME_DIR" => runtime.map(Into::into),
            _ => None,
        });
        assert_eq!(bus.sockets(), sockets.iter().map(PathBuf::from).collect::<Vec<_>>(), "{address:?}");
    }

    #[test]
    fn the_bus_is_a_socket_of_the_variable_or_of_the_runtime_directory() {
        check(None, None, &[]);
        check(None, Some("/run/user/7"), &["/run/user/7/bus"]);
        check(None, Some("run"), &[]);
        check(Some("unix:path=/a/b,guid=01"), Some("/run/user/7"), &["/a/b"]);
        check(Some("unix:guid=01,path=/a%20b%2c"), None, &["/a b,"]);
        check(Some("unix:abstract=/tmp/x;unix:path=/y"), None, &["\0/tmp/x", "/y"]);
    }

    #[test]
    fn no_address_reaches_the_network_or_starts_a_program() {
        for address in [
            "",
            "tcp:host=127.0.0.1,port=1",
            "nonce-tcp:host=h,port=1,noncefile=/n",
            "unixexec:path=/bin/sh",
            "autolaunch:",
            "launchd:env=X",
            "unix:tmpdir=/tmp",
            "unix:path=relative",
            "unix:path=/a%2",
            "unix:path=/a%zz",
            "unix:path=/a%+1",
        ] {
            check(Some(address), None, &[]);
            check(Some(address), Some("/r"), &["/r/bus"]);
        }
    }
}
