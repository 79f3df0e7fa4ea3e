//! Owns which copy of a protected node's state a restore takes, by what the hosts say that have any, and for how long one that
//! cannot be had is waited for (SAFE-9).
//!
//! ```text
//! the newest can be restored somewhere ──────────────────────────────▶ it is
//! an older one can ── the newest is on a host that is there ─────────▶ NEWER_STATE for the newest, then the older one
//!                 └── the newest is on a host that is lost, or damaged ──────────────────────────▶ the older one
//! none can ── one is on a host that is there, for want of a service
//!         │                                                or of room ─▶ waits for that host
//!         ├── one may be on a host that is there and does not answer ▶ the same
//!         ├── one is arriving somewhere, or its host's disk or lease cannot be read ─────────────▶ the same
//!         ├── one may be on a host that is lost ─────────────────────▶ STATE_WAIT, then a fresh start
//!         └── all are damaged, or on hosts that nobody knows ────────▶ a fresh start
//! ```
//!
//! What a host that has said nothing may have is not known: it counts as the newest where, by the last word of the primary's
//! host, it had got the newest ones and whoever has answered had not, or where there is no such word.
//!
//! An operator's word ends each of these waits at once.
//!
//! Promises: what is waited for, and until when, follows from the node's record and the time alone, so that a new leader goes
//! on with the wait of the one before; a copy that was found damaged is not tried again, and keeps nobody waiting. Must not
//! do: install.
//!
//! Cost: O(copies) look-ups, in a decision about a node whose primary is dead, after one round trip to the hosts that may have
//! any (`copies`); a write for each [`StateWait::STEP`] of a wait.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::Leader;
use super::copies::{Holder, consult};
use super::primary::{Found, Restored, Step, Successor};
use crate::bounds::{NEWER_STATE, STATE_WAIT};
use crate::model::ids::{HostId, NodeId};
use crate::model::records::{Checkpoint, CheckpointId, Member, NodeRecord, Origin, StateWait};
use crate::model::units::{MiB, UnixMillis};
use crate::service::Service;

/// Why a copy cannot be restored on the host that has it, or may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hindrance {
    Lost,
    NotReported,
    Silent,
    Unable(Service),
    NoRoom {
        free: MiB,
        needed: MiB,
    },
    /// It is not there yet.
    Arriving,
    /// Its host cannot read all that it keeps.
    Unsure,
    /// Whether its host is there cannot be told.
    Unread,
}

impl Hindrance {
    /// Whether its host is there as far as can be told, so that the state is not given up without an operator's word.
    fn is_there(self) -> bool {
        match self {
            Self::NotReported
            | Self::Silent
            | Self::Unable(_)
            | Self::NoRoom { .. }
            | Self::Arriving
            | Self::Unsure
            | Self::Unread => true,
            Self::Lost => false,
        }
    }

    /// Whether it says of itself when it can.
    fn passes(self) -> bool {
        match self {
            Self::NotReported | Self::Silent | Self::Unable(_) => true,
            Self::Lost | Self::NoRoom { .. } | Self::Arriving | Self::Unsure | Self::Unread => false,
        }
    }
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost => f.write_str("which is lost"),
            Self::NotReported => f.write_str("which has not reported yet"),
            Self::Silent => f.write_str("whose agent does not say what it has"),
            Self::Unable(service) => write!(f, "whose {service} does not answer"),
            Self::NoRoom { free, needed } => write!(f, "which has {free} free of {needed} needed"),
            Self::Arriving => f.write_str("which has not got all of it yet"),
            Self::Unsure => f.write_str("which cannot read all of what it keeps"),
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

/// A copy that is undamaged as far as anybody knows, and cannot be restored at present; or a host that may have one, and
/// cannot be asked.
struct Hindered<'a> {
    copy: Option<&'a Checkpoint>,
    host: &'a HostId,
    why: Hindrance,
}

/// All that is known of a node's copies, by the words of the hosts that have them.
struct Copies<'a> {
    leader: &'a Leader,
    node: &'a NodeId,
    record: &'a NodeRecord,
    holders: &'a BTreeMap<HostId, Holder>,
    /// The newest first, each with the hosts that have it undamaged as far as anybody knows, backups first.
    all: BTreeMap<Reverse<CheckpointId>, (&'a Checkpoint, Vec<&'a HostId>)>,
}

