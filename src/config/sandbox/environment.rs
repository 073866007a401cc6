//! Environment variables that a sandbox may get: their names, their values, and which ones are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug, Display, Formatter};

use secrecy::{ExposeSecret, SecretString};

/// Says why a variable may not be named in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RefusedVariable {
    /// It is no name of a variable.
    #[error("`{}` is no name of a variable; letters, digits and `_` may stand there, no digit first", .0.escape_debug())]
    Invalid(String),
    /// Cloister gives it a value of its own.
    #[error("`{0}` is set by Cloister itself; remove it here")]
    SetByCloister(String),
    /// Its value leads to a service of the host.
    #[error("`{name}` {reason}, which a sandbox must not reach; remove it here")]
    LeadsToHost {
        /// The variable.
        name: String,
        /// Where it leads.
        reason: &'static str,
    },
    /// Its value on the host means nothing inside.
    #[error("`PATH` of the host names directories of the host; set it with `env.set`")]
    HostPath,
}

/// Names an environment variable that a sandbox may get.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EnvName(String);

impl EnvName {
    /// Checks the name of a variable that gets its value from the configuration.
    pub fn parse_to_set(text: &str) -> Result<Self, RefusedVariable> {
        let mut bytes = text.bytes();
        let starts_well = bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_');
        if !starts_well || !bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(RefusedVariable::Invalid(text.to_owned()));
        }
        let upper = text.to_ascii_uppercase();
        if OWN_IN_ANY_CASE.contains(&upper.as_str()) || OWN.contains(&text) || text.starts_with("CLOISTER_") {
            return Err(RefusedVariable::SetByCloister(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// Checks the name of a variable that gets its value from the host: no way to the host's services leads in.
    pub fn parse_to_pass(text: &str) -> Result<Self, RefusedVariable> {
        let name = Self::parse_to_set(text)?;
        if text == "PATH" {
            return Err(RefusedVariable::HostPath);
        }
        match way_to_host(text) {
            Some(reason) => Err(RefusedVariable::LeadsToHost { name: text.to_owned(), reason }),
            None => Ok(name),
        }
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for EnvName {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Holds the value of a variable, which may be a secret: it is never printed.
#[derive(Clone)]
pub struct EnvValue(SecretString);

impl EnvValue {
    /// Checks a value; a NUL can't stand in an environment.
    pub fn parse(text: &str) -> Option<Self> {
        (!text.contains('\0')).then(|| Self(SecretString::from(text)))
    }

    /// Returns the value, for the sandbox's environment only.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl Debug for EnvValue {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("EnvValue(…)")
    }
}

impl PartialEq for EnvValue {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for EnvValue {}

/// Holds the variables that a sandbox gets besides Cloister's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// Variables that keep the host's value.
    pub pass: BTreeSet<EnvName>,
    /// Variables with a fixed value, which beats the host's.
    pub set: BTreeMap<EnvName, EnvValue>,
}

impl Environment {
    /// Gives the variables and their values; `host` looks a variable of the host up.
    pub fn resolve(&self, host: impl Fn(&str) -> Option<String>) -> BTreeMap<EnvName, EnvValue> {
        let passed = |name: &EnvName| Some((name.clone(), EnvValue::parse(&host(name.as_str())?)?));
        let mut variables: BTreeMap<_, _> = self.pass.iter().filter_map(passed).collect();
        variables.extend(self.set.clone());
        variables
    }
}

/// Lists what Cloister sets and programs read in upper and lower case.
const OWN_IN_ANY_CASE: &[&str] =
    &["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "FTP_PROXY", "NODE_USE_ENV_PROXY"];

/// Lists what else Cloister sets, besides everything that begins with `CLOISTER_`.
const OWN: &[&str] = &["CLOISTER", "HOME", "USER", "LOGNAME"];

const AGENT: &str = "leads to an agent that uses your keys";
const ENGINE: &str = "leads to a container engine, which is root on the host";
const BUS: &str = "leads to the session's bus or manager, which starts programs on the host";
const SCREEN: &str = "leads to your screen and keyboard";
const SOCKET: &str = "names a socket of the host";

/// Lists variables whose value is an address of a service of the host (K1 to K5).
const WAYS_TO_HOST: &[(&str, &str)] = &[
    ("SSH_AUTH_SOCK", AGENT),
    ("SSH_AGENT_PID", AGENT),
    ("SSH_ASKPASS", AGENT),
    ("GIT_ASKPASS", AGENT),
    ("SUDO_ASKPASS", AGENT),
    ("GPG_AGENT_INFO", AGENT),
    ("GNOME_KEYRING_CONTROL", AGENT),
    ("GNOME_KEYRING_PID", AGENT),
    ("KRB5CCNAME", AGENT),
    ("DOCKER_HOST", ENGINE),
    ("DOCKER_CONTEXT", ENGINE),
    ("CONTAINER_HOST", ENGINE),
    ("CONTAINERD_ADDRESS", ENGINE),
    ("BUILDKIT_HOST", ENGINE),
    ("NIX_REMOTE", SOCKET),
    ("DBUS_SESSION_BUS_ADDRESS", BUS),
    ("DBUS_SYSTEM_BUS_ADDRESS", BUS),
    ("DBUS_STARTER_ADDRESS", BUS),
    ("AT_SPI_BUS_ADDRESS", BUS),
    ("SESSION_MANAGER", BUS),
    ("XDG_RUNTIME_DIR", BUS),
    ("DISPLAY", SCREEN),
    ("XAUTHORITY", SCREEN),
    ("ICEAUTHORITY", SCREEN),
    ("WAYLAND_DISPLAY", SCREEN),
    ("PULSE_SERVER", SOCKET),
    ("PIPEWIRE_REMOTE", SOCKET),
    ("TMUX", SOCKET),
    ("STY", SOCKET),
    ("KITTY_LISTEN_ON", SOCKET),
    ("WEZTERM_UNIX_SOCKET", SOCKET),
    ("NVIM", SOCKET),
    ("NVIM_LISTEN_ADDRESS", SOCKET),
    ("VSCODE_IPC_HOOK", SOCKET),
    ("VSCODE_IPC_HOOK_CLI", SOCKET),
    ("VSCODE_GIT_IPC_HANDLE", SOCKET),
    ("LISTEN_FDS", SOCKET),
    ("LISTEN_PID", SOCKET),
];

fn way_to_host(name: &str) -> Option<&'static str> {
    let listed = WAYS_TO_HOST.iter().find(|(listed, _)| *listed == name).map(|(_, reason)| *reason);
    let by_its_end = ["_SOCK", "SWAYSOCK", "I3SOCK", "_SOCKET"].iter().any(|end| name.ends_with(end));
    listed.or(by_its_end.then_some(SOCKET))
}

#[cfg(test)]
mod tests {
    use super::{EnvName, EnvValue, Environment, RefusedVariable};

    #[track_caller]
    fn check(name: &str, set: Result<(), &str>, pass: Result<(), &str>) {
        let outcome =
            |parsed: Result<EnvName, RefusedVariable>| parsed.map(drop).map_err(|error| error.to_string());
        assert_eq!(outcome(EnvName::parse_to_set(name)), set.map_err(str::to_owned), "set {name}");
        assert_eq!(outcome(EnvName::parse_to_pass(name)), pass.map_err(str::to_owned), "pass {name}");
    }

    #[test]
    fn ordinary_variables_are_free() {
        for name in ["LANG", "_", "a", "MY_VAR2", "http_proxy_extra", "CLOISTERED", "LC_ALL", "TERM"] {
            check(name, Ok(()), Ok(()));
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for name in ["", "2A", "A B", "A=B", "Ä", "A\0", "A-B"] {
            let error = format!(
                "`{}` is no name of a variable; letters, digits and `_` may stand there, no digit first",
                name.escape_debug()
            );
            check(name, Err(&error), Err(&error));
        }
    }

    #[test]
    fn what_cloister_sets_is_refused() {
        let own = [
            "CLOISTER",
            "CLOISTER_TOKEN",
            "HTTP_PROXY",
            "https_proxy",
            "All_Proxy",
            "NO_PROXY",
            "HOME",
            "USER",
        ];
        for name in own {
            let error = format!("`{name}` is set by Cloister itself; remove it here");
            check(name, Err(&error), Err(&error));
        }
    }

    #[test]
    fn k5_no_way_to_the_hosts_services_is_passed() {
        for (name, reason) in [
            ("SSH_AUTH_SOCK", "leads to an agent that uses your keys"),
            ("DOCKER_HOST", "leads to a container engine, which is root on the host"),
            ("XDG_RUNTIME_DIR", "leads to the session's bus or manager, which starts programs on the host"),
            ("WAYLAND_DISPLAY", "leads to your screen and keyboard"),
            ("WATCHMAN_SOCK", "names a socket of the host"),
        ] {
            let error = format!("`{name}` {reason}, which a sandbox must not reach; remove it here");
            check(name, Ok(()), Err(&error));
        }
        check("PATH", Ok(()), Err("`PATH` of the host names directories of the host; set it with `env.set`"));
    }

    #[test]
    fn a_value_is_never_printed() {
        let value = EnvValue::parse("hunter2").unwrap();
        assert_eq!(format!("{value:?}"), "EnvValue(…)");
        assert_eq!(EnvValue::parse("a\0b"), None);
    }

    #[test]
    fn set_beats_pass() {
        let name = |text| EnvName::parse_to_pass(text).unwrap();
        let value = |text| EnvValue::parse(text).unwrap();
        let environment = Environment {
            pass: ["A", "B", "ABSENT"].map(name).into(),
            set: [(name("B"), value("set")), (name("C"), value("set"))].into(),
        };
        let host = |name: &str| (name != "ABSENT").then(|| format!("host {name}"));
        let expected = [(name("A"), value("host A")), (name("B"), value("set")), (name("C"), value("set"))];
        assert_eq!(environment.resolve(host), expected.into());
    }
}
