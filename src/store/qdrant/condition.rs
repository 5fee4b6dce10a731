//! The conditional write in the words of a filter: one clause per point that says "what is stored is
//! not newer". Pure. The server keeps a stored point that matches no clause and inserts points that
//! it does not have. The same rule in Rust is `version::may_replace`.

use qdrant_client::qdrant::{Condition, DatetimeRange, Filter, PointId, Range};

use crate::document::{TopicPartition, Version};
use crate::store::point::key;
use crate::store::{PointFilter, PointWrite};

/// Conditions that one point adds to a filter, nested filters counted; a server's strict mode may
/// limit their number.
pub(super) const CONDITIONS_PER_POINT: usize = 12;

/// The filter of a batch.
pub(super) fn not_newer(batch: &[PointWrite]) -> Filter {
    Filter::should(batch.iter().map(|write| {
        let stored_is_not_newer = stored_is_not_newer(write.version());
        Condition::from(Filter::must([
            Condition::has_id([point_id(write)]),
            Condition::from(stored_is_not_newer),
        ]))
    }))
}

pub(super) fn point_id(write: &PointWrite) -> PointId {
    PointId::from(write.id().point_id().to_string())
}

/// What [`Version::compare`] decides, seen from the stored point: within one topic-partition the
/// offset decides, otherwise the time; a point without version was written by a stranger and is old.
fn stored_is_not_newer(new: &Version) -> Filter {
    let position = &new.position;
    let no_later = at_most(key::VERSION, new.timestamp_ms);
    let mut ways = vec![Condition::is_empty(key::VERSION)];
    if position.partition.partition == TopicPartition::NO_PARTITION {
        ways.push(no_later);
    } else {
        let same_partition = [
            Condition::matches(key::KAFKA_TOPIC, position.partition.topic.to_string()),
            Condition::matches(
                key::KAFKA_PARTITION,
                i64::from(position.partition.partition),
            ),
        ];
        let mut no_later_offset = same_partition.to_vec();
        no_later_offset.push(at_most(key::KAFKA_OFFSET, position.offset));
        ways.push(Condition::from(Filter::must(no_later_offset)));
        ways.push(Condition::from(Filter {
            must: vec![no_later],
            must_not: vec![Condition::from(Filter::must(same_partition))],
            ..Filter::default()
        }));
    }
    Filter::should(ways)
}

/// The engine compares numbers as `f64`: exact up to 2^53, which is the year 287396 in milliseconds.
#[allow(clippy::cast_precision_loss)]
fn at_most(key: &str, value: i64) -> Condition {
    let range = Range {
        lte: Some(value as f64),
        ..Range::default()
    };
    Condition::range(key, range)
}

/// Points that match, markers excluded.
pub(super) fn matching(wanted: &PointFilter) -> Filter {
    let must = [(key::TOPIC, &wanted.topic), (key::SOURCE, &wanted.source)]
        .into_iter()
        .filter_map(|(key, value)| Some(Condition::matches(key, value.clone()?)))
        .collect();
    Filter {
        must,
        must_not: vec![Condition::matches(key::DELETED, true)],
        ..Filter::default()
    }
}

/// Markers that were written before `before`.
pub(super) fn markers_before(before: jiff::Timestamp) -> Filter {
    let range = DatetimeRange {
        lt: Some(timestamp(before)),
        ..DatetimeRange::default()
    };
    Filter::must([
        Condition::matches(key::DELETED, true),
        Condition::datetime_range(key::DELETED_AT, range),
    ])
}

fn timestamp(at: jiff::Timestamp) -> qdrant_client::qdrant::Timestamp {
    qdrant_client::qdrant::Timestamp {
        seconds: at.as_second(),
        nanos: at.subsec_nanosecond(),
    }
}

/// The markers among these points, for taking their vectors away.
pub(super) fn markers_among(ids: Vec<PointId>) -> Filter {
    Filter::must([
        Condition::has_id(ids),
        Condition::matches(key::DELETED, true),
    ])
}
