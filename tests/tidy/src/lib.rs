//! The house rules of this repository, as tests: what holds is written here, not remembered.
//!
//! Owns nothing that runs. Each rule is a function from text to faults with a test that it finds a fault, and one test
//! that applies it to every tracked file. All faults of a rule are reported at once.

#[cfg(test)]
mod arrows;
#[cfg(test)]
mod configuration;
#[cfg(test)]
mod life;
#[cfg(test)]
mod repository;
#[cfg(test)]
mod sources;
#[cfg(test)]
mod tree;
#[cfg(test)]
mod units;
#[cfg(test)]
mod words;
