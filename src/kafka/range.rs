//! Bounded reading for backfills: where each partition begins and ends is settled once, kept in the
//! job's consumer group beside the committed offsets, and so shared by all of its workers and found
//! again after any crash.
//!
//! The mark travels as the metadata of every commit. A partition is done when the group has
//! committed its end, the job when all partitions are.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode as ClientCommit, Consumer, ConsumerContext};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::Offset;

use super::client::{self, Reporting};
use super::settings::KafkaSettings;
use super::start::{self, LogRange};
use crate::document::TopicPartition;
use crate::source::SourceError;

/// How long one question to the brokers may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the job is agreed on anew when another worker was faster.
const AGREE_ATTEMPTS: u32 = 5;
const AGREE_PAUSE: Duration = Duration::from_millis(500);

/// Where a bounded job begins, in every partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeFrom {
    /// At the oldest record.
    Beginning,
    /// At the first record whose timestamp (milliseconds since the epoch) is this or later.
    Time(i64),
    /// At these offsets; partitions not named are left out.
    Offsets(BTreeMap<i32, i64>),
}

/// Where a bounded job ends, in every partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeTo {
    /// After the newest record there is when the job begins.
    Now,
    /// Before the first record whose timestamp (milliseconds since the epoch) is this or later.
    Time(i64),
    /// Before these offsets; partitions not named end where they end now.
    Offsets(BTreeMap<i32, i64>),
}

/// A bounded job. Workers that give the same `id` share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeJob {
    /// Distinguishes jobs: name, range and fingerprint in a form that a group id may hold.
    pub id: String,
    /// Where it begins.
    pub from: RangeFrom,
    /// Where it ends.
    pub to: RangeTo,
}

/// One partition's part of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeMark {
    /// First offset wanted.
    pub begin: i64,
    /// Offset after the last one wanted.
    pub end: i64,
}

/// How far a job has come, by offsets; offsets without a record (compaction, transactions) count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RangeProgress {
    /// Offsets done by all workers of the job.
    pub done: u64,
    /// Offsets of the whole job.
    pub total: u64,
}

impl RangeMark {
    fn to_metadata(self) -> String {
        format!("tcbert-range {} {}", self.begin, self.end)
    }

    fn parse(metadata: &str) -> Option<Self> {
        let mut words = metadata.strip_prefix("tcbert-range ")?.split(' ');
        let (begin, end) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let whole = words.next().is_none() && 0 <= begin && begin <= end;
        whole.then_some(Self { begin, end })
    }
}

/// What the group says of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) mark: RangeMark,
    pub(super) committed: i64,
}

impl Standing {
    fn is_done(&self) -> bool {
        self.committed >= self.mark.end
    }
}

/// The job as one worker knows it.
#[derive(Debug)]
pub(super) struct Range {
    standings: Mutex<HashMap<TopicPartition, Standing>>,
}

impl Range {
    /// The part of a partition; none where it is not part of the job.
    pub(super) fn mark(&self, partition: &TopicPartition) -> Option<RangeMark> {
        self.standings.lock().get(partition).map(|s| s.mark)
    }

    /// What a commit of a partition carries.
    pub(super) fn metadata(&self, partition: &TopicPartition) -> String {
        self.mark(partition)
            .map_or_else(String::new, RangeMark::to_metadata)
    }

    /// Takes over what the group says, which is what all workers go by.
    pub(super) fn learn(&self, standings: HashMap<TopicPartition, Standing>) {
        self.standings.lock().extend(standings);
    }

    pub(super) fn partitions(&self) -> Vec<TopicPartition> {
        self.standings.lock().keys().cloned().collect()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.standings.lock().values().all(Standing::is_done)
    }

    /// Progress, with what this worker has committed since it last asked the group.
    pub(super) fn progress(&self) -> RangeProgress {
        let mut progress = RangeProgress::default();
        for standing in self.standings.lock().values() {
            let RangeMark { begin, end } = standing.mark;
            progress.total += end.abs_diff(begin);
            progress.done += standing.committed.clamp(begin, end).abs_diff(begin);
        }
        progress
    }

    /// Notes a commit of this worker's own.
    pub(super) fn committed(&self, partition: &TopicPartition, next_offset: i64) {
        if let Some(standing) = self.standings.lock().get_mut(partition) {
            standing.committed = standing.committed.max(next_offset);
        }
    }
}

/// What the group of a job has committed, with the marks. Partitions without one are left out.
pub(super) fn standings<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &[TopicPartition],
) -> KafkaResult<HashMap<TopicPartition, Standing>> {
    let answer = consumer.committed_offsets(start::list(partitions), QUESTION_TIMEOUT)?;
    let mut standings = HashMap::new();
    for element in answer.elements() {
        element.error()?;
        let mark = RangeMark::parse(element.metadata());
        if let (Offset::Offset(committed), Some(mark)) = (element.offset(), mark) {
            let partition = TopicPartition::new(element.topic(), element.partition());
            standings.insert(partition, Standing { mark, committed });
        }
    }
    Ok(standings)
}

