//! The progress thread: how far behind the partitions are, whether brokers respond, and whether something
//! stands still. It asks through a client of its own, so that neither a paused partition nor a lost session
//! makes it blind.
//!
//! Lag counts from the last stable offset down to what is durable, so that it grows while a store is away.
//! Where nothing but transaction markers stands between the two, the end itself is committed: an idle
//! topic has no lag, and its markers may expire without a gap.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::consumer::Consumer;

use crate::document::{Generation, RecordPosition, TopicPartition};
use crate::kafka::consumer::assignment::Position;
use crate::kafka::consumer::shared::{GroupConsumer, Phase, Shared};
use crate::kafka::inspect::Inspector;
use crate::kafka::settings::KafkaSettings;
use crate::kafka::{backfill, offsets};
use crate::source::SourceError;

/// How often the brokers are asked.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(100);
/// How often it is looked whether the topics exist.
const TOPICS_EVERY: Duration = Duration::from_secs(10);
/// How long a partition stands before its end until a gap is looked for; it doubles. To look for it is to fetch the
/// next batch once more, which the consumer may still be unpacking: one of hundreds of megabytes takes seconds.
const IDLE: Duration = Duration::from_secs(20);
const LONGEST_IDLE: Duration = Duration::from_secs(60);

/// How one assigned partition does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionStatus {
    /// The partition.
    pub partition: TopicPartition,
    /// Everything below is durable; `None` until it is known where to begin.
    pub position: Option<i64>,
    /// The last stable offset, as it was last known.
    pub end: Option<i64>,
    /// Since when records wait and the position stays.
    pub waiting_since: Option<Instant>,
    /// Since when it is assigned and not read yet.
    pub checking_since: Option<Instant>,
}

impl PartitionStatus {
    /// Records that are not durable yet; `None` where no broker has said where the partition ends.
    pub fn lag(&self) -> Option<u64> {
        let (position, end) = self.position.zip(self.end)?;
        Some(u64::try_from(end - position).unwrap_or(0))
    }
}

/// How the source does, as far as it was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// The assigned partitions.
    pub partitions: Vec<PartitionStatus>,
    /// Since when brokers do not respond, and why.
    pub unreachable: Option<(Instant, String)>,
    /// Since when topics of `kafka.topic` do not exist, and which.
    pub missing: Option<(Instant, Vec<String>)>,
    /// A batch that fails its checksum and is read again.
    pub damaged: Option<RecordPosition>,
}

impl SourceStatus {
    /// Whether the partition is known to end there.
    pub(in crate::kafka) fn is_at_end(&self, place: &RecordPosition) -> bool {
        let mut partitions = self.partitions.iter();
        let found = partitions.find(|status| status.partition == place.partition);
        found.is_some_and(|status| status.end.is_some_and(|end| end <= place.offset))
    }
}

/// What the thread remembers of a partition.
struct Seen {
    generation: Generation,
    position: Option<i64>,
    since: Instant,
    checking_since: Option<Instant>,
    /// When a gap is looked for, and how long it is waited after that.
    look_at: Instant,
    patience: Duration,
}

/// See the module.
pub(in crate::kafka) struct ProgressThread {
    pub(in crate::kafka) settings: KafkaSettings,
    pub(in crate::kafka) shared: Arc<Shared>,
    pub(in crate::kafka) consumer: Weak<GroupConsumer>,
    pub(in crate::kafka) status: Arc<Mutex<SourceStatus>>,
}

impl ProgressThread {
    /// Starts the thread; it ends with the source.
    pub(in crate::kafka) fn spawn(self) -> Result<thread::JoinHandle<()>, SourceError> {
        let inspector = Inspector::new(&self.settings)?;
        thread::Builder::new()
            .name("kafka-progress".to_owned())
            .spawn(move || self.run(&inspector))
            .map_err(|error| SourceError::Fatal(format!("a thread cannot be started: {error}")))
    }

