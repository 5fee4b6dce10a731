//! The intake: the one reader of a source's events. It puts records in flight as the budget allows
//! and answers changes of assignment. Knows nothing of what a record says.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::{Context, PipelineError, Throttle, Wiring, spawn};
use crate::document::TopicPartition;
use crate::source::{SourceEvent, SourceRecord};

/// How often the intake looks whether it shall stop while nothing arrives.
const TICK: Duration = Duration::from_millis(100);

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

/// Records that were received and not admitted yet.
#[derive(Default)]
struct Waiting {
    chunks: VecDeque<Vec<SourceRecord>>,
    /// The source has delivered everything, the chunks included.
    ended: bool,
}

/// Reads events until the source is closed.
pub(super) fn run_intake(
    context: &Context,
    state: &IntakeState,
    events: &Receiver<SourceEvent>,
    records_out: Sender<Vec<SourceRecord>>,
    revoke_drain: Duration,
    throttle: Option<&Throttle>,
) {
    // Dropped at the end of delivery, which ends the stages behind it one after the other.
    let mut records_out = Some(records_out);
    let mut waiting = Waiting::default();
    loop {
        if state.stopping.load(Ordering::Acquire) {
            records_out = None;
        }
        match &records_out {
            Some(out) => {
                if !admit_waiting(context, state, &mut waiting, out, throttle) {
                    records_out = None;
                }
            }
            None => waiting.chunks.clear(),
        }
        if waiting.ended && waiting.chunks.is_empty() {
            waiting.ended = false;
            records_out = None;
            state.ended.store(true, Ordering::Release);
            context.wake.notify_one();
        }
        // While the throttle holds records back no more are taken, but a revocation does not wait.
        if !waiting.chunks.is_empty() && !context.source.is_revoking() {
            let wait = throttle.map_or(TICK, |throttle| throttle.wait().min(TICK));
            std::thread::sleep(wait);
        } else if !take_event(context, state, events, &mut waiting, revoke_drain) {
            return;
        }
        if state.closed.load(Ordering::Acquire) {
            return;
        }
    }
}

/// Takes the next event; false when the source has gone.
fn take_event(
    context: &Context,
    state: &IntakeState,
    events: &Receiver<SourceEvent>,
    waiting: &mut Waiting,
    revoke_drain: Duration,
) -> bool {
    match events.recv_timeout(TICK) {
        Ok(SourceEvent::Records(records)) => waiting.chunks.push_back(records),
        Ok(SourceEvent::Assigned {
            partitions,
            generation,
        }) => {
            tracing::info!(partitions = %listed(&partitions), generation = generation.0, "partitions assigned");
            context.ledger.assign(&partitions, generation);
            context.metrics.rebalance("assigned");
        }
        Ok(SourceEvent::Revoked { partitions, reply }) => {
            let offsets = {
                let _draining = context.drain();
                context.ledger.revoke(&partitions, revoke_drain)
            };
            tracing::info!(partitions = %listed(&partitions), "partitions revoked");
            context.metrics.rebalance("revoked");
            gone(context, &partitions);
            // The source may have given up waiting: its records are then delivered again elsewhere.
            let _ = reply.send(offsets);
        }
        Ok(SourceEvent::Lost { partitions }) => {
            tracing::warn!(partitions = %listed(&partitions), "partitions lost; what is in flight is abandoned");
            context.ledger.lose(&partitions);
            context.metrics.rebalance("lost");
            gone(context, &partitions);
        }
        Ok(SourceEvent::Ended) => waiting.ended = true,
        Ok(SourceEvent::Failed(error)) => context.fail(PipelineError::Source(error)),
        Err(RecvTimeoutError::Timeout) => {}
        Err(RecvTimeoutError::Disconnected) => {
            if !state.closed.load(Ordering::Acquire) && !state.stopping.load(Ordering::Acquire) {
                context.fail(PipelineError::SourceVanished);
            }
            return false;
        }
    }
    true
}

/// Lets records in as far as the throttle allows; false when delivery is over.
fn admit_waiting(
    context: &Context,
    state: &IntakeState,
    waiting: &mut Waiting,
    out: &Sender<Vec<SourceRecord>>,
    throttle: Option<&Throttle>,
) -> bool {
    while let Some(chunk) = waiting.chunks.pop_front() {
        let mut records = still_ours(context, chunk);
        let allowed = throttle.map_or(records.len(), |throttle| throttle.take(records.len()));
        let rest = records.split_off(allowed.min(records.len()));
        let held_back = !rest.is_empty();
        if held_back {
            waiting.chunks.push_front(rest);
        }
        if !records.is_empty() && !admit(context, state, records, out) {
            return false;
        }
        if held_back {
            break;
        }
    }
    true
}

/// Waits for room, then passes records on; false when delivery is over.
fn admit(
    context: &Context,
    state: &IntakeState,
    records: Vec<SourceRecord>,
    out: &Sender<Vec<SourceRecord>>,
) -> bool {
    while !context.ledger.wait_for_room(TICK) {
        // Records that were not admitted are not in the watermark: they are delivered again.
        if state.stopping.load(Ordering::Acquire) || context.abandoned.is_cancelled() {
            return false;
        }
    }
    let records = context.ledger.admit(still_ours(context, records));
    context.counters.delivered.add(records.len());
    records.is_empty() || out.send(records).is_ok()
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

fn gone(context: &Context, partitions: &[TopicPartition]) {
    for partition in partitions {
        context
            .metrics
            .lag_gone(&partition.topic, partition.partition);
    }
}

fn listed(partitions: &[TopicPartition]) -> String {
    let names: Vec<String> = partitions.iter().map(ToString::to_string).collect();
    names.join(" ")
}

/// Starts the intake on its own thread.
pub(super) fn spawn_intake(
    context: &Arc<Context>,
    state: Arc<IntakeState>,
    events: Receiver<SourceEvent>,
    records_out: Sender<Vec<SourceRecord>>,
    wiring: &Wiring,
) -> Result<std::thread::JoinHandle<()>, PipelineError> {
    let (revoke_drain, throttle) = (wiring.revoke_drain, wiring.throttle.clone());
    spawn(context, "intake".to_owned(), move |context| {
        let throttle = throttle.as_deref();
        run_intake(
            context,
            &state,
            &events,
            records_out,
            revoke_drain,
            throttle,
        );
    })
}
