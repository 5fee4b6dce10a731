//! The write path: gathers tagged documents into batches, keeps several writes in flight, retries for as
//! long as it takes, and isolates the record that a rejection is about.
//!
//! A rejection is the record's fault only when proved: the store accepts another write at the same time
//! and rejects the record again. Without a proof the batch is held and retried, and the worker is not
//! ready.
//!
//! The only place that acknowledges a written record. Knows nothing of models.

pub(super) mod acceptance;
pub(super) mod building;
pub(super) mod content;
pub(super) mod outage;
mod pace;
mod points;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::{BoxFuture, try_join};
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::sync::mpsc::{self, error::TryRecvError};

use super::context::{Context, PipelineError};
use super::dead_letters::{Refusal, STORE_REJECTED, refuse};
use crate::backoff::Backoff;
use crate::document::LatestTime;
use crate::store::{StoreError, WriteOutcome};
use crate::telemetry::{Outcome, Stage};
use acceptance::Held;
use content::{Content, Write, points_at_once};
use pace::Pace;
use points::points;

/// Stage name in dead-letter headers.
const STAGE: &str = "store";

/// Longest pause between two tries of one batch.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// First pause between two tries of one batch.
const SHORTEST_BACKOFF: Duration = Duration::from_millis(50);

/// Longest wait of an incomplete write before it is looked at again: it may be full by then, or in a drain.
const TICK: Duration = Duration::from_millis(20);

/// How often it is looked whether a write in flight is held, so that another one may go out.
const HELD_TICK: Duration = Duration::from_millis(200);

/// How often in a row a record has to be rejected while the store accepts another write: one of several servers
/// behind a name may reject everything.
const REJECTIONS: u32 = 6;

/// Pause between two of these, times how many there were.
const REJECTION_PAUSE: Duration = Duration::from_millis(20);

/// Failures of a batch that may pass by themselves, after which it is halved if other writes succeed: so
/// sound records do not wait for one that a server stumbles over, nor for a limit on requests.
const PATIENT_TRIES: u32 = 4;

/// A probe of this age may be one of a document that was deleted since, its marker removed as well: it
/// is looked for before it is sent. Markers are kept for an hour at least.
const OLD_PROBE: Duration = Duration::from_secs(1800);

/// How writes are grouped.
#[derive(Debug, Clone, Copy)]
pub(super) struct WriterSettings {
    /// Points of one request at most.
    pub(super) batch_points: usize,
    /// Requests in flight at most.
    pub(super) concurrency: usize,
    /// How long an incomplete batch waits for company, counted from the last request; see [`Pace`].
    pub(super) linger: Duration,
}

/// Writes until `incoming` ends; then waits for what is in flight.
pub(super) async fn run_writer(
    context: Arc<Context>,
    settings: WriterSettings,
    mut incoming: mpsc::UnboundedReceiver<Vec<Write>>,
) -> Result<(), PipelineError> {
    let mut in_flight = FuturesUnordered::new();
    let mut pending: Vec<Write> = Vec::new();
    let mut pace = Pace::new(settings.batch_points, settings.linger);
    let mut open = true;
    let mut batches = 0;
    // What is held takes no place of those that are in flight.
    let has_place = |in_flight: usize| {
        in_flight.saturating_sub(context.acceptance.held_batches()) < settings.concurrency
    };
    while open || !pending.is_empty() || !in_flight.is_empty() {
        while has_place(in_flight.len()) && !pending.is_empty() {
            let is_draining = !open || context.draining.load(Ordering::Acquire) > 0;
            if !is_draining && !wait(&pace, &pending).is_zero() {
                break;
            }
            let rest = pending.split_off(points_at_once(&pending, settings.batch_points));
            let batch = std::mem::replace(&mut pending, rest);
            pace.sent(Instant::now());
            batches += 1;
            let part = Part {
                batch: batches,
                tries: 0,
                is_isolated: false,
            };
            in_flight.push(write_durably(context.clone(), batch, part));
        }
        let waits = !pending.is_empty();
        let pause = if has_place(in_flight.len()) {
            wait(&pace, &pending).min(TICK)
        } else {
            HELD_TICK
        };
        tokio::select! {
            biased;
            Some(outcome) = in_flight.next(), if !in_flight.is_empty() => outcome?,
            // To wake up for every batch that joins a write which is not due yet would disturb the model.
            received = incoming.recv(), if open && pending.is_empty() => match received {
                Some(writes) => pending.extend(writes),
                None => open = false,
            },
            () = tokio::time::sleep(pause), if waits => {}
        }
        // What has come meanwhile joins at no cost.
        while open {
            match incoming.try_recv() {
                Ok(writes) => pending.extend(writes),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => open = false,
            }
        }
    }
    Ok(())
}

