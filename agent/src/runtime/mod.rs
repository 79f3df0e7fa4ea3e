//! Owns the one task that holds the agent's state: it takes events, lets core decide, and has effects carried out.
//!
//! Promises: nothing in this task blocks; every result of an action comes back as an event; the state is changed
//! here and nowhere else. Must not do: decide (core does), talk to libvirt, the guard or a guest itself (jobs do).

mod effects;
mod event;
mod host;
mod leader;
mod lease;
mod publish;
mod restoring;
mod sets;
mod store_cache;
#[cfg(test)]
mod tests;
mod watchdog;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{mpsc, watch};
use understudy_checkpoint::{ImageStore, ReadyImages};
use understudy_core::host::lease::LeaseStatus;
use understudy_core::host::{HostAgent, HostSettings, Input};
use understudy_core::leader::Report;
use understudy_core::leader::leadership::Leadership;
use understudy_core::leader::line::Line;
use understudy_core::model::ids::{BootId, MachineId, NodeId};
use understudy_core::model::records::{Capacity, CheckpointId, HostFacts, Service};
use understudy_core::model::units::{Boottime, Now, UnixMillis};
use understudy_core::model::view::{Hosts, View};
use understudy_core::sets::{PolicySets, SetFacts};
use understudy_core::store_cache::StoreCache;
use understudy_hypervisor::permit::Permits;
use understudy_hypervisor::{Hypervisor, Template, process};
use understudy_store::Store;

pub use effects::checkpoint::{CheckpointTier, Keeping, Trackers, find_tier, keep_ready, kept_on, said};
pub use effects::fence::{LeaseEvent, Members, OpenStore};
pub use event::Event;
pub use leader::{admission, trial};
pub(crate) use sets::waits;

use effects::checkpoint::Copies;
use watchdog::Watchdog;

use crate::config::Config;
use crate::exit::{Exit, Failure, chain};
use crate::gateway::Publisher;
use crate::metrics::Metrics;
use crate::peers::Security;
use crate::policy_manager::{Deciding, Policies, Seen};
use crate::tasks::{Panicked, Tasks};

/// The longest that the runtime sleeps where nothing is due: it feeds systemd's watchdog, and looks at what waits by the wall
/// clock, as a set of policies does.
const REST: Duration = Duration::from_secs(1);

/// What the runtime works with. Shared with its jobs.
pub struct Parts {
    /// The configuration.
    pub config: Config,
    /// This boot.
    pub boot: BootId,
    /// This machine.
    pub machine: MachineId,
    /// The cluster's records.
    pub store: Arc<dyn Store>,
    /// This host's hypervisor.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// What instances are made from.
    pub template: Arc<Template>,
    /// Permits for libvirt's hook.
    pub permits: Permits,
    /// The sites' policies.
    pub policies: Arc<Policies>,
    /// Checkpoints kept for others.
    pub images: Arc<ImageStore>,
    /// What of them can be restored at once.
    pub ready_images: Arc<ReadyImages>,
    /// For which nodes that is seen to at present.
    pub keeping: Keeping,
    /// By what means the checkpoints of this host's primaries are taken.
    pub checkpoint_tier: CheckpointTier,
    /// What is known of the pages of this host's primaries.
    pub trackers: Trackers,
    /// What this host's peers are known by.
    pub security: Security,
    /// The processes of this host's members.
    pub members: Members,
    /// Where images are made before they are sent: a tmpfs.
    pub scratch: PathBuf,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Starts what runs beside the loop.
    pub tasks: Tasks,
}

/// The way to a runtime, and its end.
pub type Events = (mpsc::UnboundedSender<Event>, mpsc::UnboundedReceiver<Event>);

/// The agent's state as others may read it.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Whether the store has been read.
    pub synced: bool,
    /// What is wrong on this host, each with what to do. Before the store has been read: what the agent waits for.
    pub conditions: Vec<String>,
    /// The cluster.
    pub view: View,
    /// Who leads.
    pub leader: Option<String>,
    /// Whether that is this agent.
    pub leading: bool,
    /// What the leader's last plan could not do. Empty on hosts that do not lead.
    pub report: Report,
    /// How long primaries may still run here without another renewal.
    pub lease_remaining: Option<Duration>,
    /// What this host reports.
    pub facts: Option<Arc<HostFacts>>,
    /// The sets of policies.
    pub sets: PolicySets,
    /// The active one of them, to be asked by whoever reads this, however long after.
    pub deciding: Deciding,
}