/// The settings of the job's own group: it never touches the live group's offsets.
pub(super) fn settings_of(settings: &KafkaSettings, job: &RangeJob) -> KafkaSettings {
    KafkaSettings {
        group_id: format!("{}-backfill-{}", settings.group_id, job.id),
        // A member that stays away must not hold a job's partitions.
        group_instance_id: None,
        ..settings.clone()
    }
}

/// Agrees on the job with whoever works on it: an unfinished one goes on where it is, anything
/// else begins anew, with its ends settled now.
pub(super) fn agree(settings: &KafkaSettings, job: &RangeJob) -> Result<Range, SourceError> {
    let topics = settings.topics();
    let [topic] = topics.as_slice() else {
        return Err(SourceError::Fatal(format!(
            "a backfill reads one topic at a time, kafka.topic = {} names {}",
            settings.topic,
            topics.len()
        )));
    };
    let reporting = Reporting::default();
    let consumer: BaseConsumer<Reporting> = settings
        .consumer_config()?
        .create_with_context(reporting.clone())
        .map_err(|error| client::source_error("the kafka client cannot be set up", &error))?;
    let partitions = partitions_of(&consumer, &reporting, settings, topic)?;
    let failed = |error| client::source_error("the backfill cannot be agreed on", &error);
    for _ in 0..AGREE_ATTEMPTS {
        let found = standings(&consumer, &partitions).map_err(failed)?;
        if !found.is_empty() && !found.values().all(Standing::is_done) {
            return Ok(range(found));
        }
        let fresh = settle(&consumer, &partitions, job, settings.accept_gap)?;
        match commit_marks(&consumer, &fresh) {
            Ok(()) => return Ok(range(fresh)),
            // The group has members: another worker began the job in this moment.
            Err(error)
                if matches!(
                    error.rdkafka_error_code(),
                    Some(RDKafkaErrorCode::UnknownMemberId | RDKafkaErrorCode::IllegalGeneration)
                ) =>
            {
                std::thread::sleep(AGREE_PAUSE);
            }
            Err(error) => return Err(failed(error)),
        }
    }
    let found = standings(&consumer, &partitions).map_err(failed)?;
    if found.is_empty() {
        let text = format!(
            "the group {} is in use by something else",
            settings.group_id
        );
        return Err(SourceError::Fatal(text));
    }
    // Done, while other workers have yet to leave.
    Ok(range(found))
}

fn range(standings: HashMap<TopicPartition, Standing>) -> Range {
    Range {
        standings: Mutex::new(standings),
    }
}

fn partitions_of(
    consumer: &BaseConsumer<Reporting>,
    reporting: &Reporting,
    settings: &KafkaSettings,
    topic: &str,
) -> Result<Vec<TopicPartition>, SourceError> {
    let metadata = consumer
        .fetch_metadata(Some(topic), settings.connect_timeout())
        .map_err(|error| {
            SourceError::Fatal(format!(
                "no kafka broker answered at kafka.brokers = {} within {} ms: {error}: {}",
                settings.brokers,
                settings.connect_timeout_ms,
                reporting.faults.describe()
            ))
        })?;
    let known = metadata.topics().iter().find(|known| known.name() == topic);
    let partitions: Vec<TopicPartition> = known
        .filter(|known| known.error().is_none())
        .map_or(&[][..], |known| known.partitions())
        .iter()
        .map(|partition| TopicPartition::new(topic, partition.id()))
        .collect();
    if partitions.is_empty() {
        let text = format!("there is nothing to backfill: the topic {topic} does not exist");
        return Err(SourceError::Fatal(text));
    }
    Ok(partitions)
}

/// Settles begin and end of every partition by what the topic holds now.
fn settle(
    consumer: &BaseConsumer<Reporting>,
    partitions: &[TopicPartition],
    job: &RangeJob,
    accept_gap: bool,
) -> Result<HashMap<TopicPartition, Standing>, SourceError> {
    let logs = start::ranges(consumer, partitions);
    let begins = match &job.from {
        RangeFrom::Time(time) => offsets_at(consumer, partitions, *time)?,
        RangeFrom::Beginning | RangeFrom::Offsets(_) => HashMap::new(),
    };
    let ends = match &job.to {
        RangeTo::Time(time) => offsets_at(consumer, partitions, *time)?,
        RangeTo::Now | RangeTo::Offsets(_) => HashMap::new(),
    };
    let mut settled = HashMap::new();
    for partition in partitions {
        let Some(log) = logs.get(partition) else {
            let text = format!("the leader of {partition} does not answer");
            return Err(SourceError::Transient(text));
        };
        let at = |times: &HashMap<TopicPartition, i64>| times.get(partition).copied();
        let number = partition.partition;
        let begin = match &job.from {
            RangeFrom::Beginning => Some(log.low),
            RangeFrom::Time(_) => Some(at(&begins).unwrap_or(log.high)),
            RangeFrom::Offsets(offsets) => offsets.get(&number).copied(),
        };
        let end = match &job.to {
            RangeTo::Now => log.high,
            RangeTo::Time(_) => at(&ends).unwrap_or(log.high),
            RangeTo::Offsets(offsets) => offsets.get(&number).copied().unwrap_or(log.high),
        };
        let Some(mark) = mark(partition, begin, end, *log, accept_gap)? else {
            continue;
        };
        let committed = mark.begin;
        settled.insert(partition.clone(), Standing { mark, committed });
    }
    if settled.is_empty() {
        let text = "no partition of the topic is within the range of the backfill".to_owned();
        return Err(SourceError::Fatal(text));
    }
    Ok(settled)
}

