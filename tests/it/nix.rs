//! The flake: its pin, and its outputs as Nix evaluates them.
//!
//! nixpkgs can't be fetched everywhere, so the outputs are evaluated against `tests/nixpkgs`, a stand-in that holds just
//! the functions and packages they use. `CLOISTER_TEST_NIXPKGS=<directory>` names a real one, or a copy of a part.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{manifest, requirement};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const SYSTEMS: [&str; 4] = ["aarch64-darwin", "aarch64-linux", "x86_64-darwin", "x86_64-linux"];

/// A copy of the files that git tracks, as a flake reference would see them, and a Nix store of its own.
struct Flake {
    directory: TempDir,
    nixpkgs: PathBuf,
}

impl Flake {
    /// Nothing where Nix or git is missing and not required.
    fn new(nixpkgs: &Path) -> Option<Self> {
        for program in ["nix", "git"] {
            if command(program).arg("--version").output().is_err() {
                requirement::skip("nix", &format!("`{program}` is not on PATH"));
                return None;
            }
        }
        let directory = tempfile::tempdir().unwrap();
        // The checkout may be somebody else's, in a container for one; nothing of its configuration is run here.
        let listed =
            command("git").args(["-c", "safe.directory=*", "-C", ROOT, "ls-files", "-z"]).output().unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        for name in String::from_utf8(listed.stdout).unwrap().split_terminator('\0') {
            let (tracked, target) = (Path::new(ROOT).join(name), directory.path().join("flake").join(name));
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            // A file deleted but not committed is still listed; Nix leaves it out too.
            if tracked.exists() {
                fs::copy(tracked, target).unwrap();
            }
        }
        Some(Self { directory, nixpkgs: nixpkgs.to_owned() })
    }

    fn on_stand_in() -> Option<Self> {
        Self::new(&Path::new(ROOT).join("tests/nixpkgs"))
    }

    /// Runs `nix <verb> <this flake><fragment> …` and gives its stdout.
    #[track_caller]
    fn nix<'a>(&self, verb: &[&str], fragment: &str, more: impl IntoIterator<Item = &'a str>) -> String {
        let place = |name: &str| self.directory.path().join(name);
        let output = command("nix")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", place("home"))
            .env("NIX_STORE_DIR", place("store"))
            .env("NIX_STATE_DIR", place("state"))
            .env("NIX_LOG_DIR", place("log"))
            .env("NIX_CONF_DIR", place("etc"))
            .args(["--extra-experimental-features", "nix-command flakes", "--offline"])
            .args(verb)
            .arg(format!("path:{}{fragment}", place("flake").display()))
            .args(["--no-write-lock-file", "--override-input", "nixpkgs"])
            .arg(format!("path:{}", self.nixpkgs.display()))
            .args(more)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`nix {}` on `{fragment}`:\n{stderr}", verb.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn eval(&self, attribute: &str, function: &str) -> Value {
        let text = self.nix(&["eval", "--json"], &format!("#{attribute}"), ["--apply", function]);
        serde_json::from_str(&text).unwrap()
    }
}

