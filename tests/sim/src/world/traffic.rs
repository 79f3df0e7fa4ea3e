//! Owns what machines do to each other and what befalls them whole: live migrations, windows, copies of checkpoints,
//! power and agents that are gone.
//!
//! Promises: a migration goes on by itself once it has begun, whatever becomes of the agents. Must not do: decide.

use std::collections::BTreeSet;

use understudy_core::host::{Offer, SendWindows, offered};
use understudy_core::ids::{Epoch, HostId, InstanceId, NodeId};

use super::World;
use crate::Weakness;
use crate::machine::{Domain, Image, Machine, Stage};

/// A migration between machines that cannot reach each other is given up after this long.
const KEEPALIVE_MS: u64 = 7_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TransferState {
    Running,
    Moved,
    Stayed(String),
}

/// A live migration, which goes on by itself once it has begun.
#[derive(Debug)]
pub(super) struct Transfer {
    id: u64,
    instance: InstanceId,
    life: u64,
    from: HostId,
    to: HostId,
    ends: u64,
    /// Since when the two cannot reach each other.
    cut_since: Option<u64>,
    /// The source does not learn that it has ended, and goes on.
    loses_end: bool,
    state: TransferState,
}

impl World {
    /// A domain's processors go on.
    pub(crate) fn resume(&mut self, host: &HostId, instance: InstanceId) {
        if let Some(domain) = self.machine_mut(host).domains.get_mut(&instance) {
            domain.stage = Stage::Running;
        }
    }

    /// The life of the display's domain, if its intake takes the windows.
    pub(crate) fn intake(&self, from: &HostId, send: &SendWindows) -> Option<u64> {
        let takes = |domain: &Domain| {
            let runs = domain.stage == Stage::Running && domain.deployed;
            runs && domain.admitted.get(&send.node) == Some(&send.begun)
        };
        self.machines.iter().filter(|(host, machine)| machine.runs() && self.reach(from, host)).find_map(
            |(_, machine)| {
                machine.domains.get(&send.display).filter(|domain| takes(domain)).map(|domain| domain.life)
            },
        )
    }

    /// All of a copy of a checkpoint has arrived at `to`. Its agent takes it as core says, and keeps the newest two and what
    /// the store names.
    pub(crate) fn receive(&mut self, to: &HostId, node: &NodeId, image: &Image, revision: u64) -> Offer {
        let (now, careless) = (self.now, self.weakness == Some(Weakness::CarelessReceiver));
        let machine = self.machine(to);
        let Some((view, named)) = machine.agent.as_ref().and_then(|agent| agent.told_of(node, to)) else {
            return Offer::NotYet(format!("{to} has not read the store yet"));
        };
        let offer = offered(view, to, node, (image.id.epoch, Some(revision)));
        if offer != Offer::Taken && !careless {
            return offer;
        }
        if machine.full_until > now {
            return Offer::Over("no space left on device".to_owned());
        }
        let newest = machine.images.get(node).and_then(|images| images.iter().map(|image| image.id).max());
        if let Some(newest) = newest.filter(|newest| image.id <= *newest) {
            return Offer::Over(format!("{newest} is complete, count on from there"));
        }
        self.verbose(|| format!("{to} keeps checkpoint {} of {node} beside {named:?}", image.id));
        let images = self.machine_mut(to).images.entry(node.clone()).or_default();
        // What is newer than what the store names may be named by a write that is on its way.
        images.retain(|known| newest == Some(known.id) || named.is_none_or(|named| known.id >= named));
        images.push(image.clone());
        Offer::Taken
    }

    pub(crate) fn transfer_of(&self, from: &HostId, instance: InstanceId) -> Option<u64> {
        let running = |transfer: &&Transfer| {
            transfer.state == TransferState::Running
                && &transfer.from == from
                && transfer.instance == instance
        };
        self.transfers.iter().find(running).map(|transfer| transfer.id)
    }

    pub(crate) fn transfer_state(&self, id: u64) -> TransferState {
        let known = self.transfers.iter().find(|transfer| transfer.id == id);
        known.map_or_else(|| TransferState::Stayed("forgotten".to_owned()), |known| known.state.clone())
    }

