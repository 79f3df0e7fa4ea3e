//! Owns one checkpoint from its being saved until all that have it are recorded.
//!
//! Promises: a copy ends by its own word, by the bounds, or because nothing can come of it; each write is over the revisions
//! that are known. Must not do: remember anything of a host beyond this checkpoint.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Destination;
use crate::bounds::{Bounds, COPY_LATE, COPY_RATE, COPY_STALL, COPY_TOGETHER, RETRY};
use crate::death::CopyFault;
use crate::host::input::{CopyEvent, Effect, Recorded, Saved};
use crate::model::ids::{HostId, InstanceId, NodeId};
use crate::model::records::{CheckpointId, CheckpointRecord};
use crate::model::units::Boottime;
use crate::model::view::{SharedNode, View};

/// How a checkpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) enum Over {
    /// Some host has it, and the record says so.
    Taken,
    /// No host took it.
    NotTaken,
    /// No host took it, and one lacks what it adds to: the whole goes there next.
    Lacked,
    /// Nothing could be saved.
    NotSaved,
    /// What it was decided from has changed.
    Void,
}

#[derive(Debug)]
enum State {
    Accepts {
        begun: Boottime,
        bytes: u64,
        /// How many it is to accept; none before that is known.
        of: Option<u64>,
        /// When it accepted something last.
        last: Boottime,
    },
    Durable {
        at: Boottime,
    },
    Failed(CopyFault),
    /// The host does not have what was to be added to.
    Lacks,
    /// Nothing that is to be held against the host.
    Gone,
}

/// One checkpoint under way.
#[derive(Debug)]
pub(super) struct Copying {
    pub(super) instance: InstanceId,
    pub(super) id: CheckpointId,
    /// When the one before it was begun.
    pub(super) checkpoint_before: Option<Boottime>,
    begun: Boottime,
    /// The node's record that it was decided from.
    revision: u64,
    to: Vec<(Destination, State)>,
    stage: Stage,
    recorded: BTreeSet<HostId>,
    writing: Option<Writing>,
    /// What its own last write left in the store.
    written: Option<(u64, CheckpointRecord)>,
    reported: bool,
}

/// A write of the record that was not answered for good.
#[derive(Debug)]
struct Writing {
    record: CheckpointRecord,
    replaces: Option<u64>,
    tries: u32,
    /// When it is asked for again: an earlier try of it may still come, until this one has or cannot any more.
    again: Option<Boottime>,
    /// The store has something else by now, which is waited for: what was not answered may have come after all.
    refused: bool,
}

#[derive(Debug)]
enum Stage {
    Saving {
        /// Nobody waits for it any more.
        void: bool,
    },
    Saved {
        what: Saved,
        sent: bool,
    },
    NotSaved,
    Void,
}

impl Copying {
    pub(super) fn new(
        instance: InstanceId,
        id: CheckpointId,
        revision: u64,
        to: Vec<Destination>,
        (checkpoint_before, begun): (Option<Boottime>, Boottime),
    ) -> Self {
        let accepts = |to| (to, State::Accepts { begun, bytes: 0, of: None, last: begun });
        Self {
            instance,
            id,
            checkpoint_before,
            begun,
            revision,
            to: to.into_iter().map(accepts).collect(),
            stage: Stage::Saving { void: false },
            recorded: BTreeSet::new(),
            writing: None,
            written: None,
            reported: false,
        }
    }

    pub(super) fn saved(&mut self, saved: Option<Saved>, now: Boottime) {
        self.stage = match (&self.stage, saved) {
            (Stage::Saving { void: false }, Some(what)) => {
                for (_, state) in &mut self.to {
                    *state = State::Accepts { begun: now, bytes: 0, of: None, last: now };
                }
                Stage::Saved { what, sent: false }
            }
            (Stage::Saving { void: false }, None) => Stage::NotSaved,
            (Stage::Saving { .. } | Stage::Saved { .. } | Stage::NotSaved | Stage::Void, _) => Stage::Void,
        };
    }

