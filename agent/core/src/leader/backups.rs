//! Owns the backups: as many as the policy says, each on a host of its own, and the deficit made good.
//!
//! Promises: a backup never shares a host with the primary or another backup (SAFE-5); a backup on a draining host
//! is given up only once others are enough without it, and replaced once no primary is leaving that host; one that takes no
//! copies of the checkpoints is replaced where there is room. Must not do: promote.

use super::place::{Choice, choose};
use super::{DAY, Leader, ask, forget_damage, remember};
use crate::death::{Cooldown, CooldownCause, CopyFault};
use crate::model::ids::{HostId, NodeId};
use crate::model::records::{Member, NodeRecord, Origin};
use crate::model::view::{Answer, HostView, Liveness, SharedNode};
use crate::policy::{
    BackupCountAnswer, BackupCountQuestion, BuiltIn, ClusterRow, CountVerdict, Interface, Purpose,
};

/// More backups than this for one node are taken for a policy's mistake.
const BACKUPS_MAX: u32 = 16;

/// Takes out what is dead, and finds out how many backups are wanted.
pub(super) fn count(leader: &mut Leader, node: &NodeId, known: SharedNode) {
    let known = if drop_dead(leader, node, &known.value) { leader.shared(node) } else { known };
    if known.value.primary.is_none() {
        return;
    }
    if let Some(wanted) = wanted(leader, node, &known.value) {
        leader.report.wanted.insert(node.clone(), wanted);
    }
}

/// Brings the node's backups to the number that is wanted.
pub(super) fn repair(leader: &mut Leader, node: &NodeId, mut known: SharedNode) {
    if known.value.primary.is_none() {
        return;
    }
    let Some(wanted) = leader.report.wanted.get(node).copied() else { return };
    if let Some(lack) = leader.report.lacks.get_mut(node) {
        lack.backups = 0;
    }
    while lasting(leader, &known.value) < wanted && !waits_for_primaries(leader, &known.value, wanted) {
        if !add(leader, node, &known.value) {
            break;
        }
        known = leader.shared(node);
    }
    if replace_faulty(leader, node, &known.value, wanted) {
        known = leader.shared(node);
    }
    if give_up_draining(leader, node, &known.value, wanted) {
        known = leader.shared(node);
    }
    while drop_surplus(leader, node, &known.value, wanted) {
        known = leader.shared(node);
    }
    let_go(leader, node, &known.value);
    let short = wanted.saturating_sub(whole(leader, node, &known.value));
    if short > 0 {
        leader.report.lacks.entry(node.clone()).or_default().backups = short;
    }
}

fn number(backups: impl Iterator) -> u32 {
    u32::try_from(backups.count()).unwrap_or(u32::MAX)
}

/// Backups that are not about to leave with their host.
fn lasting(leader: &Leader, record: &NodeRecord) -> u32 {
    number(record.backups.iter().filter(|backup| !leader.is_draining(&backup.host)))
}

/// Whether all that is wanted is there and what is about to leave can wait for the primaries that leave with it: a
/// replacement that boots, or its copy of the state, takes the processors and the link of the very migration. Measured
/// on emulated guests: 1.5 s a migration alone, 2.8 to 4.6 s beside a replacement.
fn waits_for_primaries(leader: &Leader, record: &NodeRecord, wanted: u32) -> bool {
    let leaves = |backup: &Member| leader.is_draining(&backup.host) && leader.is_being_left(&backup.host);
    number(record.backups.iter()) >= wanted && record.backups.iter().any(leaves)
}

/// Backups that could take over at this moment.
fn whole(leader: &Leader, node: &NodeId, record: &NodeRecord) -> u32 {
    number(record.backups.iter().filter(|backup| can_take_over(leader, node, record, backup)))
}

fn can_take_over(leader: &Leader, node: &NodeId, record: &NodeRecord, backup: &Member) -> bool {
    match backup.instance {
        Some(_) => leader.view.is_ready(record, backup),
        None => leader.view.protection(node, record).is_some_and(|known| known.is_fresh_at(backup)),
    }
}

/// Whether there was one.
fn drop_dead(leader: &mut Leader, node: &NodeId, record: &NodeRecord) -> bool {
    let mut dropped = false;
    for backup in &record.backups {
        if let Liveness::Dead { cause, .. } = leader.view.liveness(record, backup) {
            let now = leader.now.wall;
            dropped = true;
            leader.change(node, format!("backup on {} is dead ({cause})", backup.host), |record| {
                record.backups.retain(|other| other != backup);
                if cause.is_failed_deployment() {
                    let cause = CooldownCause::Died { death: cause.clone(), epoch: record.epoch, from: None };
                    remember(record, Cooldown { host: backup.host.clone(), cause, at: now });
                }
            });
        }
    }
    dropped
}

