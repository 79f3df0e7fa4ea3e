//! Owns which copy of a protected node's state a restore takes, and for how long one that cannot be had is waited for
//! (SAFE-9).
//!
//! ```text
//! the newest can be restored somewhere ──────────────────────────────▶ it is
//! an older one can ── the newest is on a host that is there ─────────▶ NEWER_STATE for the newest, then the older one
//!                 └── the newest is on a host that is lost, or damaged ──────────────────────────▶ the older one
//! none can ── one is on a host that is there, for want of a service
//!         │                                                or of room ─▶ waits for that host
//!         ├── one is on a host whose lease cannot be read ───────────▶ the same
//!         ├── one is on a host that is lost ─────────────────────────▶ STATE_WAIT, then a fresh start
//!         └── all are damaged, or on hosts that nobody knows ────────▶ a fresh start
//! ```
//!
//! An operator's word ends each of these waits at once.
//!
//! Promises: what is waited for, and until when, follows from the node's record and the time alone, so that a new leader goes
//! on with the wait of the one before; a copy that was found damaged is not tried again, and keeps nobody waiting. Must not
//! do: install.
//!
//! Cost: O(copies) look-ups, in a decision about a node whose primary is dead; a write for each
//! [`StateWait::STEP`] of a wait.

use std::fmt;

use super::Leader;
use super::primary::{Found, Step, Successor};
use crate::bounds::{NEWER_STATE, STATE_WAIT};
use crate::death::{CooldownCause, Death};
use crate::model::ids::{HostId, NodeId};
use crate::model::records::{CheckpointRecord, Member, NodeRecord, Origin, StateWait};
use crate::model::units::{MiB, UnixMillis};
use crate::service::Service;

/// Why a copy cannot be restored on the host that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hindrance {
    Lost,
    NotReported,
    Unable(Service),
    NoRoom {
        free: MiB,
        needed: MiB,
    },
    /// Whether its host is there cannot be told.
    Unread,
}

impl Hindrance {
    /// Whether its host is there as far as can be told, so that the state is not given up without an operator's word.
    fn is_there(self) -> bool {
        match self {
            Self::NotReported | Self::Unable(_) | Self::NoRoom { .. } | Self::Unread => true,
            Self::Lost => false,
        }
    }

    /// Whether it says of itself when it can.
    fn passes(self) -> bool {
        match self {
            Self::NotReported | Self::Unable(_) => true,
            Self::Lost | Self::NoRoom { .. } | Self::Unread => false,
        }
    }
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost => f.write_str("which is lost"),
            Self::NotReported => f.write_str("which has not reported yet"),
            Self::Unable(service) => write!(f, "whose {service} does not answer"),
            Self::NoRoom { free, needed } => write!(f, "which has {free} free of {needed} needed"),
            Self::Unread => f.write_str("whose lease cannot be read by this version"),
        }
    }
}

/// What a node waits for.
pub(super) struct Wait {
    /// In words, with what to do.
    pub(super) why: String,
    kind: Kind,
}

/// What is waited for, and so how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A newer copy than one that can be had: [`NEWER_STATE`].
    Newer,
    /// A host that is there: without end.
    There,
    /// A host that is lost: [`STATE_WAIT`].
    Lost,
}

/// A copy that is undamaged as far as anybody knows, and cannot be restored at present.
struct Hindered<'a> {
    copy: &'a CheckpointRecord,
    host: &'a HostId,
    why: Hindrance,
}

/// The newest checkpoint that can be restored (SAFE-3), on a backup's host if one has it, else on any that has it and room.
/// A host that is draining, or that a live migration did not reach a moment ago, comes last, but before an older checkpoint;
/// one where a member died so that a restore may fail too comes after the older ones, before the state is given up.
pub(super) fn from_checkpoint(
    leader: &Leader,
    node: &NodeId,
    record: &NodeRecord,
    death: Option<&Found>,
) -> Step {
    let Some(known) = leader.view.checkpoints.get(node) else { return Step::Nothing };
    let copies = || known.value.copies().filter(|copy| copy.valid >= record.incarnation);
    let waits = Waits { leader, node, wait: record.state_wait, found: death.map(|death| death.found) };
    let mut hindered = Vec::new();
    for copy in copies() {
        if let Some(host) = usable(leader, node, record, copy, Tries::Fresh) {
            let newer = hindered.iter().any(|one: &Hindered<'_>| one.why.passes());
            return if newer && waits.has_time_for_newer() {
                Step::Wait(Wait { why: waits.until(waits.newer_ends(), &hindered), kind: Kind::Newer })
            } else {
                restored(leader, record, &known.value, copy, host)
            };
        }
        hindered.extend(hindrances(leader, node, record, copy));
    }
    let again = copies().find_map(|copy| Some((copy, usable(leader, node, record, copy, Tries::Again)?)));
    if let Some((copy, host)) = again {
        return restored(leader, record, &known.value, copy, host);
    }
    if waits.is_given_up() || hindered.is_empty() {
        Step::Nothing
    } else if hindered.iter().any(|one| one.why.is_there()) {
        Step::Wait(Wait { why: waits.without_end(&hindered), kind: Kind::There })
    } else if waits.has_time() {
        Step::Wait(Wait { why: waits.until(waits.ends(), &hindered), kind: Kind::Lost })
    } else {
        Step::Nothing
    }
}

/// Whether hosts count where something failed with this node a moment ago.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tries {
    Fresh,
    Again,
}

