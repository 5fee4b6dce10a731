//! Planning and inference: documents are gathered into batches of like length, and each inference
//! thread runs its own session over one batch after the other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::sync::mpsc;

use super::dead_letters::Refusal;
use super::prepare::Ready;
use super::write::{Content, Write};
use super::{Context, PipelineError, Refused, spawn};
use crate::batch::{Batch, BatchItem, BatchPlanner};
use crate::model::Model;
use crate::score::{NotFinite, TaggerError, Tagging};
use crate::store::point::{Answer, TaggedDocument};
use crate::telemetry::Stage;

/// Longest wait of the planner for more documents, so that a drain is noticed soon.
const TICK: Duration = Duration::from_millis(20);

/// Gathers documents until the preparing threads end, and passes on batches of like length.
pub(super) fn run_planner(
    context: &Context,
    mut planner: BatchPlanner<Ready>,
    documents: &Receiver<Vec<Ready>>,
    batches: &Sender<Batch<Ready>>,
) {
    // What the window had no room for yet.
    let mut held = VecDeque::new();
    let mut open = true;
    while open || !planner.is_empty() || !held.is_empty() {
        fill(&mut planner, &mut held);
        if open && held.is_empty() {
            let now = Instant::now();
            let wait = planner.deadline().map_or(TICK, |deadline| {
                deadline.saturating_duration_since(now).min(TICK)
            });
            match documents.recv_timeout(wait) {
                Ok(chunk) => held.extend(chunk),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            // A longer look-ahead makes batches of more equal lengths: take what is at hand.
            fill(&mut planner, &mut held);
            while held.is_empty()
                && let Ok(chunk) = documents.try_recv()
            {
                held.extend(chunk);
                fill(&mut planner, &mut held);
            }
        }
        let draining = (!open && held.is_empty()) || context.draining.load(Ordering::Acquire) > 0;
        if let Some(batch) = planner.next_batch(Instant::now(), draining)
            && batches.send(batch).is_err()
        {
            return;
        }
    }
}

fn fill(planner: &mut BatchPlanner<Ready>, held: &mut VecDeque<Ready>) {
    let now = Instant::now();
    while let Some(ready) = held.pop_front() {
        if let Err(ready) = planner.push(ready, now) {
            held.push_front(ready);
            return;
        }
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
    batches: &Receiver<Batch<Ready>>,
    out: &Tagged,
) {
    for Batch { items, .. } in batches {
        if context.abandoned.is_cancelled() {
            return;
        }
        let started = Instant::now();
        let sent = match tag(context, model, &items) {
            Ok(taggings) => {
                count(context, &items, started.elapsed());
                send(context, items, taggings, out)
            }
            Err(error) => one_by_one(context, model, items, error, out),
        };
        if !sent {
            return;
        }
    }
}

type Taggings = Vec<Result<Tagging, NotFinite>>;

fn tag(context: &Context, model: &mut dyn Model, batch: &[Ready]) -> Result<Taggings, TaggerError> {
    let encoded: Vec<_> = batch.iter().map(|ready| &ready.encoded).collect();
    context.tagger.tag(model, &encoded)
}

fn count(context: &Context, batch: &[Ready], elapsed: Duration) {
    let lengths = batch.iter().map(|ready| ready.tokens());
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
    context
        .metrics
        .batch(batch.len(), tokens, longest * batch.len());
    context.metrics.stage(Stage::Infer, elapsed);
}

/// After a failed batch: which documents are at fault? Each runs alone. When all of them fail the
/// model itself is broken, and the worker stops without losing anything.
fn one_by_one(
    context: &Context,
    model: &mut dyn Model,
    batch: Vec<Ready>,
    error: TaggerError,
    out: &Tagged,
) -> bool {
    tracing::warn!(error = %error, rows = batch.len(), "a batch failed; its documents run one by one");
    let outcomes: Vec<_> = batch
        .iter()
        .map(|ready| tag(context, model, std::slice::from_ref(ready)))
        .collect();
    let empty = context.tagger.encode("");
    let model_works =
        outcomes.iter().any(Result::is_ok) || context.tagger.tag(model, &[&empty]).is_ok();
    if !model_works {
        context.fail(PipelineError::Model(error));
        return false;
    }
    for (ready, outcome) in batch.into_iter().zip(outcomes) {
        let sent = match outcome {
            Ok(taggings) => {
                count(context, std::slice::from_ref(&ready), Duration::ZERO);
                send(context, vec![ready], taggings, out)
            }
            Err(error) => refuse(ready, error.to_string(), out),
        };
        if !sent {
            return false;
        }
    }
    true
}

fn refuse(ready: Ready, message: String, out: &Tagged) -> bool {
    let refusal = Refusal {
        stage: "model",
        class: "model_failed",
        message,
    };
    let refused = Refused {
        ticket: ready.ticket,
        record: ready.record,
        refusal,
    };
    out.refusals.blocking_send(refused).is_ok()
}

/// Passes taggings on as writes; false when the writer has gone.
fn send(context: &Context, batch: Vec<Ready>, taggings: Taggings, out: &Tagged) -> bool {
    let now = jiff::Timestamp::now();
    let mut writes = Vec::with_capacity(batch.len());
    for (ready, tagging) in batch.into_iter().zip(taggings) {
        match tagging {
            Ok(tagging) => {
                let answer = Arc::new(answer_of(tagging));
                context.repeats.keep(&ready.encoded, &answer);
                writes.push(to_write(ready, answer, now));
            }
            Err(error) => {
                if !refuse(ready, error.to_string(), out) {
                    return false;
                }
            }
        }
    }
    writes.is_empty() || out.writes.blocking_send(writes).is_ok()
}

/// What a point needs of a tagging.
pub(crate) fn answer_of(tagging: Tagging) -> Answer {
    let topics = tagging.topics.into_iter();
    Answer {
        topic: tagging.topic,
        probability: tagging.probability,
        topics: topics
            .map(|score| (score.label, score.probability))
            .collect(),
        embedding: tagging.embedding,
    }
}

/// The write of a document and what the model said of its text at `now`.
pub(super) fn to_write(ready: Ready, answer: Arc<Answer>, now: jiff::Timestamp) -> Write {
    let tagged = TaggedDocument {
        document: ready.document,
        version: ready.version,
        answer,
        truncated: ready.encoded.truncated,
    };
    Write {
        ticket: ready.ticket,
        record: ready.record,
        content: Content::Tagged(Box::new(tagged), now),
    }
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
