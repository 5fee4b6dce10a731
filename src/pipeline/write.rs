//! The write path: gathers tagged documents into batches, keeps several writes in flight, tries again
//! for as long as it takes, and isolates the record that a permanent refusal is about.
//!
//! The only place that acknowledges a written record. Knows nothing of models.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::sync::mpsc::{self, error::TryRecvError};

use super::dead_letters::{Refusal, refuse};
use super::ledger::Ticket;
use super::pace::Pace;
use super::{Context, PipelineError};
use crate::document::{DocumentId, LatestTime, Version};
use crate::source::SourceRecord;
use crate::store::point::{Provenance, TaggedDocument, build_point};
use crate::store::{PointWrite, StoreError, WriteOutcome};
use crate::telemetry::{Outcome, Stage};

/// Stage name in dead-letter headers.
const STAGE: &str = "store";

/// Longest pause between two tries of one batch.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// First pause between two tries of one batch.
const SHORTEST_BACKOFF: Duration = Duration::from_millis(50);

/// Longest wait of an incomplete write before it is looked at again: it may be full by then, or in a drain.
const TICK: Duration = Duration::from_millis(20);

/// How often an outage is logged while it lasts.
const OUTAGE_LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Single records refused in a row, without one that was taken, after which the refusal is taken to
/// be about the collection and not about the records.
const MOST_REFUSALS_IN_A_ROW: usize = 100;

/// What is to be written and the record it came from, which is kept for the dead-letter topic until then.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) ticket: Ticket,
    pub(super) record: SourceRecord,
    pub(super) content: Content,
}

/// What a write puts into the store. The point is made anew for each try: the store takes it for good, and to
/// make it costs no more than to copy it.
#[derive(Debug)]
pub(super) enum Content {
    /// A document and what the model said of it, at that time.
    Tagged(Box<TaggedDocument>, Timestamp),
    /// The marker of a deleted one.
    Tombstone {
        id: DocumentId,
        version: Version,
        deleted_at: Timestamp,
    },
}

