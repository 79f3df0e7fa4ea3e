//! The lease thread, over real processes and a guard that can fall silent.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use understudy_core::bounds::Profile;
use understudy_core::host::lease::Loss;
use understudy_core::host::opening::Identity;
use understudy_core::model::ids::{BootId, HostId, InstanceId, MachineId};
use understudy_core::model::records::LeaseRecord;
use understudy_core::model::units::Boottime;
use understudy_guard::{ClientError, Deadline, Status, pidfd_open};
use understudy_hypervisor::process::boottime;
use understudy_store::{Committed, Entry, Listing, MemoryStore, Revision, Store, StoreError, Txn, Watch};
use uuid::Uuid;

use super::lease_thread::{Keeping, LeaseThread};
use super::line::GuardCalls;
use crate::keys::{Key, decode};
use crate::runtime::{Event, LeaseEvent, Members};

/// What nothing here should ever take, on however busy a machine.
const LIMIT: Duration = Duration::from_secs(60);

fn me() -> HostId {
    "host1".parse().unwrap()
}

#[derive(Default)]
struct GuardState {
    silent: bool,
    acknowledged: Option<Deadline>,
}

/// A guard that acknowledges whatever it is asked, until it says nothing any more.
#[derive(Clone, Default)]
struct FakeGuard(Arc<Mutex<GuardState>>);

impl FakeGuard {
    fn fall_silent(&self) -> Boottime {
        let mut state = self.0.lock().unwrap();
        state.silent = true;
        Boottime(state.acknowledged.unwrap().boottime_ns)
    }

    fn acknowledged(&self) -> Option<Deadline> {
        self.0.lock().unwrap().acknowledged
    }
}

impl GuardCalls for FakeGuard {
    fn set_deadline(&mut self, deadline: Deadline) -> Result<(), ClientError> {
        let mut state = self.0.lock().unwrap();
        if state.silent {
            return Err(ClientError::Closed);
        }
        state.acknowledged = Some(deadline);
        Ok(())
    }

    fn status(&mut self) -> Result<Status, ClientError> {
        let state = self.0.lock().unwrap();
        if state.silent {
            return Err(ClientError::Closed);
        }
        Ok(Status {
            guard_pid: 1,
            started_ns: 1,
            now_ns: boottime().0,
            deadline: state.acknowledged,
            registered: 0,
            capacity: 1,
            kills: 0,
            fired: None,
            entries: Vec::new(),
        })
    }
}

/// A process in qemu's place, ended with the test whatever its outcome.
struct Qemu {
    child: Child,
    pidfd: OwnedFd,
}

impl Qemu {
    fn start() -> Self {
        let child = Command::new("sleep").arg("3600").stdin(Stdio::null()).spawn().unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        Self { child, pidfd }
    }

    /// When it was seen dead.
    fn died(&self) -> Boottime {
        let limit = PollTimeout::try_from(LIMIT).unwrap();
        let mut ready = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut ready, limit).unwrap(), 1, "it lives on");
        boottime()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

struct Rig {
    guard: FakeGuard,
    members: Members,
    store: Arc<dyn Store>,
    heard: UnboundedReceiver<Event>,
    _lease: LeaseThread,
}

impl Rig {
    /// A lease of the fast profile, whose host is always clear.
    fn start(store: Arc<dyn Store>, guard: FakeGuard, inherited: Option<(u64, Boottime)>) -> Self {
        Self::on("one", store, guard, inherited)
    }

    fn on(
        machine: &str,
        store: Arc<dyn Store>,
        guard: FakeGuard,
        inherited: Option<(u64, Boottime)>,
    ) -> Self {
        let (events, heard) = unbounded_channel();
        let members = Members::default();
        let keeping = Keeping {
            host: me(),
            identity: Identity {
                boot: BootId(format!("boot of {machine}")),
                machine: MachineId(machine.to_owned()),
            },
            bounds: Profile::Fast.bounds(),
            inherited,
            members: members.clone(),
            guard: Box::new(guard.clone()),
            events,
            tasks: Default::default(),
        };
        let lease = LeaseThread::start(keeping, Box::pin(std::future::ready(store.clone()))).unwrap();
        Self { guard, members, store, heard, _lease: lease }
    }

    /// Hears what is told until something of it is so.
    async fn until(&mut self, what: &str, is_so: impl Fn(&LeaseEvent) -> bool) {
        let heard = async {
            loop {
                let Some(Event::Lease(event)) = self.heard.recv().await else { panic!("the lease ended") };
                let so = is_so(&event);
                if let LeaseEvent::Clear { done, .. } = event {
                    done.send(true).unwrap();
                }
                if so {
                    return;
                }
            }
        };
        tokio::time::timeout(LIMIT, heard).await.unwrap_or_else(|_| panic!("in vain: {what}"));
    }

    async fn opened(&mut self) {
        self.until(
            "a lease that may be used",
            |event| matches!(event, LeaseEvent::Status(status) if status.until.is_some()),
        )
        .await;
    }

