//! The consumer's callbacks: assignments and revocations become events, in order, and a partition
//! leaves only after what was in flight is committed or its time is up. Runs on the poll thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::Offset;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, TopicPartitionList};

use super::client::{self, Faults};
use super::committer::Committer;
use super::counters::Counters;
use super::desk::Desk;
use super::range::{self, Range};
use super::start::{self, Start, StartPolicy};
use crate::document::{Generation, TopicPartition};
use crate::source::{CommitOffset, SourceError, SourceEvent};

/// How long an event that must get through waits for a pipeline that reads nothing.
const CONTROL_PATIENCE: Duration = Duration::from_secs(60);
/// How often the start offsets are asked for before the client is left to find them itself.
const PLAN_ATTEMPTS: u32 = 3;

/// Where the source is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Phase {
    /// Delivering.
    Running = 0,
    /// Delivering nothing, still a member.
    Stopped = 1,
    /// Leaving the group.
    Closing = 2,
}

/// What the poll thread, its callbacks and the source's owner share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) policy: StartPolicy,
    pub(super) revoke_drain: Duration,
    /// The job of a bounded source.
    pub(super) range: Option<Range>,
    pub(super) desk: Mutex<Desk>,
    pub(super) faults: Faults,
    pub(super) counters: Counters,
    pub(super) failed: AtomicBool,
    /// Where the log ended when the client last spoke of an end.
    pub(super) log_end: Mutex<Option<i64>>,
    phase: AtomicU8,
}

impl Shared {
    pub(super) fn new(
        policy: StartPolicy,
        revoke_drain: Duration,
        desk: Desk,
        range: Option<Range>,
    ) -> Self {
        Self {
            policy,
            revoke_drain,
            range,
            desk: Mutex::new(desk),
            faults: Faults::default(),
            counters: Counters::default(),
            failed: AtomicBool::new(false),
            log_end: Mutex::new(None),
            phase: AtomicU8::new(Phase::Running as u8),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Stopped,
            _ => Phase::Closing,
        }
    }

    /// Goes on to `phase`; there is no way back.
    pub(super) fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// Whether records are delivered at all.
    pub(super) fn delivers(&self) -> bool {
        self.phase() == Phase::Running && !self.failed.load(Ordering::Acquire)
    }
}

/// Where partitions begin and, in a bounded source, end.
#[derive(Debug, Default)]
struct Plan {
    starts: HashMap<TopicPartition, Offset>,
    ends: HashMap<TopicPartition, i64>,
}

impl Plan {
    fn start(&self, partition: &TopicPartition) -> Offset {
        self.starts
            .get(partition)
            .copied()
            .unwrap_or(Offset::Stored)
    }
}

/// The callbacks of the consumer.
pub(super) struct Callbacks {
    pub(super) shared: Arc<Shared>,
    pub(super) events: Sender<SourceEvent>,
    /// The other end of the channel, to take back what waits in it.
    pub(super) waiting: Receiver<SourceEvent>,
    pub(super) committer: Committer,
}

pub(super) type GroupConsumer = BaseConsumer<Callbacks>;

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            *self.shared.log_end.lock() = client::log_end(reason);
            return;
        }
        client::report(&self.shared.faults, &error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.shared.counters.note_lag(&statistics);
    }
}

impl ConsumerContext for Callbacks {
    fn rebalance(
        &self,
        consumer: &GroupConsumer,
        what: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let partitions = start::partitions_of(list);
        let outcome = if what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.take_over(consumer, &partitions)
        } else {
            self.give_up(consumer, &partitions);
            unassign(consumer, list)
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, "the assignment could not be changed");
        }
    }
}

impl Callbacks {
    /// Tells the pipeline of partitions that are ours, then lets the client fetch them.
    fn take_over(
        &self,
        consumer: &GroupConsumer,
        partitions: &[TopicPartition],
    ) -> KafkaResult<()> {
        self.shared.counters.rebalances.add(1);
        let plan = match self.plan(consumer, partitions) {
            Ok(plan) => plan,
            Err(error) => {
                self.fail(error);
                // Assigned but not held: nothing of these partitions is delivered.
                return assign(consumer, partitions, |_| Offset::Stored);
            }
        };
        if partitions.is_empty() || self.shared.phase() == Phase::Closing {
            return assign(consumer, partitions, |_| Offset::Stored);
        }
        let (generation, silent) = self.hold(partitions, &plan);
        tracing::info!(
            partitions = %named(partitions),
            generation = generation.0,
            "partitions assigned"
        );
        self.announce(SourceEvent::Assigned {
            partitions: partitions.to_vec(),
            generation,
        });
        assign(consumer, partitions, |partition| plan.start(partition))?;
        // A pause outlives neither side's memory of it: say it either way.
        let mut reading = partitions.to_vec();
        reading.retain(|partition| !silent.contains(partition));
        consumer.pause(&start::list(&silent))?;
        consumer.resume(&start::list(&reading))
    }

