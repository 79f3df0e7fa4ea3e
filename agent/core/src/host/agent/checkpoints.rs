//! Owns the place of checkpoints in the host's agent: their job and lane, what is heard of them, and what is said of hosts
//! that take none.
//!
//! Promises: the lane of a checkpoint is taken from its being saved until nothing goes on with it. Must not do: decide about
//! one (`host/checkpoints` does).

use std::collections::BTreeMap;

use super::instances::Next;
use super::{Condition, HostAction, HostAgent, HostId, Job, Lane, NodeId, Outcome};
use crate::death::CopyFault;
use crate::host::checkpoints::Over;
use crate::host::input::CopyEvent;
use crate::model::records::{CheckpointId, Protection};

impl HostAgent {
    /// The backups' hosts that take no copies from here, by node: to be reported.
    #[must_use]
    pub fn copy_faults(&self) -> BTreeMap<NodeId, BTreeMap<HostId, CopyFault>> {
        self.checkpoints.faults()
    }

    /// What an earlier agent of this lease reported is read before this one has reported anything.
    pub(super) fn inherit_protection(&mut self) {
        let now = self.now.boottime;
        let reported = self.predecessor().filter(|_| self.standing.is_resumed());
        if let Some(protection) = reported.map(|facts| facts.protection.clone()) {
            self.checkpoints.inherit(&protection, now);
        }
    }

    /// How the state of the primaries here is protected: to be reported.
    #[must_use]
    pub fn protection(&self) -> BTreeMap<NodeId, Protection> {
        self.checkpoints.protection(&self.records.view, &self.settings.bounds, self.now.boottime)
    }

    pub(super) fn start_checkpoint(&mut self, action: HostAction) {
        let HostAction::Checkpoint { node, instance, epoch, revision, to } = &action else { return };
        let id = self.checkpoints.count(node, *epoch, self.now.boottime);
        let decided = (id, *revision);
        let old = self.checkpoints.begin(node, *instance, decided, to.clone(), self.now.boottime);
        self.effects.extend(old);
        let job = Job { sequence: Some(id.sequence), ..self.job(action.clone(), *instance) };
        self.spawn(job);
    }

    pub(super) fn checkpoint_saved(&mut self, job: &Job, outcome: Outcome) {
        let HostAction::Checkpoint { node, epoch, .. } = &job.action else { return };
        let id = CheckpointId { epoch: *epoch, sequence: job.sequence.unwrap_or_default() };
        let saved = match outcome {
            Outcome::Saved(saved) => Some(saved),
            _ => None,
        };
        self.checkpoints.saved(node, id, saved, self.now.boottime);
        self.review_checkpoints();
        self.look_for_what_exited(job.instance);
    }

    pub(super) fn copy_event(&mut self, node: &NodeId, id: CheckpointId, event: CopyEvent) {
        self.checkpoints.hear(node, id, event, self.now.boottime);
        self.review_checkpoints();
    }

    pub(super) fn review_checkpoints(&mut self) {
        let (view, settings) = (&self.records.view, &self.settings);
        let reviewed = self.checkpoints.review(view, &settings.me, &settings.bounds, self.now.boottime);
        self.effects.extend(reviewed.effects);
        for (instance, over) in reviewed.over {
            let next = match over {
                Over::Taken | Over::NotTaken => Next::Free,
                Over::NotSaved | Over::Void | Over::Lacked => Next::Again,
            };
            self.release((instance, Lane::Checkpoint), next);
        }
        self.show_copy_faults();
    }

    fn show_copy_faults(&mut self) {
        let faults = self.checkpoints.faults();
        let faults = faults.iter().flat_map(|(node, hosts)| {
            hosts.iter().map(move |(host, fault)| {
                format!(
                    "{host} takes no checkpoints of {node}, which goes on with its other backups or gets another: {host} \
                     {fault}: see the agent's log there, the room on its disk, and the network between the two"
                )
            })
        });
        let shown: Vec<String> = faults.collect();
        if shown.is_empty() {
            self.clear(Condition::Copies);
        } else {
            self.raise(Condition::Copies, shown.join("\n"));
        }
    }
}
