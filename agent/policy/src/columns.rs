//! Owns the translation between rows, which core thinks in, and columns, which cross into a component as one copy.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;

use understudy_core::model::ids::{HostId, Role};
use understudy_core::policy::{
    BackupCountQuestion, HostRow, HostState, Part, PlacementQuestion, Purpose, Rows,
};

use crate::bindings::v01::exports::understudy::policy::{backup_count, placement};
use crate::bindings::v01::understudy::policy::types;

pub(crate) mod v02;

/// A question in the words of 0.1, of which later versions make theirs.
pub(crate) type Placement = (placement::Request, placement::Hosts);
/// A question in the words of 0.1, of which later versions make theirs.
pub(crate) type BackupCount = (backup_count::Request, backup_count::Cluster);

/// Rows that are turned at a time: few enough that they stay in the nearest cache while each column takes its part.
/// One column after the other over all rows takes 10 000 rows 20 times from memory, which costs more than any policy.
const ROWS: usize = 32;

/// Texts that repeat, in the order of their first use.
struct Dictionary<K> {
    ids: HashMap<K, u32, BuildHasherDefault<Quick>>,
    entries: Vec<K>,
    /// Neighbours are often alike.
    last: Option<(K, u32)>,
}

impl<K: Copy + Eq + Hash> Dictionary<K> {
    fn new() -> Self {
        Self { ids: HashMap::default(), entries: Vec::new(), last: None }
    }

    fn id(&mut self, key: K) -> u32 {
        if let Some((last, id)) = self.last
            && last == key
        {
            return id;
        }
        let id = match self.ids.entry(key) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.entries.push(key);
                *new.insert(index(self.entries.len() - 1))
            }
        };
        self.last = Some((key, id));
        id
    }
}

/// A hash for short texts that the site's own operators write; nobody gains by making them collide.
#[derive(Default)]
struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            // 2^64 divided by the golden ratio, odd: spreads every bit upwards.
            self.0 = (self.0.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

fn index(n: usize) -> u32 {
    u32::try_from(n).expect("a cluster has fewer than 2^32 hosts, labels and instances")
}

/// The question in the words of `wit/`.
pub(crate) fn placement(question: &PlacementQuestion) -> Placement {
    let mut labels = Dictionary::new();
    let mut templates = Dictionary::new();
    let mut hosts = hosts(&question.hosts, &mut labels, &mut templates);
    let row = |host: &HostId| question.hosts.place_of(host).map(index);
    let terminal_labels = label_ids(&question.terminal_labels, &mut labels);
    let environment_labels = label_ids(&question.environment_labels, &mut labels);
    let request = placement::Request {
        terminal: question.node.terminal().to_string(),
        node: question.node.to_string(),
        role: role(question.node.role()),
        purpose: match question.purpose {
            Purpose::Primary => placement::Purpose::Primary,
            Purpose::WarmBackup => placement::Purpose::WarmBackup,
            Purpose::HeldBackup => placement::Purpose::HeldBackup,
            Purpose::Migration => placement::Purpose::Migration,
        },
        wanted: question.wanted,
        reasons: question.reasons,
        vcpus: question.vcpus.0,
        memory_mib: question.memory.0,
        environment: question.environment.clone(),
        template: question.template.as_deref().map(|t| templates.id(t)),
        terminal_labels,
        environment_labels,
        members: question
            .members
            .iter()
            .filter_map(|m| Some(placement::NodeMember { host: row(&m.host)?, part: part(m.part) }))
            .collect(),
        siblings: question
            .siblings
            .iter()
            .filter_map(|s| {
                Some(placement::SiblingMember { host: row(&s.host)?, role: role(s.role), part: part(s.part) })
            })
            .collect(),
    };
    hosts.labels = labels.entries.iter().map(|&(key, value)| label(key, value)).collect();
    hosts.templates = texts(&templates);
    (request, hosts)
}

/// All columns but the dictionaries that the request shares.
fn hosts<'a>(
    rows: &'a Rows,
    labels: &mut Dictionary<(&'a str, &'a str)>,
    templates: &mut Dictionary<&'a str>,
) -> placement::Hosts {
    let mut zones = Dictionary::new();
    let mut racks = Dictionary::new();
    let mut hosts = with_room_for(rows.len());
    hosts.label_start.push(0);
    hosts.idle_start.push(0);
    for rows in rows.chunks(ROWS) {
        for row in rows {
            hosts.label_ids.extend(row.labels.iter().map(|(key, value)| labels.id((key, value))));
            hosts.label_start.push(index(hosts.label_ids.len()));
            for (template, &count) in &row.idle {
                hosts.idle_template.push(templates.id(template));
                hosts.idle_count.push(count);
            }
            hosts.idle_start.push(index(hosts.idle_template.len()));
        }
        hosts.state.extend(rows.iter().map(|r| host_state(r.state)));
        hosts.zone.extend(rows.iter().map(|r| zones.id(r.zone.as_str())));
        hosts.rack.extend(rows.iter().map(|r| racks.id(r.rack.as_str())));
        numbers(&mut hosts, rows);
    }
    hosts.zones = texts(&zones);
    hosts.racks = texts(&racks);
    hosts
}

