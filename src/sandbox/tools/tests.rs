//! Tools over faked hosts: directory trees in a temporary place.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use super::*;

/// A host with `usr` shown already, an `opt`, a home, and a project that a sandbox can write.
struct Host {
    top: PathBuf,
    _keep: tempfile::TempDir,
}

fn host() -> Host {
    let keep = tempfile::tempdir().unwrap();
    let host = Host { top: fs::canonicalize(keep.path()).unwrap(), _keep: keep };
    for directory in ["usr/bin", "usr/local/bin", "opt", "home/.local/bin", "home/project"] {
        fs::create_dir_all(host.at(directory)).unwrap();
    }
    host
}

impl Host {
    fn at(&self, below: &str) -> PathBuf {
        self.top.join(below)
    }

    fn file(&self, below: &str, mode: u32) -> PathBuf {
        let path = self.at(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn program(&self, below: &str) -> PathBuf {
        self.file(below, 0o755)
    }

    fn link(&self, below: &str, points_to: impl AsRef<Path>) {
        let path = self.at(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(points_to, path).unwrap();
    }

    fn find_with(&self, variables: &[(&str, String)], chosen: &[PathBuf]) -> Tools {
        let home = self.at("home");
        Tools::find(&Search {
            variable: &|name| {
                let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
                Some(value.clone().into())
            },
            home: &home,
            opt: &self.at("opt"),
            alternatives: &self.at("etc/alternatives"),
            seen: &[self.at("usr"), self.at("nix/store"), self.at("etc/alternatives")],
            hidden: &[
                home.join(".ssh"),
                home.join(".config"),
                home.join(".local/share/keyrings"),
                home.join("project"),
                self.at("bin/cloister"),
            ],
            chosen,
        })
    }

    /// What is found with this `PATH`, its entries below the top.
    fn find(&self, path: &[&str]) -> Tools {
        let path: Vec<String> = path.iter().map(|entry| self.at(entry).display().to_string()).collect();
        self.find_with(&[("PATH", path.join(":"))], &[])
    }

    fn bind(&self, below: &str) -> Mount {
        Mount::ReadOnly { source: self.at(below), target: self.at(below) }
    }

    fn linked(&self, below: &str, points_to: impl Into<PathBuf>) -> Mount {
        Mount::Link { points_to: points_to.into(), target: self.at(below) }
    }

    /// The host's part of the value of `PATH`, below the top.
    fn path(&self, tools: &Tools) -> Vec<String> {
        let below = |directory: &PathBuf| Some(directory.strip_prefix(&self.top).ok()?.display().to_string());
        tools.path.iter().filter_map(below).collect()
    }
}

#[track_caller]
fn check(tools: &Tools, expected: &[Mount]) {
    assert_eq!(tools.mounts, expected);
}

#[test]
fn the_sandboxs_own_programs_come_first_and_the_systems_last() {
    let tools = host().find(&[]);
    let expected = "/home/cloister/.local/bin:/run/cloister/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:\
                    /sbin:/bin";
    assert_eq!((tools.search_path().as_str(), tools.mounts), (expected, vec![]));
}

#[test]
fn directories_that_are_shown_are_used_under_their_resolved_paths_in_the_hosts_order() {
    let host = host();
    host.program("nix/store/1-profile/bin/tool");
    host.link("home/.nix-profile", host.at("nix/profiles/default"));
    host.link("nix/profiles/default", host.at("nix/store/1-profile"));
    let tools = host.find(&["home/.nix-profile/bin", "usr/local/bin", "missing", "usr/bin", "usr/local/bin"]);
    check(&tools, &[]);
    assert_eq!(host.path(&tools), ["nix/store/1-profile/bin", "usr/local/bin", "usr/bin"]);
}

#[test]
fn relative_entries_are_passed_over() {
    let host = host();
    let tools = host.find_with(&[("PATH", format!(".:bin::{}", host.at("usr/bin").display()))], &[]);
    assert_eq!(host.path(&tools), ["usr/bin"]);
}

#[test]
fn a_program_is_shown_with_the_links_that_lead_to_it() {
    let host = host();
    host.program("home/.local/share/claude/versions/2.1.0");
    host.file("home/.local/share/claude/versions/notes", 0o644);
    host.link("home/.local/share/claude/current", "versions/2.1.0");
    host.link("home/.local/bin/claude", host.at("home/.local/share/claude/current"));
    host.link("home/.local/bin/python", host.at("usr/bin/python"));
    host.program("usr/bin/python");
    host.file("home/.local/bin/README", 0o644);
    let tools = host.find(&["usr/bin"]);
    check(
        &tools,
        &[
            host.bind("home/.local/share/claude/versions/2.1.0"),
            host.linked("home/.local/bin/claude", host.at("home/.local/share/claude/current")),
            host.linked("home/.local/bin/python", host.at("usr/bin/python")),
            host.linked("home/.local/share/claude/current", "versions/2.1.0"),
        ],
    );
    assert_eq!(host.path(&tools), ["home/.local/bin", "usr/bin"]);
}

#[test]
fn a_home_that_is_reached_through_a_link_is_found_under_both_paths() {
    let host = host();
    host.program("data/tools/hello");
    host.link("home/tools", host.at("data/tools"));
    let tools = host.find(&["home/tools"]);
    check(&tools, &[host.bind("data/tools/hello"), host.linked("home/tools", host.at("data/tools"))]);
    assert_eq!(host.path(&tools), ["data/tools"]);
}

#[test]
fn a_virtual_environment_is_shown_whole_with_its_interpreter() {
    let host = host();
    let environment = "home/.local/share/pipx/venvs/black";
    host.program(&format!("{environment}/bin/black"));
    host.file(&format!("{environment}/pyvenv.cfg"), 0o644);
    host.program("home/.local/share/uv/python/3.12/bin/python3.12");
    host.file("home/.local/share/uv/python/3.12/lib/libpython.so", 0o644);
    let interpreter = host.at("home/.local/share/uv/python/3.12/bin/python3.12");
    host.link(&format!("{environment}/bin/python"), interpreter);
    host.link("home/.local/bin/black", host.at(&format!("{environment}/bin/black")));
    check(
        &host.find(&[]),
        &[
            host.bind(environment),
            host.bind("home/.local/share/uv/python/3.12"),
            host.linked("home/.local/bin/black", host.at(&format!("{environment}/bin/black"))),
        ],
    );
}

#[test]
fn a_node_program_is_shown_with_the_topmost_modules() {
    let host = host();
    let script = "home/.npm/lib/node_modules/a/node_modules/b/cli.js";
    host.program(script);
    host.link("home/.local/bin/b", "../../.npm/lib/node_modules/a/node_modules/b/cli.js");
    check(
        &host.find(&[]),
        &[
            host.bind("home/.npm/lib/node_modules"),
            host.linked("home/.local/bin/b", "../../.npm/lib/node_modules/a/node_modules/b/cli.js"),
        ],
    );
}

#[test]
fn links_out_of_shown_directories_show_their_part_of_opt_or_the_program() {
    let host = host();
    host.program("opt/go/bin/go");
    host.file("opt/go/src/main.go", 0o644);
    host.program("srv/tools/elsewhere");
    host.link("usr/local/bin/go", host.at("opt/go/bin/go"));
    host.link("usr/local/bin/elsewhere", host.at("srv/tools/elsewhere"));
    host.link("usr/local/bin/dangling", host.at("srv/nothing"));
    host.link("usr/local/bin/inside", "../../bin/x");
    check(&host.find(&["usr/local/bin"]), &[host.bind("opt/go"), host.bind("srv/tools/elsewhere")]);
}

#[test]
fn alternatives_lead_to_opt_too() {
    let host = host();
    host.program("opt/jdk/bin/java");
    host.link("usr/bin/java", host.at("etc/alternatives/java"));
    host.link("etc/alternatives/java", host.at("opt/jdk/bin/java"));
    host.link("etc/alternatives/cc", host.at("usr/bin/gcc"));
    check(&host.find(&["usr/bin"]), &[host.bind("opt/jdk")]);
}

#[test]
fn a_prefix_is_shown_whole_unless_it_holds_something_hidden() {
    let host = host();
    host.program("home/.nvm/v20/bin/node");
    host.file("home/.nvm/v20/lib/library", 0o644);
    host.program("home/.local/bin/tool");
    fs::create_dir_all(host.at("home/.local/lib")).unwrap();
    let tools = host.find(&["home/.nvm/v20/bin"]);
    check(&tools, &[host.bind("home/.local/bin/tool"), host.bind("home/.nvm/v20")]);
    assert_eq!(host.path(&tools), ["home/.local/bin", "home/.nvm/v20/bin"]);
}

#[test]
fn rustup_is_shown_with_its_toolchains() {
    let host = host();
    host.program("home/.cargo/bin/rustup");
    host.link("home/.cargo/bin/cargo", "rustup");
    host.file("home/.cargo/credentials.toml", 0o600);
    fs::create_dir_all(host.at("home/.rustup/toolchains/stable")).unwrap();
    let tools = host.find(&["home/.cargo/bin"]);
    check(
        &tools,
        &[
            host.bind("home/.cargo/bin/rustup"),
            host.bind("home/.rustup"),
            host.linked("home/.cargo/bin/cargo", "rustup"),
        ],
    );
    let expected = host.at("home/.rustup").display().to_string();
    assert_eq!(tools.variables, [("RUSTUP_HOME".to_owned(), expected)].into());
}

#[test]
fn f14_nothing_is_shown_that_a_sandbox_can_write_or_that_holds_keys() {
    let host = host();
    host.program("home/project/bin/planted");
    host.program("home/.ssh/helper");
    host.program("home/.config/tool/bin/run");
    host.program("bin/cloister");
    for (name, target) in [
        ("planted", "home/project/bin/planted"),
        ("helper", "home/.ssh/helper"),
        ("run", "home/.config/tool/bin/run"),
        ("cloister", "bin/cloister"),
        ("nothing", "home/nothing"),
        ("loop", "home/.local/bin/loop"),
    ] {
        host.link(&format!("home/.local/bin/{name}"), host.at(target));
    }
    // A way through the project can be changed by a sandbox, wherever it ends.
    host.program("srv/safe");
    host.link("home/project/way", host.at("srv/safe"));
    host.link("home/.local/bin/way", host.at("home/project/way"));
    let tools = host.find(&["home/project/bin", "home/.ssh", "home/.local/bin"]);
    check(&tools, &[]);
    assert_eq!(host.path(&tools), [] as [String; 0]);
}

#[test]
fn programs_that_others_can_change_or_that_lend_rights_are_passed_over() {
    let host = host();
    host.file("home/.local/bin/everybody", 0o777);
    host.file("home/.local/bin/setuid", 0o4755);
    host.file("home/.local/bin/setgid", 0o2755);
    let _listener = UnixListener::bind(host.at("home/.local/bin/socket")).unwrap();
    host.program("open/tool");
    fs::set_permissions(host.at("open"), fs::Permissions::from_mode(0o1777)).unwrap();
    host.link("home/.local/bin/open", host.at("open/tool"));
    let tools = host.find(&["open"]);
    check(&tools, &[]);
    assert_eq!(host.path(&tools), [] as [String; 0]);
}

#[test]
fn k1_a_tree_with_a_socket_is_not_shown_whole() {
    let host = host();
    host.program("opt/database/bin/client");
    host.link("usr/local/bin/client", host.at("opt/database/bin/client"));
    let _listener = UnixListener::bind(host.at("opt/database/server.sock")).unwrap();
    check(&host.find(&["usr/local/bin"]), &[host.bind("opt/database/bin/client")]);
}

#[test]
fn shims_and_snaps_are_passed_over() {
    let host = host();
    host.program("home/.pyenv/shims/python3");
    host.program("usr/bin/snap");
    host.link("snap/bin/node", host.at("usr/bin/snap"));
    let tools = host.find(&["home/.pyenv/shims", "snap/bin"]);
    check(&tools, &[]);
    assert_eq!(host.path(&tools), [] as [String; 0]);
}

#[test]
fn directories_without_bound_are_read_to_a_bound() {
    let host = host();
    for number in 0..2010 {
        host.program(&format!("many/{number:04}"));
    }
    assert_eq!(host.find(&["many"]).mounts.len(), 2000);
}

#[test]
fn chosen_store_paths_come_first() {
    let host = host();
    host.program("nix/store/1-jq/bin/jq");
    fs::create_dir_all(host.at("nix/store/2-data/share")).unwrap();
    let chosen = [host.at("nix/store/1-jq"), host.at("nix/store/2-data")];
    let tools = host.find_with(&[("PATH", host.at("usr/bin").display().to_string())], &chosen);
    assert_eq!(host.path(&tools), ["nix/store/1-jq/bin", "usr/bin"]);
}

#[test]
fn files_that_variables_name_are_passed_on_where_they_are_shown() {
    let host = host();
    let shown = host.file("usr/share/ca.crt", 0o644);
    host.link("home/ca.crt", &shown);
    let hidden = host.file("home/.config/ca.crt", 0o644);
    let value = |path: &Path| path.display().to_string();
    let tools = host.find_with(
        &[("SSL_CERT_FILE", value(&host.at("home/ca.crt"))), ("NODE_EXTRA_CA_CERTS", value(&hidden))],
        &[],
    );
    assert_eq!(tools.variables, [("SSL_CERT_FILE".to_owned(), value(&shown))].into());
}
