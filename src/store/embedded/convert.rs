//! Our nouns in the words of Qdrant's engine and back. Pure.

use qdrant_edge::{
    Filter, JsonPath, OperationError, PayloadSchemaType, PointId, PointStructPersisted,
    VectorPersisted, VectorStructPersisted,
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::document::RecordPosition;
use crate::store::embedded::folder::is_full;
use crate::store::point::into_stored;
use crate::store::{IndexKind, PointFilter, PointWrite, StoreError, key};

/// How the errors begin that the engine does not recover from.
pub(super) const ENGINE_FAILED: &str = "the engine of the embedded store failed";

/// A write as the engine stores it under `id`: the named vector, none for a marker.
pub(super) fn point(id: PointId, write: PointWrite, vector_name: &str) -> PointStructPersisted {
    let (payload, vector) = into_stored(write);
    let vectors = vector
        .map(|vector| (vector_name.to_owned(), VectorPersisted::Dense(vector)))
        .into_iter()
        .collect();
    PointStructPersisted {
        id,
        vector: VectorStructPersisted::Named(vectors),
        payload: Some(qdrant_edge::Payload(payload)),
    }
}

pub(super) fn point_id(id: Uuid) -> PointId {
    PointId::Uuid(id)
}

/// Our points have UUIDs only; a number was written by a stranger.
pub(super) fn uuid(id: PointId) -> Uuid {
    match id {
        PointId::Uuid(id) => id,
        PointId::NumId(number) => Uuid::from_u128(number.into()),
    }
}

pub(super) fn payload(payload: Option<qdrant_edge::Payload>) -> Map<String, Value> {
    payload.map(|payload| payload.0).unwrap_or_default()
}

/// The engine reads filters as the server's documentation writes them.
fn filter(written: Value) -> Result<Filter, StoreError> {
    serde_json::from_value(written)
        .map_err(|error| StoreError::Fatal(format!("the engine does not take a filter: {error}")))
}

/// The stored point came from this position or from beyond it.
fn from_or_beyond(position: &RecordPosition) -> Value {
    let RecordPosition { partition, offset } = position;
    json!({"must": [
        {"key": key::KAFKA_TOPIC, "match": {"value": &*partition.topic}},
        {"key": key::KAFKA_PARTITION, "match": {"value": partition.partition}},
        {"key": key::KAFKA_OFFSET, "range": {"gte": offset}},
    ]})
}

/// Points that match, markers excluded.
pub(super) fn matching(wanted: &PointFilter) -> Result<Filter, StoreError> {
    let mut must = Vec::new();
    for (key, value) in [(key::TOPIC, &wanted.topic), (key::SOURCE, &wanted.source)] {
        if let Some(value) = value {
            must.push(json!({"key": key, "match": {"value": value}}));
        }
    }
    if !wanted.from_or_beyond.is_empty() {
        let places: Vec<Value> = wanted.from_or_beyond.iter().map(from_or_beyond).collect();
        must.push(json!({"should": places}));
    }
    let marker = json!([{"key": key::DELETED, "match": {"value": true}}]);
    filter(json!({"must": must, "must_not": marker}))
}

/// Markers that were written before `before`.
pub(super) fn markers_before(before: jiff::Timestamp) -> Result<Filter, StoreError> {
    filter(json!({"must": [
        {"key": key::DELETED, "match": {"value": true}},
        {"key": key::DELETED_AT, "range": {"lt": before.to_string()}},
    ]}))
}

pub(super) fn path(key: &str) -> Result<JsonPath, StoreError> {
    key.parse()
        .map_err(|()| StoreError::Fatal(format!("{key:?} is no payload key")))
}

pub(super) fn index_kind(schema: PayloadSchemaType) -> Option<IndexKind> {
    match schema {
        PayloadSchemaType::Keyword => Some(IndexKind::Keyword),
        PayloadSchemaType::Integer => Some(IndexKind::Integer),
        PayloadSchemaType::Datetime => Some(IndexKind::Datetime),
        PayloadSchemaType::Bool => Some(IndexKind::Bool),
        PayloadSchemaType::Float
        | PayloadSchemaType::Geo
        | PayloadSchemaType::Text
        | PayloadSchemaType::Uuid => None,
    }
}

pub(super) fn schema(kind: IndexKind) -> PayloadSchemaType {
    match kind {
        IndexKind::Keyword => PayloadSchemaType::Keyword,
        IndexKind::Integer => PayloadSchemaType::Integer,
        IndexKind::Datetime => PayloadSchemaType::Datetime,
        IndexKind::Bool => PayloadSchemaType::Bool,
    }
}

/// What an engine's error means for the batch.
pub(super) fn error(error: &OperationError) -> StoreError {
    let text = error.to_string();
    match error {
        OperationError::WrongVectorDimension { .. }
        | OperationError::VectorNameNotExists { .. }
        | OperationError::PointIdError { .. }
        | OperationError::TypeError { .. }
        | OperationError::TypeInferenceError { .. }
        | OperationError::ValidationError { .. }
        | OperationError::WrongSparse
        | OperationError::WrongMulti
        | OperationError::MissingRangeIndexForOrderBy { .. }
        | OperationError::MissingMapIndexForFacet { .. }
        | OperationError::VariableTypeError { .. }
        | OperationError::NonFiniteNumber { .. } => StoreError::Rejected(text),
        OperationError::InconsistentStorage { .. } => {
            StoreError::Fatal(format!("{ENGINE_FAILED}: {text}"))
        }
        _ if is_full(&text) => StoreError::Full(text),
        OperationError::ServiceError { .. }
        | OperationError::OutOfMemory { .. }
        | OperationError::Cancelled { .. }
        | OperationError::Timeout { .. } => StoreError::Transient(text),
    }
}
