//! Shares over faked hosts: a home, a project and Cloister's own directories in a temporary place.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use super::*;
use crate::name::{ProjectId, ProjectName};

struct Host {
    top: PathBuf,
    paths: Paths,
    project: Project,
    _keep: tempfile::TempDir,
}

fn host() -> Host {
    let keep = tempfile::tempdir().unwrap();
    let top = fs::canonicalize(keep.path()).unwrap();
    for directory in
        ["home/src/demo/data", "home/src/demo/.git/hooks", "home/lib", "home/tools", "bin", "srv/data"]
    {
        fs::create_dir_all(top.join(directory)).unwrap();
    }
    let home = top.join("home").into_os_string();
    let runtime = top.join("user").into_os_string();
    let paths = Paths::from_environment(|name| match name {
        "HOME" => Some(home.clone()),
        "XDG_RUNTIME_DIR" => Some(runtime.clone()),
        _ => None,
    })
    .unwrap();
    let directory = top.join("home/src/demo");
    let project = Project {
        name: ProjectName::parse("demo").unwrap(),
        id: ProjectId::of(directory.to_str().unwrap()),
        standing: directory.clone(),
        directory,
        repository: None,
    };
    Host { top, paths, project, _keep: keep }
}

impl Host {
    fn at(&self, below: &str) -> PathBuf {
        self.top.join(below)
    }