/// How long what is pending has to wait; without any there is nothing to wait for.
fn wait(pace: &Pace, pending: &[Write]) -> Duration {
    let now = Instant::now();
    let first = pending.first();
    let admitted = first.map_or(now, |write| write.ticket.admitted());
    pace.wait(pending.len(), admitted, now)
}

/// What a batch was cut out of.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// Number of the whole batch.
    batch: u64,
    /// How often writes that held it have failed before.
    tries: u32,
    /// Whether other writes succeed while this part does not.
    is_isolated: bool,
}

/// Writes a batch, or a part of one, until it is durable, however long that takes, and acknowledges it.
fn write_durably(
    context: Arc<Context>,
    batch: Vec<Write>,
    part: Part,
) -> BoxFuture<'static, Result<(), PipelineError>> {
    Box::pin(async move {
        match write_until_decided(&context, &batch, part).await? {
            Decision::Accepted(outcome) => {
                acknowledge(&context, &batch, outcome);
                context.acceptance.accepted(batch);
                Ok(())
            }
            Decision::Isolate { reason, tries } => {
                let part = Part {
                    tries,
                    is_isolated: true,
                    ..part
                };
                isolate(context, batch, reason, part).await
            }
        }
    })
}

/// Bisects a batch down to the records at fault, and dead-letters those.
async fn isolate(
    context: Arc<Context>,
    mut batch: Vec<Write>,
    reason: String,
    part: Part,
) -> Result<(), PipelineError> {
    if batch.len() > 1 {
        let rest = batch.split_off(batch.len() / 2);
        // Side by side: what one half gets accepted is the proof for the other.
        let halves = (
            write_durably(context.clone(), batch, part),
            write_durably(context, rest, part),
        );
        return try_join(halves.0, halves.1).await.map(|_| ());
    }
    let Some(write) = batch.pop() else {
        return Ok(());
    };
    let refusal = Refusal {
        stage: STAGE,
        class: STORE_REJECTED,
        message: reason,
    };
    refuse(&context, write.map(|_| refusal)).await
}

fn acknowledge(context: &Context, batch: &[Write], outcome: WriteOutcome) {
    let deletions = batch
        .iter()
        .filter(|write| matches!(write.body, Content::Tombstone { .. }))
        .count();
    let documents = batch.len() - deletions;
    let written = documents.saturating_sub(outcome.superseded_documents);
    let deleted = deletions.saturating_sub(outcome.superseded_deletions);
    let superseded = batch.len() - written - deleted;
    context.counters.written.add(written);
    context.counters.deleted.add(deleted);
    context.counters.superseded.add(superseded);
    for (outcome, documents) in [
        (Outcome::Written, written),
        (Outcome::Deleted, deleted),
        (Outcome::Superseded, superseded),
    ] {
        context.metrics.documents(outcome, documents as u64);
    }
    let now = Timestamp::now().as_millisecond();
    for timestamp_ms in batch.iter().filter_map(|write| write.record.timestamp_ms) {
        let took = u64::try_from(now - timestamp_ms).unwrap_or(0);
        let took = Duration::from_millis(took);
        context.metrics.stage(Stage::EndToEnd, took);
    }
    context
        .ledger
        .acknowledge(batch.iter().map(|write| &write.ticket));
}

