//! The consumer's callbacks: assignments and revocations become events, in order, and a partition
//! leaves only after what was in flight is committed or its time is up. Runs on the poll thread.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset, TopicPartitionListElem};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, TopicPartitionList};

use crate::document::TopicPartition;
use crate::kafka::consumer::shared::{Callbacks, CheckRequest, GroupConsumer, Phase};
use crate::kafka::{client, offsets};
use crate::source::{CommitOffset, SourceError, SourceEvent};

/// How long the client may take to move to other offsets.
const SEEK_WITHIN: Duration = Duration::from_secs(5);

/// The channel of changes. It has no bound: while the store is away the pipeline may take them late, and
/// sessions may be lost any number of times until then.
pub(in crate::kafka) fn control() -> (Sender<SourceEvent>, Receiver<SourceEvent>) {
    unbounded()
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        client::report(&self.shared.faults, &error, reason);
    }
}

impl ConsumerContext for Callbacks {
    fn rebalance(
        &self,
        consumer: &GroupConsumer,
        what: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let partitions = offsets::partitions_of(list);
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
    /// Tells the pipeline of partitions that are ours, and has their logs checked.
    fn take_over(
        &self,
        consumer: &GroupConsumer,
        partitions: &[TopicPartition],
    ) -> KafkaResult<()> {
        self.shared.counters.rebalances.add(1);
        // Where to begin is decided on the check thread. Until then they are paused at an offset
        // that means nothing; what is delivered from there all the same is dropped. It must not be
        // a logical one: the client would ask for it once more where its answer comes after the
        // move to the real one, and read on from there.
        let parked = |_: &TopicPartition| Offset::Offset(0);
        if partitions.is_empty() || self.shared.phase() == Phase::Closing {
            return assign(consumer, partitions, parked);
        }
        let generation = self.shared.desk.lock().assign(partitions);
        tracing::info!(
            partitions = %named(partitions),
            generation = generation.0,
            "partitions assigned"
        );
        self.announce(SourceEvent::Assigned {
            partitions: partitions.to_vec(),
            generation,
        });
        let held = assign(consumer, partitions, parked)
            .and_then(|()| consumer.pause(&offsets::list(partitions)));
        // Also where that failed: beginning assigns once more what the client does not hold.
        let checked = |partition: &TopicPartition| (partition.clone(), generation);
        self.check(partitions.iter().map(checked).collect());
        held
    }

    /// Asks the check thread about partitions.
    pub(in crate::kafka) fn check(&self, request: CheckRequest) {
        if self.checks.send(request).is_err() {
            self.fail(SourceError::Fatal(
                "the thread that checks logs has ended; this is a defect of the worker".to_owned(),
            ));
        }
    }

    /// Lets the pipeline drain partitions that leave, and commits what it hands over.
    fn give_up(&self, consumer: &GroupConsumer, partitions: &[TopicPartition]) {
        self.shared.counters.rebalances.add(1);
        let lost = consumer.assignment_lost();
        let leaving = self.shared.desk.lock().begin_leaving(partitions);
        if leaving.is_empty() {
            return;
        }
        self.drop_waiting(&leaving);
        if lost {
            tracing::warn!(partitions = %named(&leaving), "partitions lost");
            self.announce(SourceEvent::Lost {
                partitions: leaving.clone(),
            });
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
        self.announce(revoked);
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

    /// Drops records of partitions that leave from those that wait for the pipeline; the others keep their
    /// order. This is the thread that sends them, so that there is room.
    fn drop_waiting(&self, leaving: &[TopicPartition]) {
        let waiting: Vec<SourceEvent> = self.waiting.try_iter().collect();
        for mut event in waiting {
            if let SourceEvent::Records(records) = &mut event {
                let before = records.len();
                records.retain(|record| !leaving.contains(&record.position.partition));
                let dropped = before - records.len();
                self.shared.counters.dropped.add(dropped as u64);
                if records.is_empty() {
                    continue;
                }
            }
            if self.records.try_send(event).is_err() {
                self.shared.advance(Phase::Stopped);
            }
        }
    }

    /// Says once that the source cannot go on, and delivers nothing from then on.
    pub(in crate::kafka) fn fail(&self, error: SourceError) {
        if !self.shared.failed.swap(true, Ordering::AcqRel) {
            self.announce(SourceEvent::Failed(error));
        }
    }

    /// Tells the pipeline of a change, which passes the records that wait.
    fn announce(&self, event: SourceEvent) {
        if self.control.send(event).is_err() {
            self.shared.advance(Phase::Stopped);
        }
    }
}

/// Time beyond the drain's bound in which the pipeline's answer may arrive.
const ANSWER_GRACE: Duration = Duration::from_secs(1);

/// A partition that is held and stays where it is.
pub(in crate::kafka) struct Other {
    pub(in crate::kafka) partition: TopicPartition,
    /// The next record wanted.
    pub(in crate::kafka) at: i64,
    /// Whether it is not to be fetched.
    pub(in crate::kafka) rests: bool,
}

/// Lets the client read on from these offsets. Where it has given up on a partition it does not
/// seek, and only assigning it again helps. `others` are all that are held beside those.
pub(in crate::kafka) fn move_to(
    consumer: &GroupConsumer,
    starts: &[(TopicPartition, i64)],
    others: &[Other],
) -> KafkaResult<()> {
    if starts.is_empty() {
        return Ok(());
    }
    let mut offsets: HashMap<_, _> = starts
        .iter()
        .map(|(partition, start)| (partition.clone(), Offset::Offset(*start)))
        .collect();
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for (partition, offset) in &offsets {
        list.add_partition_offset(&partition.topic, partition.partition, *offset)?;
    }
    let mut unmoved: Vec<TopicPartition> = match consumer.seek_partitions(list, SEEK_WITHIN) {
        Ok(moved) => {
            let failed = |element: &&TopicPartitionListElem<'_>| element.error().is_err();
            let elements = moved.elements();
            let failed = elements.iter().filter(failed);
            failed
                .map(|element| TopicPartition::new(element.topic(), element.partition()))
                .collect()
        }
        Err(error) => {
            tracing::debug!(%error, "the client does not seek");
            offsets::partitions_in(starts)
        }
    };
    if unmoved.is_empty() {
        return Ok(());
    }
    let is_cooperative = matches!(
        consumer.rebalance_protocol(),
        RebalanceProtocol::Cooperative
    );
    if is_cooperative {
        consumer.incremental_unassign(&offsets::list(&unmoved))?;
    } else {
        // An assignment replaces the one before: what is missing in it would not be read any more.
        unmoved = offsets::partitions_in(starts);
        for other in others {
            unmoved.push(other.partition.clone());
            offsets.insert(other.partition.clone(), Offset::Offset(other.at));
        }
    }
    assign(consumer, &unmoved, |partition| {
        offsets.get(partition).copied().unwrap_or(Offset::Offset(0))
    })?;
    if is_cooperative {
        return Ok(());
    }
    let with = |rests: bool| -> Vec<TopicPartition> {
        let others = others.iter().filter(|other| other.rests == rests);
        others.map(|other| other.partition.clone()).collect()
    };
    consumer.pause(&offsets::list(&with(true)))?;
    consumer.resume(&offsets::list(&with(false)))
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
pub(in crate::kafka) fn named(partitions: &[TopicPartition]) -> String {
    let names: Vec<String> = partitions.iter().map(ToString::to_string).collect();
    names.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::kafka::consumer::assignment::{ChunkBounds, Desk};
    use crate::kafka::consumer::check::start_offsets::StartPolicy;
    use crate::kafka::consumer::committer;
    use crate::kafka::consumer::shared::Shared;
    use crate::kafka::settings::{KafkaSettings, OnMissingOffset};
    use crate::telemetry::Metrics;

    #[test]
    fn changes_that_nobody_takes_yet_end_nothing() {
        const LOST: usize = 500;
        let policy = StartPolicy {
            on_missing: OnMissingOffset::Earliest,
            accept_gap: false,
            bounded: false,
        };
        let bounds = ChunkBounds {
            records: 1,
            bytes: 1,
        };
        let metrics = Metrics::new().unwrap();
        let shared = Shared::new(policy, Duration::ZERO, Desk::new(bounds), None, metrics);
        let shared = Arc::new(shared);
        let (control, announced) = control();
        let (records, waiting) = bounded(1);
        let (checks, _asked) = unbounded();
        let callbacks = Callbacks {
            shared: Arc::clone(&shared),
            control,
            records,
            waiting,
            committer: committer::channel().0,
            checks,
        };
        let config = KafkaSettings::default().consumer_config().unwrap();
        let consumer: GroupConsumer = config.create_with_context(callbacks).unwrap();
        for _ in 0..LOST {
            consumer.context().announce(SourceEvent::Lost {
                partitions: vec![TopicPartition::new("news", 0)],
            });
        }
        assert!(shared.delivers());
        assert_eq!(announced.len(), LOST);
    }
}