    fn make(&self, below: &str) -> PathBuf {
        let path = self.at(below);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn file(&self, below: &str, content: &str) -> PathBuf {
        let path = self.at(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn check(&self, config: &Config) -> Result<Vec<Share>, SharesError> {
        let programs = [self.at("home/tools")];
        let guarded = [self.at("home/src/demo/.git/hooks"), self.at("home/src/demo/.vscode")];
        let taken = ["/opt/go".into()];
        let around = Surroundings {
            paths: &self.paths,
            project: &self.project,
            binary: &self.at("bin/cloister"),
            programs: &programs,
            guarded: &guarded,
            taken: &taken,
        };
        shares(config, &around)
    }

    fn mount(&self, source: &Path, target: &str, mode: MountMode) -> Result<Vec<Share>, SharesError> {
        let mount = Mount { source: source.to_owned(), target: target.into(), mode };
        self.check(&Config { mounts: vec![mount], ..Config::default() })
    }

    fn refs(&self, sources: &[PathBuf]) -> Result<Vec<Share>, SharesError> {
        self.check(&Config { refs: sources.to_vec(), ..Config::default() })
    }

    #[track_caller]
    fn refused(&self, source: &Path, mode: MountMode, expected: Refusal) {
        let problem = ShareProblem { path: source.to_owned(), refusal: expected };
        assert_eq!(self.mount(source, "/data", mode).unwrap_err().0, [problem]);
    }

    #[track_caller]
    fn shown(&self, source: &Path, target: &str, mode: MountMode) {
        let shares = self.mount(source, target, mode).unwrap();
        assert_eq!(shares, [share(&fs::canonicalize(source).unwrap(), target, mode)]);
    }
}

fn share(source: &Path, target: &str, mode: MountMode) -> Share {
    Share { source: source.to_owned(), target: target.into(), mode, sealed: vec![], emptied: vec![] }
}

const BOTH: [MountMode; 2] = [MountMode::ReadOnly, MountMode::ReadWrite];

#[test]
fn references_are_read_only_under_their_names() {
    let host = host();
    let (lib, odd) = (host.at("home/lib"), host.make("home/My Lib!"));
    let link = host.at("home/other");
    symlink(host.at("srv/data"), &link).unwrap();
    let expected = [
        share(&odd, "/refs/My-Lib-", MountMode::ReadOnly),
        share(&lib, "/refs/lib", MountMode::ReadOnly),
        share(&host.at("srv/data"), "/refs/other", MountMode::ReadOnly),
    ];
    assert_eq!(host.refs(&[lib, odd, link]).unwrap(), expected);
}

#[test]
fn two_references_of_one_name_are_refused() {
    let host = host();
    let other = host.make("srv/lib");
    let error = host.refs(&[host.at("home/lib"), other.clone()]).unwrap_err();
    assert_eq!(error.0, [ShareProblem { path: other, refusal: Refusal::SamePlace("/refs/lib".into()) }]);
}

#[test]
fn everything_that_is_missing_is_named_at_once() {
    let host = host();
    let sources = ["home/one", "home/lib", "srv/two"].map(|below| host.at(below));
    let error = host.refs(&sources).unwrap_err();
    let missing = |path: &PathBuf| ShareProblem { path: path.clone(), refusal: Refusal::Missing };
    assert_eq!(error.0, [missing(&sources[0]), missing(&sources[2])]);
    let text = error.to_string();
    assert!(
        text.contains("home/one` does not exist\n") && text.contains("srv/two` does not exist"),
        "{text}"
    );
}

#[test]
fn directories_and_files_are_mounted_where_nothing_else_is() {
    let host = host();
    let file = host.file("srv/file", "");
    for mode in BOTH {
        for target in
            ["/data", "/opt/x", "/mnt/x/y", "/srv", "/home/cloister/new", "/tmp/x", "/refs/x", "/work/data"]
        {
            host.shown(&host.at("srv/data"), target, mode);
        }
        host.shown(&file, "/data", mode);
    }
}

#[test]
fn what_lies_in_anothers_place_needs_a_point_there() {
    let host = host();
    let (outer, inner) = (host.at("srv/data"), host.at("home/lib"));
    let mount = |source: &PathBuf, target: &str| Mount {
        source: source.clone(),
        target: target.into(),
        mode: MountMode::ReadOnly,
    };
    let mounts = vec![mount(&inner, "/data/point"), mount(&outer, "/data")];
    let config = Config { mounts, ..Config::default() };
    let refusal = Refusal::NoPoint { target: "/data/point".into(), point: outer.join("point") };
    assert_eq!(host.check(&config).unwrap_err().0, [ShareProblem { path: inner.clone(), refusal }]);
    host.make("srv/data/point");
    let expected =
        [share(&outer, "/data", MountMode::ReadOnly), share(&inner, "/data/point", MountMode::ReadOnly)];
    assert_eq!(host.check(&config).unwrap(), expected);
}

#[test]
fn keys_are_refused_in_every_way() {
    let host = host();
    for place in
        [".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".config", ".password-store", ".mozilla"]
    {
        let place = host.make(&format!("home/{place}"));
        let inside = host.make(&format!("{}/inside", place.display()));
        for mode in BOTH {
            // Cloister's own settings lie in `.config`.
            let is_own = place.ends_with(".config");
            let expected = || {
                if is_own {
                    Refusal::Own(host.at("home/.config/cloister"))
                } else {
                    Refusal::Private(place.clone())
                }
            };
            host.refused(&place, mode, expected());
            host.refused(&inside, mode, Refusal::Private(place.clone()));
        }
    }
    for file in
        [".netrc", ".git-credentials", ".npmrc", ".pypirc", ".cargo/credentials.toml", ".bash_history"]
    {
        let file = host.file(&format!("home/{file}"), "");
        host.refused(&file, MountMode::ReadOnly, Refusal::Private(file.clone()));
    }
    for place in ["/etc/shadow", "/root"] {
        host.refused(Path::new(place), MountMode::ReadOnly, Refusal::Private(place.into()));
    }
    let cargo = host.at("home/.cargo");
    let expected = Refusal::Private(cargo.join("credentials"));
    host.refused(&cargo, MountMode::ReadOnly, expected);
}

#[test]
fn what_contains_a_home_is_refused() {
    let host = host();
    for place in [host.at("home"), host.top.clone(), "/".into()] {
        let error = host.mount(&place, "/data", MountMode::ReadOnly).unwrap_err();
        assert!(matches!(error.0[0].refusal, Refusal::Own(_)), "{error}");
    }
}

#[test]
fn a_link_is_judged_by_what_it_leads_to() {
    let host = host();
    let keys = host.make("home/.ssh");
    let link = host.at("srv/innocent");
    symlink(&keys, &link).unwrap();
    host.refused(&link, MountMode::ReadOnly, Refusal::Private(keys));
    // The keys themselves may lie elsewhere.
    let real = host.make("srv/keys");
    fs::remove_dir(host.at("home/.ssh")).unwrap();
    symlink(&real, host.at("home/.ssh")).unwrap();
    host.refused(&real, MountMode::ReadOnly, Refusal::Private(real.clone()));
}

#[test]
fn i1_cloisters_own_files_are_refused() {
    let host = host();
    let data = host.make("home/.local/share/cloister/instances/other/home");
    let own = host.at("home/.local/share/cloister");
    let runtime = host.make("user/cloister/s");
    for mode in BOTH {
        host.refused(&data, mode, Refusal::Own(own.clone()));
        host.refused(&runtime, mode, Refusal::Own(host.at("user/cloister")));
        host.refused(&host.at("bin"), mode, Refusal::Own(host.at("bin/cloister")));
    }
}

#[test]
fn k2_where_running_programs_are_reached_is_refused() {
    let host = host();
    for (source, place) in
        [("/proc/sys", "/proc"), ("/dev", "/dev"), ("/run", "/run"), ("/var/tmp", "/var/tmp")]
    {
        host.refused(Path::new(source), MountMode::ReadOnly, Refusal::Alive(place.into()));
    }
    let bus = host.make("user/bus");
    host.refused(&bus, MountMode::ReadOnly, Refusal::Alive(host.at("user")));
}

#[test]
fn k1_sockets_are_refused_and_found_in_directories() {
    let host = host();
    let directory = host.make("srv/engine/run");
    let socket = directory.join("docker.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    for mode in BOTH {
        host.refused(&socket, mode, Refusal::NoFile);
        host.refused(&host.at("srv/engine"), mode, Refusal::Socket(socket.clone()));
    }
    host.refused(Path::new("/dev/null"), MountMode::ReadOnly, Refusal::NoFile);
}

#[test]
fn the_project_itself_is_refused() {
    let host = host();
    let directory = host.project.directory.clone();
    for source in [host.at("home/src"), directory.clone(), directory.join(".git/hooks")] {
        host.refused(&source, MountMode::ReadOnly, Refusal::Project(directory.clone()));
        host.refused(&source, MountMode::ReadWrite, Refusal::Project(directory.clone()));
    }
}

#[test]
fn f14_what_the_host_runs_or_obeys_is_not_writable() {
    let host = host();
    for below in [".bashrc", ".cache/pip", ".local/bin", ".local/lib", ".vim", "bin/tool"] {
        let source = host.make(&format!("home/{below}"));
        let first = below.split('/').next().unwrap();
        host.refused(&source, MountMode::ReadWrite, Refusal::Obeyed(host.at(&format!("home/{first}"))));
        host.shown(&source, "/data", MountMode::ReadOnly);
    }
    let tools = host.at("home/tools");
    let inside = host.make("home/tools/deep");
    host.refused(&tools, MountMode::ReadWrite, Refusal::Obeyed(tools.clone()));
    host.refused(&inside, MountMode::ReadWrite, Refusal::Obeyed(tools.clone()));
    host.shown(&tools, "/data", MountMode::ReadOnly);
    host.refused(Path::new("/usr/share"), MountMode::ReadWrite, Refusal::Obeyed("/usr".into()));
}

#[test]
fn f3_a_repositorys_data_is_never_writable() {
    let host = host();
    let repository = host.at("srv/repository");
    git2::Repository::init(&repository).unwrap();
    let bare = host.at("srv/bare.git");
    git2::Repository::init_bare(&bare).unwrap();
    let git = repository.join(".git");
    host.refused(&git, MountMode::ReadWrite, Refusal::GitData(git.clone()));
    host.refused(&bare.join("hooks"), MountMode::ReadWrite, Refusal::GitData(bare.clone()));
    host.shown(&bare, "/data", MountMode::ReadOnly);
    let sealed = Share { sealed: vec![git.clone()], ..share(&repository, "/data", MountMode::ReadWrite) };
    assert_eq!(host.mount(&repository, "/data", MountMode::ReadWrite).unwrap(), [sealed]);
    // One that lies deeper is no less git's.
    let around = Share { sealed: vec![git.clone()], ..share(&host.at("srv"), "/data", MountMode::ReadWrite) };
    assert_eq!(host.mount(&host.at("srv"), "/data", MountMode::ReadWrite).unwrap(), [around]);
    fs::rename(&git, host.at("srv/moved")).unwrap();
    symlink(host.at("srv/moved"), &git).unwrap();
    host.refused(&repository, MountMode::ReadWrite, Refusal::GitData(git));
}

#[test]
fn f3_every_directory_around_a_sealed_repository_is_pinned() {
    let host = host();
    let git = host.make("srv/1/2/3/4/5/lib/.git");
    host.make("srv/.git");
    let [found] = host.mount(&host.at("srv"), "/data", MountMode::ReadWrite).unwrap().try_into().unwrap();
    let pinned = ["srv/1", "srv/1/2", "srv/1/2/3", "srv/1/2/3/4", "srv/1/2/3/4/5", "srv/1/2/3/4/5/lib"];
    let expected: Vec<(PathBuf, bool)> = [(host.at("srv/.git"), false)]
        .into_iter()
        .chain(pinned.map(|below| (host.at(below), true)))
        .chain([(git, false)])
        .collect();
    assert_eq!(found.guarded(), expected);
    let [read_only] = host.mount(&host.at("srv"), "/data", MountMode::ReadOnly).unwrap().try_into().unwrap();
    assert_eq!(read_only.guarded(), []);
}

#[test]
fn f3_what_was_not_looked_through_is_not_writable() {
    let host = host();
    let deep = host.make(&format!("srv/deep{}", "/d".repeat(62)));
    host.shown(&host.at("srv"), "/data", MountMode::ReadWrite);
    let deeper = host.make(&format!("{}/d", deep.display()));
    host.refused(&host.at("srv"), MountMode::ReadWrite, Refusal::TooLarge(deeper));
    host.shown(&host.at("srv"), "/data", MountMode::ReadOnly);
    let closed = host.make("home/lib/closed");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads everything.
    if fs::read_dir(&closed).is_err() {
        host.refused(&host.at("home/lib"), MountMode::ReadWrite, Refusal::Closed(closed));
    }
}

#[test]
fn f15_a_repositorys_passwords_are_not_shown() {
    let host = host();
    for (config, is_emptied) in [
        ("[remote \"origin\"]\n\turl = https://user:secret@example.com/x\n", true),
        ("[http]\n\textraHeader = Authorization: x\n", true),
        ("[remote \"origin\"]\n\turl = https://example.com/a@b\n", false),
        ("[remote \"origin\"]\n\turl = git@example.com:x\n", false),
    ] {
        let file = host.file("home/lib/.git/config", config);
        let expected = if is_emptied { vec![file] } else { vec![] };
        assert_eq!(host.refs(&[host.at("home/lib")]).unwrap()[0].emptied, expected, "{config}");
    }
}

#[test]
fn places_of_the_sandboxs_own_are_refused() {
    let host = host();
    for (target, place) in [
        ("/usr/share/x", "/usr"),
        ("/etc/passwd", "/etc"),
        ("/proc", "/proc"),
        ("/run/cloister", "/run"),
        ("/nix/store/x", "/nix"),
        ("/opt", "/opt/go"),
        ("/opt/go/x", "/opt/go"),
        ("/home", HOME),
        ("/home/cloister", HOME),
        ("/work", WORK),
        ("/tmp", "/tmp"),
        ("/var", "/var/tmp"),
        ("/refs", REFS),
        ("/work/.git/x", "/work/.git/x"),
        ("/work/.vscode", "/work/.vscode"),
    ] {
        let refusal = Refusal::Place { target: target.into(), place: place.into() };
        let problem = ShareProblem { path: host.at("srv/data"), refusal };
        let error = host.mount(&host.at("srv/data"), target, MountMode::ReadOnly).unwrap_err();
        assert_eq!(error.0, [problem], "{target}");
    }
}

#[test]
fn f10_places_that_a_sandbox_can_write_are_followed_through_no_link() {
    let host = host();
    let home = host.make("home/.local/share/cloister/instances/demo/home");
    let work = host.project.directory.clone();
    for top in [&home, &work] {
        symlink("/etc", top.join("link")).unwrap();
        fs::write(top.join("file"), "").unwrap();
    }
    for (target, point) in [
        ("/work/missing", work.join("missing")),
        ("/work/link", work.join("link")),
        ("/work/link/deep", work.join("link")),
        ("/work/file", work.join("file")),
        ("/home/cloister/link", home.join("link")),
        ("/home/cloister/link/deep", home.join("link")),
        ("/home/cloister/file/deep", home.join("file")),
    ] {
        let refusal = Refusal::NoPoint { target: target.into(), point };
        let problem = ShareProblem { path: host.at("srv/data"), refusal };
        let error = host.mount(&host.at("srv/data"), target, MountMode::ReadWrite).unwrap_err();
        assert_eq!(error.0, [problem], "{target}");
    }
    host.shown(&host.at("srv/data"), "/home/cloister/new/deep", MountMode::ReadWrite);
    host.shown(&host.file("srv/one", ""), "/work/file", MountMode::ReadWrite);
}
