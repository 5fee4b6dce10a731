//! Our nouns in the words of the gRPC interface and back. Pure.

use std::collections::{BTreeMap, HashMap};

use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::vectors_config::Config;
use qdrant_client::qdrant::{
    self, Distance, FieldType, NamedVectors, PayloadSchemaType, PointId, PointStruct,
    StrictModeConfig, Vectors,
};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::store::point::into_stored;
use crate::store::qdrant::condition::CONDITIONS_PER_POINT;
use crate::store::{CollectionInfo, IndexKind, PointWrite, StoreError, StoreSettings, key};

/// Payload keys in the filters of writes.
const FILTERED_BY_WRITES: [&str; 7] = [
    key::VERSION,
    key::VERSION_ORDER,
    key::KAFKA_TOPIC,
    key::KAFKA_PARTITION,
    key::KAFKA_OFFSET,
    key::DELETED,
    key::DELETED_AT,
];
/// Payload keys in the filters of searches and counts.
const FILTERED_BY_READS: [&str; 3] = [key::TOPIC, key::SOURCE, key::DELETED];

/// Nested messages that a reader of protobuf accepts; servers and clients share this bound.
const MOST_NESTED: usize = 100;
/// Messages around a payload value: request, point, entry of the payload, and one more in some responses.
const AROUND_A_VALUE: usize = 4;

/// Rejects a payload that neither server nor readers could decode: each array of JSON is two nested
/// messages, each object three.
///
/// # Errors
/// [`StoreError::Unstorable`] with document and payload key.
pub(super) fn check_nesting(write: &PointWrite) -> Result<(), StoreError> {
    let PointWrite::Upsert(point) = write else {
        return Ok(());
    };
    let too_deep = |(_, value): &(&String, &Value)| nesting(value) + AROUND_A_VALUE > MOST_NESTED;
    match point.payload.iter().find(too_deep) {
        None => Ok(()),
        Some((key, _)) => Err(StoreError::Unstorable(format!(
            "document {}: {key:?} is nested more deeply than Qdrant's protocol can carry (48 arrays or 32 objects); \
             flatten it where it is produced, or lower decode.max_depth to reject it earlier",
            point.id
        ))),
    }
}

