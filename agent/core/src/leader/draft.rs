//! Owns the changes that are decided: how a step reads what will be, and changes it.
//!
//! Promises: a change says why; what a step sees includes all that was decided before it. Must not do: decide.

use std::sync::Arc;

use super::Leader;
use super::sums::{Side, Sums, living, promised};
use crate::death::Cooldown;
use crate::model::ids::{HostId, InstanceId, NodeId};
use crate::model::records::{Member, NodeRecord};
use crate::model::units::{MiB, UnixMillis};
use crate::model::view::SharedNode;

impl Leader {
    /// Changes a node's record and says why. A host that is no backup any more may keep state that others do not have yet, as
    /// long as nobody has decided to start without it.
    pub(super) fn change(
        &mut self,
        node: &NodeId,
        reason: impl Into<String>,
        edit: impl FnOnce(&mut NodeRecord),
    ) {
        let edit = |record: &mut NodeRecord| {
            let (backups, state) = (record.backups.clone(), record.state_of());
            edit(record);
            let gone = backups.into_iter().map(|backup| backup.host);
            let gone = gone.filter(|host| record.backups.iter().all(|backup| &backup.host != host));
            let gone: Vec<HostId> = gone.collect();
            if record.holds_places(node.role()) && record.state_of() == state {
                record.keepers.extend(gone);
            }
        };
        if self.change_quietly(node, edit) {
            self.drafts.entry(node.clone()).or_default().reasons.push(reason.into());
        }
    }

    /// Changes a record for the time of a question only. Whether there is one.
    pub(super) fn change_quietly(&mut self, node: &NodeId, edit: impl FnOnce(&mut NodeRecord)) -> bool {
        let Some(known) = self.view.nodes.get(node) else { return false };
        let mut changed = Arc::clone(known);
        edit(&mut Arc::make_mut(&mut changed).value);
        self.put(node, changed);
        true
    }

    /// Puts a record in the place of another, as it will be.
    pub(super) fn put(&mut self, node: &NodeId, record: SharedNode) {
        let old = self.view.nodes.get(node).cloned();
        if old.as_ref().is_some_and(|old| Arc::ptr_eq(old, &record)) {
            return;
        }
        let from =
            |known: &SharedNode| known.value.migration.as_ref().map(|migration| migration.from.clone());
        let (left, leaves) = (old.as_ref().and_then(from), from(&record));
        if left != leaves {
            self.batch.stirred.extend(left.into_iter().chain(leaves));
        }
        let was = old.as_ref().map_or(&[][..], |known| &known.value.failures);
        if was != record.value.failures {
            self.failed(node, was, &record.value.failures);
        }
        self.view.nodes.insert(node.clone(), Arc::clone(&record));
        let old = old.as_ref().map(|known| &known.value);
        self.rooms.record(Side::Decided, &self.view, node, (old, Some(&record.value)));
    }

    /// Takes a record out.
    pub(super) fn take_out(&mut self, node: &NodeId) {
        if let Some(old) = self.view.nodes.remove(node) {
            self.rooms.record(Side::Decided, &self.view, node, (Some(&old.value), None));
            self.failed(node, &old.value.failures, &[]);
        }
    }

    fn failed(&mut self, node: &NodeId, was: &[UnixMillis], is: &[UnixMillis]) {
        for at in was {
            self.failures.remove(&(*at, node.clone()));
        }
        self.failures.extend(is.iter().map(|at| (*at, node.clone())));
    }

    /// Works out anew what hosts have left. Whether one has come to have more.
    pub(super) fn refresh(&mut self) -> bool {
        self.rooms.refresh(&self.before, &self.view)
    }

    /// Whether a time was a moment ago, so that a host is avoided. One that lies ahead was written by another clock, or
    /// by this one before it was set back, and counts no more (S14).
    pub(super) fn is_recent(&self, at: UnixMillis) -> bool {
        at <= self.now.wall && self.now.wall.since(at) < self.bounds.cooldown
    }

    /// Whether a member of the node failed on `host` a moment ago.
    pub(super) fn recently_failed(&self, record: &NodeRecord, host: &HostId) -> bool {
        let recent = |cooldown: &Cooldown| &cooldown.host == host && self.is_recent(cooldown.at);
        record.cooldowns.iter().any(recent)
    }

    /// Whether a member of the node failed on `host` a moment ago in a way that a restore there may fail too.
    pub(super) fn failed_to_restore(&self, record: &NodeRecord, host: &HostId) -> bool {
        record.cooldowns.iter().any(|one| one.bars_a_restore_on(host) && self.is_recent(one.at))
    }

