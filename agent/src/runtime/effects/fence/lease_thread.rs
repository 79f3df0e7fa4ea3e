//! Owns the thread on which this host's lease lives: core's state machine, its clock, and the doing of what it asks for.
//!
//! Promises: nothing else runs on this thread, its runtime or its line to the guard, so that nobody's requests can be in
//! the way of a renewal, a confirmation or the kill; time handed to the machine is read before a request is sent; the kill
//! comes at the deadline itself, not at a tick. Must not do: decide when a lease is lost (core does), touch libvirt.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use understudy_core::bounds::Bounds;
use understudy_core::host::lease::{
    Attempt, HostLease, LeaseAnswer, LeaseEffect, LeaseInput, LeaseStatus, Loss,
};
use understudy_core::host::opening::Identity;
use understudy_core::model::ids::{BootId, HostId, MachineId};
use understudy_core::model::units::Boottime;
use understudy_guard::{ClientError, Deadline, Refusal};
use understudy_hypervisor::process::boottime;
use understudy_store::{Revision, Store};

use super::line::{GuardCalls, GuardLine};
use super::members::Members;
use crate::exit::chain;
use crate::runtime::Event;
use crate::runtime::effects::store::lease as requests;
use crate::tasks::Tasks;

/// The store as the lease reaches it: opened on the lease's own thread, so that its connections live there.
pub type OpenStore = Pin<Box<dyn Future<Output = Arc<dyn Store>> + Send>>;

/// What the runtime hears of the lease.
#[derive(Debug)]
pub enum LeaseEvent {
    /// The number or the acknowledged deadline changed.
    Status(LeaseStatus),
    /// A lease is open in the store. `resumed`: it is the one that an earlier agent of this boot held.
    Opened {
        /// Its number.
        number: u64,
        /// Whether what runs goes on.
        resumed: bool,
    },
    /// Before the next lease is opened nothing of an earlier one may run: see to it, and say whether it is so.
    Clear {
        /// The lease of this boot that was open before.
        previous: Option<u64>,
        /// Where to say it.
        done: oneshot::Sender<bool>,
    },
    /// The lease is lost, and this many members were killed.
    Lost(Loss, usize),
    /// The guard does not do its part, for that reason; or does again.
    Guard(Option<String>),
    /// The store does not answer; or does again.
    Store(bool),
    /// Another machine holds the lease of this host's name.
    Taken {
        /// That machine.
        by: MachineId,
        /// Its boot.
        boot: BootId,
    },
}

/// What a lease is kept with.
pub(in crate::runtime) struct Keeping {
    /// Of which host.
    pub(in crate::runtime) host: HostId,
    /// Who keeps it.
    pub(in crate::runtime) identity: Identity,
    /// The cluster's time bounds.
    pub(in crate::runtime) bounds: Bounds,
    /// What the guard of this boot acknowledged last, as far as its table tells.
    pub(in crate::runtime) inherited: Option<(u64, Boottime)>,
    /// The processes that die with it.
    pub(in crate::runtime) members: Members,
    /// The guard.
    pub(in crate::runtime) guard: Box<dyn GuardCalls>,
    /// Where events go.
    pub(in crate::runtime) events: UnboundedSender<Event>,
    /// Starts what it is kept by.
    pub(in crate::runtime) tasks: Tasks,
}

/// The thread. It gives the lease up, as it is, when this is dropped.
#[derive(Debug)]
pub(in crate::runtime) struct LeaseThread {
    _stop: oneshot::Sender<()>,
}

impl LeaseThread {
    /// Starts it.
    ///
    /// # Errors
    /// When the kernel gives no thread, timer or runtime.
    pub(in crate::runtime) fn start(keeping: Keeping, store: OpenStore) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let guard = GuardLine::start(keeping.guard, &keeping.tasks)?;
        // Its own pool of blocking threads too: an embedded store and name look-ups use them.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let timer =
            TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let (sender, inbox) = unbounded_channel();
        let tasks = keeping.tasks.clone();
        tasks.thread("lease", move || {
            let kept = runtime.block_on(async move {
                let context = Context {
                    host: keeping.host,
                    identity: keeping.identity,
                    store: store.await,
                    guard,
                    events: keeping.events,
                    tasks: keeping.tasks,
                };
                let lease = HostLease::new(keeping.bounds, keeping.inherited);
                let reported = LeaseStatus::default();
                let runner = Runner {
                    context,
                    lease,
                    members: keeping.members,
                    held: None,
                    reported,
                    guard_is_silent: false,
                    store_is_silent: false,
                    sender,
                };
                runner.run(&timer, inbox, stopped).await
            });
            if let Err(error) = kept {
                tracing::error!(%error, "the lease's clock failed: the lease is not renewed any more");
            }
            // A request that hangs must not keep the thread.
            runtime.shutdown_background();
        })?;
        Ok(Self { _stop: stop })
    }
}

/// What every request works with.
#[derive(Clone)]
pub(in crate::runtime::effects) struct Context {
    pub(in crate::runtime::effects) host: HostId,
    pub(in crate::runtime::effects) identity: Identity,
    pub(in crate::runtime::effects) store: Arc<dyn Store>,
    pub(in crate::runtime::effects) guard: GuardLine,
    pub(in crate::runtime::effects) events: UnboundedSender<Event>,
    pub(in crate::runtime::effects) tasks: Tasks,
}

/// The open lease that the store holds.
#[derive(Debug, Clone, Copy)]
pub(in crate::runtime::effects) struct Held {
    /// Its number.
    pub(in crate::runtime::effects) number: u64,
    /// The revision of its record, which stays what it is until the lease is over.
    pub(in crate::runtime::effects) revision: Revision,
}

