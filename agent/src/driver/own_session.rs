//! Owns the execution of what the session's state machine asks for.
//!
//! Promises: the time handed to the machine is read before a request is sent; one request at a time. Must not do:
//! decide when a session is lost.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;
use understudy_core::host::Input;
use understudy_core::records::{HostFacts, SessionRecord};
use understudy_core::session::{SessionAction, SessionEvent};
use understudy_core::units::Boottime;
use understudy_guard::{Client, Deadline};
use understudy_store::{Committed, Condition, Revision, StoreError, Txn};

use super::event::{Event, Opened};
use super::{Driver, Parts, inventory, now};
use crate::exit::chain;
use crate::keys::{self, Key};
use crate::needs;

/// How long the guard may take to answer; it is a local process that does nothing else.
pub(super) const GUARD_PATIENCE: std::time::Duration = std::time::Duration::from_millis(500);

/// What a complaint about the guard goes under.
const GUARD: &str = "guard";

impl Driver {
    pub(super) fn advance_session(&mut self, now: Boottime) {
        let due = self.session.next_tick().is_some_and(|due| now >= due);
        if due && !self.session_busy && self.synced {
            let action = self.session.step(SessionEvent::Tick, now);
            self.perform_session(action);
        }
    }

    fn perform_session(&mut self, action: Option<SessionAction>) {
        let Some(action) = action else { return };
        self.session_busy = true;
        let (parts, sender) = (self.parts.clone(), self.sender.clone());
        match action {
            SessionAction::Open => {
                let passing = self.passing();
                let previous = self.cluster.facts(&parts.config.host).cloned();
                tokio::spawn(async move {
                    let opened = open(&parts, previous, passing).await;
                    let _ = sender.send(Event::Opened(Box::new(opened)));
                });
            }
            SessionAction::Renew => {
                let known = self.cluster.session(&parts.config.host).map(|known| known.value.clone());
                let (revision, number) = (self.session_revision, self.session_number);
                tokio::spawn(async move {
                    let beat = known.map_or(0, |known| known.beat) + 1;
                    let record = SessionRecord { boot: parts.boot.clone(), number, beat, ended: None };
                    let (outcome, revision) = write(&parts, &record, revision).await;
                    let _ = sender.send(Event::Session { outcome, revision });
                });
            }
            SessionAction::Confirm(deadline) => confirm(parts, sender, deadline, self.session_number),
            SessionAction::StopAll => self.stop_all(),
        }
    }

    pub(super) fn session_event(&mut self, outcome: SessionEvent, revision: Option<Revision>) {
        self.session_busy = false;
        if revision.is_some() {
            self.session_revision = revision;
        }
        match outcome {
            SessionEvent::Refused => {
                tracing::error!(
                    session = self.session_number,
                    "the session was ended by the leader: stopping every member"
                );
            }
            SessionEvent::Unavailable => {
                let remaining = self.session.deadline().map(|deadline| deadline.since(now().boottime));
                tracing::warn!(?remaining, "the session could not be renewed");
                let text = needs::store_silent(&self.parts.config);
                self.complain("session", format!("{text}; instances end when the session does"));
            }
            _ => self.content("session"),
        }
        let action = self.session.step(outcome, now().boottime);
        self.perform_session(action);
    }

    pub(super) fn session_opened(&mut self, opened: Opened) {
        self.session_busy = false;
        if let Some((number, revision)) = opened.session {
            tracing::info!(session = number, instances = opened.found.len(), "session opened");
            self.session_number = number;
            self.session_revision = Some(revision);
            self.adopt(opened.found);
        }
        let action = self.session.step(opened.outcome, now().boottime);
        self.perform_session(action);
    }

    /// A guard that is silent is asked ten times a second: it is told once, and once when it is back.
    pub(super) fn guard_answered(&mut self, answer: Result<(), String>) {
        self.session_busy = false;
        let known = self.complaints.contains_key(GUARD);
        let event = match answer {
            Ok(()) => {
                if known {
                    tracing::info!("the guard answers");
                }
                self.content(GUARD);
                SessionEvent::GuardAcknowledged
            }
            Err(error) => {
                if known {
                    tracing::debug!(%error, "the guard still does not acknowledge the deadline");
                } else {
                    tracing::error!(%error, "the guard did not acknowledge the deadline");
                }
                let text = format!(
                    "understudy-guard did not acknowledge the deadline, nothing may start here: see systemctl status \
                     understudy-guard: {error}"
                );
                self.complain(GUARD, text);
                SessionEvent::GuardSilent
            }
        };
        let action = self.session.step(event, now().boottime);
        self.perform_session(action);
    }

    /// Ends every member instance: what this host ran under the lost session may already run elsewhere.
    fn stop_all(&mut self) {
        let members: Vec<_> = self
            .agent
            .local()
            .iter()
            .filter(|(_, local)| local.fact.node.is_some())
            .map(|(&id, _)| id)
            .collect();
        self.inform(Input::LeaseLost);
        self.adopted = false;
        let (parts, sender) = (self.parts.clone(), self.sender.clone());
        tokio::task::spawn_blocking(move || {
            for instance in members {
                if let Err(error) = parts.hypervisor.destroy(instance) {
                    tracing::error!(%instance, error = %chain(&error), "cannot stop a member of a lost session");
                }
            }
            let _ = sender.send(Event::Stopped);
        });
    }
}