/// The runtime's state.
pub struct Runtime {
    parts: Arc<Parts>,
    sender: mpsc::UnboundedSender<Event>,
    receiver: mpsc::UnboundedReceiver<Event>,
    cache: StoreCache,
    synced: bool,
    /// This host's place among those who may lead next.
    line: Line,
    /// Whether renewals are to be followed, as the following of the store hears it.
    renewals: watch::Sender<bool>,
    lease: LeaseStatus,
    lease_number: u64,
    clear: Option<lease::Clear>,
    cleared: Option<Vec<effects::domain::recovery::Recovered>>,
    recovery: lease::Recovery,
    taken_since: Option<Boottime>,
    /// Why this agent cannot go on.
    ended: Option<Failure>,
    has_recovered: bool,
    agent: HostAgent,
    copies: Copies,
    /// Not known before libvirt has answered once.
    capacity: Option<Capacity>,
    leadership: Leadership,
    /// What its effects are carried out with.
    leading: leader::Leading,
    published: Option<publish::Published>,
    publishing: bool,
    publish_after: Boottime,
    /// What was published into the directory last: the count of changes, and whether the lease was open.
    shown: Option<(u64, bool)>,
    /// The count of changes that the policies' manager was notified of last.
    notified: Option<u64>,
    /// The hosts that it was notified of last.
    notified_hosts: Hosts,
    /// What is being restored here, as the store of images was told last.
    restoring: BTreeMap<NodeId, CheckpointId>,
    conditions: BTreeMap<&'static str, String>,
    load_milli: u32,
    policy_facts: SetFacts,
    seen: watch::Sender<Arc<Seen>>,
    directory: Publisher,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

/// Both clocks at this moment.
#[must_use]
pub fn now() -> Now {
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Now {
        boottime: process::boottime(),
        wall: UnixMillis(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// Waits for the first report; for ever where somebody else takes them.
async fn reported(panics: &mut Option<UnboundedReceiver<Panicked>>) -> Panicked {
    let report = match panics {
        Some(panics) => panics.recv().await,
        None => None,
    };
    match report {
        Some(report) => report,
        None => std::future::pending().await,
    }
}

fn kept_images(images: &ImageStore) -> Input {
    // Also where nothing is kept but the highest epoch: of a node that is gone it goes too.
    Input::Images(images.nodes().into_iter().collect())
}

fn host_settings(config: &Config, capacity: Option<Capacity>) -> HostSettings {
    HostSettings {
        me: config.host.clone(),
        memory: capacity.unwrap_or_default().memory,
        pool: config.pool,
        addresses: config.addresses.first..=config.addresses.last,
        bounds: config.bounds,
        names: uuid::Uuid::new_v4(),
    }
}

impl Runtime {
    /// A runtime that knows nothing yet, and takes `events`.
    #[must_use]
    pub fn new(
        parts: Arc<Parts>,
        capacity: Option<Capacity>,
        (sender, receiver): Events,
        directory: Publisher,
        snapshots: watch::Sender<Arc<Snapshot>>,
    ) -> Self {
        let mut agent = HostAgent::new(host_settings(&parts.config, capacity));
        if capacity.is_none() {
            // Nothing follows from that yet.
            let away = Input::Service { service: Service::Libvirtd, answers: false };
            drop(agent.handle(away, now()));
        }
        let line = Line::new(parts.config.host.clone(), parts.config.bounds);
        let leadership = Leadership::new(parts.config.host.clone(), parts.config.bounds);
        Self {
            parts,
            sender,
            receiver,
            cache: StoreCache::default(),
            synced: false,
            renewals: watch::Sender::new(line.follows()),
            line,
            lease: LeaseStatus::default(),
            lease_number: 0,
            clear: None,
            cleared: None,
            recovery: lease::Recovery::None,
            taken_since: None,
            ended: None,
            has_recovered: false,
            agent,
            copies: Copies::default(),
            capacity,
            leadership,
            leading: leader::Leading::default(),
            published: None,
            publishing: false,
            publish_after: Boottime::default(),
            shown: None,
            notified: None,
            notified_hosts: Hosts::default(),
            restoring: BTreeMap::new(),
            conditions: BTreeMap::new(),
            load_milli: 0,
            policy_facts: SetFacts::default(),
            seen: watch::Sender::new(Arc::default()),
            directory,
            snapshots,
        }
    }

    /// Where events may be sent to.
    #[must_use]
    pub fn events(&self) -> mpsc::UnboundedSender<Event> {
        self.sender.clone()
    }

    /// Runs until `stop` says so. Instances are left as they are; a successor finds them.
    ///
    /// # Errors
    /// When it cannot go on, with what to do.
    pub async fn run(mut self, store: OpenStore, mut stop: watch::Receiver<bool>) -> Result<(), Failure> {
        let lease = self
            .keep_lease(store)
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot keep a lease: {}", chain(&error))))?;
        store_cache::start(self.parts.clone(), self.sender.clone(), self.renewals.subscribe());
        self.listen_to_hypervisor();
        crate::policy_manager::start(self.parts.clone(), self.seen.subscribe(), self.sender.clone());
        self.inform(kept_images(&self.parts.images));
        let mut panics = self.parts.tasks.reports();
        let mut watchdog = Watchdog::of_systemd();
        loop {
            watchdog.feed();
            let sleeps = self.sleeps();
            let event = tokio::select! {
                panicked = reported(&mut panics) => {
                    self.panicked(panicked);
                    break;
                }
                event = self.receiver.recv() => event,
                _ = stop.wait_for(|stop| *stop) => break,
                () = tokio::time::sleep(sleeps) => Some(Event::Tick),
            };
            let Some(event) = event else { break };
            self.take(event);
            while let Ok(event) = self.receiver.try_recv() {
                self.take(event);
            }
            self.advance();
            if self.ended.is_some() {
                break;
            }
        }
        drop(lease);
        self.resign().await;
        self.ended.map_or(Ok(()), Err)
    }

    /// How long nothing is to be done where nothing happens.
    fn sleeps(&self) -> Duration {
        let now = now().boottime;
        self.due(now).map_or(REST, |due| due.since(now).min(REST))
    }

    /// When something is to be done next whatever happens, as far as that is known: the loop acts on all of it at once.
    fn due(&self, now: Boottime) -> Option<Boottime> {
        if !self.synced {
            return None;
        }
        let recovery = match self.recovery {
            lease::Recovery::Due(at) => Some(at),
            lease::Recovery::None | lease::Recovery::Running => None,
        };
        // Nothing else is looked at before then: what is due would be due for ever.
        if !self.has_begun(now) {
            return recovery;
        }
        let host = self.agent.due().filter(|_| self.works() || self.recovers());
        let later = [Some(self.publish_after), self.lease.until].into_iter().flatten().filter(|at| *at > now);
        let decided = [host, recovery, self.leadership.due(&self.cache), self.line.due()];
        decided.into_iter().flatten().chain(later).min()
    }

    /// Without libvirt and without a lease that goes on there is nothing to show but what is missing.
    fn has_begun(&self, now: Boottime) -> bool {
        self.capacity.is_some() || self.lease.is_open(now)
    }

    /// Whether it is known what runs here, and what there is room for.
    fn works(&self) -> bool {
        self.synced && self.has_recovered && self.capacity.is_some()
    }

    /// Whether the lease goes on and what runs under it is not known yet.
    fn recovers(&self) -> bool {
        self.recovery != lease::Recovery::None
    }

    fn capacity_answered(&mut self, answer: Result<Capacity, Failure>) {
        match answer {
            Ok(capacity) => {
                self.capacity = Some(capacity);
                self.inform(Input::Memory(capacity.memory));
                self.inform(Input::Service { service: Service::Libvirtd, answers: true });
                self.clear("libvirt");
            }
            Err(failure) => self.ended = Some(failure),
        }
    }

    /// What the task was to say will never come.
    fn panicked(&mut self, Panicked { what, why }: Panicked) {
        let text = format!("a task of the agent ({what}) panicked, it starts anew: report this: {why}");
        self.ended = Some(Failure::new(Exit::Failed, text));
    }

    fn listen_to_hypervisor(&self) {
        let (events, sender) = (self.parts.hypervisor.subscribe(), self.sender.clone());
        // A blocking channel needs a thread of its own; it ends with the hypervisor or the runtime.
        let spawned = self.parts.tasks.thread("hypervisor-events", move || {
            while let Ok(event) = events.recv() {
                if sender.send(Event::Hypervisor(event)).is_err() {
                    break;
                }
            }
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "cannot listen to the hypervisor");
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Tick => {}
            Event::Listed { listing, renewals } => {
                let records = listing.entries.iter().map(Into::into);
                let of = (listing.revision.0, renewals);
                let faults = self.cache.replace(of, records, now().boottime);
                self.cache_changed(&faults);
            }
            Event::Changed(batch) => {
                let changes = batch.changes.iter().map(Into::into);
                let faults = self.cache.apply(batch.revision.0, changes, now().boottime);
                self.cache_changed(&faults);
            }
            Event::Hypervisor(event) => self.hypervisor_event(event),
            Event::Lease(event) => self.lease_event(event),
            Event::Cleared { found, done } => self.host_cleared(found, done),
            Event::Recovered { number, found } => self.recovered(number, found),
            Event::Host(input) => self.inform(*input),
            Event::Job { job, outcome } => self.job_ended(job, outcome),
            Event::Renewal(host, revision) => {
                if let Some(revision) = revision {
                    self.line.read(&host, revision.0);
                }
            }
            Event::Step { job, step, answer } => self.step_taken(job, step, answer),
            Event::Bid(bid) => self.bid_ended(bid),
            Event::Led(done) => self.done(*done),
            Event::Trial { new, reply } => {
                let _ = reply.send(self.trial(&new));
            }
            Event::Published(facts) => self.published(facts),
            Event::Policies(status) => self.policies_reported(*status),
            Event::Capacity(answer) => self.capacity_answered(answer),
            Event::Load(milli) => self.load_milli = milli,
            Event::Condition { about, text: Some(text) } => self.raise(about, text),
            Event::Condition { about, text: None } => self.clear(about),
        }
    }

    fn cache_changed(&mut self, faults: &[crate::keys::Unreadable]) {
        self.synced = true;
        self.name_what_is_restored();
        self.inform_of_records();
        for fault in faults {
            tracing::error!(error = %crate::exit::chain(fault), "a record cannot be read");
        }
        let unreadable = self.cache.unreadable();
        if unreadable.is_empty() {
            self.clear("store");
        } else {
            self.raise("store", unreadable.join("\n"));
        }
    }

    /// Lets core decide what follows from the state, and has it done.
    fn advance(&mut self) {
        let now = now();
        self.advance_lease(now.boottime);
        if self.synced && self.has_begun(now.boottime) {
            let view = self.cache.view().clone();
            self.keep_in_line(&view, now.boottime);
            self.notify_manager(&view);
            let works = self.works();
            if works || self.recovers() {
                self.work(now);
            }
            // What leading changes is no part of them.
            let facts = Arc::new(self.facts());
            // What an earlier agent reported stands until it can be looked at, but for what cannot do its part.
            if works || self.speaks_for_its_predecessor() {
                self.publish_facts(&facts, now);
            }
            self.lead(works, now);
            self.publish_state(view, facts, now.boottime);
        } else {
            self.publish_waiting();
        }
    }

    /// Follows renewals where this host may lead next.
    fn keep_in_line(&mut self, view: &View, now: Boottime) {
        let leader = self.cache.leader.as_ref().and_then(|known| known.value.host.clone());
        if let Some(host) = self.line.step(view, leader.as_ref(), now) {
            store_cache::read_renewal(&self.parts, self.sender.clone(), host);
        }
        let follows = self.line.follows();
        self.renewals.send_if_modified(|wanted| std::mem::replace(wanted, follows) != follows);
    }

    fn raise(&mut self, about: &'static str, text: String) {
        self.conditions.insert(about, text);
    }

    fn clear(&mut self, about: &'static str) {
        self.conditions.remove(about);
    }
}
