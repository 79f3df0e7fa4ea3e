//! The plan, story by story.

mod backups;
mod failover;
mod migration;
mod policies;
mod properties;
mod told;
mod withheld;
