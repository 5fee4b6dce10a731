//! Inference: each thread runs its own session over one batch after the other.

pub(super) mod batches;
pub(super) mod ready;
pub(super) mod repeats;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::context::{Context, PipelineError, spawn};
use super::dead_letters::{MODEL_FAILED, Refusal, Refused};
use super::write::content::Write;
use crate::batch::{Batch, BatchItem};
use crate::model::Model;
use crate::score::{NotFinite, TaggerError, Tagging};
use crate::telemetry::Stage;
use batches::Batches;
use ready::{Ready, answer_of, to_write};

/// How often documents that fail alone are tried again, and the pause before that, which doubles.
const RETRIES: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Where tagged documents go.
#[derive(Debug, Clone)]
pub(super) struct Tagged {
    pub(super) writes: mpsc::UnboundedSender<Vec<Write>>,
    pub(super) refusals: mpsc::Sender<Refused>,
}

/// Runs batches until there are no more.
pub(super) fn run_inference(
    context: &Context,
    model: &mut dyn Model,
    batches: &Batches<Ready>,
    out: &Tagged,
) {
    while let Some(Batch { items, .. }) = batches.next(&context.draining) {
        if context.abandoned.is_cancelled() {
            return;
        }
        let started = Instant::now();
        let waited = items
            .iter()
            .map(|ready| started.saturating_duration_since(ready.body.at));
        context
            .metrics
            .stage(Stage::Batch, waited.max().unwrap_or_default());
        let sent = match tag(context, model, &items) {
            Ok(taggings) => {
                count(context, &items);
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
    let encoded: Vec<_> = batch.iter().map(|ready| &ready.body.encoded).collect();
    let started = Instant::now();
    let outputs = context.tagger.run(model, &encoded)?;
    context.metrics.stage(Stage::Infer, started.elapsed());
    let started = Instant::now();
    let taggings = context.tagger.score(&encoded, &outputs);
    context.metrics.stage(Stage::Score, started.elapsed());
    taggings
}

fn count(context: &Context, batch: &[Ready]) {
    let lengths = batch.iter().map(|ready| ready.tokens());
    let (tokens, longest) = lengths.fold((0, 0), |(sum, longest), n| (sum + n, n.max(longest)));
    let counters = &context.counters;
    counters.tagged.add(batch.len());
    counters.tokens.add(tokens);
    counters.padded_tokens.add(longest * batch.len());
    let truncated = batch
        .iter()
        .filter(|ready| ready.body.encoded.truncated)
        .count();
    let unknown = batch
        .iter()
        .map(|ready| ready.body.encoded.unknown_tokens)
        .sum();
    counters.truncated.add(truncated);
    counters.unknown_tokens.add(unknown);
    context.metrics.texts(truncated as u64, unknown as u64);
    context
        .metrics
        .batch(batch.len(), tokens, longest * batch.len());
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
    let mut outcomes: Vec<_> = batch
        .iter()
        .map(|ready| tag(context, model, std::slice::from_ref(ready)))
        .collect();
    // Memory of a GPU that another program holds comes back.
    for retry in 0..RETRIES {
        if outcomes.iter().all(Result::is_ok) {
            break;
        }
        std::thread::sleep(FIRST_PAUSE * 2_u32.pow(retry));
        if context.abandoned.is_cancelled() {
            return false;
        }
        for (ready, outcome) in batch.iter().zip(&mut outcomes) {
            if outcome.is_err() {
                *outcome = tag(context, model, std::slice::from_ref(ready));
            }
        }
    }
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
                count(context, std::slice::from_ref(&ready));
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
        class: MODEL_FAILED,
        message,
    };
    out.refusals.blocking_send(ready.map(|_| refusal)).is_ok()
}

/// Passes taggings on as writes; false when the writer has gone.
fn send(context: &Context, batch: Vec<Ready>, taggings: Taggings, out: &Tagged) -> bool {
    let now = jiff::Timestamp::now();
    let mut writes = Vec::with_capacity(batch.len());
    for (ready, tagging) in batch.into_iter().zip(taggings) {
        match tagging {
            Ok(tagging) => {
                let answer = Arc::new(answer_of(tagging));
                context.repeats.keep(&ready.body.encoded, &answer);
                writes.push(to_write(ready, answer, now));
            }
            Err(error) => {
                if !refuse(ready, error.to_string(), out) {
                    return false;
                }
            }
        }
    }
    writes.is_empty() || out.writes.send(writes).is_ok()
}

/// Starts one thread for each model.
pub(super) fn spawn_inference(
    context: &Arc<Context>,
    models: Vec<Box<dyn Model>>,
    batches: Batches<Ready>,
    out: &Tagged,
) -> Result<Vec<std::thread::JoinHandle<()>>, PipelineError> {
    let batches = Arc::new(batches);
    models
        .into_iter()
        .enumerate()
        .map(|(index, mut model)| {
            let (batches, out) = (batches.clone(), out.clone());
            spawn(context, format!("infer-{index}"), move |context| {
                run_inference(context, model.as_mut(), &batches, &out);
            })
        })
        .collect()
}
