//! A store that counts and keeps nothing: what the pipeline costs without one. For measurements.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::future::BoxFuture;
use serde_json::{Map, Value};

use crate::document::{DocumentId, LatestTime};
use crate::store::{
    Admin, CollectionInfo, CollectionSpec, IndexKind, PointFilter, PointWrite, SearchHit, Store,
    StoreError, WriteOutcome,
};

/// Takes every write at once.
#[derive(Debug, Default)]
pub struct CountingStore {
    points: AtomicU64,
    tombstones: AtomicU64,
    batches: AtomicU64,
}

impl CountingStore {
    /// Points taken, versions of one document counted each.
    pub fn points(&self) -> u64 {
        self.points.load(Ordering::Relaxed)
    }

    /// Deletions taken.
    pub fn tombstones(&self) -> u64 {
        self.tombstones.load(Ordering::Relaxed)
    }

    /// Batches taken.
    pub fn batches(&self) -> u64 {
        self.batches.load(Ordering::Relaxed)
    }
}

fn done<T: Send + 'static>(value: T) -> BoxFuture<'static, Result<T, StoreError>> {
    Box::pin(std::future::ready(Ok(value)))
}

impl Store for CountingStore {
    fn write(
        &self,
        batch: Vec<PointWrite>,
        _latest: LatestTime,
    ) -> BoxFuture<'_, Result<WriteOutcome, StoreError>> {
        let tombstones = batch.iter().filter(|write| write.is_tombstone()).count() as u64;
        let points = batch.len() as u64 - tombstones;
        self.tombstones.fetch_add(tombstones, Ordering::Relaxed);
        self.points.fetch_add(points, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
        done(WriteOutcome::default())
    }

    fn search(
        &self,
        _vector: Vec<f32>,
        _filter: PointFilter,
        _limit: usize,
    ) -> BoxFuture<'_, Result<Vec<SearchHit>, StoreError>> {
        done(Vec::new())
    }

    fn count(&self, _filter: PointFilter) -> BoxFuture<'_, Result<u64, StoreError>> {
        done(self.points())
    }

    fn fetch(
        &self,
        _id: DocumentId,
    ) -> BoxFuture<'_, Result<Option<Map<String, Value>>, StoreError>> {
        done(None)
    }

    fn collection(&self) -> BoxFuture<'_, Result<Option<CollectionInfo>, StoreError>> {
        done(None)
    }

    fn remove_markers(&self, _before: jiff::Timestamp) -> BoxFuture<'_, Result<u64, StoreError>> {
        done(0)
    }

    fn admin(&self) -> &dyn Admin {
        self
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        done(())
    }
}

impl Admin for CountingStore {
    fn create_collection(
        &self,
        _spec: CollectionSpec,
        _metadata: BTreeMap<String, Value>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        done(())
    }

    fn drop_collection(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        done(())
    }

    fn create_index(
        &self,
        _key: String,
        _kind: IndexKind,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        done(())
    }

    fn drop_index(&self, _key: String) -> BoxFuture<'_, Result<(), StoreError>> {
        done(())
    }

    fn graph_threshold(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        done(0)
    }

    fn set_graph_threshold(&self, _kilobytes: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        done(())
    }

    fn write_metadata(
        &self,
        _metadata: BTreeMap<String, Value>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        done(())
    }

    fn alias(&self, _alias: String) -> BoxFuture<'_, Result<Option<String>, StoreError>> {
        done(None)
    }

    fn set_alias(
        &self,
        _alias: String,
        _collection: Option<String>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        done(())
    }
}
