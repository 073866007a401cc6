# Packages by the names that Cloister's Nix files ask for: derivations that evaluate and can't be built.
{ lib, system }:
let
  isLinux = builtins.elem system lib.platforms.linux;

  derivationFrom =
    attrs:
    derivation (
      {
        inherit system;
        name = "${attrs.pname}-${attrs.version}";
        builder = "/bin/false";
      }
      // removeAttrs attrs [
        "env"
        "meta"
        "cargoLock"
      ]
      // attrs.env or { }
    )
    // {
      meta = attrs.meta or { };
      # For the tests: what the file wrote down.
      given = attrs;
      overrideAttrs = change: derivationFrom (attrs // change attrs);
    };

  named =
    pname:
    derivationFrom {
      inherit pname;
      version = "0";
      meta.mainProgram = pname;
    };

  callPackage =
    file: own:
    let
      make = import file;
    in
    make (builtins.intersectAttrs (builtins.functionArgs make) packages // own);

  packages =
    lib.genAttrs [
      "bubblewrap"
      "cargo"
      "cargo-deny"
      "cargo-nextest"
      "clippy"
      "makeBinaryWrapper"
      "nixfmt"
      "nixfmt-tree"
      "openssl"
      "python3"
      "rustfmt"
      "shellcheck"
      "tmux"
      "versionCheckHook"
    ] named
    // {
      inherit lib callPackage;
      callPackages = callPackage;

      stdenv = {
        hostPlatform = {
          inherit isLinux system;
          isGnu = isLinux;
          rust.rustcTargetSpec =
            builtins.head (builtins.split "-" system)
            + (if isLinux then "-unknown-linux-gnu" else "-apple-darwin");
        };
        cc.libc.static = named "glibc-static";
      };

      # The real one reads the lock file when it lists the crates to fetch.
      rustPlatform.buildRustPackage =
        attrs:
        assert builtins.isList (lib.importTOML attrs.cargoLock.lockFile).package;
        derivationFrom attrs;

      mkShell =
        { inputsFrom, packages }:
        derivationFrom {
          pname = "shell";
          version = "0";
          inherit inputsFrom packages;
        };

      runCommand =
        name: attrs: script:
        derivationFrom (
          attrs
          // {
            pname = name;
            version = "0";
            inherit script;
          }
        );
    };
in
packages
