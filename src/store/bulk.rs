//! Bulk mode for backfills: no search graph is built while a collection is filled, and the building is
//! switched on again, whatever happens to the worker that switched it off.
//!
//! What to switch back to and until when is written into the collection's metadata before anything is
//! switched off. Whoever is at work renews the time; a time that has passed says that the worker is
//! gone, and then whoever opens the collection next switches back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::store::{Store, StoreError};

/// Metadata key of the lease.
const LEASE_KEY: &str = "tcbert_worker_bulk";
/// How long bulk mode outlives its worker.
pub const LEASE: Duration = Duration::from_secs(300);
/// How often [`Bulk::renew`] is to be called.
pub const RENEW_EVERY: Duration = Duration::from_secs(60);
/// Building switched off.
const NEVER: u64 = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Lease {
    /// What to switch back to.
    threshold: u64,
    /// Seconds since the epoch after which anyone may switch back.
    until: i64,
}

/// Bulk mode that is on; call [`Bulk::end`] when the collection is filled.
pub struct Bulk {
    store: Arc<dyn Store>,
    threshold: u64,
}

impl Bulk {
    /// Switches bulk mode on; joins where another worker did.
    ///
    /// # Errors
    /// A store that fails; then nothing is switched off for longer than [`LEASE`].
    pub async fn begin(store: Arc<dyn Store>, now: jiff::Timestamp) -> Result<Self, StoreError> {
        let threshold = match threshold_in_lease(&*store).await? {
            Some(threshold) => threshold,
            None => match store.admin().graph_threshold().await? {
                // Off without a lease is what somebody wants, unless another worker has begun just now.
                NEVER => threshold_in_lease(&*store).await?.unwrap_or(NEVER),
                found => found,
            },
        };
        let bulk = Self { store, threshold };
        if let Err(error) = bulk.renew(now).await {
            // It may have been switched off all the same; where this fails as well there is the lease.
            let _ = restore(&*bulk.store, bulk.threshold).await;
            return Err(error);
        }
        Ok(bulk)
    }

    /// Says that the worker is still there, and switches off again what another worker at its end
    /// has switched on; to be called every [`RENEW_EVERY`].
    ///
    /// # Errors
    /// A store that fails; try again.
    pub async fn renew(&self, now: jiff::Timestamp) -> Result<(), StoreError> {
        let until = now
            .as_second()
            .saturating_add(LEASE.as_secs().cast_signed());
        let lease = Lease {
            threshold: self.threshold,
            until,
        };
        write(&*self.store, Some(lease)).await?;
        let admin = self.store.admin();
        if admin.graph_threshold().await? == NEVER {
            return Ok(());
        }
        admin.set_graph_threshold(NEVER).await?;
        // Whoever has just switched it on takes the lease away last: off it must not stay without one.
        write(&*self.store, Some(lease)).await
    }

    /// Switches back.
    ///
    /// # Errors
    /// A store that fails; try again, or the next worker that looks after [`LEASE`] does it.
    pub async fn end(&self) -> Result<(), StoreError> {
        restore(&*self.store, self.threshold).await
    }
}

/// Switches back where bulk mode was left on by a worker that is gone; says whether it was.
///
/// # Errors
/// A store that fails.
pub async fn end_abandoned(store: &dyn Store, now: jiff::Timestamp) -> Result<bool, StoreError> {
    match lease(store).await? {
        Some(lease) if lease.until < now.as_second() => {
            restore(store, lease.threshold).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// The threshold first: a crash between the two leaves a lease, and it is switched back once more.
async fn restore(store: &dyn Store, threshold: u64) -> Result<(), StoreError> {
    store.admin().set_graph_threshold(threshold).await?;
    write(store, None).await
}

async fn threshold_in_lease(store: &dyn Store) -> Result<Option<u64>, StoreError> {
    Ok(lease(store).await?.map(|lease| lease.threshold))
}

async fn lease(store: &dyn Store) -> Result<Option<Lease>, StoreError> {
    let found = store.collection().await?;
    let written = found.and_then(|found| found.metadata.get(LEASE_KEY).cloned());
    // Null says that there is none: metadata can be overwritten, not taken back.
    Ok(written.and_then(|written| serde_json::from_value(written).ok()))
}

async fn write(store: &dyn Store, lease: Option<Lease>) -> Result<(), StoreError> {
    let lease = lease.map_or(
        Value::Null,
        |lease| serde_json::json!({"threshold": lease.threshold, "until": lease.until}),
    );
    let metadata = BTreeMap::from([(LEASE_KEY.to_owned(), lease)]);
    store.admin().write_metadata(metadata).await
}
