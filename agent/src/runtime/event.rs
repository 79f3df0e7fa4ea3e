//! Owns what can happen to the runtime. Plain data.

use std::collections::BTreeMap;

use tokio::sync::oneshot;
use understudy_core::host::{Input, Job, MigrationAnswer, MigrationStep, Outcome};
use understudy_core::leader::Trial;
use understudy_core::model::ids::{HostId, NodeId};
use understudy_core::model::records::{Capacity, NodeRecord, Service};
use understudy_hypervisor::HypervisorEvent;
use understudy_store::election::{Bid, ElectionError};
use understudy_store::{Batch, Listing, Revision};

use super::effects::domain::recovery::Recovered;
use super::effects::fence::LeaseEvent;
use super::leader::Done;
use super::publish::Published;
use crate::exit::Failure;
use crate::policy_manager::ManagerStatus;

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// Time passed.
    Tick,
    /// The whole of the store.
    Listed {
        /// Its records.
        listing: Listing,
        /// Whether the renewals of leases are among them, and followed from here on.
        renewals: bool,
    },
    /// The changes of one revision.
    Changed(Batch),
    /// A look at the host ended.
    Host(Box<Input>),
    /// The hypervisor told something.
    Hypervisor(HypervisorEvent),
    /// Something became of this host's lease.
    Lease(LeaseEvent),
    /// Nothing of an earlier lease runs any more, or that could not be seen to.
    Cleared {
        /// What goes on under the next lease.
        found: Result<Vec<Recovered>, String>,
        /// Where the lease waits for it.
        done: oneshot::Sender<bool>,
    },
    /// The instances of a lease that goes on were looked at, or could not be.
    Recovered {
        /// The lease's number.
        number: u64,
        /// What goes on; else which service did not do its part, and how that was seen.
        found: Result<Vec<Recovered>, (Service, String)>,
    },
    /// A job ended.
    Job {
        /// What it was.
        job: Box<Job>,
        /// How it ended.
        outcome: Outcome,
    },
    /// The revision of a leader's last renewal, 0 if there is none; nothing when the store did not say.
    Renewal(HostId, Option<Revision>),
    /// A step of a live migration was taken.
    Step {
        /// The job that it is a step of.
        job: Box<Job>,
        /// The step.
        step: MigrationStep,
        /// How it went.
        answer: MigrationAnswer,
    },
    /// A bid for leadership ended.
    Bid(Result<Bid, ElectionError>),
    /// Something that the leader wanted is done.
    Led(Box<Done>),
    /// Somebody wants to try whether new nodes fit.
    Trial {
        /// The nodes.
        new: BTreeMap<NodeId, NodeRecord>,
        /// Where the trial goes.
        reply: oneshot::Sender<Trial>,
    },
    /// The facts were written, or were not.
    Published(Option<Box<Published>>),
    /// What the manager of the policies reports.
    Policies(Box<ManagerStatus>),
    /// What this host has for instances, or why it can never have any.
    Capacity(Result<Capacity, Failure>),
    /// The load of the host's processors, in thousandths of one.
    Load(u32),
    /// Something outside of the runtime is wrong, or not any more.
    Condition {
        /// What it is about: the next word about it replaces this one.
        about: &'static str,
        /// What is wrong, and what to do. Nothing when all is well.
        text: Option<String>,
    },
}
