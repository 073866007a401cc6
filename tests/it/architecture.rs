//! The import table, the sole owners and the sizes, checked over `src`.
//!
//! [`source`] reads a file into paths and lines, [`rules`] holds the tables and judges. The checks are functions over
//! (path, text) pairs; each is shown here to find what it is for, on an example in memory.

mod rules;
mod source;

use std::fs;
use std::path::Path;

use rules::Violation;
use source::Source;

/// Every Rust file below `src`, with paths from the repository's root.
fn tree() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src")];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                sources.push(Source::new(name, &fs::read_to_string(&path).unwrap()));
            }
        }
    }
    sources.sort_by(|a, b| a.path().cmp(b.path()));
    sources
}

/// The names of the crates that the manifest brings in, as code writes them.
fn dependencies() -> Vec<String> {
    crate::manifest::dependencies().into_iter().map(|name| name.replace('-', "_")).collect()
}

#[track_caller]
fn assert_clean(violations: &[Violation]) {
    let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
}

/// Judges one file of an imagined tree and compares the findings as (line, start of the message).
#[track_caller]
fn check(path: &str, text: &str, expected: &[(usize, &str)]) {
    let crates = ["axum", "git2", "hyper", "hyper_util", "tokio", "serde", "rustls"].map(str::to_owned);
    let source = Source::new(path, text);
    let found = [
        rules::imports(&source),
        rules::owners(&source, &crates),
        rules::pure_values(&source, &crates),
        rules::unchecked_code(&source),
        rules::shape(&source),
    ]
    .concat();
    let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(shown.len(), expected.len(), "{path}: {shown:#?}");
    for (line, (number, start)) in shown.iter().zip(expected) {
        let wanted = format!("{path}:{number}: {start}");
        assert!(line.starts_with(&wanted), "expected `{wanted}…`\n     got `{line}`");
    }
}

#[test]
fn the_tree_follows_the_import_table() {
    let sources = tree();
    assert!(!sources.is_empty());
    let violations: Vec<Violation> = source::without_tests(sources).iter().flat_map(rules::imports).collect();
    assert_clean(&violations);
}

#[test]
fn the_tree_leaves_crates_to_their_owners() {
    let crates = dependencies();
    let violations: Vec<Violation> = source::without_tests(tree())
        .iter()
        .flat_map(|source| [rules::owners(source, &crates), rules::pure_values(source, &crates)].concat())
        .collect();
    assert_clean(&violations);
}

#[test]
fn the_tree_leaves_unsafe_code_to_its_owner() {
    let violations: Vec<Violation> = tree().iter().flat_map(rules::unchecked_code).collect();
    assert_clean(&violations);
}

#[test]
fn unsafe_code_is_found_outside_its_owner() {
    let unsafe_code = "//! Doc. unsafe\nfn f() { unsafe { g() } }\n";
    check("src/kernel/idmap.rs", unsafe_code, &[]);
    check("src/sandbox/stage.rs", unsafe_code, &[(2, "`unsafe` belongs to `kernel`")]);
    check("src/policy.rs", "//! Doc.\nconst S: &str = \"unsafe\"; // unsafe\n", &[]);
}

#[test]
fn the_tree_keeps_its_sizes() {
    let sources = source::without_tests(tree());
    let mut violations: Vec<Violation> = sources.iter().flat_map(rules::shape).collect();
    violations.extend(rules::folders(&sources));
    assert_clean(&violations);
}

#[test]
fn an_import_from_an_outer_layer_is_found_however_it_is_written() {
    let doc = "//! Doc.\n";
    let outer = "`policy` (layer 0) uses `proxy`; allowed: `name`, `text`";
    for text in [
        "use crate::proxy;",
        "use crate::proxy::Dial;",
        "use crate::{name::ProjectName, proxy::Dial};",
        "use crate::{name::{self, ProjectName}, proxy as p};",
        "pub use crate::proxy::*;",
        "use super::proxy::Dial;",
        "fn f() { crate::proxy::dial(); }",
        "type T = Option<crate::proxy::Dial>;",
        "macro_rules! m { () => { $crate::proxy::dial() }; }",
        "mod inner { use super::super::proxy::Dial; }",
        "use crate :: /* here */ proxy;",
        "const S: &str = \"\\\" use crate::name;\"; use crate::proxy;",
        "const C: (char, &'static str) = ('\"', r#\"a\"b\"#); use crate::proxy;",
        "#[cfg(test)] use crate::web; use crate::proxy;",
    ] {
        check("src/policy.rs", &format!("{doc}{text}\n"), &[(2, outer)]);
    }
    check("src/policy/host.rs", "//! Doc.\nuse super::super::proxy::Dial;\n", &[(2, outer)]);
}

#[test]
fn an_import_inside_or_below_the_layer_follows_the_table() {
    check("src/policy.rs", "//! Doc.\nuse crate::{name::CloisterName, text::Shown};\n", &[]);
    check("src/policy/host.rs", "//! Doc.\nuse super::Pattern;\nuse crate::policy::rules;\n", &[]);
    check("src/config.rs", "//! Doc.\nuse crate::paths::Paths;\n", &[]);
    check("src/project.rs", "//! Doc.\nuse crate::{git, config::Config};\n", &[]);
    check("src/session.rs", "//! Doc.\nuse crate::{guardian::client::Control, init::wire};\n", &[]);
    check(
        "src/paths.rs",
        "//! Doc.\nuse crate::config;\n",
        &[(2, "`paths` (layer 1) uses `config`; allowed: layers below 1 in src")],
    );
    check(
        "src/proxy/dial.rs",
        "//! Doc.\n\nuse crate::sandbox::Spec;\n",
        &[(3, "`proxy` (layer 2) uses `sandbox`; allowed: layers below 2 in src")],
    );
    check(
        "src/session.rs",
        "//! Doc.\nuse crate::guardian::Guardian;\n",
        &[(2, "`session` (layer 3) uses `guardian`; allowed: layers below 3 in src and `guardian::client`")],
    );
}

