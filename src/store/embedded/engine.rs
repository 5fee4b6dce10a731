//! The embedded store's engine, as the one thread uses it: opens and creates the shard, applies
//! writes, answers questions, keeps log and segments in bounds, and survives the engine's panics.
//!
//! What the engine (qdrant-edge 0.7.2) leaves to its caller, read in its source and held by tests:
//! `flush` panics on an I/O error; opening does not replay the log; nothing trims the log; after an
//! error of the kind "service" a segment refuses writes until the shard is opened anew.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use qdrant_edge::{
    CreateIndex, Distance, EdgeConfig, EdgeOptimizersConfig, EdgeShard, EdgeVectorParams,
    FieldIndexOperations, PayloadFieldSchema, PointOperations, UpdateOperation, WalOptions,
};
use serde_json::{Map, Value};

use crate::document::{DocumentId, LatestTime};
use crate::store::batch::{prepare, split};
use crate::store::embedded::collection::{Collection, guard};
use crate::store::embedded::convert;
use crate::store::embedded::folder::Folder;
use crate::store::embedded::log::{self, Log};
use crate::store::{
    CollectionInfo, CollectionSpec, IndexKind, PointFilter, PointWrite, SearchHit, StoreError,
    StoreSettings, WriteOutcome,
};

/// Writes after which the segments are looked at: removed points are cleaned up, the graph is built.
const OPTIMISE_EVERY_POINTS: usize = 50_000;
/// Points that the engine is given at once: what it makes of them stays in the caches.
const APPLIED_AT_ONCE: usize = 256;
/// Bytes that must be free where files are mapped that do not exist yet: two of the log and the first of a
/// segment.
const NEEDED_TO_MAP: u64 = 64 * MEGABYTE;
/// How often the size of the log is looked at.
const LOG_CHECK_EVERY: Duration = Duration::from_secs(1);
const MEGABYTE: u64 = 1_000_000;
const KILOBYTE: usize = 1024;

pub(super) struct Engine {
    folder: Folder,
    log: Log,
    limits: Limits,
    state: State,
    /// Closing failed: what was applied and not yet flushed may be gone, though the shard is open again.
    lost: bool,
    written_since_optimise: usize,
    log_checked: Instant,
}

struct Limits {
    min_free_bytes: u64,
    needed_to_map: u64,
    max_log_bytes: u64,
    graph_from_points: usize,
    max_batch_bytes: usize,
}

#[expect(
    clippy::large_enum_variant,
    reason = "there is one state, and it is open nearly always"
)]
enum State {
    /// The collection has not been created.
    Absent,
    Open(Collection),
    /// Closed after an error that opening anew mends.
    Suspended,
    /// Closed for good.
    Failed(StoreError),
}

impl Engine {
    pub(super) fn open(settings: &StoreSettings) -> Result<Self, StoreError> {
        let folder = Folder::open(&settings.path, &settings.collection)?;
        let mut engine = Self {
            log: Log::of_shard(&folder.shard()),
            folder,
            limits: Limits {
                min_free_bytes: settings.min_free_mb * MEGABYTE,
                needed_to_map: NEEDED_TO_MAP,
                max_log_bytes: settings.max_log_mb * MEGABYTE,
                graph_from_points: settings.graph_from_points,
                max_batch_bytes: settings.max_batch_bytes,
            },
            state: State::Absent,
            lost: false,
            written_since_optimise: 0,
            log_checked: Instant::now(),
        };
        if engine.folder.has_shard() {
            engine.state = State::Open(engine.load()?);
        }
        Ok(engine)
    }

    /// Opens the shard with a fresh log.
    fn load(&self) -> Result<Collection, StoreError> {
        self.check_free(self.limits.needed_to_map)?;
        self.log.restart()?;
        let path = self.folder.shard();
        let shard = guard(|| EdgeShard::load(&path, None)).map_err(|error| match error {
            StoreError::Full(reason) => StoreError::Full(reason),
            StoreError::Transient(reason)
            | StoreError::Rejected(reason)
            | StoreError::Unstorable(reason)
            | StoreError::Fatal(reason) => StoreError::Fatal(format!(
                "cannot open the embedded store in {} (store.path): {reason}; if the folder is \
                 damaged, move it away and run a backfill",
                path.display()
            )),
        })?;
        let found = {
            let config = shard.config();
            let mut vectors = config.vectors.iter();
            match (vectors.next(), vectors.next()) {
                (Some((name, params)), None) => Some((name.clone(), params.size)),
                _ => None,
            }
        };
        let Some((vector_name, vector_size)) = found else {
            return Err(StoreError::Fatal(format!(
                "{} does not hold exactly one vector per point; it was not made by this program",
                path.display()
            )));
        };
        self.set_optimizers(&shard, vector_size)?;
        Ok(Collection {
            shard,
            vector_name,
            vector_size,
        })
    }