fn add(leader: &mut Leader, node: &NodeId, record: &NodeRecord) -> bool {
    let reserved = record.holds_places(node.role());
    let place = leader.view.nodes.get(node).map_or(0, |known| known.revision);
    let purpose = if reserved { Purpose::HeldBackup } else { Purpose::WarmBackup };
    let member = match choose(leader, node, purpose) {
        Choice::Asked => return false,
        Choice::Nowhere(why) => {
            leader.note(node, format!("no host can take another backup: {why}"));
            return false;
        }
        Choice::On(host) if reserved => leader.view.hosts.get(&host).map(|seen| {
            let (lease, reason) = (seen.lease.value.number, format!("place reserved on {host}"));
            (Member { host, lease, instance: None, origin: Origin::Reserved, place }, reason)
        }),
        Choice::On(host) => {
            leader.allocate(node, record, &host).map(|(member, action)| (member, format!("backup: {action}")))
        }
    };
    let Some((member, reason)) = member else { return false };
    leader.chosen(node, &member.host);
    leader.change(node, reason, |record| record.backups.push(member));
    true
}

/// A backup that takes no copies of the checkpoints protects nobody: its place goes to another host where there is room,
/// and stays where there is none, for what it took before. Its own host is avoided for a while.
/// Whether one does.
fn replace_faulty(leader: &mut Leader, node: &NodeId, record: &NodeRecord, wanted: u32) -> bool {
    let (mut changed, mut left) = (false, lasting(leader, record));
    for (backup, fault) in faulty(leader, node, record) {
        if left > wanted {
            break;
        }
        let (host, known) = (backup.host, leader.shared(node));
        if !add(leader, node, &known.value) {
            leader.note(node, format!("its backup on {host} takes no checkpoints: {host} {fault}"));
            break;
        }
        let cause = CooldownCause::NoCopies { fault, epoch: record.epoch };
        let cooldown = Cooldown { host: host.clone(), cause, at: leader.now.wall };
        leader.change(node, format!("{host} takes no checkpoints and gives its backup up"), |record| {
            record.backups.retain(|other| other.host != host);
            remember(record, cooldown);
        });
        changed = true;
        left = lasting(leader, &leader.shared(node).value);
    }
    changed
}

/// The backups of which the primary's own host says that they take no copies.
fn faulty(leader: &Leader, node: &NodeId, record: &NodeRecord) -> Vec<(Member, CopyFault)> {
    let primary = record.primary.as_ref();
    let facts = primary.and_then(|primary| leader.view.current_facts(&primary.host));
    let faults = facts.and_then(|facts| facts.copy_faults.get(node));
    let fault = |backup: &Member| faults?.get(&backup.host).map(|fault| (backup.clone(), fault.clone()));
    let reserved = record.holds_places(node.role());
    record
        .backups
        .iter()
        .filter(|backup| reserved && !leader.is_draining(&backup.host))
        .filter_map(fault)
        .collect()
}

/// A backup leaves a draining host once enough others could take over, or once one other could and waiting brings no
/// more, because every host that stays has a member of this node already; not while a primary is leaving that host.
/// Whether one does.
fn give_up_draining(leader: &mut Leader, node: &NodeId, record: &NodeRecord, wanted: u32) -> bool {
    let leaves = |backup: &Member| leader.is_draining(&backup.host) && !leader.is_being_left(&backup.host);
    let leaving: Vec<Member> = record.backups.iter().filter(|backup| leaves(backup)).cloned().collect();
    if leaving.is_empty() {
        return false;
    }
    let others =
        number(record.backups.iter().filter(|backup| {
            !leader.is_draining(&backup.host) && can_take_over(leader, node, record, backup)
        }));
    let stays = |host: &HostId, seen: &HostView| seen.is_open() && !leader.is_draining(host);
    let no_host_left =
        || leader.view.hosts.iter().all(|(host, seen)| !stays(host, seen) || record.touches(host));
    if others < wanted && !(others > 0 && no_host_left()) {
        return false;
    }
    for backup in &leaving {
        leader.change(node, format!("backup leaves draining {}", backup.host), |record| {
            record.backups.retain(|other| other != backup);
        });
    }
    true
}