/// The newest checkpoint that can be restored (SAFE-3), on a backup's host if one has it, else on any that has it and room.
/// A host that is draining, or that a live migration did not reach a moment ago, comes last, but before an older checkpoint;
/// one where a member died so that a restore may fail too comes after the older ones, before the state is given up.
pub(super) fn from_checkpoint(
    leader: &mut Leader,
    node: &NodeId,
    record: &NodeRecord,
    death: Option<&Found>,
) -> Step {
    let Some(holders) = consult(leader, node, record) else { return Step::Asked };
    let copies = Copies::of(leader, node, record, &holders);
    let waits = Waits { leader, node, wait: record.state_wait, found: death.map(|death| death.found) };
    let mut hindered = Vec::new();
    for (copy, hosts) in copies.all.values() {
        if let Some(host) = copies.usable(hosts, Tries::Fresh) {
            hindered.extend(copies.maybe_newer(hosts));
            let newer = hindered.iter().any(|one: &Hindered<'_>| one.why.passes());
            return if newer && waits.has_time_for_newer() {
                Step::Wait(Wait { why: waits.until(waits.newer_ends(), &hindered), kind: Kind::Newer })
            } else {
                copies.restored(copy, host)
            };
        }
        hindered.extend(hosts.iter().map(|host| copies.hindered(copy, host)));
    }
    let again =
        copies.all.values().find_map(|(copy, hosts)| Some((copy, copies.usable(hosts, Tries::Again)?)));
    if let Some((copy, host)) = again {
        return copies.restored(copy, host);
    }
    hindered.extend(copies.unheard());
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

impl<'a> Copies<'a> {
    fn of(
        leader: &'a Leader,
        node: &'a NodeId,
        record: &'a NodeRecord,
        holders: &'a BTreeMap<HostId, Holder>,
    ) -> Self {
        let mut all: BTreeMap<_, (&Checkpoint, Vec<&HostId>)> = BTreeMap::new();
        // Backups come first among those that keep any.
        for host in record.keeping() {
            let Some((host, Holder::Has(kept))) = holders.get_key_value(host) else { continue };
            let of_this_life = kept.complete.iter().filter(|copy| Some(copy.instance) == record.state_of());
            for copy in of_this_life.filter(|copy| !is_damaged(record, copy.id, host)) {
                all.entry(Reverse(copy.id)).or_insert_with(|| (copy, Vec::new())).1.push(host);
            }
        }
        Self { leader, node, record, holders, all }
    }

    fn usable(&self, hosts: &[&'a HostId], tries: Tries) -> Option<&'a HostId> {
        let (leader, node, record) = (self.leader, self.node, self.record);
        let usable = |host: &HostId| {
            let able = leader.view.hosts.get(host).is_some_and(|seen| seen.is_able());
            able && (record.touches(host) || leader.room(node, host) >= record.spec.memory)
        };
        let failed = |host: &HostId| tries == Tries::Fresh && leader.failed_to_restore(record, host);
        hosts
            .iter()
            .copied()
            .filter(|host| !failed(host))
            .filter(|host| usable(host))
            .min_by_key(|host| (leader.is_draining(host), leader.recently_failed(record, host)))
    }

    /// What keeps a copy that is not usable on a host that has it.
    fn hindered(&self, copy: &'a Checkpoint, host: &'a HostId) -> Hindered<'a> {
        let facts = self.leader.view.current_facts(host);
        let why = match facts.and_then(|facts| facts.unable.first()) {
            Some(service) => Hindrance::Unable(*service),
            None => {
                let free = self.leader.room(self.node, host);
                Hindrance::NoRoom { free, needed: self.record.spec.memory }
            }
        };
        Hindered { copy: Some(copy), host, why }
    }

    /// Hosts that have said nothing and may have a copy, or are getting one.
    fn unheard(&self) -> impl Iterator<Item = Hindered<'a>> {
        self.holders.iter().filter_map(|(host, holder)| {
            let why = match holder {
                Holder::Has(kept) if kept.arriving => Hindrance::Arriving,
                Holder::Has(kept) if kept.unsure => Hindrance::Unsure,
                Holder::Has(_) => return None,
                Holder::Silent => Hindrance::Silent,
                Holder::NotReported => Hindrance::NotReported,
                Holder::Lost => Hindrance::Lost,
                Holder::Unread => Hindrance::Unread,
            };
            Some(Hindered { copy: None, host, why })
        })
    }

    /// Those that got the newest ones to the last, by the word of the primary's host, where none of these hosts did. Without such
    /// a word, because that host was restarted too, any that has said nothing may have.
    fn maybe_newer(&self, hosts: &[&HostId]) -> impl Iterator<Item = Hindered<'a>> {
        let known = self.leader.view.protection(self.node, self.record);
        let behind = known.is_none_or(|known| !hosts.iter().any(|host| known.was_fresh_on(host)));
        let unheard = self.unheard().filter(move |one| behind && one.why.passes());
        unheard.filter(move |one| known.is_none_or(|known| known.was_fresh_on(one.host)))
    }

    /// Whoever has another copy keeps it: a damaged one gives way to those.
    fn restored(&self, copy: &Checkpoint, host: &HostId) -> Step {
        let Some(lease) = self.leader.view.hosts.get(host).map(|seen| seen.lease.value.number) else {
            return Step::Nothing;
        };
        let has = |host: &&HostId| self.all.values().any(|(_, hosts)| hosts.contains(host));
        let unheard: BTreeSet<&HostId> = self.unheard().map(|one| one.host).collect();
        let keepers =
            self.holders.keys().filter(|host| has(host) || unheard.contains(host)).cloned().collect();
        let newest = self.all.keys().next().map(|newest| newest.0).filter(|newest| *newest > copy.id);
        let older =
            newest.map_or_else(String::new, |newer| format!(", older than {newer}, which cannot be had"));
        Step::Found(Box::new(Successor {
            member: Member {
                host: host.clone(),
                lease,
                instance: Some(copy.instance),
                origin: Origin::Restored(copy.id),
                place: 0,
            },
            action: format!("checkpoint {} restored on {host}{older}", copy.id),
            restored: Some(Restored { id: copy.id, taken: copy.taken, keepers }),
        }))
    }
}

/// Whether a restore of this copy failed on that host for good.
fn is_damaged(record: &NodeRecord, id: CheckpointId, host: &HostId) -> bool {
    record.cooldowns.iter().any(|one| &one.host == host && one.cause.damaged() == Some(id))
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
        let age = |copy: &Checkpoint| {
            let age = self.found.map(|found| found.since(copy.taken).as_secs());
            age.map_or_else(String::new, |age| format!(", {age} s old at the failure,"))
        };
        let one = |one: &Hindered<'_>| match one.copy {
            Some(copy) => format!("checkpoint {}{} is on {}, {}", copy.id, age(copy), one.host, one.why),
            None => format!("it may be on {}, {}", one.host, one.why),
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
