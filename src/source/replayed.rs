//! Where a replayed record first stood. `dead-letters replay` says it in a header, and the age of
//! the record is then that of the original: a replay is as harmless as a redelivery.
//!
//! Anybody who may write to the topic may write the header. It is honoured only where it makes the
//! record older, so that a forged one does no harm.

use serde::{Deserialize, Serialize};

use super::{Header, SourceRecord};
use crate::document::RecordPosition;

/// Name of the header; its value is one JSON object.
const HEADER: &str = "__tcbert.replay.origin";

/// Where a record first stood, and when that was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayOrigin {
    /// The original's topic, partition and offset.
    pub position: RecordPosition,
    /// The original's timestamp in milliseconds since the epoch, where it had one.
    pub timestamp_ms: Option<i64>,
}

/// The header's value.
#[derive(Debug, Serialize, Deserialize)]
struct Value<'a> {
    #[serde(borrow)]
    topic: std::borrow::Cow<'a, str>,
    partition: i32,
    offset: i64,
    timestamp_ms: Option<i64>,
}

impl ReplayOrigin {
    /// The origin of a record that stands at `position` with this timestamp: what its last replay
    /// header says, where that names the same topic and partition and a lower offset.
    pub fn of(
        headers: &[Header],
        position: &RecordPosition,
        timestamp_ms: Option<i64>,
    ) -> Option<Self> {
        let header = headers.iter().rfind(|header| header.name == HEADER)?;
        let value: Value<'_> = serde_json::from_slice(header.value.as_deref()?).ok()?;
        let is_older = value.topic == *position.partition.topic
            && value.partition == position.partition.partition
            && (0..position.offset).contains(&value.offset);
        is_older.then(|| Self {
            position: RecordPosition {
                partition: position.partition.clone(),
                offset: value.offset,
            },
            // A later time than the record's own would let it win against other partitions.
            timestamp_ms: value.timestamp_ms.min(timestamp_ms).filter(|ms| *ms >= 0),
        })
    }

    /// Adds the header, in the place of those that are there.
    pub fn mark(&self, headers: &mut Vec<Header>) {
        headers.retain(|header| header.name != HEADER);
        let value = Value {
            topic: self.position.partition.topic.as_ref().into(),
            partition: self.position.partition.partition,
            offset: self.position.offset,
            timestamp_ms: self.timestamp_ms,
        };
        headers.push(Header {
            name: HEADER.to_owned(),
            // A text and three numbers always have a JSON form.
            value: serde_json::to_vec(&value).ok(),
        });
    }
}

impl SourceRecord {
    /// Where this record first stood and its timestamp there: what its age is judged by. Its own
    /// unless it was replayed.
    pub fn origin(&self) -> ReplayOrigin {
        ReplayOrigin::of(&self.headers, &self.position, self.timestamp_ms).unwrap_or_else(|| {
            ReplayOrigin {
                position: self.position.clone(),
                timestamp_ms: self.timestamp_ms,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::TopicPartition;

    fn at(topic: &str, partition: i32, offset: i64) -> RecordPosition {
        RecordPosition {
            partition: TopicPartition::new(topic, partition),
            offset,
        }
    }

    fn marked(position: RecordPosition, timestamp_ms: Option<i64>) -> Vec<Header> {
        let mut headers = vec![Header {
            name: "own".to_owned(),
            value: None,
        }];
        let origin = ReplayOrigin {
            position,
            timestamp_ms,
        };
        origin.mark(&mut headers);
        headers
    }

    #[test]
    fn a_replayed_record_is_judged_by_where_it_first_stood() {
        let headers = marked(at("news\"新", 3, 5), Some(7));
        let found = ReplayOrigin::of(&headers, &at("news\"新", 3, 90), Some(8)).unwrap();
        assert_eq!(found.position, at("news\"新", 3, 5));
        assert_eq!(found.timestamp_ms, Some(7));
    }

    #[test]
    fn a_header_counts_only_where_it_makes_the_record_older() {
        let headers = marked(at("news", 3, 5), Some(7));
        for elsewhere in [
            at("news", 3, 5),
            at("news", 3, 4),
            at("news", 2, 90),
            at("wire", 3, 90),
        ] {
            assert_eq!(ReplayOrigin::of(&headers, &elsewhere, Some(8)), None);
        }
        let here = at("news", 3, 90);
        let of = |headers: &[Header], ms| ReplayOrigin::of(headers, &here, ms);
        assert_eq!(of(&headers, Some(6)).unwrap().timestamp_ms, Some(6));
        assert_eq!(of(&headers, None).unwrap().timestamp_ms, None);
        let untimed = marked(at("news", 3, 5), None);
        assert_eq!(of(&untimed, Some(6)).unwrap().timestamp_ms, None);
        assert_eq!(of(&marked(at("news", 3, -1), Some(1)), Some(6)), None);
    }

    #[test]
    fn what_is_no_such_header_is_passed_over() {
        let here = at("news", 3, 90);
        for value in [
            None,
            Some(b"".to_vec()),
            Some(b"{}".to_vec()),
            Some(b"[]".to_vec()),
            Some(b"\xff".to_vec()),
            Some(br#"{"topic":"news","partition":3,"offset":1e99}"#.to_vec()),
        ] {
            let headers = [Header {
                name: HEADER.to_owned(),
                value,
            }];
            assert_eq!(ReplayOrigin::of(&headers, &here, None), None);
        }
    }

    #[test]
    fn a_record_has_one_such_header_at_most() {
        let mut headers = marked(at("news", 3, 5), Some(7));
        let first = ReplayOrigin::of(&headers, &at("news", 3, 90), Some(7)).unwrap();
        first.mark(&mut headers);
        assert_eq!(headers.len(), 2);
        assert_eq!(headers[0].name, "own");
    }
}
