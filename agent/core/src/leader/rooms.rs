//! Owns what each host has left: room, idle instances, and the row that policies are told of it.
//!
//! Promises: a row says what the records and what is decided say together; what one node gives up is not given to
//! another before that is written, because assignments are written side by side and each must be right by itself. Must
//! not do: choose.
//!
//! Cost: one host's row takes O(its instances and nodes) after a change that concerns it; a choice among N hosts walks
//! N rows of a few words each; a question for N hosts shares the rows that did not change since the last one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::ids::{Epoch, HostId, InstanceId, NodeId, Role};
use crate::policy::{HostRow, HostState, MemberCounts, Rows, Traffic};
use crate::records::{HostFacts, InstanceFact, NodeSpec, Phase};
use crate::units::{MiB, Vcpus};
use crate::view::{HostView, SharedNode, View};

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

/// What all hosts have left, in the order of their names.
#[derive(Debug, Clone, Default)]
pub(super) struct Rooms {
    all: Vec<Room>,
    places: BTreeMap<HostId, usize>,
    rows: BTreeMap<Size, Rows>,
    /// Hosts to be worked out anew, and whether more than what they report has changed.
    stale: BTreeMap<HostId, bool>,
    /// Hosts that are about to be called lost.
    closed: BTreeSet<HostId>,
    accepting: u32,
}

impl Rooms {
    /// All of them.
    pub(super) fn all(&self) -> &[Room] {
        &self.all
    }

    /// One of them.
    pub(super) fn get(&self, host: &HostId) -> Option<&Room> {
        self.all.get(self.place(host)?)
    }

    /// Where a host stands among all.
    pub(super) fn place(&self, host: &HostId) -> Option<usize> {
        self.places.get(host).copied()
    }

    /// Hosts that take new work.
    pub(super) fn accepting(&self) -> u32 {
        self.accepting
    }

    /// Something that concerns a host has changed.
    pub(super) fn touch(&mut self, host: &HostId) {
        self.stale.insert(host.clone(), true);
    }

    /// What a host reports has changed, and nothing that its nodes say of it.
    pub(super) fn touch_facts(&mut self, host: &HostId) {
        self.stale.entry(host.clone()).or_insert(false);
    }

    /// A host takes no new work from now on, or takes it again, whatever the view says.
    pub(super) fn close(&mut self, host: &HostId, closed: bool) {
        let changed = if closed { self.closed.insert(host.clone()) } else { self.closed.remove(host) };
        if changed {
            self.touch(host);
        }
    }

