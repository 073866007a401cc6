//! The README's tables agree with the code.

use std::collections::BTreeSet;

use crate::manifest;

const README: &str = include_str!("../../README.md");

/// The first cells in the table of a section, without their backticks.
fn table(section: &str) -> BTreeSet<String> {
    let heading = format!("\n## {section}\n");
    let (_, text) = README.split_once(&heading).expect("the README has the section");
    let text = text.split_once("\n## ").map_or(text, |(own, _)| own);
    let cell = |line: &str| line.strip_prefix("| `")?.split_once("` |").map(|(name, _)| name.to_owned());
    text.lines().filter_map(cell).collect()
}

#[test]
fn the_dependency_table_lists_the_manifest() {
    let manifest: BTreeSet<String> = manifest::dependencies().into_iter().collect();
    assert!(manifest.contains("tokio"));
    assert_eq!(table("Dependencies"), manifest);
}

#[test]
fn the_stand_in_for_nix_compat_is_explained() {
    assert!(README.contains("`nix-compat`"));
}
