//! The Kafka source: one consumer of a group behind [`Source`]. Starts the poll thread, commits
//! what is still held, and closes within a bound.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use parking_lot::Mutex;
use rdkafka::consumer::Consumer;

use crate::document::{Generation, TopicPartition};
use crate::kafka::backfill::{JobPlan, RangeJob, RangeProgress, Watch};
use crate::kafka::client;
use crate::kafka::consumer::assignment::{ChunkBounds, Desk};
use crate::kafka::consumer::check::start_offsets::StartPolicy;
use crate::kafka::consumer::check::{CheckThread, CountStoredBeyond};
use crate::kafka::consumer::committer::{self, Committer};
use crate::kafka::consumer::counters::SourceCounters;
use crate::kafka::consumer::damage::Search;
use crate::kafka::consumer::poll::{PollThread, QUEUE_CHUNKS};
use crate::kafka::consumer::progress::{ProgressThread, SourceStatus};
use crate::kafka::consumer::shared::{Callbacks, CheckRequest, GroupConsumer, Phase, Shared};
use crate::kafka::consumer::{commit_thread, rebalance};
use crate::kafka::settings::KafkaSettings;
use crate::source::{CommitMode, CommitOffset, Events, Source, SourceError};
use crate::telemetry::Metrics;

/// Most records of one chunk, however much the queue may hold: a chunk is the unit that the
/// pipeline takes at once.
const MAX_CHUNK_RECORDS: usize = 1024;
/// How long the progress thread gives brokers to respond.
const RESPOND_WITHIN_MS: u64 = 5_000;
const WATCH_TICK: Duration = Duration::from_millis(10);
/// How long leaving the group may take before the thread is left behind.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// What the check thread asks beside the group's member.
struct Beside {
    /// Settings of the live group.
    live: KafkaSettings,
    stored: Option<CountStoredBeyond>,
    metrics: Metrics,
}

impl Beside {
    fn of(live: &KafkaSettings, stored: Option<CountStoredBeyond>) -> Result<Self, SourceError> {
        let metrics = Metrics::new().map_err(|error| SourceError::Fatal(error.to_string()))?;
        Ok(Self {
            live: live.clone(),
            stored,
            metrics,
        })
    }
}

/// A member of a consumer group.
pub struct KafkaSource {
    shared: Arc<Shared>,
    committer: Committer,
    events: Events,
    status: Arc<Mutex<SourceStatus>>,
    checks: Sender<CheckRequest>,
    /// Disconnected once the poll thread has ended.
    ended: Receiver<()>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
    /// Of a bounded source: looks at the whole job.
    watch: Mutex<Option<thread::JoinHandle<()>>>,
}

impl KafkaSource {
    /// Connects, joins the group and starts to deliver. Blocks until a broker has answered, at
    /// most `kafka.connect_timeout_ms`.
    ///
    /// # Errors
    /// Fatal where no broker answers in time or a setting or credential is refused.
    pub fn start(settings: &KafkaSettings) -> Result<Self, SourceError> {
        Self::start_with(settings, None, Beside::of(settings, None)?)
    }

    /// As [`KafkaSource::start`], for documents that go to a store: partitions of which the group
    /// has committed nothing begin only where `stored` counts nothing from beyond their ends. Commits
    /// are counted in `metrics`.
    ///
    /// # Errors
    /// As [`KafkaSource::start`].
    pub fn start_for_store(
        settings: &KafkaSettings,
        stored: CountStoredBeyond,
        metrics: Metrics,
    ) -> Result<Self, SourceError> {
        let beside = Beside {
            live: settings.clone(),
            stored: Some(stored),
            metrics,
        };
        Self::start_with(settings, None, beside)
    }

    /// Starts a worker of a bounded job in a group of its own: the group of `settings` is left
    /// alone. The source says that it has ended once everything of the job is committed, by
    /// whichever of its workers. `None` where `job.once` is set and the job is finished already.
    ///
    /// # Errors
    /// As [`KafkaSource::start`], and where the range names what does not exist.
    pub fn start_range(
        settings: &KafkaSettings,
        job: &RangeJob,
        stored: Option<CountStoredBeyond>,
    ) -> Result<Option<Self>, SourceError> {
        RangeStart::open(settings, job)?.start(stored)
    }

