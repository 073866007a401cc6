//! Which files a host executes, and when: the classes of the trust diff (F7).

use super::pattern::matches;

/// How soon the host executes a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// By itself: on opening, entering or any git command.
    ByItself,
    /// On building, testing or installing.
    OnBuild,
    /// When somebody calls it.
    WhenCalled,
}

impl Rank {
    /// The number that users see: 1 is the most urgent.
    pub fn number(self) -> u8 {
        match self {
            Self::ByItself => 1,
            Self::OnBuild => 2,
            Self::WhenCalled => 3,
        }
    }
}

/// Patterns of paths below the project, with what executes them; the first one that matches decides.
#[rustfmt::skip]
const CLASSES: [(Rank, &str, &[&str]); 27] = [
    (Rank::ByItself, "git runs it as a hook", &["**/.git/hooks/**", "**/.git/**/hooks/**", ".husky/**", ".githooks/**"]),
    (Rank::ByItself, "git obeys it: settings name programs", &["**/.git/**", ".gitconfig"]),
    (Rank::ByItself, "git chooses filters and merge drivers by it", &[".gitattributes"]),
    (Rank::ByItself, "git takes repositories and their addresses from it", &[".gitmodules"]),
    (Rank::ByItself, "a repository of its own: git obeys its settings", &[".git"]),
    (Rank::ByItself, "the editor runs its tasks and the programs that it names", &[
        "**/.vscode/**", "*.code-workspace", "**/.idea/**", "**/.zed/**", ".exrc", ".nvimrc", ".nvim.lua", ".vimrc",
        ".dir-locals.el", "*.sublime-project",
    ]),
    (Rank::ByItself, "the editor runs its commands in a container", &["**/.devcontainer/**", ".devcontainer.json"]),
    (Rank::ByItself, "the shell runs it on entering the directory", &[
        ".envrc", ".env.fish", ".autoenv", ".autoenv.zsh", "mise.toml", ".mise.toml", "**/mise/config.toml",
        "**/.mise/**", ".tool-versions", ".rtx.toml", "devenv.nix", "devenv.yaml",
    ]),
    (Rank::ByItself, "the agent obeys it: permissions, hooks, servers, commands", &[
        "**/.claude/**", ".mcp.json", "**/.cursor/**", "**/.codex/**", "**/.gemini/**", "**/.windsurf/**", "**/.continue/**",
        "**/.aider*", "**/.opencode/**", "opencode.json*",
    ]),
    (Rank::ByItself, "the agent follows its instructions", &[
        "AGENTS.md", "CLAUDE.md", "CLAUDE.local.md", "GEMINI.md", ".cursorrules", ".windsurfrules", ".clinerules",
        "**/.github/copilot-instructions.md",
    ]),
    (Rank::OnBuild, "the forge runs it on a push", &[
        "**/.github/workflows/**", "**/.github/actions/**", ".gitlab-ci.yml", ".gitlab-ci/**", "**/.circleci/**",
        "Jenkinsfile*", "azure-pipelines*.yml", "bitbucket-pipelines.yml", ".travis.yml", ".drone.yml",
        ".woodpecker.y*ml", "**/.woodpecker/**", "**/.forgejo/**", "**/.gitea/**", "**/.buildkite/**", "appveyor.yml",
        ".cirrus.yml", "cloudbuild.yaml", "**/.ci/**", "renovate.json*", "dependabot.yml",
    ]),
    (Rank::OnBuild, "a hook manager installs and runs it", &[
        ".pre-commit-config.y*ml", ".pre-commit-hooks.y*ml", "lefthook*.y*ml", ".lefthook.y*ml", ".lintstagedrc*",
        "lint-staged.config.*", ".overcommit.yml",
    ]),
    (Rank::OnBuild, "make runs it", &["Makefile", "GNUmakefile", "*.mk", "Makefile.*", "justfile", ".justfile", "*.just", "Taskfile.y*ml", "Earthfile", "Tiltfile", "Procfile*", "magefile.go"]),
    (Rank::OnBuild, "the package manager runs its scripts", &["package.json", "deno.json*", "bunfig.toml", "turbo.json", "nx.json", "project.json", "lerna.json", "composer.json"]),
    (Rank::OnBuild, "the package manager obeys it: registries and programs", &[
        ".npmrc", ".yarnrc*", "**/.yarn/releases/**", "**/.yarn/plugins/**", ".pnpmfile.*", "pnpm-workspace.yaml", "pip.conf", "uv.toml", ".gemrc", "**/.bundle/config",
    ]),
    (Rank::OnBuild, "it decides which code is fetched", &[
        "package-lock.json", "npm-shrinkwrap.json", "yarn.lock", "pnpm-lock.yaml", "bun.lock*", "Cargo.lock", "poetry.lock",
        "uv.lock", "Pipfile.lock", "requirements*.txt", "go.sum", "Gemfile.lock", "composer.lock", "flake.lock",
    ]),
    (Rank::OnBuild, "JavaScript tools run it", &[
        "*.config.js", "*.config.cjs", "*.config.mjs", "*.config.ts", "*.config.mts", "*.config.cts", ".eslintrc*", ".prettierrc*", ".babelrc*",
        "Gruntfile*", "gulpfile*", ".mocharc*", ".swcrc", "jest.setup.*", "setupTests.*",
    ]),
    (Rank::OnBuild, "cargo builds and runs it", &["build.rs", "Cargo.toml", "**/.cargo/**", "rust-toolchain*", "**/.config/nextest.toml", "clippy.toml"]),
    (Rank::OnBuild, "Python runs it on installing or testing", &[
        "setup.py", "setup.cfg", "pyproject.toml", "conftest.py", "tox.ini", "noxfile.py", "pytest.ini", "Pipfile",
        "manage.py", "sitecustomize.py", "usercustomize.py", "*.pth", "tasks.py", "fabfile.py", "SConstruct", "SConscript", "wscript", "meson.build",
    ]),
    (Rank::OnBuild, "Nix builds or runs it", &["*.nix"]),
    (Rank::OnBuild, "containers are built and started by it", &["Dockerfile*", "*.Dockerfile", "Containerfile*", "docker-compose*.y*ml", "compose*.y*ml", ".dockerignore", "Vagrantfile", "docker-bake.*"]),
    (Rank::OnBuild, "the build system runs it", &[
        "CMakeLists.txt", "*.cmake", "CMakePresets.json", "configure", "configure.ac", "*.m4", "autogen.sh", "BUILD", "BUILD.bazel", "WORKSPACE*", "MODULE.bazel",
        ".bazelrc", "*.bzl", "meson_options.txt", "build.zig*", "xmake.lua", "premake*.lua", "dune-project", "mix.exs", "rebar.config*", "build.sbt", "**/project/*.sbt", "*.csproj", "Directory.Build.*",
    ]),
    (Rank::OnBuild, "Gradle or Maven runs it", &[
        "*.gradle", "*.gradle.kts", "gradle.properties", "gradlew", "gradlew.bat", "**/gradle/wrapper/**", "pom.xml", "mvnw", "mvnw.cmd", "**/.mvn/**", "build.xml",
    ]),
    (Rank::OnBuild, "Ruby runs it", &["Gemfile", "Rakefile", "*.gemspec", "*.rake", ".irbrc", ".pryrc", ".rspec", "Guardfile", "Capfile", "Brewfile", "Dangerfile", "Fastfile", "Podfile"]),
    (Rank::OnBuild, "infrastructure is changed by it", &["*.tf", "*.tofu", "ansible.cfg", "Pulumi.yaml", "serverless.y*ml", "skaffold.yaml", "helmfile.yaml"]),
    (Rank::OnBuild, "Go runs or fetches by it", &["go.mod", "go.work", "tools.go", ".goreleaser.y*ml"]),
    (Rank::OnBuild, "Cloister reads it", &["cloister.nix", "cloister.lock.json", "**/.cloister/**"]),
];

