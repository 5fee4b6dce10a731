//! Planning and inference: documents are gathered into batches of like length, and each inference
//! thread runs its own session over one batch after the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::sync::mpsc;

use super::dead_letters::Refusal;
use super::prepare::Ready;
use super::write::Write;
use super::{Context, PipelineError, Refused, spawn};
use crate::batch::BatchPlanner;
use crate::model::{Model, ModelError};
use crate::score::Tagging;
use crate::store::{PointWrite, TaggedDocument};
use crate::telemetry::Stage;

/// Longest wait of the planner for more documents, so that a drain is noticed soon.
const TICK: Duration = Duration::from_millis(20);

/// Gathers documents until the preparing threads end, and passes on batches of like length.
pub(super) fn run_planner(
    context: &Context,
    mut planner: BatchPlanner<Ready>,
    documents: &Receiver<Vec<Ready>>,
    batches: &Sender<Vec<Ready>>,
) {
    let mut open = true;
    while open || !planner.is_empty() {
        if open && planner.has_room() {
            let now = Instant::now();
            let wait = planner
                .deadline()
                .map_or(TICK, |deadline| deadline.saturating_duration_since(now).min(TICK));
            match documents.recv_timeout(wait) {
                Ok(chunk) => take(context, &mut planner, chunk),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            // A longer look-ahead makes batches of more equal lengths: take what is at hand.
            while planner.has_room()
                && let Ok(chunk) = documents.try_recv()
            {
                take(context, &mut planner, chunk);
            }
        }
        let draining = !open || context.draining.load(Ordering::Acquire) > 0;
        while let Some(batch) = planner.next_batch(Instant::now(), draining) {
            if batches.send(batch).is_err() {
                return;
            }
            if open && planner.has_room() && !documents.is_empty() {
                break;
            }
        }
    }
}

fn take(context: &Context, planner: &mut BatchPlanner<Ready>, chunk: Vec<Ready>) {
    let now = Instant::now();
    for ready in chunk {
        let tokens = context.tagger.tokens_of(&ready.encoded);
        planner.push(ready, tokens, now);
    }
}

/// Where tagged documents go.
#[derive(Debug, Clone)]
pub(super) struct Tagged {
    pub(super) writes: mpsc::Sender<Vec<Write>>,
    pub(super) refusals: mpsc::Sender<Refused>,
}

/// Runs batches until the planner ends.
pub(super) fn run_inference(
    context: &Context,
    model: &mut dyn Model,
    batches: &Receiver<Vec<Ready>>,
    out: &Tagged,
) {
    for batch in batches {
        if context.abandoned.is_cancelled() {
            return;
        }
        let started = Instant::now();
        match tag(context, model, &batch) {
            Ok(taggings) => {
                count(context, &batch, started.elapsed());
                if out.writes.blocking_send(to_writes(context, batch, taggings)).is_err() {
                    return;
                }
            }
            Err(error) => {
                if !one_by_one(context, model, batch, error, out) {
                    return;
                }
            }
        }
    }
}

fn tag(context: &Context, model: &mut dyn Model, batch: &[Ready]) -> Result<Vec<Tagging>, ModelError> {
    let encoded: Vec<_> = batch.iter().map(|ready| &ready.encoded).collect();
    context.tagger.tag(model, &encoded)
}

fn count(context: &Context, batch: &[Ready], elapsed: Duration) {
    let lengths = batch.iter().map(|ready| context.tagger.tokens_of(&ready.encoded));
    let (tokens, longest) = lengths.fold((0, 0), |(sum, longest), n| (sum + n, n.max(longest)));
    let counters = &context.counters;
    counters.tagged.add(batch.len());
    counters.tokens.add(tokens);
    counters.padded_tokens.add(longest * batch.len());
    let truncated = batch.iter().filter(|ready| ready.encoded.truncated).count();
    let unknown = batch.iter().map(|ready| ready.encoded.unknown_tokens).sum();
    counters.truncated.add(truncated);
    counters.unknown_tokens.add(unknown);
    context.metrics.texts(truncated as u64, unknown as u64);
    context.metrics.batch(batch.len(), tokens, longest * batch.len());
    context.metrics.stage(Stage::Infer, elapsed);
}

/// After a failed batch: which documents are at fault? Each runs alone. When all of them fail the
/// model itself is broken, and the worker stops without losing anything.
fn one_by_one(
    context: &Context,
    model: &mut dyn Model,
    batch: Vec<Ready>,
    error: ModelError,
    out: &Tagged,
) -> bool {
    tracing::warn!(error = %error, rows = batch.len(), "a batch failed; its documents run one by one");
    let outcomes: Vec<_> = batch
        .iter()
        .map(|ready| tag(context, model, std::slice::from_ref(ready)))
        .collect();
    let empty = context.tagger.encode("");
    let model_works = outcomes.iter().any(Result::is_ok) || context.tagger.tag(model, &[&empty]).is_ok();
    if !model_works {
        context.fail(PipelineError::Model(error));
        return false;
    }
    for (ready, outcome) in batch.into_iter().zip(outcomes) {
        let sent = match outcome {
            Ok(taggings) => {
                count(context, std::slice::from_ref(&ready), Duration::ZERO);
                out.writes.blocking_send(to_writes(context, vec![ready], taggings)).is_ok()
            }
            Err(error) => {
                let refusal = Refusal { stage: "model", class: "model_failed", message: error.to_string() };
                let refused = Refused { ticket: ready.ticket, record: ready.record, refusal };
                out.refusals.blocking_send(refused).is_ok()
            }
        };
        if !sent {
            return false;
        }
    }
    true
}

fn to_writes(context: &Context, batch: Vec<Ready>, taggings: Vec<Tagging>) -> Vec<Write> {
    let now = jiff::Timestamp::now();
    batch
        .into_iter()
        .zip(taggings)
        .map(|(ready, tagging)| {
            let point = context.points.build(
                TaggedDocument { document: ready.document, tagging },
                ready.version,
                now,
            );
            Write { ticket: ready.ticket, record: ready.record, point: PointWrite::Upsert(point) }
        })
        .collect()
}

/// Starts the planner and one thread for each model.
pub(super) fn spawn_inference(
    context: &Arc<Context>,
    planner: BatchPlanner<Ready>,
    models: Vec<Box<dyn Model>>,
    documents: Receiver<Vec<Ready>>,
    out: &Tagged,
) -> Result<Vec<std::thread::JoinHandle<()>>, PipelineError> {
    // One batch waits while each model runs: enough to keep it busy, and no more to hold back.
    let (batches_out, batches) = crossbeam_channel::bounded(models.len());
    let mut threads = vec![spawn(context, "planner".to_owned(), move |context| {
        run_planner(context, planner, &documents, &batches_out);
    })?];
    for (index, mut model) in models.into_iter().enumerate() {
        let (batches, out) = (batches.clone(), out.clone());
        threads.push(spawn(context, format!("infer-{index}"), move |context| {
            run_inference(context, model.as_mut(), &batches, &out);
        })?);
    }
    Ok(threads)
}
