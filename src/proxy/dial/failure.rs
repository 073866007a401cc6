//! Why no connection came about: a plain sentence for the sandbox, and all of it for the audit log.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;

use rustix::io::Errno;

use super::resolve::ResolveError;
use crate::policy::AddressClass;
use crate::proxy::admission::descriptors::ran_out;

/// No address of a permit could be connected.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum DialError {
    /// The system has no descriptor or memory left for a connection: trying again later may help.
    #[error("the system has nothing left for a connection")]
    Exhausted(Failures),
    /// No address answered.
    #[error("cannot connect to any address")]
    Unconnected(Failures),
    /// The company's proxy did not open a tunnel.
    #[error("cannot connect through the proxy of `proxy.upstream`")]
    Proxy(#[source] ProxyError),
}

impl From<Failures> for DialError {
    fn from(failures: Failures) -> Self {
        if failures.kind() == Some(Kind::Exhausted) {
            Self::Exhausted(failures)
        } else {
            Self::Unconnected(failures)
        }
    }
}

impl From<ProxyError> for DialError {
    fn from(error: ProxyError) -> Self {
        match error {
            ProxyError::Unconnected(failures) if failures.kind() == Some(Kind::Exhausted) => {
                Self::Exhausted(failures)
            }
            other => Self::Proxy(other),
        }
    }
}

impl DialError {
    /// What the sandbox is told: the kind, and no address.
    pub(in crate::proxy) fn sentence(&self) -> String {
        match self {
            Self::Exhausted(failures) | Self::Unconnected(failures) => failures.sentence().to_owned(),
            Self::Proxy(error) => error.sentence(),
        }
    }

    /// What the audit log keeps.
    pub(in crate::proxy) fn detail(&self) -> String {
        match self {
            Self::Exhausted(failures) | Self::Unconnected(failures) => failures.detail(),
            Self::Proxy(error) => error.detail(),
        }
    }
}

/// What kept each address from being connected.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Failures(Vec<(SocketAddr, io::Error)>);

/// Kinds of failures, the one that says most last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Unreachable,
    Other,
    TimedOut,
    Refused,
    Exhausted,
}

impl Kind {
    fn of(error: &io::Error) -> Self {
        if ran_out(error) {
            return Self::Exhausted;
        }
        // A machine without IPv6 says so in several ways.
        if matches!(Errno::from_io_error(error), Some(Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT)) {
            return Self::Unreachable;
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            _ => Self::Other,
        }
    }
}

impl Failures {
    pub(super) fn add(&mut self, address: SocketAddr, error: io::Error) {
        self.0.push((address, error));
    }

    fn kind(&self) -> Option<Kind> {
        self.0.iter().map(|(_, error)| Kind::of(error)).max()
    }

    fn sentence(&self) -> &'static str {
        match self.kind() {
            None => "it has no address",
            Some(Kind::Exhausted) => "the host has no room for another connection; try again in a moment",
            Some(Kind::Refused) => "it refuses connections",
            Some(Kind::TimedOut) => "it did not answer in time",
            Some(Kind::Unreachable) => "there is no way to it from this network",
            Some(Kind::Other) => "no connection to it can be made",
        }
    }

    fn detail(&self) -> String {
        let mut detail = String::new();
        for (address, error) in &self.0 {
            let separator = if detail.is_empty() { "" } else { "; " };
            write!(detail, "{separator}`{address}`: {error}").expect("a String takes everything");
        }
        detail
    }
}

/// Why the company's proxy opens no tunnel. Nothing of its answer but the status gets further.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum ProxyError {
    /// Its name has no address.
    #[error("its name can't be resolved")]
    Unresolved(#[source] ResolveError),
    /// It is where no proxy is.
    #[error("it is at a {0} address")]
    Forbidden(AddressClass),
    /// None of its addresses answered.
    #[error("it can't be reached: {}", .0.detail())]
    Unconnected(Failures),
    /// It does not speak TLS, or has no certificate that this host trusts.
    #[error("TLS to it fails: {0}")]
    Tls(io::Error),
    /// It said no.
    #[error("it answered with status {0}")]
    Status(u16),
    /// It said what no proxy says.
    #[error("its answer is not HTTP: {0}")]
    Garbage(&'static str),
    /// It broke off.
    #[error("the connection to it broke: {0}")]
    Broken(io::Error),
    /// It said nothing.
    #[error("it did not answer in time")]
    Silent,
}

impl ProxyError {
    /// Tells whether the next address of the permit may fare better.
    pub(super) fn is_about_target(&self) -> bool {
        match self {
            Self::Status(status) => *status != PROXY_AUTHENTICATION_REQUIRED,
            Self::Silent | Self::Broken(_) => true,
            Self::Unresolved(_)
            | Self::Forbidden(_)
            | Self::Unconnected(_)
            | Self::Tls(_)
            | Self::Garbage(_) => false,
        }
    }

    fn sentence(&self) -> String {
        match self {
            Self::Status(PROXY_AUTHENTICATION_REQUIRED) => {
                "the proxy that the host goes through wants other credentials (status 407)".to_owned()
            }
            Self::Status(status) => {
                format!("the proxy that the host goes through opens no tunnel to it (status {status})")
            }
            Self::Silent => "the proxy that the host goes through did not answer in time".to_owned(),
            Self::Garbage(_) | Self::Broken(_) => "the proxy that the host goes through broke off".to_owned(),
            Self::Unresolved(_) | Self::Forbidden(_) | Self::Unconnected(_) | Self::Tls(_) => {
                "the proxy that the host goes through can't be used".to_owned()
            }
        }
    }

    fn detail(&self) -> String {
        let hint = match self {
            Self::Status(PROXY_AUTHENTICATION_REQUIRED) => "; are the credentials in `proxy.upstream` right?",
            _ => "",
        };
        let cause = match self {
            Self::Unresolved(cause) => format!(": {}", cause.detail()),
            _ => String::new(),
        };
        format!("the proxy of `proxy.upstream`: {self}{cause}{hint}")
    }
}

const PROXY_AUTHENTICATION_REQUIRED: u16 = 407;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_descriptors_is_told_apart_and_no_sentence_names_an_address() {
        for (errno, exhausted) in
            [(Errno::MFILE, true), (Errno::NFILE, true), (Errno::CONNREFUSED, false), (Errno::ACCESS, false)]
        {
            let mut failures = Failures::default();
            failures.add("192.0.2.1:443".parse().unwrap(), Errno::HOSTUNREACH.into());
            failures.add("[2001:db8::1]:443".parse().unwrap(), errno.into());
            let error = DialError::from(failures);
            assert_eq!(matches!(error, DialError::Exhausted(_)), exhausted, "{errno}");
            assert!(!error.sentence().contains("192.0.2.1"), "{error:?}");
            let detail = error.detail();
            assert!(detail.contains("`192.0.2.1:443`") && detail.contains("os error"), "{detail}");
            assert!(detail.contains("`[2001:db8::1]:443`"), "{detail}");
        }
    }
}