    pub(super) fn hear(&mut self, event: CopyEvent, now: Boottime) {
        match event {
            CopyEvent::Accepted { host, bytes: so_far, of: whole } => {
                if let Some(State::Accepts { bytes, of, last, .. }) = self.state(&host)
                    && so_far > *bytes
                {
                    (*bytes, *of, *last) = (so_far, Some(whole), now);
                }
            }
            CopyEvent::Lacks { host, detail } => {
                let adds = self.to.iter().any(|(to, _)| to.host == host && to.base.is_some());
                // Whoever gets the whole needs nothing.
                let end = if adds { State::Lacks } else { State::Failed(CopyFault::Refused { detail }) };
                self.ends(&host, end);
            }
            CopyEvent::Durable(host) => self.ends(&host, State::Durable { at: now }),
            CopyEvent::Failed { host, fault } => self.ends(&host, State::Failed(fault)),
            CopyEvent::Unreadable { host, .. } => self.ends(&host, State::Gone),
            CopyEvent::Recorded(Recorded::Written(revision)) => {
                self.has_written(revision);
            }
            CopyEvent::Recorded(Recorded::Refused) => {
                if let Some(writing) = &mut self.writing {
                    writing.refused = true;
                }
            }
            CopyEvent::Recorded(Recorded::Unknown(_)) => {
                if let Some(writing) = &mut self.writing {
                    writing.again = Some(now + RETRY.wait(writing.tries));
                    writing.tries = writing.tries.saturating_add(1);
                }
            }
        }
    }

    fn has_written(&mut self, revision: u64) {
        if let Some(Writing { record, .. }) = self.writing.take() {
            self.recorded.extend(record.hosts.iter().cloned());
            self.written = Some((revision, record));
        }
    }

    fn state(&mut self, host: &HostId) -> Option<&mut State> {
        self.to.iter_mut().find(|(to, _)| to.host == *host).map(|(_, state)| state)
    }

    /// A copy that was given up stays given up.
    fn ends(&mut self, host: &HostId, end: State) {
        if let Some(state @ State::Accepts { .. }) = self.state(host) {
            *state = end;
        }
    }

    /// The hosts that do not have what was to be added to.
    pub(super) fn lacking(&self) -> impl Iterator<Item = &HostId> {
        self.to.iter().filter(|(_, state)| matches!(state, State::Lacks)).map(|(to, _)| &to.host)
    }

    /// How each copy ended, as far as that says something of its host: none is well.
    pub(super) fn ends_of_copies(&self) -> impl Iterator<Item = (&Destination, Option<&CopyFault>)> {
        self.to.iter().filter_map(|(to, state)| match state {
            State::Durable { .. } => Some((to, None)),
            State::Failed(fault) => Some((to, Some(fault))),
            State::Accepts { .. } | State::Lacks | State::Gone => None,
        })
    }

    /// Decides what follows by now; how it ended, if it has.
    pub(super) fn step(
        &mut self,
        node: &NodeId,
        view: &View,
        bounds: &Bounds,
        now: Boottime,
        effects: &mut Vec<Effect>,
    ) -> Option<Over> {
        let discard = Effect::Discard { node: node.clone(), id: self.id };
        let stands = view.nodes.get(node).is_some_and(|known| known.revision == self.revision);
        match &mut self.stage {
            Stage::Saving { void } => {
                // The guest is being saved: the next one waits for that.
                if !stands && !std::mem::replace(void, true) {
                    effects.push(discard);
                }
                return None;
            }
            Stage::NotSaved => {
                effects.push(discard);
                return Some(Over::NotSaved);
            }
            Stage::Saved { sent, .. } if stands => {
                if !std::mem::replace(sent, true) {
                    self.send(node, effects);
                }
            }
            Stage::Saved { .. } | Stage::Void => {
                effects.push(discard);
                return Some(Over::Void);
            }
        }
        self.settle_write(node, view, now, effects);
        self.tell(node, effects);
        self.give_up(node, view, bounds, now, effects);
        self.record(node, view, now, effects);
        if matches!(self.stage, Stage::Void) {
            effects.push(discard);
            return Some(Over::Void);
        }
        if self.is_going() || self.writing.is_some() {
            return None;
        }
        effects.push(discard);
        Some(match self.recorded.is_empty() {
            false => Over::Taken,
            true if self.lacking().next().is_some() => Over::Lacked,
            true => Over::NotTaken,
        })
    }

