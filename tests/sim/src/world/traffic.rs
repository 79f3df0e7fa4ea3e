//! Owns what machines do to each other but for live migrations, and what befalls them whole: windows, copies of checkpoints,
//! power and agents that are gone.
//!
//! Promises: an image lies on a disk for as long as its machine keeps it, whatever becomes of power and agents. Must not do:
//! decide.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use understudy_core::bounds::CLOSED;
use understudy_core::host::{Offer, SendWindows, SentBy, offered};
use understudy_core::leader::AskCopies;
use understudy_core::model::ids::{HostId, InstanceId, NodeId};
use understudy_core::model::records::{Checkpoint, CheckpointId, Kept};
use understudy_hypervisor::fake::Instance;

use super::{World, millis};
use crate::Weakness;
use crate::guest::{Memory, is_member};
use crate::machine::{Closed, Machine};

impl World {
    /// The life of the display's guest, if its intake takes the windows.
    pub(crate) fn intake(&self, from: &HostId, send: &SendWindows) -> Option<u64> {
        let life = |instance: &Instance<Memory>| {
            let admitted = instance.memory().admitted.get(&send.node) == Some(&send.incarnation);
            (is_member(instance) && admitted).then(|| instance.memory().life)
        };
        let reached = |(host, machine): &(&HostId, &Machine)| machine.runs() && self.reach(from, host);
        let mut reached = self.machines.iter().filter(reached);
        reached.find_map(|(_, machine)| machine.hypervisor.look(send.display, life).flatten())
    }

    /// All of a copy of a checkpoint has arrived at `to`. Its agent takes it as core says, and keeps the newest two and what
    /// is being restored there.
    pub(crate) fn receive(
        &mut self,
        (from, to): (&HostId, &HostId),
        node: &NodeId,
        what: &Checkpoint,
        (revision, begun): (u64, u64),
    ) -> Offer {
        let id = what.id;
        let (now, careless) = (self.now, self.weakness == Some(Weakness::CarelessReceiver));
        let machine = self.machine(to);
        let Some((view, named)) = machine.agent.as_ref().and_then(|agent| agent.read_of(node, to)) else {
            return Offer::NotYet(format!("{to} has not read the store yet"));
        };
        let sender = BTreeSet::from([from.clone()]);
        let offer =
            offered(view, to, SentBy::Certified(&sender), node, (id.epoch, Some(revision)), what.instance);
        if offer != Offer::Taken && !careless {
            return offer;
        }
        if machine.closed.get(node).is_some_and(|closed| {
            closed.instance == what.instance
                && self.weakness != Some(Weakness::StaysOpen)
                && id.epoch <= closed.epoch
                && closed.times.contains(&begun)
        }) {
            return Offer::Over(format!("{node} is failed over in epoch {}", id.epoch));
        }
        if machine.read_only_until > now {
            return Offer::Over("read-only file system".to_owned());
        }
        if machine.full_until > now {
            return Offer::Over("no space left on device".to_owned());
        }
        // What is of another instance is of a life that is over, or of another node of that name.
        let of_it = |copy: &&Checkpoint| copy.instance == what.instance;
        let images = machine.images.get(node).into_iter().flat_map(BTreeMap::values);
        let newest = images.filter(of_it).map(|copy| copy.id).max();
        if let Some(newest) = newest.filter(|newest| id <= *newest) {
            return Offer::Over(format!("{newest} is complete, count on from there"));
        }
        if !self.site.copy_image(&outgoing(from, node, id), &kept(to, node, id)) {
            return Offer::Over("the sender has it no more".to_owned());
        }
        self.verbose(|| format!("{to} keeps checkpoint {id} of {node} beside {named:?}"));
        let old = |known: &CheckpointId| newest != Some(*known) && named != Some(*known);
        let site = self.site.clone();
        let images = self.machine_mut(to).images.entry(node.clone()).or_default();
        let dropped = images.extract_if(.., |known, copy| old(known) || copy.instance != what.instance);
        dropped.for_each(|(known, _)| site.remove_image(&kept(to, node, known)));
        images.insert(id, what.clone());
        self.truth.taken(node, now);
        Offer::Taken
    }

    /// Whether a host has the checkpoint that another adds to, and can read it.
    pub(crate) fn can_add_to(&self, host: &HostId, node: &NodeId, base: CheckpointId) -> bool {
        let machine = self.machine(host);
        let has = machine.images.get(node).is_some_and(|images| images.contains_key(&base));
        has && machine.pages_damaged_until <= self.now
    }

