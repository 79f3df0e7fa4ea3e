//! Owns what each host has left: room, idle instances, and the row that policies are told of it.
//!
//! Promises: a row says what the records and what is decided say together; what one node gives up is not given to
//! another before that is written, because assignments are written side by side and each must be right by itself. Must
//! not do: choose.
//!
//! Cost: a change of a node takes a look-up of each host that it concerns, and the row of each of which the sums change,
//! whatever else is there; facts take O(the host's instances); a host that comes or goes O(all hosts); a choice among N
//! hosts walks N rows of a few words each; a question for N hosts shares the rows that did not change since the last one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::sums::{Change, Rated, Said, Side, Sums};
use crate::model::ids::{HostId, InstanceId, NodeId};
use crate::model::records::{HostFacts, NodeRecord, NodeSpec, Protection};
use crate::model::units::{MiB, Vcpus};
use crate::model::view::{HostView, View};
use crate::policy::{HostRow, HostState, Rows};

/// The one template that pools are filled from.
pub(super) const TEMPLATE: &str = "default";
/// Sizes of members for which rows are kept ready. Sites have a handful.
const SIZES_MAX: usize = 8;

/// What a member takes.
type Size = (MiB, Vcpus);

/// What one host has left.
#[derive(Debug, Clone)]
pub(super) struct Room {
    pub(super) host: HostId,
    /// Processors that it has in all.
    pub(super) vcpus: Vcpus,
    /// Memory for another member: idle instances give way.
    pub(super) memory: MiB,
    /// The same, below zero where more is promised than there is: to a node that is about to leave it there may be room.
    slack: i128,
    /// Whether it takes new work.
    pub(super) accepts: bool,
    /// Idle instances that nobody has claimed.
    pub(super) idle: Vec<(InstanceId, MiB, Vcpus)>,
    row: Arc<HostRow>,
}

impl Room {
    /// The idle instances that are large enough, in the order of their ids; with only so much memory to give.
    pub(super) fn fitting(&self, spec: &NodeSpec, memory: MiB) -> impl Iterator<Item = InstanceId> {
        let (needs, vcpus) = (spec.memory, spec.vcpus);
        let fits = move |(_, has, cpus): &&(InstanceId, MiB, Vcpus)| {
            *has >= needs && *cpus >= vcpus && *has <= memory
        };
        self.idle.iter().filter(fits).map(|(instance, _, _)| *instance)
    }

    /// The row for a member of this size, with only so much memory to give.
    pub(super) fn row_for(&self, size: Size, most: MiB) -> Arc<HostRow> {
        let fits = |(_, memory, vcpus): &&(InstanceId, MiB, Vcpus)| {
            *memory >= size.0 && *vcpus >= size.1 && *memory <= most
        };
        let idle = u32::try_from(self.idle.iter().filter(fits).count()).unwrap_or(u32::MAX);
        if idle == 0 {
            return Arc::clone(&self.row);
        }
        let idle = BTreeMap::from([(TEMPLATE.to_owned(), idle)]);
        Arc::new(HostRow { idle, ..self.row.as_ref().clone() })
    }
}

/// What the row of a host is worked out from.
#[derive(Debug, Clone)]
struct Known {
    /// The host as it was when more than its silence changed.
    seen: Arc<HostView>,
    sums: Sums,
    /// Its row is to be worked out anew.
    is_stale: bool,
}

/// What all hosts have left, in the order of their names.
#[derive(Debug, Clone, Default)]
pub(super) struct Rooms {
    /// Between two checkpoints of a node.
    interval: Duration,
    all: Vec<Room>,
    /// What they are worked out from, in the same order.
    known: Vec<Known>,
    places: BTreeMap<HostId, usize>,
    rows: BTreeMap<Size, Rows>,
    stale: Vec<usize>,
    /// Hosts that come, and those that go.
    coming: BTreeMap<HostId, Option<Arc<HostView>>>,
    /// Instances that stand by for whoever needs one, and who reports them.
    spares: BTreeMap<InstanceId, Vec<HostId>>,
    /// Hosts that are about to be called lost.
    closed: BTreeSet<HostId>,
    accepting: u32,
}

