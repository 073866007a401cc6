//! Patterns of file names: `*`, `?`, and `**` across directories, in upper and lower case alike.

/// Tells whether a pattern matches a path below the project. Without a `/` it matches the last part at any depth.
pub(super) fn matches(pattern: &str, path: &str) -> bool {
    let pattern = pattern.trim_end_matches('/');
    match pattern.strip_prefix('/').or_else(|| pattern.contains('/').then_some(pattern)) {
        Some(whole) => glob(whole.as_bytes(), path.as_bytes()),
        None => glob(pattern.as_bytes(), path.rsplit('/').next().unwrap_or_default().as_bytes()),
    }
}

/// Tells whether the pattern names one path and no others.
pub(super) fn is_literal(pattern: &str) -> bool {
    !pattern.contains(['*', '?'])
}

/// A star that was met: the pattern after it, and how much of the text it covers up to now.
#[derive(Clone, Copy)]
struct Star {
    after: usize,
    covered: usize,
}

/// Only the latest star of each kind is ever tried again, so the time is bounded by the product of the lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    let (mut star, mut double): (Option<Star>, Option<Star>) = (None, None);
    loop {
        let next = text.get(seen);
        match pattern.get(at) {
            Some(b'*') if pattern.get(at + 1) == Some(&b'*') => {
                at += 2;
                (star, double) = (None, Some(Star { after: at, covered: seen }));
                // `**/` also stands for no directory at all.
                if pattern.get(at) == Some(&b'/') && (seen == 0 || text[seen - 1] == b'/') {
                    at += 1;
                }
                continue;
            }
            Some(b'*') => {
                at += 1;
                star = Some(Star { after: at, covered: seen });
                continue;
            }
            Some(byte) if next.is_some_and(|next| fits(*byte, *next)) => {
                (at, seen) = (at + 1, seen + 1);
                continue;
            }
            None if next.is_none() => return true,
            _ => {}
        }
        match (star.as_mut(), double.as_mut()) {
            (Some(star), _) if text.get(star.covered).is_some_and(|byte| *byte != b'/') => {
                star.covered += 1;
                (at, seen) = (star.after, star.covered);
            }
            (_, Some(double)) if double.covered < text.len() => {
                double.covered += 1;
                (at, seen) = (double.after, double.covered);
                star = None;
            }
            _ => return false,
        }
    }
}

fn fits(wanted: u8, found: u8) -> bool {
    if wanted == b'?' { found != b'/' } else { wanted.eq_ignore_ascii_case(&found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, matching: &[&str], other: &[&str]) {
        for path in matching {
            assert!(matches(pattern, path), "`{pattern}` should match `{path}`");
        }
        for path in other {
            assert!(!matches(pattern, path), "`{pattern}` should not match `{path}`");
        }
    }

    #[test]
    fn patterns_mean_what_they_say() {
        check(".env", &[".env", "a/.env", ".ENV"], &[".envrc", "x.env", ".env/a"]);
        check(".env.*", &[".env.local", "a/b/.env.x.y"], &[".env", ".environment"]);
        check("*.pem", &["a.pem", "x/.pem"], &["a.pem.txt", "pem"]);
        check("secrets/*.json", &["secrets/a.json"], &["a/secrets/a.json", "secrets/b/a.json"]);
        check("**/secrets/*", &["secrets/a", "a/b/secrets/c"], &["secrets", "asecrets/b"]);
        check("a/**", &["a/b", "a/b/c"], &["a", "b/a/c"]);
        check("a/**/z", &["a/z", "a/b/c/z"], &["a/bz", "az"]);
        check("/top", &["top"], &["a/top"]);
        check("dir/", &["dir", "a/dir"], &["dir/x"]);
        check("a?c", &["abc"], &["ac", "a/c"]);
        check("*", &["a", "a/b"], &[]);
    }

    #[test]
    fn a_pattern_of_many_stars_ends() {
        assert!(!matches(&"*a".repeat(12), &"a".repeat(11)));
        assert!(!matches(&("*a".repeat(100) + "b"), &"a".repeat(255)));
    }
}
