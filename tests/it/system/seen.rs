//! The README's section about what a sandbox sees is what the spec says.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::harness::Host;

/// Set to write the section anew instead of comparing it.
const UPDATE: &str = "CLOISTER_UPDATE_README";
const BEGIN: &str = "<!-- generated from the spec: what the sandbox sees -->\n";
const END: &str = "<!-- end -->\n";

/// One line of the table.
fn row(inside: &str, what: &str, access: &str) -> String {
    format!("| {inside} | {what} | {access} |\n")
}

fn code(paths: &[String]) -> String {
    paths.iter().map(|path| format!("`{path}`")).collect::<Vec<_>>().join(" ")
}

fn gib(bytes: u64) -> String {
    format!("{} GiB", bytes >> 30)
}

/// The mounts of one kind, as they stand in the spec's JSON.
fn of<'a>(spec: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    spec["mounts"].as_array().unwrap().iter().filter_map(move |mount| mount.get(kind))
}

fn target(mount: &Value) -> String {
    mount["target"].as_str().unwrap().to_owned()
}

/// The targets of one kind that lie below a directory, without it.
fn below(spec: &Value, kind: &str, directory: &str) -> Vec<String> {
    let prefix = format!("{directory}/");
    let targets = of(spec, kind).map(target).filter(|target| target.starts_with(&prefix));
    targets.map(|target| target[prefix.len()..].to_owned()).collect()
}

/// Describes the spec of a new repository's sandbox; what differs from host to host is named and not listed.
fn table(spec: &Value) -> String {
    let mut table = "| inside | what it is | access |\n|---|---|---|\n".to_owned();
    let system: Vec<&Value> = of(spec, "system").collect();
    let usr = system.iter().find(|mount| mount["path"] == "/usr").expect("`/usr` is a system directory");
    table += &row(
        &format!("`{}`", usr["path"].as_str().unwrap()),
        "the host's system, with `/bin`, `/lib` and the like, `/nix/store` and the package database where they are",
        "read",
    );
    table += &row(
        &code(&below(spec, "file", "/etc").iter().map(|name| format!("/etc/{name}")).collect::<Vec<_>>()),
        "written for the sandbox: it knows its own user, its own names and no resolver",
        "read",
    );
    table += &row(
        "the rest of `/etc`",
        "what programs need of the host's: certificates, locale, time zone, …",
        "read",
    );
    for memory in of(spec, "memory").filter(|memory| memory["size_bytes"].is_u64()) {
        let most = format!(
            "in memory, at most {}, gone with the sandbox",
            gib(memory["size_bytes"].as_u64().unwrap())
        );
        table += &row(&format!("`{}`", target(memory)), &most, "write");
    }
    for writable in of(spec, "read_write").map(target).filter(|target| !target.starts_with("/work/")) {
        let what = match writable.as_str() {
            "/work" => "your project",
            "/home/cloister" => "a home of the project's own, kept from one sandbox to the next",
            other => panic!("`{other}` is not described"),
        };
        table += &row(&format!("`{writable}`"), what, "write");
    }
    table += &row(
        &code(
            &below(spec, "read_only", "/work").iter().map(|path| format!("/work/{path}")).collect::<Vec<_>>(),
        ),
        "what your git, editor or agent would execute or obey; made (empty) for as long as it is missing",
        "read",
    );
    table += &row("files that look like secrets (`.env`, keys, tokens)", "one line that says so", "read");
    table += &row(
        &code(
            &of(spec, "read_only")
                .map(target)
                .filter(|target| target.starts_with("/run/"))
                .collect::<Vec<_>>(),
        ),
        "the guardian's sockets, and Cloister itself",
        "read, connect",
    );
    let devices: Vec<String> =
        ["processes", "devices"].iter().flat_map(|kind| of(spec, kind).map(target)).collect();
    table += &row(&code(&devices), "of the sandbox's own; kernel settings read-only or hidden", "");
    let limits = &spec["limits"];
    let together = format!(
        "\nAll its processes together: {} of memory, {} processors, {} processes (keys `limits.…`). Network: `{}`. User: \
         `{}`, uid {}.\n",
        gib(limits["memory_bytes"].as_u64().unwrap()),
        limits["cpus_milli"].as_u64().unwrap() / 1000,
        limits["pids"],
        spec["network"].as_str().unwrap(),
        spec["user"]["name"].as_str().unwrap(),
        spec["user"]["uid"],
    );
    table + &together
}

#[test]
fn the_readme_says_what_the_spec_says() {
    let Some(host) = Host::with_bubblewrap() else { return };
    let shown: Value = serde_json::from_str(&host.ok(&["start", "--dry-run", "--json"])).unwrap();
    let table = table(&shown[0]["spec"]);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the README has the section");
    let (section, after) = rest.split_once(END).expect("the section has an end");
    if std::env::var_os(UPDATE).is_some() {
        fs::write(&path, format!("{before}{BEGIN}\n{table}\n{END}{after}")).unwrap();
    } else {
        assert_eq!(
            section.trim(),
            table.trim(),
            "write it anew with {UPDATE}=1 cargo nextest run the_readme_says"
        );
    }
}