    /// When time alone may change something.
    pub(super) fn due(&self, interval: Duration) -> impl Iterator<Item = Boottime> {
        let size = match &self.stage {
            Stage::Saved { what, .. } => Some(what.bytes),
            Stage::Saving { .. } | Stage::NotSaved | Stage::Void => None,
        };
        let copies = self.to.iter().flat_map(move |(_, state)| match (state, size) {
            (State::Accepts { begun, last, .. }, Some(bytes)) => {
                [Some(*last + COPY_STALL), Some(*begun + longest(bytes))]
            }
            (State::Durable { at }, Some(_)) => [Some(*at + COPY_TOGETHER), None],
            (
                State::Accepts { .. } | State::Durable { .. } | State::Failed(_) | State::Lacks | State::Gone,
                _,
            ) => [None; 2],
        });
        let late = size.map(|_| self.begun + interval + COPY_LATE);
        let again = self.writing.as_ref().and_then(|writing| writing.again);
        copies.flatten().chain(late).chain(again)
    }

    fn is_going(&self) -> bool {
        self.to.iter().any(|(_, state)| matches!(state, State::Accepts { .. }))
    }

    /// Says once that there is a new checkpoint.
    fn tell(&mut self, node: &NodeId, effects: &mut Vec<Effect>) {
        let Stage::Saved { what, .. } = &self.stage else { return };
        if !self.recorded.is_empty() && !std::mem::replace(&mut self.reported, true) {
            effects.push(Effect::Checkpointed { node: node.clone(), id: self.id, saved: *what });
        }
    }

    fn send(&self, node: &NodeId, effects: &mut Vec<Effect>) {
        let send = |(to, _): &(Destination, State)| Effect::Send {
            node: node.clone(),
            id: self.id,
            revision: self.revision,
            to: to.clone(),
        };
        effects.extend(self.to.iter().map(send));
    }

    /// Ends the copies that take too long, or of which nothing can come.
    fn give_up(
        &mut self,
        node: &NodeId,
        view: &View,
        bounds: &Bounds,
        now: Boottime,
        effects: &mut Vec<Effect>,
    ) {
        let Stage::Saved { what, .. } = &self.stage else { return };
        let some_has_it = self.to.iter().any(|(_, state)| matches!(state, State::Durable { .. }));
        let late = some_has_it && now.since(self.begun) >= bounds.checkpoint_interval + COPY_LATE;
        for (to, state) in &mut self.to {
            let State::Accepts { begun, bytes, of, last } = &*state else { continue };
            let whole = of.unwrap_or(what.bytes);
            let lease = view.hosts.get(&to.host).filter(|seen| seen.is_open());
            let there = lease.is_some_and(|seen| seen.lease.value.number == to.lease);
            let end = if !there {
                State::Gone
            } else if *bytes < whole && now.since(*last) >= COPY_STALL {
                State::Failed(CopyFault::Stalled)
            } else if late || now.since(*begun) >= longest(what.bytes) {
                State::Failed(CopyFault::Slow)
            } else {
                continue;
            };
            let fault = match &end {
                State::Failed(fault) => Some(fault.clone()),
                State::Accepts { .. } | State::Durable { .. } | State::Lacks | State::Gone => None,
            };
            let (node, host) = (node.clone(), to.host.clone());
            effects.push(Effect::CancelSend { node, id: self.id, host, fault });
            *state = end;
        }
    }