    /// The revision of its last renewal.
    async fn renewed(&self) -> Revision {
        let entry = self.store.get(&Key::Renewal(me()).to_string()).await.unwrap();
        entry.map(|entry| entry.modified).unwrap_or_default()
    }

    async fn record(&self) -> LeaseRecord {
        let key = Key::Lease(me()).to_string();
        let entry = self.store.get(&key).await.unwrap().unwrap();
        decode(&key, &entry.value).unwrap()
    }
}

fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::default())
}

fn twenty(members: &Members) -> Vec<Qemu> {
    let all: Vec<Qemu> = (0..20).map(|_| Qemu::start()).collect();
    for (number, qemu) in all.iter().enumerate() {
        let id = InstanceId::from_uuid(Uuid::from_u128(number as u128 + 1));
        members.hold(id, qemu.pidfd.try_clone().unwrap());
    }
    all
}

/// All of them dead, none of them before the deadline, and the last within 100 ms of it.
async fn die_at(members: Vec<Qemu>, deadline: Boottime) {
    let late = tokio::task::spawn_blocking(move || {
        let died: Vec<Boottime> = members.iter().map(Qemu::died).collect();
        assert!(
            died.iter().all(|died| *died >= deadline),
            "killed before the deadline {deadline:?}: {died:?}"
        );
        died.into_iter().max().unwrap().since(deadline)
    });
    let late = late.await.unwrap();
    assert!(late < Duration::from_millis(100), "the last of twenty died {late:?} late");
    eprintln!("the last of twenty died {late:?} after the deadline");
}

/// S1: the guard is gone, and a renewal that it never acknowledged stands in the store.
#[tokio::test]
async fn twenty_members_die_at_the_acknowledged_deadline_when_the_guard_falls_silent() {
    let mut rig = Rig::start(memory(), FakeGuard::default(), None);
    rig.opened().await;
    let members = twenty(&rig.members);
    let before = rig.renewed().await;
    let deadline = rig.guard.fall_silent();
    rig.until("the guard is missed", |event| matches!(event, LeaseEvent::Guard(Some(_)))).await;
    assert!(rig.renewed().await > before, "it was renewed, and not acknowledged");
    die_at(members, deadline).await;
    let lost = |event: &LeaseEvent| matches!(event, LeaseEvent::Lost(Loss::Deadline, 20));
    rig.until("twenty were killed", lost).await;
}

/// An agent that starts where nobody answers: what the guard's table says of its predecessor's members holds.
#[tokio::test]
async fn members_of_an_earlier_agent_die_at_the_deadline_that_it_left() {
    let guard = FakeGuard::default();
    guard.0.lock().unwrap().silent = true;
    let deadline = boottime() + Duration::from_millis(700);
    let rig = Rig::start(memory(), guard, Some((3, deadline)));
    die_at(twenty(&rig.members), deadline).await;
}

#[tokio::test]
async fn a_lease_that_the_store_ends_is_lost_at_once_and_the_next_one_is_opened() {
    let mut rig = Rig::start(memory(), FakeGuard::default(), None);
    rig.opened().await;
    let members = twenty(&rig.members);
    let key = Key::Lease(me()).to_string();
    let other = LeaseRecord { number: 7, boot: BootId("other".to_owned()), ..rig.record().await };
    let txn = understudy_store::Txn::new().put(&key, crate::keys::encode(&other));
    assert!(matches!(rig.store.commit(&txn).await, Ok(understudy_store::Committed::Applied { .. })));
    rig.until("it is lost", |event| matches!(event, LeaseEvent::Lost(Loss::Store, 20))).await;
    drop(members);
    rig.until("the next is open", |event| matches!(event, LeaseEvent::Opened { number: 8, resumed: false }))
        .await;
}

/// The next agent of this boot goes on with it, although nothing has looked at libvirt yet.
#[tokio::test]
async fn an_agent_that_is_restarted_goes_on_with_the_lease_that_its_guard_holds() {
    let (store, guard) = (memory(), FakeGuard::default());
    let mut first = Rig::start(store.clone(), guard.clone(), None);
    first.opened().await;
    drop(first);
    let held = guard.acknowledged().unwrap();
    let mut second = Rig::start(store, guard.clone(), Some((held.lease, Boottime(held.boottime_ns))));
    second
        .until("it goes on", |event| matches!(event, LeaseEvent::Opened { number: 1, resumed: true }))
        .await;
    second.until("it is renewed", |_| guard.acknowledged().unwrap().boottime_ns > held.boottime_ns).await;
}

