//! Asks the policies of a site: loads components, puts questions to them, returns what they answered.
//!
//! Owns the sandbox. Promises that whatever a component does, a question ends within its deadline (and a tick),
//! within its memory, and with an answer or a named fault; that the same question gets the same answer on every
//! host; that a component imports nothing but `log`. Must not do: judge an answer (core does), keep anything
//! between two questions, or choose a substitute for a policy that fails (the caller falls back to its own rule).
//!
//! Loading and asking block the calling thread: inside an async runtime, call them where blocking is allowed.

mod bench;
mod bindings;
mod breaker;
mod check;
mod columns;
mod compiled;
mod engine;
mod fault;
mod folder;
mod inspect;
pub mod keys;
mod library;
mod limits;
mod load;
mod log;
mod names;
mod replay;
mod set;
mod settings;
mod slots;
mod speak;
mod text;
mod ticker;
mod trial;

pub use bench::{BENCH_HOSTS, BENCH_WANTED, BenchFault, BenchRow, Native, Wanted, bench, built_in};
pub use breaker::{CircuitBreaker, FAILURES_MAX, HOLD_OFF, Outcome, Standing};
pub use check::{CheckReport, TrialReport, check};
pub use fault::{EngineFault, FileFault, LoadFault, PolicyFault};
pub use folder::{Folder, FolderWatch, SETTINGS_FILE};
pub use library::{Library, LibraryFault};
pub use limits::Limits;
pub use names::{Digest, NoDigest};
pub use replay::{FUEL, ReplayFault, Replayer};
pub use set::{Asked, By, PolicyInfo, PolicySet};
pub use settings::{Mode, PolicySettings, Settings, SettingsFault};

/// The columns of a question as they cross into a component of version 0.1, for code that is measured beside it.
pub mod wire {
    pub use crate::bindings::v01::exports::understudy::policy::placement::{
        HostState, Hosts, NodeMember, Purpose, Request, SiblingMember,
    };
    pub use crate::bindings::v01::understudy::policy::types::{Label, Part, Role};
}
