//! Where keys, credentials and histories lie, and which directories hold sockets: what no sandbox is shown, whatever
//! is asked for.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Places below a home directory that hold keys, passwords, tokens, cookies or what somebody typed.
const OF_A_USER: [&str; 58] = [
    ".ansible",
    ".authinfo",
    ".authinfo.gpg",
    ".aws",
    ".azure",
    ".bash_history",
    ".bitcoin",
    ".boto",
    ".cargo/credentials",
    ".cargo/credentials.toml",
    ".claude.json",
    ".claude/.credentials.json",
    ".claude/history.jsonl",
    ".claude/projects",
    ".codex",
    ".config",
    ".docker",
    ".electrum",
    ".gem/credentials",
    ".gemini",
    ".git-credentials",
    ".gnupg",
    ".gradle/gradle.properties",
    ".kube",
    ".lesshst",
    ".local/share/fish",
    ".local/share/gnome-keyring",
    ".local/share/keyrings",
    ".local/share/kwalletd",
    ".local/state/cloister",
    ".m2/settings-security.xml",
    ".m2/settings.xml",
    ".minikube",
    ".mozilla",
    ".my.cnf",
    ".mysql_history",
    ".netrc",
    ".node_repl_history",
    ".npmrc",
    ".oci",
    ".op",
    ".password-store",
    ".pgpass",
    ".pki",
    ".psql_history",
    ".pypirc",
    ".python_history",
    ".s3cfg",
    ".snowflake",
    ".sqlite_history",
    ".ssh",
    ".terraform.d",
    ".thunderbird",
    ".var/app",
    ".vault-token",
    ".viminfo",
    ".zsh_history",
    "snap",
];

/// Places of the system that hold keys and passwords.
const OF_THE_SYSTEM: [&str; 18] = [
    "/etc/NetworkManager",
    "/etc/docker",
    "/etc/gshadow",
    "/etc/krb5.keytab",
    "/etc/kubernetes",
    "/etc/letsencrypt",
    "/etc/pki/tls/private",
    "/etc/rancher",
    "/etc/shadow",
    "/etc/ssh",
    "/etc/ssl/private",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/wireguard",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/kubelet",
];

/// The places that hold keys on this host, under the names that they have and those to which they lead.
pub(super) fn places(home: &Path, config: &Path) -> Vec<PathBuf> {
    let of_root = (home != Path::new("/root")).then(|| PathBuf::from("/root"));
    let named: Vec<PathBuf> = OF_A_USER
        .iter()
        .map(|place| home.join(place))
        .chain(OF_THE_SYSTEM.map(PathBuf::from))
        .chain(of_root)
        .chain([config.to_owned()])
        .collect();
    // Most are not there: one look each is enough to know.
    let there = named.iter().filter(|place| fs::metadata(place).is_ok());
    let led_to = there.filter_map(|place| fs::canonicalize(place).ok());
    let mut all: Vec<PathBuf> = led_to.chain(named.iter().cloned()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// How far a directory is surveyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// How many levels of directories.
    pub levels: usize,
    /// How many entries in all.
    pub entries: usize,
}

/// What of a directory matters before it is shown to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    /// The first Unix socket.
    pub socket: Option<PathBuf>,
    /// Everything that is called `.git`.
    pub repositories: Vec<PathBuf>,
    /// The first place that was not looked at.
    pub unseen: Option<Unseen>,
}

/// A place that was not looked at, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unseen {
    /// It lies beyond the reach.
    Beyond(PathBuf),
    /// It can't be read.
    Closed(PathBuf),
}

/// Looks through a directory as far as the reach goes, following no link.
pub fn survey(directory: &Path, reach: Reach) -> Survey {
    let mut survey = Survey::default();
    let mut level = vec![directory.to_owned()];
    let mut left = reach.entries;
    for _ in 0..reach.levels {
        let mut next = Vec::new();
        for directory in &level {
            let Ok(entries) = fs::read_dir(directory) else {
                survey.miss(Unseen::Closed(directory.clone()));
                continue;
            };
            for entry in entries {
                let Ok((kind, entry)) = entry.and_then(|entry| Ok((entry.file_type()?, entry))) else {
                    survey.miss(Unseen::Closed(directory.clone()));
                    continue;
                };
                let Some(fewer) = left.checked_sub(1) else {
                    survey.miss(Unseen::Beyond(directory.clone()));
                    return survey;
                };
                left = fewer;
                if kind.is_socket() && survey.socket.is_none() {
                    survey.socket = Some(entry.path());
                }
                if entry.file_name() == ".git" {
                    survey.repositories.push(entry.path());
                } else if kind.is_dir() {
                    next.push(entry.path());
                }
            }
        }
        level = next;
    }
    if let Some(deeper) = level.into_iter().next() {
        survey.miss(Unseen::Beyond(deeper));
    }
    survey
}

impl Survey {
    fn miss(&mut self, unseen: Unseen) {
        self.unseen.get_or_insert(unseen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn keys_are_known_where_they_are_named_and_where_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(directory.path()).unwrap();
        let (home, dotfiles) = (top.join("home"), top.join("dotfiles/config"));
        fs::create_dir_all(&home).unwrap();
        fs::create_dir_all(&dotfiles).unwrap();
        symlink(&dotfiles, home.join(".config")).unwrap();
        let found = places(&home, &top.join("elsewhere"));
        for place in
            [home.join(".ssh"), home.join(".config"), dotfiles, top.join("elsewhere"), "/etc/shadow".into()]
        {
            assert!(found.contains(&place), "{}", place.display());
        }
        assert!(found.contains(&"/root".into()));
        assert!(!places(Path::new("/root"), &home).contains(&"/root".into()));
    }

    #[test]
    fn k1_a_socket_is_found_within_reach() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("one/two");
        fs::create_dir_all(&deep).unwrap();
        let socket = deep.join("s");
        let _listener = UnixListener::bind(&socket).unwrap();
        let look = |levels, entries| survey(directory.path(), Reach { levels, entries }).socket;
        assert_eq!(look(3, 100), Some(socket));
        assert_eq!(look(2, 100), None, "too deep");
        assert_eq!(look(3, 2), None, "too many");
    }

    #[test]
    fn f3_what_was_not_looked_at_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let (top, deep) = (directory.path().to_owned(), directory.path().join("one/two"));
        fs::create_dir_all(&deep).unwrap();
        let look = |levels, entries| survey(&top, Reach { levels, entries }).unseen;
        assert_eq!(look(3, 2), None);
        assert_eq!(look(2, 2), Some(Unseen::Beyond(deep)));
        assert_eq!(look(3, 1), Some(Unseen::Beyond(top.join("one"))));
        let missing = survey(&top.join("missing"), Reach { levels: 3, entries: 2 }).unseen;
        assert_eq!(missing, Some(Unseen::Closed(top.join("missing"))));
    }

    #[test]
    fn repositories_are_found_and_not_entered() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("one/.git"), directory.path().join("two/.git"));
        fs::create_dir_all(one.join("modules/.git")).unwrap();
        fs::create_dir_all(two.parent().unwrap()).unwrap();
        fs::write(&two, "gitdir: elsewhere").unwrap();
        symlink(directory.path(), directory.path().join("round")).unwrap();
        let mut found = survey(directory.path(), Reach { levels: 9, entries: 100 }).repositories;
        found.sort_unstable();
        assert_eq!(found, [one, two]);
    }
}
