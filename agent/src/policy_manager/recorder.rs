//! Owns the thread that asks shadow policies and writes the records of decisions.
//!
//! Promises: whoever hands over a batch never waits; what is too much is dropped and counted. A question that was asked
//! and decided just as the last time is written, and put to shadow policies, once. Must not do: decide.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use understudy_core::leader::{recount, replace};
use understudy_core::model::units::{MiB, UnixMillis};
use understudy_core::policy::{
    BackupCountAnswer, BackupCountQuestion, CountVerdict, Interface, PlacementAnswer, PlacementQuestion,
    PlacementVerdict,
};
use understudy_policy::{Asked, PolicyFault, PolicySet};

use super::ask::said;
use super::dedup::Dedup;
use super::records::{Asking, Decision, Log, Matter, Said, SetLine, Shadow, VERSION};
use crate::metrics::Metrics;

/// Batches that may wait: one for each question, so the loss of several hosts at once.
const AHEAD: usize = 1_024;
/// After a shadow policy overran its deadline none is asked for so long, or the records would not keep up.
const SHADOWS_REST: Duration = Duration::from_secs(30);

/// The questions of one round of planning.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) at: UnixMillis,
    pub(crate) generation: u64,
    pub(crate) term: Option<u64>,
    pub(crate) set: Arc<PolicySet>,
    pub(crate) suspended: BTreeMap<String, String>,
    pub(crate) items: Vec<Item>,
}

/// One question and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Placement { question: PlacementQuestion, said: Said<PlacementAnswer>, made: Option<PlacementVerdict> },
    BackupCount { question: BackupCountQuestion, said: Said<BackupCountAnswer>, made: Option<CountVerdict> },
}

/// The way to the thread.
pub(crate) struct Recorder {
    sender: Option<SyncSender<Batch>>,
    metrics: Arc<Metrics>,
}

impl Recorder {
    /// Starts the thread, which ends with this. Nothing is written where `limit` is 0; shadows are asked all the same.
    pub(crate) fn start(dir: &Path, limit: MiB, metrics: &Arc<Metrics>) -> Self {
        let (sender, receiver) = sync_channel(AHEAD);
        let log = (limit > MiB(0)).then(|| Log::new(dir, limit));
        let work =
            Work { log, metrics: metrics.clone(), dedup: Dedup::new(), rest_until: None, failing: false };
        let spawned =
            std::thread::Builder::new().name("policy-records".to_owned()).spawn(move || work.run(&receiver));
        let sender = match spawned {
            Ok(_) => Some(sender),
            Err(error) => {
                tracing::error!(%error, "decisions are not recorded");
                None
            }
        };
        Self { sender, metrics: metrics.clone() }
    }

    /// Hands over a batch, or drops it.
    pub(crate) fn take(&self, batch: Batch) {
        let taken = self.sender.as_ref().is_some_and(|sender| sender.try_send(batch).is_ok());
        if !taken {
            self.metrics.policies.record_dropped();
        }
    }
}

struct Work {
    log: Option<Log>,
    metrics: Arc<Metrics>,
    dedup: Dedup,
    rest_until: Option<Instant>,
    failing: bool,
}

impl Work {
    fn run(mut self, batches: &Receiver<Batch>) {
        while let Ok(batch) = batches.recv() {
            let Batch { at, generation, term, set, suspended, items } = batch;
            for item in items {
                if !self.dedup.is_new(generation, term, &item) {
                    continue;
                }
                let matter = self.matter(&set, &suspended, item);
                let line = SetLine::of(at, generation, &set);
                self.write(&line, &Decision { v: VERSION, at, generation, term, matter });
            }
        }
    }

    fn matter(&mut self, set: &PolicySet, suspended: &BTreeMap<String, String>, item: Item) -> Matter {
        match item {
            Item::Placement { question, said, made } => {
                let asked = self.shadows(Interface::Placement, set, || set.shadow_placement(&question));
                let differs = |answer: Option<&PlacementAnswer>| {
                    made.as_ref()
                        .is_some_and(|made| replace(&question, &made.eligible, answer).first != made.first)
                };
                let shadows = self.compared(Interface::Placement, suspended, asked, differs);
                Matter::Placement(Asking { question, decided: said, made, shadows })
            }
            Item::BackupCount { question, said, made } => {
                let asked = self.shadows(Interface::BackupCount, set, || set.shadow_backup_count(&question));
                let differs = |answer: Option<&BackupCountAnswer>| {
                    made.as_ref().is_some_and(|made| recount(&question, answer).backups != made.backups)
                };
                let shadows = self.compared(Interface::BackupCount, suspended, asked, differs);
                Matter::BackupCount(Asking { question, decided: said, made, shadows })
            }
        }
    }

    fn shadows<A>(
        &mut self,
        interface: Interface,
        set: &PolicySet,
        put: impl FnOnce() -> Vec<Asked<A>>,
    ) -> Vec<Asked<A>> {
        let rests = self.rest_until.is_some_and(|until| Instant::now() < until);
        if rests || !set.policies().any(|info| info.shadows.contains(&interface)) {
            return Vec::new();
        }
        let asked = put();
        if asked.iter().any(|asked| matches!(asked.outcome, Err(PolicyFault::Deadline { .. }))) {
            tracing::warn!(%interface, "a shadow policy overran its deadline, none is asked for a while");
            self.rest_until = Some(Instant::now() + SHADOWS_REST);
        }
        asked
    }

    fn compared<A>(
        &self,
        interface: Interface,
        suspended: &BTreeMap<String, String>,
        asked: Vec<Asked<A>>,
        differs: impl Fn(Option<&A>) -> bool,
    ) -> Vec<Shadow<A>> {
        let mut shadows = Vec::new();
        for Asked { by, outcome, took } in asked {
            let Some(by) = by.filter(|by| !suspended.contains_key(&by.name)) else { continue };
            let differs = differs(outcome.as_ref().ok());
            self.metrics.policies.shadowed(interface, &by.name, differs);
            shadows.push(Shadow { said: said(Some(&by), outcome, took), differs });
        }
        shadows
    }

    fn write(&mut self, set: &SetLine, decision: &Decision) {
        let Some(log) = &mut self.log else { return };
        match log.append(set, decision) {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.metrics.policies.record_dropped();
                if !self.failing {
                    tracing::warn!(%error, "a decision was not recorded");
                }
                self.failing = true;
            }
        }
    }
}