    /// How far a bounded job is, over all its workers; `None` for a source without end.
    pub fn range_progress(&self) -> Option<RangeProgress> {
        self.shared.job.as_ref().map(|job| job.progress())
    }

    fn start_with(
        settings: &KafkaSettings,
        job: Option<Arc<JobPlan>>,
        beside: Beside,
    ) -> Result<Self, SourceError> {
        let policy = StartPolicy {
            on_missing: settings.on_missing_offset,
            accept_gap: settings.accept_gap,
            bounded: job.is_some(),
        };
        let desk = Desk::new(ChunkBounds {
            records: (settings.queue_records / QUEUE_CHUNKS).clamp(1, MAX_CHUNK_RECORDS),
            bytes: (settings.queue_bytes / QUEUE_CHUNKS).max(1),
        });
        let drain = settings.revoke_drain();
        let is_bounded = job.is_some();
        let shared = Arc::new(Shared::new(policy, drain, desk, job, beside.metrics));
        let (control, announced) = rebalance::control();
        // One place more, for the end of a bounded source.
        let (records, delivered) = bounded(QUEUE_CHUNKS + 1);
        let (committer, commits) = committer::channel();
        let (checks, requests) = unbounded();
        let (begins, checked) = unbounded();
        let callbacks = Callbacks {
            shared: Arc::clone(&shared),
            control,
            records: records.clone(),
            waiting: delivered.clone(),
            committer: committer.clone(),
            checks: checks.clone(),
        };
        let config = settings.consumer_config()?;
        let consumer: GroupConsumer = config
            .create_with_context(callbacks)
            .map_err(|error| client::source_error("the kafka consumer cannot be set up", &error))?;
        connect(&consumer, &shared, settings)?;
        consumer
            .subscribe(&settings.topics())
            .map_err(|error| client::source_error("the topics cannot be subscribed", &error))?;

        let consumer = Arc::new(consumer);
        let no_thread = |error| SourceError::Fatal(format!("a thread cannot be started: {error}"));
        commit_thread::spawn(
            commits,
            Arc::downgrade(&consumer),
            Arc::clone(&shared),
            settings.commit_interval(),
        )
        .map_err(no_thread)?;
        let check = CheckThread {
            settings: beside.live,
            shared: Arc::clone(&shared),
            consumer: Arc::downgrade(&consumer),
            requests,
            begins,
            count_stored_beyond: beside.stored,
        };
        check.spawn().map_err(no_thread)?;
        let status: Arc<Mutex<SourceStatus>> = Arc::default();
        // A bounded job is watched as a whole.
        if !is_bounded {
            let progress = ProgressThread {
                settings: KafkaSettings {
                    connect_timeout_ms: settings.connect_timeout_ms.min(RESPOND_WITHIN_MS),
                    ..settings.clone()
                },
                shared: Arc::clone(&shared),
                consumer: Arc::downgrade(&consumer),
                status: Arc::clone(&status),
            };
            progress.spawn()?;
        }
        let search = Search::new(settings.clone(), Arc::clone(&status));
        let poll = PollThread::new(consumer, Arc::clone(&shared), records, checked, search);
        let (alive, ended) = bounded(1);
        let thread = thread::Builder::new()
            .name("kafka-poll".to_owned())
            .spawn(move || {
                poll.run();
                drop(alive);
            })
            .map_err(no_thread)?;
        Ok(Self {
            shared,
            committer,
            events: Events::new(announced, delivered),
            status,
            checks,
            ended,
            thread: Mutex::new(Some(thread)),
            watch: Mutex::default(),
        })
    }

    /// What was counted so far.
    pub fn counters(&self) -> SourceCounters {
        self.shared.counters.snapshot()
    }

    /// How the source does, as it was looked at last; nothing for a bounded source.
    pub fn status(&self) -> SourceStatus {
        self.status.lock().clone()
    }

    /// The partitions that are held now.
    pub fn partitions(&self) -> Vec<TopicPartition> {
        self.shared.desk.lock().partitions()
    }
}