    /// The graph's threshold follows the settings, not those of the day of creation.
    fn set_optimizers(&self, shard: &EdgeShard, vector_size: usize) -> Result<(), StoreError> {
        let optimizers = self.optimizers(vector_size);
        if shard.config().optimizers == optimizers {
            return Ok(());
        }
        guard(|| shard.set_optimizers_config(optimizers))
    }

    fn optimizers(&self, vector_size: usize) -> EdgeOptimizersConfig {
        let bytes = self.limits.graph_from_points * vector_size * size_of::<f32>();
        EdgeOptimizersConfig {
            // The engine takes 0 for never.
            indexing_threshold: Some(bytes.div_ceil(KILOBYTE)),
            default_segment_number: Some(1),
            ..EdgeOptimizersConfig::default()
        }
    }

    /// The open collection; opens it anew where an error closed it.
    fn collection_mut(&mut self) -> Result<&mut Collection, StoreError> {
        if matches!(self.state, State::Suspended) {
            self.state = State::Open(self.load()?);
        }
        match &mut self.state {
            State::Open(collection) => Ok(collection),
            State::Failed(error) => Err(error.clone()),
            State::Absent | State::Suspended => Err(StoreError::Fatal(format!(
                "the collection {:?} does not exist; create it with `tcbert-worker migrate apply`",
                self.folder.collection()
            ))),
        }
    }

    /// Applies a batch without flushing it; tells what of it was superseded.
    pub(super) fn apply(
        &mut self,
        batch: Vec<PointWrite>,
        latest: LatestTime,
    ) -> Result<WriteOutcome, StoreError> {
        self.check_room()?;
        let max_bytes = self.limits.max_batch_bytes;
        let mut reduced = prepare(batch, self.collection_mut()?.vector_size)?;
        let writes = std::mem::take(&mut reduced.writes);
        let mut outcome = reduced.outcome;
        self.written_since_optimise += writes.len();
        let result = split(writes, APPLIED_AT_ONCE, max_bytes)
            .into_iter()
            .try_for_each(|request| {
                let superseded = |write: &PointWrite| outcome += reduced.if_superseded(write);
                self.collection_mut()?.apply(request, latest, superseded)?;
                self.log.discard()
            });
        self.heed(result.map(|()| outcome))
    }

