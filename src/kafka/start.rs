//! Where to begin in a partition: the committed offset against what the topic still has.
//! The decision is pure; asking the brokers for the facts is in one function below it.

use std::collections::HashMap;
use std::thread;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::Offset;

use super::settings::OnMissingOffset;
use crate::document::TopicPartition;
use crate::source::SourceError;

/// How long one question to the brokers may take while partitions are being assigned.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a committed offset beyond the end is looked at again: a new leader may still be
/// catching up.
const END_RECHECKS: u32 = 5;
const END_RECHECK_PAUSE: Duration = Duration::from_secs(1);
/// Partitions that a message names before it says how many more there are.
const NAMED_PARTITIONS: usize = 8;

/// What the user wants done where the committed offset does not settle it.
#[derive(Debug, Clone, Copy)]
pub(super) struct StartPolicy {
    pub(super) on_missing: OnMissingOffset,
    pub(super) accept_gap: bool,
    /// Whether a bounded job asks, so that messages name its command.
    pub(super) bounded: bool,
}

/// The offsets that a partition has: `[low, high)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogRange {
    pub(super) low: i64,
    pub(super) high: i64,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// At this offset.
    At(i64),
    /// At the oldest record, wherever that is.
    Beginning,
}

/// Records that are gone before they could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) partition: TopicPartition,
    /// Where the group wanted to go on.
    pub(super) wanted: i64,
    /// What the topic has.
    pub(super) log: LogRange,
}

impl Gap {
    /// Whether offsets began anew since: what comes may count as older than what is stored.
    fn is_reset(&self) -> bool {
        self.wanted > self.log.high
    }

    fn describe(&self) -> String {
        let Self {
            partition,
            wanted,
            log,
        } = self;
        if !self.is_reset() {
            let gone = log.low - wanted;
            format!(
                "the next record of {partition} to read was {wanted}, but the topic now begins \
                 at {}: {gone} records are gone",
                log.low
            )
        } else {
            format!(
                "the next record of {partition} to read was {wanted}, but the topic now ends at \
                 {}: it was recreated or truncated, and what it held before is gone",
                log.high
            )
        }
    }
}

/// Why a partition has no place to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    Missing(TopicPartition),
    Gap(Gap),
}

/// Decides where to begin. `log` is `None` where the brokers could not say: then the committed
/// offset is taken as it is, and the fetch will tell.
pub(super) fn decide(
    partition: &TopicPartition,
    committed: Option<i64>,
    log: Option<LogRange>,
    policy: StartPolicy,
) -> Result<(Start, Option<Gap>), Refusal> {
    let Some(wanted) = committed else {
        return match policy.on_missing {
            OnMissingOffset::Earliest => Ok((Start::Beginning, None)),
            OnMissingOffset::Error => Err(Refusal::Missing(partition.clone())),
        };
    };
    let Some(log) = log else {
        return Ok((Start::At(wanted), None));
    };
    if (log.low..=log.high).contains(&wanted) {
        return Ok((Start::At(wanted), None));
    }
    let gap = Gap {
        partition: partition.clone(),
        wanted,
        log,
    };
    // Within a partition the offset says what is newer. Offsets that begin anew would let what is stored
    // win over what comes, in silence: nobody can accept that.
    if policy.accept_gap && !gap.is_reset() {
        Ok((Start::Beginning, Some(gap)))
    } else {
        Err(Refusal::Gap(gap))
    }
}

