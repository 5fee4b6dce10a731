//! Tags a list of texts as fast as the models allow: batches of like length, one thread a model.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::assemble::{AssembleError, Engine, Tagged, encode_all};
use crate::batch::{Batch, BatchItem, BatchPlanner, BatchSettings};
use crate::model::Model;
use crate::score::Tagger;
use crate::tokenize::EncodedText;

/// A text on its way, with its place in the list.
struct Item {
    index: usize,
    tokens: usize,
    text: EncodedText,
}

impl BatchItem for Item {
    fn tokens(&self) -> usize {
        self.tokens
    }

    /// The list has no keys: every place is its own.
    fn key_hash(&self) -> u64 {
        self.index as u64
    }
}

/// Tags `texts`; answers stand in the order of the texts. `progress` is told how many are done.
pub(super) fn tag_all(
    engine: &mut Engine,
    settings: &BatchSettings,
    texts: &[&str],
    progress: impl Fn(usize) + Sync,
) -> Result<Vec<Tagged>, AssembleError> {
    let (tagger, models) = engine.parts();
    let mut answers: Vec<Option<Tagged>> = Vec::new();
    let mut items = Vec::new();
    for (index, encoded) in encode_all(tagger, texts).into_iter().enumerate() {
        match encoded {
            Ok(text) => {
                items.push(Item {
                    index,
                    tokens: tagger.row_tokens(&text),
                    text,
                });
                answers.push(None);
            }
            Err(error) => answers.push(Some(Err(error))),
        }
    }
    let done = AtomicUsize::new(texts.len() - items.len());
    let queue = Mutex::new(plan(settings, items));
    let answers = Mutex::new(answers);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for model in models.iter_mut() {
            scope.spawn(|| {
                while let Some(batch) = next(&queue, &failure) {
                    let rows = batch.items.len();
                    match run(tagger, model.as_mut(), &batch) {
                        Ok(tagged) => {
                            let mut answers = answers.lock();
                            for (index, answer) in tagged {
                                if let Some(place) = answers.get_mut(index) {
                                    *place = Some(answer);
                                }
                            }
                        }
                        Err(error) => {
                            failure.lock().get_or_insert(error);
                        }
                    }
                    progress(done.fetch_add(rows, Ordering::Relaxed) + rows);
                }
            });
        }
    });
    match failure.into_inner() {
        Some(error) => Err(error),
        None => Ok(answers
            .into_inner()
            .into_iter()
            .map(|answer| answer.unwrap_or(Err(AssembleError::NotFinite)))
            .collect()),
    }
}

fn next(
    queue: &Mutex<Vec<Batch<Item>>>,
    failure: &Mutex<Option<AssembleError>>,
) -> Option<Batch<Item>> {
    if failure.lock().is_some() {
        return None;
    }
    queue.lock().pop()
}

/// All batches at once: the whole list is the look-ahead window.
fn plan(settings: &BatchSettings, items: Vec<Item>) -> Vec<Batch<Item>> {
    let whole = BatchSettings {
        window_documents: items.len().max(1),
        ..settings.clone()
    };
    let mut planner = BatchPlanner::new(&whole);
    let now = Instant::now();
    let mut batches = Vec::new();
    for item in items {
        // The window holds the whole list, so nothing is given back.
        if planner.push(item, now).is_err() {
            break;
        }
    }
    while let Some(batch) = planner.next_batch(now, true) {
        batches.push(batch);
    }
    batches
}

fn run(
    tagger: &Tagger,
    model: &mut dyn Model,
    batch: &Batch<Item>,
) -> Result<Vec<(usize, Tagged)>, AssembleError> {
    let texts: Vec<&EncodedText> = batch.items.iter().map(|item| &item.text).collect();
    let taggings = tagger.tag(model, &texts)?;
    Ok(batch
        .items
        .iter()
        .zip(taggings)
        .map(|(item, tagging)| (item.index, tagging.map_err(|_| AssembleError::NotFinite)))
        .collect())
}