/// Tells how soon the host executes a path below the project, and what does. What can be executed only by its
/// permission bits is no matter of its name.
pub fn classify(path: &str) -> Option<(Rank, &'static str)> {
    CLASSES
        .iter()
        .find(|(_, _, patterns)| patterns.iter().any(|pattern| matches(pattern, path)))
        .map(|(rank, why, _)| (*rank, *why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rank: u8, paths: &[&str]) {
        for path in paths {
            let found = classify(path).map(|(rank, _)| rank.number());
            assert_eq!(found, (rank != 0).then_some(rank), "`{path}`");
        }
    }

    #[test]
    fn f7_what_runs_by_itself() {
        check(
            1,
            &[
                ".git/hooks/pre-commit",
                ".git/modules/sub/hooks/post-checkout",
                ".git/config",
                "vendor/x/.git",
            ],
        );
        check(
            1,
            &[".git/worktrees/x/config.worktree", ".husky/pre-commit", ".gitattributes", "a/.gitattributes"],
        );
        check(
            1,
            &[
                ".vscode/tasks.json",
                "packages/a/.vscode/settings.json",
                "x.code-workspace",
                ".envrc",
                "a/.envrc",
            ],
        );
        check(1, &[".mcp.json", ".claude/settings.json", ".claude/commands/x.md", "CLAUDE.md", "mise.toml"]);
    }

    #[test]
    fn f7_what_runs_on_building_testing_installing() {
        check(
            2,
            &[
                ".github/workflows/ci.yml",
                "Makefile",
                "a/b/Makefile",
                "package.json",
                "build.rs",
                "flake.nix",
            ],
        );
        check(
            2,
            &["conftest.py", "tests/conftest.py", "Dockerfile.dev", "vite.config.ts", ".npmrc", "gradlew"],
        );
        check(
            2,
            &[
                ".cargo/config.toml",
                "rust-toolchain.toml",
                ".pre-commit-config.yaml",
                "go.mod",
                "Jenkinsfile",
            ],
        );
    }

    #[test]
    fn f7_what_nothing_runs_by_its_name() {
        check(
            0,
            &[
                "src/main.rs",
                "README.md",
                "data.json",
                "a.txt",
                "docs/make.md",
                "git/config",
                "package.json.txt",
            ],
        );
    }

    #[test]
    fn every_class_says_why() {
        assert!(CLASSES.iter().all(|(_, why, patterns)| !why.is_empty() && !patterns.is_empty()));
    }
}
