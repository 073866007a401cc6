//! The tables, and the judgement over one file.

use std::collections::BTreeMap;
use std::fmt;

use super::source::Source;

/// The modules by layer. A module may use every layer below its own.
const LAYERS: [&[&str]; 5] = [
    &["name", "token", "policy", "text"],
    &["kernel", "paths", "process", "audit", "config", "nix"],
    &["git", "project", "files", "agent", "sandbox", "init", "approval", "proxy", "broker", "hostexec"],
    &["guardian", "web", "session"],
    &["cli", "main"],
];

/// What a module may use inside its own layer.
const INSIDE: [(&str, &[&str]); 10] = [
    ("name", &["text"]),
    ("token", &["name", "text"]),
    ("policy", &["name", "text"]),
    ("audit", &["paths"]),
    ("config", &["paths"]),
    ("nix", &["paths", "process"]),
    ("project", &["git"]),
    ("guardian", &["web"]),
    ("session", &["guardian::client"]),
    ("main", &["cli"]),
];

/// Crates that only the named modules may touch.
const OWNERS: [(&str, &[&str]); 13] = [
    ("axum", &["guardian", "web"]),
    ("askama", &["web"]),
    ("bollard", &["sandbox"]),
    ("git2", &["git"]),
    ("hickory_resolver", &["proxy"]),
    ("hyper", &["guardian", "proxy", "web"]),
    ("hyper_util", &["guardian", "proxy", "web"]),
    ("notify", &["guardian"]),
    ("prometheus_client", &["guardian", "proxy"]),
    ("ratatui", &["cli"]),
    ("rustls", &["proxy"]),
    ("tokio_rustls", &["proxy"]),
    ("zbus", &["guardian"]),
];

/// The crates of layer 0.
const PURE_CRATES: [&str; 10] =
    ["std", "serde", "thiserror", "regex", "psl", "idna", "sha2", "subtle", "secrecy", "unicode_security"];

/// What layer 0 does not take from std: I/O, the clock, the environment, threads.
const IMPURE_STD: [&[&str]; 13] = [
    &["env"],
    &["fs"],
    &["io"],
    &["os"],
    &["process"],
    &["thread"],
    &["time", "Instant"],
    &["time", "SystemTime"],
    &["time", "UNIX_EPOCH"],
    &["net", "TcpListener"],
    &["net", "TcpStream"],
    &["net", "ToSocketAddrs"],
    &["net", "UdpSocket"],
];

const MAX_LINES: usize = 500;
const MAX_MAIN_LINES: usize = 30;
const MAX_FILES: usize = 10;
const EMPTY_NAMES: [&str; 8] = ["mod", "utils", "util", "common", "helpers", "helper", "misc", "types"];

/// A rule broken at a place, saying what would be allowed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Violation {
    path: String,
    line: usize,
    message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

fn violation(source: &Source, line: usize, message: String) -> Violation {
    Violation { path: source.path().to_owned(), line, message }
}