/// S9: strangers' requests fill the agent's pool of blocking threads. Whatever keeps the lease alive has its own.
#[test]
fn a_lease_is_kept_while_every_blocking_thread_of_the_agent_is_taken() {
    const POOL: usize = 4;
    let agent = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(POOL)
        .enable_all()
        .build()
        .unwrap();
    let home = tempfile::tempdir().unwrap();
    agent.block_on(async {
        // An embedded store does its work on the blocking threads of whoever asks it.
        let limits = understudy_store::EmbeddedLimits::default();
        let store = understudy_store::Embedded::open(home.path().join("store"), limits).await.unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        for _ in 0..POOL * 150 {
            let held = held.clone();
            // Each stands still until the end of the test, as a stalled upload does.
            tokio::task::spawn_blocking(move || held.lock().unwrap().recv().is_err());
        }
        let mut rig = Rig::start(store.clone(), FakeGuard::default(), None);
        rig.opened().await;
        let first = rig.guard.acknowledged().unwrap().boottime_ns;
        // Three ttls of the fast profile.
        let long = first + 3 * 1_500_000_000;
        let guard = rig.guard.clone();
        let renewed = |event: &LeaseEvent| {
            assert!(!matches!(event, LeaseEvent::Lost(..)), "the lease was lost: {event:?}");
            guard.acknowledged().unwrap().boottime_ns > long
        };
        rig.until("renewals go on", renewed).await;
        let asked = tokio::time::timeout(Duration::from_millis(50), store.get("any")).await;
        assert!(asked.is_err(), "the agent's own pool was not full: this test shows nothing");
        drop(release);
    });
}

/// S10: a clone with the same name.
#[tokio::test]
async fn a_second_machine_of_the_same_name_gets_no_lease_until_the_first_ones_is_expired() {
    let store = memory();
    let mut first = Rig::start(store.clone(), FakeGuard::default(), None);
    first.opened().await;
    let mut second = Rig::on("two", store.clone(), FakeGuard::default(), None);
    let taken = |event: &LeaseEvent| matches!(event, LeaseEvent::Taken { by, boot } if by.0 == "one" && boot.0 == "boot of one");
    second.until("it is refused", taken).await;
    let before = first.renewed().await;
    second.until("it is refused again", taken).await;
    second.until("it is refused again", taken).await;
    second.until("it is refused again", taken).await;
    let (record, renewed) = (first.record().await, first.renewed().await);
    assert!(record.machine.0 == "one" && renewed > before, "the first keeps it: {record:?}");
    drop(first);
    // The leader expires it.
    let now = understudy_core::model::units::UnixMillis(1);
    let end = understudy_core::model::records::LeaseExpiry {
        reason: "silent".to_owned(),
        silent_since: now,
        at: now,
    };
    let key = Key::Lease(me()).to_string();
    let ended = LeaseRecord { expired: Some(end), ..record };
    let txn = understudy_store::Txn::new().put(&key, crate::keys::encode(&ended));
    assert!(store.commit(&txn).await.is_ok());
    let opened = |event: &LeaseEvent| matches!(event, LeaseEvent::Opened { number: 2, resumed: false });
    second.until("the name is free", opened).await;
    assert_eq!(second.record().await.machine.0, "two");
}

/// A store of which one member hangs: what is written by it is answered when the test says so.
struct Hangs {
    store: Arc<dyn Store>,
    hangs: AtomicBool,
    /// Renewals that hang.
    held_up: AtomicUsize,
    answers: Semaphore,
}

#[async_trait::async_trait]
impl Store for Hangs {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store.list(prefix).await
    }

    async fn commit(&self, txn: &Txn) -> Result<Committed, StoreError> {
        // The opening of a lease goes by another member.
        let renews = txn.writes.iter().any(|write| write.key() == Key::Renewal(me()).to_string());
        if renews && self.hangs.load(Ordering::SeqCst) {
            self.held_up.fetch_add(1, Ordering::SeqCst);
            drop(self.answers.acquire().await);
        }
        self.store.commit(txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, from).await
    }
}

/// A renewal of the lease before hangs until the next one is open: its answer says nothing of that one.
#[tokio::test]
async fn a_late_answer_to_a_renewal_of_the_lease_before_does_not_cost_the_next_one() {
    let (hangs, held_up) = Default::default();
    let store = Arc::new(Hangs { store: memory(), hangs, held_up, answers: Semaphore::new(0) });
    let mut rig = Rig::start(store.clone(), FakeGuard::default(), None);
    rig.opened().await;
    store.hangs.store(true, Ordering::SeqCst);
    rig.until("the first is lost", |event| matches!(event, LeaseEvent::Lost(Loss::Deadline, 0))).await;
    assert!(store.held_up.load(Ordering::SeqCst) > 0, "nothing hangs: this test shows nothing");
    rig.until("the next is open", |event| matches!(event, LeaseEvent::Opened { number: 2, resumed: false }))
        .await;
    let members = twenty(&rig.members);
    store.hangs.store(false, Ordering::SeqCst);
    store.answers.add_permits(Semaphore::MAX_PERMITS);
    let first = rig.renewed().await;
    // Four renewals, each by what the lease holds by then.
    let renewed = async {
        let mut renewals = 0;
        let mut last = first;
        while renewals < 4 {
            let now = rig.renewed().await;
            renewals += usize::from(now > last);
            last = now;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, renewed).await.expect("it is renewed");
    while let Ok(event) = rig.heard.try_recv() {
        assert!(!matches!(event, Event::Lease(LeaseEvent::Lost(..))), "the next one was lost: {event:?}");
    }
    drop(members);
}