    fn run(self, inspector: &Inspector) {
        let mut seen = HashMap::new();
        let mut ends = HashMap::new();
        let mut looked: Option<Instant> = None;
        let mut topics_asked: Option<Instant> = None;
        let mut topics_trouble = None;
        while self.shared.phase() != Phase::Closing {
            if looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
                thread::sleep(TICK);
                continue;
            }
            looked = Some(Instant::now());
            let positions = self.shared.desk.lock().positions();
            // Without partitions nobody else is asked: a lost session must not look like brokers that respond.
            if topics_trouble.is_some()
                || positions.is_empty()
                || topics_asked.is_none_or(|at| at.elapsed() >= TOPICS_EVERY)
            {
                topics_asked = Some(Instant::now());
                topics_trouble = self.look_for_topics(inspector).err();
            }
            let trouble = topics_trouble
                .clone()
                .or_else(|| look_for_ends(inspector, &positions, &mut ends));
            self.publish(&positions, &ends, &mut seen, trouble.as_deref());
            if trouble.is_none() {
                self.pass_gaps(&positions, &ends, &mut seen);
            }
        }
    }

    /// Looks whether the topics exist. The error says why no broker responds.
    fn look_for_topics(&self, inspector: &Inspector) -> Result<(), String> {
        let mut missing = Vec::new();
        for topic in self.settings.topics() {
            let partitions = inspector
                .certain_partitions(topic)
                .map_err(|error| error.to_string())?;
            if partitions.is_empty() {
                missing.push(topic.to_owned());
            }
        }
        let mut status = self.status.lock();
        let since = status.missing.as_ref().map(|(since, _)| *since);
        status.missing =
            (!missing.is_empty()).then(|| (since.unwrap_or_else(Instant::now), missing));
        Ok(())
    }

    fn publish(
        &self,
        positions: &[Position],
        ends: &HashMap<TopicPartition, i64>,
        seen: &mut HashMap<TopicPartition, Seen>,
        trouble: Option<&str>,
    ) {
        let now = Instant::now();
        seen.retain(|partition, _| positions.iter().any(|p| p.partition == *partition));
        let partitions = positions.iter().map(|position| {
            let end = ends.get(&position.partition).copied();
            let seen = seen
                .entry(position.partition.clone())
                .and_modify(|seen| seen.follow(position, end, now))
                .or_insert_with(|| Seen::new(position, now));
            let waits = position.position.zip(end).is_some_and(|(at, end)| at < end);
            PartitionStatus {
                partition: position.partition.clone(),
                position: position.position,
                end,
                waiting_since: waits.then_some(seen.since),
                checking_since: seen.checking_since,
            }
        });
        let partitions: Vec<_> = partitions.collect();
        let mut status = self.status.lock();
        // Partitions that were lost with the session keep what was last known until brokers respond.
        if trouble.is_none() || !positions.is_empty() {
            status.partitions = partitions;
        }
        let since = status.unreachable.as_ref().map(|(since, _)| *since);
        status.unreachable = trouble.map(|reason| (since.unwrap_or(now), reason.to_owned()));
        let damaged = status.damaged.take();
        status.damaged = damaged.filter(|place| stands_before(positions, place));
    }

    /// Commits the ends of partitions before which nothing stands any more.
    fn pass_gaps(
        &self,
        positions: &[Position],
        ends: &HashMap<TopicPartition, i64>,
        seen: &mut HashMap<TopicPartition, Seen>,
    ) {
        for position in positions.iter().filter(|position| position.is_settled) {
            let Position {
                partition,
                generation,
                ..
            } = position;
            let end = ends.get(partition).copied();
            let (Some(at), Some(end), Some(seen)) =
                (position.position, end, seen.get_mut(partition))
            else {
                continue;
            };
            if at >= end || Instant::now() < seen.look_at {
                continue;
            }
            match backfill::is_gap(&self.settings, partition, at, end, false) {
                Ok(true) => {
                    tracing::debug!(%partition, at, end, "only markers stand before the end; it is committed");
                    let passed = self
                        .shared
                        .desk
                        .lock()
                        .pass_gap(partition, *generation, at, end);
                    if passed && let Some(consumer) = self.consumer.upgrade() {
                        consumer.context().committer.wake();
                    }
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(%error, %partition, "looking for the end of a partition");
                }
            }
            seen.look_at = Instant::now() + seen.patience;
            seen.patience = (seen.patience * 2).min(LONGEST_IDLE);
        }
    }
}

