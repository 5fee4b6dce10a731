//! What every source delivers: records, changes of assignment, and the end.
//! Knows nothing of Kafka's client; `kafka/` and `files/` produce these.

mod events;
pub mod files;
mod letters;
mod refused;
mod replayed;
pub(crate) mod timestamp;

use std::sync::Arc;

use crossbeam_channel::Sender;

pub use events::Events;
pub use letters::FileDeadLetters;
pub use refused::{DeadLetter, DeadLetterError, DeadLetterSink, MemoryDeadLetters};
pub use replayed::ReplayOrigin;

use crate::document::{Generation, Receipt, RecordPosition, TopicPartition};

/// One header of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Header name.
    pub name: String,
    /// Header value; Kafka allows null.
    pub value: Option<Vec<u8>>,
}

/// A record as it was delivered, undecoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceRecord {
    /// Where it stood.
    pub position: RecordPosition,
    /// The assignment under which it was delivered.
    pub generation: Generation,
    /// Timestamp in milliseconds since the epoch, where the record has one.
    pub timestamp_ms: Option<i64>,
    /// Key; null in Kafka is `None`.
    pub key: Option<Vec<u8>>,
    /// Value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Headers in their order.
    pub headers: Vec<Header>,
    /// Why the value is not what stood there: decoding rejects the record with it.
    pub fault: Option<RecordFault>,
}

/// Why a source does not deliver the value that stood there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordFault {
    /// It could not make one value of it.
    NotOneValue(Box<str>),
    /// It is larger than [`LARGEST_VALUE`]; only the first bytes of it are here.
    TooLarge {
        /// Bytes of the whole.
        bytes: usize,
        /// SHA-256 of the whole in hexadecimal digits.
        sha256: Box<str>,
    },
}

/// Bytes of the largest value that is ever held: no `decode.max_value_bytes` allows a larger one.
pub const LARGEST_VALUE: usize = 64 << 20;

impl SourceRecord {
    /// What acknowledging this record needs.
    pub fn receipt(&self) -> Receipt {
        Receipt {
            position: self.position.clone(),
            generation: self.generation,
        }
    }

    /// Bytes that the record holds in memory, roughly.
    pub fn size_bytes(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|header| header.name.len() + header.value.as_ref().map_or(0, Vec::len))
            .sum();
        self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len) + headers
    }
}

/// The next offset to read of a partition: what is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitOffset {
    /// The partition.
    pub partition: TopicPartition,
    /// The offset after the last durable record.
    pub next_offset: i64,
    /// The assignment that the offset belongs to.
    pub generation: Generation,
}

/// What a source says, in order.
#[derive(Debug)]
pub enum SourceEvent {
    /// Records in the order of their partitions; never empty.
    Records(Vec<SourceRecord>),
    /// Partitions are now ours; their records follow.
    Assigned {
        /// The partitions.
        partitions: Vec<TopicPartition>,
        /// The generation that their records will carry.
        generation: Generation,
    },
    /// Partitions are about to leave: drain what is in flight, then answer. The source waits for
    /// the answer within its own bound, commits what it holds, and lets go.
    Revoked {
        /// The partitions.
        partitions: Vec<TopicPartition>,
        /// Receives the last offsets to commit.
        reply: Sender<Vec<CommitOffset>>,
    },
    /// Partitions are gone already (session expired): abandon what is in flight, commit nothing.
    Lost {
        /// The partitions.
        partitions: Vec<TopicPartition>,
    },
    /// A bounded source has delivered everything.
    Ended,
    /// The source cannot go on.
    Failed(SourceError),
}

/// How a commit is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitMode {
    /// Do not wait for the broker.
    Background,
    /// Wait for the broker's answer.
    Wait,
}

/// A place that documents come from.
///
/// Started by its own constructor, which spawns what it needs. Back-pressure is the bounded channel of
/// records: a source that cannot send keeps its group membership alive and delivers nothing.
pub trait Source: Send + Sync {
    /// The events; one reader takes them.
    fn events(&self) -> Events;

    /// Whether a record of this assignment may still be processed: false as soon as its partition
    /// is leaving, even while earlier records of it wait in the channel. What is dropped for that
    /// is not acknowledged, and its next owner gets it.
    fn delivers(&self, partition: &TopicPartition, generation: Generation) -> bool {
        let _ = (partition, generation);
        true
    }

    /// What [`Version::order`] is for the records of a partition: the same number for every delivery
    /// of the same records. Asked once in a while, not for every record.
    ///
    /// [`Version::order`]: crate::document::Version::order
    fn version_order(&self, partition: &TopicPartition) -> i64 {
        partition.version_order()
    }

    /// Makes offsets the place from which the next start goes on. Offsets of partitions no longer
    /// assigned under the same generation are left out.
    ///
    /// # Errors
    /// When the broker refuses or cannot be reached; the caller tries again at its next tick.
    fn commit(&self, offsets: &[CommitOffset], mode: CommitMode) -> Result<(), SourceError>;

    /// Stops delivering new records while staying a member of the group, so that what is in
    /// flight can be drained and committed. Idempotent.
    fn stop(&self);

    /// Leaves the group and ends the source's threads; bounded. Idempotent.
    fn close(&self);
}

/// Why a source failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// A wrong setting, credential or offset: trying again does not help.
    #[error("{0}")]
    Fatal(String),
    /// The broker is away or busy: trying again may help.
    #[error("{0}")]
    Transient(String),
}

/// A shared source.
pub type SharedSource = Arc<dyn Source>;
