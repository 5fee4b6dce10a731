//! Questions to a broker outside of a run: is it there, does the topic exist, how far is the group?

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::client::{self, Reporting};
use super::settings::KafkaSettings;
use super::start;
use crate::document::TopicPartition;
use crate::source::SourceError;

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
        let metadata = self
            .consumer
            .fetch_metadata(Some(topic), self.settings.connect_timeout())
            .map_err(|error| {
                client::listen(&self.consumer);
                client::unreachable(&error, &self.reporting.faults, &self.settings)
            })?;
        let known = metadata.topics().iter().find(|known| known.name() == topic);
        Ok(known
            .filter(|known| known.error().is_none())
            .map(|known| {
                known
                    .partitions()
                    .iter()
                    .map(|partition| partition.id())
                    .collect()
            })
            .unwrap_or_default())
    }

    /// How far the configured group is in the configured topics.
    fn positions(&self) -> Result<Vec<GroupPosition>, SourceError> {
        let mut partitions = Vec::new();
        for topic in self.settings.topics() {
            let numbers = self.partitions(topic)?.into_iter();
            partitions.extend(numbers.map(|number| TopicPartition::new(topic, number)));
        }
        let committed = start::committed(&self.consumer, &partitions).map_err(|error| {
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