    /// Whether a host is closed.
    pub(super) fn is_closed(&self, host: &HostId) -> bool {
        self.closed.contains(host)
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
    /// `differs` says whether something that concerns a host is decided and not written.
    pub(super) fn refresh(
        &mut self,
        (before, after): (&View, &View),
        differs: impl Fn(&HostId) -> bool,
        interval: Duration,
    ) -> bool {
        let (mut gained, mut new, mut gone) = (false, Vec::new(), BTreeSet::new());
        for (host, nodes_too) in std::mem::take(&mut self.stale) {
            let Some(seen) = after.hosts.get(&host) else {
                gone.insert(host);
                continue;
            };
            let facts = seen.current_facts();
            let known = match self.get(&host).filter(|_| !nodes_too) {
                Some(old) => (old.row.members, Traffic { restores: restores(facts), ..old.row.traffic }),
                None => members_and_traffic(after, &host, facts, interval),
            };
            let mut room = room(&host, seen, (before, after), !differs(&host), known);
            room.accepts &= !self.closed.contains(&host);
            match self.place(&host) {
                Some(at) => gained |= self.replace(at, room),
                None => new.push(room),
            }
        }
        gained |= !new.is_empty();
        self.come_and_go(new, &gone);
        gained
    }

    fn replace(&mut self, at: usize, room: Room) -> bool {
        let old = &self.all[at];
        let more = room.slack > old.slack
            || (room.accepts && !old.accepts)
            || room.vcpus > old.vcpus
            || room.idle.iter().any(|idle| !old.idle.contains(idle));
        let changed = old.row != room.row || old.idle != room.idle || old.memory != room.memory;
        self.accepting = self.accepting + u32::from(room.accepts) - u32::from(old.accepts);
        if changed {
            for (size, rows) in &mut self.rows {
                rows.replace(at, room.row_for(*size, room.memory));
            }
        }
        self.all[at] = room;
        more
    }

    /// All hosts that came and went at once: places are worked out anew for all.
    fn come_and_go(&mut self, new: Vec<Room>, gone: &BTreeSet<HostId>) {
        if new.is_empty() && !gone.iter().any(|host| self.places.contains_key(host)) {
            return;
        }
        self.all.retain(|room| !gone.contains(&room.host));
        self.all.extend(new);
        self.all.sort_by(|one, other| one.host.cmp(&other.host));
        self.accepting =
            u32::try_from(self.all.iter().filter(|room| room.accepts).count()).unwrap_or(u32::MAX);
        self.places = self.all.iter().enumerate().map(|(at, room)| (room.host.clone(), at)).collect();
        self.rows.clear();
    }
}

/// What is taken of a host.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    /// By members, what is promised to them, and whatever else does not give way.
    memory: u64,
    vcpus: u64,
    /// By instances that stand by, or come to, for whoever needs one.
    spare_memory: u64,
    spare_vcpus: u64,
}

fn taken(view: &View, host: &HostId, facts: &HostFacts) -> Taken {
    let mut taken = Taken::default();
    for (&instance, fact) in facts.instances.iter().filter(|(_, fact)| !fact.phase.is_dead()) {
        let (memory, vcpus) = (fact.memory.0, u64::from(fact.vcpus.0));
        if stands_by(fact) && !view.is_claimed(instance) {
            taken.spare_memory += memory;
            taken.spare_vcpus += vcpus;
        } else {
            taken.memory += memory;
            taken.vcpus += vcpus;
        }
    }
    for (_, known) in view.nodes.on_host(host) {
        let spec = &known.value.spec;
        let here = known.value.instance_on(host).and_then(|instance| facts.instances.get(&instance));
        let here = here.filter(|fact| !fact.phase.is_dead());
        taken.memory += spec.memory.0.saturating_sub(here.map_or(0, |fact| fact.memory.0));
        taken.vcpus += u64::from(spec.vcpus.0.saturating_sub(here.map_or(0, |fact| fact.vcpus.0)));
    }
    taken
}

fn stands_by(fact: &InstanceFact) -> bool {
    matches!(fact.phase, Phase::Idle | Phase::Booting) && fact.node.is_none() && fact.epoch == Epoch(0)
}