/// The last one goes first, and one that could not take over before one that could. Whether one goes.
fn drop_surplus(leader: &mut Leader, node: &NodeId, record: &NodeRecord, wanted: u32) -> bool {
    if lasting(leader, record) <= wanted {
        return false;
    }
    let backups = || record.backups.iter().enumerate().rev();
    let unready = backups().find(|(_, backup)| !can_take_over(leader, node, record, backup));
    let Some((index, last)) = unready.or_else(|| backups().next()) else { return false };
    leader.change(node, format!("{wanted} backups are wanted, {} gives its up", last.host), |record| {
        record.backups.remove(index);
    });
    true
}

/// Once every backup has a checkpoint that is about as new as there is, nobody needs what others keep. Not over a dead primary:
/// what its host said last is what its successor is decided by, and the host of any of them may be lost by now.
fn let_go(leader: &mut Leader, node: &NodeId, record: &NodeRecord) {
    let lives = |primary: &Member| leader.view.liveness(record, primary) == Liveness::Alive;
    if !record.primary.as_ref().is_some_and(lives) {
        return;
    }
    let is_whole = |backup: &Member| can_take_over(leader, node, record, backup);
    // Where more are still to be decided about, it is not known yet who every backup is.
    let decided = !leader.batch.suspended.contains(node);
    let needless = decided && !record.backups.is_empty() && record.backups.iter().all(is_whole);
    if needless && !record.keepers.is_empty() {
        leader.change(node, "every backup has a checkpoint of its own", |record| {
            record.keepers.clear();
            forget_damage(record);
        });
    }
}

/// The number of backups wanted; none while the policy has to be asked first.
fn wanted(leader: &mut Leader, node: &NodeId, record: &NodeRecord) -> Option<u32> {
    let question = question(leader, node, record);
    let Some(answer) = ask::backup_count(leader, &question) else {
        leader.batch.suspended.insert(node.clone());
        return None;
    };
    let verdict = judge(&question, &answer);
    if let (Answer::Given(answer), Some(BuiltIn::OutOfBounds)) = (&answer, verdict.built_in) {
        let reason = format!(
            "backup count of {node}: {} primaries and {} backups, where 1 and at most {BACKUPS_MAX} can be had",
            answer.primaries, answer.backups
        );
        leader.batch.refusals.push((Interface::BackupCount, reason));
    }
    leader.batch.judged.backup_counts.push((question, verdict.clone()));
    Some(verdict.backups)
}

/// What an answer comes to. The built-in rule decides where it cannot be had.
pub(super) fn judge(question: &BackupCountQuestion, answer: &Answer<BackupCountAnswer>) -> CountVerdict {
    let (backups, why) = match answer {
        Answer::Given(BackupCountAnswer { primaries: 1, backups, .. }) if *backups <= BACKUPS_MAX => {
            (*backups, None)
        }
        Answer::Given(_) => (built_in(question), Some(BuiltIn::OutOfBounds)),
        Answer::Unavailable => (built_in(question), Some(BuiltIn::NoAnswer)),
    };
    CountVerdict { backups, built_in: why }
}

/// Without a policy: the label `backups` of the terminal, whether it can be had or not; else one, where there is
/// another host.
fn built_in(question: &BackupCountQuestion) -> u32 {
    let label = question.terminal_labels.get("backups").and_then(|text| text.parse().ok());
    label.unwrap_or(u32::from(question.cluster.hosts > 1)).min(BACKUPS_MAX)
}

fn question(leader: &Leader, node: &NodeId, record: &NodeRecord) -> BackupCountQuestion {
    // Only what does not change while the plan itself adds backups: else every step would be a new question.
    BackupCountQuestion {
        node: node.clone(),
        protected: record.spec.protected,
        terminal_labels: record.spec.labels.clone(),
        environment_labels: record.spec.environment_labels.clone(),
        backups: lasting(leader, record),
        deficit: leader.deficits.of(node),
        cluster: ClusterRow {
            hosts: u32::try_from(leader.view.hosts.len()).unwrap_or(u32::MAX),
            hosts_ready: leader.rooms.accepting(),
            failures_last_day: failures_last_day(leader),
            deficit: leader.deficits.all(),
        },
    }
}

/// Failures of primaries within the last day. Each node has at most a few dozen.
fn failures_last_day(leader: &Leader) -> u32 {
    let newest = leader.failures.iter().rev();
    number(newest.take_while(|(at, _)| leader.now.wall.since(*at) < DAY))
}
