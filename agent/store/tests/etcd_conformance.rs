//! The conformance suite on a cluster of three etcd members with TLS, one of which is killed in the middle of
//! each check that disturbs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod cluster;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use cluster::Cluster;
use tokio::sync::Mutex;
use understudy_store::conformance::{self, Rig};
use understudy_store::{Etcd, Store};

struct Members {
    cluster: Mutex<Cluster>,
    killed: Mutex<Option<usize>>,
    clients: AtomicUsize,
}

#[async_trait]
impl Rig for Members {
    async fn connect(&self) -> Arc<dyn Store> {
        let name = format!("client-{}", self.clients.fetch_add(1, Ordering::Relaxed));
        let mut config = self.cluster.lock().await.config(&name);
        // Each client begins at another member.
        let turn = self.clients.load(Ordering::Relaxed) % config.endpoints.len();
        config.endpoints.rotate_left(turn);
        Arc::new(Etcd::open(config).await.unwrap())
    }

    async fn compact(&self) {
        self.cluster.lock().await.compact().await;
    }

    async fn disturb(&self) {
        let mut cluster = self.cluster.lock().await;
        let leader = cluster.leader().await;
        cluster.kill(leader);
        *self.killed.lock().await = Some(leader);
    }

    async fn heal(&self) {
        if let Some(killed) = self.killed.lock().await.take() {
            self.cluster.lock().await.restart(killed);
        }
    }
}

// One thread: members are started on the test's own, with which they end.
#[tokio::test]
#[ignore = "needs etcd, setpriv"]
async fn etcd_passes_every_check_of_the_suite() {
    let rig = Members {
        cluster: Mutex::new(Cluster::start(3).await),
        killed: Mutex::new(None),
        clients: AtomicUsize::new(0),
    };
    for name in conformance::NAMES {
        let started = std::time::Instant::now();
        eprint!("{name} ... ");
        conformance::run(name, &rig).await;
        eprintln!("ok, {} ms", started.elapsed().as_millis());
    }
}
