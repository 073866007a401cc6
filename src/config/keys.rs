//! The one table of all keys: type, default, meaning, and whether a key can widen what a sandbox may do.

use std::fmt::{self, Display, Formatter};

/// Describes one key of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The key with its sections, as in `proxy.allow`.
    pub path: &'static str,
    /// What may stand there.
    pub kind: Kind,
    /// What holds when the key is absent, as it would be written.
    pub default: &'static str,
    /// Whether it can give a sandbox more.
    pub power: Power,
    /// What it means, in a few words.
    pub meaning: &'static str,
}

/// Tells whether a key can give a sandbox more than it had (invariant 4); in doubt a key widens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Some value of it opens something or protects less: a project's file may use it only once a human approved it.
    Widens,
    /// No value of it gives a sandbox anything that it could not do by itself.
    Narrows,
}

/// Tells what may stand at a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One of some words.
    Choice(&'static [&'static str]),
    /// An absolute path inside the sandbox.
    Path,
    /// A number with the unit `s`, `m` or `h`.
    Duration,
    /// A list of patterns with optional ports.
    Patterns,
    /// A list of names, some with `*.`, without ports.
    Names,
    /// A map from names to lists of addresses.
    Pins,
    /// A list of names of environment variables.
    Variables,
    /// A map from environment variables to their values.
    Values,
    /// A number of bytes with a unit.
    Size,
    /// A number of processors, with up to three decimals.
    Processors,
    /// A whole number.
    Count,
    /// A list of paths below the project.
    ProjectPaths,
    /// A list of patterns of paths below the project; `!` before one takes it back.
    Globs,
    /// A list of paths of the host.
    HostPaths,
    /// A list of paths below `/nix/store`.
    StorePaths,
    /// A list of maps that say what of the host is seen where.
    Mounts,
    /// A program of the host and its arguments.
    Command,
    /// `true` or `false`.
    Switch,
    /// The address of a forward proxy.
    Upstream,
}

