//! A store in one file, for a cluster of one host.
//!
//! Owns the file. Promises: a commit that was answered is on the disk (redb syncs before it answers); a file
//! that is damaged or in use is refused with its name and what to do. Must not be opened twice: the lock on the
//! file belongs to one process.
//!
//! After a failed disk operation redb closes the file to protect it. The store then opens it again at the next
//! call, reads where it stands, and ends the watches as compacted, because a commit whose outcome was not
//! known may have been kept without being seen by them.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, StorageError, TableDefinition,
};

use crate::Store;
use crate::error::{BoxError, StoreError};
use crate::history::{History, HistoryLimits, Reader};
use crate::rules::{check_key, check_prefix, check_txn, describe, holds};
use crate::types::{Batch, Change, Committed, Entry, Listing, Revision, Txn, Write};
use crate::watch::Watch;

/// Key → (revision of the last write, value).
const RECORDS: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("records");
/// `format` and `revision`.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const FORMAT: u64 = 1;
/// The records of one host are a few hundred KiB; redb's own default would be 1 GiB.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// What an embedded store keeps for its watches.
pub type EmbeddedLimits = HistoryLimits;

/// A store in one file of this host.
pub struct Embedded {
    inner: Arc<Inner>,
}

/// The open file and the revision at which it stands.
type Opened = Result<(Database, Revision), StoreError>;

struct Inner {
    path: PathBuf,
    /// Opens the file; its argument says whether it may be made.
    open: Box<dyn Fn(bool) -> Opened + Send + Sync>,
    /// `None` after a failed disk operation, until the file is open again. The lock also puts commits and their
    /// publication in one order.
    database: Mutex<Option<Database>>,
    history: Arc<History>,
}

/// Any fault of redb while it works on an open file.
type Fault = redb::Error;

#[derive(Debug, thiserror::Error)]
enum Finding {
    #[error("the file is not a store: it does not begin as one")]
    NotAStore,
    #[error("the file has format {0}, this version reads format {FORMAT}")]
    Format(u64),
    #[error("the file holds other tables than a store's")]
    Tables,
    #[error("its checksums do not match and could not be repaired")]
    Checksums,
    #[error("reading it failed with an internal error: {0}")]
    Panicked(String),
}

impl Embedded {
    /// Opens the file, or makes it (readable by its owner only) if there is none.
    pub async fn open(path: impl Into<PathBuf>, limits: EmbeddedLimits) -> Result<Self, StoreError> {
        Self::open_with(path.into(), limits, FileBackend::new).await
    }

    async fn open_with<B: StorageBackend>(
        path: PathBuf,
        limits: EmbeddedLimits,
        backend: impl Fn(File) -> Result<B, DatabaseError> + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        let file = path.clone();
        let open = move |create| open_file(&file, create, &backend);
        blocking(move || {
            let (database, revision) = open(true)?;
            let history = Arc::new(History::new(revision, limits));
            let inner = Inner { path, open: Box::new(open), database: Mutex::new(Some(database)), history };
            Ok(Self { inner: Arc::new(inner) })
        })
        .await
    }

    /// Forgets every change up to `revision`: watches that still need one end as compacted.
    pub fn compact(&self, revision: Revision) {
        self.inner.history.compact(revision);
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, &Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.run(work)).await
    }
}

/// redb calls block on the disk: they run on the runtime's threads for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that shuts down cancels; nobody is left who could be misled by waiting.
            Err(_) => std::future::pending().await,
        },
    }
}