/// What is to become of a batch.
enum Decision {
    Accepted(WriteOutcome),
    /// Some of it is at fault: halve it; a single record goes to the dead letters.
    Isolate {
        reason: String,
        /// Failures so far.
        tries: u32,
    },
}

/// Tries until the store has accepted the batch, or it is proved that it is not the store that is at
/// fault.
async fn write_until_decided(
    context: &Context,
    batch: &[Write],
    part: Part,
) -> Result<Decision, PipelineError> {
    let mut trouble = Trouble::new(context, batch, part);
    let mut tries = part.tries;
    let mut proofs = 0;
    loop {
        let failure = match write(context, batch).await {
            Ok(outcome) => {
                trouble.over();
                return Ok(Decision::Accepted(outcome));
            }
            Err(StoreError::Unstorable(reason)) => return Ok(Decision::Isolate { reason, tries }),
            Err(fatal @ StoreError::Fatal(_)) => return Err(PipelineError::Store(fatal)),
            Err(failure) => failure,
        };
        tries = tries.saturating_add(1);
        let rejected = matches!(failure, StoreError::Rejected(_));
        // A single record may fail with the shard that it belongs to, while others succeed: it is never given
        // up, but takes no place of theirs.
        let is_alone = batch.len() == 1 && !rejected;
        let suspect = match &failure {
            StoreError::Rejected(_) => true,
            StoreError::Transient(_) => {
                tries >= PATIENT_TRIES && !(is_alone && trouble.is_isolated())
            }
            StoreError::Full(_) | StoreError::Unstorable(_) | StoreError::Fatal(_) => false,
        };
        let seen = context.acceptance.count();
        let mut proved = suspect && accepts_another(context, batch, tries).await?;
        let isolate = |failure: &StoreError| Decision::Isolate {
            reason: failure.to_string(),
            tries,
        };
        if rejected && !proved && batch.len() > 1 && context.acceptance.probe().is_none() {
            // Nothing was ever accepted: one of its own records may be the proof for the others.
            return Ok(isolate(&failure));
        }
        if is_alone && proved {
            trouble.isolate();
            proved = false;
        }
        if !proved {
            trouble.wait(&failure, suspect && rejected).await?;
            proved = suspect && !is_alone && context.acceptance.count() > seen;
        }
        proofs = if proved { proofs + 1 } else { 0 };
        if !proved {
            continue;
        }
        if batch.len() > 1 || (proofs >= REJECTIONS && context.acceptance.may_give_up()) {
            return Ok(isolate(&failure));
        }
        if proofs >= REJECTIONS {
            // Known documents are accepted, new ones are not: that is hardly the fault of so many records.
            trouble.wait(&failure, true).await?;
        } else {
            tokio::time::sleep(REJECTION_PAUSE * proofs).await;
        }
    }
}

/// A batch that waits for the store.
struct Trouble<'a> {
    context: &'a Context,
    batch: &'a [Write],
    part: Part,
    started: Instant,
    backoff: Backoff,
    logged: bool,
    held: Option<Held<'a>>,
}

impl<'a> Trouble<'a> {
    fn new(context: &'a Context, batch: &'a [Write], part: Part) -> Self {
        Self {
            context,
            batch,
            part,
            started: Instant::now(),
            backoff: Backoff::new(SHORTEST_BACKOFF, LONGEST_BACKOFF),
            logged: false,
            held: None,
        }
    }

    fn is_isolated(&self) -> bool {
        self.part.is_isolated
    }

    /// Notes that other writes succeed meanwhile.
    fn isolate(&mut self) {
        self.part.is_isolated = true;
    }

