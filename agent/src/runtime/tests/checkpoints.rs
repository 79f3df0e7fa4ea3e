//! Checkpoints from the guest to the store: over the doubles of hypervisor and store, and peers that take images or do not.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::routing::put;
use understudy_core::model::records::{CheckpointRecord, HostFacts};
use understudy_store::{Committed, Txn};

use super::*;

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
        let mut rig = Self::new();
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
            record.backups.push(Member { host, lease: 1, instance: None, origin: Origin::Reserved });
        }
        rig.put(&Key::Node(protected()), encode(&record)).await;
        (rig, record, asked)
    }

    async fn checkpoint(&self) -> Option<CheckpointRecord> {
        let key = Key::Checkpoint(protected()).to_string();
        let entry = self.runtime.parts.store.get(&key).await.unwrap()?;
        Some(crate::keys::decode(&key, &entry.value).unwrap())
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
    let record = loop {
        if let Some(record) = rig.checkpoint().await {
            break record;
        }
        assert!(started.elapsed() < LIMIT);
        rig.turn().await;
    };
    assert_eq!(record.hosts, ["host2".parse::<HostId>().unwrap()]);
    assert_eq!((record.instance, record.valid), (instance(1), Epoch(1)));
    while rig.scratch() > 0 {
        assert!(started.elapsed() < LIMIT, "the image stays");
        rig.turn().await;
    }
}

/// D2: the backup moved while the copy was under way, and its host has dropped the image.
#[tokio::test]
async fn nothing_is_recorded_over_a_node_record_that_has_changed() {
    let (mut rig, mut record, asked) = Rig::protects(&[Peer::Takes]).await;
    // The store has it, and this host has not heard of it yet.
    record.backups[0].host = "host9".parse().unwrap();
    let key = Key::Node(protected()).to_string();
    let done = rig.runtime.parts.store.commit(&Txn::new().put(key, encode(&record))).await.unwrap();
    assert!(matches!(done, Committed::Applied { .. }));
    let started = std::time::Instant::now();
    while asked[0].load(Ordering::Relaxed) == 0 {
        assert!(started.elapsed() < LIMIT);
        rig.turn().await;
    }
    // It is all there, and the store refuses the record.
    for _ in 0..50 {
        rig.turn().await;
    }
    assert_eq!((rig.checkpoint().await, asked[0].load(Ordering::Relaxed)), (None, 1), "it has to hear first");
    rig.put(&Key::Node(protected()), encode(&record)).await;
    while rig.scratch() > 0 {
        assert!(started.elapsed() < LIMIT, "the image stays");
        rig.turn().await;
    }
    assert_eq!(rig.checkpoint().await, None);
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
