//! Owns what one question, one answer and one component may be at most, and the defaults of that.

use std::time::Duration;

use understudy_core::model::units::MiB;

/// What a policy may use. The deadline and the memory can be set for each policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest that one question may take; a failover waits for it.
    pub deadline: Duration,
    /// Memory of one question, all memories and tables of the component together.
    pub memory: MiB,
    /// Size of a component file. Compiling takes about a second per MiB.
    pub file_size: MiB,
    /// Size of what a component hands over at once: an answer, or one line to the log.
    pub answer_size: MiB,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Python needs hundreds of milliseconds for 10 000 hosts; a Rust policy needs one.
            deadline: Duration::from_millis(500),
            memory: MiB(64),
            // A Python policy is 18 MiB.
            file_size: MiB(32),
            // 10 000 picks with a reason of 100 bytes are 1.2 MiB.
            answer_size: MiB(4),
        }
    }
}
