//! Owns one checkpoint from its being saved until all copies of it have ended.
//!
//! Promises: a copy ends by its own word, by the bounds, or because nothing can come of it. Must not do: remember anything of
//! a host beyond this checkpoint.

use std::time::Duration;

use super::Destination;
use crate::bounds::{Bounds, COPY_LATE, COPY_RATE, COPY_STALL};
use crate::death::CopyFault;
use crate::host::input::{CopyEvent, Effect, Saved};
use crate::model::ids::{HostId, InstanceId, NodeId};
use crate::model::records::CheckpointId;
use crate::model::units::Boottime;
use crate::model::view::View;

/// How a checkpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) enum Over {
    /// Some host has it.
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
    Durable,
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
    reported: bool,
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
            CopyEvent::Durable(host) => self.ends(&host, State::Durable),
            CopyEvent::Failed { host, fault } => self.ends(&host, State::Failed(fault)),
            CopyEvent::Unreadable { host, .. } => self.ends(&host, State::Gone),
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
            State::Durable => Some((to, None)),
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
        self.tell(node, effects);
        self.give_up(node, view, bounds, now, effects);
        if self.is_going() {
            return None;
        }
        effects.push(discard);
        Some(match self.some_has_it() {
            true => Over::Taken,
            false if self.lacking().next().is_some() => Over::Lacked,
            false => Over::NotTaken,
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
            (State::Accepts { .. }, None) => [None; 2],
            (State::Durable | State::Failed(_) | State::Lacks | State::Gone, _) => [None; 2],
        });
        let late = size.map(|_| self.begun + interval + COPY_LATE);
        copies.flatten().chain(late)
    }

    fn some_has_it(&self) -> bool {
        self.to.iter().any(|(_, state)| matches!(state, State::Durable))
    }

    fn is_going(&self) -> bool {
        self.to.iter().any(|(_, state)| matches!(state, State::Accepts { .. }))
    }

    /// Says once that there is a new checkpoint.
    fn tell(&mut self, node: &NodeId, effects: &mut Vec<Effect>) {
        let Stage::Saved { what, .. } = &self.stage else { return };
        if self.some_has_it() && !std::mem::replace(&mut self.reported, true) {
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
        let late = self.some_has_it() && now.since(self.begun) >= bounds.checkpoint_interval + COPY_LATE;
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
                State::Accepts { .. } | State::Durable | State::Lacks | State::Gone => None,
            };
            let (node, host) = (node.clone(), to.host.clone());
            effects.push(Effect::CancelSend { node, id: self.id, host, fault });
            *state = end;
        }
    }
}

/// How long a copy of this size may take on the whole.
fn longest(bytes: u64) -> Duration {
    COPY_STALL + Duration::from_millis(bytes.saturating_mul(1_000) / COPY_RATE)
}
