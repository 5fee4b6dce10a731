//! The conditional write in the words of a filter that says "what is stored is not newer". Pure. The
//! server keeps a stored point that does not match it and inserts points that it does not have. The
//! same rule in Rust is `version::may_replace`.
//!
//! The points of a batch share a filter: what their partition has in common is said once, and each
//! point adds a clause with its id to two lists, one compared by offset, one by time, order and offset.

use std::collections::BTreeMap;

use qdrant_client::qdrant::{Condition, DatetimeRange, Filter, PointId, Range};

use crate::document::{LatestTime, RecordPosition, TopicPartition, Version};
use crate::store::{PointFilter, PointWrite, key};

/// Most conditions that one point adds to a filter, as a server counts them (leaves only): eight of its
/// own, and four of a partition that no other point of the batch shares. Strict mode may limit them.
pub(super) const CONDITIONS_PER_POINT: usize = 12;

/// The filter of a batch that holds each document once: what [`Version::may_replace`] decides, seen
/// from the stored point. Within one topic-partition the offset decides, otherwise time, order and
/// offset; a point without version was written by a stranger and is old.
pub(super) fn not_newer(batch: &[(PointId, PointWrite)], latest: LatestTime) -> Filter {
    let mut partitions: BTreeMap<&TopicPartition, Vec<&(PointId, PointWrite)>> = BTreeMap::new();
    for write in batch {
        let partition = &write.1.version().position.partition;
        partitions.entry(partition).or_default().push(write);
    }
    let mut ways = vec![Condition::is_empty(key::VERSION)];
    for (partition, writes) in partitions {
        let not_newer = any_of(&writes, |write| no_later(write.version(), latest));
        if partition.partition == TopicPartition::NO_PARTITION {
            ways.push(not_newer);
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
            must: vec![not_newer],
            must_not: vec![Condition::from(Filter::must(from_here))],
            ..Filter::default()
        }));
    }
    Filter::should(ways)
}

/// What is stored and not of the same partition is not newer than `version`: its time is earlier or
/// not allowed, or equal, and then its order is less (or absent), or equal with no later offset.
fn no_later(version: &Version, latest: LatestTime) -> Condition {
    let newer_or_equal_time = Range {
        gte: Some(float(version.timestamp_ms)),
        lte: Some(float(latest.as_millisecond())),
        ..Range::default()
    };
    let not_less_order = Range {
        gte: Some(float(version.order)),
        ..Range::default()
    };
    let less_order = Filter::must_not([Condition::range(key::VERSION_ORDER, not_less_order)]);
    let no_later_offset = Filter::must([
        at_most(key::VERSION_ORDER, version.order),
        at_most(key::KAFKA_OFFSET, version.position.offset),
    ]);
    let by_order = Filter::should([
        Condition::from(less_order),
        Condition::from(no_later_offset),
    ]);
    Condition::from(Filter::should([
        Condition::from(Filter::must_not([Condition::range(
            key::VERSION,
            newer_or_equal_time,
        )])),
        Condition::from(Filter::must([
            at_most(key::VERSION, version.timestamp_ms),
            Condition::from(by_order),
        ])),
    ]))
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
fn float(value: i64) -> f64 {
    value as f64
}

fn at_most(key: &str, value: i64) -> Condition {
    let range = Range {
        lte: Some(float(value)),
        ..Range::default()
    };
    Condition::range(key, range)
}

/// The stored point came from this position or from beyond it.
fn from_or_beyond(position: &RecordPosition) -> Condition {
    let range = Range {
        gte: Some(float(position.offset)),
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
                    order: number,
                },
                deleted_at: jiff::Timestamp::UNIX_EPOCH,
            })
            .map(|write| (point_id(&write), write))
            .collect()
    }

    #[test]
    fn the_number_of_conditions_is_known() {
        let count = |points, partition_of: fn(i64) -> i32| {
            leaves(&not_newer(&batch(points, partition_of), LatestTime::ANY))
        };
        // One for points without version, four for each partition, eight for each point.
        assert_eq!(count(100, |_| 3), 1 + 4 + 800);
        assert_eq!(count(100, |number| (number % 12) as i32), 1 + 48 + 800);
        let apart = count(100, |number| number as i32);
        assert_eq!(apart, 1 + 100 * CONDITIONS_PER_POINT);
        // Files have no order of offsets between them.
        assert_eq!(count(100, |_| TopicPartition::NO_PARTITION), 1 + 600);
    }
}
