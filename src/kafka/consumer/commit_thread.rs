//! The commit thread: every commit is made here, one after the other and waiting for the broker,
//! so that none overtakes another and each failure is known. (The client reports nothing of a
//! commit that nobody waits for: rdkafka listens to events, librdkafka calls a callback only.)

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Once, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{CommitMode as ClientCommit, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::Offset;

use crate::kafka::client;
use crate::kafka::consumer::committer::{Request, Work};
use crate::kafka::consumer::shared::{GroupConsumer, Phase, Shared};
use crate::kafka::log_identity::LogNote;
use crate::source::{CommitOffset, SourceError};

/// Starts the thread. It ends when `shared` is closing. It does not keep the consumer alive: the
/// poll thread is to be the one that drops it, which leaves the group.
pub(in crate::kafka) fn spawn(
    work: Work,
    consumer: Weak<GroupConsumer>,
    shared: Arc<Shared>,
    interval: Duration,
) -> std::io::Result<thread::JoinHandle<()>> {
    thread::Builder::new()
        .name("kafka-commit".to_owned())
        .spawn(move || {
            let serve = || {
                while shared.phase() != Phase::Closing {
                    work.step(&consumer, &shared, interval);
                }
            };
            // Otherwise nothing would be committed any more, in silence.
            if panic::catch_unwind(AssertUnwindSafe(serve)).is_err()
                && let Some(consumer) = consumer.upgrade()
            {
                consumer.context().fail(SourceError::Fatal(
                    "the thread that commits offsets panicked; this is a defect of the worker"
                        .to_owned(),
                ));
            }
        })
}

impl Work {
    /// Waits for something to do, at most until failed commits are to be tried again.
    fn step(&self, consumer: &Weak<GroupConsumer>, shared: &Shared, interval: Duration) {
        crossbeam_channel::select! {
            recv(self.requests) -> request => match request {
                Ok(request) => if let Some(consumer) = consumer.upgrade() {
                    request.serve(&consumer, shared);
                },
                Err(_) => thread::sleep(interval),
            },
            recv(self.wake) -> _ => self.commit_pending(consumer, shared),
            default(interval) => self.commit_pending(consumer, shared),
        }
    }

    fn commit_pending(&self, consumer: &Weak<GroupConsumer>, shared: &Shared) {
        if let Some(consumer) = consumer.upgrade() {
            commit_pending(&consumer, shared);
        }
    }
}

impl Request {
    fn serve(self, consumer: &GroupConsumer, shared: &Shared) {
        // With what was handed over before and is not committed yet: whoever waits is to know of all.
        let held = {
            let mut desk = shared.desk.lock();
            desk.add_pending_commits(&self.offsets);
            desk.take_pending_commits(self.with_leaving)
        };
        let outcome = commit_counted(consumer, shared, &held).map_err(|error| {
            shared.counters.commit_failures.add(held.len() as u64);
            shared.desk.lock().add_pending_commits(&held);
            uncommitted(&error)
        });
        if outcome.is_ok() {
            shared.counters.commits.add(held.len() as u64);
            shared.desk.lock().commit_succeeded(&held);
        }
        // Whoever asked may have given up.
        let _ = self.reply.send(outcome);
    }
}

/// Commits what waits; what the broker does not take waits for the next turn.
fn commit_pending(consumer: &GroupConsumer, shared: &Shared) {
    let pending = shared.desk.lock().take_pending_commits(false);
    let Err(error) = commit_counted(consumer, shared, &pending) else {
        shared.counters.commits.add(pending.len() as u64);
        shared.desk.lock().commit_succeeded(&pending);
        return;
    };
    shared.counters.commit_failures.add(pending.len() as u64);
    tracing::warn!(%error, partitions = pending.len(), "offsets were not committed; trying again");
    shared.desk.lock().add_pending_commits(&pending);
    let error = uncommitted(&error);
    if matches!(error, SourceError::Fatal(_)) {
        consumer.context().fail(error);
    }
}

/// Why offsets were not committed, and whether to try again helps.
fn uncommitted(error: &KafkaError) -> SourceError {
    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::OffsetMetadataTooLarge) {
        return SourceError::Fatal(
            "offsets were not committed: the broker's offset.metadata.max.bytes leaves no room for what a job notes \
             with them; raise it (4096 is Kafka's default) or give the job another name with --job"
                .to_owned(),
        );
    }
    client::source_error("offsets were not committed", error)
}

/// Commits and counts that, once the broker has answered.
fn commit_counted(
    consumer: &GroupConsumer,
    shared: &Shared,
    offsets: &[CommitOffset],
) -> KafkaResult<()> {
    let started = Instant::now();
    let outcome = commit(consumer, offsets);
    if !offsets.is_empty() {
        shared.metrics.commit(outcome.is_ok(), started.elapsed());
    }
    outcome
}

/// Commits offsets and waits for the broker; nothing to commit is no error.
fn commit(consumer: &GroupConsumer, offsets: &[CommitOffset]) -> KafkaResult<()> {
    static SAID: Once = Once::new();
    if offsets.is_empty() {
        return Ok(());
    }
    match commit_saying(consumer, offsets, true) {
        Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::OffsetMetadataTooLarge)) => {
            SAID.call_once(|| {
                tracing::warn!(
                    "the broker's offset.metadata.max.bytes does not let commits say which log they belong to: \
                     whether a topic was recreated is not checked"
                );
            });
            commit_saying(consumer, offsets, false)
        }
        outcome => outcome,
    }
}

/// Commits offsets, with what is known of the logs that they belong to or without it.
fn commit_saying(
    consumer: &GroupConsumer,
    offsets: &[CommitOffset],
    with_logs: bool,
) -> KafkaResult<()> {
    let shared = &consumer.context().shared;
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for offset in offsets {
        let at = Offset::Offset(offset.next_offset);
        let CommitOffset { partition, .. } = offset;
        list.add_partition_offset(&partition.topic, partition.partition, at)?;
        let log = if with_logs {
            shared.desk.lock().log_note(offset)
        } else {
            LogNote::default()
        };
        let metadata = match &shared.job {
            Some(job) => job.metadata(partition, log).unwrap_or_default(),
            None => log.to_metadata(),
        };
        if !metadata.is_empty()
            && let Some(mut element) = list.find_partition(&partition.topic, partition.partition)
        {
            element.set_metadata(metadata);
        }
    }
    match consumer.commit(&list, ClientCommit::Sync) {
        Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => Ok(()),
        answer => answer,
    }
}