impl Inner {
    fn run<T>(&self, work: impl FnOnce(&Self, &Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match slot.take() {
            Some(database) => database,
            None => {
                // Not made anew: a file that vanished under a running agent is a loss to be seen.
                let (database, revision) = (self.open)(false)?;
                self.history.compact(revision);
                tracing::info!(path = %self.path.display(), %revision, "store file opened again");
                database
            }
        };
        let result = work(self, &database);
        let closed = matches!(
            &result,
            Err(StoreError::Unavailable { .. } | StoreError::Ambiguous { .. } | StoreError::Damaged { .. })
        );
        if !closed {
            *slot = Some(database);
        }
        result
    }

    fn fault(&self, attempted: String, fault: impl Into<Fault>) -> StoreError {
        match fault.into() {
            fault @ Fault::Corrupted(_) => {
                StoreError::Damaged { path: self.path.clone(), source: Box::new(fault) }
            }
            fault => StoreError::Unavailable { attempted, source: Box::new(fault) },
        }
    }

    fn apply(&self, database: &Database, txn: &Txn) -> Result<Committed, StoreError> {
        let attempted = || format!("commit {} to {}", describe(txn), self.path.display());
        let before = |fault: Fault| self.fault(attempted(), fault);
        let write = database.begin_write().map_err(|e| before(e.into()))?;
        let staged = stage(&write, txn).map_err(before)?;
        let batch = match staged {
            Staged::Nothing(committed) => {
                write.abort().map_err(|e| before(e.into()))?;
                return Ok(committed);
            }
            Staged::Writes(batch) => batch,
        };
        // From here on a fault leaves open whether the new root reached the disk.
        write.commit().map_err(|fault| StoreError::Ambiguous {
            attempted: format!("{} to {}", describe(txn), self.path.display()),
            source: Box::new(fault),
        })?;
        let revision = batch.revision;
        self.history.push(batch);
        Ok(Committed::Applied { revision })
    }
}

enum Staged {
    Nothing(Committed),
    Writes(Batch),
}

/// Looks at the conditions and puts the writes into redb's transaction.
fn stage(write: &redb::WriteTransaction, txn: &Txn) -> Result<Staged, Fault> {
    let mut records = write.open_table(RECORDS)?;
    let mut meta = write.open_table(META)?;
    let current = meta.get("revision")?.map_or(0, |guard| guard.value());
    let mut failed = Vec::new();
    for condition in &txn.conditions {
        let modified = records.get(condition.key())?.map(|guard| Revision(guard.value().0));
        if !holds(condition, modified) {
            failed.push(condition.key().to_owned());
        }
    }
    if !failed.is_empty() {
        return Ok(Staged::Nothing(Committed::Refused { revision: Revision(current), failed }));
    }
    let revision = Revision(current + 1);
    let mut changes = Vec::new();
    for one in &txn.writes {
        match one {
            Write::Put(key, value) => {
                records.insert(key.as_str(), (revision.0, value.as_slice()))?;
                let entry = Entry { key: key.clone(), value: value.clone(), modified: revision };
                changes.push(Change::Put(entry));
            }
            Write::Delete(key) => {
                if records.remove(key.as_str())?.is_some() {
                    changes.push(Change::Deleted { key: key.clone(), revision });
                }
            }
        }
    }
    if changes.is_empty() {
        return Ok(Staged::Nothing(Committed::Applied { revision: Revision(current) }));
    }
    changes.sort_by(|a, b| a.key().cmp(b.key()));
    meta.insert("revision", revision.0)?;
    Ok(Staged::Writes(Batch { revision, changes }))
}

fn read_list(database: &Database, prefix: &str) -> Result<Listing, Fault> {
    let read = database.begin_read()?;
    let revision = Revision(read.open_table(META)?.get("revision")?.map_or(0, |guard| guard.value()));
    let mut entries = Vec::new();
    for record in read.open_table(RECORDS)?.range(prefix..)? {
        let (key, record) = record?;
        if !key.value().starts_with(prefix) {
            break;
        }
        entries.push(to_entry(key.value(), record.value()));
    }
    Ok(Listing { revision, entries })
}

fn to_entry(key: &str, (modified, value): (u64, &[u8])) -> Entry {
    Entry { key: key.to_owned(), value: value.to_vec(), modified: Revision(modified) }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        check_key(key)?;
        let key = key.to_owned();
        self.with(move |inner, database| {
            let read = || -> Result<Option<Entry>, Fault> {
                let records = database.begin_read()?.open_table(RECORDS)?;
                Ok(records.get(key.as_str())?.map(|guard| to_entry(&key, guard.value())))
            };
            read().map_err(|fault| inner.fault(format!("read '{key}'"), fault))
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        check_prefix(prefix)?;
        let prefix = prefix.to_owned();
        self.with(move |inner, database| {
            read_list(database, &prefix).map_err(|fault| inner.fault(format!("list '{prefix}'"), fault))
        })
        .await
    }

    async fn commit(&self, txn: &Txn) -> Result<Committed, StoreError> {
        check_txn(txn)?;
        let txn = txn.clone();
        self.with(move |inner, database| inner.apply(database, &txn)).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        check_prefix(prefix)?;
        Ok(Watch::local(Reader::new(&self.inner.history, prefix, from), None))
    }
}

fn open_file<B: StorageBackend>(
    path: &Path,
    create: bool,
    backend: &impl Fn(File) -> Result<B, DatabaseError>,
) -> Opened {
    let file = prepare(path, create)?;
    let open = || open_database(path, backend(file).map_err(|e| opening(path, e))?);
    // redb is not built to read what others may have written over its file: a damaged one may make it panic.
    let opened = catch_unwind(AssertUnwindSafe(open));
    opened.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
        Err(damaged(path, Finding::Panicked(text.to_owned())))
    })
}

