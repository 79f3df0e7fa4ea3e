//! Owns the data that all decisions are about: names, units, records, and the view that decisions read.
//!
//! Promises: plain data in every module. Must not do: decide anything.

pub mod ids;
pub mod records;
pub mod units;
pub mod view;