impl Display for Kind {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Choice(words) => write!(formatter, "one of {}", listed(words)),
            Self::Path => formatter.write_str("an absolute path such as `/bin/bash`"),
            Self::Duration => formatter.write_str("a duration such as `90s`, `10m` or `1h`"),
            Self::Patterns => {
                formatter.write_str(r#"a list of hosts such as `["example.com", "*.example.org:8443"]`"#)
            }
            Self::Names => formatter.write_str(r#"a list of names such as `["git.corp.example"]`"#),
            Self::Pins => formatter
                .write_str(r#"a map from names to lists of addresses such as `{db.corp: ["10.1.2.3"]}`"#),
            Self::Variables => formatter.write_str(r#"a list of names of variables such as `["LANG"]`"#),
            Self::Values => {
                formatter.write_str(r#"a map from names of variables to texts such as `{LANG: "C.UTF-8"}`"#)
            }
            Self::Size => formatter.write_str("a size such as `512MiB` or `8GiB`"),
            Self::Processors => formatter.write_str("a number of processors such as `4` or `1.5`"),
            Self::Count => formatter.write_str("a whole number such as `4096`"),
            Self::ProjectPaths => {
                formatter.write_str(r#"a list of paths below the project such as `["deploy.sh", "ci"]`"#)
            }
            Self::Globs => {
                formatter.write_str(r#"a list of patterns such as `["secrets/*.json", "!.env.test"]`"#)
            }
            Self::HostPaths => formatter.write_str(r#"a list of paths such as `["~/repos/shared-lib"]`"#),
            Self::StorePaths => {
                formatter.write_str(r#"a list of store paths such as `["/nix/store/…-jq-1.7"]`"#)
            }
            Self::Command => formatter.write_str(
                r#"a list of a program and its arguments such as `["notify-send", "a sandbox asks"]`"#,
            ),
            Self::Switch => formatter.write_str("`true` or `false`"),
            Self::Upstream => formatter.write_str("a proxy such as `http://proxy.corp:3128`"),
            Self::Mounts => {
                formatter.write_str("a list of mounts such as `[{source: ~/data, target: /data, mode: ro}]`")
            }
        }
    }
}

/// Writes words as a list in code marks.
pub(super) fn listed(words: &[impl Display]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// Lists all keys, in the order in which they are documented.
pub const KEYS: &[Key] = &[
    Key {
        path: "backend",
        kind: Kind::Choice(&["auto", "docker", "bubblewrap"]),
        default: "auto",
        power: Power::Widens,
        meaning: "what builds the sandbox",
    },
    Key {
        path: "network",
        kind: Kind::Choice(&["none", "guarded", "inet", "full"]),
        default: "guarded",
        power: Power::Widens,
        meaning: "how far a sandbox reaches: nowhere, or through the guardian",
    },
    Key {
        path: "shell",
        kind: Kind::Path,
        default: "/bin/bash",
        power: Power::Narrows,
        meaning: "the shell of a session without a command",
    },
    Key {
        path: "proxy.allow",
        kind: Kind::Patterns,
        default: "[]",
        power: Power::Widens,
        meaning: "where a sandbox may connect; without a port, to 443 and 80",
    },
    Key {
        path: "proxy.deny",
        kind: Kind::Patterns,
        default: "[]",
        power: Power::Narrows,
        meaning: "where a sandbox may never connect; beats every allow rule and every answer",
    },
    Key {
        path: "proxy.unlisted",
        kind: Kind::Choice(&["ask", "reject"]),
        default: "ask",
        power: Power::Widens,
        meaning: "what happens to a host that no rule covers",
    },
    Key {
        path: "proxy.hosts",
        kind: Kind::Pins,
        default: "{}",
        power: Power::Widens,
        meaning: "names that stand for fixed addresses, private ones too; allows nothing by itself",
    },
    Key {
        path: "proxy.private",
        kind: Kind::Names,
        default: "[]",
        power: Power::Widens,
        meaning: "names that may resolve to private addresses",
    },
    Key {
        path: "proxy.rate_limit.per_minute",
        kind: Kind::Count,
        default: "1200",
        power: Power::Widens,
        meaning: "how many requests a sandbox may make in a minute, in the long run",
    },
    Key {
        path: "proxy.rate_limit.burst",
        kind: Kind::Count,
        default: "600",
        power: Power::Widens,
        meaning: "how many requests a sandbox may make at once, after a time of silence",
    },
    Key {
        path: "proxy.max_tunnels",
        kind: Kind::Count,
        default: "512",
        power: Power::Widens,
        meaning: "how many tunnels and requests of a sandbox may be open together",
    },
    Key {
        path: "proxy.idle_timeout",
        kind: Kind::Duration,
        default: "10m",
        power: Power::Widens,
        meaning: "how long a tunnel may be silent before it is closed, from 1s to 24h",
    },
    Key {
        path: "proxy.max_duration",
        kind: Kind::Duration,
        default: "24h",
        power: Power::Widens,
        meaning: "how long a tunnel may last, whatever flows in it, from 1s to 24h",
    },
    Key {
        path: "proxy.upstream",
        kind: Kind::Upstream,
        default: "null",
        power: Power::Widens,
        meaning: "the proxy through which the guardian goes out, such as `http://user:password@proxy.corp:3128`",
    },
    Key {
        path: "proxy.approval_timeout",
        kind: Kind::Duration,
        default: "60s",
        power: Power::Widens,
        meaning: "how long a connection waits for somebody's answer before it is refused, from 5s to 1h",
    },
    Key {
        path: "approvals.notify",
        kind: Kind::Switch,
        default: "true",
        power: Power::Widens,
        meaning: "whether a request that waits for an answer is shown as a notification of the desktop",
    },
    Key {
        path: "approvals.bell",
        kind: Kind::Switch,
        default: "true",
        power: Power::Widens,
        meaning: "whether such a request rings the bell of the terminals of its cloister's sessions",
    },
    Key {
        path: "approvals.notify_command",
        kind: Kind::Command,
        default: "null",
        power: Power::Widens,
        meaning: "a program of the host and its arguments, run for such a request; an empty list means none",
    },
    Key {
        path: "files.protect",
        kind: Kind::ProjectPaths,
        default: "[]",
        power: Power::Narrows,
        meaning: "more paths of the project that are read-only inside",
    },
    Key {
        path: "files.mask",
        kind: Kind::Globs,
        default: "[]",
        power: Power::Widens,
        meaning: "more files of the project that are hidden inside; `!` before a pattern shows them",
    },
    Key {
        path: "refs",
        kind: Kind::HostPaths,
        default: "[]",
        power: Power::Widens,
        meaning: "directories of the host that are read-only at `/refs/<name>`",
    },
    Key {
        path: "mounts",
        kind: Kind::Mounts,
        default: "[]",
        power: Power::Widens,
        meaning: "files and directories of the host, and where they are seen, `ro` or `rw`",
    },
    Key {
        path: "env.pass",
        kind: Kind::Variables,
        default: "[]",
        power: Power::Widens,
        meaning: "variables of the host that a sandbox gets",
    },
    Key {
        path: "env.set",
        kind: Kind::Values,
        default: "{}",
        power: Power::Narrows,
        meaning: "variables that a sandbox gets with these values; beats `env.pass`",
    },
    Key {
        path: "limits.memory",
        kind: Kind::Size,
        default: "8GiB",
        power: Power::Widens,
        meaning: "how much memory all processes of a sandbox have together, from 64MiB",
    },
    Key {
        path: "limits.cpus",
        kind: Kind::Processors,
        default: "4",
        power: Power::Widens,
        meaning: "how many processors all processes of a sandbox may keep busy, from 0.1",
    },
    Key {
        path: "limits.pids",
        kind: Kind::Count,
        default: "4096",
        power: Power::Widens,
        meaning: "how many processes and threads a sandbox may have, from 16",
    },
    Key {
        path: "tools",
        kind: Kind::StorePaths,
        default: "[]",
        power: Power::Widens,
        meaning: "store paths whose programs a sandbox gets, with all they need, in place of the whole Nix store",
    },
    Key {
        path: "audit.per_cloister",
        kind: Kind::Switch,
        default: "true",
        power: Power::Widens,
        meaning: "whether every cloister gets an audit file of its own besides the one for all; `config.yaml` only",
    },
    Key {
        path: "audit.max_size",
        kind: Kind::Size,
        default: "64MiB",
        power: Power::Widens,
        meaning: "how large an audit file grows before the next one is begun; `config.yaml` only",
    },
    Key {
        path: "audit.max_files",
        kind: Kind::Count,
        default: "32",
        power: Power::Widens,
        meaning: "how many full audit files are kept, of all and of each cloister; `config.yaml` only",
    },
];

/// Finds a key by its path.
pub(super) fn key(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Lists the names that may stand in a section; the whole file is the section `""`.
pub(super) fn names_in(section: &str) -> Vec<&'static str> {
    let mut names = Vec::new();
    for key in KEYS {
        let rest = match section {
            "" => Some(key.path),
            _ => key.path.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')),
        };
        let name = rest.map(|rest| rest.split_once('.').map_or(rest, |(name, _)| name));
        names.extend(name.filter(|name| !names.contains(name)));
    }
    names
}

/// Proposes what was meant by an unknown key.
pub(super) fn proposal(section: &str, unknown: &str) -> String {
    let names = names_in(section);
    if let Some(name) = nearest(unknown, &names) {
        return format!("did you mean `{name}`?");
    }
    let elsewhere = KEYS.iter().find(|key| key.path.rsplit('.').next() == Some(unknown));
    elsewhere.map_or_else(
        || format!("the keys known here are {}", listed(&names)),
        |key| format!("did you mean `{}`?", key.path),
    )
}

/// Finds the word that a misspelt one most likely stands for.
pub(super) fn nearest<'w>(unknown: &str, words: &[&'w str]) -> Option<&'w str> {
    let unknown = unknown.to_lowercase();
    let likeness = |word: &str| strsim::jaro_winkler(&unknown, word);
    let best = words.iter().copied().max_by(|one, other| likeness(one).total_cmp(&likeness(other)))?;
    (likeness(best) > 0.8).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::{KEYS, names_in, proposal};

    #[test]
    fn sections_know_their_names() {
        assert_eq!(
            names_in(""),
            [
                "backend",
                "network",
                "shell",
                "proxy",
                "approvals",
                "files",
                "refs",
                "mounts",
                "env",
                "limits",
                "tools",
                "audit"
            ]
        );
        assert_eq!(names_in("env"), ["pass", "set"]);
        assert_eq!(names_in("en"), [""; 0]);
    }

    #[test]
    fn every_key_stands_once_in_the_table() {
        for (at, key) in KEYS.iter().enumerate() {
            assert!(KEYS[at + 1..].iter().all(|other| other.path != key.path), "{}", key.path);
        }
    }

    #[test]
    fn s3_the_nearest_key_is_proposed() {
        assert_eq!(proposal("proxy", "alow"), "did you mean `allow`?");
        assert_eq!(proposal("proxy", "idleTimeout"), "did you mean `idle_timeout`?");
        assert_eq!(proposal("", "Proxies"), "did you mean `proxy`?");
        assert_eq!(proposal("", "allow"), "did you mean `proxy.allow`?");
        assert_eq!(proposal("env", "zzz"), "the keys known here are `pass`, `set`");
    }
}
