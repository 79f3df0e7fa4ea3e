//! The agent: wiring of the parts into the `understudy` binary.

pub mod gateway;
