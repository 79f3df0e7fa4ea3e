//! Owns the two sides of a live migration, each as a machine whose steps are data: what is next, and what follows from how it
//! went.
//!
//! Promises: one step of a side is under way at a time; a side ends with one outcome; a step carries what its doing needs,
//! and its answer says what is so and no more. Must not do: carry a step out, or wait.

mod arrival;
mod departure;

use std::net::Ipv4Addr;
use std::time::Duration;

pub(super) use arrival::{Arrival, Known};
pub(super) use departure::Departure;

use super::input::Outcome;
use crate::model::units::{MiB, Vcpus};

/// One step of a side, of the job that it is given with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationStep {
    /// Destination: let libvirt take it in, in the job's epoch, for so long at the most.
    Permit {
        /// How long the permit is good for.
        lasts: Duration,
    },
    /// Either side: say what is here of it.
    Look,
    /// Destination: have the guard acknowledge it, let it run, then revoke the permit.
    Land,
    /// Destination: revoke the permit, then destroy what is here.
    Withdraw,
    /// Source: move it.
    Transfer {
        /// How long that may take.
        lasts: Duration,
    },
    /// Source: let it run again.
    Resume,
}

/// How a step went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MigrationAnswer {
    /// As wanted, and there is no more to say of it.
    Done,
    /// What is here, for a look.
    Seen(Presence),
    /// It runs; what is known of it, where that could be read.
    Landed(Option<Landed>),
    /// It is on the other host, and nothing of it is here.
    Moved,
    /// It did not move, and nothing of that is under way any more: it is here, and nothing of it has run there.
    Stayed(String),
    /// It did not come to its end, or nobody can say whether it did.
    Failed(String),
}

/// What this host's hypervisor knows of an instance that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Landed {
    /// Its memory.
    pub memory: MiB,
    /// Its processors.
    pub vcpus: Vcpus,
    /// The guest's address, where it is noted.
    pub address: Option<Ipv4Addr>,
}

/// What of an instance is on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Nothing.
    Gone,
    /// A process, of which the hypervisor says nothing.
    Process,
    /// All of it, and its processors run.
    Running,
    /// All of it, and its processors stand still as they were asked to.
    Paused,
    /// Its processors stand still for something else, the migration itself among that.
    Held,
    /// Anything else that is no proof of either.
    Other,
}

/// What is next on a side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing before something happens or is due.
    Wait,
    /// This step.
    Take(MigrationStep),
    /// Nothing any more: so it ended.
    End(Outcome),
}
