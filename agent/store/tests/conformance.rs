//! The conformance suite on the stores of one process: in memory, with faults, and in a file.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use understudy_store::conformance::Rig;
use understudy_store::{CommitFault, Embedded, EmbeddedLimits, MemoryStore, Store};

mod memory {
    use super::*;

    struct Memory {
        store: MemoryStore,
        connections: Mutex<Vec<Arc<MemoryStore>>>,
    }

    #[async_trait]
    impl Rig for Memory {
        async fn connect(&self) -> Arc<dyn Store> {
            let store = Arc::new(self.store.another());
            self.connections.lock().unwrap().push(Arc::clone(&store));
            store
        }

        async fn compact(&self) {
            let newest = self.store.list("").await.unwrap().revision;
            self.store.compact(newest);
        }

        async fn disturb(&self) {
            for store in self.connections.lock().unwrap().iter() {
                // `Late` is left out: a commit without conditions that arrives after its repetition is a
                // change of its own, which the checks would rightly call doubled.
                store.fail_commits([CommitFault::AnswerLost, CommitFault::Refused, CommitFault::RequestLost]);
            }
        }

        async fn heal(&self) {
            for store in self.connections.lock().unwrap().iter() {
                store.heal();
            }
        }
    }

    async fn make() -> Memory {
        Memory { store: MemoryStore::new(), connections: Mutex::default() }
    }

    understudy_store::conformance_tests!(make);
}

mod embedded {
    use super::*;

    struct File {
        store: Arc<Embedded>,
        _folder: tempfile::TempDir,
    }

    #[async_trait]
    impl Rig for File {
        async fn connect(&self) -> Arc<dyn Store> {
            self.store.clone()
        }

        async fn compact(&self) {
            let newest = self.store.list("").await.unwrap().revision;
            self.store.compact(newest);
        }

        async fn disturb(&self) {}

        async fn heal(&self) {}
    }

    async fn make() -> File {
        let folder = tempfile::tempdir().unwrap();
        let store =
            Embedded::open(folder.path().join("store.redb"), EmbeddedLimits::default()).await.unwrap();
        File { store: Arc::new(store), _folder: folder }
    }

    understudy_store::conformance_tests!(make);
}
