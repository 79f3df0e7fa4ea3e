//! The stories of `tests/scenarios`, told again.

/// Set to write the logs instead of comparing them; `cargo xtask golden --accept` does.
const ACCEPT: &str = "UNDERSTUDY_ACCEPT_GOLDEN";

#[test]
fn every_story_is_told_as_expected() {
    let accept = std::env::var_os(ACCEPT).is_some_and(|value| value == "1");
    let reported = understudy_sim::golden(accept).unwrap_or_else(|error| panic!("{error}"));
    assert!(reported.len() >= 6, "stories are missing: {reported:?}");
}
