//! The age of what is stored: reads it back from a payload and decides whether a write may replace it.
//! Pure. The gRPC store says the same in the words of a filter (`qdrant::condition`); the contract
//! suite holds both to one answer.

use serde_json::{Map, Value};

use crate::document::{LatestTime, RecordPosition, TopicPartition, Version};
use crate::store::key;

/// The payload keys that [`read_version`] reads.
pub const KEYS: [&str; 5] = [
    key::VERSION,
    key::VERSION_ORDER,
    key::KAFKA_TOPIC,
    key::KAFKA_PARTITION,
    key::KAFKA_OFFSET,
];

/// Reads the version that [`write_version`] left in a payload; `None` where a stranger wrote the
/// point, which then counts as older than everything. Points of earlier versions of this program have
/// no order, which counts as 0.
pub fn read_version(payload: &Map<String, Value>) -> Option<Version> {
    let timestamp_ms = payload.get(key::VERSION)?.as_i64()?;
    let topic = payload.get(key::KAFKA_TOPIC).and_then(Value::as_str);
    let partition = payload
        .get(key::KAFKA_PARTITION)
        .and_then(Value::as_i64)
        .and_then(|partition| i32::try_from(partition).ok());
    let offset = payload.get(key::KAFKA_OFFSET).and_then(Value::as_i64);
    let order = payload.get(key::VERSION_ORDER).and_then(Value::as_i64);
    Some(Version {
        position: RecordPosition {
            partition: TopicPartition::new(
                topic.unwrap_or_default(),
                partition.unwrap_or(TopicPartition::NO_PARTITION),
            ),
            offset: offset.unwrap_or_default(),
        },
        timestamp_ms,
        order: order.unwrap_or_default(),
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
    payload.insert(key::VERSION_ORDER.into(), version.order.into());
}

/// Whether `new` may replace what is stored; see [`Version::may_replace`].
pub fn may_replace(stored: Option<&Version>, new: &Version, latest: LatestTime) -> bool {
    stored.is_none_or(|stored| new.may_replace(stored, latest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(partition: i32, offset: i64, timestamp_ms: i64, order: i64) -> Version {
        Version {
            position: RecordPosition {
                partition: TopicPartition::new("news", partition),
                offset,
            },
            timestamp_ms,
            order,
        }
    }

    fn replaces(stored: &Version, new: &Version) -> bool {
        may_replace(Some(stored), new, LatestTime::ANY)
    }

    #[test]
    fn offset_decides_within_a_partition_and_time_order_offset_between_partitions() {
        let stored = version(0, 10, 1000, 5);
        assert!(replaces(&stored, &version(0, 11, 1, 5)));
        assert!(replaces(&stored, &version(0, 10, 1, 5)));
        assert!(!replaces(&stored, &version(0, 9, 9999, 5)));
        assert!(!replaces(&stored, &version(1, 99, 999, 9)));
        assert!(replaces(&stored, &version(1, 0, 1001, 4)));
        assert!(replaces(&stored, &version(1, 0, 1000, 6)));
        assert!(!replaces(&stored, &version(1, 99, 1000, 4)));
        assert!(replaces(&stored, &version(1, 10, 1000, 5)));
        assert!(!replaces(&stored, &version(1, 9, 1000, 5)));
        assert!(may_replace(
            None,
            &version(1, 0, 0, 0),
            LatestTime::after(jiff::Timestamp::UNIX_EPOCH, std::time::Duration::ZERO)
        ));
    }

    #[test]
    fn what_is_stored_with_a_time_in_the_future_yields() {
        let now = jiff::Timestamp::from_millisecond(1000).unwrap();
        let latest = LatestTime::after(now, std::time::Duration::from_millis(50));
        let at = |timestamp_ms| version(0, 10, timestamp_ms, 5);
        let other = version(1, 3, 7, 4);
        assert!(may_replace(Some(&at(1051)), &other, latest));
        assert!(!may_replace(Some(&at(1050)), &other, latest));
        let earlier_offset = version(0, 9, 1000, 5);
        assert!(!may_replace(Some(&at(1051)), &earlier_offset, latest));
        let file = |offset, at| version(TopicPartition::NO_PARTITION, offset, at, 5);
        assert!(may_replace(Some(&file(9, 1051)), &file(3, 0), latest));
    }

    #[test]
    fn a_point_without_order_counts_as_the_first() {
        let payload = serde_json::json!({
            "version": 7, "kafka_topic": "news", "kafka_partition": 2, "kafka_offset": 3,
        });
        let stored = payload.as_object().and_then(read_version);
        assert_eq!(stored, Some(version(2, 3, 7, 0)));
    }

    #[test]
    fn a_payload_without_version_is_replaced() {
        let payload = serde_json::json!({"id": "a", "version": "yesterday"});
        let stored = payload.as_object().and_then(read_version);
        assert_eq!(stored, None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            partition in -1..5i32, offset in 0..i64::MAX, at in any::<i64>(), order in 0..1i64 << 53,
        ) {
            let written = version(partition, offset, at, order);
            let mut payload = Map::new();
            write_version(&mut payload, &written);
            prop_assert_eq!(read_version(&payload), Some(written));
        }
    }
}