    /// The destination's hook lets in only what it has a permit for.
    pub(crate) fn start_transfer(
        &mut self,
        from: &HostId,
        to: &HostId,
        instance: InstanceId,
        epoch: Epoch,
    ) -> Option<u64> {
        let domain = self.machine(from).domains.get(&instance)?.clone();
        let there = self.machine(to);
        let permitted =
            there.permits.get(&instance) == Some(&epoch) && !there.domains.contains_key(&instance);
        if !permitted || !there.runs() || !self.reach(from, to) || domain.stage != Stage::Running {
            return None;
        }
        self.serial += 1;
        let id = self.serial;
        let (life, lost) = (domain.life, self.swarm.lost_finishes);
        let transfer = Transfer {
            id,
            instance,
            life,
            from: from.clone(),
            to: to.clone(),
            ends: self.now + self.duration(1_000, 4_000),
            cut_since: None,
            loses_end: self.rng.chance(lost),
            state: TransferState::Running,
        };
        self.machine_mut(to).domains.insert(instance, Domain { stage: Stage::Incoming, ..domain });
        self.transfers.push(transfer);
        Some(id)
    }

    pub(super) fn run_transfers(&mut self) {
        for mut transfer in std::mem::take(&mut self.transfers) {
            if transfer.state == TransferState::Running {
                self.run_transfer(&mut transfer);
            }
            self.transfers.push(transfer);
        }
        let forgotten = self.transfers.len().saturating_sub(64);
        self.transfers.drain(..forgotten);
    }

    fn run_transfer(&mut self, transfer: &mut Transfer) {
        let Transfer { instance, from, to, life, .. } = &*transfer;
        let (instance, from, to, life) = (*instance, from.clone(), to.clone(), *life);
        let source = self.machine(&from).domains.get(&instance).filter(|domain| domain.life == life).cloned();
        let coming = self.machine(&to).domains.get(&instance);
        let there = coming.is_some_and(|domain| domain.stage == Stage::Incoming);
        let gives_up = match (&source, there) {
            (None, true) => Some("the source has ended"),
            (_, false) => Some("the destination gave it up"),
            (Some(_), true) => None,
        };
        if let Some(why) = gives_up {
            if there {
                self.machine_mut(&to).domains.remove(&instance);
            }
            transfer.state = TransferState::Stayed(why.to_owned());
            return;
        }
        // A frozen end holds it up; afterwards it goes on as if nothing had been.
        if !self.machine(&from).runs() || !self.machine(&to).runs() {
            return;
        }
        if !self.reach(&from, &to) {
            let since = *transfer.cut_since.get_or_insert(self.now);
            if self.now >= since + KEEPALIVE_MS {
                self.machine_mut(&to).domains.remove(&instance);
                transfer.state = TransferState::Stayed("the connection was lost".to_owned());
            }
            return;
        }
        transfer.cut_since = None;
        if self.now < transfer.ends {
            return;
        }
        if let Some(source) = source {
            self.machine_mut(&to).domains.insert(instance, Domain { stage: Stage::Paused, ..source });
            if transfer.loses_end {
                transfer.state = TransferState::Stayed("the end of it was not heard".to_owned());
            } else {
                self.machine_mut(&from).domains.remove(&instance);
                transfer.state = TransferState::Moved;
            }
        }
    }

    /// Nothing stays on a machine whose power is cut but its disk.
    pub(crate) fn cut_power(&mut self, host: &HostId, until: u64) {
        let machine = self.machine_mut(host);
        machine.off_until = Some(until);
        machine.frozen_until = None;
        machine.domains.clear();
        machine.permits.clear();
        machine.guard = Default::default();
        machine.agent = None;
        self.note(format!("{host} loses its power"));
    }

    /// Everything on a machine stands still, and goes on where it was.
    pub(crate) fn freeze(&mut self, host: &HostId, until: u64) {
        let now = self.now;
        let machine = self.machine_mut(host);
        machine.frozen_until = Some(until);
        machine.frozen_at = now;
    }

    pub(crate) fn crash_agent(&mut self, host: &HostId, until: u64) {
        let machine = self.machine_mut(host);
        machine.agent = None;
        machine.agent_back = until;
        self.note(format!("the agent of {host} crashes"));
    }

    pub(crate) fn hosts(&self) -> Vec<HostId> {
        self.machines.keys().cloned().collect()
    }

    /// All domains of one node's members, wherever they are.
    pub(crate) fn instances(&self) -> BTreeSet<(HostId, InstanceId)> {
        let of = |(host, machine): (&HostId, &Machine)| {
            let host = host.clone();
            machine.domains.keys().map(move |&instance| (host.clone(), instance)).collect::<Vec<_>>()
        };
        self.machines.iter().flat_map(of).collect()
    }
}
