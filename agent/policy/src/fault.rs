//! Owns what can go wrong, in words for the operator.

use std::path::{Path, PathBuf};
use std::time::Duration;

use understudy_core::policy::Interface;
use understudy_core::units::MiB;

/// Why a question got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFault {
    /// No policy decides this.
    #[error("no policy answers {interface}")]
    Unavailable {
        /// What was asked.
        interface: Interface,
    },
    /// It did not answer in time.
    #[error("policy {policy} did not answer within {} ms", limit.as_millis())]
    Deadline {
        /// The policy.
        policy: String,
        /// The time that it had.
        limit: Duration,
    },
    /// It asked for more memory than it may have.
    #[error("policy {policy} asked for more than {limit} of memory")]
    Memory {
        /// The policy.
        policy: String,
        /// The memory that it had.
        limit: MiB,
    },
    /// It broke off.
    #[error("policy {policy} broke off: {message}")]
    Trap {
        /// The policy.
        policy: String,
        /// What it said last, if it said anything, and what happened.
        message: String,
    },
    /// Its answer, or a line to the log, was too large.
    #[error("policy {policy} handed over more than {limit} at once")]
    TooLarge {
        /// The policy.
        policy: String,
        /// The size that was allowed.
        limit: MiB,
    },
    /// It answered with an error.
    #[error("policy {policy} says: {message}")]
    Guest {
        /// The policy.
        policy: String,
        /// Its words.
        message: String,
    },
}

impl PolicyFault {
    /// One word for metrics and for the choice of what to do.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "unavailable",
            Self::Deadline { .. } => "deadline",
            Self::Memory { .. } => "memory",
            Self::Trap { .. } => "trap",
            Self::TooLarge { .. } => "too-large",
            Self::Guest { .. } => "error",
        }
    }
}

/// Why a policy, or a choice of one, is not in use.
#[derive(Debug, thiserror::Error)]
pub enum LoadFault {
    /// The WebAssembly engine could not be set up.
    #[error("policies cannot run on this machine: {message}")]
    Engine {
        /// What the engine said.
        message: String,
    },
    /// The folder could not be listed.
    #[error("policies folder {} cannot be read", dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not in use.
    #[error("policy file {} is not used", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: FileFault,
    },
    /// Several policies could decide.
    #[error("{} all answer {interface}: choose one in the configuration or remove the others", policies.join(", "))]
    Ambiguous {
        /// What they answer.
        interface: Interface,
        /// Their names.
        policies: Vec<String>,
    },
    /// The chosen policy is not there.
    #[error("policy {policy} is to answer {interface}, but no file {policy}.wasm that does was loaded")]
    Chosen {
        /// What it was chosen for.
        interface: Interface,
        /// The name that was configured.
        policy: String,
    },
    /// Parameters for a policy that is not there.
    #[error("parameters are configured for policy {policy}, but there is no file {policy}.wasm")]
    Parameters {
        /// The name that was configured.
        policy: String,
    },
}

impl LoadFault {
    /// The file at fault, where it is one file's.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File { file, .. } => Some(file),
            Self::Engine { .. }
            | Self::Folder { .. }
            | Self::Ambiguous { .. }
            | Self::Chosen { .. }
            | Self::Parameters { .. } => None,
        }
    }
}

/// Why a file is not in use.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    /// The file could not be read.
    #[error("cannot be read")]
    Read(#[source] std::io::Error),
    /// The name is not one that can be shown and configured.
    #[error("its name is not one: use a-z, 0-9, '-' and '_'")]
    Name,
    /// A folder, pipe or device.
    #[error("is no regular file")]
    Kind,
    /// A link to somewhere else.
    #[error("leads out of the folder, to {}: copy the file instead", .0.display())]
    Outside(PathBuf),
    /// More than a policy may be.
    #[error("is larger than {limit}")]
    Size {
        /// The size that is allowed.
        limit: MiB,
    },
    /// Not WebAssembly, or not all of it.
    #[error("is no whole WebAssembly component: {message}")]
    Damaged {
        /// What is wrong, and where.
        message: String,
    },
    /// A module without the component around it.
    #[error("is a core module, not a component: link it with wasm-component-ld")]
    CoreModule,
    /// Wants something that a policy cannot have.
    #[error(
        "imports {name}: a policy may import only understudy:policy/log{}",
        if name.starts_with("wasi:") { "; build it for wasm32-unknown-unknown, or without WASI" } else { "" }
    )]
    Import {
        /// The import.
        name: String,
    },
    /// Made for another version of the interface.
    #[error("uses {name}, but this daemon speaks version 0.1: build it against this daemon's wit/")]
    Version {
        /// The import or export.
        name: String,
    },
    /// Answers nothing.
    #[error("exports neither understudy:policy/placement nor understudy:policy/backup-count")]
    NoInterface,
    /// The engine refused it.
    #[error("does not compile: {message}")]
    Compile {
        /// What the engine said.
        message: String,
    },
    /// The exports have another form than their names promise.
    #[error("does not fit wit/: {message}")]
    Link {
        /// What the engine said.
        message: String,
    },
    /// It failed at the trial question.
    #[error("failed the trial question for {interface}")]
    Trial {
        /// What was asked.
        interface: Interface,
        /// How it failed.
        #[source]
        source: PolicyFault,
    },
}
