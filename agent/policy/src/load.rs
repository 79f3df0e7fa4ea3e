//! Owns the way from a component to a policy that has answered its trial questions, and how it is asked.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use understudy_core::policy::{
    BackupCountAnswer, BackupCountQuestion, Interface, Pick, PlacementAnswer, PlacementQuestion,
};
use wasmtime::component::{Component, InstancePre};

use crate::bindings::exports::understudy::policy::{backup_count, placement};
use crate::bindings::understudy::policy::types::Parameter;
use crate::columns;
use crate::engine::{Guest, Sandbox, Subject, Usage};
use crate::fault::{FileFault, PolicyFault};
use crate::inspect;
use crate::settings::PolicySettings;
use crate::text::one_line;
use crate::trial;

/// Longest reason for a pick.
const REASON_BYTES_MAX: usize = 256;
/// A trial decides whether a cluster takes a set of policies: a machine that is busy for a moment, with compiling this
/// very policy for example, is not to refuse it.
const TRIALS_MAX: u32 = 3;

/// A component, ready to be asked.
pub(crate) struct Policy {
    subject: Subject,
    answers: BTreeSet<Interface>,
    pre: InstancePre<Guest>,
    placement: Option<placement::GuestIndices>,
    backup_count: Option<backup_count::GuestIndices>,
    parameters: Vec<Parameter>,
}

/// What came of the trial question for one interface.
#[derive(Debug)]
pub(crate) struct Trial {
    pub(crate) interface: Interface,
    pub(crate) outcome: Result<(), PolicyFault>,
    pub(crate) took: Duration,
    pub(crate) usage: Usage,
}

impl Trial {
    pub(crate) fn passed(self) -> Result<(), FileFault> {
        let interface = self.interface;
        self.outcome.map_err(|source| FileFault::Trial { interface, source })
    }
}

impl Policy {
    /// Link a component. It has not been asked anything yet.
    pub(crate) fn link(
        sandbox: &Sandbox,
        name: &str,
        component: &Component,
        settings: &PolicySettings,
    ) -> Result<Self, FileFault> {
        let answers = inspect::faces_of(&sandbox.engine, component)?.answers;
        let link = |e: wasmtime::Error| FileFault::Link { message: format!("{e:#}") };
        let pre = sandbox.linker.instantiate_pre(component).map_err(link)?;
        let has = |interface| answers.contains(&interface);
        let placement = has(Interface::Placement)
            .then(|| placement::GuestIndices::new(&pre))
            .transpose()
            .map_err(link)?;
        let backup_count = has(Interface::BackupCount)
            .then(|| backup_count::GuestIndices::new(&pre))
            .transpose()
            .map_err(link)?;
        let parameter =
            |(key, value): (&String, &String)| Parameter { key: key.clone(), value: value.clone() };
        Ok(Self {
            subject: Subject::new(name, settings.limits),
            answers,
            pre,
            placement,
            backup_count,
            parameters: settings.parameters.iter().map(parameter).collect(),
        })
    }

    pub(crate) fn answers(&self) -> &BTreeSet<Interface> {
        &self.answers
    }

    /// Put the trial questions, one for each interface.
    pub(crate) fn trials(&self, sandbox: &Sandbox) -> Vec<Trial> {
        self.answers().iter().map(|&interface| self.trial(sandbox, interface)).collect()
    }

    /// The first trial that failed.
    pub(crate) fn try_out(&self, sandbox: &Sandbox) -> Result<(), FileFault> {
        self.trials(sandbox).into_iter().try_for_each(Trial::passed)
    }

    fn trial(&self, sandbox: &Sandbox, interface: Interface) -> Trial {
        let mut left = TRIALS_MAX;
        loop {
            left -= 1;
            let start = Instant::now();
            let (outcome, usage) = match interface {
                Interface::Placement => {
                    let (outcome, usage) = self.place(sandbox, &trial::placement());
                    (outcome.map(drop), usage)
                }
                Interface::BackupCount => {
                    let (outcome, usage) = self.count(sandbox, &trial::backup_count());
                    (outcome.map(drop), usage)
                }
            };
            if left == 0 || !matches!(outcome, Err(PolicyFault::Deadline { .. })) {
                return Trial { interface, outcome, took: start.elapsed(), usage };
            }
        }
    }

    pub(crate) fn place(
        &self,
        sandbox: &Sandbox,
        q: &PlacementQuestion,
    ) -> (Result<PlacementAnswer, PolicyFault>, Usage) {
        let Some(indices) = self.placement.as_ref() else {
            let fault = PolicyFault::Unavailable { interface: Interface::Placement };
            return (Err(fault), Usage::default());
        };
        let (request, hosts) = columns::placement(q);
        let (picks, usage) = sandbox.ask(&self.subject, &self.pre, |store, instance| {
            let guest = indices.load(&mut *store, instance)?;
            guest.call_place(&mut *store, &request, &hosts, &self.parameters)
        });
        let wanted = usize::try_from(q.wanted).unwrap_or(usize::MAX);
        let pick = |p: placement::Pick| Pick { index: p.host, reason: reason(p.reason) };
        let answer =
            picks.map(|picks| PlacementAnswer { picks: picks.into_iter().take(wanted).map(pick).collect() });
        (answer, usage)
    }

    pub(crate) fn count(
        &self,
        sandbox: &Sandbox,
        q: &BackupCountQuestion,
    ) -> (Result<BackupCountAnswer, PolicyFault>, Usage) {
        let Some(indices) = self.backup_count.as_ref() else {
            let fault = PolicyFault::Unavailable { interface: Interface::BackupCount };
            return (Err(fault), Usage::default());
        };
        let (request, cluster) = columns::backup_count(q);
        let (counts, usage) = sandbox.ask(&self.subject, &self.pre, |store, instance| {
            let guest = indices.load(&mut *store, instance)?;
            guest.call_count(&mut *store, &request, cluster, &self.parameters)
        });
        let answer = counts.map(|counts| BackupCountAnswer {
            primaries: counts.primaries,
            backups: counts.backups,
            reason: reason(counts.reason),
        });
        (answer, usage)
    }
}

fn reason(text: Option<String>) -> Option<String> {
    text.map(|text| one_line(&text, REASON_BYTES_MAX))
}
