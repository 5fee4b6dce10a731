//! Reads single records again, with a consumer of its own that joins no group, to tell whether the
//! log is still the one that was read.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::Offset;

use crate::document::TopicPartition;
use crate::kafka::client::{self, Reporting};
use crate::kafka::consumer::check::start_offsets::Compared;
use crate::kafka::log_identity::{LogNote, RecordIdentity};
use crate::kafka::settings::KafkaSettings;
use crate::source::SourceError;

/// How long the records of one topic may take.
const READ_WITHIN: Duration = Duration::from_secs(8);
const POLL: Duration = Duration::from_millis(50);

/// What stands at an offset now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Record(RecordIdentity),
    Gone,
}

/// What was found, by partition and offset; left out where the brokers did not answer in time.
#[derive(Debug, Default)]
pub(in crate::kafka) struct Log(HashMap<(TopicPartition, i64), Found>);

/// A consumer that reads and asks beside the group's member.
pub(in crate::kafka) fn consumer(
    settings: &KafkaSettings,
) -> Result<BaseConsumer<Reporting>, SourceError> {
    let mut config = settings.consumer_config()?;
    // An offset that has just expired is answered with a later record.
    config.set("auto.offset.reset", "earliest");
    config.set("enable.partition.eof", "true");
    config.set("statistics.interval.ms", "0");
    config.set("queued.min.messages", "1");
    config
        .create_with_context(Reporting::default())
        .map_err(|error| client::source_error("the kafka consumer cannot be set up", &error))
}

/// The identity of a record as the client delivers it.
pub(in crate::kafka) fn identity(message: &BorrowedMessage<'_>) -> RecordIdentity {
    RecordIdentity::of(
        message.offset(),
        message.timestamp().to_millis(),
        message.key(),
        message.payload(),
    )
}

/// Reads the records at these offsets, all of which lie within their logs.
///
/// # Errors
/// Fatal where the brokers do not let the worker read.
pub(in crate::kafka) fn read(
    settings: &KafkaSettings,
    mut wanted: Vec<(TopicPartition, i64)>,
) -> Result<Log, SourceError> {
    let mut log = Log::default();
    if wanted.is_empty() {
        return Ok(log);
    }
    let consumer = consumer(settings)?;
    while let Some(topic) = wanted.first().map(|(partition, _)| partition.topic.clone()) {
        // One offset of each partition at a time, and one topic: the end of a partition is told
        // by its number alone.
        let mut round: HashMap<i32, (TopicPartition, i64)> = HashMap::new();
        wanted.retain(|(partition, offset)| {
            let taken = partition.topic == topic && !round.contains_key(&partition.partition);
            if taken {
                round.insert(partition.partition, (partition.clone(), *offset));
            }
            !taken
        });
        read_round(&consumer, &topic, round, &mut log)?;
    }
    Ok(log)
}

fn read_round(
    consumer: &BaseConsumer<Reporting>,
    topic: &str,
    mut round: HashMap<i32, (TopicPartition, i64)>,
    log: &mut Log,
) -> Result<(), SourceError> {
    let failed = |error: KafkaError| client::source_error("records cannot be read again", &error);
    let mut list = TopicPartitionList::with_capacity(round.len());
    for (partition, offset) in round.values() {
        list.add_partition_offset(topic, partition.partition, Offset::Offset(*offset))
            .map_err(failed)?;
    }
    consumer.assign(&list).map_err(failed)?;
    let deadline = Instant::now() + READ_WITHIN;
    while !round.is_empty() && Instant::now() < deadline {
        let (number, found) = match consumer.poll(POLL) {
            Some(Ok(message)) if message.topic() == topic => {
                let number = message.partition();
                let Some((_, offset)) = round.get(&number) else {
                    continue;
                };
                // A record before the offset: the log ends before it, which is no answer.
                let found = match message.offset().cmp(offset) {
                    std::cmp::Ordering::Equal => Some(Found::Record(identity(&message))),
                    std::cmp::Ordering::Greater => Some(Found::Gone),
                    std::cmp::Ordering::Less => None,
                };
                (number, found)
            }
            Some(Err(KafkaError::PartitionEOF(number))) => (number, Some(Found::Gone)),
            Some(Err(error)) => {
                if error.rdkafka_error_code().is_some_and(client::is_permanent) {
                    return Err(failed(error));
                }
                tracing::debug!(%error, "reading records again");
                continue;
            }
            Some(Ok(_)) | None => continue,
        };
        if let (Some(place), Some(found)) = (round.remove(&number), found) {
            log.0.insert(place, found);
        }
    }
    consumer.unassign().map_err(failed)
}

impl Log {
    /// Compares what is known of a partition with what was found; `None` where an answer is missing.
    pub(in crate::kafka) fn compare(
        &self,
        partition: &TopicPartition,
        known: impl IntoIterator<Item = RecordIdentity>,
    ) -> Option<Compared> {
        let mut compared = Compared::Unknown;
        for known in known {
            match self.0.get(&(partition.clone(), known.offset))? {
                Found::Record(found) if *found == known => compared = Compared::Same,
                Found::Record(_) => return Some(Compared::Another(known.offset)),
                Found::Gone => {}
            }
        }
        Some(compared)
    }
}

/// The places to read for `note`, as far as they lie within `[low, high)`.
pub(in crate::kafka) fn within(
    note: LogNote,
    low: i64,
    high: i64,
) -> impl Iterator<Item = RecordIdentity> {
    note.records()
        .filter(move |record| (low..high).contains(&record.offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_record_that_differs_outweighs_all_that_are_the_same_or_gone() {
        let partition = TopicPartition::new("news", 0);
        let record = |offset, value: &[u8]| RecordIdentity::of(offset, None, None, Some(value));
        let found = [
            (3, Found::Record(record(3, b"a"))),
            (4, Found::Gone),
            (5, Found::Record(record(5, b"b"))),
        ];
        let place = |(offset, found)| ((partition.clone(), offset), found);
        let log = Log(found.into_iter().map(place).collect());
        let compare = |known: &[RecordIdentity]| log.compare(&partition, known.iter().copied());
        assert_eq!(compare(&[]), Some(Compared::Unknown));
        assert_eq!(compare(&[record(4, b"x")]), Some(Compared::Unknown));
        assert_eq!(
            compare(&[record(4, b"x"), record(3, b"a")]),
            Some(Compared::Same)
        );
        assert_eq!(
            compare(&[record(3, b"a"), record(5, b"x")]),
            Some(Compared::Another(5))
        );
        assert_eq!(compare(&[record(3, b"a"), record(9, b"x")]), None);
    }
}