fn usable<'a>(
    leader: &Leader,
    node: &NodeId,
    record: &'a NodeRecord,
    copy: &'a CheckpointRecord,
    tries: Tries,
) -> Option<&'a HostId> {
    let usable = |host: &&HostId| {
        let able = leader.view.hosts.get(*host).is_some_and(|seen| seen.is_able());
        let unread = leader.view.unread_hosts.contains(*host);
        able && !unread && (record.touches(host) || leader.room(node, host) >= record.spec.memory)
    };
    let failed = |host: &HostId| tries == Tries::Fresh && leader.failed_to_restore(record, host);
    holders(record, copy)
        .filter(|host| !failed(host))
        .filter(usable)
        .min_by_key(|host| (leader.is_draining(host), leader.recently_failed(record, host)))
}

/// The hosts that have an undamaged copy, backups first. One may come twice.
fn holders<'a>(record: &'a NodeRecord, copy: &'a CheckpointRecord) -> impl Iterator<Item = &'a HostId> {
    let backups = record.backups.iter().map(|backup| &backup.host);
    backups
        .filter(|host| copy.hosts.contains(host))
        .chain(&copy.hosts)
        .filter(|host| !is_damaged(record, copy, host))
}

/// Whether a restore of this copy failed on that host for good. In an epoch after the one that it was taken in a member is
/// deployed under the same checkpoint only by a restore.
fn is_damaged(record: &NodeRecord, copy: &CheckpointRecord, host: &HostId) -> bool {
    record.cooldowns.iter().filter(|cooldown| &cooldown.host == host).any(|cooldown| match &cooldown.cause {
        CooldownCause::Died { death: Death::DeployFailed { .. }, epoch } => *epoch > copy.id.epoch,
        CooldownCause::Died { .. } => false,
        CooldownCause::MigrationFailed { .. } | CooldownCause::NoCopies { .. } => false,
    })
}

/// What keeps a copy that is not usable. A host that nobody knows is not waited for.
fn hindrances<'a>(
    leader: &'a Leader,
    node: &'a NodeId,
    record: &'a NodeRecord,
    copy: &'a CheckpointRecord,
) -> impl Iterator<Item = Hindered<'a>> {
    let undamaged = copy.hosts.iter().filter(|host| !is_damaged(record, copy, host));
    undamaged.filter_map(move |host| {
        let unread = leader.view.unread_hosts.contains(host);
        let why = match leader.view.hosts.get(host) {
            Some(seen) => match seen.current_facts() {
                _ if unread => Hindrance::Unread,
                _ if !seen.is_open() => Hindrance::Lost,
                None => Hindrance::NotReported,
                Some(facts) => match facts.unable.first() {
                    Some(service) => Hindrance::Unable(*service),
                    None => Hindrance::NoRoom { free: leader.room(node, host), needed: record.spec.memory },
                },
            },
            None if unread => Hindrance::Unread,
            None => return None,
        };
        Some(Hindered { copy, host, why })
    })
}

/// The other copies stay on record beside the one that is restored: a damaged one gives way to them.
fn restored(
    leader: &Leader,
    record: &NodeRecord,
    known: &CheckpointRecord,
    copy: &CheckpointRecord,
    host: &HostId,
) -> Step {
    let Some(lease) = leader.view.hosts.get(host).map(|seen| seen.lease.value.number) else {
        return Step::Nothing;
    };
    // What is known to be damaged is forgotten.
    let kept = |copy: &CheckpointRecord| {
        let hosts = copy.hosts.iter().filter(|host| !is_damaged(record, copy, host)).cloned().collect();
        CheckpointRecord { valid: record.epoch.next(), hosts, earlier: None, ..copy.clone() }
    };
    let other = known.copies().find(|other| other.id != copy.id && other.valid >= record.incarnation);
    let other = other.map(kept).filter(|other| !other.hosts.is_empty());
    let newer = known.copies().map(|copy| copy.id).find(|id| *id > copy.id);
    let older = newer.map_or_else(String::new, |newer| format!(", older than {newer}, which cannot be had"));
    Step::Found(Box::new(Successor {
        member: Member {
            host: host.clone(),
            lease,
            instance: Some(copy.instance),
            origin: Origin::Restored(copy.id),
        },
        action: format!("checkpoint {} restored on {host}{older}", copy.id),
        checkpoint: Some(CheckpointRecord { earlier: other.map(Box::new), ..kept(copy) }),
    }))
}

