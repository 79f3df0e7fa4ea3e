//! Owns the many hosts beside which a real agent is watched: their records in a real etcd, their renewals, and the changes
//! that they report.
//!
//! Promises: first everything is loaded, then one line of JSON says so; from then on each host renews its lease once a
//! second and reports a change of one instance twice a minute, or as often as the etcd takes it: each line says how often
//! that was. It ends when nobody reads it any more. Must not do: watch the agent.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;
use tokio::sync::Mutex;
use understudy_core::keys::{Key, encode};
use understudy_core::model::ids::HostId;
use understudy_core::model::records::RenewalRecord;
use understudy_core::model::units::UnixMillis;
use understudy_store::{Committed, Etcd, EtcdConfig, Store, Txn};

use crate::cluster::{Cluster, host};

/// Puts of one transaction: etcd takes 128.
const PUTS: usize = 100;
/// Requests at one time.
const TOGETHER: u64 = 64;
/// A host reports a change with one in so many of its renewals.
const CHANGES: u64 = 30;
/// Between two lines.
const SPAN: Duration = Duration::from_secs(5);

/// What the etcd has taken in a [`SPAN`], a second.
#[derive(Debug, Serialize)]
struct Taken {
    renewals: f64,
    changes: f64,
}

/// Loads a cluster of so many hosts and keeps it alive.
pub(crate) fn run(endpoint: &str, hosts: usize) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(keep(endpoint, hosts))
}

async fn keep(endpoint: &str, hosts: usize) -> Result<()> {
    let config = EtcdConfig::new(vec![endpoint.to_owned()], "/understudy/", "hosts");
    let store: Arc<dyn Store> = Arc::new(Etcd::open(config).await?);
    let cluster = Cluster::of(hosts)?;
    load(store.as_ref(), &cluster).await?;
    say(&Taken { renewals: 0.0, changes: 0.0 })?;
    let names = Arc::new((0..hosts).map(host).collect::<Result<Vec<HostId>>>()?);
    let (next, changes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let cluster = Arc::new(Mutex::new(cluster));
    let each = Duration::from_secs(1) * u32::try_from(TOGETHER)? / u32::try_from(hosts)?;
    for _ in 0..TOGETHER {
        let (store, names, cluster) = (Arc::clone(&store), Arc::clone(&names), Arc::clone(&cluster));
        let (next, changes) = (Arc::clone(&next), Arc::clone(&changes));
        tokio::spawn(async move {
            let mut turn = tokio::time::interval(each);
            // An etcd that is late is not asked for more afterwards.
            turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                turn.tick().await;
                let number = next.fetch_add(1, Ordering::Relaxed);
                let name = &names[usize::try_from(number).unwrap_or_default() % names.len()];
                let record = RenewalRecord { number: 1, at: wall() };
                let mut txn = Txn::new().put(Key::Renewal(name.clone()).to_string(), encode(&record));
                if (number / names.len() as u64 + number).is_multiple_of(CHANGES) {
                    let mut cluster = cluster.lock().await;
                    cluster.now.wall = wall();
                    if let Ok(facts) = cluster.show(name) {
                        txn = txn.put(Key::Facts(name.clone()).to_string(), encode(&facts));
                        changes.fetch_add(1, Ordering::Relaxed);
                    }
                }
                if store.commit(&txn).await.is_err() {
                    eprintln!("a renewal of {name} was not written");
                }
            }
        });
    }
    let mut before = (0, 0);
    loop {
        tokio::time::sleep(SPAN).await;
        let now = (next.load(Ordering::Relaxed), changes.load(Ordering::Relaxed));
        let a_second = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / SPAN.as_secs_f64();
        say(&Taken { renewals: a_second(now.0 - before.0), changes: a_second(now.1 - before.1) })?;
        before = now;
    }
}

async fn load(store: &dyn Store, cluster: &Cluster) -> Result<()> {
    let at = wall();
    let hosts = cluster.view.hosts.iter().flat_map(|(host, seen)| {
        let facts = seen.facts.as_ref().map(|facts| (Key::Facts(host.clone()), encode(facts.as_ref())));
        let lease = (Key::Lease(host.clone()), encode(&seen.lease.value));
        let renewal = (Key::Renewal(host.clone()), encode(&RenewalRecord { number: 1, at }));
        facts.into_iter().chain([lease, renewal])
    });
    let view = &cluster.view;
    let nodes = view.nodes.iter().map(|(node, known)| (Key::Node(node.clone()), encode(&known.value)));
    let all: Vec<(Key, Vec<u8>)> = nodes.chain(hosts).collect();
    for puts in all.chunks(PUTS) {
        let put = |txn: Txn, (key, value): &(Key, Vec<u8>)| txn.put(key.to_string(), value.clone());
        let put = store.commit(&puts.iter().fold(Txn::new(), put)).await;
        ensure!(matches!(put, Ok(Committed::Applied { .. })), "the hosts' records are not taken: {put:?}");
    }
    Ok(())
}

fn say(taken: &Taken) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{}", serde_json::to_string(taken)?)?;
    Ok(out.flush()?)
}

fn wall() -> UnixMillis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
