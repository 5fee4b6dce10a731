//! The check thread: before anything of a partition is delivered, and after every offset reset, it
//! decides where the partition goes on and compares its log with what was read from it before. The
//! partition is paused meanwhile, and the poll thread polls on. Now and then it also reads again
//! what was committed since, so that a log that was replaced unnoticed is found.

pub(in crate::kafka) mod compare;
pub(in crate::kafka) mod start_offsets;

use std::collections::HashMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rdkafka::consumer::Consumer;

use crate::document::{RecordPosition, TopicPartition};
use crate::kafka::backfill::{self, Agreed, JobPlan};
use crate::kafka::client;
use crate::kafka::consumer::assignment::ToCheck;
use crate::kafka::consumer::assignment::held::Begin;
use crate::kafka::consumer::check::start_offsets::{Compared, Gap, Refusal};
use crate::kafka::consumer::shared::{CheckRequest, GroupConsumer, Phase, Shared};
use crate::kafka::log_identity::LogNote;
use crate::kafka::offsets::{self, LogRange};
use crate::kafka::settings::KafkaSettings;
use crate::source::{CommitOffset, SourceError};
use crate::telemetry::LogLimit;

/// Counts the stored documents whose offsets lie at or beyond these; `None` where that cannot be
/// said. Called on the check thread, which waits for it.
pub type CountStoredBeyond = Arc<dyn Fn(Vec<RecordPosition>) -> Option<u64> + Send + Sync>;

/// Pause before partitions are looked at again whose brokers did not answer.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How often a known record beyond the end is looked for again before the log counts as truncated:
/// a broker that lags behind in what it knows of the cluster may have answered. Nothing is taken on
/// trust for that: if the end grows, the record there is compared.
const END_RECHECKS: u32 = 5;
/// How often it is looked whether committed records are to be read again.
const VERIFY_EVERY: Duration = Duration::from_secs(30);
/// How often the store is asked: between the two questions another group may add to topic and store.
const STORE_ATTEMPTS: u32 = 5;
const STORE_PAUSE: Duration = Duration::from_millis(300);
/// How often the same trouble is spoken of.
const REPEAT_LOG_AFTER: Duration = Duration::from_secs(30);

/// See the module.
pub(in crate::kafka) struct CheckThread {
    /// Those of the live group, also where a bounded job runs: it is asked what that has committed.
    pub(in crate::kafka) settings: KafkaSettings,
    pub(in crate::kafka) shared: Arc<Shared>,
    /// The poll thread is to be the one that drops it, which leaves the group.
    pub(in crate::kafka) consumer: Weak<GroupConsumer>,
    pub(in crate::kafka) requests: Receiver<CheckRequest>,
    pub(in crate::kafka) begins: Sender<Begin>,
    pub(in crate::kafka) count_stored_beyond: Option<CountStoredBeyond>,
}

/// What the thread remembers.
struct State {
    waiting: CheckRequest,
    /// How often a partition was found to end before a known record.
    beyond: HashMap<TopicPartition, u32>,
    verified: Instant,
    said: LogLimit,
}

/// What is known of one partition.
struct Facts {
    asked: ToCheck,
    next: Option<i64>,
    end: Option<i64>,
    log: LogNote,
    /// Whether nobody has committed anything of it, so that only the store can know.
    uncommitted: bool,
}

impl Facts {
    /// A bounded partition of which nothing is left to read.
    fn is_done(&self) -> bool {
        self.next
            .zip(self.end)
            .is_some_and(|(next, end)| next >= end)
    }

    /// Everything that is known of the log, by the commit and by this process.
    fn note(&self) -> LogNote {
        LogNote {
            last: self.log.last.or(self.asked.log.last),
            verified: self.log.verified.or(self.asked.log.last),
        }
    }

    /// The offset that the log reaches at least, if it is the one that was read.
    fn reaches(&self) -> Option<i64> {
        let known = self.note().records().map(|record| record.offset + 1).max();
        self.next.max(known)
    }

    fn begin(self, at: i64) -> Begin {
        Begin {
            partition: self.asked.partition,
            generation: self.asked.generation,
            at,
            next: self.next,
            end: self.end,
            log: self.log,
        }
    }
}

