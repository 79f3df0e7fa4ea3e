//! All decisions of Understudy: plain data in, plain data out.
//!
//! Owns what may happen and when; promises the numbered guarantees of `DESIGN.md`; must not touch a clock, a
//! file, a socket, a hypervisor or a store.

pub mod admission;
pub mod bounds;
pub mod errors;
#[cfg(test)]
mod fixture;
pub mod host;
pub mod ids;
pub mod invariants;
pub mod observe;
pub mod plan;
pub mod policy;
pub mod records;
pub mod session;
pub mod sets;
pub mod units;
pub mod view;

/// How the reason of a death begins that says no more than that the instance has left by live migration: all of it is
/// on the migration's destination, which has the word from then on.
pub const MOVED: &str = "moved away";

/// How the reason of a death begins that is to be held against the host: the member never came to work there.
pub const DEPLOY_FAILED: &str = "deployment failed";
