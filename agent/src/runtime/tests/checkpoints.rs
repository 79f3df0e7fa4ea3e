//! Checkpoints from the guest to the backups' hosts, and what is said of them: over the doubles of hypervisor and store, and
//! peers that take images or do not.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::routing::put;
use understudy_core::model::records::{Age, HostFacts};
use understudy_hypervisor::Tier;
use understudy_hypervisor::fake::{Fault, Operation};
use understudy_store::{Committed, Txn};

use super::*;
use crate::runtime::effects::checkpoint::settle;

fn protected() -> NodeId {
    "alice/exec-1".parse().unwrap()
}

/// What a peer does with an image.
#[derive(Debug, Clone, Copy)]
enum Peer {
    Takes,
    Refuses,
    /// Reads nothing and says nothing.
    StandsStill,
}

/// A peer, and how many requests it has had.
async fn peer(kind: Peer) -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let answer = move |body: Body| async move {
        counted.fetch_add(1, Ordering::Relaxed);
        match kind {
            Peer::Takes => match axum::body::to_bytes(body, usize::MAX).await {
                Ok(_) => StatusCode::NO_CONTENT,
                Err(_) => StatusCode::BAD_REQUEST,
            },
            Peer::Refuses => StatusCode::CONFLICT,
            Peer::StandsStill => std::future::pending().await,
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/v1/checkpoints", put(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, asked)
}

impl Rig {
    /// A record in the store, as the runtime sees it too.
    async fn put(&mut self, key: &Key, value: Vec<u8>) {
        let store = self.runtime.parts.store.clone();
        let done = store.commit(&Txn::new().put(key.to_string(), value.clone())).await.unwrap();
        let Committed::Applied { revision } = done else { panic!("{done:?}") };
        self.entries.retain(|entry| entry.key != key.to_string());
        self.entries.push(Entry { key: key.to_string(), value, modified: revision });
        self.runtime.take(Event::Listed {
            listing: Listing { revision, entries: self.entries.clone() },
            renewals: true,
        });
    }

    /// Its state is protected on hosts of these kinds, `host2` and on.
    async fn protects(peers: &[Peer]) -> (Self, NodeRecord, Vec<Arc<AtomicUsize>>) {
        Self::new().protecting(peers).await
    }

    async fn protecting(self, peers: &[Peer]) -> (Self, NodeRecord, Vec<Arc<AtomicUsize>>) {
        let mut rig = self;
        rig.runs(instance(1), Phase::Ready, Some(protected()));
        let mut record = record(Some(instance(1)));
        record.spec.protected = true;
        let mut asked = Vec::new();
        for (number, kind) in (2..).zip(peers) {
            let host: HostId = format!("host{number}").parse().unwrap();
            let (address, count) = peer(*kind).await;
            asked.push(count);
            let lease = LeaseRecord::open(BootId("boot".to_owned()), Default::default(), 1);
            let facts = HostFacts {
                lease: 1,
                api: address.to_string(),
                instances: BTreeMap::new(),
                ..rig.runtime.facts()
            };
            rig.put(&Key::Lease(host.clone()), encode(&lease)).await;
            rig.put(&Key::Facts(host.clone()), encode(&facts)).await;
            record.backups.push(Member {
                host,
                lease: 1,
                instance: None,
                origin: Origin::Reserved,
                place: 0,
            });
        }
        rig.put(&Key::Node(protected()), encode(&record)).await;
        (rig, record, asked)
    }

    /// The backups' hosts that have a checkpoint, as it is reported.
    fn protection(&self) -> BTreeMap<HostId, Age> {
        let facts = self.runtime.facts();
        let hosts = facts.protection.get(&protected()).map(|known| known.hosts.clone()).unwrap_or_default();
        hosts.into_iter().map(|(host, newest)| (host, newest.age)).collect()
    }

    /// How often anything was written to the store.
    async fn written(&self) -> u64 {
        self.runtime.parts.store.list("").await.unwrap().revision.0
    }

    /// Takes one event, or acts on time.
    async fn turn(&mut self) {
        self.work();
        let heard = tokio::time::timeout(Duration::from_millis(20), self.runtime.receiver.recv()).await;
        if let Ok(Some(event)) = heard {
            self.runtime.take(event);
        }
    }

    fn scratch(&self) -> usize {
        let files = std::fs::read_dir(&self.runtime.parts.scratch).unwrap().filter_map(Result::ok);
        let is_passing = |name: &str| name.ends_with(".image") || name.ends_with(".pages");
        files.filter(|file| is_passing(&file.file_name().to_string_lossy())).count()
    }
}

#[tokio::test]
async fn what_one_backup_takes_counts_though_the_other_refuses_it() {
    let (mut rig, ..) = Rig::protects(&[Peer::Takes, Peer::Refuses]).await;
    let started = std::time::Instant::now();
    while rig.protection().is_empty() {
        assert!(started.elapsed() < LIMIT);
        rig.turn().await;
    }
    assert_eq!(rig.protection(), BTreeMap::from([("host2".parse().unwrap(), Age::Fresh)]));
    while rig.scratch() > 0 {
        assert!(started.elapsed() < LIMIT, "the image stays");
        rig.turn().await;
    }
}

/// D2: the backup moved, and its host drops the images.
#[tokio::test]
async fn a_host_that_is_no_backup_any_more_is_not_said_to_have_a_checkpoint() {
    let (mut rig, mut record, _) = Rig::protects(&[Peer::Takes]).await;
    let started = std::time::Instant::now();
    while rig.protection().is_empty() {
        assert!(started.elapsed() < LIMIT);
        rig.turn().await;
    }
    record.backups[0].host = "host9".parse().unwrap();
    rig.put(&Key::Node(protected()), encode(&record)).await;
    rig.turn().await;
    assert_eq!(rig.protection(), BTreeMap::new());
}

/// The manifest at the backup's host is the truth, and no record repeats it.
#[tokio::test]
async fn a_checkpoint_of_a_node_at_rest_is_no_write_to_the_store() {
    let rig = Rig::with(0, |config| config.bounds.checkpoint_interval = Duration::from_millis(20));
    let (mut rig, _, asked) = rig.protecting(&[Peer::Takes]).await;
    let (started, mut at_rest) = (std::time::Instant::now(), None);
    let taken = |asked: &[Arc<AtomicUsize>]| asked[0].load(Ordering::Relaxed);
    // Written whenever it differs, as the loop does it.
    while at_rest.is_none_or(|(_, since)| taken(&asked) < since + 20) {
        assert!(started.elapsed() < LIMIT, "{} checkpoints", taken(&asked));
        rig.turn().await;
        let facts = Arc::new(rig.runtime.facts());
        rig.runtime.publish_facts(&facts, now());
        let is_reported = |own: &super::super::publish::Published| !own.facts.protection.is_empty();
        if at_rest.is_none() && rig.runtime.published.as_ref().is_some_and(is_reported) {
            at_rest = Some((rig.written().await, taken(&asked)));
        }
    }
    assert_eq!(at_rest.map(|(written, _)| written), Some(rig.written().await));
    assert_eq!(rig.protection(), BTreeMap::from([("host2".parse().unwrap(), Age::Fresh)]));
}

#[tokio::test]
async fn what_goes_on_with_an_image_ends_with_what_it_was_decided_from() {
    let (mut rig, record, asked) = Rig::protects(&[Peer::StandsStill]).await;
    let started = std::time::Instant::now();
    while asked[0].load(Ordering::Relaxed) == 0 {
        assert!(started.elapsed() < LIMIT);
        rig.turn().await;
    }
    assert_eq!(rig.scratch(), 1);
    let gone = NodeRecord { backups: Vec::new(), ..record };
    rig.put(&Key::Node(protected()), encode(&gone)).await;
    while rig.scratch() > 0 {
        assert!(started.elapsed() < LIMIT, "the copy goes on");
        rig.turn().await;
    }
}

impl Rig {
    /// This host's trial has come to this; checkpoints go on until one is recorded.
    async fn takes_one(&mut self, tier: Tier) -> Vec<String> {
        let (parts, events) = (self.runtime.parts.clone(), self.runtime.events());
        settle(&parts, &events, tier);
        let started = std::time::Instant::now();
        while self.protection().is_empty() {
            assert!(started.elapsed() < LIMIT, "no checkpoint");
            self.turn().await;
        }
        let text = parts.metrics.text(now().wall);
        text.lines()
            .filter_map(|line| line.strip_prefix("understudy_checkpoint_"))
            .map(str::to_owned)
            .collect()
    }
}

fn has(metrics: &[String], line: &str) -> bool {
    metrics.iter().any(|metric| metric == line)
}

#[tokio::test]
async fn a_checkpoint_is_a_snapshot_where_the_trial_says_so() {
    let (mut rig, ..) = Rig::protects(&[Peer::Takes]).await;
    rig.hypervisor.set_failing(Operation::Save, Some(Fault::Refused));
    let metrics = rig.takes_one(Tier::Background).await;
    assert!(has(&metrics, "tier{tier=\"background\"} 1") && has(&metrics, "tier{tier=\"saved\"} 0"));
    assert!(has(&metrics, "snapshots_failed_total 0"), "{metrics:?}");
    assert!(rig.runtime.conditions.is_empty(), "{:?}", rig.runtime.conditions);
}

#[tokio::test]
async fn after_a_snapshot_that_broke_off_the_checkpoint_is_a_save() {
    let (mut rig, ..) = Rig::protects(&[Peer::Takes]).await;
    rig.hypervisor.break_snapshot(instance(1));
    let metrics = rig.takes_one(Tier::Background).await;
    assert!(has(&metrics, "snapshots_failed_total 1"), "{metrics:?}");
}

#[tokio::test]
async fn where_the_trial_says_no_a_checkpoint_is_a_save_and_the_host_says_why() {
    let (mut rig, ..) = Rig::protects(&[Peer::Takes]).await;
    rig.hypervisor.set_failing(Operation::Snapshot, Some(Fault::Refused));
    let metrics = rig.takes_one(Tier::Saved { reason: "set the sysctl".to_owned() }).await;
    assert!(has(&metrics, "tier{tier=\"background\"} 0") && has(&metrics, "tier{tier=\"saved\"} 1"));
    assert!(has(&metrics, "snapshots_failed_total 0"), "none is tried: {metrics:?}");
    let told = rig.runtime.conditions.values().any(|text| text.ends_with("set the sysctl"));
    assert!(told, "{:?}", rig.runtime.conditions);
}

#[tokio::test]
async fn where_time_or_memory_is_short_a_snapshot_that_failed_is_not_followed_by_a_save_that_holds_the_guest_up()
 {
    let (mut rig, ..) = Rig::protects(&[Peer::Takes]).await;
    rig.hypervisor.set_failing(Operation::Snapshot, Some(Fault::LostRequest));
    settle(&rig.runtime.parts, &rig.runtime.events(), Tier::Background);
    let started = std::time::Instant::now();
    let failed = |rig: &Rig| {
        let text = rig.runtime.parts.metrics.text(now().wall);
        let count =
            text.lines().find_map(|line| line.strip_prefix("understudy_checkpoint_snapshots_failed_total "));
        count.and_then(|count| count.parse::<u64>().ok()).unwrap_or_default()
    };
    while failed(&rig) < 2 {
        assert!(started.elapsed() < LIMIT, "it is tried again");
        rig.turn().await;
    }
    assert!(rig.protection().is_empty(), "a save was taken");
    rig.hypervisor.set_failing(Operation::Snapshot, None);
    while rig.protection().is_empty() {
        assert!(started.elapsed() < LIMIT, "no checkpoint");
        rig.turn().await;
    }
}