fn nesting(value: &Value) -> usize {
    match value {
        Value::Array(items) => 2 + items.iter().map(nesting).max().unwrap_or_default(),
        Value::Object(fields) => 3 + fields.values().map(nesting).max().unwrap_or_default(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// A write as it is sent: the named vector, none for a marker.
pub(super) fn point(id: PointId, write: PointWrite, vector_name: &str) -> PointStruct {
    let (payload, vector) = into_stored(write);
    let vectors = vector
        .map(|vector| (vector_name.to_owned(), qdrant::Vector::new_dense(vector)))
        .into_iter()
        .collect();
    PointStruct {
        id: Some(id),
        // Present and empty for a marker: the server refuses a point whose vectors are absent.
        vectors: Some(Vectors::from(NamedVectors { vectors })),
        payload: payload
            .into_iter()
            .map(|(key, value)| (key, value.into()))
            .collect(),
    }
}

pub(super) fn json(payload: HashMap<String, qdrant::Value>) -> Map<String, Value> {
    payload
        .into_iter()
        .map(|(key, value)| (key, value.into_json()))
        .collect()
}

/// Our points have UUIDs only; anything else was written by a stranger.
pub(super) fn uuid(id: Option<PointId>) -> Uuid {
    match id.and_then(|id| id.point_id_options) {
        Some(PointIdOptions::Uuid(text)) => text.parse().unwrap_or_default(),
        Some(PointIdOptions::Num(number)) => Uuid::from_u128(number.into()),
        None => Uuid::nil(),
    }
}

/// What the server says of a collection; `None` where it has not one dense vector per point.
pub(super) fn collection(
    name: String,
    info: qdrant::CollectionInfo,
    settings: &StoreSettings,
) -> Option<CollectionInfo> {
    let config = info.config?;
    let (vector_name, params) = match config.params?.vectors_config?.config? {
        Config::Params(params) => (String::new(), params),
        Config::ParamsMap(params) => {
            let mut vectors = params.map.into_iter();
            let only = vectors.next()?;
            if vectors.next().is_some() {
                return None;
            }
            only
        }
    };
    let indexes: BTreeMap<String, IndexKind> = info
        .payload_schema
        .into_iter()
        .filter_map(|(key, schema)| Some((key, index_kind(schema.data_type())?)))
        .collect();
    let limits = config
        .strict_mode_config
        .map(|strict| limits(&strict, &indexes, settings))
        .unwrap_or_default();
    Some(CollectionInfo {
        name,
        vector_size: usize::try_from(params.size).ok()?,
        vector_name,
        distance: params.distance().as_str_name().to_owned(),
        points: info.points_count.unwrap_or_default(),
        indexes,
        metadata: config
            .metadata
            .into_iter()
            .map(|(key, value)| (key, value.into_json()))
            .collect(),
        limits,
    })
}

/// Limits of the collection's strict mode that our requests would break.
fn limits(
    strict: &StrictModeConfig,
    indexes: &BTreeMap<String, IndexKind>,
    settings: &StoreSettings,
) -> Vec<String> {
    let mut limits = Vec::new();
    if strict.enabled != Some(true) {
        return limits;
    }
    let points = settings.batch_points() as u64;
    if let Some(most) = strict.upsert_max_batchsize.filter(|most| *most < points) {
        limits.push(format!(
            "upsert_max_batchsize = {most}: set store.batch_points to at most that"
        ));
    }
    // A request above the limit never passes, however long it waits; each point counts.
    if let Some(most) = strict
        .write_rate_limit
        .filter(|most| u64::from(*most) < points)
    {
        limits.push(format!(
            "write_rate_limit = {most} points a minute: set store.batch_points to at most that, or raise it"
        ));
    }
    let conditions = 1 + points * CONDITIONS_PER_POINT as u64;
    if let Some(most) = strict
        .filter_max_conditions
        .filter(|most| *most < conditions)
    {
        limits.push(format!(
            "filter_max_conditions = {most}: set store.batch_points to at most {}, or raise it",
            most.saturating_sub(1) / CONDITIONS_PER_POINT as u64
        ));
    }
    for (name, allowed, keys) in [
        (
            "unindexed_filtering_update",
            strict.unindexed_filtering_update,
            &FILTERED_BY_WRITES[..],
        ),
        (
            "unindexed_filtering_retrieve",
            strict.unindexed_filtering_retrieve,
            &FILTERED_BY_READS[..],
        ),
    ] {
        let missing: Vec<&str> = keys
            .iter()
            .filter(|key| !indexes.contains_key(**key))
            .copied()
            .collect();
        if allowed == Some(false) && !missing.is_empty() {
            limits.push(format!(
                "{name} = false, and {} not indexed: run `tcbert-worker migrate apply`",
                missing.join(", ")
            ));
        }
    }
    limits
}

fn index_kind(schema: PayloadSchemaType) -> Option<IndexKind> {
    match schema {
        PayloadSchemaType::Keyword => Some(IndexKind::Keyword),
        PayloadSchemaType::Integer => Some(IndexKind::Integer),
        PayloadSchemaType::Datetime => Some(IndexKind::Datetime),
        PayloadSchemaType::Bool => Some(IndexKind::Bool),
        PayloadSchemaType::UnknownType
        | PayloadSchemaType::Float
        | PayloadSchemaType::Geo
        | PayloadSchemaType::Text
        | PayloadSchemaType::Uuid => None,
    }
}

pub(super) fn field_type(kind: IndexKind) -> FieldType {
    match kind {
        IndexKind::Keyword => FieldType::Keyword,
        IndexKind::Integer => FieldType::Integer,
        IndexKind::Datetime => FieldType::Datetime,
        IndexKind::Bool => FieldType::Bool,
    }
}

/// The distance that collections are created with.
pub(super) const DISTANCE: Distance = Distance::Cosine;
