//! The intake: the one reader of a source's events. It puts records in flight as the budget allows
//! and answers changes of assignment. Knows nothing of what a record says.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, SendTimeoutError, Sender};

use super::context::{Context, PipelineError, Wiring, spawn};
use super::throttle::Throttle;
use crate::document::TopicPartition;
use crate::source::{CommitOffset, Events, SourceEvent, SourceRecord};
use crate::telemetry::Outcome;

/// How often the intake looks whether it shall stop while nothing arrives.
const TICK: Duration = Duration::from_millis(100);

/// Records that the ledger holds, and since when.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) records: Vec<SourceRecord>,
    pub(super) at: Instant,
}

/// Shared with the pipeline's main task.
#[derive(Debug, Default)]
pub(super) struct IntakeState {
    /// Set to let no further record in; control events are still answered.
    pub(super) stopping: AtomicBool,
    /// Set once the source is closed: the intake's thread ends.
    pub(super) closed: AtomicBool,
    /// Set by the intake when a bounded source has delivered everything.
    pub(super) ended: AtomicBool,
}

/// The intake's thread.
struct Intake<'a> {
    context: &'a Context,
    state: &'a IntakeState,
    throttle: Option<&'a Throttle>,
    revoke_drain: Duration,
    /// Dropped at the end of delivery, which ends the stages behind it one after the other.
    out: Option<Sender<Admitted>>,
    /// Chunks that were received and not admitted yet.
    waiting: VecDeque<Vec<SourceRecord>>,
    /// What the next stage had no room for yet.
    admitted: Option<Admitted>,
    /// The source has delivered everything, what waits here included.
    delivered_all: bool,
}