/// `same` says that nothing is decided that is not written.
fn room(
    host: &HostId,
    seen: &HostView,
    (before, after): (&View, &View),
    same: bool,
    (members, traffic): (MemberCounts, Traffic),
) -> Room {
    let facts = seen.current_facts();
    let state = match facts {
        None if seen.is_open() => HostState::Unknown,
        None => HostState::Fenced,
        Some(_) if seen.intent.drain => HostState::Draining,
        Some(facts) if !facts.complaints.is_empty() => HostState::Degraded,
        Some(_) => HostState::Ready,
    };
    let mut labels = facts.map(|facts| facts.labels.clone()).unwrap_or_default();
    let capacity = facts.map(|facts| facts.capacity).unwrap_or_default();
    let will_be = facts.map(|facts| taken(after, host, facts)).unwrap_or_default();
    let is = if same { will_be } else { facts.map(|facts| taken(before, host, facts)).unwrap_or_default() };
    let total = u64::from(capacity.vcpus.0);
    let free_vcpus = total.saturating_sub(will_be.vcpus + will_be.spare_vcpus);
    let idle = facts.into_iter().flat_map(|facts| &facts.instances).filter(|(instance, fact)| {
        before.withheld.is_empty()
            && fact.phase == Phase::Idle
            && stands_by(fact)
            && !before.is_claimed(**instance)
            && !after.is_claimed(**instance)
    });
    let row = HostRow {
        host: host.clone(),
        state,
        zone: labels.remove("zone").unwrap_or_default(),
        rack: labels.remove("rack").unwrap_or_default(),
        labels,
        total_vcpus: capacity.vcpus,
        free_vcpus: Vcpus(u32::try_from(free_vcpus).unwrap_or(u32::MAX)),
        total_memory: capacity.memory,
        free_memory: capacity.memory.saturating_sub(MiB(will_be.memory + will_be.spare_memory)),
        load_permille: facts.map_or(0, |facts| facts.load_milli / capacity.vcpus.0.max(1)),
        idle: BTreeMap::new(),
        members,
        traffic,
    };
    let most = will_be.memory.max(is.memory);
    Room {
        host: host.clone(),
        vcpus: capacity.vcpus,
        memory: capacity.memory.saturating_sub(MiB(most)),
        slack: i128::from(capacity.memory.0) - i128::from(most),
        accepts: seen.accepts_work(),
        idle: idle.map(|(&instance, fact)| (instance, fact.memory, fact.vcpus)).collect(),
        row: Arc::new(row),
    }
}

fn restores(facts: Option<&HostFacts>) -> u32 {
    let restoring =
        |facts: &HostFacts| facts.instances.values().filter(|fact| fact.phase == Phase::Restoring).count();
    u32::try_from(facts.map_or(0, restoring)).unwrap_or(u32::MAX)
}

/// What the nodes of a host say of it in one walk: how many members of which kind, and what moves.
fn members_and_traffic(
    view: &View,
    host: &HostId,
    facts: Option<&HostFacts>,
    interval: Duration,
) -> (MemberCounts, Traffic) {
    let mut counts = MemberCounts::default();
    let mut traffic = Traffic { restores: restores(facts), ..Traffic::default() };
    for (node, known) in view.nodes.on_host(host) {
        let record = &known.value;
        let is_primary = record.primary.as_ref().is_some_and(|primary| &primary.host == host);
        let backups = record.backups.iter().filter(|backup| &backup.host == host).count();
        let backups = u32::try_from(backups).unwrap_or(u32::MAX);
        let (primaries, others) = match node.role() {
            Role::Display => (&mut counts.display_primaries, &mut counts.display_backups),
            Role::Execution => (&mut counts.execution_primaries, &mut counts.execution_backups),
        };
        *primaries += u32::from(is_primary);
        *others += backups;
        if let Some(migration) = &record.migration {
            traffic.migrations_in += u32::from(&migration.to == host);
            traffic.migrations_out += u32::from(&migration.from == host);
        }
        if record.holds_places(node.role()) {
            add_checkpoints(&mut traffic, view, (node, known), host, interval);
        }
    }
    (counts, traffic)
}

/// Without a history of copies the newest one over one interval is the best figure at hand.
fn add_checkpoints(
    traffic: &mut Traffic,
    view: &View,
    (node, known): (&NodeId, &SharedNode),
    host: &HostId,
    interval: Duration,
) {
    let Some(checkpoint) = view.checkpoints.get(node).map(|checkpoint| &checkpoint.value) else { return };
    let rate = u128::from(checkpoint.bytes / 1024) * 1_000 / interval.as_millis().max(1);
    let rate = u32::try_from(rate).unwrap_or(u32::MAX);
    if checkpoint.hosts.contains(host) {
        traffic.checkpoint_in_kib_s = traffic.checkpoint_in_kib_s.saturating_add(rate);
    }
    if known.value.primary.as_ref().is_some_and(|primary| &primary.host == host) {
        traffic.checkpoint_out_kib_s = traffic.checkpoint_out_kib_s.saturating_add(rate);
    }
}
