//! The store in a file: what survives, and what it says about a file that it cannot use.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use understudy_store::{
    Committed, Embedded, EmbeddedLimits, Revision, Store, StoreError, Txn, WatchError, chain,
};

async fn open(path: &Path) -> Result<Embedded, StoreError> {
    Embedded::open(path, EmbeddedLimits::default()).await
}

async fn put(store: &Embedded, key: &str, value: impl Into<Vec<u8>>) -> Revision {
    match store.commit(&Txn::new().put(key, value)).await.unwrap() {
        Committed::Applied { revision } => revision,
        refused @ Committed::Refused { .. } => panic!("{refused:?}"),
    }
}

#[tokio::test]
async fn records_and_revisions_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = open(&path).await.unwrap();
    put(&store, "a", "1").await;
    let last = put(&store, "b", "2").await;
    drop(store);
    let store = open(&path).await.unwrap();
    let listing = store.list("").await.unwrap();
    assert_eq!((listing.revision, listing.entries.len()), (last, 2));
    // Changes from before the restart are not kept: a watch from there lists anew, one from now on goes on.
    let gone = store.watch("", Revision(0)).await.unwrap().next().await;
    assert!(matches!(gone, Err(WatchError::Compacted { .. })), "{gone:?}");
    let mut watch = store.watch("", last).await.unwrap();
    let next = put(&store, "c", "3").await;
    assert!(next > last);
    assert_eq!(watch.next().await.unwrap().revision, next);
}

#[tokio::test]
async fn a_file_of_records_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    drop(open(&path).await.unwrap());
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_file_in_use_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let _first = open(&path).await.unwrap();
    let error = open(&path).await.err().expect("it is in use");
    assert!(matches!(&error, StoreError::InUse { path: named } if *named == path), "{}", chain(&error));
    assert!(error.to_string().contains("stop the other agent"), "{error}");
}

#[tokio::test]
async fn a_path_that_cannot_be_a_file_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().join("missing/store.redb"), folder.path().to_owned()] {
        let error = open(&path).await.err().expect("it cannot be a file");
        assert!(
            matches!(&error, StoreError::Denied { file: Some(file), .. } if *file == path),
            "{}",
            chain(&error)
        );
    }
}

/// A store's file of some hundred KiB.
async fn written(path: &Path) -> Vec<u8> {
    let store = open(path).await.unwrap();
    for n in 0..200_u32 {
        put(&store, &format!("key/{n:03}"), vec![b'x'; 1000]).await;
    }
    drop(store);
    std::fs::read(path).unwrap()
}

#[tokio::test]
async fn a_damaged_file_is_refused_by_name_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let good = written(&path).await;
    let cut = good[..good.len() / 3].to_vec();
    let mut scratched = good.clone();
    let third = good.len() / 3;
    scratched[third..2 * third].fill(0xa5);
    let mut header = good.clone();
    header[9..320].fill(0xff);
    let table: [(&str, Vec<u8>); 5] = [
        ("not a store", b"# agent.toml\n".to_vec()),
        ("one byte", vec![0]),
        ("cut short", cut),
        ("overwritten in the middle", scratched),
        ("overwritten at its head", header),
    ];
    for (what, bytes) in table {
        std::fs::write(&path, &bytes).unwrap();
        let error = open(&path).await.err().unwrap_or_else(|| panic!("{what}: it was opened"));
        assert!(
            matches!(&error, StoreError::Damaged { path: named, .. } if *named == path),
            "{what}: {error:?}"
        );
        assert!(error.to_string().contains("restore it from a backup"), "{what}: {error}");
    }
}

#[tokio::test]
async fn a_file_of_another_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    drop(open(&path).await.unwrap());
    let database = redb::Database::open(&path).unwrap();
    let write = database.begin_write().unwrap();
    let meta: redb::TableDefinition<&str, u64> = redb::TableDefinition::new("meta");
    write.open_table(meta).unwrap().insert("format", 2).unwrap();
    write.commit().unwrap();
    drop(database);
    let text = chain(&open(&path).await.err().expect("it is of another format"));
    assert!(text.contains("format 2, this version reads format 1"), "{text}");
}

const CHILD: &str = "UNDERSTUDY_STORE_TEST_FILE";

/// What the process does that `an_answered_commit_survives_a_kill` kills.
async fn write_until_killed(path: &Path) {
    let store = open(path).await.unwrap();
    for n in 0_u64.. {
        let revision = put(&store, &format!("key/{}", n % 10), n.to_string()).await;
        let mut out = std::io::stderr().lock();
        writeln!(out, "answered {n} {revision}").unwrap();
    }
}

#[tokio::test]
async fn an_answered_commit_survives_a_kill() {
    if let Some(path) = std::env::var_os(CHILD) {
        return write_until_killed(Path::new(&path)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    for round in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "an_answered_commit_survives_a_kill", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut answered = Vec::new();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        for line in lines.map_while(Result::ok).filter(|line| line.starts_with("answered")) {
            let numbers: Vec<u64> = line.split(' ').skip(1).map(|word| word.parse().unwrap()).collect();
            answered.push((numbers[0], Revision(numbers[1])));
            if answered.len() == 25 + 7 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let store = open(&path).await.unwrap();
        let listing = store.list("").await.unwrap();
        let &(last, revision) = answered.last().unwrap();
        // One more may have been written and not yet answered.
        assert!(
            listing.revision == revision || listing.revision.0 == revision.0 + 1,
            "{listing:?} {revision}"
        );
        let entry = store.get(&format!("key/{}", last % 10)).await.unwrap().unwrap();
        assert_eq!((entry.value, entry.modified), (last.to_string().into_bytes(), revision));
    }
}