/// How a request ended.
pub(in crate::runtime::effects) struct Done {
    pub(in crate::runtime::effects) answer: LeaseAnswer,
    /// The lease that was opened.
    pub(in crate::runtime::effects) held: Option<Held>,
    /// Why the guard did not do its part.
    pub(in crate::runtime::effects) guard: Option<String>,
    /// Whether the store answered, where it was asked.
    pub(in crate::runtime::effects) store: Option<bool>,
}

impl Done {
    pub(in crate::runtime::effects) fn new(answer: LeaseAnswer) -> Self {
        Self { answer, held: None, guard: None, store: None }
    }
}

struct Runner {
    context: Context,
    lease: HostLease,
    members: Members,
    held: Option<Held>,
    reported: LeaseStatus,
    guard_is_silent: bool,
    store_is_silent: bool,
    sender: UnboundedSender<(Attempt, Done)>,
}

impl Runner {
    async fn run(
        mut self,
        timer: &TimerFd,
        mut inbox: UnboundedReceiver<(Attempt, Done)>,
        mut stopped: oneshot::Receiver<()>,
    ) -> io::Result<()> {
        self.notify_status();
        #[expect(deprecated, reason = "an OwnedFd stays the same descriptor for as long as it lives")]
        let bell = AsyncFd::new(timer.as_fd().try_clone_to_owned()?)?;
        loop {
            // A moment that has passed rings at once.
            let due = self.lease.next_due().map_or(u64::MAX, |due| due.0.max(1));
            let due = TimeSpec::from_duration(Duration::from_nanos(due));
            timer.set(Expiration::OneShot(due), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            tokio::select! {
                biased;
                rung = bell.readable() => {
                    // What rang is read by setting the timer anew.
                    rung?.clear_ready();
                    self.take(LeaseInput::Due);
                }
                Some((attempt, done)) = inbox.recv() => self.done(attempt, done),
                _ = &mut stopped => return Ok(()),
            }
        }
    }

    fn done(&mut self, attempt: Attempt, done: Done) {
        self.notify_guard(done.answer, done.guard);
        if let Some(answers) = done.store.filter(|answers| *answers == self.store_is_silent) {
            self.store_is_silent = !answers;
            self.notify(LeaseEvent::Store(answers));
        }
        let was_closed = self.lease.is_closed();
        self.take(LeaseInput::Answer(attempt, done.answer));
        // One that came too late opened nothing.
        if let LeaseAnswer::Opened { number, acknowledged, .. } = done.answer
            && was_closed
            && !self.lease.is_closed()
        {
            self.held = done.held;
            self.notify(LeaseEvent::Opened { number, resumed: acknowledged.is_some() });
        }
    }

    /// Silence is reported once, and once when it is over: it is asked ten times a second.
    fn notify_guard(&mut self, answer: LeaseAnswer, why: Option<String>) {
        match why {
            Some(why) if self.guard_is_silent => {
                tracing::debug!(error = %why, "the guard still does not do its part");
            }
            Some(why) => {
                tracing::error!(error = %why, "the guard did not acknowledge");
                self.guard_is_silent = true;
                self.notify(LeaseEvent::Guard(Some(why)));
            }
            None if self.guard_is_silent && matches!(answer, LeaseAnswer::GuardAcknowledged) => {
                tracing::info!("the guard answers");
                self.guard_is_silent = false;
                self.notify(LeaseEvent::Guard(None));
            }
            None => {}
        }
    }

    fn take(&mut self, input: LeaseInput) {
        match self.lease.step(input, boottime()) {
            None => {}
            Some(LeaseEffect::Open(attempt)) => {
                let context = self.context.clone();
                self.ask(attempt, async move { requests::open(&context).await });
            }
            Some(LeaseEffect::Renew(attempt)) => {
                let (context, held) = (self.context.clone(), self.held);
                self.ask(attempt, async move { requests::renew(&context, held).await });
            }
            Some(LeaseEffect::Confirm(attempt, deadline)) => {
                let asked = Deadline { boottime_ns: deadline.0, lease: self.lease.status().number };
                let guard = self.context.guard.clone();
                self.ask(attempt, async move { acknowledged(guard.set_deadline(asked).await) });
            }
            Some(LeaseEffect::KillMembers(loss)) => {
                let killed = self.members.kill();
                self.held = None;
                self.notify(LeaseEvent::Lost(loss, killed));
            }
        }
        self.notify_status();
    }

    fn ask(&self, attempt: Attempt, request: impl Future<Output = Done> + Send + 'static) {
        let sender = self.sender.clone();
        self.context.tasks.spawn("lease's request", async move {
            let _ = sender.send((attempt, request.await));
        });
    }

    fn notify_status(&mut self) {
        let status = self.lease.status();
        if status != self.reported {
            self.reported = status;
            self.notify(LeaseEvent::Status(status));
        }
    }

    /// A runtime that is gone takes this with it.
    fn notify(&self, event: LeaseEvent) {
        let _ = self.context.events.send(Event::Lease(event));
    }
}

fn acknowledged(answer: Option<Result<(), ClientError>>) -> Done {
    let (answer, error) = match answer {
        Some(Ok(())) => return Done::new(LeaseAnswer::GuardAcknowledged),
        // Nothing can be run under this lease any more.
        Some(Err(
            error @ ClientError::Refused(Refusal::Expired | Refusal::OldLease | Refusal::PastDeadline),
        )) => (LeaseAnswer::GuardRefused, error),
        Some(Err(error)) => (LeaseAnswer::GuardSilent, error),
        None => return Done::new(LeaseAnswer::GuardSilent),
    };
    Done { guard: Some(chain(&error)), ..Done::new(answer) }
}
