//! `cloister approvals forget RULE`: takes a remembered answer back, by the guardian or, where none runs, in the files.

use std::process::ExitCode;

use super::super::arguments::ForgetArguments;
use super::super::error::CommandError;
use super::super::output::{Output, complain, json, line};
use super::refused;
use crate::approval::Scope;
use crate::config::decisions::{self, DecisionsError, Found, Kept, Place};
use crate::guardian::client::{ClientError, Forget, Forgotten, ForgottenRule, Guardian};
use crate::name::CloisterName;
use crate::paths::Paths;
use crate::policy::{Effect, Pattern};
use crate::sandbox::Receipt;
use crate::text::Untrusted;

pub(super) async fn run(
    ForgetArguments { rule, scope, cloister }: ForgetArguments,
    paths: &Paths,
    output: &Output,
) -> Result<ExitCode, CommandError> {
    if scope == Some(Scope::Once) {
        return Err(CommandError::user("an answer for once is not remembered")
            .hint("give `--scope session`, `project` or `global`, or none"));
    }
    let pattern = Pattern::parse_for(Effect::Deny, &rule).map_err(CommandError::user)?;
    let forgotten = match Guardian::connect(paths).await {
        Ok(guardian) => {
            let forget = Forget { rule: pattern.to_string(), scope, cloister };
            let Forgotten { forgotten } = guardian.forget(&forget).await.map_err(refused)?;
            forgotten
        }
        Err(ClientError::NotRunning) => {
            let forgotten = in_files(&pattern, scope, cloister.as_ref(), paths)?;
            output.note(
                "the guardian is not running: the files are changed, and the audit log does not tell of it",
            );
            forgotten
        }
        Err(error) => return Err(error.into()),
    };
    if output.is_json() {
        json(&forgotten)?;
    } else {
        forgotten.iter().try_for_each(|rule| line(&told(rule)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn told(ForgottenRule { scope, pattern, effect, place }: &ForgottenRule) -> String {
    let [pattern, effect, place] = [pattern, effect, place].map(|text| Untrusted(text).to_string());
    format!("forgot: {effect} {pattern} ({scope}, {place})")
}

/// Does without a guardian what it would do.
fn in_files(
    pattern: &Pattern,
    scope: Option<Scope>,
    cloister: Option<&CloisterName>,
    paths: &Paths,
) -> Result<Vec<ForgottenRule>, CommandError> {
    let Found { kept: mut found, problems } = decisions::find(paths, pattern);
    for problem in problems {
        complain(&format!("warning: {problem}"));
    }
    let owner = match cloister {
        Some(name) => Receipt::load(&paths.receipt_file(name))?.map(|receipt| receipt.owner().directory),
        None => None,
    };
    found.retain(|(place, _)| {
        let is_of = |name: &CloisterName| match place {
            Place::Global => true,
            Place::Project(own) => owner.as_ref() == Some(&own.directory),
            Place::Session(own, _) => own == name,
        };
        scope.is_none_or(|scope| scope == scope_of(place)) && cloister.is_none_or(is_of)
    });
    let Some((first, _)) = found.first() else {
        let message = format!("no remembered answer is about `{pattern}`");
        let hint = "see the remembered ones with `cloister config show --origins`; they have ports, as in \
                    `api.example.org:443`";
        return Err(CommandError::user(message).hint(hint));
    };
    if found.iter().any(|(place, _)| place != first) {
        let locations: Vec<&str> = found.iter().map(|(_, kept)| kept.location.as_str()).collect();
        let message = format!("`{pattern}` stands in several places: {}", locations.join(", "));
        return Err(CommandError::user(message).hint(
            "say which with `--scope SCOPE`, `--cloister NAME` or both, or take the line out of the file",
        ));
    }
    found.iter().map(|(place, kept)| Ok(forget(pattern, place, kept, paths)?)).collect()
}

fn forget(
    pattern: &Pattern,
    place: &Place,
    kept: &Kept,
    paths: &Paths,
) -> Result<ForgottenRule, DecisionsError> {
    let effect = kept.decision.effect;
    decisions::forget(paths, place, pattern, Some(effect))?;
    Ok(ForgottenRule {
        scope: scope_of(place),
        pattern: pattern.to_string(),
        effect: effect.name().to_owned(),
        place: kept.location.clone(),
    })
}

fn scope_of(place: &Place) -> Scope {
    match place {
        Place::Global => Scope::Global,
        Place::Project(_) => Scope::Project,
        Place::Session(..) => Scope::Session,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Owner;
    use crate::name::{CloisterId, ProjectName};

    fn paths(home: &std::path::Path) -> Paths {
        let variable = std::ffi::OsString::from(home);
        Paths::from_environment(|name| (name == "HOME").then(|| variable.clone())).unwrap()
    }

    fn remember(paths: &Paths, place: &Place, pattern: &str) {
        let decision = decisions::Decision {
            effect: Effect::Allow,
            pattern: Pattern::parse(pattern).unwrap(),
            at: None,
            who: None,
            cloister: None,
            reason: None,
        };
        decisions::remember(paths, place, decision).unwrap();
    }

    /// A project that no registry knows.
    fn owner(name: &str, directory: &std::path::Path) -> Owner {
        Owner { name: ProjectName::parse(name).unwrap(), directory: directory.into() }
    }

    fn forgets(pattern: &str, scope: Option<Scope>, paths: &Paths) -> Result<Vec<String>, String> {
        let pattern = Pattern::parse(pattern).unwrap();
        let forgotten = in_files(&pattern, scope, None, paths).map_err(|error| error.message())?;
        Ok(forgotten.iter().map(told).collect())
    }

    #[test]
    fn an_answer_is_forgotten_without_a_guardian() {
        let home = tempfile::tempdir().unwrap();
        let paths = paths(home.path());
        remember(&paths, &Place::Global, "api.x.org:443");
        remember(&paths, &Place::Global, "b.test:443");
        let forgotten = forgets("api.x.org:443", None, &paths).unwrap();
        assert_eq!(forgotten.len(), 1);
        assert!(
            forgotten[0].starts_with("forgot: allow api.x.org:443 (global, decisions/global.yaml:"),
            "{forgotten:?}"
        );
        assert_eq!(
            forgets("api.x.org:443", None, &paths),
            Err("no remembered answer is about `api.x.org:443`".to_owned())
        );
        assert_eq!(decisions::load(&paths, &Place::Global).unwrap().kept.len(), 1);
        // Another port is another answer, and a name without a port is none of them.
        assert!(forgets("b.test:8443", None, &paths).is_err());
        assert!(forgets("b.test", None, &paths).is_err());
        assert!(forgets("b.test:443", Some(Scope::Project), &paths).is_err());
        assert!(forgets("b.test:443", Some(Scope::Global), &paths).is_ok());
    }

    #[test]
    fn an_answer_that_stands_in_several_places_is_forgotten_in_none() {
        let home = tempfile::tempdir().unwrap();
        let paths = paths(home.path());
        let owner = owner("demo", home.path());
        remember(&paths, &Place::Global, "api.x.org:443");
        remember(&paths, &Place::Project(owner.clone()), "api.x.org:443");
        let refused = forgets("api.x.org:443", None, &paths).unwrap_err();
        assert!(refused.starts_with("`api.x.org:443` stands in several places: decisions/global.yaml:"));
        assert_eq!(forgets("api.x.org:443", Some(Scope::Project), &paths).unwrap().len(), 1);
        assert_eq!(decisions::load(&paths, &Place::Global).unwrap().kept.len(), 1);
        assert_eq!(decisions::load(&paths, &Place::Project(owner)).unwrap().kept.len(), 0);
    }

    #[test]
    fn a_scope_with_several_places_needs_a_cloister() {
        let home = tempfile::tempdir().unwrap();
        let paths = paths(home.path());
        for name in ["demo-main", "other-main"] {
            let name = CloisterName::parse(name).unwrap();
            let id = CloisterId::of(&name, "/home/u/demo");
            remember(&paths, &Place::Session(name, id), "api.x.org:443");
        }
        for name in ["demo", "other"] {
            remember(&paths, &Place::Project(owner(name, &home.path().join(name))), "b.test:443");
        }
        let refused = forgets("api.x.org:443", Some(Scope::Session), &paths).unwrap_err();
        assert!(refused.starts_with("`api.x.org:443` stands in several places: grants/demo-main.yaml:"));
        assert!(forgets("b.test:443", Some(Scope::Project), &paths).is_err());
        let pattern = Pattern::parse("api.x.org:443").unwrap();
        let demo = CloisterName::parse("demo-main").unwrap();
        let forgotten = in_files(&pattern, None, Some(&demo), &paths).unwrap();
        assert_eq!(forgotten.len(), 1);
        assert!(forgotten[0].place.starts_with("grants/demo-main.yaml:"));
        assert_eq!(forgets("api.x.org:443", None, &paths).unwrap().len(), 1);
    }

    #[test]
    fn a_broken_file_is_in_nobodys_way() {
        let home = tempfile::tempdir().unwrap();
        let paths = paths(home.path());
        remember(&paths, &Place::Project(owner("demo", home.path())), "api.x.org:443");
        std::fs::write(paths.global_decisions_file(), "allow: [").unwrap();
        assert_eq!(forgets("api.x.org:443", None, &paths).unwrap().len(), 1);
    }
}
