//! What is shown of the host's `/etc`: what programs need, and nothing that may hold a secret.
//!
//! Left out on purpose: `gitconfig` (credential helpers), `npmrc`, `pip.conf`, `apt/` and `environment` (passwords of
//! registries and proxies), `profile` and `profile.d/` (they set the host's `PATH` and proxy again), `sudoers`,
//! `shadow`, `ssh/`, `ssl/private/`, `subuid`, and the host's `machine-id`. Whatever others may not read is passed over.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::super::spec::Mount;

/// Up to which size a file is copied; a larger one is mounted.
const MAX_COPY_BYTES: u64 = 256 * 1024;

/// Where NixOS keeps what the other entries point to: a link into the store.
const STATIC: &str = "static";

/// Entries without which programs misbehave; a `*` at the end stands for any rest of the name. What another one
/// may point to comes first.
const CANDIDATES: [&str; 77] = [
    STATIC,
    "zoneinfo",
    "ImageMagick*",
    "alpine-release",
    "alternatives",
    "apk/arch",
    "apk/repositories",
    "apk/world",
    "arch-release",
    "bash.bashrc",
    "bash_completion.d",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "debian_version",
    "default/locale",
    "dpkg",
    "ethertypes",
    "fedora-release",
    "fish",
    "fonts",
    "gai.conf",
    "gprofng.rc",
    "groff",
    "host.conf",
    "inputrc",
    "issue",
    "java",
    "java-*",
    "jvm",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "ld-musl-*",
    "locale.alias",
    "locale.conf",
    "locale.gen",
    "localtime",
    "login.defs",
    "lsb-release",
    "magic",
    "magic.mime",
    "man_db.conf",
    "manpath.config",
    "maven/logging",
    "maven/m2.conf",
    "mime.types",
    "mke2fs.conf",
    "nanorc",
    "netconfig",
    "networks",
    "os-release",
    "papersize",
    "perl",
    "pki/ca-trust",
    "pki/java",
    "pki/tls/cert.pem",
    "pki/tls/certs",
    "pki/tls/openssl.cnf",
    "pki/tls/openssl.d",
    "protocols",
    "python2*",
    "python3*",
    "redhat-release",
    "rpc",
    "rpm",
    "services",
    "sgml",
    "ssl/cert.pem",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "texmf",
    "timezone",
    "vim",
    "xml",
    "zsh",
];

/// Looks at the host's `/etc`; `seen` is what the sandbox shows already, at the same place.
pub(super) fn gather(etc: &Path, seen: &[PathBuf]) -> Vec<Mount> {
    let mut found = Found { etc, seen: seen.to_vec(), has_lost_its_parts: false, mounts: Vec::new() };
    found.has_lost_its_parts = fs::canonicalize(etc.join(STATIC)).is_ok_and(|real| !found.is_seen(&real));
    let mut names: Vec<OsString> =
        fs::read_dir(etc).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    names.sort_unstable();
    for candidate in CANDIDATES {
        if let Some(start) = candidate.strip_suffix('*') {
            let matching = names.iter().filter(|name| name.to_string_lossy().starts_with(start));
            matching.for_each(|name| found.add(Path::new(name)));
        } else if names.iter().any(|name| Path::new(candidate).starts_with(name)) {
            found.add(Path::new(candidate));
        }
    }
    found.mounts
}

struct Found<'a> {
    etc: &'a Path,
    seen: Vec<PathBuf>,
    /// Whether directories hold links into a part of the Nix store that is not shown.
    has_lost_its_parts: bool,
    mounts: Vec<Mount>,
}

impl Found<'_> {
    fn add(&mut self, below: &Path) {
        let path = self.etc.join(below);
        let target = Path::new("/etc").join(below);
        let Ok(kind) = fs::symlink_metadata(&path) else { return };
        let mount = if below == Path::new(STATIC) && self.has_lost_its_parts {
            None
        } else if kind.is_symlink() {
            self.link(&path, &target)
        } else if kind.is_dir() && self.has_lost_its_parts {
            return self.entries(below, &path);
        } else {
            shown(&path, target)
        };
        if let Some(mount) = mount {
            self.seen.push(path);
            self.mounts.push(mount);
        }
    }

    /// A link stays one where the sandbox shows what it leads to: programs read the time zone's name from it.
    fn link(&self, path: &Path, target: &Path) -> Option<Mount> {
        let points_to = fs::read_link(path).ok()?;
        let real = fs::canonicalize(path).ok()?;
        let place = normal(&path.parent()?.join(&points_to));
        let target = target.to_owned();
        if self.is_seen(&place) {
            Some(Mount::Link { points_to, target })
        } else if self.is_seen(&real) {
            Some(Mount::Link { points_to: real, target })
        } else {
            shown(&real, target)
        }
    }

    fn is_seen(&self, path: &Path) -> bool {
        self.seen.iter().any(|seen| path.starts_with(seen))
    }

    /// A directory of links is put together again, each with what it leads to.
    fn entries(&mut self, below: &Path, path: &Path) {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            self.add(&below.join(entry.file_name()));
        }
    }
}

