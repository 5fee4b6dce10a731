//! The nouns that every stage shares: a document, where its record stood and how old it is.
//! Pure: knows neither Kafka nor ONNX nor Qdrant, and no clock.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::digest;

/// Bits of [`Version::order`]: what a server compares as floating point is exact up to there.
const ORDER_BITS: u32 = 53;

/// Longest accepted document id in bytes.
pub const MAX_DOCUMENT_ID_BYTES: usize = 1024;

/// The identity of a document: UTF-8, not empty, at most [`MAX_DOCUMENT_ID_BYTES`] long.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentId(Arc<str>);

/// Why a text cannot be a document id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentIdError {
    /// Nothing, or white space alone.
    #[error("the document id is empty")]
    Empty,
    /// Longer than [`MAX_DOCUMENT_ID_BYTES`].
    #[error("the document id has {0} bytes, at most {MAX_DOCUMENT_ID_BYTES} are allowed")]
    TooLong(usize),
}

impl DocumentId {
    /// Checks `id` and keeps it as it is.
    pub fn new(id: &str) -> Result<Self, DocumentIdError> {
        if id.trim().is_empty() {
            return Err(DocumentIdError::Empty);
        }
        if id.len() > MAX_DOCUMENT_ID_BYTES {
            return Err(DocumentIdError::TooLong(id.len()));
        }
        Ok(Self(Arc::from(id)))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The point that holds this document: UUIDv5 of the id in the URL namespace, so that a
    /// redelivery rewrites the same point.
    pub fn point_id(&self) -> Uuid {
        Uuid::new_v5(&Uuid::NAMESPACE_URL, self.0.as_bytes())
    }
}

impl fmt::Display for DocumentId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for DocumentId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

/// What a record says, once decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Identity; the record's key unless configured otherwise.
    pub id: DocumentId,
    /// Headline; may be empty when `text` is not.
    pub title: String,
    /// Body; may be empty when `title` is not.
    pub text: String,
    /// Time of publication, RFC 3339 in UTC.
    pub published_at: Option<jiff::Timestamp>,
    /// Who published it.
    pub source: Option<String>,
    /// Language tag as the record gives it.
    pub language: Option<String>,
    /// Further fields in the order of their names, kept in the payload untouched; empty where they are left in the
    /// record.
    pub attributes: serde_json::Map<String, serde_json::Value>,
    /// How many values, at least, are left in the record until a point is built: those of the attributes where they are
    /// many, for parsed they take many times the memory of their text. 0 where the document is whole.
    pub left_in_record: usize,
}

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Topic name; `file` for documents read from files.
    pub topic: Arc<str>,
    /// Partition number; [`TopicPartition::NO_PARTITION`] where offsets give no order of age.
    pub partition: i32,
}

impl TopicPartition {
    /// Partition of sources whose offsets say nothing about age (files): the timestamp decides there.
    pub const NO_PARTITION: i32 = -1;

    /// A partition of `topic`.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self {
            topic: topic.into(),
            partition,
        }
    }

    /// What [`Version::order`] is for the records of a Kafka partition: the same number wherever and
    /// whenever it is computed. A SHA-256, so compute it once for a partition, not for a record.
    pub fn version_order(&self) -> i64 {
        let partition = self.partition.to_string();
        // 0 is what points count as that were written without an order.
        digest::number_of_parts([self.topic.as_bytes(), partition.as_bytes()], ORDER_BITS).max(1)
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.partition == Self::NO_PARTITION {
            return formatter.write_str(&self.topic);
        }
        write!(formatter, "{}[{}]", self.topic, self.partition)
    }
}

/// Whether there is nothing to read: no character but white space, control characters, marks without
/// width and those whose meaning is private.
pub fn is_blank(text: &str) -> bool {
    text.chars().all(|c| {
        c.is_whitespace()
            || c.is_control()
            || matches!(c, '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')
            || matches!(c, '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}')
            || matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{10ffff}')
    })
}

/// Where a record stood.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RecordPosition {
    /// The record's partition.
    pub partition: TopicPartition,
    /// The record's offset within it.
    pub offset: i64,
}

impl fmt::Display for RecordPosition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}", self.partition, self.offset)
    }
}

/// The age of a record, by which an older write loses against a newer one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Where the record stood: within one topic-partition the offset decides.
    pub position: RecordPosition,
    /// The record's timestamp in milliseconds since the epoch: decides between partitions. 0 where the
    /// record has no time.
    pub timestamp_ms: i64,
    /// Decides between partitions where times are equal: 0 to below 2^53, the same for all records of a
    /// partition or file. See [`TopicPartition::version_order`]; 0 where none was written.
    pub order: i64,
}

impl Version {
    /// How old this version is compared with `other`; `Less` is older.
    ///
    /// Within one topic-partition the offset decides, otherwise time, then order, then offset. Equal
    /// versions rewrite each other. This is a total order as long as times do not go back within a
    /// partition; where they do and a document moves between partitions, no order can be.
    pub fn compare(&self, other: &Self) -> Ordering {
        let (offset, others_offset) = (self.position.offset, other.position.offset);
        if self.is_of_one_log(other) {
            return offset.cmp(&others_offset);
        }
        (self.timestamp_ms, self.order, offset).cmp(&(
            other.timestamp_ms,
            other.order,
            others_offset,
        ))
    }

