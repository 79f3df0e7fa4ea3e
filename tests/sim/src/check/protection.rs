//! Owns the judgement of protection (S4): whether nodes get new checkpoints while nothing keeps them from it.
//!
//! Promises: it judges only between hosts of which every part works. Must not do: change anything but since when that is so.

use std::collections::BTreeSet;

use understudy_core::bounds::COPY_LATE;
use understudy_core::model::ids::{HostId, NodeId};
use understudy_core::model::records::NodeRecord;

use crate::world::{World, millis};

/// What a copy takes by itself: saved, sent, recorded, and once more after an answer that was lost.
const COPY_MS: u64 = 5_000;

impl World {
    /// S4: whatever another backup does, a node with one that takes copies is never without a new one for longer than an
    /// interval and 10 s, save for what a copy takes itself. A host that took none for a while may rest before that.
    pub(super) fn check_protection(&mut self) {
        let (now, bounds) = (self.now, self.bounds);
        let clear: BTreeSet<(NodeId, HostId)> = self.clear_ways().collect();
        self.truth.clear_since.retain(|way, _| clear.contains(way));
        for way in clear {
            self.truth.clear_since.entry(way).or_insert(now);
        }
        let rests = millis(bounds.cooldown);
        let longest = millis(bounds.checkpoint_interval + COPY_LATE) + COPY_MS;
        let late = self.truth.clear_since.iter().find(|((node, _), since)| {
            let recorded = self.truth.recorded.get(node).copied().unwrap_or_default();
            now - **since > rests + longest && now - recorded > longest
        });
        if let Some(((node, host), since)) = late {
            let (node, host, since) = (node.clone(), host.clone(), now - since);
            self.fail(format!("S4: {host} could take copies of {node} for {since} ms, and got none"));
        }
    }

    /// Each backup that nothing keeps from getting copies: both ends run, are told of everything and reach each other.
    fn clear_ways(&self) -> impl Iterator<Item = (NodeId, HostId)> {
        let works = |host: &HostId| {
            let machine = self.machine(host);
            let idles =
                [machine.full_until, machine.read_only_until, machine.stalls_until, machine.libvirtd_back];
            let idles = idles.into_iter().all(|until| until <= self.now);
            let reads = machine.lag == 0 && machine.foreign.is_empty() && machine.linked(self.now);
            let agent = machine.agent.as_ref().is_some_and(|agent| agent.has_recovered);
            idles
                && machine.fails_until.is_empty()
                && machine.agent_frozen.is_none()
                && reads
                && agent
                && !machine.lacks_guard(self.now)
                && self.store_down_until <= self.now
        };
        let draining = self.draining();
        let of = move |(node, record): (&NodeId, &NodeRecord)| {
            let moves = |(_, other): (&NodeId, &NodeRecord)| other.migration.is_some();
            let primary = record.primary.as_ref().filter(|primary| {
                let runs = self.member(&primary.host, primary.instance).is_some();
                let ready = primary.instance.is_some_and(|id| self.reports_ready(&primary.host, id));
                let stays = !draining.contains(&primary.host) && !self.nodes().any(moves);
                record.spec.protected && runs && ready && stays && works(&primary.host)
            });
            let to = |primary: &HostId| {
                let backups = record.backups.iter().map(|backup| &backup.host);
                let ways = backups.filter(|host| works(host) && self.reach(primary, host));
                ways.map(|host| (node.clone(), host.clone())).collect::<Vec<_>>()
            };
            primary.map(|primary| to(&primary.host)).unwrap_or_default()
        };
        self.nodes().flat_map(of).collect::<Vec<_>>().into_iter()
    }
}