    /// Takes partitions over; says under which generation, and which of them are not to be read now.
    fn hold(
        &self,
        partitions: &[TopicPartition],
        plan: &Plan,
    ) -> (Generation, Vec<TopicPartition>) {
        let mut desk = self.shared.desk.lock();
        let generation = desk.assign(partitions, &plan.ends);
        for partition in partitions {
            if let Offset::Offset(begin) = plan.start(partition) {
                desk.end_at(partition, begin);
            }
        }
        if desk.paused || !self.shared.delivers() {
            return (generation, partitions.to_vec());
        }
        let ended = desk
            .all()
            .filter(|held| held.ended && partitions.contains(&held.partition));
        let ended = ended.map(|held| held.partition.clone()).collect();
        (generation, ended)
    }

    /// Where to begin. Where the brokers do not answer in time the client is left to ask for the
    /// committed offsets itself, and what it cannot settle comes back as an error of the fetch.
    fn plan(
        &self,
        consumer: &GroupConsumer,
        partitions: &[TopicPartition],
    ) -> Result<Plan, SourceError> {
        if partitions.is_empty() {
            return Ok(Plan::default());
        }
        let mut last = String::new();
        for _ in 0..PLAN_ATTEMPTS {
            match self.plan_once(consumer, partitions) {
                Ok(plan) => return Ok(plan),
                Err(error @ SourceError::Fatal(_)) => return Err(error),
                Err(SourceError::Transient(reason)) => {
                    tracing::warn!(reason, "the start offsets are not known yet");
                    last = reason;
                }
            }
        }
        if self.shared.range.is_some() {
            // Without its ends a backfill would not know where to stop.
            return Err(SourceError::Fatal(last));
        }
        Ok(Plan::default())
    }

    fn plan_once(
        &self,
        consumer: &GroupConsumer,
        partitions: &[TopicPartition],
    ) -> Result<Plan, SourceError> {
        let starts = start::plan(consumer, partitions, &HashMap::new(), self.shared.policy)?;
        let mut plan = Plan {
            starts: starts
                .into_iter()
                .map(|(p, start)| (p, start.into()))
                .collect(),
            ends: HashMap::new(),
        };
        if let Some(range) = &self.shared.range {
            let standings = range::standings(consumer, partitions).map_err(|error| {
                client::source_error("the end of the backfill cannot be read", &error)
            })?;
            range.learn(standings);
            for partition in partitions {
                // A partition that is no part of the job has nothing to deliver.
                let end = range.mark(partition).map_or(0, |mark| mark.end);
                plan.ends.insert(partition.clone(), end);
                if end == 0 {
                    plan.starts.insert(partition.clone(), Offset::Offset(0));
                }
            }
        }
        Ok(plan)
    }

    /// Lets the pipeline drain partitions that leave, and commits what it hands over.
    fn give_up(&self, consumer: &GroupConsumer, partitions: &[TopicPartition]) {
        self.shared.counters.rebalances.add(1);
        let lost = consumer.assignment_lost();
        let leaving = self.shared.desk.lock().begin_leaving(partitions);
        if leaving.is_empty() {
            return;
        }
        if lost {
            tracing::warn!(partitions = %named(&leaving), "partitions lost");
            let lost = SourceEvent::Lost {
                partitions: leaving.clone(),
            };
            self.announce_before_records(lost, &leaving);
        } else if self.shared.phase() == Phase::Closing {
            tracing::debug!(partitions = %named(&leaving), "partitions left");
        } else {
            let offsets = self.drain(&leaving);
            self.commit_last(offsets, &leaving);
        }
        self.shared.desk.lock().forget(&leaving);
    }

