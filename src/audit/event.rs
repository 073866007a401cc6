//! What can happen: the names of events.

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

macro_rules! events {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// Names what happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Event {
            $($(#[$doc])+ #[serde(rename = $name)] $variant,)+
        }

        impl Event {
            /// Lists every event.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Returns the name that stands in the log.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

events! {
    /// The proxy let a request through.
    ProxyAllow = "proxy.allow",
    /// The proxy refused a request.
    ProxyDeny = "proxy.deny",
    /// The proxy holds a request until a human answers.
    ProxyAsk = "proxy.ask",
    /// A tunnel or exchange ended.
    ProxyClose = "proxy.close",
    /// A human answered an approval request.
    ApprovalDecided = "approval.decided",
    /// A sandbox asked for a command on the host.
    HostexecRequest = "hostexec.request",
    /// A command on the host began.
    HostexecStart = "hostexec.start",
    /// A command on the host ended.
    HostexecExit = "hostexec.exit",
    /// A sandbox was started.
    SandboxStart = "sandbox.start",
    /// A sandbox was stopped.
    SandboxStop = "sandbox.stop",
    /// What the host replaced was made read-only again inside a sandbox.
    SandboxReseal = "sandbox.reseal",
    /// A link that a sandbox made in a git directory was removed, or the sandbox was ended for such links.
    SandboxLink = "sandbox.link",
    /// The guardian began to serve.
    GuardianStart = "guardian.start",
    /// The guardian ended in order.
    GuardianStop = "guardian.stop",
    /// Changed settings hold now, or a file that could not be used is good again.
    ConfigReload = "config.reload",
    /// A file of settings can't be used; the rules before it hold.
    ConfigInvalid = "config.invalid",
    /// A human trusted a project's configuration.
    ConfigTrust = "config.trust",
    /// A sandbox's token was issued.
    TokenIssue = "token.issue",
    /// A sandbox's token was revoked.
    TokenRevoke = "token.revoke",
    /// A token was refused: unknown, or presented on another sandbox's socket.
    TokenRefuse = "token.refuse",
    /// The remains of a torn line were closed after a crash.
    AuditRecovered = "audit.recovered",
}

impl Display for Event {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Event;

    #[test]
    fn every_event_is_written_by_its_name() {
        for event in Event::ALL {
            let json = format!("\"{event}\"");
            assert_eq!(serde_json::to_string(event).unwrap(), json);
            assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), *event);
        }
    }
}
