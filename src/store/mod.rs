//! The store stage: points in, durable or refused. One trait, two real implementations
//! (`qdrant` over gRPC, `embedded` in process); what can be pure is (`point`, `version`, `batch`).
//! Knows nothing of sources, models or offsets to commit.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::document::{DocumentId, LatestTime, RecordPosition, Version};

pub mod batch;
pub mod bulk;
pub mod counting;
pub mod embedded;
pub mod groups;
pub mod key;
pub mod migrate;
mod open;
pub mod point;
pub mod qdrant;
pub mod settings;
pub mod upkeep;
pub mod version;

pub use migrate::Expectation;
pub use open::{connect, open, prepare};
pub use settings::{ApiKeyError, StoreKind, StoreSettings};

/// What is written for one document.
#[derive(Debug, Clone, PartialEq)]
pub enum PointWrite {
    /// A vector and its payload.
    Upsert(Point),
    /// A deletion: a marker without vector that keeps late older writes out.
    Tombstone {
        /// Identity of the deleted document.
        id: DocumentId,
        /// The deletion's age.
        version: Version,
        /// When the marker is written; its retention counts from here.
        deleted_at: jiff::Timestamp,
    },
}

/// A tagged document, ready to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Identity; the point id is derived from it.
    pub id: DocumentId,
    /// Age; an older write loses.
    pub version: Version,
    /// L2-normalised embedding `[hidden]`.
    pub vector: Vec<f32>,
    /// The payload keys of the design, without those that the version holds
    /// (`version`, `version_order`, `kafka_topic`, `kafka_partition`, `kafka_offset`), which the store adds.
    pub payload: Map<String, Value>,
}

impl PointWrite {
    /// The document written or deleted.
    pub fn id(&self) -> &DocumentId {
        match self {
            Self::Upsert(point) => &point.id,
            Self::Tombstone { id, .. } => id,
        }
    }

    /// How old the write is.
    pub fn version(&self) -> &Version {
        match self {
            Self::Upsert(point) => &point.version,
            Self::Tombstone { version, .. } => version,
        }
    }

    /// Whether this is a deletion.
    pub fn is_tombstone(&self) -> bool {
        matches!(self, Self::Tombstone { .. })
    }
}

/// Which points a question is about; markers of deletions never count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PointFilter {
    /// Only points whose `topic` is this one.
    pub topic: Option<String>,
    /// Only points whose `source` is this one.
    pub source: Option<String>,
    /// Only points that came from one of these positions, or from beyond it in the same partition; empty: from
    /// anywhere.
    pub from_or_beyond: Vec<RecordPosition>,
}

/// One hit of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchHit {
    /// Point id.
    pub point_id: Uuid,
    /// Cosine similarity to the query.
    pub score: f32,
    /// The payload as stored.
    pub payload: Map<String, Value>,
}

/// What kind of question a payload index answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IndexKind {
    /// Equality of texts.
    Keyword,
    /// Equality and ranges of whole numbers.
    Integer,
    /// Ranges of RFC 3339 times.
    Datetime,
    /// True or false.
    Bool,
}

/// What a new collection holds: one named vector per point, compared by cosine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectionSpec {
    /// Name of the vector.
    pub vector_name: String,
    /// Width of the vectors.
    pub vector_size: usize,
}

/// What the collection is, so that a worker can refuse one that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectionInfo {
    /// Collection name (an alias is resolved).
    pub name: String,
    /// Width of the vectors.
    pub vector_size: usize,
    /// Name of the vector; empty for the unnamed one.
    pub vector_name: String,
    /// Distance, such as `Cosine`.
    pub distance: String,
    /// Points, markers included.
    pub points: u64,
    /// Payload indexes by key.
    pub indexes: BTreeMap<String, IndexKind>,
    /// What migrations wrote about the collection, see [`migrate`].
    pub metadata: BTreeMap<String, Value>,
    /// Limits that the server puts on requests, as sentences; empty where it puts none that matter.
    pub limits: Vec<String>,
}

/// What became of the writes of a durable batch that lost; all others are what is stored now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteOutcome {
    /// Documents superseded by a newer version, which is in the store or came in the same batch.
    pub superseded_documents: usize,
    /// Deletions superseded likewise.
    pub superseded_deletions: usize,
}

impl WriteOutcome {
    /// Counts `times` writes of this kind as superseded.
    pub(crate) fn add_superseded(&mut self, write: &PointWrite, times: usize) {
        if write.is_tombstone() {
            self.superseded_deletions += times;
        } else {
            self.superseded_documents += times;
        }
    }
}

