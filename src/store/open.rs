//! Opens the store that the settings name and makes sure that it fits, before anything is written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::store::embedded::EmbeddedStore;
use crate::store::migrate::{self, ApplyOptions, Expectation};
use crate::store::qdrant::QdrantStore;
use crate::store::{Store, StoreError, StoreKind, StoreSettings, bulk};

/// How long a server may fail at the start before the worker gives up: the replicas of a collection that
/// was just created answer a moment later.
const BUSY_WITHIN: Duration = Duration::from_secs(30);
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// Connects without looking at the collection, which need not exist: what `migrate` works with.
///
/// # Errors
/// [`StoreError::Fatal`] with what to do, within 30 seconds.
pub async fn connect(settings: &StoreSettings) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match settings.kind {
        StoreKind::Embedded => Arc::new(EmbeddedStore::open(settings).await?),
        StoreKind::Qdrant => Arc::new(QdrantStore::connect(settings).await?),
    })
}

/// Connects, applies pending migrations if `apply` says so, and refuses a collection that does not fit.
///
/// # Errors
/// [`StoreError::Fatal`] with what to do: unreachable, missing collection, other vector size, another
/// model's vectors, limits of the server that our requests would break.
pub async fn open(
    settings: &StoreSettings,
    expectation: &Expectation,
    apply: bool,
    now: jiff::Timestamp,
) -> Result<Arc<dyn Store>, StoreError> {
    let store = connect(settings).await?;
    prepare(&store, settings, expectation, apply, now).await?;
    Ok(store)
}

/// The second half of [`open`]: applies pending migrations if `apply` says so, and rejects a collection
/// that does not fit. Closes the store where it fails.
///
/// # Errors
/// As [`open`].
pub async fn prepare(
    store: &Arc<dyn Store>,
    settings: &StoreSettings,
    expectation: &Expectation,
    apply: bool,
    now: jiff::Timestamp,
) -> Result<(), StoreError> {
    let target = migrate::Target::new(settings, expectation.clone());
    let deadline = Instant::now() + BUSY_WITHIN;
    let prepared = loop {
        match try_to_prepare(store, &target, apply, now).await {
            Err(StoreError::Transient(reason)) if Instant::now() < deadline => {
                tracing::info!(reason, "the store is not ready yet; trying again");
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            outcome => break outcome,
        }
    };
    if let Err(error) = prepared {
        // The reason for giving up is the one to report.
        let _ = store.close().await;
        return Err(error);
    }
    Ok(())
}

async fn try_to_prepare(
    store: &Arc<dyn Store>,
    target: &migrate::Target,
    apply: bool,
    now: jiff::Timestamp,
) -> Result<(), StoreError> {
    if apply {
        migrate::apply(&**store, target, ApplyOptions::default(), now).await?;
    } else {
        migrate::check(&**store, target).await?;
    }
    if bulk::end_abandoned(&**store, now).await? {
        tracing::warn!("switched the search graph on again, which a backfill left off");
    }
    Ok(())
}
