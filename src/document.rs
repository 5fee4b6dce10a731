//! The nouns that every stage shares: a document, where its record stood and how old it is.
//! Pure: knows neither Kafka nor ONNX nor Qdrant, and no clock.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

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
    /// Further fields, kept in the payload untouched.
    pub attributes: BTreeMap<String, serde_json::Value>,
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
    /// The record's timestamp in milliseconds since the epoch: decides between partitions.
    pub timestamp_ms: i64,
}

impl Version {
    /// How old this version is compared with `other`; `Less` is older.
    ///
    /// Within one topic-partition the offset decides, otherwise the timestamp. Equal versions
    /// rewrite each other.
    pub fn compare(&self, other: &Self) -> Ordering {
        let same_partition = self.position.partition == other.position.partition
            && self.position.partition.partition != TopicPartition::NO_PARTITION;
        if same_partition {
            self.position.offset.cmp(&other.position.offset)
        } else {
            self.timestamp_ms.cmp(&other.timestamp_ms)
        }
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
