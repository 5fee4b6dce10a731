//! The age of what is stored: reads it back from a payload and decides whether a write may replace it.
//! Pure. The gRPC store says the same in the words of a filter (`qdrant::condition`); the contract
//! suite holds both to one answer.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use crate::document::{RecordPosition, TopicPartition, Version};
use crate::store::point::key;

/// Reads the version that [`write_version`] left in a payload; `None` where a stranger wrote the
/// point, which then counts as older than everything.
pub fn read_version(payload: &Map<String, Value>) -> Option<Version> {
    let timestamp_ms = payload.get(key::VERSION)?.as_i64()?;
    let topic = payload.get(key::KAFKA_TOPIC).and_then(Value::as_str);
    let partition = payload
        .get(key::KAFKA_PARTITION)
        .and_then(Value::as_i64)
        .and_then(|partition| i32::try_from(partition).ok());
    let offset = payload.get(key::KAFKA_OFFSET).and_then(Value::as_i64);
    Some(Version {
        position: RecordPosition {
            partition: TopicPartition::new(
                topic.unwrap_or_default(),
                partition.unwrap_or(TopicPartition::NO_PARTITION),
            ),
            offset: offset.unwrap_or_default(),
        },
        timestamp_ms,
    })
}

/// Adds the keys by which [`read_version`] knows the age of a point.
pub fn write_version(payload: &mut Map<String, Value>, version: &Version) {
    let position = &version.position;
    payload.insert(key::VERSION.into(), version.timestamp_ms.into());
    payload.insert(
        key::KAFKA_TOPIC.into(),
        Value::from(&*position.partition.topic),
    );
    payload.insert(
        key::KAFKA_PARTITION.into(),
        position.partition.partition.into(),
    );
    payload.insert(key::KAFKA_OFFSET.into(), position.offset.into());
}

/// Whether `new` may replace what is stored: older never overwrites newer, equal rewrites.
pub fn may_replace(stored: Option<&Version>, new: &Version) -> bool {
    stored.is_none_or(|stored| new.compare(stored) != Ordering::Less)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(partition: i32, offset: i64, timestamp_ms: i64) -> Version {
        Version {
            position: RecordPosition {
                partition: TopicPartition::new("news", partition),
                offset,
            },
            timestamp_ms,
        }
    }

    #[test]
    fn offset_decides_within_a_partition_and_time_between_partitions() {
        let stored = version(0, 10, 1000);
        assert!(may_replace(Some(&stored), &version(0, 11, 1)));
        assert!(may_replace(Some(&stored), &version(0, 10, 1)));
        assert!(!may_replace(Some(&stored), &version(0, 9, 9999)));
        assert!(!may_replace(Some(&stored), &version(1, 99, 999)));
        assert!(may_replace(Some(&stored), &version(1, 0, 1000)));
        assert!(may_replace(None, &version(1, 0, 0)));
    }

    #[test]
    fn a_payload_without_version_is_replaced() {
        let payload = serde_json::json!({"id": "a", "version": "yesterday"});
        let stored = payload.as_object().and_then(read_version);
        assert_eq!(stored, None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(partition in -1..5i32, offset in 0..i64::MAX, at in any::<i64>()) {
            let written = version(partition, offset, at);
            let mut payload = Map::new();
            write_version(&mut payload, &written);
            prop_assert_eq!(read_version(&payload), Some(written));
        }
    }
}
