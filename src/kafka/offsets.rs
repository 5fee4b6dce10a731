//! Questions to the brokers about offsets: what a group has committed, what the partitions have. Decides
//! nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::Offset;

use crate::document::TopicPartition;
use crate::kafka::log_identity::LogNote;
use crate::kafka::text;
use crate::source::SourceError;

/// How long one question to the brokers may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the question for one partition alone may take, where that for all was not answered.
const SINGLE_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for where partitions end, which is asked all the time.
const ENDS_TIMEOUT: Duration = Duration::from_secs(3);
const SINGLE_ENDS_WITHIN: Duration = Duration::from_secs(6);

/// The offsets that a partition has: `[low, high)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogRange {
    pub(super) low: i64,
    pub(super) high: i64,
}

/// What the group has committed, where it has.
pub(super) fn committed<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[TopicPartition],
) -> KafkaResult<HashMap<TopicPartition, i64>> {
    let commits = commits(consumer, partitions)?;
    let offset = |(partition, (offset, _))| (partition, offset);
    Ok(commits.into_iter().map(offset).collect())
}

/// What the group has committed, where it has, and what its commits say of the log.
pub(super) fn commits<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[TopicPartition],
) -> KafkaResult<HashMap<TopicPartition, (i64, LogNote)>> {
    let mut offsets = HashMap::new();
    if partitions.is_empty() {
        return Ok(offsets);
    }
    let answer = consumer.committed_offsets(list(partitions), QUESTION_TIMEOUT)?;
    for element in &answer.elements() {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            let partition = TopicPartition::new(element.topic(), element.partition());
            offsets.insert(partition, (offset, LogNote::parse(text::metadata(element))));
        }
    }
    Ok(offsets)
}

/// What the partitions have. Those whose leader does not answer are left out.
pub(super) fn ranges<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[TopicPartition],
) -> HashMap<TopicPartition, LogRange> {
    match ranges_within(consumer, partitions, QUESTION_TIMEOUT) {
        Ok(ranges) => ranges,
        // One partition without a leader must not hold up the others.
        Err(error) if partitions.len() > 1 => {
            tracing::debug!(%error, "the offsets of all partitions are not known; asking for each");
            let single = |partition| {
                ranges_within(consumer, std::slice::from_ref(partition), SINGLE_TIMEOUT)
            };
            partitions.iter().flat_map(single).flatten().collect()
        }
        Err(error) => {
            tracing::warn!(%error, "the offsets that the topic has cannot be asked for");
            HashMap::new()
        }
    }
}

/// Where each of the partitions ends: its last stable offset, unless the client is told to read what is not
/// committed. Those whose leader does not respond are left out.
///
/// # Errors
/// When none responds.
pub(super) fn ends<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[TopicPartition],
) -> KafkaResult<HashMap<TopicPartition, i64>> {
    let error = match ask_offsets(consumer, partitions, Offset::End, ENDS_TIMEOUT) {
        Ok(ends) => return Ok(ends),
        Err(error) => error,
    };
    let until = Instant::now() + SINGLE_ENDS_WITHIN;
    let single = |partition| {
        let one = std::slice::from_ref(partition);
        ask_offsets(consumer, one, Offset::End, SINGLE_TIMEOUT).ok()
    };
    let asked = partitions.iter().take_while(|_| Instant::now() < until);
    let found: HashMap<_, _> = asked.filter_map(single).flatten().collect();
    if found.is_empty() {
        Err(error)
    } else {
        Ok(found)
    }
}

fn ranges_within<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[TopicPartition],
    timeout: Duration,
) -> KafkaResult<HashMap<TopicPartition, LogRange>> {
    let lows = ask_offsets(consumer, partitions, Offset::Beginning, timeout)?;
    let highs = ask_offsets(consumer, partitions, Offset::End, timeout)?;
    let range = |(partition, low): (TopicPartition, i64)| {
        let high = *highs.get(&partition)?;
        Some((partition, LogRange { low, high }))
    };
    Ok(lows.into_iter().filter_map(range).collect())
}

/// What each of the partitions has.
///
/// # Errors
/// Transient where a leader does not answer.
pub(super) fn all_ranges<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[TopicPartition],
) -> Result<HashMap<TopicPartition, LogRange>, SourceError> {
    let ranges = ranges(consumer, partitions);
    let silent = partitions
        .iter()
        .find(|partition| !ranges.contains_key(partition));
    match silent {
        None => Ok(ranges),
        Some(silent) => Err(SourceError::Transient(format!(
            "the leader of {silent} does not say which offsets it has"
        ))),
    }
}

/// Asks for one offset of each partition, all at once: librdkafka hands `Beginning` and `End`
/// on as the timestamps that mean them.
fn ask_offsets<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[TopicPartition],
    which: Offset,
    timeout: Duration,
) -> Result<HashMap<TopicPartition, i64>, KafkaError> {
    if partitions.is_empty() {
        return Ok(HashMap::new());
    }
    let mut question = list(partitions);
    question.set_all_offsets(which)?;
    let answer = consumer.offsets_for_times(question, timeout)?;
    Ok(answer
        .elements()
        .iter()
        .filter(|element| element.error().is_ok())
        .filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some((
                TopicPartition::new(element.topic(), element.partition()),
                offset,
            )),
            _ => None,
        })
        .collect())
}

/// The partitions as librdkafka's list, without offsets.
pub(super) fn list(partitions: &[TopicPartition]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        list.add_partition(&partition.topic, partition.partition);
    }
    list
}

/// The partitions that begin somewhere.
pub(super) fn partitions_in(starts: &[(TopicPartition, i64)]) -> Vec<TopicPartition> {
    starts
        .iter()
        .map(|(partition, _)| partition.clone())
        .collect()
}

/// The partitions of librdkafka's list.
pub(super) fn partitions_of(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements()
        .iter()
        .map(|element| TopicPartition::new(element.topic(), element.partition()))
        .collect()
}
