//! A bounded part of the configured topics as a job of its own group: where it begins and ends in
//! each partition is decided once and kept as the metadata of the group's commits, so that all
//! workers of the job and every restart agree, on any machine. Must not know the pipeline.

mod agree;
mod ask;
mod lag;
mod spec;
mod watch;

use std::collections::HashMap;

pub use lag::LagWatch;
pub use spec::{OffsetRange, RangeError, RangeSpec, parse_time};

pub(super) use agree::{Agreed, JobPlan};
pub(super) use ask::{agree, is_gap};
pub(super) use watch::Watch;

use crate::digest;
use crate::document::TopicPartition;
use crate::kafka::settings::KafkaSettings;

/// Longest part of a job's name in the id of its group.
const NAME_CHARACTERS: usize = 48;
/// Hexadecimal digits of the digest in the id of the group.
const DIGEST_DIGITS: usize = 16;

/// What a backfill over Kafka is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeJob {
    /// Name that the user gives; together with the two below it makes the job.
    pub name: String,
    /// What is read.
    pub range: RangeSpec,
    /// What the documents are made into; another one makes another job.
    pub fingerprint: String,
    /// Leave a job alone that is finished already, instead of starting it anew.
    pub once: bool,
    /// Read deletions behind the range as well, up to where the live group is: the markers that they
    /// left in the store may be gone.
    pub later_deletions: bool,
}

impl RangeJob {
    /// The job's own consumer group. It begins with the live group's id, so that rights that are
    /// given by prefix hold, and is never equal to it.
    pub fn group_id(&self, settings: &KafkaSettings) -> String {
        let name: String = self
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(NAME_CHARACTERS)
            .collect();
        format!(
            "{}.backfill.{name}.{}",
            settings.group_id,
            self.digest(settings)
        )
    }

    fn digest(&self, settings: &KafkaSettings) -> String {
        let mut topics = settings.topics();
        topics.sort_unstable();
        let range = self.range.canonical();
        let rest = [self.name.as_str(), &range, &self.fingerprint];
        digest::of_parts(topics.into_iter().chain(rest), DIGEST_DIGITS)
    }

    /// Partitions behind whose ranges deletions are read. A range of times is one of all partitions, also
    /// of those in which it is empty: a document's later records may stand in another one.
    fn read_behind(&self, spans: &HashMap<TopicPartition, Span>) -> Vec<TopicPartition> {
        let is_read = |(_, span): &(&TopicPartition, &Span)| match self.range {
            RangeSpec::Times { .. } => true,
            RangeSpec::Offsets(_) => span.offsets() > 0,
        };
        let read = spans.iter().filter(is_read);
        read.map(|(partition, _)| partition.clone()).collect()
    }

    /// The settings of the job's consumer: the live group is never touched.
    pub(super) fn settings(&self, live: &KafkaSettings) -> KafkaSettings {
        KafkaSettings {
            group_id: self.group_id(live),
            group_instance_id: String::new(),
            ..live.clone()
        }
    }
}

/// Offsets of one partition, the end not included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First offset wanted.
    pub begin: i64,
    /// After the last offset wanted.
    pub end: i64,
}

impl Span {
    /// Offsets in it.
    pub fn offsets(self) -> u64 {
        u64::try_from(self.end - self.begin).unwrap_or(0)
    }
}

/// How far a job is in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangePosition {
    /// The partition.
    pub partition: TopicPartition,
    /// What the job reads of it.
    pub span: Span,
    /// After the last offset that is read: the end of `span`, or further where deletions are read
    /// behind it.
    pub last: i64,
    /// Everything below is accounted for.
    pub next: i64,
}

impl RangePosition {
    /// Offsets that are accounted for.
    pub fn done(&self) -> u64 {
        let next = self
            .next
            .clamp(self.span.begin, self.last.max(self.span.begin));
        u64::try_from(next - self.span.begin).unwrap_or(0)
    }

    /// Offsets of the range, and those behind it in which deletions are looked for.
    pub fn offsets(&self) -> u64 {
        u64::try_from(self.last - self.span.begin).unwrap_or(0)
    }

    /// Whether all of it is.
    pub fn is_done(&self) -> bool {
        self.next >= self.last
    }
}

/// How far a job is, over the work of all its workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeProgress {
    /// The job's consumer group.
    pub group: String,
    /// Whether an unfinished run of the job was gone on with.
    pub resumed: bool,
    /// Offsets that were accounted for when this worker started.
    pub done_at_start: u64,
    /// Whether everything was seen to be accounted for; that stays so, even where the job has begun
    /// anew since.
    pub finished: bool,
    /// By partition.
    pub positions: Vec<RangePosition>,
}

impl RangeProgress {
    /// Offsets of the whole job.
    pub fn total(&self) -> u64 {
        self.positions.iter().map(RangePosition::offsets).sum()
    }

    /// Offsets that are accounted for.
    pub fn done(&self) -> u64 {
        self.positions.iter().map(RangePosition::done).sum()
    }

    /// Whether everything is.
    pub fn is_finished(&self) -> bool {
        self.finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> RangeJob {
        RangeJob {
            name: "last night/每晚".to_owned(),
            range: RangeSpec::Times {
                from_ms: Some(1),
                to_ms: None,
            },
            fingerprint: "f".to_owned(),
            once: false,
            later_deletions: true,
        }
    }

    #[test]
    fn a_job_is_its_name_topics_range_and_fingerprint() {
        let settings = KafkaSettings::default();
        let group = job().group_id(&settings);
        assert!(
            group.starts_with("tcbert-worker.backfill.last-night---."),
            "{group}"
        );
        assert_eq!(group, job().group_id(&settings));
        let others = [
            RangeJob {
                name: "x".to_owned(),
                ..job()
            },
            RangeJob {
                range: RangeSpec::Times {
                    from_ms: None,
                    to_ms: Some(1),
                },
                ..job()
            },
            RangeJob {
                fingerprint: "g".to_owned(),
                ..job()
            },
        ];
        for other in others {
            assert_ne!(other.group_id(&settings), group);
        }
        let other_topic = KafkaSettings {
            topic: "wire".to_owned(),
            ..settings
        };
        assert_ne!(job().group_id(&other_topic), group);
    }

    #[test]
    fn what_is_done_stays_within_the_range() {
        let at = |next| RangePosition {
            partition: TopicPartition::new("t", 0),
            span: Span { begin: 10, end: 20 },
            last: 20,
            next,
        };
        assert_eq!((at(0).done(), at(15).done(), at(99).done()), (0, 5, 10));
        assert!(!at(19).is_done() && at(20).is_done());
    }
}