impl Rooms {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, ..Self::default() }
    }

    /// All of them.
    pub(super) fn all(&self) -> &[Room] {
        &self.all
    }

    /// One of them.
    pub(super) fn get(&self, host: &HostId) -> Option<&Room> {
        self.all.get(self.place(host)?)
    }

    /// What is taken of a host.
    pub(super) fn sums(&self, host: &HostId) -> Option<&Sums> {
        self.known.get(self.place(host)?).map(|known| &known.sums)
    }

    /// Where a host stands among all.
    pub(super) fn place(&self, host: &HostId) -> Option<usize> {
        self.places.get(host).copied()
    }

    /// Hosts that take new work.
    pub(super) fn accepting(&self) -> u32 {
        self.accepting
    }

    /// More of a host has changed than its silence.
    pub(super) fn see(&mut self, host: &HostId, seen: Option<&Arc<HostView>>) {
        match (self.place(host), seen) {
            (Some(at), Some(seen)) => {
                self.coming.remove(host);
                self.known[at].seen = Arc::clone(seen);
                self.touch(at);
            }
            (None, _) | (_, None) => drop(self.coming.insert(host.clone(), seen.cloned())),
        }
    }

    /// Rows are worked out anew for all hosts.
    pub(super) fn touch_all(&mut self) {
        (0..self.all.len()).for_each(|at| self.touch(at));
    }

    fn touch(&mut self, at: usize) {
        if !std::mem::replace(&mut self.known[at].is_stale, true) {
            self.stale.push(at);
        }
    }

    /// A host takes no new work from now on, or takes it again, whatever the view says.
    pub(super) fn close(&mut self, host: &HostId, closed: bool) {
        let changed = if closed { self.closed.insert(host.clone()) } else { self.closed.remove(host) };
        if let Some(at) = self.place(host).filter(|_| changed) {
            self.touch(at);
        }
    }

    /// Whether a host is closed.
    pub(super) fn is_closed(&self, host: &HostId) -> bool {
        self.closed.contains(host)
    }

    /// A node has another record in `view`, which has it already.
    pub(super) fn record(
        &mut self,
        side: Side,
        view: &View,
        node: &NodeId,
        (old, new): (Option<&NodeRecord>, Option<&NodeRecord>),
    ) {
        let rated = |record: Option<&NodeRecord>| self.rated(side, view.protection(node, record?));
        let (was, is) = (rated(old), rated(new));
        for host in hosts(old, new) {
            let Some(at) = self.place(host) else { continue };
            let sums = &mut self.known[at].sums;
            let said = |record: Option<&NodeRecord>, rated| {
                let of = |record| Said::by(node, record, rated, host, sums.facts());
                record.map(of).unwrap_or_default()
            };
            let change = Change { was: said(old, was), is: said(new, is) };
            if sums.exchange(side, &change) {
                self.touch(at);
            }
        }
        if self.spares.is_empty() {
            return;
        }
        for member in [old, new].into_iter().flatten().flat_map(NodeRecord::members) {
            if let Some(instance) = member.instance {
                self.claim(side, instance, view.is_claimed(instance));
            }
        }
    }

    fn claim(&mut self, side: Side, instance: InstanceId, claimed: bool) {
        let by = self.spares.get(&instance).into_iter().flatten();
        for at in by.filter_map(|host| self.place(host)).collect::<Vec<usize>>() {
            if self.known[at].sums.claim(side, instance, claimed) {
                self.touch(at);
            }
        }
    }

    /// The host of a node's primary says something else of its protection.
    pub(super) fn protection(
        &mut self,
        (node, record): (&NodeId, &NodeRecord),
        (old, new): (Option<&Protection>, Option<&Protection>),
    ) {
        let (old, new) = (self.rated(Side::Decided, old), self.rated(Side::Decided, new));
        for host in hosts(Some(record), None) {
            let Some(at) = self.place(host) else { continue };
            let sums = &mut self.known[at].sums;
            let said = |rated| Said::by(node, record, rated, host, sums.facts());
            let change = Change { was: said(old), is: said(new) };
            if sums.exchange(Side::Decided, &change) {
                self.touch(at);
            }
        }
    }

    /// Policies are told what is decided.
    fn rated<'a>(&self, side: Side, protection: Option<&'a Protection>) -> Option<Rated<'a>> {
        match side {
            Side::Stored => None,
            Side::Decided => protection.map(|protection| Rated::new(protection, self.interval)),
        }
    }

    /// The rows of all hosts for a member of this size, shared with the questions that hold them.
    pub(super) fn rows(&mut self, size: Size) -> Rows {
        if self.rows.len() >= SIZES_MAX && !self.rows.contains_key(&size) {
            self.rows.clear();
        }
        let all = &self.all;
        self.rows
            .entry(size)
            .or_insert_with(|| all.iter().map(|room| room.row_for(size, room.memory)).collect())
            .clone()
    }

    /// Works out anew what changed. Whether a host has come to have more than before: room, an idle instance, or that it
    /// takes work at all.
    pub(super) fn refresh(&mut self, before: &View, after: &View) -> bool {
        let mut gained = false;
        for at in std::mem::take(&mut self.stale) {
            let known = &mut self.known[at];
            known.is_stale = false;
            let old = &self.all[at];
            if self.coming.contains_key(&old.host) {
                continue;
            }
            let (come, gone) = known.sums.report(&old.host, (before, after), current(&known.seen));
            let closed = self.closed.contains(&old.host);
            let room = room(&old.host, known, closed, !before.quarantined.is_empty(), Some(&old.row));
            for instance in gone {
                self.stands_by_no_more(instance, &room.host);
            }
            for instance in come {
                self.spares.entry(instance).or_default().push(room.host.clone());
            }
            gained |= self.replace(at, room);
        }
        self.come_and_go(before, after) || gained
    }

    fn stands_by_no_more(&mut self, instance: InstanceId, host: &HostId) {
        if let Some(by) = self.spares.get_mut(&instance) {
            by.retain(|other| other != host);
            if by.is_empty() {
                self.spares.remove(&instance);
            }
        }
    }

    fn replace(&mut self, at: usize, room: Room) -> bool {
        let old = &self.all[at];
        let more = room.slack > old.slack
            || (room.accepts && !old.accepts)
            || room.vcpus > old.vcpus
            || room.idle.iter().any(|idle| !old.idle.contains(idle));
        let same_row = Arc::ptr_eq(&old.row, &room.row) || old.row == room.row;
        let changed = !same_row || old.idle != room.idle || old.memory != room.memory;
        self.accepting = self.accepting + u32::from(room.accepts) - u32::from(old.accepts);
        if changed {
            for (size, rows) in &mut self.rows {
                rows.replace(at, room.row_for(*size, room.memory));
            }
        }
        self.all[at] = room;
        more
    }

    /// All hosts that came and went at once: places are worked out anew for all. Whether one came.
    fn come_and_go(&mut self, before: &View, after: &View) -> bool {
        let changes = std::mem::take(&mut self.coming);
        let gone = |host: &HostId| changes.get(host).is_some_and(Option::is_none);
        let came = changes.values().any(Option::is_some);
        if !came && !changes.keys().any(|host| self.places.contains_key(host)) {
            return false;
        }
        let known = std::mem::take(&mut self.known);
        let rooms = std::mem::take(&mut self.all);
        let mut all: Vec<(Room, Known)> = rooms.into_iter().zip(known).collect();
        all.retain(|(room, _)| !gone(&room.host));
        self.spares.retain(|_, by| {
            by.retain(|host| !gone(host));
            !by.is_empty()
        });
        for (host, seen) in &changes {
            let Some(seen) = seen else { continue };
            let mut known = Known { seen: Arc::clone(seen), sums: Sums::default(), is_stale: false };
            for (side, view) in [(Side::Stored, before), (Side::Decided, after)] {
                for (node, record) in view.nodes.on_host(host) {
                    let rated = self.rated(side, view.protection(node, &record.value));
                    let is = Said::by(node, &record.value, rated, host, None);
                    known.sums.exchange(side, &Change { was: Said::default(), is });
                }
            }
            let (come, _) = known.sums.report(host, (before, after), current(seen));
            for instance in come {
                self.spares.entry(instance).or_default().push(host.clone());
            }
            let room = room(host, &known, self.closed.contains(host), !before.quarantined.is_empty(), None);
            all.push((room, known));
        }
        all.sort_by(|(one, _), (other, _)| one.host.cmp(&other.host));
        (self.all, self.known) = all.into_iter().unzip();
        self.accepting =
            u32::try_from(self.all.iter().filter(|room| room.accepts).count()).unwrap_or(u32::MAX);
        self.places = self.all.iter().enumerate().map(|(at, room)| (room.host.clone(), at)).collect();
        self.rows.clear();
        came
    }
}

