# The development shell: what `make test` uses, at the versions of the pinned nixpkgs.
{
  lib,
  stdenv,
  mkShell,
  bubblewrap,
  cargo-deny,
  cargo-nextest,
  clippy,
  nixfmt,
  openssl,
  python3,
  rustfmt,
  shellcheck,
  tmux,
  cloister,
}:

mkShell {
  inputsFrom = [ cloister ];
  packages = [
    cargo-deny
    cargo-nextest
    clippy
    nixfmt
    openssl
    python3
    rustfmt
    shellcheck
    tmux
  ]
  ++ lib.optional stdenv.hostPlatform.isLinux bubblewrap;
}