/// Nix leaves its store read-only, and the temporary directory must go.
impl Drop for Flake {
    fn drop(&mut self) {
        let mut folders = vec![self.directory.path().to_owned()];
        while let Some(folder) = folders.pop() {
            let writable = fs::set_permissions(&folder, Permissions::from_mode(0o700));
            let entries = writable.and_then(|()| fs::read_dir(&folder)).into_iter().flatten().flatten();
            let inner = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            folders.extend(inner.map(|entry| entry.path()));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the tests start Nix and git as a user would")]
fn command(program: impl AsRef<OsStr>) -> Command {
    Command::new(program)
}

/// The files below a directory, by their paths from there.
fn files(root: &Path) -> BTreeSet<PathBuf> {
    let mut folders = vec![root.to_owned()];
    let mut found = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    found
}

#[test]
fn the_lock_pins_nixpkgs() {
    let lock: Value = serde_json::from_str(include_str!("../../flake.lock")).unwrap();
    let expected = json!({
        "nodes": {
            "nixpkgs": {
                "locked": {
                    "lastModified": 1_775_036_866,
                    "narHash": "sha256-ZojAnPuCdy657PbTq5V0Y+AHKhZAIwSIT2cb8UgAz/U=",
                    "owner": "NixOS",
                    "repo": "nixpkgs",
                    "rev": "6201e203d09599479a3b3450ed24fa81537ebc4e",
                    "type": "github",
                },
                "original": { "owner": "NixOS", "ref": "nixos-unstable", "repo": "nixpkgs", "type": "github" },
            },
            "root": { "inputs": { "nixpkgs": "nixpkgs" } },
        },
        "root": "root",
        "version": 7,
    });
    assert_eq!(lock, expected);
    let flake = include_str!("../../flake.nix");
    assert!(flake.contains("\n  inputs.nixpkgs.url = \"github:NixOS/nixpkgs/nixos-unstable\";\n"));
}

/// The pinned nixpkgs is of 1 April 2026 and can hold no Rust newer than 1.94; cargo takes `host-tuple` since 1.91.
#[test]
fn the_pinned_nixpkgs_has_a_rust_new_enough() {
    let minor: u32 = manifest::package("rust-version").strip_prefix("1.").unwrap().parse().unwrap();
    assert!((91..=94).contains(&minor), "rust-version 1.{minor}");
}

#[test]
fn the_outputs_are_the_table_of_contents() {
    let Some(flake) = Flake::on_stand_in() else { return };
    let shown: Value = serde_json::from_str(&flake.nix(&["flake", "show", "--json"], "", [])).unwrap();
    let description = shown["packages"]["x86_64-linux"]["default"]["description"].clone();
    let each = |output: Value| -> Value {
        SYSTEMS.map(|system| (system.to_owned(), output.clone())).into_iter().collect()
    };
    let program = |name: &str| json!({ "type": "derivation", "name": name, "description": description });
    let plain = |name: &str| json!({ "type": "derivation", "name": name });
    let version = manifest::package("version");
    let cloister = program(&format!("cloister-{version}"));
    let expected = json!({
        "apps": each(json!({ "default": { "type": "app" } })),
        "checks": each(json!({
            "clippy": program(&format!("cloister-clippy-{version}")),
            "formatting": plain("cloister-formatting-0"),
            "package": cloister,
        })),
        "devShells": each(json!({ "default": plain("shell-0") })),
        "formatter": each(plain("nixfmt-tree-0")),
        "overlays": { "default": { "type": "nixpkgs-overlay" } },
        "packages": each(json!({ "cloister": cloister, "default": cloister })),
    });
    assert_eq!(shown, expected);
    flake.nix(&["flake", "check", "--no-build"], "", []);
}

#[test]
fn the_package_is_built_static_from_its_own_source() {
    let Some(flake) = Flake::on_stand_in() else { return };
    let written = "p: { inherit (p) name; inherit (p.given) env cargoTestFlags postInstall; \
                   inherit (p.meta) mainProgram description; licence = p.meta.license.spdxId; \
                   libraries = map (l: l.name) p.given.buildInputs; }";
    let linux = flake.eval("packages.x86_64-linux.cloister", written);
    let expected = json!({
        "name": format!("cloister-{}", manifest::package("version")),
        "env": { "LIBZ_SYS_STATIC": "1", "RUSTFLAGS": "-C target-feature=+crt-static" },
        "cargoTestFlags": ["--lib"],
        "postInstall": linux["postInstall"],
        "mainProgram": "cloister",
        "description": manifest::package("description"),
        "licence": manifest::package("license"),
        "libraries": ["glibc-static-0"],
    });
    assert_eq!(linux, expected);
    let wrapped = linux["postInstall"].as_str().unwrap();
    assert!(
        wrapped.starts_with("wrapProgram $out/bin/cloister --suffix PATH : ")
            && wrapped.contains("bubblewrap-0/bin")
    );

    let darwin = flake.eval("packages.aarch64-darwin.cloister", written);
    assert_eq!((&darwin["postInstall"], &darwin["libraries"]), (&json!(""), &json!([])));

    let source = flake.eval("packages.x86_64-linux.cloister", "p: p.src.outPath");
    let packed = files(Path::new(source.as_str().unwrap()));
    let tracked = files(&flake.directory.path().join("flake"));
    let wanted = |path: &&PathBuf| {
        path.starts_with("src")
            || [Path::new("Cargo.toml"), Path::new("Cargo.lock")].contains(&path.as_path())
    };
    assert_eq!(packed, tracked.iter().filter(wanted).cloned().collect());
}

/// `include_str!` and its kin reach only what the package's source holds, or the package would not build.
#[test]
fn the_code_includes_nothing_from_outside_the_package() {
    let src = Path::new(ROOT).join("src");
    let rust = |name: &PathBuf| name.extension() == Some(OsStr::new("rs"));
    for path in files(&src).iter().filter(|name| rust(name)).map(|name| src.join(name)) {
        let text = fs::read_to_string(&path).unwrap();
        for call in ["include!(\"", "include_str!(\"", "include_bytes!(\""] {
            for (included, _) in text.split(call).skip(1).filter_map(|rest| rest.split_once('"')) {
                let target = path.parent().unwrap().join(included).canonicalize().unwrap();
                let inside = target.starts_with(src.canonicalize().unwrap());
                assert!(inside, "{}: `{included}` is not in the source of nix/package.nix", path.display());
            }
        }
    }
}

#[test]
fn the_app_is_the_packaged_binary() {
    let Some(flake) = Flake::on_stand_in() else { return };
    let program = flake.eval("apps.x86_64-linux.default", "app: app.program");
    let package = flake.eval("packages.x86_64-linux.default", "package: package.outPath");
    assert_eq!(program.as_str().unwrap(), format!("{}/bin/cloister", package.as_str().unwrap()));
}

#[test]
fn the_overlay_adds_the_package() {
    let Some(flake) = Flake::on_stand_in() else { return };
    let names = "overlay: builtins.attrNames (overlay { callPackage = file: _: file; } { })";
    assert_eq!(flake.eval("overlays.default", names), json!(["cloister"]));
}

#[test]
fn the_linux_outputs_evaluate_on_a_real_nixpkgs() {
    let Some(nixpkgs) = std::env::var_os("CLOISTER_TEST_NIXPKGS") else {
        return;
    };
    let Some(flake) = Flake::new(Path::new(&nixpkgs)) else {
        return;
    };
    for system in ["x86_64-linux", "aarch64-linux"] {
        for output in ["packages", "devShells", "checks"] {
            let found =
                flake.eval(&format!("{output}.{system}"), "builtins.mapAttrs (_: output: output.drvPath)");
            for (name, path) in found.as_object().unwrap() {
                let path = Path::new(path.as_str().unwrap());
                assert_eq!(path.extension(), Some(OsStr::new("drv")), "{output}.{system}.{name}");
            }
        }
    }
}
