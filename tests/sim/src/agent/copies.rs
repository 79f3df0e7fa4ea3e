//! Owns the model of what the daemon does with an image between its being saved and core's last word about it: sent, deleted.
//!
//! Promises: a receiver that stands still says nothing; one that cannot be reached is given up by the network; what core has
//! ended says nothing any more. Must not do: decide who gets a copy, or for how long.

use std::collections::BTreeMap;

use understudy_core::death::CopyFault;
use understudy_core::host::{CopyEvent, Destination, Input, Offer};
use understudy_core::model::ids::{HostId, NodeId};
use understudy_core::model::records::{Checkpoint, CheckpointId};

use super::Agent;
use crate::Weakness;
use crate::world::World;
use crate::world::traffic::outgoing;

/// The size of every image.
pub(super) const BYTES: u64 = 1 << 20;
/// How long the network tries to reach somebody.
const CONNECT_MS: u64 = 3_000;
/// How long a receiver waits for what its store cache does not show yet.
const BEHIND_MS: u64 = 2_000;

/// One copy on its way.
#[derive(Debug)]
struct Sent {
    revision: u64,
    begun: u64,
    /// What it adds to.
    base: Option<CheckpointId>,
    /// When all of it has arrived, if nothing is in its way.
    due: u64,
    /// When whoever cannot be reached, or does not know yet, is given up.
    patience: Option<u64>,
    half_told: bool,
    /// What the receiver said of all of it, as long as that does not get back.
    unheard: Option<Offer>,
}

/// An image on its way.
#[derive(Debug)]
struct Outgoing {
    what: Checkpoint,
    sends: BTreeMap<HostId, Sent>,
}

/// All images on their way.
#[derive(Debug, Default)]
pub(super) struct Copies(BTreeMap<(NodeId, CheckpointId), Outgoing>);

impl Copies {
    /// What was under way has as much left to do as before.
    pub(super) fn stood_still(&mut self, since: u64, lost: u64) {
        for sent in self.0.values_mut().flat_map(|outgoing| outgoing.sends.values_mut()) {
            if sent.due > since {
                sent.due += lost;
            }
            sent.patience = sent.patience.map(|until| until + lost);
        }
    }

    pub(super) fn keep(&mut self, node: NodeId, what: Checkpoint) {
        self.0.insert((node, what.id), Outgoing { what, sends: BTreeMap::new() });
    }

    /// Whether a copy of a node's state is on its way to a host.
    fn is_on_its_way(&self, node: &NodeId, to: &HostId) -> bool {
        self.0.iter().any(|((of, _), outgoing)| of == node && outgoing.sends.contains_key(to))
    }

    pub(super) fn begin(
        &mut self,
        world: &mut World,
        (node, id): (NodeId, CheckpointId),
        revision: u64,
        to: Destination,
    ) {
        let due = world.now + world.duration(50, 500);
        let sent = Sent {
            revision,
            begun: world.now,
            base: to.base,
            due,
            patience: None,
            half_told: false,
            unheard: None,
        };
        if let Some(outgoing) = self.0.get_mut(&(node, id)) {
            outgoing.sends.insert(to.host, sent);
        }
    }

    pub(super) fn cancel(&mut self, node: NodeId, id: CheckpointId, host: &HostId) {
        if let Some(outgoing) = self.0.get_mut(&(node, id)) {
            outgoing.sends.remove(host);
        }
    }

    pub(super) fn discard(&mut self, world: &World, me: &HostId, node: NodeId, id: CheckpointId) {
        world.site.remove_image(&outgoing(me, &node, id));
        self.0.remove(&(node, id));
    }

    /// What has become of each by now.
    fn step(&mut self, world: &mut World, me: &HostId) -> Vec<(NodeId, CheckpointId, CopyEvent)> {
        let mut reported = Vec::new();
        for ((node, id), outgoing) in &mut self.0 {
            outgoing.sends.retain(|host, sent| {
                let (event, goes_on) = match sent.step(world, (me, host), (node, &outgoing.what)) {
                    Step::Waits => return true,
                    Step::Half => {
                        (CopyEvent::Accepted { host: host.clone(), bytes: BYTES / 2, of: BYTES }, true)
                    }
                    Step::Lacks(detail) => (CopyEvent::Lacks { host: host.clone(), detail }, false),
                    Step::Taken => (CopyEvent::Durable(host.clone()), false),
                    Step::Failed(fault) => (CopyEvent::Failed { host: host.clone(), fault }, false),
                };
                reported.push((node.clone(), *id, event));
                goes_on
            });
        }
        reported
    }
}

enum Step {
    Waits,
    Half,
    Taken,
    Lacks(String),
    Failed(CopyFault),
}

impl Sent {
    fn step(
        &mut self,
        world: &mut World,
        (me, to): (&HostId, &HostId),
        (node, what): (&NodeId, &Checkpoint),
    ) -> Step {
        let now = world.now;
        let (machine, reached) = (world.machine(to), world.reach(me, to));
        if now < self.due || machine.frozen_until.is_some() || machine.agent_frozen.is_some() {
            return Step::Waits;
        }
        let own = world.machine(me);
        let arrives = self.unheard.is_some() || now >= own.mute_until.max(machine.deaf_until);
        let heard = now >= own.deaf_until.max(machine.mute_until);
        if !reached || !arrives || !machine.runs() || machine.agent.is_none() {
            let until = *self.patience.get_or_insert(now + CONNECT_MS);
            let detail = "it does not answer".to_owned();
            return if now < until { Step::Waits } else { Step::Failed(CopyFault::Unreachable { detail }) };
        }
        if machine.stalls_until > now {
            return if std::mem::replace(&mut self.half_told, true) { Step::Waits } else { Step::Half };
        }
        if self.unheard.is_none()
            && let Some(base) = self.base
            && !world.can_add_to(to, node, base)
        {
            return Step::Lacks(format!("checkpoint {base} is not there, or damaged"));
        }
        let offer = match self.unheard.take() {
            Some(offer) => offer,
            None => world.receive((me, to), node, what, (self.revision, self.begun)),
        };
        if !heard {
            self.unheard = Some(offer);
            let until = *self.patience.get_or_insert(now + CONNECT_MS);
            let detail = "its answer does not come".to_owned();
            return if now < until { Step::Waits } else { Step::Failed(CopyFault::Unreachable { detail }) };
        }
        match offer {
            Offer::Taken => Step::Taken,
            // With the protection switched off a refusal is taken for success.
            Offer::Over(_) if world.weakness == Some(Weakness::TrustsCopies) => Step::Taken,
            Offer::Over(detail) => Step::Failed(CopyFault::Refused { detail }),
            Offer::NotYet(detail) => {
                let until = *self.patience.get_or_insert(now + BEHIND_MS);
                if now < until { Step::Waits } else { Step::Failed(CopyFault::Refused { detail }) }
            }
        }
    }
}

impl Agent {
    pub(super) fn step_copies(&mut self, world: &mut World, me: &HostId) {
        for (node, id, event) in self.copies.step(world, me) {
            self.dirty = true;
            self.inform(world, me, Input::Copy { node, id, event });
        }
    }

    /// Whether a copy of a node's state is on its way from here to a host.
    pub(crate) fn sends_to(&self, node: &NodeId, to: &HostId) -> bool {
        self.copies.is_on_its_way(node, to)
    }
}
