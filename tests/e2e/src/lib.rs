//! What the end-to-end tests, the demo and the benchmarks stand on.

pub mod browser;
pub mod checkpoints;
pub mod counter;
pub mod counters;
mod kvm;
pub mod process;
pub mod qga;
pub mod stage;
pub mod story;
