//! The life of an approval: asked, held, answered, remembered (DESIGN 3).
//!
//! A [`queue::Queue`] holds what waits for a human: one request for a cloister and an authority, however many connections
//! wait for it. An [`Answer`] has a [`Scope`] and a [`Breadth`], and becomes a rule; whoever waits is then judged by
//! the rules anew. Nothing here knows of sockets, files or pages.

pub mod queue;

pub(crate) mod bucket;

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::name::{BranchName, CloisterName, ProjectName};
use crate::policy::{Authority, Effect, Pattern};

/// How far an answer reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// What waits for it in the moment of the answer.
    Once,
    /// This cloister, until it is stopped.
    Session,
    /// Every cloister of this project, for good.
    Project,
    /// Every cloister of this user, for good.
    Global,
}

impl Scope {
    /// Lists all, the narrowest first.
    pub const ALL: [Self; 4] = [Self::Once, Self::Session, Self::Project, Self::Global];

    /// Gives the stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Session => "session",
            Self::Project => "project",
            Self::Global => "global",
        }
    }
}

impl Display for Scope {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Says that a text names no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no scope; write `once`, `session`, `project` or `global`", .0.escape_debug())]
pub struct UnknownScope(String);

impl FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(text: &str) -> Result<Self, UnknownScope> {
        let found = Self::ALL.into_iter().find(|scope| scope.name() == text);
        found.ok_or_else(|| UnknownScope(text.to_owned()))
    }
}

/// Which hosts an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Breadth {
    /// The one that was asked for.
    Exact,
    /// All beside it, below the name above it.
    Wildcard,
}

/// What a human says to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Whether it may pass.
    #[serde(with = "effect")]
    pub effect: Effect,
    /// How far the answer reaches.
    pub scope: Scope,
    /// Which hosts it is about.
    pub breadth: Breadth,
    /// Why, in the human's words.
    pub reason: Option<String>,
}

/// Who answers, as the audit log names them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// A browser that is logged in; the first digits of its session's number.
    Page(String),
    /// A process at the control socket; its user's number.
    Terminal(u32),
}

impl Display for Who {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(session) => write!(formatter, "page session {session}"),
            Self::Terminal(uid) => write!(formatter, "terminal uid {uid}"),
        }
    }
}

/// The number of a request or of the answer to it: 16 hex digits, never used again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RequestId(String);

/// Says that a text is no number of a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no number of a request; it has 16 digits from 0 to f", .0.escape_debug())]
pub struct InvalidRequestId(String);

impl RequestId {
    /// Reads a number.
    pub fn parse(text: &str) -> Result<Self, InvalidRequestId> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 16 && text.bytes().all(is_digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidRequestId(text.to_owned()))
        }
    }

    /// Makes one of random bytes.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(format!("{:016x}", u64::from_be_bytes(bytes)))
    }

    /// Gives the digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for RequestId {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RequestId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as Deserialize>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// How a request came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Voice {
    /// By a connection that is held; what the client calls itself, unverified.
    Connection {
        /// The `User-Agent`.
        user_agent: Option<String>,
    },
    /// By `cloister request`: somebody inside asks politely.
    Polite {
        /// Why, in their words, unverified.
        reason: Option<String>,
    },
}

/// A request that waits, as it is shown. Texts that come from the sandbox are raw here: every display escapes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// Its number.
    pub id: RequestId,
    /// The sandbox that asks.
    pub cloister: CloisterName,
    /// Its project.
    pub project: ProjectName,
    /// What is checked out there.
    pub branch: Option<BranchName>,
    /// Where it wants to go.
    pub authority: Authority,
    /// How it was asked first.
    pub voice: Voice,
    /// When it was asked first.
    pub created: Timestamp,
    /// When it ends by itself, if the clock is right.
    pub expires: Timestamp,
    /// How many milliseconds are left until then.
    pub left_ms: u64,
    /// How many connections and polite requests wait for it.
    pub waiting: usize,
    /// The pattern of an exact answer, such as `api.example.org:443`.
    pub exact: String,
    /// The pattern of a wildcard answer, where one is offered.
    pub wildcard: Option<String>,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A human answered it.
    Answered {
        /// What they said; the scope is the one that holds, see [`Settled::problem`].
        answer: Answer,
        /// The pattern that the answer allows or denies.
        pattern: String,
        /// Who it was.
        who: Who,
    },
    /// A rule that came meanwhile decides it.
    Ruled,
    /// Nobody answered in time.
    TimedOut,
    /// Nobody waits for the answer any more.
    Withdrawn,
}

/// A request that has ended, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settled {
    /// Its number.
    pub id: RequestId,
    /// The sandbox that asked.
    pub cloister: CloisterName,
    /// Its project.
    pub project: ProjectName,
    /// Where it wanted to go.
    pub authority: Authority,
    /// How it ended.
    pub outcome: Outcome,
    /// When it ended.
    pub at: Timestamp,
    /// Why the answer could not be kept as wished, and what holds instead.
    pub problem: Option<String>,
    /// Whether the answer can be taken back.
    pub can_undo: bool,
}

/// Everything that is to be decided and was decided last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Grows with every change.
    pub version: u64,
    /// What waits, the newest first.
    pub pending: Vec<Pending>,
    /// What has ended, the newest first; only the last ones are kept.
    pub settled: Vec<Settled>,
}

/// Gives the pattern that an answer to a request for `authority` is about; `None` where no wildcard is offered.
pub fn pattern(authority: &Authority, breadth: Breadth) -> Option<Pattern> {
    match breadth {
        Breadth::Exact => Some(Pattern::exactly(authority)),
        Breadth::Wildcard => Pattern::beside(authority),
    }
}

/// How the effect of an answer is written.
mod effect {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::policy::Effect;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
    pub(super) fn serialize<S: Serializer>(effect: &Effect, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(effect.name())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Effect, D::Error> {
        let text = String::deserialize(deserializer)?;
        [Effect::Allow, Effect::Deny]
            .into_iter()
            .find(|effect| effect.name() == text)
            .ok_or_else(|| serde::de::Error::custom("an effect is `allow` or `deny`"))
    }
}