impl AddAssign for WriteOutcome {
    fn add_assign(&mut self, other: Self) {
        self.superseded_documents += other.superseded_documents;
        self.superseded_deletions += other.superseded_deletions;
    }
}

/// A place that points are written to.
///
/// `write` may be called concurrently; it returns only when every point of the batch is durable
/// (gRPC: Completed with wait=true; embedded: after a flush that did not fail) or superseded by a
/// newer version already there. On an error nothing is known of the batch: writing it again is safe.
pub trait Store: Send + Sync {
    /// Writes a batch conditionally: older never overwrites newer, equal rewrites, and what is stored
    /// with a time beyond `latest` yields.
    ///
    /// What was superseded is counted exactly by the embedded store. A server is asked after the write,
    /// so that a newer version of another writer in between counts as well.
    fn write(
        &self,
        batch: Vec<PointWrite>,
        latest: LatestTime,
    ) -> BoxFuture<'_, Result<WriteOutcome, StoreError>>;

    /// The `limit` nearest points to an L2-normalised `vector`, best first.
    fn search(
        &self,
        vector: Vec<f32>,
        filter: PointFilter,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<SearchHit>, StoreError>>;

    /// Points that match, markers excluded.
    fn count(&self, filter: PointFilter) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// The stored payload of one document, its marker included; `None` where there is neither.
    fn fetch(
        &self,
        id: DocumentId,
    ) -> BoxFuture<'_, Result<Option<Map<String, Value>>, StoreError>>;

    /// What the collection is; `None` where it does not exist.
    fn collection(&self) -> BoxFuture<'_, Result<Option<CollectionInfo>, StoreError>>;

    /// Removes markers of deletions that were written before `before`; says how many.
    fn remove_markers(&self, before: jiff::Timestamp) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// What this store cannot promise, each as a sentence with what to do.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// What migrations work with.
    fn admin(&self) -> &dyn Admin;

    /// Ends the store's threads after a last flush. Idempotent.
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Shapes the collection; only migrations call it.
pub trait Admin: Send + Sync {
    /// Creates the collection, `metadata` in it from the first moment on; an error where it exists.
    fn create_collection(
        &self,
        spec: CollectionSpec,
        metadata: BTreeMap<String, Value>,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Deletes the collection and all its points; nothing where it does not exist.
    fn drop_collection(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Indexes a payload key, waiting until it is built; nothing where it is indexed already.
    fn create_index(&self, key: String, kind: IndexKind) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Drops the index of a payload key; nothing where there is none.
    fn drop_index(&self, key: String) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Vector data in kilobytes from which a part of the collection gets a search graph, 0 for never.
    fn graph_threshold(&self) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// Sets what [`graph_threshold`](Self::graph_threshold) gives; what it allows is built at once
    /// (embedded) or soon (server).
    fn set_graph_threshold(&self, kilobytes: u64) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Merges `metadata` into what the collection keeps about itself.
    fn write_metadata(
        &self,
        metadata: BTreeMap<String, Value>,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The collection that `alias` stands for.
    fn alias(&self, alias: String) -> BoxFuture<'_, Result<Option<String>, StoreError>>;

    /// Lets `alias` stand for this collection, in one step if it stood for another;
    /// `None` for `collection` removes the alias.
    fn set_alias(
        &self,
        alias: String,
        collection: Option<String>,
    ) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Why a write or a question failed; the kind says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Away, busy, timed out, outcome unknown: try the whole batch again.
    #[error("the store did not answer as it should: {0}")]
    Transient(String),
    /// Full or read-only: wait, alert, try again; never dead-letter.
    #[error("the store takes no writes: {0}")]
    Full(String),
    /// The store rejects the batch: for a record in it, or for a limit or condition of its own, which only
    /// another write can tell.
    #[error("the store rejects the batch: {0}")]
    Rejected(String),
    /// The batch holds a document that this kind of store can never hold, as this program knows by itself:
    /// bisect to it.
    #[error("{0}")]
    Unstorable(String),
    /// Wrong address, credential, collection or vector size, or a failed flush: stop without committing.
    #[error("{0}")]
    Fatal(String),
}

impl StoreError {
    /// Of two errors of one batch, the one that must be heeded first: a batch that is retried shows
    /// its rejection again, a worker that goes on after a fatal error may not.
    pub(crate) fn graver(self, other: Self) -> Self {
        let rank = |error: &Self| match error {
            Self::Unstorable(_) => 0,
            Self::Rejected(_) => 1,
            Self::Transient(_) => 2,
            Self::Full(_) => 3,
            Self::Fatal(_) => 4,
        };
        if rank(&other) > rank(&self) {
            other
        } else {
            self
        }
    }
}