    /// What a host says that it has of a node's checkpoints. What a restore found damaged is forgotten with its agent: it may
    /// be among them.
    pub(crate) fn kept_by(&mut self, ask: &AskCopies) -> Kept {
        let AskCopies { node, epoch, instance, host, .. } = ask;
        let now = self.now;
        let until = now + millis(CLOSED);
        let closed = &mut self.machine_mut(host).closed;
        match closed.get_mut(node) {
            Some(closed)
                if (closed.instance, closed.epoch) == (*instance, *epoch) && closed.times.end > now =>
            {
                closed.times.end = until;
            }
            Some(_) | None => {
                let new = Closed { instance: *instance, epoch: *epoch, times: now..until };
                closed.insert(node.clone(), new);
            }
        }
        let images = self.machine(host).images.get(node);
        let senders = self.machines.iter().filter(|(from, machine)| machine.runs() && self.reach(from, host));
        let mut senders = senders.filter_map(|(_, machine)| machine.agent.as_ref());
        Kept {
            complete: images.into_iter().flat_map(BTreeMap::values).cloned().collect(),
            arriving: senders.any(|agent| agent.sends_to(node, host)),
            unsure: false,
        }
    }

    /// How long a question to another host takes, or its answer: now and then far longer than anybody waits.
    pub(crate) fn asking_takes(&mut self) -> u64 {
        let late = self.swarm.lost_answers / 4;
        if self.asks_rng.chance(late) {
            return self.asks_rng.between(500, 4_000);
        }
        if self.swarm.jitter { self.asks_rng.between(0, 100) } else { 0 }
    }

    /// Deletes all images of a node on a machine.
    pub(crate) fn drop_images(&mut self, host: &HostId, node: &NodeId) {
        if self.machine(host).read_only_until > self.now {
            return;
        }
        for id in self.machine_mut(host).images.remove(node).unwrap_or_default().into_keys() {
            self.site.remove_image(&kept(host, node, id));
        }
    }

    /// Nothing stays on a machine whose power is cut but its disk.
    pub(crate) fn cut_power(&mut self, host: &HostId, until: u64) {
        let machine = self.machine_mut(host);
        machine.off_until = Some(until);
        machine.frozen_until = None;
        machine.hypervisor.power_off();
        machine.guard = Default::default();
        machine.dying.clear();
        machine.stopped.clear();
        self.lose_agent(host);
        self.note(format!("{host} loses its power"));
    }

    /// Everything on a machine stands still, and goes on where it was.
    pub(crate) fn freeze(&mut self, host: &HostId, until: u64) {
        let now = self.now;
        let machine = self.machine_mut(host);
        machine.frozen_until = Some(until);
        machine.frozen_at = now;
        machine.hypervisor.set_frozen(true);
    }

    pub(crate) fn crash_agent(&mut self, host: &HostId, until: u64) {
        self.machine_mut(host).agent_back = until;
        self.lose_agent(host);
        self.note(format!("the agent of {host} crashes"));
    }

    /// What it was about to send has no use any more.
    fn lose_agent(&mut self, host: &HostId) {
        let now = self.now;
        let machine = self.machine_mut(host);
        (machine.agent, machine.agent_frozen) = (None, None);
        machine.closed.clear();
        machine.restart_guard(now);
        self.site.remove_images(&scratch(host));
    }

    pub(crate) fn hosts(&self) -> Vec<HostId> {
        self.machines.keys().cloned().collect()
    }

    /// All instances, wherever they are.
    pub(crate) fn instances(&self) -> BTreeSet<(HostId, InstanceId)> {
        let of = |(host, machine): (&HostId, &Machine)| {
            let host = host.clone();
            machine.hypervisor.running().into_iter().map(move |instance| (host.clone(), instance))
        };
        self.machines.iter().flat_map(of).collect()
    }
}

/// Where a saved image lies before all copies of it are made.
pub(crate) fn outgoing(host: &HostId, node: &NodeId, id: CheckpointId) -> PathBuf {
    scratch(host).join(format!("{node}/{id}"))
}

fn scratch(host: &HostId) -> PathBuf {
    format!("/{host}/run").into()
}

/// Where a host keeps a checkpoint.
pub(crate) fn kept(host: &HostId, node: &NodeId, id: CheckpointId) -> PathBuf {
    format!("/{host}/checkpoints/{node}/{id}").into()
}