impl CheckThread {
    /// Starts the thread; it ends with the source.
    pub(in crate::kafka) fn spawn(self) -> std::io::Result<thread::JoinHandle<()>> {
        thread::Builder::new()
            .name("kafka-check".to_owned())
            .spawn(move || {
                let consumer = Weak::clone(&self.consumer);
                // Otherwise what waits for it would stay paused, in silence.
                if panic::catch_unwind(AssertUnwindSafe(|| self.run())).is_err()
                    && let Some(consumer) = consumer.upgrade()
                {
                    consumer.context().fail(SourceError::Fatal(
                        "the thread that checks logs panicked; this is a defect of the worker"
                            .to_owned(),
                    ));
                }
            })
    }

    fn run(self) {
        let mut state = State {
            waiting: Vec::new(),
            beyond: HashMap::new(),
            verified: Instant::now(),
            said: LogLimit::new(REPEAT_LOG_AFTER),
        };
        loop {
            let wait = if state.waiting.is_empty() {
                VERIFY_EVERY.saturating_sub(state.verified.elapsed())
            } else {
                RETRY_PAUSE
            };
            match self.requests.recv_timeout(wait) {
                Ok(request) => state.waiting.extend(request),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            state.waiting.extend(self.requests.try_iter().flatten());
            if self.shared.phase() == Phase::Closing {
                return;
            }
            if !self.shared.delivers() {
                state.waiting.clear();
                state.verified = Instant::now();
                continue;
            }
            let idle = state.waiting.is_empty();
            let outcome = if idle && state.verified.elapsed() >= VERIFY_EVERY {
                state.verified = Instant::now();
                self.verify()
            } else {
                Ok(())
            };
            match outcome.and_then(|()| self.check(&mut state)) {
                Ok(()) => {}
                Err(error @ SourceError::Fatal(_)) => {
                    state.waiting.clear();
                    if let Some(consumer) = self.consumer.upgrade() {
                        consumer.context().fail(error);
                    }
                }
                Err(SourceError::Transient(reason)) => {
                    if state.said.is_due(Instant::now()) {
                        tracing::warn!(reason, "where to go on is not known yet; trying again");
                    }
                }
            }
        }
    }

    /// Checks what waits; what the brokers do not answer waits on.
    fn check(&self, state: &mut State) -> Result<(), SourceError> {
        let asked = self.shared.desk.lock().to_check(&state.waiting);
        state.waiting = asked
            .iter()
            .map(|asked| (asked.partition.clone(), asked.generation))
            .collect();
        if asked.is_empty() {
            return Ok(());
        }
        let Some(member) = self.consumer.upgrade() else {
            return Ok(());
        };
        let (done, reading): (Vec<_>, Vec<_>) = self
            .facts(&member, asked)?
            .into_iter()
            .partition(Facts::is_done);
        for facts in done {
            let at = facts.next.unwrap_or_default();
            self.let_begin(facts.begin(at), state);
        }
        let partitions: Vec<TopicPartition> = reading
            .iter()
            .map(|facts| facts.asked.partition.clone())
            .collect();
        let ranges = offsets::ranges(&*member, &partitions);
        self.refuse_recreated(&member, &reading, &ranges)?;
        // Nothing below needs it, and the poll thread is to be the one that drops it last.
        drop(member);
        let within = |facts: &Facts| {
            let range = ranges.get(&facts.asked.partition).copied();
            range.map(|range| compare::within(facts.note(), range.low, range.high))
        };
        let places = reading.iter().filter_map(|facts| {
            let records = within(facts)?;
            Some(records.map(|record| (facts.asked.partition.clone(), record.offset)))
        });
        let log = compare::read(&self.settings, places.flatten().collect())?;
        let mut refusals = Vec::new();
        for facts in reading {
            let partition = facts.asked.partition.clone();
            let Some(range) = ranges.get(&partition).copied() else {
                continue;
            };
            let known = compare::within(facts.note(), range.low, range.high);
            let Some(compared) = log.compare(&partition, known) else {
                continue;
            };
            match self.decide(&facts, range, compared, state) {
                Some(Ok(at)) => self.let_begin(facts.begin(at), state),
                Some(Err(refusal)) => refusals.push(refusal),
                None => {}
            }
        }
        if refusals.is_empty() {
            Ok(())
        } else {
            Err(start_offsets::refuse(&refusals, self.shared.policy))
        }
    }

    /// Where each partition is to go on, as far as the group or this assignment knows.
    fn facts(
        &self,
        member: &GroupConsumer,
        asked: Vec<ToCheck>,
    ) -> Result<Vec<Facts>, SourceError> {
        let new: Vec<TopicPartition> = asked
            .iter()
            .filter(|asked| asked.is_new)
            .map(|asked| asked.partition.clone())
            .collect();
        let unread =
            |error| client::source_error("the group's committed offsets cannot be read", &error);
        let mut agreed = HashMap::new();
        let commits = match &self.shared.job {
            None => offsets::commits(member, &new).map_err(unread)?,
            Some(job) => {
                if !new.is_empty() {
                    agreed = self.agree(member, job, &asked)?;
                }
                // Where the job has done nothing of a partition, the live group may have.
                let new = agreed.values().filter(|agreed: &&Agreed| agreed.untouched);
                let new: Vec<_> = new.map(|agreed| agreed.partition.clone()).collect();
                if new.is_empty() || self.count_stored_beyond.is_none() {
                    HashMap::new()
                } else {
                    let live = compare::consumer(&self.settings)?;
                    offsets::commits(&live, &new).map_err(unread)?
                }
            }
        };
        let facts = |asked: ToCheck| {
            let commit = commits.get(&asked.partition).copied();
            let (next, end, log, uncommitted) = match agreed.remove(&asked.partition) {
                _ if !asked.is_new => (asked.next, None, asked.log, asked.next.is_none()),
                Some(agreed) => {
                    let uncommitted = agreed.untouched && commit.is_none();
                    (Some(agreed.next), Some(agreed.end), agreed.log, uncommitted)
                }
                None => {
                    let (next, log) = commit.unzip();
                    (next, None, log.unwrap_or_default(), next.is_none())
                }
            };
            Facts {
                asked,
                next,
                end,
                log,
                uncommitted,
            }
        };
        Ok(asked.into_iter().map(facts).collect())
    }

    /// What the workers of a bounded job agree upon for partitions that are new here.
    fn agree(
        &self,
        member: &GroupConsumer,
        job: &JobPlan,
        asked: &[ToCheck],
    ) -> Result<HashMap<TopicPartition, Agreed>, SourceError> {
        let new = || asked.iter().filter(|asked| asked.is_new);
        let partitions: Vec<_> = new().map(|asked| asked.partition.clone()).collect();
        let agreed = backfill::agree(member, job, &partitions)?;
        // By way of the commit thread: a partition that leaves meanwhile is left out.
        let spans: Vec<CommitOffset> = agreed
            .iter()
            .filter(|agreed| agreed.is_new)
            .filter_map(|agreed| {
                let asked = new().find(|asked| asked.partition == agreed.partition)?;
                Some(CommitOffset {
                    partition: agreed.partition.clone(),
                    next_offset: agreed.next,
                    generation: asked.generation,
                })
            })
            .collect();
        if !spans.is_empty()
            && let Err(error) = member.context().committer.commit(spans, false)
        {
            tracing::warn!(%error, "the bounds of the backfill are written with the first commit only");
        }
        let by_partition = |agreed: Agreed| (agreed.partition.clone(), agreed);
        Ok(agreed.into_iter().map(by_partition).collect())
    }

    /// Decides about one partition; `None` where it is to be looked at again.
    fn decide(
        &self,
        facts: &Facts,
        range: LogRange,
        compared: Compared,
        state: &mut State,
    ) -> Option<Result<i64, Refusal>> {
        let partition = &facts.asked.partition;
        if compared == Compared::Unknown || compared == Compared::Same {
            let reaches = facts.reaches().filter(|reaches| *reaches > range.high);
            if let Some(wanted) = reaches {
                let beyond = state.beyond.entry(partition.clone()).or_insert(0);
                *beyond += 1;
                if facts.note() != LogNote::default() && *beyond <= END_RECHECKS {
                    return None;
                }
                return Some(Err(Refusal::Gap(Gap {
                    partition: partition.clone(),
                    wanted,
                    log: range,
                })));
            }
        }
        state.beyond.remove(partition);
        let decided =
            start_offsets::decide(partition, facts.next, range, compared, self.shared.policy);
        Some(decided.map(|(at, gap)| {
            if let Some(gap) = gap {
                tracing::warn!(
                    partition = %gap.partition,
                    wanted = gap.wanted,
                    begins = gap.log.low,
                    ends = gap.log.high,
                    "records are gone and the gap is accepted; going on at the oldest record"
                );
            }
            at
        }))
    }

    /// Asks the store about partitions that nobody has committed anything of: Kafka forgets the
    /// group's offsets with a topic, and what is stored of its earlier life would win over what
    /// comes, in silence. Where nobody can say, nothing is rejected.
    fn refuse_recreated(
        &self,
        member: &GroupConsumer,
        reading: &[Facts],
        ranges: &HashMap<TopicPartition, LogRange>,
    ) -> Result<(), SourceError> {
        let uncommitted = reading.iter().filter(|facts| facts.uncommitted);
        let partitions: Vec<TopicPartition> = uncommitted
            .map(|facts| facts.asked.partition.clone())
            .filter(|partition| ranges.contains_key(partition))
            .collect();
        let Some(count) = self
            .count_stored_beyond
            .as_ref()
            .filter(|_| !partitions.is_empty())
        else {
            return Ok(());
        };
        let ends = |ranges: &HashMap<TopicPartition, LogRange>| -> Vec<RecordPosition> {
            let end = |partition: &TopicPartition| {
                Some(RecordPosition {
                    partition: partition.clone(),
                    offset: ranges.get(partition)?.high,
                })
            };
            partitions.iter().filter_map(end).collect()
        };
        let mut found = count(ends(ranges));
        for _ in 1..STORE_ATTEMPTS {
            if found.is_none_or(|found| found == 0) {
                break;
            }
            thread::sleep(STORE_PAUSE);
            let ends = ends(&offsets::ranges(member, &partitions));
            if ends.len() < partitions.len() {
                return Err(SourceError::Transient(
                    "the ends of new partitions are not known".to_owned(),
                ));
            }
            found = count(ends);
        }
        match found {
            Some(0) => Ok(()),
            Some(documents) => {
                let mut topics: Vec<&str> = partitions.iter().map(|p| &*p.topic).collect();
                topics.sort_unstable();
                topics.dedup();
                let refusal = Refusal::Recreated(topics.join(", "), documents);
                Err(start_offsets::refuse(&[refusal], self.shared.policy))
            }
            None => {
                tracing::warn!(
                    "whether the store holds documents of an earlier topic of this name is not known"
                );
                Ok(())
            }
        }
    }

    fn let_begin(&self, begin: Begin, state: &mut State) {
        state
            .waiting
            .retain(|(partition, _)| *partition != begin.partition);
        // The poll thread has ended otherwise.
        let _ = self.begins.send(begin);
    }

    /// Reads again what was committed since it was read again last.
    fn verify(&self) -> Result<(), SourceError> {
        let unverified = self.shared.desk.lock().unverified();
        if unverified.is_empty() {
            return Ok(());
        }
        let partitions: Vec<TopicPartition> = unverified
            .iter()
            .map(|(partition, ..)| partition.clone())
            .collect();
        let Some(member) = self.consumer.upgrade() else {
            return Ok(());
        };
        let ranges = offsets::ranges(&*member, &partitions);
        drop(member);
        let within = |partition: &TopicPartition, log: LogNote| {
            let range = ranges.get(partition).copied();
            range.map(|range| compare::within(log, range.low, range.high))
        };
        let places = unverified.iter().filter_map(|(partition, _, log)| {
            let records = within(partition, *log)?;
            Some(records.map(|record| (partition.clone(), record.offset)))
        });
        let read = compare::read(&self.settings, places.flatten().collect())?;
        let mut refusals = Vec::new();
        for (partition, generation, log) in unverified {
            let ends = ranges.get(&partition).map_or(0, |range| range.high);
            if log.last.is_none_or(|last| last.offset >= ends) {
                continue;
            }
            let compared =
                within(&partition, log).and_then(|known| read.compare(&partition, known));
            match (compared, log.last) {
                (Some(Compared::Another(offset)), _) => {
                    refusals.push(Refusal::Replaced(partition, offset));
                }
                (Some(Compared::Same | Compared::Unknown), Some(last)) => {
                    self.shared.desk.lock().verify(&partition, generation, last);
                }
                (None, _) | (_, None) => {}
            }
        }
        if refusals.is_empty() {
            Ok(())
        } else {
            Err(start_offsets::refuse(&refusals, self.shared.policy))
        }
    }
}
