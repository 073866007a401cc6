{
  description = "Runs an AI coding agent in a sandbox whose only way out is a guarded proxy";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
        "x86_64-darwin"
        "aarch64-darwin"
      ];
      eachSystem =
        outputs:
        lib.genAttrs systems (system: outputs nixpkgs.legacyPackages.${system} self.packages.${system});
    in
    {
      packages = eachSystem (
        pkgs: packages: {
          cloister = pkgs.callPackage ./nix/package.nix { };
          default = packages.cloister;
        }
      );

      apps = eachSystem (
        _: packages: {
          default = {
            type = "app";
            program = lib.getExe packages.cloister;
            meta = { inherit (packages.cloister.meta) description; };
          };
        }
      );

      devShells = eachSystem (
        pkgs: packages: {
          default = pkgs.callPackage ./nix/shell.nix { inherit (packages) cloister; };
        }
      );

      checks = eachSystem (
        pkgs: packages: pkgs.callPackages ./nix/checks.nix { inherit (packages) cloister; }
      );

      formatter = eachSystem (pkgs: _: pkgs.nixfmt-tree);

      overlays.default = final: _: { cloister = final.callPackage ./nix/package.nix { }; };
    };
}
