//! Owns the backups: as many as the policy says, each on a host of its own, and the deficit made good.
//!
//! Promises: a backup never shares a host with the primary or another backup (SAFE-5); a backup on a draining host
//! is given up only once others are enough without it, and replaced once no primary is leaving that host. Must not do:
//! promote.

use super::place::{Choice, rank};
use super::{DAY, Draft, remember};
use crate::death::{Setback, SetbackCause};
use crate::ids::{HostId, NodeId};
use crate::policy::{
    BackupCountAnswer, BackupCountQuestion, BuiltIn, ClusterRow, CountVerdict, Interface, Purpose,
};
use crate::records::{Member, NodeRecord, Origin};
use crate::units::UnixMillis;
use crate::view::{Answer, HostView, Life};

/// More backups than this for one node are taken for a policy's mistake.
const BACKUPS_MAX: u32 = 16;

/// Brings the node's backups to the number that is wanted.
pub(super) fn repair(draft: &mut Draft<'_>, node: &NodeId) {
    drop_dead(draft, node);
    if draft.record(node).primary.is_none() {
        return;
    }
    let Some(wanted) = wanted(draft, node) else { return };
    draft.report.wanted.insert(node.clone(), wanted);
    while lasting(draft, node) < wanted && !waits_for_primaries(draft, node, wanted) {
        if !add(draft, node) {
            break;
        }
    }
    give_up_draining(draft, node, wanted);
    drop_surplus(draft, node, wanted);
    let short = wanted.saturating_sub(whole(draft, node));
    if short > 0 {
        draft.report.lacks.entry(node.clone()).or_default().backups = short;
    }
}

fn count(backups: impl Iterator) -> u32 {
    u32::try_from(backups.count()).unwrap_or(u32::MAX)
}

/// Backups that are not about to leave with their host.
fn lasting(draft: &Draft<'_>, node: &NodeId) -> u32 {
    count(draft.record(node).backups.iter().filter(|backup| !draft.is_draining(&backup.host)))
}

/// Whether all that is wanted is there and what is about to leave can wait for the primaries that leave with it: a
/// replacement that boots, or its copy of the state, takes the processors and the link of the very migration. Measured
/// on emulated guests: 1.5 s a migration alone, 2.8 to 4.6 s beside a replacement.
fn waits_for_primaries(draft: &Draft<'_>, node: &NodeId, wanted: u32) -> bool {
    let backups = &draft.record(node).backups;
    let leaves = |backup: &Member| draft.is_draining(&backup.host) && draft.is_being_left(&backup.host);
    count(backups.iter()) >= wanted && backups.iter().any(leaves)
}

/// Backups that could take over at this moment.
fn whole(draft: &Draft<'_>, node: &NodeId) -> u32 {
    let record = draft.record(node);
    count(record.backups.iter().filter(|backup| can_take_over(draft, node, record, backup)))
}

fn can_take_over(draft: &Draft<'_>, node: &NodeId, record: &NodeRecord, backup: &Member) -> bool {
    match backup.instance {
        Some(_) => draft.view.is_ready(record, backup),
        None => draft.view.checkpoints.get(node).is_some_and(|known| {
            known.value.valid >= record.begun && known.value.hosts.contains(&backup.host)
        }),
    }
}

fn drop_dead(draft: &mut Draft<'_>, node: &NodeId) {
    let record = draft.record(node).clone();
    for backup in &record.backups {
        if let Life::Dead { cause, .. } = draft.view.life(&record, backup) {
            let now = draft.now.wall;
            draft.change(node, format!("backup on {} is dead ({cause})", backup.host), |record| {
                record.backups.retain(|other| other != backup);
                if cause.is_failed_deployment() {
                    let cause = SetbackCause::Died { death: cause.clone(), epoch: record.epoch };
                    remember(record, Setback { host: backup.host.clone(), cause, at: now });
                }
            });
        }
    }
}

