//! Finds where answers to a pattern are kept, whoever's they are: each file is read as its own header's.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Kept, Owner, Place};
use crate::config::problem::{Problem, Report};
use crate::config::yaml;
use crate::config::yaml::tree::{Node, Value};
use crate::name::{CloisterId, CloisterName, ProjectName};
use crate::paths::Paths;
use crate::policy::Pattern;

/// Holds where answers to a pattern are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The answers and whose they are: everybody's, projects', cloisters'.
    pub kept: Vec<(Place, Kept)>,
    /// What is wrong with files that could not be searched; they may hold more.
    pub problems: Vec<Problem>,
}

/// Searches all files of answers for a pattern, with either effect: of projects and cloisters that are stopped, too.
pub fn find(paths: &Paths, pattern: &Pattern) -> Found {
    let mut found = Found::default();
    let mut search = |file: &Path, place: &dyn Fn(&Node) -> Result<Place, Problem>| {
        let mut report = Report::new(file);
        let text = crate::config::read(file, &mut report);
        if let Some(tree) = text.and_then(|text| yaml::parse(&text, &mut report)).filter(is_said) {
            match place(&tree) {
                Ok(place) => {
                    let loaded = super::decode(tree, &place, &mut report);
                    let meant = loaded.kept.into_iter().filter(|kept| kept.decision.pattern == *pattern);
                    found.kept.extend(meant.map(|kept| (place.clone(), kept)));
                    found.problems.extend(loaded.foreign);
                }
                Err(problem) => found.problems.push(problem),
            }
        }
        found.problems.extend(report.into_problems());
    };
    search(&paths.global_decisions_file(), &|_| Ok(Place::Global));
    let mut unlisted = Vec::new();
    for file in listed(&paths.project_decisions_dir(), &mut unlisted) {
        search(&file, &|tree| project(tree, &file).ok_or_else(|| ownerless(&file, "project")));
    }
    for file in listed(&paths.grants_dir(), &mut unlisted) {
        search(&file, &|tree| session(tree, &file).ok_or_else(|| ownerless(&file, "cloister")));
    }
    found.problems.append(&mut unlisted);
    found
}

/// Tells whether a file says anything; one that has but comments needs no owner.
fn is_said(tree: &Node) -> bool {
    !matches!(&tree.value, Value::Null)
}

/// Lists the files of answers in a directory.
fn listed(directory: &Path, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    let entries: io::Result<Vec<PathBuf>> = match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => Err(error),
    };
    match entries {
        Ok(mut files) => {
            files.retain(|file| file.extension() == Some(OsStr::new("yaml")));
            files.sort();
            files
        }
        Err(error) => {
            let mut report = Report::new(directory);
            report.add(None, "", format!("cannot be read: {error}"), None);
            problems.append(&mut report.into_problems());
            Vec::new()
        }
    }
}

/// Reads which project a file says that it is of; the name is the file's, under which it would be used.
fn project(tree: &Node, file: &Path) -> Option<Place> {
    let directory = said(tree, "project", "path")?.into();
    Some(Place::Project(Owner { name: ProjectName::parse(stem(file)?).ok()?, directory }))
}

/// Reads which cloister a file says that it is of.
fn session(tree: &Node, file: &Path) -> Option<Place> {
    let id = CloisterId::parse(said(tree, "cloister", "id")?).ok()?;
    Some(Place::Session(CloisterName::parse(stem(file)?).ok()?, id))
}

fn stem(file: &Path) -> Option<&str> {
    file.file_stem()?.to_str()
}

/// Gives a text of the header of a file.
fn said<'t>(tree: &'t Node, header: &str, field: &str) -> Option<&'t str> {
    let entry = |node: &'t Node, key: &str| match &node.value {
        Value::Map(entries) => entries.iter().find(|(name, _)| name.text == key).map(|(_, node)| node),
        _ => None,
    };
    match &entry(entry(tree, header)?, field)?.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn ownerless(file: &Path, header: &str) -> Problem {
    Problem {
        path: file.to_owned(),
        line: None,
        key: header.to_owned(),
        what: "nothing says whose file this is, by its name and this key".to_owned(),
        repair: Some("move the file away".to_owned()),
    }
}
