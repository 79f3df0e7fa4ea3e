//! The plan, story by story.

mod admission;
mod backups;
mod copies;
mod failover;
mod incremental;
mod inputs_of_policies;
mod migration;
mod policies;
mod properties;
mod quarantined;
mod state;
mod sums;
mod unable;
