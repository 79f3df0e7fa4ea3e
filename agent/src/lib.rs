//! The agent: wiring of the parts into the `understudy` binary.

pub mod api;
pub mod cli;
pub mod client;
pub mod config;
pub mod connect;
pub mod exit;
pub mod gateway;
pub mod machine;
pub mod metrics;
pub mod peers;
pub mod policy_manager;
pub mod runtime;
pub mod startup;
pub mod tasks;
pub mod telemetry;

pub use understudy_core::keys;