    /// Says what is wrong, then waits until the next try. `unproved`: the store rejects the batch, and
    /// nothing tells whose fault that is.
    async fn wait(&mut self, failure: &StoreError, unproved: bool) -> Result<(), PipelineError> {
        let context = self.context;
        context.metrics.store_retry();
        context.outage.failed(failure, self.started.elapsed());
        context.metrics.store_paused(context.outage.lasts());
        // Records that fail while others succeed take no place of those either, and are no reason to stop.
        let records = if unproved { self.batch.len() } else { 0 };
        if !unproved && !self.part.is_isolated {
            // An outage is no rejection, whatever was said before it.
            self.held = None;
        } else if self.held.as_ref().map(Held::records) != Some(records) {
            self.held = Some(context.acceptance.hold(self.part.batch, records));
        }
        if let Some(records) = held_too_long(context) {
            return Err(PipelineError::Store(StoreError::Fatal(format!(
                "the store rejects {records} records and accepts none, so that they are hardly at fault; none of \
                 them was dead-lettered; the last reason: {failure}; check the server and the collection with \
                 `tcbert-worker doctor`"
            ))));
        }
        if context.outage.is_to_be_logged() {
            self.logged = true;
            let first = self.batch.first();
            tracing::warn!(
                error = %failure,
                points = self.batch.len(),
                first = %first.map(|write| write.record.position.to_string()).unwrap_or_default(),
                seconds = self.started.elapsed().as_secs_f32(),
                "a write failed and is retried; consumption pauses when the budget is used up"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(self.backoff.pause()) => Ok(()),
            () = context.abandoned.cancelled() => Err(PipelineError::Abandoned),
        }
    }

    /// The store has accepted the batch.
    fn over(&self) {
        if self.logged {
            tracing::info!(
                seconds = self.started.elapsed().as_secs_f32(),
                "the store accepts writes again"
            );
        }
        let metrics = &self.context.metrics;
        metrics.stage(Stage::Write, self.started.elapsed());
    }
}

/// Whether the store accepts another write right now: the last one that it accepted, sent again, or, where
/// there is none, one of the batch alone, each in its turn.
async fn accepts_another(
    context: &Context,
    batch: &[Write],
    tries: u32,
) -> Result<bool, PipelineError> {
    let kept = context.acceptance.probe();
    let probe = match &kept {
        Some(probe) => {
            if probe.accepted_at.elapsed() >= OLD_PROBE {
                let id = probe.write.body.id().clone();
                match context.store.fetch(id).await {
                    Ok(Some(_)) => {}
                    Ok(None) => {
                        context.acceptance.forget_probe();
                        return Ok(false);
                    }
                    Err(_) => return Ok(false),
                }
            }
            &*probe.write
        }
        None if batch.len() > 1 => {
            let turn = usize::try_from(tries).unwrap_or_default() % batch.len();
            let Some(write) = batch.get(turn) else {
                return Ok(false);
            };
            write
        }
        None => return Ok(false),
    };
    match write(context, std::slice::from_ref(probe)).await {
        Ok(_) => {
            context.acceptance.probed();
            Ok(true)
        }
        Err(fatal @ StoreError::Fatal(_)) => Err(PipelineError::Store(fatal)),
        Err(_) => Ok(false),
    }
}

fn held_too_long(context: &Context) -> Option<usize> {
    let is_seen = context.outage.is_seen();
    context.acceptance.too_many_held(Instant::now(), is_seen)
}

/// One try.
async fn write(context: &Context, batch: &[Write]) -> Result<WriteOutcome, StoreError> {
    let bytes = batch.iter().map(Write::built_bytes).sum::<usize>();
    // Beside others that are built already it waits; while it waits for a later try it holds no room.
    let _room = context.building.room_for(bytes).await;
    let points = points(context, batch, bytes)?;
    let latest = LatestTime::after(Timestamp::now(), context.future_tolerance);
    let outcome = context.store.write(points, latest).await;
    if outcome.is_ok() {
        context.metrics.store_paused(false);
        context.outage.over();
    }
    outcome
}