/// A worker of a bounded job before it joins the job's group: what has been done is known, and nothing
/// is committed.
pub struct RangeStart {
    live: KafkaSettings,
    settings: KafkaSettings,
    watch: Watch,
    once: bool,
}

impl RangeStart {
    /// Asks what the job is and how far it has come; the group of `settings` is the live one.
    ///
    /// # Errors
    /// As [`KafkaSource::start_range`].
    pub fn open(settings: &KafkaSettings, job: &RangeJob) -> Result<Self, SourceError> {
        let own = job.settings(settings);
        Ok(Self {
            watch: Watch::open(&own, settings, job)?,
            live: settings.clone(),
            settings: own,
            once: job.once,
        })
    }

    /// The job's own group.
    pub fn group(&self) -> &str {
        &self.settings.group_id
    }

    /// Whether the job relies on what an earlier worker of it has done: it continues, or a finished
    /// one is left alone.
    pub fn relies_on_earlier_work(&self) -> bool {
        let plan = self.watch.plan();
        plan.progress().done_at_start > 0 || self.is_left_alone()
    }

    /// Whether the job is finished already and that is enough.
    pub fn is_left_alone(&self) -> bool {
        self.once && self.watch.plan().was_finished()
    }

    /// Joins the group and starts to deliver; `None` where a finished job is left alone. `stored` is
    /// asked as [`KafkaSource::start_for_store`] does.
    ///
    /// # Errors
    /// As [`KafkaSource::start`].
    pub fn start(
        self,
        stored: Option<CountStoredBeyond>,
    ) -> Result<Option<KafkaSource>, SourceError> {
        if self.is_left_alone() {
            return Ok(None);
        }
        let beside = Beside::of(&self.live, stored)?;
        let source = KafkaSource::start_with(&self.settings, Some(self.watch.plan()), beside)?;
        let watching = self
            .watch
            .spawn(Arc::clone(&source.shared), source.checks.clone())
            .map_err(|error| SourceError::Fatal(format!("a thread cannot be started: {error}")))?;
        *source.watch.lock() = Some(watching);
        Ok(Some(source))
    }
}

impl Source for KafkaSource {
    fn events(&self) -> Events {
        self.events.clone()
    }

    fn delivers(&self, partition: &TopicPartition, generation: Generation) -> bool {
        self.shared.desk.lock().delivers(partition, generation)
    }

    fn commit(&self, offsets: &[CommitOffset], mode: CommitMode) -> Result<(), SourceError> {
        match mode {
            CommitMode::Background => {
                self.shared.desk.lock().add_pending_commits(offsets);
                self.committer.wake();
                Ok(())
            }
            CommitMode::Wait => self.committer.commit(offsets.to_vec(), false),
        }
    }

    fn stop(&self) {
        self.shared.advance(Phase::Stopped);
    }

    fn close(&self) {
        self.shared.advance(Phase::Closing);
        self.committer.wake();
        let Some(thread) = self.thread.lock().take() else {
            return;
        };
        // The other end is dropped, never sent on: this waits for the thread or for the bound.
        let ended = self.ended.recv_timeout(CLOSE_WITHIN);
        if ended == Err(RecvTimeoutError::Disconnected) {
            if thread.join().is_err() {
                tracing::error!("the poll thread ended in a panic");
            }
        } else {
            tracing::warn!("the group was not left in time; its session will expire");
        }
        if let Some(watch) = self.watch.lock().take() {
            // It looks once more, so that what was committed last is accounted for.
            let deadline = Instant::now() + CLOSE_WITHIN;
            while !watch.is_finished() && Instant::now() < deadline {
                thread::sleep(WATCH_TICK);
            }
        }
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.close();
    }
}

/// Waits until a broker answers, so that a wrong address or credential is said at the start.
fn connect(
    consumer: &GroupConsumer,
    shared: &Shared,
    settings: &KafkaSettings,
) -> Result<(), SourceError> {
    let topics = settings.topics();
    client::metadata(consumer, topics.first().copied(), &shared.faults, settings).map(drop)
}