/// How long a node has waited, and what is to be said of it.
struct Waits<'a> {
    leader: &'a Leader,
    node: &'a NodeId,
    wait: Option<StateWait>,
    /// When the old primary was found dead.
    found: Option<UnixMillis>,
}

impl Waits<'_> {
    fn is_given_up(&self) -> bool {
        self.wait.is_some_and(|wait| wait.given_up)
    }

    fn has_time(&self) -> bool {
        let waited = self.wait.map(|wait| wait.waited(self.leader.now.wall)).unwrap_or_default();
        !self.is_given_up() && waited < STATE_WAIT
    }

    fn has_time_for_newer(&self) -> bool {
        !self.is_given_up() && self.leader.now.wall < self.newer_ends()
    }

    fn ends(&self) -> UnixMillis {
        self.wait.unwrap_or_else(|| StateWait::started(self.leader.now.wall)).ends(STATE_WAIT)
    }

    fn newer_ends(&self) -> UnixMillis {
        let ends = self.wait.and_then(|wait| wait.newer_ends());
        ends.unwrap_or(self.leader.now.wall + NEWER_STATE)
    }

    fn until(&self, ends: UnixMillis, hindered: &[Hindered<'_>]) -> String {
        self.text(&format!(" until {}", time_of_day(ends)), hindered)
    }

    fn without_end(&self, hindered: &[Hindered<'_>]) -> String {
        self.text("", hindered)
    }

    fn text(&self, until: &str, hindered: &[Hindered<'_>]) -> String {
        let age = |copy: &CheckpointRecord| {
            let age = self.found.map(|found| found.since(copy.taken).as_secs());
            age.map_or_else(String::new, |age| format!(", {age} s old at the failure,"))
        };
        let one = |one: &Hindered<'_>| {
            format!("checkpoint {}{} is on {}, {}", one.copy.id, age(one.copy), one.host, one.why)
        };
        let all: Vec<String> = hindered.iter().map(one).collect();
        let node = self.node;
        format!(
            "waits for its state{until}: {}: mend that, or do without: understudy node start-afresh {node}",
            all.join("; ")
        )
    }
}

/// Such as `07:05:09 UTC`.
fn time_of_day(at: UnixMillis) -> String {
    let seconds = at.0 / 1_000 % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

/// Writes down that a node waits, and how long it has for hosts that are lost: once at first, then a step at a time. A host
/// that is there is waited for without end: the time of that does not count, and what has gone by before is no part of a wait
/// for the next loss, which may be the reboot that mends it. The wait for a newer copy has a time of its own: where a rack
/// has its power back, the host with the older copy may be the first that reports, long after the loss.
pub(super) fn go_on_waiting(leader: &mut Leader, node: &NodeId, record: &NodeRecord, wait: &Wait) {
    let now = leader.now.wall;
    let (reason, next) = match (record.state_wait, wait.kind) {
        (None, kind) => {
            let newer_since = (kind == Kind::Newer).then_some(now);
            (wait.why.clone(), StateWait { newer_since, ..StateWait::started(now) })
        }
        // One that lies ahead was written by another clock.
        (Some(known), Kind::Newer) if known.newer_since.is_none_or(|since| since > now) => {
            (wait.why.clone(), StateWait { newer_since: Some(now), ..known.anew(now) })
        }
        // What waits for a newer copy now and then, for a host that comes and goes, does so once.
        (Some(known), Kind::There)
            if known.waited_ms > 0
                || known.newer_since.is_some_and(|since| since > now)
                || known.newer_ends().is_some_and(|ends| ends <= now) =>
        {
            ("a host with its state is there again, and is waited for".to_owned(), known.anew(now))
        }
        (Some(known), Kind::Lost) if known.newer_since.is_some() => (wait.why.clone(), known.anew(now)),
        (Some(known), Kind::Lost) if known.waited(now) < STATE_WAIT && known.is_due(now) => {
            let known = known.counted(now);
            (format!("has waited {} s for its state", known.waited(now).as_secs()), known)
        }
        (Some(_), Kind::Newer | Kind::There | Kind::Lost) => return,
    };
    leader.change(node, reason, |record| record.state_wait = Some(next));
}

/// When a node that waits is to be looked at again.
pub(super) fn due(wait: StateWait, now: UnixMillis) -> Option<UnixMillis> {
    let step = wait.at + StateWait::STEP;
    wait.newer_ends().into_iter().chain([wait.ends(STATE_WAIT), step]).filter(|at| *at > now).min()
}
