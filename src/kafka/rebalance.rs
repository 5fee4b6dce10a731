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
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::Offset;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, TopicPartitionList};

use super::client::{self, Faults};
use super::committer::Committer;
use super::counters::Counters;
use super::desk::Desk;
use super::range::{self, Agreed, JobPlan};
use super::start::{self, Start, StartPolicy};
use crate::document::TopicPartition;
use crate::source::{CommitOffset, SourceError, SourceEvent};

/// How long an event that must get through waits for a pipeline that reads nothing.
const CONTROL_PATIENCE: Duration = Duration::from_secs(60);
/// How often the start offsets are asked for before the client is left to find them itself.
const PLAN_ATTEMPTS: u32 = 5;
const PLAN_PAUSE: Duration = Duration::from_millis(300);

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
    /// What a bounded source reads; `None` for one without end.
    pub(super) job: Option<Arc<JobPlan>>,
    pub(super) desk: Mutex<Desk>,
    pub(super) faults: Faults,
    pub(super) counters: Counters,
    pub(super) failed: AtomicBool,
    phase: AtomicU8,
}

impl Shared {
    pub(super) fn new(
        policy: StartPolicy,
        revoke_drain: Duration,
        desk: Desk,
        job: Option<Arc<JobPlan>>,
    ) -> Self {
        Self {
            policy,
            revoke_drain,
            job,
            desk: Mutex::new(desk),
            faults: Faults::default(),
            counters: Counters::default(),
            failed: AtomicBool::new(false),
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
        let agreed = match self.agree(consumer, partitions) {
            Ok(agreed) => agreed,
            Err(error) => {
                self.fail(error);
                return assign(consumer, partitions, |_| Offset::Stored);
            }
        };
        let starts = match self.plan(consumer, partitions, &agreed) {
            Ok(starts) => starts,
            Err(error) => {
                self.fail(error);
                // Assigned but not held: nothing of these partitions is delivered.
                return assign(consumer, partitions, |_| Offset::Stored);
            }
        };
        if partitions.is_empty() || self.shared.phase() == Phase::Closing {
            return assign(consumer, partitions, |_| Offset::Stored);
        }
        let (generation, paused) = {
            let mut desk = self.shared.desk.lock();
            let end = |agreed: &Agreed| (agreed.partition.clone(), agreed.end);
            let generation = desk.assign(partitions, &agreed.iter().map(end).collect());
            for Agreed {
                partition, next, ..
            } in &agreed
            {
                desk.begin_at(partition, *next);
            }
            (generation, desk.paused)
        };
        tracing::info!(
            partitions = %named(partitions),
            generation = generation.0,
            "partitions assigned"
        );
        self.announce(SourceEvent::Assigned {
            partitions: partitions.to_vec(),
            generation,
        });
        assign(consumer, partitions, |partition| {
            starts.get(partition).copied().unwrap_or(Offset::Stored)
        })?;
        // A pause outlives neither side's memory of it: say it either way.
        if paused || !self.shared.delivers() {
            return consumer.pause(&start::list(partitions));
        }
        let ended = self.shared.desk.lock().take_newly_ended();
        let reading = partitions
            .iter()
            .filter(|partition| !ended.contains(partition));
        let reading: Vec<TopicPartition> = reading.cloned().collect();
        consumer.pause(&start::list(&ended))?;
        consumer.resume(&start::list(&reading))
    }

    /// Where to begin. Where the brokers do not answer in time the client is left to ask for the
    /// committed offsets itself, and what it cannot settle comes back as an error of the fetch.
    fn plan(
        &self,
        consumer: &GroupConsumer,
        partitions: &[TopicPartition],
        agreed: &[Agreed],
    ) -> Result<HashMap<TopicPartition, Offset>, SourceError> {
        let is_done = |agreed: &&Agreed| agreed.next >= agreed.end;
        // What is read to its end already is fetched at the end of the log until it is paused.
        let ended = agreed.iter().filter(is_done);
        let ended: HashMap<_, _> = ended
            .map(|agreed| (agreed.partition.clone(), Offset::End))
            .collect();
        let wanted: HashMap<_, _> = agreed
            .iter()
            .filter(|agreed| !is_done(agreed))
            .map(|agreed| (agreed.partition.clone(), agreed.next))
            .collect();
        let reading = partitions
            .iter()
            .filter(|partition| !ended.contains_key(*partition));
        let partitions: Vec<TopicPartition> = reading.cloned().collect();
        if partitions.is_empty() {
            return Ok(ended);
        }
        for _ in 0..PLAN_ATTEMPTS {
            match start::plan(consumer, &partitions, &wanted, self.shared.policy) {
                Ok(starts) => {
                    let offset = |(partition, start): (TopicPartition, Start)| {
                        let offset = match start {
                            Start::At(offset) => Offset::Offset(offset),
                            Start::Beginning => Offset::Beginning,
                        };
                        (partition, offset)
                    };
                    return Ok(starts.into_iter().map(offset).chain(ended).collect());
                }
                Err(error @ SourceError::Fatal(_)) => return Err(error),
                Err(SourceError::Transient(reason)) => {
                    tracing::warn!(reason, "the start offsets are not known yet");
                    std::thread::sleep(PLAN_PAUSE);
                }
            }
        }
        Ok(wanted
            .into_iter()
            .map(|(partition, next)| (partition, Offset::Offset(next)))
            .chain(ended)
            .collect())
    }

    /// What the workers of a bounded job agree upon for `partitions`; empty for a source without end.
    fn agree(
        &self,
        consumer: &GroupConsumer,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Agreed>, SourceError> {
        let Some(job) = self.shared.job.as_ref().filter(|_| !partitions.is_empty()) else {
            return Ok(Vec::new());
        };
        let mut outcome = range::agree(consumer, job, partitions);
        for _ in 1..PLAN_ATTEMPTS {
            if !matches!(outcome, Err(SourceError::Transient(_))) {
                break;
            }
            std::thread::sleep(PLAN_PAUSE);
            outcome = range::agree(consumer, job, partitions);
        }
        outcome
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
        tracing::info!(partitions = %named(leaving), "partitions are to leave; draining them");
        let (reply, answer) = bounded(1);
        let revoked = SourceEvent::Revoked {
            partitions: leaving.to_vec(),
            reply,
        };
        self.announce_before_records(revoked, leaving);
        // The pipeline keeps the bound by itself and needs a moment to answer.
        match answer.recv_timeout(self.shared.revoke_drain + ANSWER_GRACE) {
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

    /// Commits what the pipeline handed over, now and before; waits within a bound.
    fn commit_last(&self, mut offsets: Vec<CommitOffset>, leaving: &[TopicPartition]) {
        offsets.retain(|offset| leaving.contains(&offset.partition));
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

/// Time beyond the drain's bound in which the pipeline's answer may arrive.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// Lets the client begin anew in partitions that it has given up on: it does not seek in those.
pub(super) fn begin_anew(
    consumer: &GroupConsumer,
    starts: &[(TopicPartition, Start)],
) -> KafkaResult<()> {
    let partitions: Vec<TopicPartition> = starts.iter().map(|(p, _)| p.clone()).collect();
    if partitions.is_empty() {
        return Ok(());
    }
    let starts: HashMap<_, _> = starts.iter().cloned().collect();
    let cooperative = matches!(
        consumer.rebalance_protocol(),
        RebalanceProtocol::Cooperative
    );
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
