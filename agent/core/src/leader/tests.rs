//! The plan, story by story.

mod admission;
mod backups;
mod failover;
mod incremental;
mod migration;
mod policies;
mod properties;
mod quarantined;
mod state;
mod sums;
mod told;
mod unable;
