//! Models for measuring: one that is lent to a pipeline and comes back, with a note of the time it
//! was busy; and one that answers at once, for what everything but the model costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::model::{Model, ModelError, PassInput, PassOutput};

/// Passes and when each began.
pub(super) type Passes = Vec<(Instant, PassInput)>;

/// A model that outlives the pipeline it is lent to.
#[derive(Clone)]
pub(super) struct Lent {
    model: Arc<Mutex<Box<dyn Model>>>,
    busy_nanoseconds: Arc<AtomicU64>,
    recorded: Arc<Mutex<Option<Passes>>>,
    hidden_size: usize,
}

impl Lent {
    pub(super) fn new(model: Box<dyn Model>) -> Self {
        Self {
            hidden_size: model.hidden_size(),
            model: Arc::new(Mutex::new(model)),
            busy_nanoseconds: Arc::default(),
            recorded: Arc::default(),
        }
    }

    /// Time within passes since the last call.
    pub(super) fn take_busy(&self) -> Duration {
        Duration::from_nanos(self.busy_nanoseconds.swap(0, Ordering::Relaxed))
    }

    /// Keeps every pass from here on.
    pub(super) fn start_recording(&self) {
        *self.recorded.lock() = Some(Vec::new());
    }

    /// The passes since [`Self::start_recording`], which are no longer kept.
    pub(super) fn stop_recording(&self) -> Passes {
        self.recorded.lock().take().unwrap_or_default()
    }
}

impl Model for Lent {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn run(&mut self, input: &PassInput) -> Result<PassOutput, ModelError> {
        if let Some(recorded) = self.recorded.lock().as_mut() {
            recorded.push((Instant::now(), input.clone()));
        }
        let mut model = self.model.lock();
        let started = Instant::now();
        let output = model.run(input);
        let took = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.busy_nanoseconds.fetch_add(took, Ordering::Relaxed);
        output
    }
}

/// Answers at once, with numbers of the right shape that mean nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoModel {
    pub(super) hidden_size: usize,
}

impl Model for NoModel {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn run(&mut self, input: &PassInput) -> Result<PassOutput, ModelError> {
        let scores = input.batch * input.masks * input.label_token_ids.len();
        Ok(PassOutput {
            label_log_probs: (0..scores).map(|at| -1.0 - (at % 7) as f32).collect(),
            sentence_embedding: vec![0.5; input.batch * self.hidden_size],
        })
    }
}
