//! Owns the moment at which the host's agent has something to do although nothing happens.
//!
//! Promises: after a [`Input::Tick`] no later one gives an effect before that moment, unless something else was heard in
//! between; it lies after the last tick, so that nobody ticks in vain twice for the same reason. Must not do: act.
//!
//! Cost: as a tick, one walk over what is under way here and over the nodes of the terminals that have a node here.
//!
//! [`Input::Tick`]: crate::host::Input::Tick

use std::collections::BTreeSet;

use super::{Boottime, Busy, HostAgent};
use crate::bounds::INTAKE;
use crate::host::windows_wait;
use crate::model::ids::TerminalId;

impl HostAgent {
    /// When a tick may have something to do, as things stand after the last one.
    ///
    /// What depends on the wall clock is told to its millisecond, and as long as nobody sets it.
    #[must_use]
    pub fn due(&self) -> Option<Boottime> {
        if self.unsettled {
            return Some(self.ticked);
        }
        let arrivals = self.arrivals.values().filter_map(|arrival| arrival.due(&self.records.view));
        if !self.standing.is_recovered() {
            let refusals = self.refusals_due().filter(|at| self.standing.is_resumed() && *at > self.ticked);
            return arrivals.chain(refusals).min();
        }
        let lanes = self.lanes.values().filter_map(|busy| match busy {
            Busy::Waiting { until, .. } => Some(*until),
            Busy::Running { .. } => None,
        });
        let list = (!self.listing).then_some(self.list_at);
        arrivals
            .chain(lanes)
            .chain(self.loaded.values().map(|loaded| loaded.since + INTAKE))
            .chain(self.looks.values().copied().flatten())
            .chain(list)
            .chain([self.fill_after])
            .chain(self.destroys_due())
            .chain(self.refusals_due())
            .chain(self.checkpoints.due(&self.settings.bounds))
            .chain(self.windows_due())
            .filter(|at| *at > self.ticked)
            .min()
    }

    /// When whoever waits for a terminal's windows need not wait any more.
    fn windows_due(&self) -> impl Iterator<Item = Boottime> {
        let (nodes, now, first) = (&self.records.view.nodes, self.now, self.settings.bounds.windows_first);
        let here = nodes.on_host(&self.settings.me);
        let terminals: BTreeSet<&TerminalId> = here.map(|(node, _)| node.terminal()).collect();
        let all = terminals.into_iter().flat_map(|terminal| nodes.of_terminal(terminal));
        all.filter_map(|(_, known)| known.value.incident.as_ref()).map(move |incident| {
            let until = incident.decided + windows_wait(incident, first);
            now.boottime + until.since(now.wall)
        })
    }
}
