//! What the file keeps, and what it says when it is damaged.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::error::{WatchError, chain};
use crate::types::Condition;

/// A disk that fails to sync, as a full or broken one does, while it is told to.
#[derive(Debug)]
struct Flaky {
    file: FileBackend,
    broken: Arc<AtomicBool>,
    reads: bool,
}

impl StorageBackend for Flaky {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.reads && self.broken.load(Ordering::Relaxed) {
            return Err(io::Error::other("no read"));
        }
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no sync"));
        }
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

async fn flaky(path: PathBuf) -> (Embedded, Arc<AtomicBool>) {
    let broken = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&broken);
    let backend =
        move |file| Ok(Flaky { file: FileBackend::new(file)?, broken: Arc::clone(&switch), reads: false });
    (Embedded::open_with(path, EmbeddedLimits::default(), backend).await.unwrap(), broken)
}

#[tokio::test]
async fn after_a_failed_sync_the_outcome_is_unclear_and_the_store_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let (store, broken) = flaky(folder.path().join("store.redb")).await;
    let Ok(Committed::Applied { revision }) = store.commit(&Txn::new().put("a", "1")).await else { panic!() };
    let mut watch = store.watch("", revision).await.unwrap();

    broken.store(true, Ordering::Relaxed);
    let error = store.commit(&Txn::new().put("a", "2")).await.unwrap_err();
    assert!(matches!(error, StoreError::Ambiguous { .. }), "{}", chain(&error));
    broken.store(false, Ordering::Relaxed);

    // The record is one of the two, whole; writes go on; watches list anew if the commit was kept.
    let after = store.list("").await.unwrap();
    let value = after.entries[0].value.clone();
    assert!(value == b"1" || (value == b"2" && after.revision > revision), "{after:?}");
    let next = Txn::new().when(Condition::Present("a".into())).put("a", "3");
    let Ok(Committed::Applied { revision: third }) = store.commit(&next).await else { panic!() };
    match watch.next().await {
        Ok(batch) => assert!(batch.revision == third && value == b"1", "{batch:?}"),
        Err(WatchError::Compacted { .. }) => assert_eq!(value, b"2"),
        Err(error) => panic!("{}", chain(&error)),
    }
}

#[tokio::test]
async fn a_file_that_vanished_is_not_made_anew_under_a_running_agent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let (store, broken) = flaky(path.clone()).await;
    let _ = store.commit(&Txn::new().put("a", "1")).await.unwrap();
    broken.store(true, Ordering::Relaxed);
    assert!(store.commit(&Txn::new().put("a", "2")).await.is_err());
    broken.store(false, Ordering::Relaxed);
    std::fs::remove_file(&path).unwrap();
    let error = store.get("a").await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Denied { file: Some(file), .. } if *file == path),
        "{}",
        chain(&error)
    );
    assert!(!path.exists());
}