    /// Whether this version may replace `stored`: older never overwrites newer, equal rewrites. What is
    /// stored with a time that `latest` does not allow yields to everything but its own partition's
    /// earlier records.
    pub fn may_replace(&self, stored: &Self, latest: LatestTime) -> bool {
        let yields = latest.forbids(stored.timestamp_ms) && !self.is_of_one_log(stored);
        yields || self.compare(stored) != Ordering::Less
    }

    /// Whether both come from one partition whose offsets give an order of age.
    fn is_of_one_log(&self, other: &Self) -> bool {
        self.position.partition.partition != TopicPartition::NO_PARTITION
            && self.position.partition == other.position.partition
    }
}

/// The latest time that a record may have: the present plus a tolerance. A later one is a mistake of
/// its producer, and would keep everything out that comes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatestTime(i64);

impl LatestTime {
    /// Allows every time.
    pub const ANY: Self = Self(i64::MAX);

    /// Allows times up to `tolerance` after `now`.
    pub fn after(now: jiff::Timestamp, tolerance: Duration) -> Self {
        let tolerance = i64::try_from(tolerance.as_millis()).unwrap_or(i64::MAX);
        Self(now.as_millisecond().saturating_add(tolerance))
    }

    /// Whether a time in milliseconds since the epoch is too late.
    pub fn forbids(self, timestamp_ms: i64) -> bool {
        timestamp_ms > self.0
    }

    /// The latest allowed time in milliseconds since the epoch.
    pub fn as_millisecond(self) -> i64 {
        self.0
    }
}

/// Counts the assignments of a partition: what belongs to an earlier one is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// What an acknowledgement needs: which record, under which assignment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// Where the record stood.
    pub position: RecordPosition,
    /// The assignment under which it was delivered.
    pub generation: Generation,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn version(log: usize, offset: i64, timestamp_ms: i64) -> Version {
        let (topic, partition, order) = [
            ("file:a", TopicPartition::NO_PARTITION, 5),
            ("file:b", TopicPartition::NO_PARTITION, 6),
            ("wire", 0, 3),
            // As if digests were equal, and as points without an order count.
            ("wire", 1, 3),
            ("old", 0, 0),
            ("old", 1, 0),
        ][log];
        Version {
            position: RecordPosition {
                partition: TopicPartition::new(topic, partition),
                offset,
            },
            timestamp_ms,
            order,
        }
    }

    /// Versions whose times do not go back within their partition.
    fn versions() -> impl Strategy<Value = Vec<Version>> {
        let drawn = proptest::collection::vec((0..6_usize, 0..4_i64, 0..3_i64), 3);
        let versions = drawn.prop_map(|drawn| {
            let draw = |(log, offset, at)| version(log, offset, at);
            drawn.into_iter().map(draw).collect::<Vec<_>>()
        });
        versions.prop_filter("times go back", |versions| {
            versions.iter().all(|one| {
                versions.iter().all(|other| {
                    !one.is_of_one_log(other)
                        || one.position.offset.cmp(&other.position.offset)
                            == one.timestamp_ms.cmp(&other.timestamp_ms)
                        || one.position.offset != other.position.offset
                            && one.timestamp_ms == other.timestamp_ms
                })
            })
        })
    }

    proptest! {
        #[test]
        fn times_that_ascend_make_a_total_order(versions in versions()) {
            let [a, b, c] = versions.as_slice() else { panic!("three") };
            for (one, other) in [(a, b), (b, c), (a, c)] {
                prop_assert_eq!(one.compare(other), other.compare(one).reverse());
            }
            for [x, y, z] in [[a, b, c], [a, c, b], [b, a, c], [b, c, a], [c, a, b], [c, b, a]] {
                if x.compare(y).is_ge() && y.compare(z).is_ge() {
                    prop_assert!(x.compare(z).is_ge(), "{x:?} {y:?} {z:?}");
                }
                // Whatever the order of arrival, what is left is none older than another.
                let mut stored = x;
                for new in [y, z] {
                    if new.may_replace(stored, LatestTime::ANY) {
                        stored = new;
                    }
                }
                prop_assert!([x, y, z].iter().all(|other| stored.compare(other).is_ge()));
            }
        }

        #[test]
        fn the_order_of_a_partition_is_stable_and_small(partition in any::<i32>()) {
            let order = TopicPartition::new("news", partition).version_order();
            prop_assert!((1..1 << 53).contains(&order));
            prop_assert_eq!(order, TopicPartition::new("news", partition).version_order());
        }
    }

    /// Stored points are compared by it: it may never change.
    #[test]
    fn the_order_of_a_partition_is_the_published_one() {
        let order = |topic: &str, partition| TopicPartition::new(topic, partition).version_order();
        assert_eq!(order("news", 0), 1_778_544_322_068_851);
        assert_eq!(order("news", 11), 674_351_952_188_346);
    }
}
