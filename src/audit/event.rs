//! What can happen: the names of events.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

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
    /// A human's answer was taken back.
    ApprovalForgotten = "approval.forgotten",
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
    /// The remains of a torn line were closed after a crash.
    AuditRecovered = "audit.recovered",
    /// The oldest full files of a chain were removed, because there were more than are kept.
    AuditRemoved = "audit.removed",
}

impl Event {
    /// Lists the events that are about the chain that they stand in, and so about no other one.
    pub(super) const ABOUT_THEIR_CHAIN: [Self; 2] = [Self::AuditRecovered, Self::AuditRemoved];
}

/// Says that a text names no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no event; the nearest one is `{nearest}`")]
pub struct UnknownEvent {
    text: String,
    nearest: Event,
}

impl FromStr for Event {
    type Err = UnknownEvent;

    fn from_str(text: &str) -> Result<Self, UnknownEvent> {
        if let Some(event) = Self::ALL.iter().find(|event| event.name() == text) {
            return Ok(*event);
        }
        let likeness = |event: &&Self| strsim::jaro_winkler(text, event.name());
        let nearest = Self::ALL.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        Err(UnknownEvent { text: text.to_owned(), nearest: *nearest.expect("there are events") })
    }
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
            assert_eq!(event.name().parse(), Ok(*event));
        }
    }

    #[test]
    fn what_is_no_event_is_told_the_nearest() {
        for (text, nearest) in [
            ("proxy.dney", Event::ProxyDeny),
            ("proxy_allow", Event::ProxyAllow),
            ("Guardian.start", Event::GuardianStart),
        ] {
            let error = text.parse::<Event>().unwrap_err();
            assert_eq!(error, super::UnknownEvent { text: text.to_owned(), nearest });
        }
        assert!("".parse::<Event>().is_err());
    }
}