    /// Makes what was applied durable.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        let result = match &self.state {
            State::Open(_) if std::mem::take(&mut self.lost) => Err(StoreError::Transient(
                "the embedded store was opened anew after it failed to close".into(),
            )),
            State::Open(collection) => guard(|| {
                collection.shard.flush();
                Ok(())
            }),
            // What the closing did not flush, it may have lost.
            State::Suspended => Err(StoreError::Transient(
                "the embedded store was opened anew after an error".into(),
            )),
            State::Failed(error) => Err(error.clone()),
            State::Absent => Ok(()),
        };
        self.heed(result)
    }

    /// A write into a full disk would end the process (the engine maps its files), so that room is
    /// made sure of before.
    fn check_room(&self) -> Result<(), StoreError> {
        if self.limits.min_free_bytes == 0 {
            return Ok(());
        }
        self.check_free(self.limits.min_free_bytes.max(self.limits.needed_to_map))
    }

    fn check_free(&self, needed: u64) -> Result<(), StoreError> {
        let free = self.folder.free_bytes()?;
        if free >= needed {
            return Ok(());
        }
        Err(StoreError::Full(format!(
            "{} MB are free on the disk of the embedded store (store.path), {} are needed to open it or write into it \
             (store.min_free_mb is {})",
            free / MEGABYTE,
            needed / MEGABYTE,
            self.limits.min_free_bytes / MEGABYTE
        )))
    }

    /// Closes the shard after an error that it does not recover from by itself.
    fn heed<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        match &result {
            Ok(_) | Err(StoreError::Rejected(_) | StoreError::Unstorable(_)) => {}
            Err(StoreError::Transient(_) | StoreError::Full(_)) => self.suspend(State::Suspended),
            Err(error @ StoreError::Fatal(_)) => self.suspend(State::Failed(error.clone())),
        }
        result
    }

    fn suspend(&mut self, state: State) {
        if let State::Open(collection) = std::mem::replace(&mut self.state, state)
            && let Err(error) = collection.close()
        {
            self.lost = true;
            tracing::warn!(%error, "the embedded store did not close cleanly");
        }
    }

    /// Keeps log and segments in bounds; called between groups of writes. Errors show themselves at
    /// the next write.
    pub(super) fn maintain(&mut self) {
        if !matches!(self.state, State::Open(_)) {
            return;
        }
        if self.log_checked.elapsed() >= LOG_CHECK_EVERY {
            self.log_checked = Instant::now();
            if self.log.bytes() > self.limits.max_log_bytes {
                self.suspend(State::Suspended);
                if let Err(error) = self.collection_mut() {
                    tracing::warn!(%error, "cannot open the embedded store anew");
                }
            }
        }
        if self.written_since_optimise >= OPTIMISE_EVERY_POINTS {
            self.written_since_optimise = 0;
            if let Err(error) = self.optimise() {
                tracing::warn!(%error, "cannot optimise the embedded store");
            }
        }
    }

    fn optimise(&mut self) -> Result<(), StoreError> {
        self.check_room()?;
        let collection = self.collection_mut()?;
        let started = Instant::now();
        let result = guard(|| collection.shard.optimize());
        if matches!(result, Ok(true)) {
            tracing::info!(
                seconds = started.elapsed().as_secs_f64(),
                "embedded store optimised"
            );
        }
        self.heed(result.map(drop))
    }

    pub(super) fn search(
        &mut self,
        vector: Vec<f32>,
        wanted: &PointFilter,
        limit: usize,
    ) -> Result<Vec<SearchHit>, StoreError> {
        let collection = self.collection_mut()?;
        collection.search(vector, wanted, limit)
    }

    pub(super) fn count(&mut self, wanted: &PointFilter) -> Result<u64, StoreError> {
        let filter = convert::matching(wanted)?;
        self.collection_mut()?.count(filter)
    }

    pub(super) fn fetch(
        &mut self,
        id: &DocumentId,
    ) -> Result<Option<Map<String, Value>>, StoreError> {
        self.collection_mut()?.fetch(id)
    }

    pub(super) fn remove_markers(&mut self, before: jiff::Timestamp) -> Result<u64, StoreError> {
        let filter = convert::markers_before(before)?;
        let collection = self.collection_mut()?;
        let markers = collection.count(filter.clone())?;
        if markers > 0 {
            let operation =
                UpdateOperation::PointOperation(PointOperations::DeletePointsByFilter(filter));
            let result = collection.update(operation);
            self.heed(result)?;
            self.flush()?;
        }
        Ok(markers)
    }

    pub(super) fn describe(&mut self) -> Result<Option<CollectionInfo>, StoreError> {
        if matches!(self.state, State::Absent) {
            return Ok(None);
        }
        let metadata = self.folder.metadata()?;
        let name = self.folder.collection().to_owned();
        let collection = self.collection_mut()?;
        let info = guard(|| Ok(collection.shard.info()))?;
        let indexes = info
            .payload_schema
            .into_iter()
            .filter_map(|(key, index)| {
                Some((key.to_string(), convert::index_kind(index.data_type)?))
            })
            .collect();
        Ok(Some(CollectionInfo {
            name,
            vector_size: collection.vector_size,
            vector_name: collection.vector_name.clone(),
            // The only one that `create` knows and `load` finds.
            distance: "Cosine".into(),
            points: info.points_count as u64,
            indexes,
            metadata,
            limits: Vec::new(),
        }))
    }

    pub(super) fn create(&mut self, spec: &CollectionSpec) -> Result<(), StoreError> {
        if !matches!(self.state, State::Absent) {
            return Err(StoreError::Fatal(format!(
                "the collection {:?} exists already",
                self.folder.collection()
            )));
        }
        self.check_free(self.limits.min_free_bytes.max(self.limits.needed_to_map))?;
        let path = self.folder.shard();
        std::fs::create_dir_all(&path).map_err(|error| {
            StoreError::Fatal(format!("cannot make {}: {error}", path.display()))
        })?;
        let params = EdgeVectorParams::builder(spec.vector_size, Distance::Cosine)
            .on_disk(true)
            .build();
        let config = EdgeConfig::builder()
            .vector(spec.vector_name.as_str(), params)
            .on_disk_payload(true)
            .wal_options(WalOptions {
                segment_capacity: log::FILE_BYTES,
                ..WalOptions::default()
            })
            .optimizers(self.optimizers(spec.vector_size))
            .build();
        let shard = guard(|| EdgeShard::new(&path, config))?;
        self.state = State::Open(Collection {
            shard,
            vector_name: spec.vector_name.clone(),
            vector_size: spec.vector_size,
        });
        self.flush()
    }

    pub(super) fn remove(&mut self) -> Result<(), StoreError> {
        self.suspend(State::Absent);
        self.folder.remove_shard()
    }

    pub(super) fn create_index(&mut self, key: &str, kind: IndexKind) -> Result<(), StoreError> {
        let index = FieldIndexOperations::CreateIndex(CreateIndex {
            field_name: convert::path(key)?,
            field_schema: Some(PayloadFieldSchema::FieldType(convert::schema(kind))),
        });
        self.change_index(index)
    }

    pub(super) fn drop_index(&mut self, key: &str) -> Result<(), StoreError> {
        self.change_index(FieldIndexOperations::DeleteIndex(convert::path(key)?))
    }

    fn change_index(&mut self, operation: FieldIndexOperations) -> Result<(), StoreError> {
        self.check_room()?;
        let collection = self.collection_mut()?;
        let result = collection.update(UpdateOperation::FieldIndexOperation(operation));
        self.heed(result)?;
        self.flush()
    }

    pub(super) fn graph_threshold(&mut self) -> Result<u64, StoreError> {
        let collection = self.collection_mut()?;
        let threshold = collection.shard.config().optimizers.indexing_threshold;
        Ok(threshold.unwrap_or_default() as u64)
    }

    /// Until the store is opened again, when the settings decide anew.
    pub(super) fn set_graph_threshold(&mut self, kilobytes: u64) -> Result<(), StoreError> {
        let collection = self.collection_mut()?;
        let mut optimizers = collection.shard.config().optimizers.clone();
        optimizers.indexing_threshold = usize::try_from(kilobytes).ok();
        guard(|| collection.shard.set_optimizers_config(optimizers))?;
        self.optimise()
    }

    pub(super) fn write_metadata(
        &mut self,
        more: BTreeMap<String, Value>,
    ) -> Result<(), StoreError> {
        let mut metadata = self.folder.metadata()?;
        metadata.extend(more);
        self.folder.write_metadata(&metadata)
    }

    pub(super) fn alias(&mut self, alias: &str) -> Result<Option<String>, StoreError> {
        self.folder.alias(alias)
    }

    pub(super) fn set_alias(
        &mut self,
        alias: &str,
        collection: Option<String>,
    ) -> Result<(), StoreError> {
        self.folder.set_alias(alias, collection)
    }

    /// Flushes and closes; the engine is of no use after.
    pub(super) fn close(&mut self) -> Result<(), StoreError> {
        let flushed = self.flush();
        let failed = State::Failed(StoreError::Fatal("the store has been closed".into()));
        if let State::Open(collection) = std::mem::replace(&mut self.state, failed) {
            flushed?;
            collection.close()
        } else {
            flushed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also where nothing is to be kept free beyond that.
    #[test]
    fn no_file_is_mapped_on_a_disk_without_room_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let settings = StoreSettings {
            path: folder.path().to_owned(),
            min_free_mb: 0,
            ..StoreSettings::default()
        };
        let spec = CollectionSpec {
            vector_name: "test".into(),
            vector_size: 4,
        };
        let mut engine = Engine::open(&settings).unwrap();
        engine.limits.needed_to_map = u64::MAX;
        let created = engine.create(&spec);
        assert!(matches!(created, Err(StoreError::Full(_))), "{created:?}");
        assert!(!engine.folder.shard().exists());
        engine.limits.needed_to_map = NEEDED_TO_MAP;
        engine.create(&spec).unwrap();
        engine.limits.needed_to_map = u64::MAX;
        let loaded = engine.load().map(drop);
        assert!(matches!(loaded, Err(StoreError::Full(_))), "{loaded:?}");
        engine.limits.min_free_bytes = 1;
        let room = engine.check_room();
        assert!(matches!(room, Err(StoreError::Full(_))), "{room:?}");
    }
}
