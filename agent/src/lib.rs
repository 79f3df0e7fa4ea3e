//! The agent: wiring of the parts into the `understudy` binary.

pub mod api;
pub mod build;
pub mod cli;
pub mod client;
pub mod config;
pub mod driver;
pub mod exit;
pub mod gateway;
pub mod machine;
pub mod metrics;
pub mod needs;
pub mod peers;
pub mod policies;
pub mod tasks;
pub mod telemetry;

pub use understudy_core::keys;