impl Intake<'_> {
    /// Reads events until the source is closed.
    fn run(mut self, events: &Events) {
        loop {
            self.pass_on(events);
            if self.delivered_all && self.waiting.is_empty() && self.admitted.is_none() {
                self.delivered_all = false;
                self.out = None;
                self.state.ended.store(true, Ordering::Release);
                self.context.wake.notify_one();
            }
            // While records are held back no more are taken, but a change of assignment does not wait.
            let holds = !self.waiting.is_empty() || self.admitted.is_some();
            if holds {
                let wait = self.throttle.map_or(Duration::ZERO, Throttle::wait);
                if let Some(event) = events.control_within(wait.min(TICK)) {
                    self.handle(event);
                }
            } else if !self.take_event(events) {
                return;
            }
            if self.state.closed.load(Ordering::Acquire) {
                return;
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.state.stopping.load(Ordering::Acquire)
    }

    /// Passes records on as far as budget, throttle and the next stage allow.
    fn pass_on(&mut self, events: &Events) {
        loop {
            if self.is_stopping() || self.out.is_none() {
                // Records that were not admitted are not in the watermark: they are delivered again.
                self.waiting.clear();
            }
            self.send_admitted(TICK);
            if self.admitted.is_none() {
                let Some(chunk) = self.waiting.pop_front() else {
                    if self.is_stopping() {
                        self.out = None;
                    }
                    return;
                };
                if !self.admit(chunk) {
                    return;
                }
            } else if self.context.abandoned.is_cancelled() {
                self.admitted = None;
                self.out = None;
            }
            // A change of assignment must not wait for a store that is away.
            if events.has_control() {
                return;
            }
        }
    }

    /// Gives the next stage at most `within` to take what is admitted.
    fn send_admitted(&mut self, within: Duration) {
        let (Some(out), Some(admitted)) = (&self.out, self.admitted.take()) else {
            return;
        };
        match out.send_timeout(admitted, within) {
            Ok(()) => {}
            Err(SendTimeoutError::Timeout(admitted)) => self.admitted = Some(admitted),
            // The stages behind have ended, which they do only after a failure.
            Err(SendTimeoutError::Disconnected(_)) => self.out = None,
        }
    }

    /// Puts a chunk in flight as far as budget and throttle allow; false when the throttle is exhausted.
    fn admit(&mut self, chunk: Vec<SourceRecord>) -> bool {
        let mut records = still_ours(self.context, chunk);
        if records.is_empty() {
            return true;
        }
        let room = self.context.ledger.wait_for_room(&records, TICK);
        if room == 0 {
            self.waiting.push_front(records);
            return true;
        }
        let allowed = self.throttle.map_or(room, |throttle| throttle.take(room));
        let rest = records.split_off(allowed.min(records.len()));
        let records = self.context.ledger.admit(records);
        self.context.counters.delivered.add(records.len());
        let at = Instant::now();
        self.admitted = (!records.is_empty()).then_some(Admitted { records, at });
        if rest.is_empty() {
            return true;
        }
        self.waiting.push_front(rest);
        self.send_admitted(TICK);
        allowed == room
    }

    /// Takes the next event; false when the source has gone.
    fn take_event(&mut self, events: &Events) -> bool {
        match events.recv_timeout(TICK) {
            Ok(event) => self.handle(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                if !self.state.closed.load(Ordering::Acquire) && !self.is_stopping() {
                    self.context.fail(PipelineError::SourceVanished);
                }
                return false;
            }
        }
        true
    }

    fn handle(&mut self, event: SourceEvent) {
        let context = self.context;
        match event {
            SourceEvent::Records(records) => self.waiting.push_back(records),
            SourceEvent::Assigned {
                partitions,
                generation,
            } => {
                context.ledger.assign(&partitions, generation);
                context.metrics.rebalance("assigned");
            }
            SourceEvent::Revoked { partitions, reply } => {
                let offsets = self.drain(&partitions);
                context.metrics.rebalance("revoked");
                // The source may have given up waiting: its records are then delivered again elsewhere.
                let _ = reply.send(offsets);
            }
            SourceEvent::Lost { partitions } => {
                abandoned(context, context.ledger.lose(&partitions));
                context.metrics.rebalance("lost");
            }
            SourceEvent::Ended => self.delivered_all = true,
            SourceEvent::Failed(error) => context.fail(PipelineError::Source(error)),
        }
    }

    /// Lets what is in flight of `partitions` finish within the bound, and gives their last offsets.
    fn drain(&mut self, partitions: &[TopicPartition]) -> Vec<CommitOffset> {
        let deadline = Instant::now() + self.revoke_drain;
        let context = self.context;
        let _draining = context.drain();
        // What is held here is in flight as well.
        self.send_admitted(self.revoke_drain);
        let left = deadline.saturating_duration_since(Instant::now());
        let (offsets, given_up) = context.ledger.revoke(partitions, left);
        abandoned(context, given_up);
        offsets
    }
}

/// Leaves out what waited while its partition began to leave.
fn still_ours(context: &Context, mut records: Vec<SourceRecord>) -> Vec<SourceRecord> {
    let mut last: Option<(TopicPartition, bool)> = None;
    records.retain(|record| {
        let partition = &record.position.partition;
        match &last {
            Some((known, ours)) if known == partition => *ours,
            _ => {
                let ours = context.source.delivers(partition, record.generation);
                last = Some((partition.clone(), ours));
                ours
            }
        }
    });
    records
}

/// Counts records that are given up with their partition; its next owner gets them again.
fn abandoned(context: &Context, records: usize) {
    if records > 0 {
        tracing::warn!(
            records,
            "what was in flight of partitions that left is abandoned"
        );
        context
            .metrics
            .documents(Outcome::Abandoned, records as u64);
    }
}

/// Starts the intake on its own thread.
pub(super) fn spawn_intake(
    context: &Arc<Context>,
    state: Arc<IntakeState>,
    events: Events,
    records_out: Sender<Admitted>,
    wiring: &Wiring,
) -> Result<std::thread::JoinHandle<()>, PipelineError> {
    let (revoke_drain, throttle) = (wiring.revoke_drain, wiring.throttle.clone());
    spawn(context, "intake".to_owned(), move |context| {
        let intake = Intake {
            context,
            state: &state,
            throttle: throttle.as_deref(),
            revoke_drain,
            out: Some(records_out),
            waiting: VecDeque::new(),
            admitted: None,
            delivered_all: false,
        };
        intake.run(&events);
    })
}