/// The hosts that two records of a node concern, each once.
fn hosts<'a>(old: Option<&'a NodeRecord>, new: Option<&'a NodeRecord>) -> Vec<&'a HostId> {
    let mut all: Vec<&HostId> = Vec::with_capacity(8);
    for record in [old, new].into_iter().flatten() {
        let coming = record.migration.iter().map(|migration| &migration.to);
        for host in record.members().map(|member| &member.host).chain(coming) {
            if !all.contains(&host) {
                all.push(host);
            }
        }
    }
    all
}

/// What a host reports in its open lease.
fn current(seen: &HostView) -> Option<&Arc<HostFacts>> {
    seen.facts.as_ref().filter(|_| seen.current_facts().is_some())
}

fn room(
    host: &HostId,
    known: &Known,
    is_closed: bool,
    has_quarantined: bool,
    old: Option<&Arc<HostRow>>,
) -> Room {
    let Known { seen, sums, .. } = known;
    let capacity = sums.facts().map(|facts| facts.capacity).unwrap_or_default();
    // Of a host that reports nothing it is not known what is taken.
    let taken = |side| if sums.facts().is_some() { sums.taken(side).memory } else { 0 };
    let most = taken(Side::Stored).max(taken(Side::Decided));
    let idle = if has_quarantined { Vec::new() } else { sums.unclaimed().collect() };
    Room {
        host: host.clone(),
        vcpus: capacity.vcpus,
        memory: capacity.memory.saturating_sub(MiB(most)),
        slack: i128::from(capacity.memory.0) - i128::from(most),
        accepts: seen.accepts_work() && !is_closed,
        idle,
        row: row(host, seen, sums, old),
    }
}

