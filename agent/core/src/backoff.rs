//! Owns how long what failed waits before it is tried again.
//!
//! Promises: each wait is twice the one before, up to a bound. Must not do: count tries, or look at a clock.

use std::time::Duration;

/// Waits that double.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first failure.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Backoff {
    /// The wait after a failure that `before` others came before in a row.
    #[must_use]
    pub fn wait(self, before: u32) -> Duration {
        self.first.saturating_mul(1_u32.checked_shl(before).unwrap_or(u32::MAX)).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_is_twice_the_one_before_up_to_the_longest() {
        let backoff = Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(10) };
        let waits: Vec<u128> = (0..8).map(|before| backoff.wait(before).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        assert_eq!(backoff.wait(u32::MAX), backoff.longest);
    }
}
