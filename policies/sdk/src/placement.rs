//! The question where a member of a node goes.
//!
//! Owns the view of rows over the columns of `wit/placement.wit`. Promises that what a row says is what its columns
//! say: each reading is one or two reads of a column. Must not do: prefer a host; that is the policy's.

mod host;
#[cfg(test)]
mod tests;

pub use crate::wit::placement::{
    HostState, Hosts, NodeMember, Part, Pick, Purpose, Request, Role, SiblingMember,
};
pub use host::{Host, Kin};

use crate::best::Best;
use crate::parameters::{self, Parameter, Parameters};

/// The hosts that would do, best first, or a text for the operator that says what cannot be answered.
pub type Answer = Result<Vec<Pick>, String>;

/// What is asked for, and the hosts.
#[derive(Debug)]
pub struct Question<'a> {
    /// What is asked for, as it came.
    pub request: &'a Request,
    /// The hosts, as they came: columns and dictionaries.
    pub hosts: &'a Hosts,
    parameters: &'a [Parameter],
    /// What each row has of the node.
    kin: Vec<Kin>,
    /// How many members each row has of the terminal's other nodes.
    siblings: Vec<u32>,
    /// The template whose idle instances would do.
    idle_template: Option<u32>,
}

/// A label with its place in the dictionary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelRef<'a> {
    /// Index into `hosts.labels`. Equal labels have equal indices.
    pub id: u32,
    /// Left of the equals sign.
    pub key: &'a str,
    /// Right of the equals sign.
    pub value: &'a str,
}

impl<'a> Question<'a> {
    /// The view over what came in. Members on rows that do not exist are passed over.
    #[must_use]
    pub fn new(request: &'a Request, hosts: &'a Hosts, parameters: &'a [Parameter]) -> Self {
        let mut kin = vec![Kin::None; hosts.state.len()];
        for member in &request.members {
            if let Some(kin) = kin.get_mut(member.host as usize) {
                *kin = match member.part {
                    Part::Primary => Kin::Primary,
                    Part::Backup => Kin::Backup.max(*kin),
                };
            }
        }
        let mut siblings = vec![0; hosts.state.len()];
        for member in &request.siblings {
            if let Some(siblings) = siblings.get_mut(member.host as usize) {
                *siblings += 1;
            }
        }
        let idle_template = request.template.filter(|_| takes_idle(request.purpose));
        Self { request, hosts, parameters, kin, siblings, idle_template }
    }

    /// Reads the policy's parameters by `read`, and refuses those that it did not ask for.
    ///
    /// # Errors
    /// A text for the operator, see [`parameters::read`].
    pub fn parameters<T>(
        &self,
        read: impl FnOnce(&mut Parameters<'a>) -> Result<T, String>,
    ) -> Result<T, String> {
        parameters::read(self.parameters, read)
    }

    /// Says that the policy has no parameters.
    ///
    /// # Errors
    /// A text for the operator where the site set one.
    pub fn no_parameters(&self) -> Result<(), String> {
        self.parameters(|_| Ok(()))
    }

    /// Every host, in the order of rows.
    pub fn hosts(&self) -> impl ExactSizeIterator<Item = Host<'_>> {
        (0..self.hosts.state.len()).map(|row| Host::new(self, row))
    }

    /// The host of a row.
    #[must_use]
    pub fn host(&self, row: u32) -> Option<Host<'_>> {
        let row = row as usize;
        (row < self.hosts.state.len()).then(|| Host::new(self, row))
    }

    /// Where the node's members are. For a migration the primary that moves is among them.
    pub fn members(&self) -> impl Iterator<Item = (Host<'_>, Part)> {
        self.request.members.iter().filter_map(|m| Some((self.host(m.host)?, m.part)))
    }

    /// The members that stay where they are while this place is used: for a migration all but the primary.
    pub fn staying_members(&self) -> impl Iterator<Item = (Host<'_>, Part)> {
        let moving = self.request.purpose == Purpose::Migration;
        self.members().filter(move |(_, part)| !moving || *part != Part::Primary)
    }

    /// The terminal's label of that key.
    #[must_use]
    pub fn terminal_label(&self, key: &str) -> Option<LabelRef<'a>> {
        self.find(&self.request.terminal_labels, key)
    }

    /// The environment's label of that key.
    #[must_use]
    pub fn environment_label(&self, key: &str) -> Option<LabelRef<'a>> {
        self.find(&self.request.environment_labels, key)
    }

    /// Whether an idle instance would do: a reserved place runs nothing, a migration brings its own.
    #[must_use]
    pub fn takes_idle(&self) -> bool {
        takes_idle(self.request.purpose)
    }

    /// The template of that name, for [`Host::idle`].
    #[must_use]
    pub fn template(&self, name: &str) -> Option<u32> {
        let at = self.hosts.templates.iter().position(|template| template == name)?;
        u32::try_from(at).ok()
    }

    /// The hosts for which `key` gives something, the lowest first, equals in the order of rows, at most as many as
    /// are wanted.
    pub fn best<K: Ord>(&self, key: impl FnMut(Host<'_>) -> Option<K>) -> Vec<Pick> {
        self.lowest(key).into_iter().map(|(_, host)| Pick { host, reason: None }).collect()
    }

    /// As [`best`](Self::best), with a reason for each pick where reasons are read.
    pub fn best_because<K: Ord>(
        &self,
        key: impl FnMut(Host<'_>) -> Option<K>,
        mut reason: impl FnMut(Host<'_>, &K) -> String,
    ) -> Vec<Pick> {
        let picks = self.lowest(key).into_iter().map(|(key, row)| {
            let reason = self.request.reasons.then(|| reason(Host::new(self, row as usize), &key));
            Pick { host: row, reason }
        });
        picks.collect()
    }

    fn lowest<K: Ord>(&self, mut key: impl FnMut(Host<'_>) -> Option<K>) -> Vec<(K, u32)> {
        let wanted = usize::try_from(self.request.wanted).unwrap_or(usize::MAX);
        let mut best = Best::new(wanted, self.hosts.state.len());
        for (row, host) in (0..).zip(self.hosts()) {
            if let Some(key) = key(host) {
                best.offer((key, row));
            }
        }
        best.finish()
    }

    fn find(&self, ids: &[u32], key: &str) -> Option<LabelRef<'a>> {
        ids.iter().filter_map(|id| label(self.hosts, *id)).find(|label| label.key == key)
    }
}

fn takes_idle(purpose: Purpose) -> bool {
    match purpose {
        Purpose::Primary | Purpose::WarmBackup => true,
        Purpose::HeldBackup | Purpose::Migration => false,
    }
}

fn label(hosts: &Hosts, id: u32) -> Option<LabelRef<'_>> {
    let label = hosts.labels.get(id as usize)?;
    Some(LabelRef { id, key: &label.key, value: &label.value })
}