#[test]
fn what_looks_like_an_import_is_none() {
    check(
        "src/policy.rs",
        "//! See crate::proxy.\n// crate::proxy\n/* crate::proxy /* nested crate::proxy */ */\n\
         const S: &str = \"crate::proxy\";\npub(crate) struct A<'a>(&'a str);\n\
         pub(in crate::policy) struct B;\nfn f(self::A(proxy): A<'_>) { let _ = proxy::<u8>; }\n",
        &[],
    );
    check("src/policy.rs", "//! Doc.\n#[cfg(test)]\nmod tests {\n    use crate::proxy::Dial;\n}\n", &[]);
}

#[test]
fn the_crate_is_never_named_whole() {
    for text in ["use crate as c;", "use crate::*;", "use crate::{self as c};", "use super::*;"] {
        check(
            "src/policy.rs",
            &format!("//! Doc.\n{text}\n"),
            &[(2, "names the whole crate; allowed: paths that name a module")],
        );
    }
}

#[test]
fn a_module_outside_the_table_is_found() {
    check("src/magic.rs", "//! Doc.\n", &[(1, "module `magic` is not in the table; allowed: `name`")]);
    check(
        "src/cli.rs",
        "//! Doc.\nuse crate::Magic;\n",
        &[(2, "`Magic` is not a module of the table; allowed: `name`")],
    );
}

#[test]
fn a_crate_is_found_outside_its_owner() {
    let owned = "`git2` belongs to `git`";
    for text in [
        "use git2::Repository;",
        "use git2;",
        "use git2 as g;",
        "use ::git2::Repository;",
        "use {git2::Oid, std::fs};",
        "extern crate git2;",
        "fn f() -> git2::Oid { todo() }",
        "fn f() -> ::git2::Oid { todo() }",
    ] {
        check("src/project.rs", &format!("//! Doc.\n{text}\n"), &[(2, owned)]);
    }
    check("src/git.rs", "//! Doc.\nuse git2::Repository;\n", &[]);
    check("src/web/page.rs", "//! Doc.\nuse axum::Router;\n", &[]);
    check(
        "src/cli.rs",
        "//! Doc.\nuse axum::Router;\n",
        &[(2, "`axum` belongs to `guardian`, `web`; allowed in `cli`: ")],
    );
    check(
        "src/session.rs",
        "//! Doc.\nuse hyper_util::rt;\n",
        &[(2, "`hyper_util` belongs to `guardian`, `proxy`")],
    );
    check("src/guardian.rs", "//! Doc.\nuse rustls::server;\n", &[(2, "`rustls` belongs to `proxy`")]);
}

#[test]
fn pure_values_touch_nothing_outside() {
    check("src/name.rs", "//! Doc.\nuse serde::Serialize;\nuse std::net::IpAddr;\n", &[]);
    for (text, start) in [
        ("use tokio::sync::Mutex;", "layer 0 uses the crate `tokio`; allowed: `std`, `serde`"),
        ("use std::fs;", "layer 0 uses `std::fs`; allowed: std without"),
        ("use std::{fmt, io::{self, Read}};", "layer 0 uses `std::io`"),
        ("fn f() { std::env::var(\"A\"); }", "layer 0 uses `std::env`"),
        ("use std::time::{Duration, Instant};", "layer 0 uses `std::time::Instant`"),
        ("use std::net::TcpStream;", "layer 0 uses `std::net::TcpStream`"),
        ("async fn f() {}", "layer 0 is not `async`"),
    ] {
        check("src/policy/host.rs", &format!("//! Doc.\n{text}\n"), &[(2, start)]);
    }
    check("src/paths.rs", "//! Doc.\nuse std::fs;\n", &[]);
}

#[test]
fn a_file_too_long_or_badly_named_is_found() {
    let lines = |count: usize| "//! Doc.\n".repeat(count);
    check("src/name.rs", &lines(500), &[]);
    check("src/name.rs", &lines(501), &[(501, "501 lines without tests; allowed: 500")]);
    check("src/name.rs", &format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", lines(500), "\n".repeat(9)), &[]);
    check("src/main.rs", &lines(31), &[(31, "31 lines without tests; allowed: 30")]);
    check("src/policy/utils.rs", "//! Doc.\n", &[(1, "`utils` names no thing")]);
    check("src/policy/mod.rs", "//! Doc.\n", &[(1, "`mod` names no thing")]);
    check("src/policy.rs", "// Doc.\nfn f() {}\n", &[(1, "the file has no `//!` line at its top")]);
}

#[test]
fn a_crowded_folder_is_found() {
    let folder = |count: usize| -> Vec<Source> {
        (0..count).map(|number| Source::new(&format!("src/proxy/part{number}.rs"), "//! Doc.\n")).collect()
    };
    assert_eq!(rules::folders(&folder(10)), []);
    let found: Vec<String> = rules::folders(&folder(11)).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["src/proxy:1: 11 files; allowed: 10 in a folder"]);
}

#[test]
fn a_file_of_tests_is_left_alone_only_where_its_parent_says_so() {
    let tests = || Source::new("src/policy/tests.rs", "use crate::proxy;\n");
    let parent = |text: &str| Source::new("src/policy.rs", &format!("//! Doc.\n{text}\n"));
    assert_eq!(source::without_tests(vec![parent("#[cfg(test)]\nmod tests;"), tests()]).len(), 1);
    assert_eq!(source::without_tests(vec![parent("mod tests;"), tests()]).len(), 2);
}