/// Adopts the open session of this very boot, else makes sure that nothing of an earlier one runs and opens the next.
async fn open(parts: &Arc<Parts>, previous: Option<HostFacts>, passing: inventory::Passing) -> Opened {
    let failed = |outcome| Opened { outcome, session: None, found: Vec::new() };
    let key = Key::Session(parts.config.host.clone()).to_string();
    let entry = match parts.store.get(&key).await {
        Ok(entry) => entry,
        Err(error) => {
            tracing::warn!(error = %chain(&error), "cannot read this host's session");
            return failed(SessionEvent::Unavailable);
        }
    };
    let known: Option<SessionRecord> = match entry
        .as_ref()
        .map(|entry| keys::decode(&key, &entry.value))
        .transpose()
    {
        Ok(known) => known,
        Err(error) => {
            tracing::error!(error = %chain(&error), "this host's session cannot be read: no session is opened");
            return failed(SessionEvent::Unavailable);
        }
    };
    let same = known.as_ref().filter(|known| known.boot == parts.boot && known.ended.is_none()).cloned();
    let same = match same {
        Some(same) => match stands(parts, same.number).await {
            Ok(stands) => Some(same).filter(|_| stands),
            Err(reason) => {
                tracing::warn!(%reason, "the guard does not say whether this host's session stands");
                return failed(SessionEvent::Unavailable);
            }
        },
        None => None,
    };
    let adopting = same.is_some();
    let (task_parts, task_previous) = (
        parts.clone(),
        previous.filter(|facts| {
            known.as_ref().is_some_and(|known| known.number == facts.session && known.boot == parts.boot)
        }),
    );
    let found = tokio::task::spawn_blocking(move || {
        inventory::take(&task_parts, task_previous.as_ref(), &passing, adopting)
    })
    .await;
    let found = match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::warn!(error = %chain(&error), "cannot take stock of this host's instances");
            return failed(SessionEvent::Unavailable);
        }
        Err(error) => {
            tracing::error!(%error, "taking stock of this host's instances failed");
            return failed(SessionEvent::Unavailable);
        }
    };
    let record = match &same {
        Some(same) => SessionRecord { beat: same.beat + 1, ..same.clone() },
        None => SessionRecord {
            boot: parts.boot.clone(),
            number: known.as_ref().map_or(1, |known| known.number + 1),
            beat: 0,
            ended: None,
        },
    };
    let (outcome, revision) = write(parts, &record, entry.map(|entry| entry.modified)).await;
    Opened { outcome, session: revision.map(|revision| (record.number, revision)), found }
}

/// Whether the guard's deadline for this session is still to come. One that has passed is over, whether or not anybody
/// wrote so: the guard has ended its members.
async fn stands(parts: &Arc<Parts>, session: u64) -> Result<bool, String> {
    let socket = parts.config.guard_socket.clone();
    let asked = tokio::task::spawn_blocking(move || {
        Client::connect(&socket, GUARD_PATIENCE).and_then(|mut guard| guard.hello())
    });
    let status = asked.await.map_err(|error| error.to_string())?.map_err(|error| chain(&error))?;
    Ok(status
        .deadline
        .is_some_and(|deadline| deadline.session == session && status.now_ns < deadline.boottime_ns))
}

/// Writes the session by compare-and-swap.
async fn write(
    parts: &Parts,
    record: &SessionRecord,
    revision: Option<Revision>,
) -> (SessionEvent, Option<Revision>) {
    let key = Key::Session(parts.config.host.clone()).to_string();
    let condition = match revision {
        Some(revision) => Condition::Unchanged(key.clone(), revision),
        None => Condition::Absent(key.clone()),
    };
    let txn = Txn::new().when(condition).put(&key, keys::encode(record));
    match parts.store.commit(&txn).await {
        Ok(Committed::Applied { revision }) => (SessionEvent::Written, Some(revision)),
        Ok(Committed::Refused { .. }) => look_again(parts, &key, record).await,
        Err(error @ StoreError::Ambiguous { .. }) => {
            tracing::debug!(error = %chain(&error), "the answer to a renewal was lost");
            match look_again(parts, &key, record).await {
                // Not there yet is not refused: the next renewal will tell.
                (SessionEvent::Refused, _) => (SessionEvent::Unavailable, None),
                other => other,
            }
        }
        Err(error) => {
            tracing::debug!(error = %chain(&error), "a renewal was not written");
            (SessionEvent::Unavailable, None)
        }
    }
}

/// A refused renewal may be this agent's own earlier one whose answer was lost.
async fn look_again(parts: &Parts, key: &str, record: &SessionRecord) -> (SessionEvent, Option<Revision>) {
    match parts.store.get(key).await {
        Ok(Some(entry)) => match keys::decode::<SessionRecord>(key, &entry.value) {
            Ok(found)
                if found.ended.is_none() && found.boot == record.boot && found.number == record.number =>
            {
                // Ours and open, but written at an unknown earlier time: renew at once on the right revision.
                (SessionEvent::Unavailable, Some(entry.modified))
            }
            Ok(_) | Err(_) => (SessionEvent::Refused, None),
        },
        Ok(None) => (SessionEvent::Refused, None),
        Err(_) => (SessionEvent::Unavailable, None),
    }
}

fn confirm(parts: Arc<Parts>, sender: UnboundedSender<Event>, deadline: Boottime, session: u64) {
    tokio::task::spawn_blocking(move || {
        let asked = Deadline { boottime_ns: deadline.0, session };
        let answer = Client::connect(&parts.config.guard_socket, GUARD_PATIENCE)
            .and_then(|mut guard| guard.set_deadline(asked));
        let answer = answer.map_err(|error| {
            // Asked again at once by the state machine: a little patience keeps that from spinning.
            std::thread::sleep(GUARD_PATIENCE / 5);
            chain(&error)
        });
        let _ = sender.send(Event::Guarded(answer));
    });
}
