//! Owns what can happen to the driver. Plain data.

use std::collections::BTreeMap;

use tokio::sync::oneshot;
use understudy_core::host::{Input, Job, Outcome};
use understudy_core::ids::NodeId;
use understudy_core::leader::Trial;
use understudy_core::records::{HostFacts, NodeRecord};
use understudy_core::session::SessionEvent;
use understudy_hypervisor::HypervisorEvent;
use understudy_store::election::{Bid, ElectionError};
use understudy_store::{Batch, Listing, Revision};

use super::inventory::Found;
use super::lead::Done;
use crate::policies::Told;

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// Time passed.
    Tick,
    /// The whole of the store.
    Listed(Listing),
    /// The changes of one revision.
    Changed(Batch),
    /// A look at the host ended.
    Host(Box<Input>),
    /// The hypervisor told something.
    Hypervisor(HypervisorEvent),
    /// A renewal of the session ended.
    Session {
        /// How.
        outcome: SessionEvent,
        /// The session's new revision, when it was written.
        revision: Option<Revision>,
    },
    /// An attempt to open or adopt a session ended.
    Opened(Box<Opened>),
    /// The guard acknowledged a deadline, or did not for that reason.
    Guarded(Result<(), String>),
    /// Everything of a lost session is stopped.
    Stopped,
    /// A job ended.
    Job {
        /// What it was.
        job: Box<Job>,
        /// How it ended.
        outcome: Outcome,
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
    Published(Option<Box<HostFacts>>),
    /// What the keeper of the policies says.
    Policies(Box<Told>),
    /// A change of the set of policies was written at this revision, or was not.
    Settled(Option<Revision>),
    /// The leadership was given up, as far as the store answered.
    Resigned,
    /// The load of the host's processors, in thousandths of one.
    Load(u32),
    /// Something outside of the driver is wrong, or not any more.
    Complaint {
        /// What it is about: the next word about it replaces this one.
        about: &'static str,
        /// What is wrong, and what to do. Nothing when all is well.
        text: Option<String>,
    },
}

/// What came of opening a session.
#[derive(Debug)]
pub struct Opened {
    /// How.
    pub outcome: SessionEvent,
    /// The session's number and revision, when it is open.
    pub session: Option<(u64, Revision)>,
    /// The instances that were found and may go on.
    pub found: Vec<Found>,
}