/// How a file or directory is shown that everybody may read on the host; nothing else is.
fn shown(real: &Path, target: PathBuf) -> Option<Mount> {
    let found = fs::metadata(real).ok()?;
    let source = real.to_owned();
    let is_open = |bits| found.mode() & bits == bits;
    let is_shown = if found.is_dir() { is_open(0o005) } else { found.is_file() && is_open(0o004) };
    let is_small = found.is_file() && found.len() <= MAX_COPY_BYTES;
    is_shown.then(|| match (is_small, source == target) {
        (true, _) => Mount::Copy { source, target },
        (false, true) => Mount::System { path: target },
        (false, false) => Mount::ReadOnly { source, target },
    })
}

/// The path without `.` and `..`, as text: no link is followed.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut normal, part| {
        match part {
            Component::ParentDir => drop(normal.pop()),
            Component::CurDir => {}
            part => normal.push(part),
        }
        normal
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    struct Host {
        top: PathBuf,
        _keep: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            let keep = tempfile::tempdir().unwrap();
            Self { top: fs::canonicalize(keep.path()).unwrap(), _keep: keep }
        }

        fn file(&self, below: &str, mode: u32) -> PathBuf {
            let path = self.top.join(below);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        }

        fn link(&self, below: &str, points_to: impl AsRef<Path>) {
            let path = self.top.join(below);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(points_to, path).unwrap();
        }

        fn gather(&self) -> Vec<Mount> {
            gather(&self.top.join("etc"), &[self.top.join("usr")])
        }
    }

    fn bind(source: PathBuf, target: &str) -> Mount {
        Mount::ReadOnly { source, target: target.into() }
    }

    fn copy(source: PathBuf, target: &str) -> Mount {
        Mount::Copy { source, target: target.into() }
    }

    fn link(points_to: impl Into<PathBuf>, target: &str) -> Mount {
        Mount::Link { points_to: points_to.into(), target: target.into() }
    }

    #[test]
    fn what_others_may_not_read_and_what_may_hold_secrets_is_passed_over() {
        let host = Host::new();
        let services = host.file("etc/services", 0o644);
        host.file("etc/protocols", 0o600);
        for secret in ["shadow", "gitconfig", "npmrc", "pip.conf", "ssl/private/key", "apt/auth.conf"] {
            host.file(&format!("etc/{secret}"), 0o644);
        }
        assert_eq!(host.gather(), [copy(services, "/etc/services")]);
    }

    #[test]
    fn large_files_are_mounted() {
        let host = Host::new();
        let large = host.file("etc/mime.types", 0o644);
        fs::File::options().write(true).open(&large).unwrap().set_len(MAX_COPY_BYTES + 1).unwrap();
        assert_eq!(host.gather(), [bind(large, "/etc/mime.types")]);
    }

    #[test]
    fn names_with_a_star_find_all_versions() {
        let host = Host::new();
        for name in ["java-17-openjdk", "java-21-openjdk", "javascript"] {
            host.file(&format!("etc/{name}/file"), 0o644);
        }
        let etc = host.top.join("etc");
        let expected =
            ["java-17-openjdk", "java-21-openjdk"].map(|name| bind(etc.join(name), &format!("/etc/{name}")));
        assert_eq!(host.gather(), expected);
    }

    #[test]
    fn links_stay_links_where_their_targets_are_seen_and_become_files_elsewhere() {
        let host = Host::new();
        let zone = host.file("usr/share/zoneinfo/Europe/Vienna", 0o644);
        host.file("usr/lib/os-release", 0o644);
        let elsewhere = host.file("var/lib/services", 0o644);
        host.link("etc/localtime", &zone);
        host.link("etc/os-release", "../usr/lib/os-release");
        host.link("etc/protocols", "nothing");
        host.link("etc/services", &elsewhere);
        let expected = [
            link(zone, "/etc/localtime"),
            link("../usr/lib/os-release", "/etc/os-release"),
            copy(elsewhere, "/etc/services"),
        ];
        assert_eq!(host.gather(), expected);
    }

    #[test]
    fn nixos_links_lead_into_the_store() {
        let host = Host::new();
        let store = host.top.join("nix/store/1-etc/etc");
        host.file("nix/store/1-etc/etc/zoneinfo/Europe/Vienna", 0o644);
        let bundle = host.file("nix/store/1-etc/etc/ssl/certs/ca-bundle.crt", 0o644);
        host.link("etc/static", &store);
        host.link("etc/zoneinfo", host.top.join("etc/static/zoneinfo"));
        host.link("etc/localtime", host.top.join("etc/zoneinfo/Europe/Vienna"));
        host.link("etc/ssl/certs/ca-bundle.crt", host.top.join("etc/static/ssl/certs/ca-bundle.crt"));
        let etc = host.top.join("etc");
        let whole = gather(&etc, &[host.top.join("nix/store")]);
        let expected = [
            link(store.clone(), "/etc/static"),
            link(etc.join("static/zoneinfo"), "/etc/zoneinfo"),
            link(etc.join("zoneinfo/Europe/Vienna"), "/etc/localtime"),
            bind(etc.join("ssl/certs"), "/etc/ssl/certs"),
        ];
        assert_eq!(whole, expected);
        // A store of which only some paths are shown: what the links lead to is put in their places.
        let expected = [
            bind(store.join("zoneinfo"), "/etc/zoneinfo"),
            link(etc.join("zoneinfo/Europe/Vienna"), "/etc/localtime"),
            copy(bundle, "/etc/ssl/certs/ca-bundle.crt"),
        ];
        assert_eq!(gather(&etc, &[]), expected);
    }
}
