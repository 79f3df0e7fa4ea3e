//! Owns the way from a component to a policy that has answered its trial questions, and how it is asked.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use understudy_core::policy::{
    BackupCountAnswer, BackupCountQuestion, Interface, PlacementAnswer, PlacementQuestion,
};
use wasmtime::component::{Component, InstancePre};

use crate::columns;
use crate::engine::{Guest, Sandbox, Subject, Usage};
use crate::fault::{FileFault, PolicyFault};
use crate::inspect;
use crate::settings::PolicySettings;
use crate::speak::{Answered, Asker, Speaks, speaker};
use crate::trial;

/// A trial decides whether a cluster takes a set of policies: a machine that is busy for a moment, with compiling this
/// very policy for example, is not to refuse it.
const TRIALS_MAX: u32 = 3;

/// A component, ready to be asked.
pub(crate) struct Policy {
    subject: Subject,
    answers: BTreeSet<Interface>,
    pre: InstancePre<Guest>,
    speaker: Box<dyn Speaks>,
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
        let faces = inspect::faces_of(&sandbox.engine, component)?;
        let (track, _) = faces.speaks.ok_or(FileFault::NoInterface)?;
        let link = |e: wasmtime::Error| FileFault::Link { message: format!("{e:#}") };
        let pre = sandbox.linker.instantiate_pre(component).map_err(link)?;
        let has = |interface| faces.answers.contains(&interface);
        let speaker = speaker(track, &pre, has, settings).map_err(link)?;
        Ok(Self { subject: Subject::new(name, settings.limits), answers: faces.answers, pre, speaker })
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
            let outcome = match outcome {
                // It could use the parameters: this one question is not for it.
                Err(PolicyFault::Guest { .. }) if self.speaker.tells_refusals_apart() => Ok(()),
                outcome => outcome,
            };
            if left == 0 || !matches!(outcome, Err(PolicyFault::Deadline { .. } | PolicyFault::Busy { .. })) {
                return Trial { interface, outcome, took: start.elapsed(), usage };
            }
        }
    }

    pub(crate) fn place(&self, sandbox: &Sandbox, question: &PlacementQuestion) -> Answered<PlacementAnswer> {
        self.place_columns(sandbox, &columns::placement(question))
    }

    /// As [`Self::place`], from columns that are there already.
    pub(crate) fn place_columns(
        &self,
        sandbox: &Sandbox,
        columns: &columns::Placement,
    ) -> Answered<PlacementAnswer> {
        let wanted = usize::try_from(columns.0.wanted).unwrap_or(usize::MAX);
        let (picks, usage) = self.speaker.place(&self.asker(sandbox), columns);
        let answer = picks.map(|mut picks| {
            picks.truncate(wanted);
            PlacementAnswer { picks }
        });
        (answer, usage)
    }

    pub(crate) fn count(
        &self,
        sandbox: &Sandbox,
        question: &BackupCountQuestion,
    ) -> Answered<BackupCountAnswer> {
        self.speaker.count(&self.asker(sandbox), question)
    }

    fn asker<'a>(&'a self, sandbox: &'a Sandbox) -> Asker<'a> {
        Asker { sandbox, subject: &self.subject, pre: &self.pre }
    }
}