    /// Memory of `host` that `node` may take. What another node gives up is not given away before that is written:
    /// assignments are written side by side, and each must be right by itself. What the node itself gives up there is not
    /// counted: it ends before the node's next member needs the room.
    pub(super) fn room(&self, node: &NodeId, host: &HostId) -> MiB {
        let Some(sums) = self.rooms.sums(host) else { return MiB(0) };
        let Some(facts) = sums.facts() else { return MiB(0) };
        let will_be = self.record(node);
        let stays = will_be.instance_on(host);
        let deployed = facts.instances.iter().filter(|(_, fact)| fact.node.as_ref() == Some(node));
        let given_up = deployed.filter(|(instance, _)| Some(**instance) != stays);
        let given_up: u64 = given_up.filter_map(|(_, fact)| living(fact)).map(|has| has.memory).sum();
        let taken = sums.taken(Side::Decided).memory.max(self.stored(node, will_be, host, sums));
        facts.capacity.memory.saturating_sub(MiB(taken - given_up))
    }

    /// What the store says is taken of the memory of `host`, with `will_be` in the place of the record of `node`.
    fn stored(&self, node: &NodeId, will_be: &NodeRecord, host: &HostId, sums: &Sums) -> u64 {
        let was = self.before.nodes.get(node).map(|known| &known.value);
        let needs = |record: &NodeRecord| {
            let instance = record.instance_on(host);
            let here = instance.zip(sums.facts()).and_then(|(id, facts)| facts.instances.get(&id));
            if record.touches(host) { promised(record, here.and_then(living)).memory } else { 0 }
        };
        let mut taken = sums.taken(Side::Stored).memory - was.map_or(0, needs) + needs(will_be);
        // What stands by and is named by one of the two records alone.
        let members = was.into_iter().chain([will_be]).flat_map(NodeRecord::members);
        let mut named: Vec<InstanceId> = members.filter_map(|member| member.instance).collect();
        named.sort_unstable();
        named.dedup();
        for instance in named {
            let Some((has, is_claimed)) = sums.spare(instance, Side::Stored) else { continue };
            let names = |member: &Member| member.instance == Some(instance);
            let by_others = self.before.nodes.naming(instance).iter().any(|other| other != node);
            match (is_claimed, by_others || will_be.members().any(names)) {
                (true, false) => taken -= has.memory,
                (false, true) => taken += has.memory,
                (true, true) | (false, false) => {}
            }
        }
        taken
    }

    /// The first idle instance of a host that `node` may have; none while a record that was not read may name it
    /// (SAFE-6).
    pub(super) fn idle(&self, node: &NodeId, host: &HostId) -> Option<InstanceId> {
        let room = self.rooms.get(host)?;
        room.fitting(&self.record(node).spec, self.room(node, host)).next()
    }

    /// The hosts of which something is different for this node than for others: those with a member of it, by the store
    /// or as it is decided, and those that it avoids.
    pub(super) fn concerned(&self, node: &NodeId) -> Vec<HostId> {
        let mut hosts = Vec::new();
        let records = [self.before.nodes.get(node), self.view.nodes.get(node)];
        for record in records.into_iter().flatten().map(|known| &known.value) {
            hosts.extend(record.members().map(|member| member.host.clone()));
            hosts.extend(record.migration.iter().map(|migration| migration.to.clone()));
            hosts.extend(record.cooldowns.iter().map(|cooldown| cooldown.host.clone()));
        }
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }

    /// Whether everything is to leave `host`.
    pub(super) fn is_draining(&self, host: &HostId) -> bool {
        self.draining.contains(host)
    }

    /// Whether a primary is on its way from `host`.
    pub(super) fn is_being_left(&self, host: &HostId) -> bool {
        let migrations = self.view.nodes.on_host(host).filter_map(|(_, node)| node.value.migration.as_ref());
        migrations.into_iter().any(|migration| &migration.from == host)
    }

    pub(super) fn note(&mut self, node: &NodeId, text: impl Into<String>) {
        self.report.notes.entry(node.clone()).or_default().push(text.into());
    }

    /// Makes an assignment conditional on the expiry of a host's lease, where it has expired.
    pub(super) fn condition_on_lease(&mut self, node: &NodeId, host: &HostId) {
        let ended = self.view.hosts.get(host).filter(|host| !host.is_open()).map(|host| host.lease.revision);
        if let Some(revision) = ended {
            self.drafts.entry(node.clone()).or_default().leases.push((host.clone(), revision));
        }
    }
}
