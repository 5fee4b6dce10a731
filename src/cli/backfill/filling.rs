//! Bulk mode around a backfill: no search graph is built while it fills the collection, and the building is
//! switched on again at its end, however it ends. What a `kill -9` leaves off is switched on by the live
//! worker, or by whoever opens the collection next.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cli::terminal::failure::Failure;
use crate::store::bulk::{self, Bulk};
use crate::store::{Store, StoreError};

/// How often it is tried to switch back, and the first pause in between; it doubles.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Bulk mode that is on.
pub(super) struct Filling {
    over: CancellationToken,
    ends: JoinHandle<Result<(), StoreError>>,
}

impl Filling {
    /// Switches bulk mode on and keeps it from expiring.
    pub(super) async fn begin(store: Arc<dyn Store>) -> Result<Self, Failure> {
        let bulk = Bulk::begin(store, jiff::Timestamp::now())
            .await
            .map_err(Failure::failed)?;
        tracing::info!("the search graph is switched off until the backfill ends");
        let over = CancellationToken::new();
        let ends = tokio::spawn(keep(bulk, over.clone()));
        Ok(Self { over, ends })
    }

    /// Switches back.
    pub(super) async fn end(self) -> Result<(), Failure> {
        self.over.cancel();
        let ended = self.ends.await.map_err(Failure::failed)?;
        ended.map_err(|error| {
            Failure::failed(format!(
                "the search graph could not be switched on again: {error}; the live worker, or whoever opens the \
                 collection next, does it after {} s",
                bulk::LEASE.as_secs()
            ))
        })
    }
}

async fn keep(bulk: Bulk, over: CancellationToken) -> Result<(), StoreError> {
    loop {
        tokio::select! {
            () = tokio::time::sleep(bulk::RENEW_EVERY) => {}
            () = over.cancelled() => break,
        }
        if let Err(error) = bulk.renew(jiff::Timestamp::now()).await {
            tracing::warn!(%error, "bulk mode was not renewed; trying again");
        }
    }
    let mut pause = FIRST_PAUSE;
    for _ in 1..ATTEMPTS {
        match bulk.end().await {
            Ok(()) => {
                tracing::info!("the search graph is switched on again");
                return Ok(());
            }
            Err(error) => {
                tracing::warn!(%error, "the search graph is not switched on yet; trying again");
            }
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    bulk.end().await
}
