//! An open collection of the embedded store: the conditional write and the questions, in the engine's
//! words, and the guard that turns the engine's panics into errors. Knows no files and no bounds.

use std::any::Any;
use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use qdrant_edge::{
    CountRequest, EdgeShard, Filter, NamedQuery, OperationError, PointId, PointIdsList,
    PointInsertOperations, PointOperations, QueryEnum, QueryRequest, ScoringQuery, UpdateOperation,
    VectorInternal, VectorOperations, WithPayloadInterface, WithVector,
};
use serde_json::{Map, Value};

use crate::document::{DocumentId, LatestTime, Version};
use crate::store::embedded::convert;
use crate::store::embedded::folder::is_full;
use crate::store::point::is_marker;
use crate::store::version::{KEYS, may_replace, read_version};
use crate::store::{PointFilter, PointWrite, SearchHit, StoreError, key};

pub(super) struct Collection {
    pub(super) shard: EdgeShard,
    pub(super) vector_name: String,
    pub(super) vector_size: usize,
}

/// What is known of a stored point before it is written over.
struct Stored {
    version: Option<Version>,
    marker: bool,
}

impl Collection {
    pub(super) fn search(
        &self,
        vector: Vec<f32>,
        wanted: &PointFilter,
        limit: usize,
    ) -> Result<Vec<SearchHit>, StoreError> {
        if vector.len() != self.vector_size {
            return Err(StoreError::Rejected(format!(
                "a query of {} numbers for vectors of {}",
                vector.len(),
                self.vector_size
            )));
        }
        let request = QueryRequest {
            prefetches: Vec::new(),
            query: Some(ScoringQuery::Vector(QueryEnum::Nearest(NamedQuery {
                query: VectorInternal::Dense(vector),
                using: Some(self.vector_name.clone()),
            }))),
            filter: Some(convert::matching(wanted)?),
            score_threshold: None,
            limit,
            offset: 0,
            params: None,
            with_vector: WithVector::Bool(false),
            with_payload: WithPayloadInterface::Bool(true),
        };
        let found = guard(|| self.shard.query(request))?;
        Ok(found
            .into_iter()
            .map(|point| SearchHit {
                point_id: convert::uuid(point.id),
                score: point.score,
                payload: convert::payload(point.payload),
            })
            .collect())
    }

    pub(super) fn fetch(&self, id: &DocumentId) -> Result<Option<Map<String, Value>>, StoreError> {
        let ids = [convert::point_id(id.point_id())];
        let found = guard(|| self.shard.retrieve(&ids, None, None))?;
        Ok(found
            .into_iter()
            .next()
            .map(|record| convert::payload(record.payload)))
    }

    pub(super) fn update(&self, operation: UpdateOperation) -> Result<(), StoreError> {
        guard(|| self.shard.update(operation))
    }

    pub(super) fn count(&self, filter: Filter) -> Result<u64, StoreError> {
        let request = CountRequest {
            filter: Some(filter),
            exact: true,
        };
        guard(|| self.shard.count(request)).map(|points| points as u64)
    }

    /// Writes what is not older than what is there, and tells what is. One thread does all writing, so
    /// that nothing comes between the look and the write.
    pub(super) fn apply(
        &self,
        batch: Vec<PointWrite>,
        latest: LatestTime,
        mut superseded: impl FnMut(&PointWrite),
    ) -> Result<(), StoreError> {
        let ids: Vec<_> = batch
            .iter()
            .map(|write| convert::point_id(write.id().point_id()))
            .collect();
        let stored = self.stored(&ids)?;
        let mut emptied = Vec::new();
        let mut points = Vec::with_capacity(batch.len());
        for (id, write) in ids.into_iter().zip(batch) {
            let before = stored.get(&id);
            let version = before.and_then(|before| before.version.as_ref());
            if !may_replace(version, write.version(), latest) {
                superseded(&write);
                continue;
            }
            if write.is_tombstone() && before.is_some_and(|before| !before.marker) {
                emptied.push(id);
            }
            points.push(convert::point(id, write, &self.vector_name));
        }
        if points.is_empty() {
            return Ok(());
        }
        self.update(UpdateOperation::PointOperation(
            PointOperations::UpsertPoints(PointInsertOperations::PointsList(points)),
        ))?;
        if emptied.is_empty() {
            return Ok(());
        }
        // Where the engine moves a point out of a finished segment it keeps vectors that the new
        // point lacks; a marker shall not carry the vector of what was deleted.
        self.update(UpdateOperation::VectorOperation(
            VectorOperations::DeleteVectors(
                PointIdsList::from(emptied),
                vec![self.vector_name.clone()],
            ),
        ))
    }

    fn stored(&self, ids: &[PointId]) -> Result<HashMap<PointId, Stored>, StoreError> {
        let keys = KEYS.into_iter().chain([key::DELETED]);
        let fields = keys.map(convert::path).collect::<Result<_, _>>()?;
        let fields = WithPayloadInterface::Fields(fields);
        let found = guard(|| self.shard.retrieve(ids, Some(fields), None))?;
        Ok(found
            .into_iter()
            .map(|record| {
                let payload = convert::payload(record.payload);
                let stored = Stored {
                    version: read_version(&payload),
                    marker: is_marker(&payload),
                };
                (record.id, stored)
            })
            .collect())
    }

    /// Dropping the shard flushes it, and panics where that fails.
    pub(super) fn close(self) -> Result<(), StoreError> {
        guard(|| {
            drop(self.shard);
            Ok(())
        })
    }
}

thread_local! {
    /// Whether this thread is in the engine, whose panics become errors.
    static IN_ENGINE: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics that [`guard`] catches off standard error: the error says what happened. All others
/// are told as before.
fn quieten_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            if IN_ENGINE.get() {
                tracing::debug!(%panic, "caught in the engine of the embedded store");
            } else {
                before(panic);
            }
        }));
    });
}

/// Calls the engine; a panic of its own becomes an error. What it was doing then is unknown, so
/// that the shard is closed after (see `Engine::heed`).
pub(super) fn guard<T>(call: impl FnOnce() -> Result<T, OperationError>) -> Result<T, StoreError> {
    quieten_panics();
    let was_inside = IN_ENGINE.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    IN_ENGINE.set(was_inside);
    match outcome {
        Ok(result) => result.map_err(|error| convert::error(&error)),
        Err(panic) => {
            let text = panic_text(&*panic);
            Err(if is_full(&text) {
                StoreError::Full(text)
            } else {
                StoreError::Fatal(format!("{}: {text}", convert::ENGINE_FAILED))
            })
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "panic without a message".into())
}
