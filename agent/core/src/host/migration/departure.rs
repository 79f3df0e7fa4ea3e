//! Owns the source's side of a live migration: what is made of its end.
//!
//! ```text
//! Look ── nothing here ─▶ gone: an earlier try may have moved it
//!   └──── here ─▶ Transfer ── moved ─▶ moved
//!                    ├─────── nobody can say, or it could not begin ─▶ tried again, from the look
//!                    └─────── stayed ─▶ Look ── nothing here ─▶ dead
//!                                        ├───── stands still ─▶ Resume ─▶ stayed
//!                                        └───── runs ─▶ stayed
//! ```
//!
//! Promises: the instance is called moved only by the word of both hosts; a migration is called failed ("stayed"), which has
//! the destination destroy what it has of it (SAFE-7), only once nothing of it is under way and the instance is here: a try that
//! could not even begin says nothing of what became of the one before. What the migration left standing still is let run before that is said. A look that fails ends the try,
//! never the instance. Must not do: look, move, or wait.
//!
//! Cost: nothing but at its own steps.

use std::time::Duration;

use super::{MigrationAnswer, MigrationStep, Next, Presence};
use crate::host::HostAction;
use crate::host::input::{Job, Outcome};

/// One instance on its way to another host.
#[derive(Debug)]
pub(in crate::host) struct Departure {
    job: Job,
    patience: Duration,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Looking,
    Transferring,
    LookingAgain { why: String },
    Resuming { why: String },
}

impl Departure {
    /// Moves what `job` says, within this time. None for another job.
    pub(in crate::host) fn begin(job: Job, patience: Duration) -> Option<(Self, MigrationStep)> {
        let moves = matches!(job.action, HostAction::MigrateOut { .. });
        moves.then_some((Self { job, patience, stage: Stage::Looking }, MigrationStep::Look))
    }

    pub(in crate::host) fn job(&self) -> &Job {
        &self.job
    }

    /// The step that is under way went so. An answer that no step waits for changes nothing.
    pub(in crate::host) fn answered(&mut self, answer: MigrationAnswer) -> Next {
        use MigrationAnswer::{Done, Failed, Moved, Seen, Stayed};
        match (&self.stage, answer) {
            // If it has arrived, the destination's word comes first.
            (Stage::Looking, Seen(Presence::Gone)) => Next::End(Outcome::Gone),
            (Stage::Looking, Seen(_)) => {
                let lasts = self.patience;
                self.take(Stage::Transferring, MigrationStep::Transfer { lasts })
            }
            (Stage::Transferring, Moved) => Next::End(Outcome::Moved),
            (Stage::Transferring, Stayed(why)) => self.take(Stage::LookingAgain { why }, MigrationStep::Look),
            (Stage::LookingAgain { why }, Seen(presence)) => match presence {
                Presence::Gone => {
                    Next::End(Outcome::Died(format!("qemu ended in the middle of a migration: {why}")))
                }
                Presence::Paused | Presence::Held => {
                    let why = why.clone();
                    self.take(Stage::Resuming { why }, MigrationStep::Resume)
                }
                Presence::Process | Presence::Running | Presence::Other => {
                    Next::End(Outcome::Stayed(why.clone()))
                }
            },
            (Stage::Resuming { why }, Done) => Next::End(Outcome::Stayed(why.clone())),
            (Stage::Looking | Stage::Transferring, Failed(failure)) => Next::End(Outcome::Failed(failure)),
            (Stage::LookingAgain { why } | Stage::Resuming { why }, Failed(failure)) => {
                Next::End(Outcome::Failed(format!("{why}; and {failure}")))
            }
            (_, _) => Next::Wait,
        }
    }

    fn take(&mut self, stage: Stage, step: MigrationStep) -> Next {
        self.stage = stage;
        Next::Take(step)
    }
}

#[cfg(test)]
mod tests;
