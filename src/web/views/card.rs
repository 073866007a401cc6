//! A request that waits, as its card shows it.

use super::Moment;
use crate::approval::{Pending, Scope, Voice};
use crate::name::CloisterName;
use crate::policy::Host;
use crate::text::Untrusted;
use crate::web::Desk;

/// How much of what a sandbox says is shown, in characters.
const MAX_SAID: usize = 600;

/// A request that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::web) struct Card {
    pub(in crate::web) id: String,
    pub(in crate::web) cloister: CloisterName,
    pub(in crate::web) project: String,
    pub(in crate::web) branch: Option<String>,
    pub(in crate::web) host: HostView,
    pub(in crate::web) port: u16,
    /// What the sandbox says of itself, unverified.
    pub(in crate::web) said: Option<Said>,
    pub(in crate::web) waiting: String,
    pub(in crate::web) created: Moment,
    pub(in crate::web) left_ms: u64,
    pub(in crate::web) left_seconds: u64,
    pub(in crate::web) total_ms: u64,
    pub(in crate::web) scopes: Vec<ScopeView>,
    pub(in crate::web) exact: String,
    pub(in crate::web) wildcard: Option<String>,
}

/// Words of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::web) struct Said {
    /// What they are: a reason, or a name.
    pub(in crate::web) what: &'static str,
    pub(in crate::web) text: String,
}

/// How far an answer can reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::web) struct ScopeView {
    pub(in crate::web) name: &'static str,
    pub(in crate::web) label: String,
    /// What it writes.
    pub(in crate::web) written: String,
}

impl Card {
    pub(in crate::web) fn of(desk: &dyn Desk, pending: &Pending) -> Self {
        let scope = |scope: Scope| ScopeView {
            name: scope.name(),
            label: match scope {
                Scope::Once => "Once: what waits for it now".to_owned(),
                Scope::Session => format!("Session: {} until it stops", pending.cloister),
                Scope::Project => format!("Project: every cloister of {}, for good", pending.project),
                Scope::Global => "Global: every cloister of yours, for good".to_owned(),
            },
            written: Untrusted(&desk.written_to(scope, pending)).to_string(),
        };
        let total = pending.expires.duration_since(pending.created).as_millis();
        Self {
            id: pending.id.to_string(),
            cloister: pending.cloister.clone(),
            project: pending.project.to_string(),
            branch: pending.branch.as_ref().map(|branch| Untrusted(branch.as_str()).to_string()),
            host: HostView::of(pending.authority.host()),
            port: pending.authority.port(),
            said: said(&pending.voice),
            waiting: waiting(pending.waiting),
            created: Moment::of(pending.created),
            left_ms: pending.left_ms,
            left_seconds: pending.left_ms.div_ceil(1000),
            total_ms: u64::try_from(total).unwrap_or(0).max(pending.left_ms).max(1),
            scopes: Scope::ALL.map(scope).to_vec(),
            exact: Untrusted(&pending.exact).to_string(),
            wildcard: pending.wildcard.as_ref().map(|pattern| Untrusted(pattern).to_string()),
        }
    }
}

fn said(voice: &Voice) -> Option<Said> {
    let (what, text) = match voice {
        Voice::Connection { user_agent } => ("calls itself", user_agent.as_ref()?),
        Voice::Polite { reason } => ("asks, and gives the reason", reason.as_ref()?),
    };
    let mut text: String = text.chars().take(MAX_SAID + 1).collect();
    if let Some((end, _)) = text.char_indices().nth(MAX_SAID) {
        text.truncate(end);
        text.push('…');
    }
    Some(Said { what, text: Untrusted(&text).to_string() })
}

/// Tells how many wait.
fn waiting(count: usize) -> String {
    match count {
        1 => "1 waits for it".to_owned(),
        count => format!("{count} wait for it"),
    }
}

/// A host in all the ways in which it has to be seen (A1, N2, N6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::web) struct HostView {
    /// What stands before the part that somebody registered; the whole host where there is no such part.
    pub(in crate::web) front: String,
    /// The part that somebody registered.
    pub(in crate::web) registrable: String,
    /// The name as it reads in its own script, where that differs.
    pub(in crate::web) unicode: Option<String>,
    /// Whether scripts are mixed that do not belong together.
    pub(in crate::web) is_mixed: bool,
    /// Whether its letters look like those of another name.
    pub(in crate::web) is_like_another: bool,
    /// The suffix below which a service gives names to its users.
    pub(in crate::web) shared: Option<String>,
    /// Whether it is an address.
    pub(in crate::web) is_address: bool,
}

impl HostView {
    pub(in crate::web) fn of(host: &Host) -> Self {
        let name = match host {
            Host::Name(name) => name,
            Host::Ip(address) => {
                let is_v6 = address.is_ipv6();
                let front = if is_v6 { format!("[{address}]") } else { address.to_string() };
                return Self {
                    front,
                    registrable: String::new(),
                    unicode: None,
                    is_mixed: false,
                    is_like_another: false,
                    shared: None,
                    is_address: true,
                };
            }
        };
        let registrable = name.registrable().unwrap_or_default();
        let front = name.as_str().strip_suffix(registrable).unwrap_or(name.as_str());
        let unicode = name.unicode();
        Self {
            front: Untrusted(front).to_string(),
            registrable: Untrusted(registrable).to_string(),
            unicode: (unicode != name.as_str()).then(|| Untrusted(&unicode).to_string()),
            is_mixed: name.mixes_scripts(),
            is_like_another: name.imitates(),
            shared: name.shared_suffix().map(|suffix| Untrusted(suffix).to_string()),
            is_address: false,
        }
    }
}
