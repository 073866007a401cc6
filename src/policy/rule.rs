//! Rules: a pattern that is allowed or denied, and where it was written.

use std::fmt;

use super::pattern::Pattern;

/// The kind of place that a rule comes from, the most general first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OriginKind {
    /// Cloister's own defaults and presets.
    Builtin,
    /// The user's `config.yaml`.
    Global,
    /// The user's `projects/<name>.yaml`.
    Project,
    /// The repository's `cloister.nix`.
    CloisterNix,
    /// A human's answer that was kept.
    Decision,
    /// A human's answer for as long as the sandbox or a connection lives.
    Session,
}

impl OriginKind {
    /// Gives the stable name that the audit records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Builtin => "builtin",
            Self::Global => "global",
            Self::Project => "project",
            Self::CloisterNix => "cloister_nix",
            Self::Decision => "decision",
            Self::Session => "session",
        }
    }

    /// Tells whether a human gave the rule as an answer.
    pub fn is_answer(self) -> bool {
        match self {
            Self::Decision | Self::Session => true,
            Self::Builtin | Self::Global | Self::Project | Self::CloisterNix => false,
        }
    }
}

/// Where a rule was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    kind: OriginKind,
    location: Option<String>,
}

impl Origin {
    /// Names the kind of place.
    pub fn new(kind: OriginKind) -> Self {
        Self { kind, location: None }
    }

    /// Adds the exact place, such as `config.yaml:12`.
    #[must_use]
    pub fn at(self, location: impl Into<String>) -> Self {
        Self { location: Some(location.into()), ..self }
    }

    /// Gives the kind of place.
    pub fn kind(&self) -> OriginKind {
        self.kind
    }

    /// Gives the stable name of the kind, as the audit records it.
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// Gives the exact place, if it is known.
    pub fn location(&self) -> Option<&str> {
        self.location.as_deref()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Some(location) => write!(f, "{} ({location})", self.name()),
            None => f.write_str(self.name()),
        }
    }
}

/// What a rule does with the requests that it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Lets them through, unless another rule denies them.
    Allow,
    /// Refuses them, whatever other rules say.
    Deny,
}

impl Effect {
    /// Gives the stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// A pattern that is allowed or denied.
///
/// An allow rule without a port means CONNECT to 443 and plain HTTP to 80; with a port it means that port alone,
/// though never CONNECT to 80 nor plain HTTP to 443. A deny rule without a port means every port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    effect: Effect,
    pattern: Pattern,
    origin: Origin,
}

impl Rule {
    /// Allows what `pattern` covers.
    pub fn allow(pattern: Pattern, origin: Origin) -> Self {
        Self { effect: Effect::Allow, pattern, origin }
    }

    /// Denies what `pattern` covers.
    pub fn deny(pattern: Pattern, origin: Origin) -> Self {
        Self { effect: Effect::Deny, pattern, origin }
    }

    /// Tells what the rule does.
    pub fn effect(&self) -> Effect {
        self.effect
    }

    /// Gives what the rule is about.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// Gives where the rule was written.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pattern.fmt(f)
    }
}