fn damaged(path: &Path, source: impl Into<BoxError>) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), source: source.into() }
}

fn prepare(path: &Path, create: bool) -> Result<File, StoreError> {
    let denied = |error: std::io::Error| StoreError::Denied {
        problem: format!("cannot open the store file {}", path.display()),
        advice: "see that its folder exists on a disk with room and that the agent may write there"
            .to_owned(),
        file: Some(path.to_owned()),
        source: Some(Box::new(error)),
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(denied)?;
    // A file that is neither empty nor begins as redb's would be reported by redb as an I/O error.
    let mut head = [0; 4];
    let length = file.metadata().map_err(denied)?.len();
    if length > 0 && (file.read_exact(&mut head).is_err() || head != *b"redb") {
        return Err(damaged(path, Finding::NotAStore));
    }
    file.seek(SeekFrom::Start(0)).map_err(denied)?;
    if length == 0 {
        // The new file's name must be on the disk as well before anything in it counts as kept.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(denied)?;
    }
    Ok(file)
}

fn open_database(path: &Path, backend: impl StorageBackend) -> Opened {
    let mut database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(backend)
        .map_err(|e| opening(path, e))?;
    // Reads every page. The file is small, and an agent that starts on rotten records would act on them.
    match database.check_integrity() {
        Ok(true) => {}
        Ok(false) => tracing::warn!(path = %path.display(), "store file repaired after an unclean end"),
        Err(DatabaseError::Storage(StorageError::Corrupted(_))) => {
            return Err(damaged(path, Finding::Checksums));
        }
        Err(error) => return Err(opening(path, error)),
    }
    let revision = found(&database).map_err(|fault| match fault {
        Refusal::Finding(finding) => damaged(path, finding),
        Refusal::Fault(fault) => damaged(path, fault),
    })?;
    Ok((database, revision))
}

fn opening(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StoreError::InUse { path: path.to_owned() }
        }
        DatabaseError::Storage(StorageError::Io(error))
            if error.kind() != std::io::ErrorKind::InvalidData =>
        {
            let attempted = format!("open the store file {}", path.display());
            StoreError::Unavailable { attempted, source: Box::new(error) }
        }
        other => damaged(path, other),
    }
}

enum Refusal {
    Finding(Finding),
    Fault(Fault),
}

impl<E: Into<Fault>> From<E> for Refusal {
    fn from(fault: E) -> Self {
        Self::Fault(fault.into())
    }
}

/// The revision of a store's file; lays out a new one.
fn found(database: &Database) -> Result<Revision, Refusal> {
    let write = database.begin_write()?;
    let tables: Vec<String> =
        write.list_tables()?.map(|table| redb::TableHandle::name(&table).to_owned()).collect();
    if tables.is_empty() {
        write.open_table(RECORDS)?;
        let mut meta = write.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("revision", 0)?;
        drop(meta);
        write.commit()?;
        return Ok(Revision(0));
    }
    if !["meta", "records"].iter().all(|name| tables.iter().any(|table| table == name)) {
        return Err(Refusal::Finding(Finding::Tables));
    }
    let meta = write.open_table(META)?;
    let format = meta.get("format")?.map_or(0, |guard| guard.value());
    if format != FORMAT {
        return Err(Refusal::Finding(Finding::Format(format)));
    }
    let revision = meta.get("revision")?.map_or(0, |guard| guard.value());
    Ok(Revision(revision))
}

#[cfg(test)]
mod tests;
