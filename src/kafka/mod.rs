//! Everything that speaks Kafka: the source, the dead letters and the embedded broker.
//! The one place that names rdkafka; knows nothing of models, stores or the pipeline.

mod backfill;
mod client;
mod consumer;
mod dead_letter;
mod inspect;
mod log_identity;
mod mock_broker;
mod offsets;
mod producer;
mod properties;
mod settings;
mod text;

pub use backfill::{
    LagWatch, OffsetRange, RangeError, RangeJob, RangePosition, RangeProgress, RangeSpec, Span,
    parse_time,
};
pub use consumer::check::CountStoredBeyond;
pub(crate) use consumer::check::start_offsets::shorten;
pub use consumer::counters::SourceCounters;
pub use consumer::progress::{PartitionStatus, SourceStatus};
pub use consumer::source::{KafkaSource, RangeStart};
pub use dead_letter::{
    CutValue, DeadLetterFilter, DeadLetterFindings, DeadLetterProducer, DeadLetterSettings,
    ReplayOptions, ReplayReport, Rest, StoredDeadLetter, check_dead_letters, list_dead_letters,
    replay_dead_letters, visit_dead_letters,
};
pub use inspect::{
    GroupPosition, certain_group_positions, describe_broker, group_positions, oldest_offsets,
};
pub use mock_broker::{EmbeddedBroker, FailingRequest, InjectedError};
pub use producer::{EmbeddedError, SampleProducer, SampleRecord};
pub use properties::Properties;
pub use settings::{KafkaSettings, OnMissingOffset};
