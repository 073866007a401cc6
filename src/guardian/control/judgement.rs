//! What the rules say of one destination, in words that travel: for `cloister why`.

use serde::{Deserialize, Serialize};

use crate::name::CloisterName;
use crate::policy::{Authority, Decision, Destination, Policy, Request, Rule, Via};

/// A verdict and what stands behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judgement {
    /// Whether it may pass.
    pub is_allowed: bool,
    /// Whether a human is asked about it.
    pub is_asked: bool,
    /// The code of the refusal.
    pub reason: Option<String>,
    /// The rule that decided.
    pub rule: Option<String>,
    /// Where that rule stands.
    pub origin: Option<String>,
    /// What else there is to say.
    pub detail: Option<String>,
}

/// In which form a destination is asked for by itself.
pub fn usual_way(authority: &Authority) -> Via {
    if authority.port() == 80 { Via::Plain } else { Via::Connect }
}

impl Judgement {
    /// Asks `policy` about a request of `cloister`.
    pub fn of(policy: &Policy, cloister: &CloisterName, authority: &Authority) -> Self {
        let request = Request { cloister, authority, via: usual_way(authority), grant: None };
        let by = |rule: Option<&Rule>| Self {
            is_allowed: false,
            is_asked: false,
            reason: None,
            rule: rule.map(ToString::to_string),
            origin: rule.map(|rule| rule.origin().to_string()),
            detail: None,
        };
        match policy.evaluate(&request) {
            Decision::Allow(allowed) => {
                let detail = match allowed.destination() {
                    Destination::Known(addresses) => {
                        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                        Some(format!("goes to {}", addresses.join(", ")))
                    }
                    Destination::Resolve(_) => None,
                };
                Self { is_allowed: true, detail, ..by(Some(allowed.rule())) }
            }
            Decision::Deny(denial) => Self {
                reason: Some(denial.reason().code().to_owned()),
                detail: denial.detail().map(str::to_owned),
                ..by(denial.rule().map(AsRef::as_ref))
            },
            Decision::Ask(_) => Self {
                is_asked: true,
                detail: Some("no rule names it, and so a human is asked when it is wanted".to_owned()),
                ..by(None)
            },
        }
    }
}