/// Whether the partition is still assigned and not past the place.
fn stands_before(positions: &[Position], place: &RecordPosition) -> bool {
    let mut positions = positions.iter();
    positions.any(|held| held.partition == place.partition && held.position <= Some(place.offset))
}

impl Seen {
    fn new(position: &Position, now: Instant) -> Self {
        Self {
            generation: position.generation,
            position: position.position,
            since: now,
            checking_since: position.checking.then_some(now),
            look_at: now + IDLE,
            patience: IDLE,
        }
    }

    /// Takes in where the partition is by now; one that is at its end waits for nothing.
    fn follow(&mut self, position: &Position, end: Option<i64>, now: Instant) {
        if self.generation != position.generation {
            *self = Self::new(position, now);
            return;
        }
        self.checking_since = match self.checking_since {
            Some(since) if position.checking => Some(since),
            _ => position.checking.then_some(now),
        };
        let is_at_end = position.position.is_some() && position.position >= end;
        if self.position != position.position || is_at_end {
            self.position = position.position;
            self.since = now;
            self.look_at = now + IDLE;
            self.patience = IDLE;
        }
    }
}

/// Asks for the ends of partitions; those of which nothing is heard stay as they were. Gives why that is.
fn look_for_ends(
    inspector: &Inspector,
    positions: &[Position],
    ends: &mut HashMap<TopicPartition, i64>,
) -> Option<String> {
    ends.retain(|partition, _| positions.iter().any(|p| p.partition == *partition));
    let partitions: Vec<TopicPartition> = positions
        .iter()
        .map(|position| position.partition.clone())
        .collect();
    let found = match offsets::ends(&inspector.consumer, &partitions) {
        Ok(found) => found,
        Err(error) => return Some(inspector.why(&error)),
    };
    let silent = partitions
        .iter()
        .find(|partition| !found.contains_key(partition));
    let trouble = silent.map(|partition| format!("the leader of {partition} does not respond"));
    ends.extend(found);
    trouble
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(at: i64) -> Position {
        Position {
            partition: TopicPartition::new("news", 0),
            generation: Generation(1),
            position: Some(at),
            is_settled: true,
            checking: false,
        }
    }

    #[test]
    fn a_partition_waits_since_its_position_stays_below_its_end() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut seen = Seen::new(&position(5), start);
        seen.follow(&position(5), Some(5), after(10));
        assert_eq!(seen.since, after(10), "it was at its end until now");
        seen.follow(&position(5), Some(9), after(20));
        seen.follow(&position(5), Some(30), after(40));
        assert_eq!(seen.since, after(10));
        seen.follow(&position(7), Some(30), after(50));
        assert_eq!(seen.since, after(50));
        let next = Position {
            generation: Generation(2),
            checking: true,
            ..position(7)
        };
        seen.follow(&next, Some(30), after(60));
        seen.follow(&next, Some(30), after(70));
        assert_eq!(seen.checking_since, Some(after(60)));
    }

    #[test]
    fn lag_is_what_is_not_durable_and_never_negative() {
        let status = |position, end| PartitionStatus {
            partition: TopicPartition::new("news", 0),
            position,
            end,
            waiting_since: None,
            checking_since: None,
        };
        assert_eq!(status(Some(3), Some(10)).lag(), Some(7));
        assert_eq!(status(Some(12), Some(10)).lag(), Some(0));
        assert_eq!(status(None, Some(10)).lag(), None);
        assert_eq!(status(Some(3), None).lag(), None);
    }

    #[test]
    fn a_place_is_the_end_only_where_the_end_is_known() {
        let place = |number, offset| RecordPosition {
            partition: TopicPartition::new("news", number),
            offset,
        };
        let status = SourceStatus {
            partitions: vec![PartitionStatus {
                partition: TopicPartition::new("news", 0),
                position: Some(3),
                end: Some(10),
                waiting_since: None,
                checking_since: None,
            }],
            ..SourceStatus::default()
        };
        assert!(status.is_at_end(&place(0, 10)));
        assert!(!status.is_at_end(&place(0, 9)) && !status.is_at_end(&place(1, 10)));
    }
}
