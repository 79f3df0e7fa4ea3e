//! Owns what can go wrong, in words for the operator.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use understudy_core::model::units::MiB;
use understudy_core::policy::Interface;

use crate::library::LibraryFault;
use crate::names::Digest;
use crate::settings::Mode;

/// The WebAssembly engine could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policies cannot run on this machine: {message}")]
pub struct EngineFault {
    /// What the engine said.
    pub message: String,
}

/// Why a question got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyFault {
    /// No policy decides this.
    #[error("no policy answers {interface}")]
    Unavailable {
        /// What was asked.
        interface: Interface,
    },
    /// It was not asked: too many other questions were under way. No fault of its own.
    #[error("policy {policy} was not asked: too many other questions are under way on this host")]
    Busy {
        /// The policy.
        policy: String,
    },
    /// It did not answer in time.
    #[error("policy {policy} did not answer within {} ms", limit.as_millis())]
    Deadline {
        /// The policy.
        policy: String,
        /// The time that it had.
        limit: Duration,
    },
    /// It took more instructions than it may; only where those are counted.
    #[error("policy {policy} did not answer within {limit} instructions")]
    Fuel {
        /// The policy.
        policy: String,
        /// The instructions that it had.
        limit: u64,
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
    /// It cannot answer anything with its parameters.
    #[error("policy {policy} cannot use its parameters: {message}")]
    Parameters {
        /// The policy.
        policy: String,
        /// Its words.
        message: String,
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
            Self::Busy { .. } => "busy",
            Self::Deadline { .. } => "deadline",
            Self::Fuel { .. } => "fuel",
            Self::Memory { .. } => "memory",
            Self::Trap { .. } => "trap",
            Self::TooLarge { .. } => "too-large",
            Self::Parameters { .. } => "parameters",
            Self::Guest { .. } => "error",
        }
    }
}

/// Why a policy, or a choice of one, is not in use.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadFault {
    /// The folder could not be listed.
    #[error("policies folder {} cannot be read", dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: Arc<std::io::Error>,
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
    /// A component is not in use.
    #[error("policy {policy} ({:.12}) is not used", digest.as_str())]
    Policy {
        /// Its name.
        policy: String,
        /// Its component.
        digest: Digest,
        /// Why.
        #[source]
        source: FileFault,
    },
    /// Several policies could decide.
    #[error(
        "{} all answer {interface}: set choice.{interface} in policies.toml, or remove the others or set their \
         mode to shadow or off",
        policies.join(", ")
    )]
    Ambiguous {
        /// What they answer.
        interface: Interface,
        /// Their names.
        policies: Vec<String>,
    },
    /// The chosen policy is not there.
    #[error("choice.{interface}: there is no policy {policy} that answers it")]
    Chosen {
        /// What it was chosen for.
        interface: Interface,
        /// The name that was configured.
        policy: String,
    },
    /// The chosen policy may not decide.
    #[error("choice.{interface}: policy {policy} cannot decide while its mode is {mode}")]
    ChosenMode {
        /// What it was chosen for.
        interface: Interface,
        /// The name that was configured.
        policy: String,
        /// Its mode.
        mode: Mode,
    },
    /// Settings for a policy that is not there.
    #[error("policy.{policy}: there is no file {policy}.wasm")]
    Stray {
        /// The name that was configured.
        policy: String,
    },
}

impl LoadFault {
    /// The name of the policy at fault, where it is one policy's and its file's name is one.
    #[must_use]
    pub fn policy(&self) -> Option<&str> {
        match self {
            Self::File { file, .. } => file
                .file_name()
                .and_then(|name| name.to_str()?.strip_suffix(".wasm"))
                .filter(|name| crate::names::is_name(name)),
            Self::Policy { policy, .. }
            | Self::Chosen { policy, .. }
            | Self::ChosenMode { policy, .. }
            | Self::Stray { policy } => Some(policy),
            Self::Folder { .. } | Self::Ambiguous { .. } => None,
        }
    }
}

/// Why a file is not in use.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FileFault {
    /// The file could not be read.
    #[error("cannot be read")]
    Read(#[source] Arc<std::io::Error>),
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
    /// The settings are not text.
    #[error("is no text in UTF-8")]
    NoText,
    /// The library did not take it.
    #[error("cannot be kept")]
    Keep(#[source] LibraryFault),
    /// The component is not in this host's library.
    #[error("is not in the library of this host")]
    Absent,
    /// What lies in the library under a digest has another.
    #[error("has been altered: its content is not what its digest says")]
    Altered,
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
    #[error("uses {name}, but this daemon speaks versions 0.1 and 0.2: build it against this daemon's wit/")]
    Version {
        /// The import or export.
        name: String,
    },
    /// Speaks several versions, which may differ in what they mean.
    #[error("uses {one} and {other}: build all of it against one version of wit/")]
    Mixed {
        /// An import or export.
        one: String,
        /// One of another version.
        other: String,
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
