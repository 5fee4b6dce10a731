//! Filters of the gRPC interface as the engine reads them: as the REST interface writes them.

use qdrant_client::qdrant::condition::ConditionOneOf;
use qdrant_client::qdrant::r#match::MatchValue;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::{Condition, FieldCondition, Filter, PointId};
use serde_json::{Map, Value, json};
use tonic::Status;

pub(crate) fn engine_filter(filter: &Filter) -> Result<qdrant_edge::Filter, Status> {
    serde_json::from_value(filter_json(filter)?)
        .map_err(|error| Status::invalid_argument(format!("filter: {error}")))
}

pub(crate) fn engine_id(id: &PointId) -> Result<qdrant_edge::PointId, Status> {
    match &id.point_id_options {
        Some(PointIdOptions::Uuid(text)) => text
            .parse()
            .map(qdrant_edge::PointId::Uuid)
            .map_err(|_| Status::invalid_argument(format!("Unable to parse UUID: {text}"))),
        Some(PointIdOptions::Num(number)) => Ok(qdrant_edge::PointId::NumId(*number)),
        None => Err(Status::invalid_argument("Malformed type: Expected some id")),
    }
}

fn filter_json(filter: &Filter) -> Result<Value, Status> {
    let mut object = Map::new();
    for (key, conditions) in [
        ("should", &filter.should),
        ("must", &filter.must),
        ("must_not", &filter.must_not),
    ] {
        if !conditions.is_empty() {
            let conditions: Result<Vec<_>, _> = conditions.iter().map(condition).collect();
            object.insert(key.into(), conditions?.into());
        }
    }
    Ok(object.into())
}

fn condition(condition: &Condition) -> Result<Value, Status> {
    match condition.condition_one_of.as_ref() {
        Some(ConditionOneOf::Field(field)) => field_condition(field),
        Some(ConditionOneOf::IsEmpty(empty)) => Ok(json!({"is_empty": {"key": empty.key}})),
        Some(ConditionOneOf::Filter(filter)) => filter_json(filter),
        Some(ConditionOneOf::HasId(ids)) => {
            let ids: Result<Vec<Value>, Status> = ids
                .has_id
                .iter()
                .map(|id| Ok(json!(engine_id(id)?)))
                .collect();
            Ok(json!({"has_id": ids?}))
        }
        other => Err(Status::unimplemented(format!("condition {other:?}"))),
    }
}

fn field_condition(field: &FieldCondition) -> Result<Value, Status> {
    let mut object = Map::new();
    object.insert("key".into(), field.key.as_str().into());
    if let Some(wanted) = field
        .r#match
        .as_ref()
        .and_then(|it| it.match_value.as_ref())
    {
        let value = match wanted {
            MatchValue::Keyword(text) => json!(text),
            MatchValue::Integer(number) => json!(number),
            MatchValue::Boolean(value) => json!(value),
            other => return Err(Status::unimplemented(format!("match {other:?}"))),
        };
        object.insert("match".into(), json!({"value": value}));
    }
    if let Some(range) = &field.range {
        object.insert(
            "range".into(),
            json!({"lt": range.lt, "gt": range.gt, "gte": range.gte, "lte": range.lte}),
        );
    }
    if let Some(range) = &field.datetime_range {
        let text = |at: &Option<qdrant_client::qdrant::Timestamp>| {
            at.as_ref()
                .and_then(|at| jiff::Timestamp::new(at.seconds, at.nanos).ok())
                .map(|at| at.to_string())
        };
        object.insert(
            "range".into(),
            json!({"lt": text(&range.lt), "gt": text(&range.gt), "gte": text(&range.gte), "lte": text(&range.lte)}),
        );
    }
    Ok(object.into())
}