/// All refusals as one message that says what to do.
pub(super) fn refuse(refusals: &[Refusal], policy: StartPolicy) -> SourceError {
    let gaps = |reset: bool| -> Vec<String> {
        refusals
            .iter()
            .filter_map(|refusal| match refusal {
                Refusal::Gap(gap) if gap.is_reset() == reset => Some(gap.describe()),
                Refusal::Gap(_) | Refusal::Missing(_) => None,
            })
            .collect()
    };
    let (expired, reset) = (gaps(false), gaps(true));
    let missing: Vec<String> = refusals
        .iter()
        .filter_map(|refusal| match refusal {
            Refusal::Missing(partition) => Some(partition.to_string()),
            Refusal::Gap(_) => None,
        })
        .collect();
    let mut sentences = Vec::new();
    if !expired.is_empty() {
        let command = if policy.bounded {
            "the same `tcbert-worker backfill` with --accept-gap"
        } else {
            "`tcbert-worker run --accept-gap` once"
        };
        sentences.push(format!(
            "{}; to go on at the oldest record run {command} (or set kafka.accept_gap = true)",
            shorten(&expired, "; ")
        ));
    }
    if !reset.is_empty() {
        sentences.push(format!(
            "{}; its offsets begin anew, so that documents stored from its earlier life would count as newer than \
             what comes now, which --accept-gap does not change: name a new store.collection (or delete the old \
             one) and a new kafka.group_id, and the whole topic is read",
            shorten(&reset, "; ")
        ));
    }
    if !missing.is_empty() {
        sentences.push(format!(
            "the group has no committed offset for {} and kafka.on_missing_offset is \"error\"; \
             set it to \"earliest\" to begin at the oldest record",
            shorten(&missing, ", ")
        ));
    }
    SourceError::Fatal(sentences.join(". "))
}

fn shorten(items: &[String], separator: &str) -> String {
    let named = items
        .iter()
        .take(NAMED_PARTITIONS)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(separator);
    match items.len().checked_sub(NAMED_PARTITIONS) {
        Some(more) if more > 0 => format!("{named}{separator}and {more} more partitions"),
        _ => named,
    }
}

/// Decides where to begin in each of `partitions`. `wanted` holds what is known better than by
/// asking for committed offsets: how far this very assignment has come.
///
/// # Errors
/// Fatal with every refusal in one message; transient where the brokers do not answer.
pub(super) fn plan<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[TopicPartition],
    wanted: &HashMap<TopicPartition, i64>,
    policy: StartPolicy,
) -> Result<Vec<(TopicPartition, Start)>, SourceError> {
    let mut next = committed(consumer, partitions).map_err(|error| {
        super::client::source_error("the group's committed offsets cannot be read", &error)
    })?;
    next.extend(
        wanted
            .iter()
            .map(|(partition, at)| (partition.clone(), *at)),
    );
    let logs = settled_ranges(consumer, partitions, &next);

    let mut starts = Vec::with_capacity(partitions.len());
    let mut refusals = Vec::new();
    for partition in partitions {
        let wanted = next.get(partition).copied();
        match decide(partition, wanted, logs.get(partition).copied(), policy) {
            Ok((start, gap)) => {
                if let Some(gap) = gap {
                    tracing::warn!(
                        partition = %gap.partition,
                        wanted = gap.wanted,
                        begins = gap.log.low,
                        ends = gap.log.high,
                        "records are gone and the gap is accepted; going on at the oldest record"
                    );
                }
                starts.push((partition.clone(), start));
            }
            Err(refusal) => refusals.push(refusal),
        }
    }
    if refusals.is_empty() {
        Ok(starts)
    } else {
        Err(refuse(&refusals, policy))
    }
}

/// What the group has committed, where it has.
pub(super) fn committed<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[TopicPartition],
) -> KafkaResult<HashMap<TopicPartition, i64>> {
    let answer = consumer.committed_offsets(list(partitions), QUESTION_TIMEOUT)?;
    let mut offsets = HashMap::new();
    for element in answer.elements() {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            let partition = TopicPartition::new(element.topic(), element.partition());
            offsets.insert(partition, offset);
        }
    }
    Ok(offsets)
}

/// The ranges, asked again for a while where a committed offset lies beyond an end.
fn settled_ranges<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[TopicPartition],
    next: &HashMap<TopicPartition, i64>,
) -> HashMap<TopicPartition, LogRange> {
    let mut ranges = ranges(consumer, partitions);
    for _ in 0..END_RECHECKS {
        let beyond = |(partition, log): (&TopicPartition, &LogRange)| {
            next.get(partition).is_some_and(|next| *next > log.high)
        };
        if !ranges.iter().any(beyond) {
            break;
        }
        thread::sleep(END_RECHECK_PAUSE);
        ranges = self::ranges(consumer, partitions);
    }
    ranges
}

