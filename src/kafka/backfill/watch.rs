//! Watches a job from beside its member: how far all workers are, when everything is done, and
//! whether a partition that delivers nothing more has reached its end in a gap.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::document::{Generation, TopicPartition};
use crate::kafka::backfill::agree::JobPlan;
use crate::kafka::backfill::{RangeJob, ask};
use crate::kafka::client;
use crate::kafka::consumer::shared::{CheckRequest, Phase, Shared};
use crate::kafka::inspect::{Inspector, patiently};
use crate::kafka::settings::KafkaSettings;
use crate::source::SourceError;
use crate::telemetry::LogLimit;

/// How often the group's commits are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(100);
/// How long a partition delivers nothing before its end is looked for in a gap; it doubles.
const IDLE: Duration = Duration::from_secs(2);
const LONGEST_IDLE: Duration = Duration::from_secs(30);
/// How often the same trouble is spoken of.
const REPEAT_LOG_AFTER: Duration = Duration::from_secs(30);

/// Asks about a job.
pub(crate) struct Watch {
    inspector: Inspector,
    settings: KafkaSettings,
    partitions: Vec<TopicPartition>,
    plan: Arc<JobPlan>,
    /// Where the live group is asked for, where deletions behind the range are read.
    live: Option<Live>,
    said: LogLimit,
}

/// The live group, as the job looks at it.
struct Live {
    inspector: Inspector,
    /// Partitions behind whose ranges deletions are read.
    partitions: Vec<TopicPartition>,
}

/// A partition that has delivered nothing for a while.
struct Idle {
    next: i64,
    since: Instant,
    patience: Duration,
}

impl Watch {
    /// Decides what the job is: asks for the offsets of the range and for what was done before.
    /// `settings` are those of the job's consumer, `live` those of the live group.
    ///
    /// # Errors
    /// When a topic does not exist, the range names what does not exist, or nobody answers.
    pub(crate) fn open(
        settings: &KafkaSettings,
        live: &KafkaSettings,
        job: &RangeJob,
    ) -> Result<Self, SourceError> {
        let inspector = Inspector::new(settings)?;
        let mut partitions = Vec::new();
        for topic in settings.topics() {
            let numbers = inspector.partitions(topic)?;
            if numbers.is_empty() {
                return Err(SourceError::Fatal(format!(
                    "the topic {topic} does not exist, so that there is nothing to read (kafka.topic)"
                )));
            }
            partitions.extend(numbers.into_iter().map(|n| TopicPartition::new(topic, n)));
        }
        let ask = || {
            let fresh = ask::spans(&inspector.consumer, &job.range, &partitions)?;
            let states = ask::states(&inspector.consumer, &partitions).map_err(|error| {
                client::source_error(
                    "the committed offsets of the backfill cannot be read",
                    &error,
                )
            })?;
            Ok((fresh, states))
        };
        let (fresh, states) = patiently(settings.connect_timeout(), ask)?;
        let live = match job.later_deletions {
            true => Some(Live::open(live, job.read_behind(&fresh))?),
            false => None,
        };
        let (live, positions) = live.unzip();
        let run = uuid::Uuid::new_v4().simple().to_string();
        let plan = JobPlan::new(settings.group_id.clone(), run, fresh, positions, &states);
        Ok(Self {
            inspector,
            settings: settings.clone(),
            partitions,
            plan: Arc::new(plan),
            live,
            said: LogLimit::new(REPEAT_LOG_AFTER),
        })
    }

    /// The job as this worker sees it.
    pub(crate) fn plan(&self) -> Arc<JobPlan> {
        Arc::clone(&self.plan)
    }

