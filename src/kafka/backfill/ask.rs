//! Questions about a job to the brokers, and the one thing that is written: spans.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::Offset;

use crate::document::TopicPartition;
use crate::kafka::backfill::agree::{Agreed, JobPlan, Note, State};
use crate::kafka::backfill::spec::clip;
use crate::kafka::backfill::{OffsetRange, RangeSpec, Span};
use crate::kafka::client::{self, Reporting};
use crate::kafka::settings::KafkaSettings;
use crate::kafka::{offsets, text};
use crate::source::SourceError;

/// How long one question may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a look for the next record may take.
const PROBE_WITHIN: Duration = Duration::from_secs(8);
const PROBE_POLL: Duration = Duration::from_millis(100);

/// What the consumer's group has committed, where a run of the job did it.
pub(super) fn states<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[TopicPartition],
) -> KafkaResult<HashMap<TopicPartition, State>> {
    let answer = consumer.committed_offsets(offsets::list(partitions), QUESTION_TIMEOUT)?;
    let mut states = HashMap::new();
    for element in &answer.elements() {
        element.error()?;
        if let Offset::Offset(next) = element.offset()
            && let Some(note) = Note::parse(text::metadata(element))
        {
            let partition = TopicPartition::new(element.topic(), element.partition());
            states.insert(partition, State { note, next });
        }
    }
    Ok(states)
}

/// Decides where a member goes on in partitions that it has just got. Whoever asks writes down the
/// spans that nobody has written yet.
///
/// # Errors
/// When the group's commits cannot be read.
pub(crate) fn agree<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    plan: &JobPlan,
    partitions: &[TopicPartition],
) -> Result<Vec<Agreed>, SourceError> {
    let states = states(consumer, partitions).map_err(|error| {
        client::source_error(
            "the committed offsets of the backfill cannot be read",
            &error,
        )
    })?;
    Ok(plan.agree(partitions, &states))
}

/// Up to where the live group has read `partitions`, within what the topics have; those of which it has
/// committed nothing are left out.
///
/// # Errors
/// When the brokers do not say it.
pub(super) fn live_positions<C: ConsumerContext>(
    live: &BaseConsumer<C>,
    partitions: &[TopicPartition],
) -> Result<HashMap<TopicPartition, i64>, SourceError> {
    if partitions.is_empty() {
        return Ok(HashMap::new());
    }
    let mut committed = offsets::committed(live, partitions).map_err(|error| {
        client::source_error("the live group's committed offsets cannot be read", &error)
    })?;
    let read: Vec<TopicPartition> = committed.keys().cloned().collect();
    let logs = offsets::all_ranges(live, &read)?;
    for (partition, log) in logs {
        if let Some(position) = committed.get_mut(&partition) {
            *position = log.high.min(*position);
        }
    }
    Ok(committed)
}

/// What `range` means for the topics as they are now.
///
/// # Errors
/// Fatal where it names what does not exist, transient where a leader does not answer.
pub(super) fn spans<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    range: &RangeSpec,
    partitions: &[TopicPartition],
) -> Result<HashMap<TopicPartition, Span>, SourceError> {
    let logs = offsets::all_ranges(consumer, partitions)?;
    let logs = logs.into_iter().map(|(partition, log)| {
        let log = Span {
            begin: log.low,
            end: log.high,
        };
        (partition, log)
    });
    match range {
        RangeSpec::Times { from_ms, to_ms } => {
            // No record is older than 1970: the oldest one is meant, also where compaction took the first.
            let from_ms = from_ms.filter(|time| *time > 0);
            let begins = at_time(consumer, partitions, from_ms)?;
            let ends = at_time(consumer, partitions, *to_ms)?;
            let span = |(partition, log): (TopicPartition, Span)| {
                // A time after the last record is the end of the log.
                let begin = from_ms.map(|_| begins.get(&partition).copied().unwrap_or(log.end));
                let end = ends.get(&partition).copied();
                (partition, clip(log, begin, end))
            };
            Ok(logs.map(span).collect())
        }
        RangeSpec::Offsets(wanted) => {
            check_named(wanted, partitions)?;
            let span = |(partition, log): (TopicPartition, Span)| {
                let none = Span {
                    begin: log.begin,
                    end: log.begin,
                };
                let named = wanted.iter().find(|wanted| names(wanted, &partition));
                let span = named.map_or(none, |named| {
                    let span = clip(log, named.begin, named.end);
                    say_what_is_missing(named, log, &partition);
                    span
                });
                (partition, span)
            };
            Ok(logs.map(span).collect())
        }
    }
}

fn names(wanted: &OffsetRange, partition: &TopicPartition) -> bool {
    wanted.partition == partition.partition
        && wanted
            .topic
            .as_deref()
            .is_none_or(|topic| topic == &*partition.topic)
}