impl Content {
    fn point(&self, provenance: &Provenance) -> PointWrite {
        match self {
            Self::Tagged(tagged, tagged_at) => {
                PointWrite::Upsert(build_point(tagged, provenance, *tagged_at))
            }
            Self::Tombstone {
                id,
                version,
                deleted_at,
            } => PointWrite::Tombstone {
                id: id.clone(),
                version: version.clone(),
                deleted_at: *deleted_at,
            },
        }
    }
}

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
    let refusals = Arc::new(AtomicUsize::new(0));
    let mut in_flight = FuturesUnordered::new();
    let mut pending: Vec<Write> = Vec::new();
    let mut pace = Pace::new(settings.batch_points, settings.linger);
    let mut open = true;
    while open || !pending.is_empty() || !in_flight.is_empty() {
        while in_flight.len() < settings.concurrency && !pending.is_empty() {
            let is_draining = !open || context.draining.load(Ordering::Acquire) > 0;
            if !is_draining && !wait(&pace, &pending).is_zero() {
                break;
            }
            let rest = pending.split_off(pending.len().min(settings.batch_points));
            let batch = std::mem::replace(&mut pending, rest);
            pace.sent(Instant::now());
            in_flight.push(write_durably(context.clone(), refusals.clone(), batch));
        }
        let may_linger = !pending.is_empty() && in_flight.len() < settings.concurrency;
        tokio::select! {
            biased;
            Some(outcome) = in_flight.next(), if !in_flight.is_empty() => outcome?,
            // To wake up for every batch that joins a write which is not due yet would disturb the model.
            received = incoming.recv(), if open && pending.is_empty() => match received {
                Some(writes) => pending.extend(writes),
                None => open = false,
            },
            () = tokio::time::sleep(wait(&pace, &pending).min(TICK)), if may_linger => {}
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

/// Writes a batch until it is durable, however long that takes, and acknowledges it.
fn write_durably(
    context: Arc<Context>,
    refusals: Arc<AtomicUsize>,
    batch: Vec<Write>,
) -> BoxFuture<'static, Result<(), PipelineError>> {
    Box::pin(async move {
        match write_until_decided(&context, &batch).await? {
            Ok(outcome) => {
                refusals.store(0, Ordering::Relaxed);
                acknowledge(&context, &batch, outcome);
                Ok(())
            }
            Err(reason) => isolate(context, refusals, batch, reason).await,
        }
    })
}

/// Bisects a refused batch down to the records at fault, and dead-letters those.
async fn isolate(
    context: Arc<Context>,
    refusals: Arc<AtomicUsize>,
    mut batch: Vec<Write>,
    reason: String,
) -> Result<(), PipelineError> {
    if batch.len() > 1 {
        let rest = batch.split_off(batch.len() / 2);
        write_durably(context.clone(), refusals.clone(), batch).await?;
        return write_durably(context, refusals, rest).await;
    }
    let Some(write) = batch.pop() else {
        return Ok(());
    };
    if refusals.fetch_add(1, Ordering::Relaxed) >= MOST_REFUSALS_IN_A_ROW {
        return Err(PipelineError::Store(StoreError::Fatal(format!(
            "the store refused {MOST_REFUSALS_IN_A_ROW} records in a row, so that the refusal is hardly about \
             the records; the last reason: {reason}; check the collection with `tcbert-worker doctor`"
        ))));
    }
    let refusal = Refusal {
        stage: STAGE,
        class: "store_rejected",
        message: reason,
    };
    refuse(&context, write.ticket, write.record, refusal).await
}

fn acknowledge(context: &Context, batch: &[Write], outcome: WriteOutcome) {
    let deletions = batch
        .iter()
        .filter(|write| matches!(write.content, Content::Tombstone { .. }))
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
    context
        .ledger
        .acknowledge(batch.iter().map(|write| &write.ticket));
}

/// Tries until the store has taken the batch (`Ok(Ok)`) or refused it for good (`Ok(Err(reason))`).
async fn write_until_decided(
    context: &Context,
    batch: &[Write],
) -> Result<Result<WriteOutcome, String>, PipelineError> {
    let mut backoff = SHORTEST_BACKOFF;
    let started = Instant::now();
    let mut logged: Option<Instant> = None;
    loop {
        let points = batch
            .iter()
            .map(|write| write.content.point(&context.provenance))
            .collect();
        let latest = LatestTime::after(Timestamp::now(), context.future_tolerance);
        let failure = match context.store.write(points, latest).await {
            Ok(outcome) => {
                if logged.is_some() {
                    tracing::info!(
                        seconds = started.elapsed().as_secs_f32(),
                        "the store takes writes again"
                    );
                }
                context.metrics.stage(Stage::Write, started.elapsed());
                context.metrics.store_paused(false);
                context.outage.over();
                return Ok(Ok(outcome));
            }
            Err(StoreError::Rejected(reason)) => return Ok(Err(reason)),
            Err(fatal @ StoreError::Fatal(_)) => return Err(PipelineError::Store(fatal)),
            Err(failure) => failure,
        };
        context.metrics.store_retry();
        context.outage.failed(&failure, started.elapsed());
        context
            .metrics
            .store_paused(matches!(failure, StoreError::Full(_)));
        if logged.is_none_or(|at| at.elapsed() >= OUTAGE_LOG_INTERVAL) {
            logged = Some(Instant::now());
            tracing::warn!(
                error = %failure,
                points = batch.len(),
                seconds = started.elapsed().as_secs_f32(),
                "a write failed and is tried again; consumption pauses when the budget is used up"
            );
        }
        // Full jitter: workers that lost the same store must not come back in step.
        let pause = backoff.mul_f64(rand::random_range(0.5..1.0));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = context.abandoned.cancelled() => return Err(PipelineError::Abandoned),
        }
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
    }
}
