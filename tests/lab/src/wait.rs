//! Waiting for a condition with a limit: the only way the lab and its tests wait.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::LabError;

/// How often a condition is looked at.
pub const STEP: Duration = Duration::from_millis(10);

/// Calls `probe` until it gives a value, at most `limit` long. `Err` holds the last thing seen, in words,
/// and becomes part of the time-out's message.
///
/// # Errors
/// [`LabError::Timeout`] when the limit passed.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<T, String>,
) -> Result<T, LabError> {
    let begun = Instant::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(detail) if begun.elapsed() >= limit => {
                return Err(LabError::Timeout { what: what.to_owned(), limit, detail });
            }
            Err(_) => thread::sleep(STEP),
        }
    }
}

/// [`until`] for a plain condition.
///
/// # Errors
/// [`LabError::Timeout`] when the limit passed.
pub fn until_true(what: &str, limit: Duration, mut probe: impl FnMut() -> bool) -> Result<(), LabError> {
    until(what, limit, || if probe() { Ok(()) } else { Err("it does not hold".to_owned()) })
}