/// Fits what is wanted of a partition to what it has. What has expired is refused unless accepted.
fn mark(
    partition: &TopicPartition,
    begin: Option<i64>,
    end: i64,
    log: LogRange,
    accept_gap: bool,
) -> Result<Option<RangeMark>, SourceError> {
    let Some(begin) = begin else {
        return Ok(None);
    };
    if begin < log.low && !accept_gap {
        return Err(SourceError::Fatal(format!(
            "the backfill is to begin at {begin} of {partition}, which now begins at {}: {} records are gone; \
             begin later or accept the gap (--accept-gap or kafka.accept_gap = true)",
            log.low,
            log.low - begin
        )));
    }
    let end = end.clamp(log.low, log.high);
    let begin = begin.clamp(log.low, end.max(log.low));
    Ok(Some(RangeMark { begin, end }))
}

/// The first offset at or after a time, of each partition that has one.
fn offsets_at(
    consumer: &BaseConsumer<Reporting>,
    partitions: &[TopicPartition],
    time_ms: i64,
) -> Result<HashMap<TopicPartition, i64>, SourceError> {
    let failed = |error| client::source_error("the offsets of a time cannot be asked for", &error);
    let mut question = start::list(partitions);
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

/// Keeps the marks in the group. Works only while the group has no members.
fn commit_marks(
    consumer: &BaseConsumer<Reporting>,
    standings: &HashMap<TopicPartition, Standing>,
) -> KafkaResult<()> {
    let mut list = TopicPartitionList::with_capacity(standings.len());
    for (partition, standing) in standings {
        let mut element = list.add_partition(&partition.topic, partition.partition);
        element.set_offset(Offset::Offset(standing.committed))?;
        element.set_metadata(standing.mark.to_metadata());
    }
    consumer.commit(&list, ClientCommit::Sync)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: LogRange = LogRange {
        low: 100,
        high: 200,
    };

    fn fitted(begin: i64, end: i64) -> RangeMark {
        let partition = TopicPartition::new("news", 0);
        mark(&partition, Some(begin), end, LOG, true)
            .unwrap()
            .unwrap()
    }

    #[test]
    fn a_mark_survives_the_group() {
        let mark = RangeMark { begin: 5, end: 70 };
        assert_eq!(RangeMark::parse(&mark.to_metadata()), Some(mark));
        for foreign in [
            "",
            "tcbert-range 5",
            "tcbert-range 7 5",
            "tcbert-range 1 2 3",
            "x 1 2",
        ] {
            assert_eq!(RangeMark::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_range_is_fitted_to_what_the_partition_has() {
        assert_eq!(
            fitted(120, 150),
            RangeMark {
                begin: 120,
                end: 150
            }
        );
        assert_eq!(
            fitted(20, 900),
            RangeMark {
                begin: 100,
                end: 200
            }
        );
        assert_eq!(
            fitted(180, 150),
            RangeMark {
                begin: 150,
                end: 150
            }
        );
        assert_eq!(
            fitted(20, 50),
            RangeMark {
                begin: 100,
                end: 100
            }
        );
    }

    #[test]
    fn what_has_expired_is_refused_unless_accepted() {
        let partition = TopicPartition::new("news", 0);
        let error = mark(&partition, Some(40), 150, LOG, false).unwrap_err();
        assert!(error.to_string().contains("60 records are gone"), "{error}");
        assert_eq!(mark(&partition, None, 150, LOG, false).unwrap(), None);
    }

    #[test]
    fn progress_counts_what_is_done_of_all_partitions() {
        let at = |number, begin, end, committed| {
            let mark = RangeMark { begin, end };
            (
                TopicPartition::new("news", number),
                Standing { mark, committed },
            )
        };
        let job = range(HashMap::from([at(0, 0, 100, 40), at(1, 50, 60, 60)]));
        assert_eq!(
            job.progress(),
            RangeProgress {
                done: 50,
                total: 110
            }
        );
        assert!(!job.is_complete());
        job.committed(&TopicPartition::new("news", 0), 100);
        assert!(job.is_complete());
    }
}