fn add(draft: &mut Draft<'_>, node: &NodeId) -> bool {
    let record = draft.record(node).clone();
    let held = record.holds_places(node.role());
    let purpose = if held { Purpose::HeldBackup } else { Purpose::WarmBackup };
    let member = match rank(draft, node, purpose) {
        Choice::Asked => return false,
        Choice::Nowhere(why) => {
            draft.note(node, format!("no host can take another backup: {why}"));
            return false;
        }
        Choice::Ranked(hosts) if held => hosts.first().and_then(|host| {
            let session = draft.view.hosts.get(host)?.session.value.number;
            let member = Member { host: host.clone(), session, instance: None, origin: Origin::Held };
            Some((member, format!("place held on {host}")))
        }),
        Choice::Ranked(hosts) => hosts.first().and_then(|host| {
            let (member, action) = draft.seat_on(node, &record, host)?;
            Some((member, format!("backup: {action}")))
        }),
    };
    let Some((member, reason)) = member else { return false };
    draft.chosen(node, &member.host);
    draft.change(node, reason, |record| record.backups.push(member));
    true
}

/// A backup leaves a draining host once enough others could take over, or once one other could and waiting brings no
/// more, because every host that stays has a member of this node already; not while a primary is leaving that host.
fn give_up_draining(draft: &mut Draft<'_>, node: &NodeId, wanted: u32) {
    let record = draft.record(node).clone();
    let others =
        count(record.backups.iter().filter(|backup| {
            !draft.is_draining(&backup.host) && can_take_over(draft, node, &record, backup)
        }));
    let stays = |host: &HostId, seen: &HostView| seen.is_open() && !draft.is_draining(host);
    let no_host_left = draft.view.hosts.iter().all(|(host, seen)| !stays(host, seen) || record.touches(host));
    if others < wanted && !(others > 0 && no_host_left) {
        return;
    }
    let leaves = |backup: &Member| draft.is_draining(&backup.host) && !draft.is_being_left(&backup.host);
    let leaving: Vec<Member> = record.backups.iter().filter(|backup| leaves(backup)).cloned().collect();
    for backup in &leaving {
        draft.change(node, format!("backup leaves draining {}", backup.host), |record| {
            record.backups.retain(|other| other != backup);
        });
    }
}

/// The last one goes first, and one that could not take over before one that could.
fn drop_surplus(draft: &mut Draft<'_>, node: &NodeId, wanted: u32) {
    while lasting(draft, node) > wanted {
        let record = draft.record(node).clone();
        let backups = || record.backups.iter().enumerate().rev();
        let unready = backups().find(|(_, backup)| !can_take_over(draft, node, &record, backup));
        let Some((index, last)) = unready.or_else(|| backups().next()) else { return };
        draft.change(node, format!("{wanted} backups are wanted, {} gives its up", last.host), |record| {
            record.backups.remove(index);
        });
    }
}

/// The number of backups wanted; none while the policy has to be asked first.
fn wanted(draft: &mut Draft<'_>, node: &NodeId) -> Option<u32> {
    let question = question(draft, node);
    let Some(answer) = draft.view.backup_counts.get(&question) else {
        draft.plan.backup_counts.push(question);
        return None;
    };
    let verdict = judge(&question, answer);
    if let (Answer::Given(answer), Some(BuiltIn::OutOfBounds)) = (answer, verdict.built_in) {
        let reason = format!(
            "backup count of {node}: {} primaries and {} backups, where 1 and at most {BACKUPS_MAX} can be had",
            answer.primaries, answer.backups
        );
        draft.report.refusals.push((Interface::BackupCount, reason));
    }
    draft.report.judged.backup_counts.push((question, verdict.clone()));
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

fn question(draft: &Draft<'_>, node: &NodeId) -> BackupCountQuestion {
    let record = draft.record(node);
    // Only what does not change while the plan itself adds backups: else every step would be a new question.
    BackupCountQuestion {
        node: node.clone(),
        protected: record.spec.protected,
        terminal_labels: record.spec.labels.clone(),
        environment_labels: record.spec.environment_labels.clone(),
        backups: lasting(draft, node),
        deficit: draft.view.deficits.get(node).copied().unwrap_or(0),
        cluster: ClusterRow {
            hosts: u32::try_from(draft.view.hosts.len()).unwrap_or(u32::MAX),
            hosts_ready: count(draft.view.hosts.values().filter(|seen| HostView::accepts_work(seen))),
            failures_last_day: failures_last_day(draft),
            deficit: draft.view.deficits.values().copied().fold(0, u32::saturating_add),
        },
    }
}

fn failures_last_day(draft: &Draft<'_>) -> u32 {
    let recent = |at: &&UnixMillis| draft.now.wall.since(**at) < DAY;
    count(draft.view.nodes.values().flat_map(|node| &node.value.failures).filter(recent))
}
