//! All decisions of Understudy: plain data in, plain data out.
//!
//! Owns what may happen and when; promises the numbered guarantees of `DESIGN.md`; must not touch a clock, a
//! file, a socket, a hypervisor or a store.

pub mod bounds;
pub mod host;
pub mod ids;
pub mod observe;
pub mod plan;
pub mod policy;
pub mod records;
pub mod session;
pub mod units;
pub mod view;

/// How the reason of a death begins that is to be held against the host: the member never came to work there.
pub const DEPLOY_FAILED: &str = "deployment failed";
