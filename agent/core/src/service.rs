//! Owns the names of what a host needs beside its agent.
//!
//! Promises: the form in records is the name in kebab-case. Must not do: say whether it works.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a host needs so that an instance can come to work on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// No member may run that the guard has not acknowledged.
    Guard,
    /// Instances are made, restored and moved by it.
    Libvirtd,
}

impl Service {
    /// The name of its unit of systemd.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Guard => "understudy-guard",
            Self::Libvirtd => "libvirtd",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guard => "guard",
            Self::Libvirtd => "libvirtd",
        })
    }
}
