//! What every implementation of [`Store`] must do, as checks that run against any of them.
//!
//! A check panics with what was wrong. Each is given records of its own and may run after any other.

mod changes;
mod contention;
mod records;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::{Batch, Committed, Condition, Entry, Listing, Revision, Store, Txn, Watch, WatchError};

/// Longer than any wait of a check on a busy machine; a wait that ends by it is a failure.
const LIMIT: Duration = Duration::from_secs(60);

/// A store to be checked, and what the checks need done to it from outside.
#[async_trait]
pub trait Rig: Send + Sync {
    /// A connection to the same records, independent of earlier ones where the store has connections.
    async fn connect(&self) -> Arc<dyn Store>;

    /// Forgets every change made so far.
    async fn compact(&self);

    /// Takes away what a working store can lose: a member of a cluster, an answer on its way.
    async fn disturb(&self);

    /// Gives it back.
    async fn heal(&self);
}

/// Names the checks once, for running them all and for making a test of each.
macro_rules! checks {
    ($($module:ident :: $name:ident),* $(,)?) => {
        $(pub use $module::$name;)*

        /// The names of all checks.
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];

        /// Runs the check of this name.
        ///
        /// # Panics
        /// If the store does not conform, or there is no such check.
        pub async fn run(name: &str, rig: &dyn Rig) {
            match name {
                $(stringify!($name) => Box::pin($name(rig)).await,)*
                other => panic!("there is no check '{other}'"),
            }
        }

        /// Makes a test of each check: `conformance_tests!(path::to::make_rig)`, with an async function
        /// without arguments that gives a [`Rig`](crate::conformance::Rig).
        #[macro_export]
        macro_rules! conformance_tests {
            ($make:path) => {
                $(
                    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                    async fn $name() {
                        let rig = $make().await;
                        $crate::conformance::$name(&rig).await;
                    }
                )*
            };
        }
    };
}

checks!(
    records::a_record_is_read_as_it_was_written,
    records::a_listing_has_its_prefix_and_its_order,
    records::each_condition_is_judged_for_its_key,
    records::a_refused_commit_changes_nothing,
    records::a_check_without_writes_changes_nothing,
    records::wrong_requests_are_refused,
    records::the_biggest_requests_work,
    records::a_listing_of_many_pages_is_of_one_revision,
    changes::a_watch_gives_each_change_once_and_in_order,
    changes::a_watch_sees_deletions,
    changes::a_watch_sees_only_its_prefix,
    changes::a_transaction_is_one_batch,
    changes::a_watch_goes_on_where_another_ended,
    changes::a_compacted_watch_is_told_so,
    changes::a_watch_ahead_of_the_store_is_told_so,
    contention::racing_increments_are_neither_lost_nor_doubled,
    contention::a_term_has_one_holder,
    contention::a_former_leader_can_only_lose,
    contention::a_leadership_can_be_given_up,
);

async fn applied(store: &dyn Store, txn: Txn) -> Revision {
    match store.commit(&txn).await.expect("the commit is answered") {
        Committed::Applied { revision } => revision,
        refused @ Committed::Refused { .. } => panic!("{txn:?}: {refused:?}"),
    }
}

async fn refused(store: &dyn Store, txn: Txn) -> Vec<String> {
    match store.commit(&txn).await.expect("the commit is answered") {
        Committed::Refused { failed, .. } => failed,
        applied @ Committed::Applied { .. } => panic!("{txn:?}: {applied:?}"),
    }
}

async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    applied(store, Txn::new().put(key, value)).await
}

async fn get(store: &dyn Store, key: &str) -> Option<Entry> {
    store.get(key).await.expect("the read is answered")
}

async fn list(store: &dyn Store, prefix: &str) -> Listing {
    store.list(prefix).await.expect("the listing is answered")
}

async fn watch(store: &dyn Store, prefix: &str, from: Revision) -> Watch {
    store.watch(prefix, from).await.expect("the watch is opened")
}

async fn next(watch: &mut Watch) -> Result<Batch, WatchError> {
    tokio::time::timeout(LIMIT, watch.next()).await.expect("the watch gives something in time")
}

async fn batch(watch: &mut Watch) -> Batch {
    next(watch).await.expect("the watch goes on")
}

fn unchanged(entry: &Entry) -> Condition {
    Condition::Unchanged(entry.key.clone(), entry.modified)
}
