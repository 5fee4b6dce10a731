//! What the threads of the consumer, its callbacks and its owner share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use rdkafka::consumer::BaseConsumer;

use crate::document::{Generation, TopicPartition};
use crate::kafka::backfill::JobPlan;
use crate::kafka::client::Faults;
use crate::kafka::consumer::assignment::Desk;
use crate::kafka::consumer::check::start_offsets::StartPolicy;
use crate::kafka::consumer::committer::Committer;
use crate::kafka::consumer::counters::Counters;
use crate::source::SourceEvent;
use crate::telemetry::Metrics;

/// Where the source is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(in crate::kafka) enum Phase {
    /// Delivering.
    Running = 0,
    /// Delivering nothing, still a member.
    Stopped = 1,
    /// Leaving the group.
    Closing = 2,
}

/// What the poll thread, its callbacks and the source's owner share.
#[derive(Debug)]
pub(in crate::kafka) struct Shared {
    pub(in crate::kafka) policy: StartPolicy,
    pub(in crate::kafka) revoke_drain: Duration,
    /// What a bounded source reads; `None` for one without end.
    pub(in crate::kafka) job: Option<Arc<JobPlan>>,
    pub(in crate::kafka) desk: Mutex<Desk>,
    pub(in crate::kafka) faults: Faults,
    pub(in crate::kafka) counters: Counters,
    pub(in crate::kafka) metrics: Metrics,
    pub(in crate::kafka) failed: AtomicBool,
    phase: AtomicU8,
}

impl Shared {
    pub(in crate::kafka) fn new(
        policy: StartPolicy,
        revoke_drain: Duration,
        desk: Desk,
        job: Option<Arc<JobPlan>>,
        metrics: Metrics,
    ) -> Self {
        Self {
            policy,
            revoke_drain,
            job,
            desk: Mutex::new(desk),
            faults: Faults::default(),
            counters: Counters::default(),
            metrics,
            failed: AtomicBool::new(false),
            phase: AtomicU8::new(Phase::Running as u8),
        }
    }

    pub(in crate::kafka) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Stopped,
            _ => Phase::Closing,
        }
    }

    /// Goes on to `phase`; there is no way back.
    pub(in crate::kafka) fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// Whether records are delivered at all.
    pub(in crate::kafka) fn delivers(&self) -> bool {
        self.phase() == Phase::Running && !self.failed.load(Ordering::Acquire)
    }
}

/// The callbacks of the consumer.
pub(in crate::kafka) struct Callbacks {
    pub(in crate::kafka) shared: Arc<Shared>,
    /// Changes of assignment and failures.
    pub(in crate::kafka) control: Sender<SourceEvent>,
    /// Both ends of the channel of records, to take back what waits in it.
    pub(in crate::kafka) records: Sender<SourceEvent>,
    pub(in crate::kafka) waiting: Receiver<SourceEvent>,
    pub(in crate::kafka) committer: Committer,
    /// Partitions for the check thread.
    pub(in crate::kafka) checks: Sender<CheckRequest>,
}

pub(in crate::kafka) type GroupConsumer = BaseConsumer<Callbacks>;

/// Partitions whose logs are to be checked, each under its assignment.
pub(in crate::kafka) type CheckRequest = Vec<(TopicPartition, Generation)>;
