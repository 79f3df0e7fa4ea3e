//! Owns the translation between rows, which core thinks in, and columns, which cross into a component as one copy.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use understudy_core::ids::{HostId, Role};
use understudy_core::policy::{BackupCountQuestion, HostRow, HostState, Part, PlacementQuestion, Purpose};

use crate::bindings::exports::understudy::policy::{backup_count, placement};
use crate::bindings::understudy::policy::types;

/// Texts that repeat, in the order of their first use.
struct Dictionary<K> {
    ids: HashMap<K, u32>,
    entries: Vec<K>,
}

impl<K: Copy + Eq + Hash> Dictionary<K> {
    fn new() -> Self {
        Self { ids: HashMap::new(), entries: Vec::new() }
    }

    fn id(&mut self, key: K) -> u32 {
        match self.ids.entry(key) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.entries.push(key);
                *new.insert(index(self.entries.len() - 1))
            }
        }
    }
}

fn index(n: usize) -> u32 {
    u32::try_from(n).expect("a cluster has fewer than 2^32 hosts, labels and instances")
}

/// The question in the words of `wit/`.
pub(crate) fn placement(question: &PlacementQuestion) -> (placement::Request, placement::Hosts) {
    let mut labels = Dictionary::new();
    let mut templates = Dictionary::new();
    let mut hosts = hosts(&question.hosts, &mut labels, &mut templates);
    let row = |host: &HostId| question.hosts.iter().position(|h| h.host == *host).map(index);
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
    rows: &'a [HostRow],
    labels: &mut Dictionary<(&'a str, &'a str)>,
    templates: &mut Dictionary<&'a str>,
) -> placement::Hosts {
    let mut zones = Dictionary::new();
    let mut racks = Dictionary::new();
    let (mut label_start, mut label_row) = (vec![0], Vec::new());
    let (mut idle_start, mut idle_template, mut idle_count) = (vec![0], Vec::new(), Vec::new());
    for row in rows {
        label_row.extend(label_ids(&row.labels, labels));
        label_start.push(index(label_row.len()));
        for (template, &count) in &row.idle {
            idle_template.push(templates.id(template));
            idle_count.push(count);
        }
        idle_start.push(index(idle_template.len()));
    }
    placement::Hosts {
        state: column(rows, |r| host_state(r.state)),
        zone: column(rows, |r| zones.id(r.zone.as_str())),
        zones: texts(&zones),
        rack: column(rows, |r| racks.id(r.rack.as_str())),
        racks: texts(&racks),
        label_start,
        label_ids: label_row,
        labels: Vec::new(),
        total_vcpus: column(rows, |r| r.total_vcpus.0),
        free_vcpus: column(rows, |r| r.free_vcpus.0),
        total_memory_mib: column(rows, |r| r.total_memory.0),
        free_memory_mib: column(rows, |r| r.free_memory.0),
        load_permille: column(rows, |r| r.load_permille),
        idle_start,
        idle_template,
        idle_count,
        templates: Vec::new(),
        display_primaries: column(rows, |r| r.members.display_primaries),
        display_backups: column(rows, |r| r.members.display_backups),
        execution_primaries: column(rows, |r| r.members.execution_primaries),
        execution_backups: column(rows, |r| r.members.execution_backups),
        migrations_in: column(rows, |r| r.traffic.migrations_in),
        migrations_out: column(rows, |r| r.traffic.migrations_out),
        restores: column(rows, |r| r.traffic.restores),
        checkpoint_in_kib_s: column(rows, |r| r.traffic.checkpoint_in_kib_s),
        checkpoint_out_kib_s: column(rows, |r| r.traffic.checkpoint_out_kib_s),
    }
}

/// The question in the words of `wit/`.
pub(crate) fn backup_count(question: &BackupCountQuestion) -> (backup_count::Request, backup_count::Cluster) {
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

fn column<'a, T>(rows: &'a [HostRow], cell: impl FnMut(&'a HostRow) -> T) -> Vec<T> {
    rows.iter().map(cell).collect()
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