/// Every range is to name exactly one partition that exists.
fn check_named(wanted: &[OffsetRange], partitions: &[TopicPartition]) -> Result<(), SourceError> {
    for range in wanted {
        let count = partitions
            .iter()
            .filter(|partition| names(range, partition))
            .count();
        let topic = range.topic.as_deref().unwrap_or("the configured topic");
        match count {
            1 => {}
            0 => {
                return Err(SourceError::Fatal(format!(
                    "{topic} has no partition {}; kafka.topic says which topics are read",
                    range.partition
                )));
            }
            _ => {
                return Err(SourceError::Fatal(format!(
                    "several topics are configured: say which one is meant, as in TOPIC:{}:FROM..TO",
                    range.partition
                )));
            }
        }
    }
    Ok(())
}

fn say_what_is_missing(wanted: &OffsetRange, log: Span, partition: &TopicPartition) {
    if let Some(begin) = wanted.begin.filter(|begin| *begin < log.begin) {
        tracing::warn!(%partition, wanted = begin, begins = log.begin, "records of the range have expired");
    }
    if let Some(end) = wanted.end.filter(|end| *end > log.end) {
        tracing::warn!(%partition, wanted = end, ends = log.end, "the range goes beyond the end of the topic; it ends there");
    }
}

/// The first offset of each partition that is not older than a time; partitions that have none are
/// left out, and all where no time is given.
fn at_time<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[TopicPartition],
    time_ms: Option<i64>,
) -> Result<HashMap<TopicPartition, i64>, SourceError> {
    let Some(time_ms) = time_ms.filter(|_| !partitions.is_empty()) else {
        return Ok(HashMap::new());
    };
    let failed = |error| client::source_error("the offsets of a time cannot be asked for", &error);
    let mut question = offsets::list(partitions);
    question
        .set_all_offsets(Offset::Offset(time_ms.max(0)))
        .map_err(failed)?;
    let answer = consumer
        .offsets_for_times(question, QUESTION_TIMEOUT)
        .map_err(failed)?;
    let mut offsets = HashMap::new();
    for element in answer.elements() {
        element.error().map_err(failed)?;
        if let Offset::Offset(offset) = element.offset() {
            let partition = TopicPartition::new(element.topic(), element.partition());
            offsets.insert(partition, offset);
        }
    }
    Ok(offsets)
}

/// Whether nothing will ever be delivered of the offsets from `next` up to `end`: compaction took
/// it, or transaction markers stand there. A consumer of its own looks for the next record, between
/// two looks at the end of the log, so that a new leader that is still catching up is not believed.
///
/// # Errors
/// When the brokers do not answer; then nothing is known.
pub(in crate::kafka) fn is_gap(
    settings: &KafkaSettings,
    partition: &TopicPartition,
    next: i64,
    end: i64,
    accept_expired: bool,
) -> Result<bool, SourceError> {
    let failed =
        |error: KafkaError| client::source_error("the end of a range is not known", &error);
    let mut config = settings.consumer_config()?;
    config.set("auto.offset.reset", "earliest");
    config.set("enable.partition.eof", "true");
    config.set("statistics.interval.ms", "0");
    let consumer: BaseConsumer<Reporting> = config
        .create_with_context(Reporting::default())
        .map_err(failed)?;
    // What has expired is not a gap, unless it was said that it may be missing.
    let log = offsets::ranges(&consumer, std::slice::from_ref(partition)).remove(partition);
    if log.is_none_or(|log| log.high < end || (log.low > next && !accept_expired)) {
        return Ok(false);
    }
    let mut list = TopicPartitionList::new();
    let TopicPartition {
        topic,
        partition: number,
    } = partition;
    list.add_partition_offset(topic, *number, Offset::Offset(next))
        .map_err(failed)?;
    consumer.assign(&list).map_err(failed)?;
    let deadline = Instant::now() + PROBE_WITHIN;
    while Instant::now() < deadline {
        match consumer.poll(PROBE_POLL) {
            Some(Ok(message)) => return Ok(message.offset() >= end),
            Some(Err(KafkaError::PartitionEOF(_))) => {
                return Ok(reaches(&consumer, partition, end));
            }
            // A damaged batch, which the client passes over, is no gap.
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::BadMessage))) => {
                return Ok(false);
            }
            Some(Err(error)) => tracing::debug!(%error, "looking for the end of a range"),
            None => {}
        }
    }
    Ok(false)
}

fn reaches(consumer: &BaseConsumer<Reporting>, partition: &TopicPartition, end: i64) -> bool {
    offsets::ranges(consumer, std::slice::from_ref(partition))
        .get(partition)
        .is_some_and(|log| log.high >= end)
}
