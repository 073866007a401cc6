//! Outside programs that a test wants and a machine may lack.

/// Says on stderr why a test is skipped. Where `CLOISTER_TEST_REQUIRE` (`bubblewrap,nix`, …) names what is missing,
/// the test fails instead: `make test` and CI skip nothing.
#[track_caller]
#[expect(clippy::print_stderr, reason = "a test that does nothing has to say so")]
pub(crate) fn skip(missing: &str, why: &str) {
    let required = std::env::var("CLOISTER_TEST_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name.trim() == missing), "`{missing}` is required, but {why}");
    eprintln!("skipped: {why}");
}
