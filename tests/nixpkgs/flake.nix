# A stand-in for nixpkgs, just large enough for the outputs of Cloister's flake to evaluate: nothing in it can be
# built. `tests/it/nix.rs` uses it, so that the flake is checked where the real one can't be fetched.
{
  outputs =
    { self }:
    let
      lib = import ./lib.nix;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
        "x86_64-darwin"
        "aarch64-darwin"
      ];
    in
    {
      inherit lib;
      legacyPackages = lib.genAttrs systems (system: import ./packages.nix { inherit lib system; });
    };
}
