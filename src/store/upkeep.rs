//! What a store needs from time to time: markers of deletions that have served are removed, and a search
//! graph that a backfill left off is switched on again.

use std::time::Duration;

use crate::store::{Store, bulk};

/// Removes the markers of deletions that are older than `retention`, every `interval` and for the
/// first time after one. Never returns; a failure is tried again at the next turn.
pub async fn remove_expired_markers(store: &dyn Store, retention: Duration, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Ok(before) = jiff::Timestamp::now().checked_sub(retention) else {
            // Longer ago than time is counted: nothing is that old.
            continue;
        };
        match store.remove_markers(before).await {
            Ok(0) => tracing::debug!("no marker of a deletion has expired"),
            Ok(removed) => tracing::info!(removed, "expired markers of deletions removed"),
            Err(error) => {
                tracing::warn!(%error, "expired markers of deletions could not be removed; trying again later");
            }
        }
    }
}

/// Switches the search graph on again where a backfill in bulk mode is gone, every `interval`. Never returns;
/// a failure is tried again at the next turn.
pub async fn end_abandoned_bulk(store: &dyn Store, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        match bulk::end_abandoned(store, jiff::Timestamp::now()).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::warn!("switched the search graph on again, which a backfill left off");
            }
            Err(error) => {
                tracing::warn!(%error, "whether a backfill left the search graph off is not known");
            }
        }
    }
}
