# The functions of nixpkgs' `lib` that Cloister's Nix files call, with the same meaning on what they are called with.
let
  inherit (builtins)
    all
    any
    concatStringsSep
    listToAttrs
    map
    pathExists
    stringLength
    substring
    ;
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
in
rec {
  genAttrs =
    names: value:
    listToAttrs (
      map (name: {
        inherit name;
        value = value name;
      }) names
    );
  optional = condition: value: if condition then [ value ] else [ ];
  optionalString = condition: text: if condition then text else "";
  optionalAttrs = condition: attrs: if condition then attrs else { };
  importTOML = path: builtins.fromTOML (builtins.readFile path);
  makeBinPath = packages: concatStringsSep ":" (map (package: "${package}/bin") packages);
  getExe = package: "${package}/bin/${package.meta.mainProgram}";

  licenses.asl20.spdxId = "Apache-2.0";
  platforms = {
    linux = [
      "x86_64-linux"
      "aarch64-linux"
    ];
    darwin = [
      "x86_64-darwin"
      "aarch64-darwin"
    ];
  };

  fileset = {
    unions =
      paths:
      assert all pathExists paths;
      paths;
    # Keeps a path that is listed, lies in a listed folder, or is a folder on the way to a listed one.
    toSource =
      { root, fileset }:
      let
        kept = path: listed: path == listed || hasPrefix "${listed}/" path || hasPrefix "${path}/" listed;
      in
      {
        outPath = builtins.path {
          name = "source";
          path = root;
          filter = path: _: any (listed: kept path (toString listed)) fileset;
        };
      };
  };
}