    /// Goes on with a write that has no good answer. The receivers keep what it names until it is known what the store has.
    fn settle_write(&mut self, node: &NodeId, view: &View, now: Boottime, effects: &mut Vec<Effect>) {
        let Some(writing) = &mut self.writing else { return };
        if writing.refused {
            let known = view.checkpoints.get(node);
            match known.filter(|known| known.value == writing.record).map(|known| known.revision) {
                Some(revision) => self.has_written(revision),
                None if known.map(|known| known.revision) != writing.replaces => self.stage = Stage::Void,
                None => {}
            }
        } else if writing.again.is_some_and(|again| again <= now) {
            writing.again = None;
            effects.push(Effect::Record {
                node: node.clone(),
                revision: self.revision,
                replaces: writing.replaces,
                record: Box::new(writing.record.clone()),
            });
        }
    }

    /// Writes down who has it, once the others have ended or are late.
    fn record(&mut self, node: &NodeId, view: &View, now: Boottime, effects: &mut Vec<Effect>) {
        let Stage::Saved { what, .. } = &self.stage else { return };
        let durable = || {
            self.to.iter().filter_map(|(to, state)| match state {
                State::Durable { at } => Some((&to.host, *at)),
                State::Accepts { .. } | State::Failed(_) | State::Lacks | State::Gone => None,
            })
        };
        let first = durable().filter(|(host, _)| !self.recorded.contains(*host)).map(|(_, at)| at).min();
        let Some(first) = first.filter(|_| self.writing.is_none()) else { return };
        if self.is_going() && now.since(first) < COPY_TOGETHER {
            return;
        }
        let seen = view.checkpoints.get(node).map(|known| (known.revision, &known.value));
        let own = self.written.as_ref().map(|(revision, record)| (*revision, record));
        let before = [seen, own].into_iter().flatten().max_by_key(|(revision, _)| *revision);
        // Somebody counted on from another number: nothing is taken back.
        if before.is_some_and(|(_, record)| {
            record.id > self.id || (record.id == self.id && self.written.is_none())
        }) {
            self.stage = Stage::Void;
            return;
        }
        let hosts: Vec<HostId> = durable().map(|(host, _)| host.clone()).collect();
        let short =
            |known: &SharedNode| known.value.backups.iter().any(|backup| !hosts.contains(&backup.host));
        // Once every backup has the newest nobody needs the one before it.
        let kept = before.filter(|_| view.nodes.get(node).is_some_and(short));
        let record = CheckpointRecord {
            id: self.id,
            valid: self.id.epoch,
            taken: what.taken,
            instance: self.instance,
            pause_ms: what.pause_ms,
            bytes: what.bytes,
            earlier: kept.and_then(|(_, record)| earlier(record, self.id, &hosts)).map(Box::new),
            hosts,
        };
        let replaces = before.map(|(revision, _)| revision);
        effects.push(Effect::Record {
            node: node.clone(),
            revision: self.revision,
            replaces,
            record: Box::new(record.clone()),
        });
        self.writing = Some(Writing { record, replaces, tries: 0, again: None, refused: false });
    }
}

/// How long a copy of this size may take on the whole.
fn longest(bytes: u64) -> Duration {
    COPY_STALL + Duration::from_millis(bytes.saturating_mul(1_000) / COPY_RATE)
}

/// The newest of the copies before `id` that hosts other than these still have.
fn earlier(before: &CheckpointRecord, id: CheckpointId, hosts: &[HostId]) -> Option<CheckpointRecord> {
    let left = |copy: &CheckpointRecord| {
        let hosts: Vec<HostId> = copy.hosts.iter().filter(|host| !hosts.contains(host)).cloned().collect();
        (copy.id != id && !hosts.is_empty()).then(|| CheckpointRecord {
            hosts,
            earlier: None,
            ..copy.clone()
        })
    };
    before.copies().find_map(left)
}
