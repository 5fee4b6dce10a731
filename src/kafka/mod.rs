//! Everything that speaks Kafka: the source, the dead letters and the embedded broker.
//! The one place that names rdkafka; knows nothing of models, stores or the pipeline.

mod check;
mod client;
mod committer;
mod compare;
mod counters;
mod damage;
mod dead_letter;
mod delivered;
mod desk;
mod embedded;
mod held;
mod inspect;
mod log_identity;
mod offsets;
mod poll;
mod progress;
mod properties;
mod range;
mod rebalance;
mod settings;
mod source;
mod start;
mod text;

pub use check::CountStoredBeyond;
pub use counters::SourceCounters;
pub use dead_letter::{
    CutValue, DeadLetterFilter, DeadLetterFindings, DeadLetterProducer, DeadLetterSettings,
    ReplayOptions, ReplayReport, Rest, StoredDeadLetter, check_dead_letters, list_dead_letters,
    replay_dead_letters, visit_dead_letters,
};
pub use embedded::{
    EmbeddedBroker, EmbeddedError, FailingRequest, InjectedError, SampleProducer, SampleRecord,
};
pub use inspect::{
    GroupPosition, certain_group_positions, describe_broker, group_positions, oldest_offsets,
};
pub use progress::{PartitionStatus, SourceStatus};
pub use properties::Properties;
pub use range::{
    LagWatch, OffsetRange, RangeError, RangeJob, RangePosition, RangeProgress, RangeSpec, Span,
    parse_time,
};
pub use settings::{KafkaSettings, OnMissingOffset};
pub use source::{KafkaSource, RangeStart};
pub(crate) use start::shorten;
