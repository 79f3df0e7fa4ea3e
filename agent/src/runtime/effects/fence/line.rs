//! Owns the lease's line to the guard: one connection that is opened again when it breaks, on a thread of its own.
//!
//! Promises: asks one question at a time and answers each; nobody else's calls are in the way of it. Must not do: decide
//! what silence means.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::sync::oneshot;
use understudy_guard::{Client, ClientError, Deadline, Status};

use super::GUARD_PATIENCE;
use crate::tasks::Tasks;

/// What is asked of a guard for the sake of a lease.
pub(in crate::runtime) trait GuardCalls: Send {
    /// Moves the deadline.
    ///
    /// # Errors
    /// When it is refused, or nobody answers.
    fn set_deadline(&mut self, deadline: Deadline) -> Result<(), ClientError>;

    /// What the guard holds.
    ///
    /// # Errors
    /// When nobody answers.
    fn status(&mut self) -> Result<Status, ClientError>;
}

/// A connection that outlives its guards.
pub(in crate::runtime) struct Reconnecting {
    socket: PathBuf,
    client: Option<Client>,
}

impl Reconnecting {
    pub(in crate::runtime) fn new(socket: PathBuf) -> Self {
        Self { socket, client: None }
    }

    fn call<T>(&mut self, call: impl Fn(&mut Client) -> Result<T, ClientError>) -> Result<T, ClientError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.socket, GUARD_PATIENCE)?,
        };
        match call(&mut client) {
            // A guard that was restarted since the last call: its successor listens by now, or systemd has yet to start it.
            Err(ClientError::Closed | ClientError::Send(_) | ClientError::Receive(_)) => {
                let mut next = Client::connect(&self.socket, GUARD_PATIENCE)?;
                let answer = call(&mut next);
                self.client = Some(next);
                answer
            }
            answer => {
                self.client = Some(client);
                answer
            }
        }
    }
}

impl GuardCalls for Reconnecting {
    fn set_deadline(&mut self, deadline: Deadline) -> Result<(), ClientError> {
        self.call(|client| client.set_deadline(deadline))
    }

    fn status(&mut self) -> Result<Status, ClientError> {
        self.call(Client::status)
    }
}

enum Question {
    Deadline(Deadline, oneshot::Sender<Result<(), ClientError>>),
    Status(oneshot::Sender<Result<Status, ClientError>>),
}

/// The thread that asks.
#[derive(Clone)]
pub(in crate::runtime) struct GuardLine(Sender<Question>);

impl GuardLine {
    /// Starts the thread, which ends with the last clone.
    pub(super) fn start(mut calls: Box<dyn GuardCalls>, tasks: &Tasks) -> std::io::Result<Self> {
        let (sender, questions): (Sender<Question>, Receiver<Question>) = channel();
        tasks.thread("lease-guard", move || {
            // Whoever asked may be gone: what the guard acknowledged counts all the same.
            while let Ok(question) = questions.recv() {
                match question {
                    Question::Deadline(deadline, answer) => {
                        let _ = answer.send(calls.set_deadline(deadline));
                    }
                    Question::Status(answer) => {
                        let _ = answer.send(calls.status());
                    }
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Nothing when the thread has ended: it has panicked.
    pub(in crate::runtime::effects) async fn set_deadline(
        &self,
        deadline: Deadline,
    ) -> Option<Result<(), ClientError>> {
        let (sender, answer) = oneshot::channel();
        self.0.send(Question::Deadline(deadline, sender)).ok()?;
        answer.await.ok()
    }

    /// Nothing when the thread has ended: it has panicked.
    pub(in crate::runtime::effects) async fn status(&self) -> Option<Result<Status, ClientError>> {
        let (sender, answer) = oneshot::channel();
        self.0.send(Question::Status(sender)).ok()?;
        answer.await.ok()
    }
}
