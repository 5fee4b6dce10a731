//! The conditional write in the words of a filter that says "what is stored is not newer". Pure. The
//! server keeps a stored point that does not match it and inserts points that it does not have. The
//! same rule in Rust is `version::may_replace`.
//!
//! The points of a batch share a filter: what their partition has in common is said once, and each
//! point adds a clause with its id to two lists, one compared by offset, one by time.

use std::collections::BTreeMap;

use qdrant_client::qdrant::{Condition, DatetimeRange, Filter, PointId, Range};

use crate::document::{RecordPosition, TopicPartition};
use crate::store::point::key;
use crate::store::{PointFilter, PointWrite};

/// Most conditions that one point adds to a filter, as a server counts them (leaves only): four of its
/// own, and four of a partition that no other point of the batch shares. Strict mode may limit them.
pub(super) const CONDITIONS_PER_POINT: usize = 8;

/// The filter of a batch that holds each document once: what [`Version::compare`] decides, seen from
/// the stored point. Within one topic-partition the offset decides, otherwise the time; a point
/// without version was written by a stranger and is old.
///
/// [`Version::compare`]: crate::document::Version::compare
pub(super) fn not_newer(batch: &[(PointId, PointWrite)]) -> Filter {
    let mut partitions: BTreeMap<&TopicPartition, Vec<&(PointId, PointWrite)>> = BTreeMap::new();
    for write in batch {
        let partition = &write.1.version().position.partition;
        partitions.entry(partition).or_default().push(write);
    }
    let mut ways = vec![Condition::is_empty(key::VERSION)];
    for (partition, writes) in partitions {
        let no_later = any_of(&writes, |write| {
            at_most(key::VERSION, write.version().timestamp_ms)
        });
        if partition.partition == TopicPartition::NO_PARTITION {
            ways.push(no_later);
            continue;
        }
        let from_here = [
            Condition::matches(key::KAFKA_TOPIC, partition.topic.to_string()),
            Condition::matches(key::KAFKA_PARTITION, i64::from(partition.partition)),
        ];
        let no_later_offset = any_of(&writes, |write| {
            at_most(key::KAFKA_OFFSET, write.version().position.offset)
        });
        let [topic, number] = from_here.clone();
        ways.push(Condition::from(Filter::must([
            topic,
            number,
            no_later_offset,
        ])));
        ways.push(Condition::from(Filter {
            must: vec![no_later],
            must_not: vec![Condition::from(Filter::must(from_here))],
            ..Filter::default()
        }));
    }
    Filter::should(ways)
}

/// The stored point is one of these, and what is asked of that one holds.
fn any_of(
    writes: &[&(PointId, PointWrite)],
    asked: impl Fn(&PointWrite) -> Condition,
) -> Condition {
    let clauses = writes.iter().map(|(id, write)| {
        let is_this = Condition::has_id([id.clone()]);
        Condition::from(Filter::must([is_this, asked(write)]))
    });
    Condition::from(Filter::should(clauses))
}

pub(super) fn point_id(write: &PointWrite) -> PointId {
    PointId::from(write.id().point_id().to_string())
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

/// The stored point came from this position or from beyond it.
#[allow(clippy::cast_precision_loss)]
fn from_or_beyond(position: &RecordPosition) -> Condition {
    let range = Range {
        gte: Some(position.offset as f64),
        ..Range::default()
    };
    let TopicPartition { topic, partition } = &position.partition;
    Condition::from(Filter::must([
        Condition::matches(key::KAFKA_TOPIC, topic.to_string()),
        Condition::matches(key::KAFKA_PARTITION, i64::from(*partition)),
        Condition::range(key::KAFKA_OFFSET, range),
    ]))
}

/// Points that match, markers excluded.
pub(super) fn matching(wanted: &PointFilter) -> Filter {
    let mut must: Vec<Condition> = [(key::TOPIC, &wanted.topic), (key::SOURCE, &wanted.source)]
        .into_iter()
        .filter_map(|(key, value)| Some(Condition::matches(key, value.clone()?)))
        .collect();
    if !wanted.from_or_beyond.is_empty() {
        let places = wanted.from_or_beyond.iter().map(from_or_beyond);
        must.push(Condition::from(Filter::should(places)));
    }
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

#[cfg(test)]
mod tests {
    use qdrant_client::qdrant::condition::ConditionOneOf;

    use super::*;
    use crate::document::{DocumentId, RecordPosition, Version};

    fn leaves(filter: &Filter) -> usize {
        let conditions = filter
            .should
            .iter()
            .chain(&filter.must)
            .chain(&filter.must_not);
        conditions
            .map(|condition| match &condition.condition_one_of {
                Some(ConditionOneOf::Filter(nested)) => leaves(nested),
                _ => 1,
            })
            .sum()
    }

    fn batch(points: i64, partition_of: impl Fn(i64) -> i32) -> Vec<(PointId, PointWrite)> {
        (0..points)
            .map(|number| PointWrite::Tombstone {
                id: DocumentId::new(&format!("n-{number}")).unwrap(),
                version: Version {
                    position: RecordPosition {
                        partition: TopicPartition::new("wire", partition_of(number)),
                        offset: number,
                    },
                    timestamp_ms: number,
                },
                deleted_at: jiff::Timestamp::UNIX_EPOCH,
            })
            .map(|write| (point_id(&write), write))
            .collect()
    }

    #[test]
    fn the_number_of_conditions_is_known() {
        // One for points without version, four for each partition, four for each point.
        assert_eq!(leaves(&not_newer(&batch(100, |_| 3))), 1 + 4 + 400);
        assert_eq!(
            leaves(&not_newer(&batch(100, |number| (number % 12) as i32))),
            1 + 48 + 400
        );
        let apart = not_newer(&batch(100, |number| number as i32));
        assert_eq!(leaves(&apart), 1 + 100 * CONDITIONS_PER_POINT);
        assert_eq!(
            leaves(&not_newer(&batch(100, |_| TopicPartition::NO_PARTITION))),
            1 + 200
        );
    }
}
