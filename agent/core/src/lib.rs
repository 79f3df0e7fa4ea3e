//! All decisions of Understudy: plain data in, plain data out.
//!
//! Owns what may happen and when; promises the numbered guarantees of `DESIGN.md`; must not touch a clock, a
//! file, a socket, a hypervisor or a store.

pub mod backoff;
pub mod bounds;
pub mod death;
pub mod errors;
#[cfg(test)]
mod fixture;
pub mod host;
pub mod invariants;
pub mod keys;
pub mod leader;
pub mod model;
pub mod observe;
pub mod policy;
pub mod service;
pub mod sets;
pub mod store_cache;
pub mod transaction;
