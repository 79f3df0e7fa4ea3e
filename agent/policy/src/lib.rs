//! Asks the policies of a site: loads components, puts questions to them, returns what they answered.
//!
//! Owns the sandbox. Promises that whatever a component does, a question ends within its deadline (and a tick),
//! within its memory, and with an answer or a named fault; that the same question gets the same answer on every
//! host; that a component imports nothing but `log`. Must not do: judge an answer (core does), keep anything
//! between two questions, or choose a substitute for a policy that fails (the caller falls back to its own rule).
//!
//! Loading and asking block the calling thread: inside an async runtime, call them where blocking is allowed.

mod bindings;
mod columns;
mod config;
mod engine;
mod fault;
mod host;
mod inspect;
mod load;
mod log;
mod text;
mod ticker;
mod trial;

pub use config::PolicyConfig;
pub use fault::{FileFault, LoadFault, PolicyFault};
pub use host::{PolicyHost, PolicyInfo};
