//! Why this host refuses user name spaces: four causes that look alike and are mended differently.

use std::fmt;
use std::fs;
use std::path::Path;

/// What keeps `bwrap` from working.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Diagnosis {
    /// Ubuntu 24.04 and Debian 13: an AppArmor profile must permit user name spaces.
    AppArmor,
    /// Older Debian kernels: the switch for unprivileged users is off.
    Disabled,
    /// No user name space may be made at all.
    NoneLeft,
    /// A container around this shell forbids them.
    Container,
}

impl Diagnosis {
    /// The command that mends it.
    pub fn fix(self) -> &'static str {
        match self {
            Self::AppArmor => {
                "permit it for `bwrap` by an AppArmor profile (`/etc/apparmor.d/bwrap` with `userns,`), or run \
                 `sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
            }
            Self::Disabled => "run `sudo sysctl kernel.unprivileged_userns_clone=1`",
            Self::NoneLeft => "run `sudo sysctl user.max_user_namespaces=10000`",
            Self::Container => {
                "start the container with `--security-opt seccomp=unconfined --security-opt apparmor=unconfined`, \
                 or run Cloister outside of it"
            }
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::AppArmor => {
                "AppArmor forbids unprivileged user namespaces (`kernel.apparmor_restrict_unprivileged_userns` is 1)"
            }
            Self::Disabled => "unprivileged user namespaces are off (`kernel.unprivileged_userns_clone` is 0)",
            Self::NoneLeft => "no user namespace may be made here (`user.max_user_namespaces` is 0)",
            Self::Container => "the container around this shell forbids user namespaces",
        })
    }
}

/// Finds the cause of a complaint of `bwrap` that concerns name spaces; `root` is `/` but in tests.
///
/// `None` when the complaint is about something else.
pub fn diagnose(complaint: &str, root: &Path) -> Option<Diagnosis> {
    const ABOUT_NAMESPACES: [&str; 6] = [
        "No permissions to creat",
        "Creating new namespace failed",
        "setting up uid map",
        "RTM_NEWADDR",
        "max_user_namespaces",
        "unprivileged_userns_clone",
    ];
    if !ABOUT_NAMESPACES.iter().any(|sign| complaint.contains(sign)) {
        return None;
    }
    let setting = |path: &str| fs::read_to_string(root.join(path)).ok().map(|value| value.trim().to_owned());
    let is = |path: &str, value: &str| setting(path).as_deref() == Some(value);
    if is("proc/sys/user/max_user_namespaces", "0") {
        Some(Diagnosis::NoneLeft)
    } else if is("proc/sys/kernel/unprivileged_userns_clone", "0") {
        Some(Diagnosis::Disabled)
    } else if is("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        Some(Diagnosis::AppArmor)
    } else {
        in_container(root).then_some(Diagnosis::Container)
    }
}

/// Tells whether a container runtime left its mark.
pub fn in_container(root: &Path) -> bool {
    const MARKS: [&str; 2] = [".dockerenv", "run/.containerenv"];
    MARKS.iter().any(|mark| root.join(mark).exists()) || setting_names_container(root)
}

fn setting_names_container(root: &Path) -> bool {
    fs::read(root.join("proc/1/environ")).is_ok_and(|environment| {
        environment.split(|byte| *byte == 0).any(|entry| entry.starts_with(b"container="))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(complaint: &str, files: &[(&str, &str)], expected: Option<Diagnosis>) {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        assert_eq!(diagnose(complaint, root.path()), expected);
    }

    #[test]
    fn each_cause_is_told_apart() {
        let denied = "setting up uid map: Permission denied";
        let limit = "proc/sys/user/max_user_namespaces";
        let switch = "proc/sys/kernel/unprivileged_userns_clone";
        let apparmor = "proc/sys/kernel/apparmor_restrict_unprivileged_userns";
        check(denied, &[(limit, "100\n"), (apparmor, "1\n")], Some(Diagnosis::AppArmor));
        check(
            "loopback: Failed RTM_NEWADDR: Operation not permitted",
            &[(apparmor, "1")],
            Some(Diagnosis::AppArmor),
        );
        check("No permissions to create new namespace", &[(switch, "0\n")], Some(Diagnosis::Disabled));
        check("Creating new namespace failed: No space left", &[(limit, "0\n")], Some(Diagnosis::NoneLeft));
        check("No permissions to create new namespace", &[(".dockerenv", "")], Some(Diagnosis::Container));
        check(denied, &[("proc/1/environ", "A=1\0container=podman\0")], Some(Diagnosis::Container));
        check(denied, &[(limit, "100")], None);
    }

    #[test]
    fn other_complaints_are_left_alone() {
        check("Can't find source path /x: No such file", &[("proc/sys/user/max_user_namespaces", "0")], None);
    }
}
