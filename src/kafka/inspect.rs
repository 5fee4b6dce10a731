//! Questions to a broker outside of a run: is it there, does the topic exist, how far is the group?

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::document::TopicPartition;
use crate::kafka::client::{self, Reporting};
use crate::kafka::offsets;
use crate::kafka::settings::KafkaSettings;
use crate::source::SourceError;

/// Pause before a question is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How far a group is in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPosition {
    /// The partition.
    pub partition: TopicPartition,
    /// The offset that the group committed; `None` where it never did.
    pub committed: Option<i64>,
}

/// Asks about the configured topics without joining the group.
pub(super) struct Inspector {
    pub(super) consumer: BaseConsumer<Reporting>,
    reporting: Reporting,
    settings: KafkaSettings,
}

impl Inspector {
    pub(super) fn new(settings: &KafkaSettings) -> Result<Self, SourceError> {
        let reporting = Reporting::default();
        let consumer = settings
            .consumer_config()?
            .create_with_context(reporting.clone())
            .map_err(|error| client::source_error("the kafka client cannot be set up", &error))?;
        Ok(Self {
            consumer,
            reporting,
            settings: settings.clone(),
        })
    }

    /// Partitions of a topic; empty where the broker does not know it.
    pub(super) fn partitions(&self, topic: &str) -> Result<Vec<i32>, SourceError> {
        Ok(self.look_up(topic)?.unwrap_or_default())
    }

    /// Why no broker responds.
    pub(super) fn why(&self, error: &KafkaError) -> String {
        client::listen(&self.consumer);
        client::unreachable(error, &self.reporting.faults, &self.settings).to_string()
    }

    /// Partitions of a topic, or the error that the broker has for it.
    fn look_up(&self, topic: &str) -> Result<Result<Vec<i32>, RDKafkaErrorCode>, SourceError> {
        let (faults, settings) = (&self.reporting.faults, &self.settings);
        let metadata = client::metadata(&self.consumer, Some(topic), faults, settings)?;
        let known = metadata.topics().iter().find(|known| known.name() == topic);
        Ok(match known.map(|known| (known, known.error())) {
            None => Ok(Vec::new()),
            Some((_, Some(error))) => Err(error.into()),
            Some((known, None)) => {
                let partitions = known.partitions().iter();
                Ok(partitions.map(|partition| partition.id()).collect())
            }
        })
    }

    /// Partitions of a topic; empty only where the broker says that there is no such topic.
    pub(super) fn certain_partitions(&self, topic: &str) -> Result<Vec<i32>, SourceError> {
        match self.look_up(topic)? {
            Ok(partitions) => Ok(partitions),
            Err(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                Ok(Vec::new())
            }
            Err(error) => {
                let reason = format!("the partitions of {topic} are not known: {error}");
                Err(if client::is_permanent(error) {
                    SourceError::Fatal(reason)
                } else {
                    SourceError::Transient(reason)
                })
            }
        }
    }

    /// How far the configured group is in the configured topics.
    fn positions(&self) -> Result<Vec<GroupPosition>, SourceError> {
        let mut partitions = Vec::new();
        for topic in self.settings.topics() {
            let numbers = self.certain_partitions(topic)?.into_iter();
            partitions.extend(numbers.map(|number| TopicPartition::new(topic, number)));
        }
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let committed = offsets::committed(&self.consumer, &partitions).map_err(|error| {
            client::source_error("the committed offsets cannot be read", &error)
        })?;
        let position = |partition: TopicPartition| GroupPosition {
            committed: committed.get(&partition).copied(),
            partition,
        };
        Ok(partitions.into_iter().map(position).collect())
    }
}

/// Says which of the configured topics exist, for `doctor`.
///
/// # Errors
/// When no broker answers within `kafka.connect_timeout_ms`.
pub fn describe_broker(settings: &KafkaSettings) -> Result<String, SourceError> {
    let inspector = Inspector::new(settings)?;
    let mut findings = Vec::new();
    let topics = settings.topics();
    for topic in topics
        .iter()
        .copied()
        .chain([settings.dead_letter_topic.as_str()])
    {
        match inspector.partitions(topic)?.len() {
            0 => findings.push(format!("{topic} does not exist yet")),
            count => findings.push(format!("{topic} has {count} partitions")),
        }
    }
    Ok(format!(
        "{} answers; {}",
        settings.brokers,
        findings.join(", ")
    ))
}

/// How far the configured group is in the configured topics.
///
/// # Errors
/// When no broker answers within `kafka.connect_timeout_ms`.
pub fn group_positions(settings: &KafkaSettings) -> Result<Vec<GroupPosition>, SourceError> {
    Inspector::new(settings)?.positions()
}

/// The same, asked again for a while where the cluster does not know it yet: that a group has committed
/// nothing is said only where the brokers say so.
///
/// # Errors
/// When the brokers do not say it within `kafka.connect_timeout_ms`.
pub fn certain_group_positions(
    settings: &KafkaSettings,
) -> Result<Vec<GroupPosition>, SourceError> {
    let inspector = Inspector::new(settings)?;
    patiently(settings.connect_timeout(), || inspector.positions())
}

/// The oldest offset that each of `partitions` still has.
///
/// # Errors
/// When the brokers do not say it within `kafka.connect_timeout_ms`.
pub fn oldest_offsets(
    settings: &KafkaSettings,
    partitions: &[TopicPartition],
) -> Result<BTreeMap<TopicPartition, i64>, SourceError> {
    let inspector = Inspector::new(settings)?;
    let logs = patiently(settings.connect_timeout(), || {
        offsets::all_ranges(&inspector.consumer, partitions)
    })?;
    Ok(logs
        .into_iter()
        .map(|(partition, log)| (partition, log.low))
        .collect())
}

/// Asks again for a while: a group that is new to a cluster has no coordinator yet.
pub(super) fn patiently<T>(
    patience: Duration,
    ask: impl Fn() -> Result<T, SourceError>,
) -> Result<T, SourceError> {
    let deadline = Instant::now() + patience;
    loop {
        match ask() {
            Err(SourceError::Transient(reason)) if Instant::now() < deadline => {
                tracing::debug!(reason, "the brokers do not say it yet; asking again");
                thread::sleep(ASK_AGAIN_AFTER);
            }
            outcome => return outcome,
        }
    }
}
