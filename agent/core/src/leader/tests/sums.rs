//! What a leader keeps as sums is what a walk over everything comes to: checked after every input of the histories in
//! `incremental`, where writes are refused and come late.

use crate::leader::Leader;
use crate::leader::sums::{Amount, Side};
use crate::model::ids::{Epoch, HostId, Role};
use crate::model::records::{Age, Newest, Phase};
use crate::model::units::{MiB, Vcpus};
use crate::model::view::View;
use crate::policy::{MemberCounts, Traffic};

/// Every figure of every host.
pub(super) fn check(leader: &Leader) {
    for (host, seen) in &leader.view.hosts {
        assert_eq!(seen, &leader.before.hosts[host], "{host} is another one as it is decided");
        let sums = leader.rooms.sums(host).expect("every host has its sums");
        assert_eq!(sums.facts(), seen.current_facts(), "{host} reports something else");
        for (side, view) in [(Side::Stored, &leader.before), (Side::Decided, &leader.view)] {
            let known = sums.facts().map(|_| (sums.taken(side).memory, sums.spared(side)));
            let walked = sums.facts().map(|_| (view.taken_memory(host, None).0, spared(view, host)));
            assert_eq!(known, walked, "{host}, {side:?}");
        }
        let nobodys = (MiB(u64::MAX), Vcpus(u32::MAX));
        let row = leader.rooms.get(host).expect("every host has a row").row_for(nobodys, MiB(0));
        assert_eq!(row.free_memory, leader.view.free_memory(host), "{host}");
        assert_eq!(row.free_vcpus, leader.view.free_vcpus(host), "{host}");
        assert_eq!((sums.members(), sums.traffic()), members_and_traffic(leader, host), "{host}");
        for node in leader.view.nodes.keys() {
            let instead = Some((node, leader.record(node)));
            let (after, before) =
                (leader.view.taken_memory(host, instead), leader.before.taken_memory(host, instead));
            let capacity = seen.current_facts().map(|facts| facts.capacity.memory);
            let walked = capacity.map_or(MiB(0), |all| all.saturating_sub(after.max(before)));
            assert_eq!(leader.room(node, host), walked, "{node} on {host}");
        }
        let idle = leader.view.idle(host).map(|(instance, _)| instance);
        let unclaimed = |instance: &_| !leader.before.is_claimed(*instance);
        let idle: Vec<_> = idle.filter(unclaimed).collect();
        let known: Vec<_> = sums.unclaimed().map(|(instance, ..)| instance).collect();
        assert_eq!(known, idle, "{host}");
    }
    assert_eq!(leader.rooms.all().len(), leader.view.hosts.len());
}

/// What instances take that stand by for anybody.
fn spared(view: &View, host: &HostId) -> Amount {
    let facts = view.current_facts(host).into_iter().flat_map(|facts| &facts.instances);
    let stands_by = facts.filter(|(instance, fact)| {
        let is_idle = matches!(fact.phase, Phase::Idle | Phase::Booting);
        is_idle && fact.node.is_none() && fact.epoch == Epoch(0) && !view.is_claimed(**instance)
    });
    stands_by.fold(Amount::default(), |mut all, (_, fact)| {
        all.add(Amount { memory: fact.memory.0, vcpus: u64::from(fact.vcpus.0) });
        all
    })
}

fn members_and_traffic(leader: &Leader, host: &HostId) -> (MemberCounts, Traffic) {
    let view = &leader.view;
    let (mut counts, mut traffic) = (MemberCounts::default(), Traffic::default());
    let facts = view.current_facts(host).into_iter().flat_map(|facts| facts.instances.values());
    let restores = facts.filter(|fact| fact.phase == Phase::Restoring);
    traffic.restores = u32::try_from(restores.count()).unwrap();
    let seconds = u32::try_from(leader.bounds.checkpoint_interval.as_secs()).unwrap();
    for (node, known) in view.nodes.iter().filter(|(_, known)| known.value.touches(host)) {
        let record = &known.value;
        let is_primary = record.primary.as_ref().is_some_and(|primary| &primary.host == host);
        let backups = record.backups.iter().filter(|backup| &backup.host == host).count();
        let (primaries, others) = match node.role() {
            Role::Display => (&mut counts.display_primaries, &mut counts.display_backups),
            Role::Execution => (&mut counts.execution_primaries, &mut counts.execution_backups),
        };
        *primaries += u32::from(is_primary);
        *others += u32::try_from(backups).unwrap();
        if let Some(migration) = &record.migration {
            traffic.migrations_in += u32::from(&migration.to == host);
            traffic.migrations_out += u32::from(&migration.from == host);
        }
        let facts = record.primary.as_ref().and_then(|primary| view.hosts.get(&primary.host)?.facts.as_ref());
        let known = facts.and_then(|facts| facts.protection.get(node));
        let known = known.filter(|known| known.incarnation == record.incarnation);
        if let Some(known) = known.filter(|_| record.holds_places(node.role())) {
            let rate = u32::try_from(known.bytes / 1024).unwrap() / seconds;
            let mut here = record.backups.iter().filter(|backup| &backup.host == host);
            let fresh = |place| Newest { place, age: Age::Fresh };
            let takes = here.any(|backup| known.hosts.get(host) == Some(&fresh(backup.place)));
            traffic.checkpoint_in_kib_s += if takes { rate } else { 0 };
            traffic.checkpoint_out_kib_s += if is_primary { rate } else { 0 };
        }
    }
    (counts, traffic)
}