    /// Watches on a thread of its own until the source closes.
    pub(crate) fn spawn(
        mut self,
        shared: Arc<Shared>,
        checks: Sender<CheckRequest>,
    ) -> std::io::Result<thread::JoinHandle<()>> {
        thread::Builder::new()
            .name("kafka-backfill".to_owned())
            .spawn(move || {
                let mut idle = HashMap::new();
                let mut looked: Option<Instant> = None;
                while shared.phase() != Phase::Closing {
                    thread::sleep(TICK);
                    if looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                        self.look();
                        looked = Some(Instant::now());
                        self.read_behind(&shared, &checks);
                    }
                    self.look_for_gaps(&shared, &mut idle);
                }
                // What was committed last, on the way out, belongs to the account of this run.
                if !self.plan.is_finished() {
                    self.look();
                }
            })
    }

    fn look(&mut self) {
        match ask::states(&self.inspector.consumer, &self.partitions) {
            Ok(states) => self.plan.note_states(&states),
            Err(error) => self.say(
                &error,
                "how far the backfill is cannot be asked for; trying again",
            ),
        }
    }

    /// Once all ranges are done, reads the deletions behind those that this worker has.
    fn read_behind(&mut self, shared: &Shared, checks: &Sender<CheckRequest>) {
        if !self.plan.ranges_are_done() {
            return;
        }
        let undecided: Vec<TopicPartition> = {
            let ended = shared.desk.lock().ended().into_iter();
            ended
                .filter(|partition| self.plan.is_undecided(partition))
                .collect()
        };
        if undecided.is_empty() {
            return;
        }
        match self.live.as_ref().map(Live::positions) {
            Some(Ok(positions)) => self.plan.note_live(positions),
            Some(Err(error)) => {
                self.say(
                    &error,
                    "where the live group is cannot be asked for; trying again",
                );
                return;
            }
            None => {}
        }
        let mut request = CheckRequest::new();
        let mut desk = shared.desk.lock();
        for partition in undecided {
            // It may have left and come back while the live group was asked.
            if desk.has_ended(&partition)
                && let Some(last) = self.plan.decide_deletions(&partition)
            {
                request.extend(desk.read_on(&partition, last));
            }
        }
        drop(desk);
        // The check thread has ended otherwise, and the source with it.
        let _ = checks.send(request);
    }

    /// Speaks of the same trouble now and then only.
    fn say(&self, error: &dyn std::fmt::Display, what: &str) {
        if self.said.is_due(Instant::now()) {
            tracing::warn!(%error, "{what}");
        }
    }

    /// Finds partitions whose last offsets are a gap: nobody will deliver them.
    fn look_for_gaps(&self, shared: &Shared, idle: &mut HashMap<TopicPartition, Idle>) {
        let waiting = waiting(shared);
        idle.retain(|partition, _| waiting.iter().any(|(held, ..)| held == partition));
        for (partition, generation, next, end) in waiting {
            let now = Instant::now();
            let fresh = || Idle {
                next,
                since: now,
                patience: IDLE,
            };
            let seen = idle.entry(partition.clone()).or_insert_with(fresh);
            if seen.next != next {
                *seen = fresh();
            }
            if seen.since.elapsed() < seen.patience {
                continue;
            }
            match ask::is_gap(
                &self.settings,
                &partition,
                next,
                end,
                shared.policy.accept_gap,
            ) {
                Ok(true) => {
                    tracing::info!(%partition, next, end, "nothing stands below the end of the range any more");
                    shared.desk.lock().reach_end(&partition, generation, next);
                }
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, %partition, "looking for the end of a range"),
            }
            seen.since = Instant::now();
            seen.patience = (seen.patience * 2).min(LONGEST_IDLE);
        }
    }
}

impl Live {
    fn open(
        settings: &KafkaSettings,
        partitions: Vec<TopicPartition>,
    ) -> Result<(Self, HashMap<TopicPartition, i64>), SourceError> {
        let live = Self {
            inspector: Inspector::new(settings)?,
            partitions,
        };
        let positions = patiently(settings.connect_timeout(), || live.positions())?;
        Ok((live, positions))
    }

    fn positions(&self) -> Result<HashMap<TopicPartition, i64>, SourceError> {
        ask::live_positions(&self.inspector.consumer, &self.partitions)
    }
}

/// Partitions that have not reached their end, with what comes next; none while the pipeline holds
/// the source back.
fn waiting(shared: &Shared) -> Vec<(TopicPartition, Generation, i64, i64)> {
    let desk = shared.desk.lock();
    if desk.paused {
        return Vec::new();
    }
    desk.all()
        .filter(|held| !held.ended && !held.leaving && !held.checking)
        .filter_map(|held| {
            Some((
                held.partition.clone(),
                held.generation,
                held.next?,
                held.end?,
            ))
        })
        .collect()
}
