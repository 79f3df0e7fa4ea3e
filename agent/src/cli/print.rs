//! Owns how answers look on a terminal.

pub(super) mod policies;
pub(super) mod table;

use std::fmt::Write;

use understudy_core::model::records::StateKept;

use crate::api::types::{Checkpoints, Host, MemberStatus, Node, Status, Terminal};
use table::Column::{Left, Right};

fn seconds(ms: u64) -> String {
    format!("{}.{:01} s", ms / 1000, ms % 1000 / 100)
}

pub(super) fn status(status: &Status) -> String {
    let mut text = String::new();
    let leader = status.leader.as_deref().unwrap_or("nobody");
    let lease = status.lease_remaining_ms.map_or_else(|| "none".to_owned(), seconds);
    let _ = writeln!(text, "host {}, leader {leader}, lease for another {lease}", status.host);
    for condition in &status.conditions {
        let _ = writeln!(text, "    {condition}");
    }
    text.push_str(&policies::deciding(&status.policies));
    text.push('\n');
    let mut shown = status.hosts.clone();
    // This host's own stand above, fresher than what it has reported.
    shown.iter_mut().filter(|host| host.id == status.host).for_each(|host| host.conditions.clear());
    text.push_str(&hosts(&shown));
    for shown in &status.terminals {
        text.push('\n');
        text.push_str(&terminal(shown));
    }
    text
}

pub(super) fn hosts(hosts: &[Host]) -> String {
    let columns =
        [Left("HOST"), Left("STATE"), Right("LEASE"), Right("IDLE"), Right("MEMBERS"), Right("FREE MEMORY")];
    let rows = hosts.iter().map(|host| {
        let memory = format!("{}/{} MiB", host.memory_free_mib, host.memory_mib);
        let words = [host.id.to_string(), host.state.to_string(), host.lease.to_string()];
        words.into_iter().chain([host.idle.to_string(), host.members.to_string(), memory]).collect()
    });
    let mut text = String::new();
    let conditions = hosts.iter().map(|host| host.conditions.as_slice());
    for (line, conditions) in
        table::lines(&columns, rows).iter().zip(std::iter::once(&[][..]).chain(conditions))
    {
        let _ = writeln!(text, "{line}");
        for condition in conditions {
            let _ = writeln!(text, "    {condition}");
        }
    }
    text
}

pub(super) fn terminals(terminals: &[Terminal]) -> String {
    let rows = terminals.iter().map(|terminal| {
        let page = terminal.pages.first().map_or("-", String::as_str);
        vec![terminal.id.to_string(), terminal.nodes.len().to_string(), page.to_owned()]
    });
    table::text(&[Left("TERMINAL"), Right("NODES"), Left("PAGE")], rows)
}

pub(super) fn terminal(terminal: &Terminal) -> String {
    let mut text = format!("terminal {}\n", terminal.id);
    for page in &terminal.pages {
        let _ = writeln!(text, "  page {page}");
    }
    for node in &terminal.nodes {
        text.push_str(&node_text(node));
    }
    text
}

pub(super) fn checkpoints(checkpoints: &Checkpoints) -> String {
    let columns = [Left("NODE"), Left("HOST"), Left("CHECKPOINT"), Right("AGE"), Right("PAUSE")];
    let mut rows = Vec::new();
    // What stands below each row.
    let mut notes = vec![Vec::new()];
    for on in &checkpoints.hosts {
        let words = |id: String, age: String, pause: String| {
            vec![checkpoints.node.to_string(), on.host.to_string(), id, age, pause]
        };
        // The newest first.
        rows.extend(
            on.checkpoints
                .iter()
                .rev()
                .map(|one| words(one.id.to_string(), seconds(one.age_ms), format!("{} ms", one.pause_ms))),
        );
        if on.checkpoints.is_empty() {
            rows.push(words("-".to_owned(), "-".to_owned(), "-".to_owned()));
        }
        notes.resize(rows.len() + 1, Vec::new());
        let arriving = on.arriving.then(|| "another one is on its way there".to_owned());
        notes
            .last_mut()
            .into_iter()
            .for_each(|last| last.extend(on.error.iter().cloned().chain(arriving.clone())));
    }
    let mut text = String::new();
    for (line, notes) in table::lines(&columns, rows).iter().zip(notes) {
        let _ = writeln!(text, "{line}");
        for note in notes {
            let _ = writeln!(text, "    {note}");
        }
    }
    text
}

fn member(member: &MemberStatus) -> String {
    format!("{} ({}{})", member.host, member.phase, if member.ready { "" } else { ", not ready" })
}

fn node_text(node: &Node) -> String {
    let primary = node.primary.as_ref().map_or_else(|| "none".to_owned(), member);
    let backups: Vec<String> = node.backups.iter().map(member).collect();
    let backups = if backups.is_empty() { "none".to_owned() } else { backups.join(", ") };
    let mut text = format!("  {} epoch {}: primary {primary}; backups {backups}\n", node.id, node.epoch);
    if let Some(to) = &node.migrating_to {
        let _ = writeln!(text, "    moves to {to}");
    }
    if !node.protection.is_empty() {
        let known: Vec<String> =
            node.protection.iter().map(|(host, known)| format!("{} on {host}", known.as_str())).collect();
        let _ = writeln!(text, "    checkpoints: {}", known.join(", "));
    }
    if !node.keepers.is_empty() {
        let keepers: Vec<&str> = node.keepers.iter().map(|host| host.as_str()).collect();
        let _ = writeln!(text, "    checkpoints may also be on {}", keepers.join(", "));
    }
    if let Some(incident) = &node.incident {
        let kept = match &incident.state {
            StateKept::NotNeeded => "nothing was lost".to_owned(),
            StateKept::Checkpoint { id, age_ms } => {
                format!("state of checkpoint {id}, {} old", seconds(*age_ms))
            }
            StateKept::Lost => "state lost".to_owned(),
        };
        let _ = writeln!(text, "    last failover: {}: {}; {kept}", incident.cause, incident.action);
    }
    for note in &node.notes {
        let _ = writeln!(text, "    {note}");
    }
    text
}
