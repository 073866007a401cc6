# What `nix flake check` builds: the package with its unit tests, the lints, the formatting.
{
  lib,
  stdenv,
  runCommand,
  cargo,
  clippy,
  nixfmt,
  rustfmt,
  cloister,
}:

let
  # More than the package's source: the lints and the formatter read the tests and the settings too.
  source = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../.clippy.toml
      ../.rustfmt.toml
      ../Cargo.lock
      ../Cargo.toml
      ../flake.nix
      ../nix
      ../src
      ../tests
    ];
  };
in
{
  package = cloister;

  clippy = cloister.overrideAttrs (previous: {
    pname = "cloister-clippy";
    src = source;
    nativeBuildInputs = previous.nativeBuildInputs ++ [ clippy ];
    buildPhase = ''
      runHook preBuild
      cargo clippy --release --all-targets --offline --target ${stdenv.hostPlatform.rust.rustcTargetSpec}
      runHook postBuild
    '';
    doCheck = false;
    installPhase = "touch $out";
    doInstallCheck = false;
  });

  formatting =
    runCommand "cloister-formatting"
      {
        nativeBuildInputs = [
          cargo
          nixfmt
          rustfmt
        ];
      }
      ''
        cp --recursive --no-preserve=mode ${source} source
        cd source
        cargo fmt --check
        nixfmt --check flake.nix nix/*.nix tests/nixpkgs/*.nix
        touch $out
      '';
}