/// The row of a host: the old one where it says the same.
fn row(host: &HostId, seen: &HostView, sums: &Sums, old: Option<&Arc<HostRow>>) -> Arc<HostRow> {
    let facts = sums.facts();
    let state = match facts {
        None if seen.is_open() => HostState::Unknown,
        None => HostState::Fenced,
        Some(_) if seen.intent.drain => HostState::Draining,
        Some(facts) if !facts.conditions.is_empty() => HostState::Degraded,
        Some(_) => HostState::Ready,
    };
    let capacity = facts.map(|facts| facts.capacity).unwrap_or_default();
    let mut taken = sums.taken(Side::Decided);
    taken.add(sums.spared(Side::Decided));
    let free_vcpus = u64::from(capacity.vcpus.0).saturating_sub(taken.vcpus);
    let mut labels = facts.map(|facts| facts.labels.clone()).unwrap_or_default();
    let row = HostRow {
        host: host.clone(),
        state,
        zone: labels.remove("zone").unwrap_or_default(),
        rack: labels.remove("rack").unwrap_or_default(),
        labels,
        total_vcpus: capacity.vcpus,
        free_vcpus: Vcpus(u32::try_from(free_vcpus).unwrap_or(u32::MAX)),
        total_memory: capacity.memory,
        free_memory: capacity.memory.saturating_sub(MiB(taken.memory)),
        load_permille: facts.map_or(0, |facts| facts.load_milli / capacity.vcpus.0.max(1)),
        idle: BTreeMap::new(),
        members: sums.members(),
        traffic: sums.traffic(),
    };
    old.filter(|old| ***old == row).map_or_else(|| Arc::new(row), Arc::clone)
}
