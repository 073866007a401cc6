//! What `Cargo.toml` says, for the tests that compare other files with it.

/// The manifest's text.
pub(crate) const TEXT: &str = include_str!("../../Cargo.toml");

/// The names under `[dependencies]` and `[target.….dependencies]`, in the manifest's order.
pub(crate) fn dependencies() -> Vec<String> {
    let mut within = false;
    let mut names = Vec::new();
    for line in TEXT.lines() {
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_end_matches(']');
            within = header == "dependencies" || header.ends_with(".dependencies");
        } else if let Some((name, _)) = line.split_once('=').filter(|_| within) {
            names.push(name.trim().to_owned());
        }
    }
    names
}

/// The value of a key of `[package]` that is a plain string.
pub(crate) fn package(key: &str) -> &'static str {
    let value = TEXT.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
    value.expect("the key stands in the manifest").trim_matches('"')
}