/// One finding for each line and message, however many names a `use` takes from one place.
fn distinct(found: impl Iterator<Item = Violation>) -> Vec<Violation> {
    let mut found: Vec<Violation> = found.collect();
    found.dedup();
    found
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn all_modules() -> String {
    quoted(LAYERS.iter().copied().flatten())
}

/// Modules import downwards, and inside a layer what the table names. The library's root only declares.
pub(crate) fn imports(source: &Source) -> Vec<Violation> {
    let module = source.module();
    let Some(own) = module.first() else {
        return Vec::new();
    };
    let Some(own_layer) = layer(own) else {
        let message = format!("module `{own}` is not in the table; allowed: {}", all_modules());
        return vec![violation(source, 1, message)];
    };
    let of_this_crate = source.uses().iter().filter(|path| path.segments[0] == "crate");
    distinct(of_this_crate.filter_map(|path| {
        let message = forbidden(own, own_layer, &path.segments[1..])?;
        Some(violation(source, path.line, message))
    }))
}

fn forbidden(own: &str, own_layer: usize, path: &[String]) -> Option<String> {
    let target = path.first().map_or("*", String::as_str);
    if matches!(target, "*" | "self") {
        return Some("names the whole crate; allowed: paths that name a module".to_owned());
    }
    let Some(target_layer) = layer(target) else {
        return Some(format!("`{target}` is not a module of the table; allowed: {}", all_modules()));
    };
    let inside = INSIDE.iter().find(|(module, _)| *module == own).map_or(&[][..], |(_, inside)| inside);
    let whole = path.join("::");
    let named = inside.iter().any(|name| whole == *name || whole.starts_with(&format!("{name}::")));
    if target == own || target_layer < own_layer || named {
        return None;
    }
    let below = (own_layer > 0).then(|| format!("layers below {own_layer} in src"));
    let inside = (!inside.is_empty()).then(|| quoted(inside));
    let allowed: Vec<String> = below.into_iter().chain(inside).collect();
    let allowed = if allowed.is_empty() { "no other module".to_owned() } else { allowed.join(" and ") };
    Some(format!("`{own}` (layer {own_layer}) uses `{target}`; allowed: {allowed}"))
}

/// Each crate of the owners' table is named by its owners alone. `crates` are the dependencies as code writes them.
pub(crate) fn owners(source: &Source, crates: &[String]) -> Vec<Violation> {
    let module = source.module();
    let own = module.first().map_or("lib", String::as_str);
    distinct(source.uses().iter().filter_map(|path| {
        let name = path.segments[0].as_str();
        let (_, owners) =
            OWNERS.iter().find(|(owned, _)| *owned == name && crates.iter().any(|known| known == name))?;
        if owners.contains(&own) {
            return None;
        }
        let message = format!(
            "`{name}` belongs to {}; allowed in `{own}`: what these modules offer in their own words",
            quoted(*owners),
        );
        Some(violation(source, path.line, message))
    }))
}

/// Code that the compiler does not check stands in one module.
pub(crate) fn unchecked_code(source: &Source) -> Vec<Violation> {
    const OWNER: &str = "kernel";
    if source.module().first().is_some_and(|own| own == OWNER) {
        return Vec::new();
    }
    let message = format!("`unsafe` belongs to `{OWNER}`; allowed: what it offers as safe functions");
    distinct(source.unsafe_lines().iter().map(|&line| violation(source, line, message.clone())))
}

/// Layer 0 does no I/O, knows no clock, is not async, and uses few crates.
pub(crate) fn pure_values(source: &Source, crates: &[String]) -> Vec<Violation> {
    if source.module().first().and_then(|own| layer(own)) != Some(0) {
        return Vec::new();
    }
    let uses = source.uses().iter().filter_map(|path| {
        let message = impure(&path.segments, crates)?;
        Some(violation(source, path.line, message))
    });
    let is_async = source
        .async_lines()
        .iter()
        .map(|&line| violation(source, line, "layer 0 is not `async`; allowed: plain functions".to_owned()));
    distinct(uses.chain(is_async))
}

fn impure(path: &[String], crates: &[String]) -> Option<String> {
    let (name, rest) = path.split_first()?;
    if name == "std" {
        let starts =
            |wanted: &[&str]| rest.len() >= wanted.len() && rest.iter().zip(wanted).all(|(a, b)| a == b);
        let found = IMPURE_STD.iter().find(|wanted| starts(wanted))?.join("::");
        return Some(format!(
            "layer 0 uses `std::{found}`; allowed: std without I/O, clock, environment, threads"
        ));
    }
    let known = crates.contains(name) && !PURE_CRATES.contains(&name.as_str());
    known.then(|| format!("layer 0 uses the crate `{name}`; allowed: {}", quoted(&PURE_CRATES)))
}

/// The length, the name and the documentation of a file.
pub(crate) fn shape(source: &Source) -> Vec<Violation> {
    let module = source.module();
    let name = module.last().map_or("lib", String::as_str);
    let lines = source.lines_without_tests();
    let limit = if source.path() == "src/main.rs" { MAX_MAIN_LINES } else { MAX_LINES };
    let mut found = Vec::new();
    if lines > limit {
        found.push(violation(source, lines, format!("{lines} lines without tests; allowed: {limit}")));
    }
    if EMPTY_NAMES.contains(&name) {
        found.push(violation(
            source,
            1,
            format!("`{name}` names no thing; allowed: a noun, as `foo.rs` beside `foo/`"),
        ));
    }
    if !source.documented() {
        found.push(violation(
            source,
            1,
            "the file has no `//!` line at its top; allowed: one that says what it holds".to_owned(),
        ));
    }
    found
}

/// The number of files in each folder below `src`; `src` itself is bounded by the table of modules.
pub(crate) fn folders(sources: &[Source]) -> Vec<Violation> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for source in sources {
        let (folder, _) = source.path().rsplit_once('/').unwrap_or(("", source.path()));
        *counts.entry(folder).or_default() += 1;
    }
    let crowded = counts.into_iter().filter(|&(folder, count)| folder != "src" && count > MAX_FILES);
    let judged = crowded.map(|(folder, count)| Violation {
        path: folder.to_owned(),
        line: 1,
        message: format!("{count} files; allowed: {MAX_FILES} in a folder"),
    });
    judged.collect()
}