/// The columns that are the same numbers in both forms.
fn numbers(hosts: &mut placement::Hosts, rows: &[Arc<HostRow>]) {
    hosts.total_vcpus.extend(rows.iter().map(|r| r.total_vcpus.0));
    hosts.free_vcpus.extend(rows.iter().map(|r| r.free_vcpus.0));
    hosts.total_memory_mib.extend(rows.iter().map(|r| r.total_memory.0));
    hosts.free_memory_mib.extend(rows.iter().map(|r| r.free_memory.0));
    hosts.load_permille.extend(rows.iter().map(|r| r.load_permille));
    hosts.display_primaries.extend(rows.iter().map(|r| r.members.display_primaries));
    hosts.display_backups.extend(rows.iter().map(|r| r.members.display_backups));
    hosts.execution_primaries.extend(rows.iter().map(|r| r.members.execution_primaries));
    hosts.execution_backups.extend(rows.iter().map(|r| r.members.execution_backups));
    hosts.migrations_in.extend(rows.iter().map(|r| r.traffic.migrations_in));
    hosts.migrations_out.extend(rows.iter().map(|r| r.traffic.migrations_out));
    hosts.restores.extend(rows.iter().map(|r| r.traffic.restores));
    hosts.checkpoint_in_kib_s.extend(rows.iter().map(|r| r.traffic.checkpoint_in_kib_s));
    hosts.checkpoint_out_kib_s.extend(rows.iter().map(|r| r.traffic.checkpoint_out_kib_s));
}

fn with_room_for(rows: usize) -> placement::Hosts {
    fn column<T>(rows: usize) -> Vec<T> {
        Vec::with_capacity(rows)
    }
    placement::Hosts {
        state: column(rows),
        zone: column(rows),
        zones: Vec::new(),
        rack: column(rows),
        racks: Vec::new(),
        label_start: column(rows + 1),
        label_ids: column(rows),
        labels: Vec::new(),
        total_vcpus: column(rows),
        free_vcpus: column(rows),
        total_memory_mib: column(rows),
        free_memory_mib: column(rows),
        load_permille: column(rows),
        idle_start: column(rows + 1),
        idle_template: column(rows),
        idle_count: column(rows),
        templates: Vec::new(),
        display_primaries: column(rows),
        display_backups: column(rows),
        execution_primaries: column(rows),
        execution_backups: column(rows),
        migrations_in: column(rows),
        migrations_out: column(rows),
        restores: column(rows),
        checkpoint_in_kib_s: column(rows),
        checkpoint_out_kib_s: column(rows),
    }
}

/// The question in the words of `wit/`.
pub(crate) fn backup_count(question: &BackupCountQuestion) -> BackupCount {
    let labels = |of: &BTreeMap<String, String>| of.iter().map(|(k, v)| label(k, v)).collect();
    let request = backup_count::Request {
        terminal: question.node.terminal().to_string(),
        node: question.node.to_string(),
        role: role(question.node.role()),
        protected: question.protected,
        terminal_labels: labels(&question.terminal_labels),
        environment_labels: labels(&question.environment_labels),
        backups: question.backups,
        deficit: question.deficit,
    };
    let cluster = backup_count::Cluster {
        hosts: question.cluster.hosts,
        hosts_ready: question.cluster.hosts_ready,
        failures_last_day: question.cluster.failures_last_day,
        deficit: question.cluster.deficit,
    };
    (request, cluster)
}

fn texts(dictionary: &Dictionary<&str>) -> Vec<String> {
    dictionary.entries.iter().map(|&text| text.to_owned()).collect()
}

fn label(key: &str, value: &str) -> types::Label {
    types::Label { key: key.to_owned(), value: value.to_owned() }
}

fn label_ids<'a>(
    labels: &'a BTreeMap<String, String>,
    dictionary: &mut Dictionary<(&'a str, &'a str)>,
) -> Vec<u32> {
    labels.iter().map(|(key, value)| dictionary.id((key, value))).collect()
}

fn role(role: Role) -> types::Role {
    match role {
        Role::Display => types::Role::Display,
        Role::Execution => types::Role::Execution,
    }
}

fn part(part: Part) -> types::Part {
    match part {
        Part::Primary => types::Part::Primary,
        Part::Backup => types::Part::Backup,
    }
}

fn host_state(state: HostState) -> placement::HostState {
    match state {
        HostState::Ready => placement::HostState::Ready,
        HostState::Degraded => placement::HostState::Degraded,
        HostState::Draining => placement::HostState::Draining,
        HostState::Fenced => placement::HostState::Fenced,
        HostState::Unknown => placement::HostState::Unknown,
    }
}
