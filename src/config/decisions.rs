//! Answers of people that are kept: one file for all projects, one for each project, one for each cloister.
//!
//! All have the same form. The guardian writes them, people may edit them: so they are read like settings, with
//! lines and repairs, and a file that can't be read is never written over. A project's file says whose it is, by path
//! and id (invariant 10): under another project's name it is of no effect.

mod finding;
mod reading;
mod rendering;
mod store;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use jiff::Timestamp;

pub use finding::{Found, find};
pub(super) use reading::decode;
pub(super) use rendering::quoted;
pub use store::{DecisionsError, Remembered, forget, load, load_grants, remember, remove_grants};

use super::problem::Problem;
use crate::name::{CloisterId, CloisterName, ProjectId, ProjectName};
use crate::paths::Paths;
use crate::policy::{Effect, Origin, OriginKind, Pattern, Rule};

/// Names a project: decisions and settings belong to its directory, and lie under its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The name.
    pub name: ProjectName,
    /// The directory, with links resolved.
    pub directory: PathBuf,
}

impl Owner {
    /// Gives the id of the project.
    pub fn id(&self) -> ProjectId {
        ProjectId::of(&self.directory.to_string_lossy())
    }
}

/// Is one answer that was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What it does.
    pub effect: Effect,
    /// What it is about.
    pub pattern: Pattern,
    /// When it was given.
    pub at: Option<Timestamp>,
    /// Who gave it.
    pub who: Option<String>,
    /// The cloister that had asked.
    pub cloister: Option<CloisterName>,
    /// Why, in the words of whoever gave it.
    pub reason: Option<String>,
}

/// Is an answer and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The answer.
    pub decision: Decision,
    /// Its file and line, as rules name them: `decisions/global.yaml:4`.
    pub location: String,
}

impl Kept {
    /// Gives the rule that the answer is.
    pub(super) fn rule(&self, kind: OriginKind) -> Rule {
        let rule = match self.decision.effect {
            Effect::Allow => Rule::allow,
            Effect::Deny => Rule::deny,
        };
        rule(self.decision.pattern.clone(), Origin::new(kind).at(&self.location))
    }
}

/// Holds what a file of answers says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The answers, those that allow first; none when the file is foreign.
    pub kept: Vec<Kept>,
    /// Says whose the file is when it is another's.
    pub foreign: Option<Problem>,
}

/// Tells whose answers are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// All projects'.
    Global,
    /// One project's.
    Project(Owner),
    /// One cloister's, until it is stopped.
    Session(CloisterName, CloisterId),
}

impl Place {
    /// Gives the file.
    pub fn file(&self, paths: &Paths) -> PathBuf {
        match self {
            Self::Global => paths.global_decisions_file(),
            Self::Project(owner) => paths.project_decisions_file(&owner.name),
            Self::Session(cloister, _) => paths.grants_file(cloister),
        }
    }

    /// Gives the file as rules name it.
    pub fn label(&self) -> String {
        match self {
            Self::Global => "decisions/global.yaml".to_owned(),
            Self::Project(owner) => format!("decisions/projects/{}.yaml", owner.name),
            Self::Session(cloister, _) => format!("grants/{cloister}.yaml"),
        }
    }

    /// Gives the origin of its rules.
    pub fn origin_kind(&self) -> OriginKind {
        match self {
            Self::Global | Self::Project(_) => OriginKind::Decision,
            Self::Session(..) => OriginKind::Session,
        }
    }

    /// Gives the lock under which the file is changed.
    fn lock(&self, paths: &Paths) -> PathBuf {
        match self {
            Self::Global | Self::Project(_) => paths.decisions_lock(),
            Self::Session(..) => paths.grants_lock(),
        }
    }

    /// Gives what the file says about whose it is: a key with names and texts.
    fn header(&self) -> Option<(&'static str, Vec<(&'static str, String)>)> {
        match self {
            Self::Global => None,
            Self::Project(owner) => {
                let path = owner.directory.to_string_lossy().into_owned();
                let fields =
                    vec![("name", owner.name.to_string()), ("path", path), ("id", owner.id().to_string())];
                Some(("project", fields))
            }
            Self::Session(name, id) => {
                Some(("cloister", vec![("name", name.to_string()), ("id", id.to_string())]))
            }
        }
    }
}
