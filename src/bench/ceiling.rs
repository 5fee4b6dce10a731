//! The ceiling: ONNX Runtime alone over the batches of a run, with the sessions and threads of that
//! run. Nothing is decoded, tokenised, scored or written.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use parking_lot::Mutex;

use super::error::BenchError;
use super::lent::Lent;
use super::steady::Progress;
use crate::model::{Model, PassInput};

/// Runs `passes` once through `models`, each on its own thread.
///
/// # Errors
/// When a pass fails.
pub(super) fn run(models: &[Lent], passes: &[PassInput]) -> Result<Progress, BenchError> {
    let next = AtomicUsize::new(0);
    let progress = Mutex::new(Progress::default());
    let work = |mut model: Lent| -> Result<(), BenchError> {
        while let Some(pass) = passes.get(next.fetch_add(1, Ordering::Relaxed)) {
            model.run(pass).map_err(BenchError::failed)?;
            progress.lock().add(Instant::now(), pass.batch);
        }
        Ok(())
    };
    let work = &work;
    let outcomes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = models
            .iter()
            .map(|model| scope.spawn(move || work(model.clone())))
            .collect();
        threads
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect()
    });
    for outcome in outcomes {
        outcome.map_err(|_| BenchError::failed("a thread of the ceiling panicked"))??;
    }
    Ok(progress.into_inner())
}
