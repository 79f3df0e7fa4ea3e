//! Owns the limits of a question and their defaults.

use std::collections::BTreeMap;
use std::time::Duration;

use understudy_core::policy::Interface;
use understudy_core::units::MiB;

/// What a policy may use, which one decides, and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyConfig {
    /// The longest that one question may take; a failover waits for it.
    pub deadline: Duration,
    /// Memory of one question, all memories and tables of the component together.
    pub memory: MiB,
    /// Size of a component file. Compiling takes about a second per MiB.
    pub file_size: MiB,
    /// Size of what a component hands over at once: an answer, or one line to the log.
    pub answer_size: MiB,
    /// Which policy decides, by its name (the file's name without `.wasm`). Needed where several export the same
    /// interface.
    pub choice: BTreeMap<Interface, String>,
    /// Parameters by policy name, given to it with every question.
    pub parameters: BTreeMap<String, BTreeMap<String, String>>,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            // Python needs hundreds of milliseconds for 10 000 hosts; a Rust policy needs one.
            deadline: Duration::from_millis(500),
            memory: MiB(64),
            // A Python policy is 18 MiB.
            file_size: MiB(32),
            // 10 000 picks with a reason of 100 bytes are 1.2 MiB.
            answer_size: MiB(4),
            choice: BTreeMap::new(),
            parameters: BTreeMap::new(),
        }
    }
}
