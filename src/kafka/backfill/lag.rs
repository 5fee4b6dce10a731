//! How far the live group is behind, asked from outside.

use crate::document::TopicPartition;
use crate::kafka::inspect::Inspector;
use crate::kafka::settings::KafkaSettings;
use crate::kafka::{client, offsets};
use crate::source::SourceError;

/// Asks for the lag of the configured group without joining it.
pub struct LagWatch {
    inspector: Inspector,
    topics: Vec<String>,
}

impl LagWatch {
    /// Watches the group `kafka.group_id`.
    ///
    /// # Errors
    /// When the client cannot be set up.
    pub fn open(settings: &KafkaSettings) -> Result<Self, SourceError> {
        Ok(Self {
            inspector: Inspector::new(settings)?,
            topics: settings.topics().into_iter().map(str::to_owned).collect(),
        })
    }

    /// Records that the group has not committed, over all its partitions; those that it has never
    /// committed anything of do not count, since nobody works on them.
    ///
    /// # Errors
    /// When the brokers do not answer.
    pub fn lag(&self) -> Result<u64, SourceError> {
        let mut partitions = Vec::new();
        for topic in &self.topics {
            let numbers = self.inspector.partitions(topic)?;
            partitions.extend(
                numbers
                    .into_iter()
                    .map(|number| TopicPartition::new(topic.as_str(), number)),
            );
        }
        let consumer = &self.inspector.consumer;
        let committed = offsets::committed(consumer, &partitions)
            .map_err(|error| client::source_error("the live group cannot be asked", &error))?;
        let logs = offsets::all_ranges(consumer, &partitions)?;
        Ok(logs
            .iter()
            .filter_map(|(partition, log)| {
                let next = committed.get(partition)?;
                u64::try_from(log.high - next.max(&log.low)).ok()
            })
            .sum())
    }
}
