//! Owns the starting of everything that runs beside the runtime's loop and is waited for by nobody.
//!
//! Promises: one that panics is reported to the loop, with its name and what it said; the loop ends the agent, and systemd
//! starts it again. A flag that waits for the end of such a task would else be set for ever. Must not do: serve requests of
//! others, whose panics are answered where they come from.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinError;

/// A task that panicked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked {
    /// Which.
    pub what: &'static str,
    /// What it said.
    pub why: String,
}

/// Starts tasks. Clones report to the same loop.
#[derive(Debug, Clone)]
pub struct Tasks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sender: UnboundedSender<Panicked>,
    receiver: Mutex<Option<UnboundedReceiver<Panicked>>>,
}

impl Default for Tasks {
    fn default() -> Self {
        let (sender, receiver) = unbounded_channel();
        Self(Arc::new(Inner { sender, receiver: Mutex::new(Some(receiver)) }))
    }
}

impl Tasks {
    /// Where panics are reported to. There is one loop, which takes it once.
    #[must_use]
    pub fn reports(&self) -> Option<UnboundedReceiver<Panicked>> {
        self.0.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Starts a task on the caller's runtime.
    pub fn spawn(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (task, tasks) = (tokio::spawn(task), self.clone());
        tokio::spawn(async move { tasks.joined(what, task.await) });
    }

    /// Starts what blocks, on the caller's runtime's threads for that.
    pub fn block(&self, what: &'static str, work: impl FnOnce() + Send + 'static) {
        let (task, tasks) = (tokio::task::spawn_blocking(work), self.clone());
        tokio::spawn(async move { tasks.joined(what, task.await) });
    }

    /// Starts a thread of its own.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn thread(&self, what: &'static str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let tasks = self.clone();
        let guarded = move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                tasks.report(what, said(panic.as_ref()));
            }
        };
        std::thread::Builder::new().name(what.to_owned()).spawn(guarded).map(drop)
    }

    /// Reports a task that was waited for and that nobody else can answer for.
    pub fn joined<T>(&self, what: &'static str, outcome: Result<T, JoinError>) {
        let Err(error) = outcome else { return };
        // What was not a panic was cancelled: the runtime ends.
        if let Ok(panic) = error.try_into_panic() {
            self.report(what, said(panic.as_ref()));
        }
    }

    fn report(&self, what: &'static str, why: String) {
        tracing::error!(task = what, error = %why, "a task panicked: report this");
        let _ = self.0.sender.send(Panicked { what, why });
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_reported_with_its_task_and_text_however_it_was_started() {
        let tasks = Tasks::default();
        let mut reports = tasks.reports().unwrap();
        assert!(tasks.reports().is_none(), "one loop");
        tasks.spawn("quiet", async {});
        tasks.spawn("planning", async { panic!("no node {}", 7) });
        assert_eq!(reports.recv().await, Some(Panicked { what: "planning", why: "no node 7".to_owned() }));
        tasks.block("looking", || panic!("odd"));
        assert_eq!(reports.recv().await, Some(Panicked { what: "looking", why: "odd".to_owned() }));
        tasks.thread("listening", || panic!("odd")).unwrap();
        assert_eq!(reports.recv().await, Some(Panicked { what: "listening", why: "odd".to_owned() }));
        assert!(reports.try_recv().is_err());
    }

    /// What is started otherwise is waited for, so that whoever waits answers for it.
    #[test]
    fn nothing_is_started_beside_the_loop_in_another_way() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let raw = [
            ["tokio::", "spawn("].concat(),
            ["thread::", "Builder"].concat(),
            ["thread::", "spawn("].concat(),
        ];
        let blocking = ["spawn_", "blocking("].concat();
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(&root).unwrap().display().to_string();
                if path.is_dir() {
                    folders.push(path);
                } else if name.ends_with(".rs") && !name.contains("tests") && name != "tasks.rs" {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let text = text.split("mod tests {").next().unwrap();
                    for line in text.lines() {
                        let alone = line.trim_start().starts_with(&format!("tokio::task::{blocking}"));
                        if alone || raw.iter().any(|raw| line.contains(raw.as_str())) {
                            found.push(format!("{name}: {}", line.trim()));
                        }
                    }
                }
            }
        }
        // Writes down what it is handed; what it cannot take is dropped and counted, whether it runs or not.
        found.retain(|line| !line.starts_with("policy_manager/recorder.rs"));
        // Connections of clients: they end with whoever uses them, and an end without an answer is an error there.
        found.retain(|line| !line.ends_with("tokio::spawn(connection);"));
        assert!(found.is_empty(), "start these by `Tasks`: {found:#?}");
    }
}