/// What the partitions have. Those whose leader does not answer are left out.
pub(super) fn ranges<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[TopicPartition],
) -> HashMap<TopicPartition, LogRange> {
    let ask = |offset: Offset| -> HashMap<TopicPartition, i64> {
        ask_offsets(consumer, partitions, offset).unwrap_or_else(|error| {
            tracing::warn!(%error, "the offsets that the topic has cannot be asked for");
            HashMap::new()
        })
    };
    let (lows, highs) = (ask(Offset::Beginning), ask(Offset::End));
    lows.into_iter()
        .filter_map(|(partition, low)| {
            let high = *highs.get(&partition)?;
            Some((partition, LogRange { low, high }))
        })
        .collect()
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
) -> Result<HashMap<TopicPartition, i64>, KafkaError> {
    if partitions.is_empty() {
        return Ok(HashMap::new());
    }
    let mut question = list(partitions);
    question.set_all_offsets(which)?;
    let answer = consumer.offsets_for_times(question, QUESTION_TIMEOUT)?;
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

/// The partitions of librdkafka's list.
pub(super) fn partitions_of(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements()
        .iter()
        .map(|element| TopicPartition::new(element.topic(), element.partition()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLIEST: StartPolicy = StartPolicy {
        on_missing: OnMissingOffset::Earliest,
        accept_gap: false,
        bounded: false,
    };
    const LOG: Option<LogRange> = Some(LogRange {
        low: 100,
        high: 200,
    });

    fn partition() -> TopicPartition {
        TopicPartition::new("news", 3)
    }

    fn decided(committed: Option<i64>, policy: StartPolicy) -> Result<Start, Refusal> {
        decide(&partition(), committed, LOG, policy).map(|(start, _)| start)
    }

    #[test]
    fn goes_on_where_the_group_stopped() {
        for offset in [100, 150, 200] {
            assert_eq!(decided(Some(offset), EARLIEST), Ok(Start::At(offset)));
        }
        let unknown = decide(&partition(), Some(5), None, EARLIEST);
        assert_eq!(unknown, Ok((Start::At(5), None)));
    }

    #[test]
    fn a_group_that_never_committed_begins_at_the_oldest_or_not_at_all() {
        assert_eq!(decided(None, EARLIEST), Ok(Start::Beginning));
        let strict = StartPolicy {
            on_missing: OnMissingOffset::Error,
            ..EARLIEST
        };
        assert_eq!(decided(None, strict), Err(Refusal::Missing(partition())));
        assert!(
            refuse(&[Refusal::Missing(partition())], EARLIEST)
                .to_string()
                .contains("news[3]")
        );
    }

    #[test]
    fn an_expired_offset_is_refused_with_what_is_gone_and_what_accepts_it() {
        let refusal = decided(Some(40), EARLIEST).unwrap_err();
        let message = refuse(std::slice::from_ref(&refusal), EARLIEST).to_string();
        for part in ["news[3]", "60 records are gone", "run --accept-gap"] {
            assert!(message.contains(part), "{message}");
        }
        let bounded = StartPolicy {
            bounded: true,
            ..EARLIEST
        };
        let message = refuse(&[refusal], bounded).to_string();
        assert!(
            message.contains("`tcbert-worker backfill` with --accept-gap"),
            "{message}"
        );
        assert!(!message.contains("run --accept-gap"), "{message}");
    }

    #[test]
    fn an_accepted_gap_goes_on_at_the_oldest_record() {
        let accepting = StartPolicy {
            accept_gap: true,
            ..EARLIEST
        };
        let (start, gap) = decide(&partition(), Some(40), LOG, accepting).unwrap();
        assert_eq!(start, Start::Beginning);
        assert_eq!(gap.unwrap().wanted, 40);
    }

    #[test]
    fn offsets_that_begin_anew_are_refused_whatever_is_accepted() {
        let accepting = StartPolicy {
            accept_gap: true,
            ..EARLIEST
        };
        for policy in [EARLIEST, accepting] {
            let beyond = decided(Some(201), policy).unwrap_err();
            let message = refuse(&[beyond], policy).to_string();
            for part in ["news[3]", "recreated", "store.collection", "kafka.group_id"] {
                assert!(message.contains(part), "{message}");
            }
        }
    }

    #[test]
    fn a_long_list_is_cut() {
        let many: Vec<Refusal> = (0..20)
            .map(|n| Refusal::Missing(TopicPartition::new("news", n)))
            .collect();
        assert!(refuse(&many, EARLIEST).to_string().contains("and 12 more"));
    }
}