    /// Asks the pipeline to drain `leaving` and waits for its offsets, within the bound.
    fn drain(&self, leaving: &[TopicPartition]) -> Vec<CommitOffset> {
        let started = Instant::now();
        let (reply, answer) = bounded(1);
        let revoked = SourceEvent::Revoked {
            partitions: leaving.to_vec(),
            reply,
        };
        self.announce_before_records(revoked, leaving);
        match answer.recv_timeout(self.shared.revoke_drain) {
            Ok(offsets) => {
                tracing::info!(
                    partitions = %named(leaving),
                    drained_ms = started.elapsed().as_millis(),
                    "partitions revoked"
                );
                offsets
            }
            Err(RecvTimeoutError::Timeout) => {
                tracing::warn!(
                    partitions = %named(leaving),
                    bound_ms = self.shared.revoke_drain.as_millis(),
                    "partitions revoked before they were drained; their next owner repeats some"
                );
                Vec::new()
            }
            Err(RecvTimeoutError::Disconnected) => Vec::new(),
        }
    }

    /// Commits what the pipeline handed over; waits within a bound.
    fn commit_last(&self, mut offsets: Vec<CommitOffset>, leaving: &[TopicPartition]) {
        offsets.retain(|offset| leaving.contains(&offset.partition));
        if offsets.is_empty() {
            return;
        }
        if let Err(error) = self.committer.commit(offsets, true) {
            tracing::warn!(%error, "the last offsets of revoked partitions were not committed");
        }
    }

    /// Sends an event past the records that wait in the channel, which a slow pipeline may take
    /// longer to work off than a revocation may last. Records of the partitions that leave are
    /// dropped; everything else keeps its order.
    fn announce_before_records(&self, event: SourceEvent, leaving: &[TopicPartition]) {
        let mut behind = Vec::new();
        let waiting: Vec<SourceEvent> = self.waiting.try_iter().collect();
        for waiting in waiting {
            match waiting {
                SourceEvent::Records(mut records) => {
                    let before = records.len();
                    records.retain(|record| !leaving.contains(&record.position.partition));
                    let dropped = before - records.len();
                    self.shared.counters.dropped.add(dropped as u64);
                    if !records.is_empty() {
                        behind.push(SourceEvent::Records(records));
                    }
                }
                control => self.announce(control),
            }
        }
        self.announce(event);
        for records in behind {
            self.announce(records);
        }
    }

    /// Says once that the source cannot go on, and delivers nothing from then on.
    pub(super) fn fail(&self, error: SourceError) {
        if !self.shared.failed.swap(true, Ordering::AcqRel) {
            self.announce(SourceEvent::Failed(error));
        }
    }

    /// Sends an event that must get through. The channel has places that records never take, so
    /// this waits only for a pipeline that has stopped reading altogether.
    pub(super) fn announce(&self, event: SourceEvent) {
        match self.events.send_timeout(event, CONTROL_PATIENCE) {
            Ok(()) => {}
            Err(SendTimeoutError::Disconnected(_)) => self.shared.advance(Phase::Stopped),
            Err(SendTimeoutError::Timeout(_)) => {
                self.shared.advance(Phase::Stopped);
                tracing::error!("nobody reads the source's events; it delivers nothing any more");
            }
        }
    }
}

/// Lets the client begin anew in partitions that it has given up on: it does not seek in those.
/// Where the protocol knows no increments all partitions are assigned again, each where it stands.
pub(super) fn begin_anew(
    consumer: &GroupConsumer,
    moves: &[(TopicPartition, Start)],
    all: &[(TopicPartition, Start)],
) -> KafkaResult<()> {
    let cooperative = matches!(
        consumer.rebalance_protocol(),
        RebalanceProtocol::Cooperative
    );
    let starts = if cooperative { moves } else { all };
    let partitions: Vec<TopicPartition> = starts.iter().map(|(p, _)| p.clone()).collect();
    if partitions.is_empty() {
        return Ok(());
    }
    let starts: HashMap<_, _> = starts.iter().cloned().collect();
    if cooperative {
        consumer.incremental_unassign(&start::list(&partitions))?;
    }
    assign(consumer, &partitions, |partition| {
        match starts.get(partition) {
            Some(Start::At(offset)) => Offset::Offset(*offset),
            Some(Start::Beginning) | None => Offset::Beginning,
        }
    })
}

fn assign(
    consumer: &GroupConsumer,
    partitions: &[TopicPartition],
    begin: impl Fn(&TopicPartition) -> Offset,
) -> KafkaResult<()> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        let at = begin(partition);
        list.add_partition_offset(&partition.topic, partition.partition, at)?;
    }
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_assign(&list),
        RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.assign(&list),
    }
}

fn unassign(consumer: &GroupConsumer, list: &TopicPartitionList) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
        RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
    }
}

/// Partitions for a log line.
pub(super) fn named(partitions: &[TopicPartition]) -> String {
    let names: Vec<String> = partitions.iter().map(ToString::to_string).collect();
    names.join(" ")
}
