//! The payload keys; readers of the collection rely on them.

/// Document id as the record gave it.
pub const ID: &str = "id";
/// The record's timestamp in milliseconds since the epoch.
pub const VERSION: &str = "version";
/// Best topic, or `other`.
pub const TOPIC: &str = "topic";
/// Probability of the best label, 0 to 1.
pub const PROBABILITY: &str = "probability";
/// The best labels: `[{label, probability}]`, best first.
pub const TOPICS: &str = "topics";
/// Headline.
pub const TITLE: &str = "title";
/// Body, only with `store.keep_text`.
pub const TEXT: &str = "text";
/// Who published it.
pub const SOURCE: &str = "source";
/// When it was published, RFC 3339.
pub const PUBLISHED_AT: &str = "published_at";
/// Language tag of the record.
pub const LANGUAGE: &str = "language";
/// Further fields of the record.
pub const ATTRIBUTES: &str = "attributes";
/// Whether the model saw only the beginning of the text.
pub const TRUNCATED: &str = "truncated";
/// Topic that the record came from; `file` for files.
pub const KAFKA_TOPIC: &str = "kafka_topic";
/// Its partition; -1 for files.
pub const KAFKA_PARTITION: &str = "kafka_partition";
/// Its offset.
pub const KAFKA_OFFSET: &str = "kafka_offset";
/// What decides between partitions at equal times: 0 to below 2^53; absent counts as 0.
pub const VERSION_ORDER: &str = "version_order";
/// Which space the vector lies in.
pub const EMBEDDING_FINGERPRINT: &str = "embedding_fingerprint";
/// Which labels and model tagged it.
pub const LABELLING_FINGERPRINT: &str = "labelling_fingerprint";
/// When it was tagged, RFC 3339.
pub const TAGGED_AT: &str = "tagged_at";
/// `true` on the marker of a deletion, absent elsewhere.
pub const DELETED: &str = "deleted";
/// When the marker was written, RFC 3339.
pub const DELETED_AT: &str = "deleted_at";
