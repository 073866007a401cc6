# The binary. A nixpkgs-shaped file: it takes what `callPackage` gives and knows nothing of the flake.
{
  lib,
  stdenv,
  rustPlatform,
  makeBinaryWrapper,
  versionCheckHook,
  bubblewrap,
}:

rustPlatform.buildRustPackage {
  pname = "cloister";
  inherit ((lib.importTOML ../Cargo.toml).package) version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.lock
      ../Cargo.toml
      ../src
    ];
  };

  cargoLock.lockFile = ../Cargo.lock;

  nativeBuildInputs = lib.optional stdenv.hostPlatform.isLinux makeBinaryWrapper;

  # `libc.a`, for the static link. musl (`pkgsStatic.callPackage`) brings its own.
  buildInputs = lib.optional stdenv.hostPlatform.isGnu stdenv.cc.libc.static;

  env = {
    # zlib for libgit2 comes with its crate, never from the build machine.
    LIBZ_SYS_STATIC = "1";
  }
  // lib.optionalAttrs stdenv.hostPlatform.isLinux {
    # nixpkgs sets this variable for every Rust package, and it silences `target.*.rustflags` of a cargo
    # configuration; `.cargo/config.toml` is not in the source for that reason. Build scripts and procedural
    # macros stay dynamic: the hooks always pass `--target`, and then cargo keeps the flags from them.
    RUSTFLAGS = "-C target-feature=+crt-static";
  };

  # Twice the build for a tenth of the processor time; the tests do without.
  buildType = "dist";
  checkType = "release";

  # The unit tests. The integration tests want namespaces and the whole repository: `make test`.
  cargoTestFlags = [ "--lib" ];

  # Behind the caller's PATH: where only the system's bwrap may make user namespaces (AppArmor), that one is used.
  # The wrapper stays outside; sandboxes get the static program behind it, which Cloister finds as `/proc/self/exe`.
  postInstall = lib.optionalString stdenv.hostPlatform.isLinux ''
    wrapProgram $out/bin/cloister --suffix PATH : ${lib.makeBinPath [ bubblewrap ]}
  '';

  doInstallCheck = true;
  nativeInstallCheckInputs = [ versionCheckHook ];

  meta = {
    description = "Runs an AI coding agent in a sandbox whose only way out is a guarded proxy";
    homepage = "https://github.com/xdg/cloister";
    license = lib.licenses.asl20;
    mainProgram = "cloister";
    platforms = lib.platforms.linux ++ lib.platforms.darwin;
  };
}
