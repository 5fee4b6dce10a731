//! What all stages share: the built stages, the state between them, the first failure, and threads that end the
//! run when they panic. Knows no stage's work.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::counters::Counters;
use super::future_times::FutureTimes;
use super::infer::repeats::Repeats;
use super::ledger::Ledger;
use super::settings::PipelineSettings;
use super::throttle::Throttle;
use super::write::acceptance::Acceptance;
use super::write::building::Building;
use super::write::outage::Outage;
use crate::batch::BatchSettings;
use crate::decode::{Decoder, TextSettings};
use crate::model::Model;
use crate::score::{Tagger, TaggerError};
use crate::source::{DeadLetterError, DeadLetterSink, Source, SourceError};
use crate::store::point::Provenance;
use crate::store::{Store, StoreError};
use crate::telemetry::{Health, Metrics};

/// Built stages, ready to be wired.
pub struct Stages {
    /// Where records come from.
    pub source: Arc<dyn Source>,
    /// Bytes to documents.
    pub decoder: Decoder,
    /// What the model reads of a document.
    pub text: TextSettings,
    /// Documents to topics and embeddings.
    pub tagger: Tagger,
    /// One model for each inference thread.
    pub models: Vec<Box<dyn Model>>,
    /// What every point tells of where it came from.
    pub provenance: Provenance,
    /// Where points go.
    pub store: Arc<dyn Store>,
    /// Where refused records go.
    pub dead_letters: Arc<dyn DeadLetterSink>,
    /// Where the work is counted.
    pub metrics: Metrics,
}

/// How stages are wired.
#[derive(Debug, Clone)]
pub struct Wiring {
    /// Bounds of the whole.
    pub pipeline: PipelineSettings,
    /// Bounds of batches.
    pub batch: BatchSettings,
    /// Points of one write.
    pub batch_points: usize,
    /// Writes in flight.
    pub write_concurrency: usize,
    /// How long an incomplete write waits for company, counted from the write before.
    pub write_linger: Duration,
    /// How often offsets are committed.
    pub commit_interval: Duration,
    /// How long a revocation waits for what is in flight.
    pub revoke_drain: Duration,
    /// How far a record's time may lie in the future; a later one counts as none.
    pub future_tolerance: Duration,
    /// How fast records may enter; `None` for as fast as they come.
    pub throttle: Option<Arc<Throttle>>,
    /// Told while the store takes no writes; `None` where nobody asks.
    pub health: Option<Health>,
}

/// Why the pipeline stopped by itself; what was committed is durable all the same.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The source cannot go on.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source's thread ended without a word.
    #[error(
        "the source ended without saying why; what was not committed is delivered again at the next start"
    )]
    SourceVanished,
    /// The model fails on every document.
    #[error(
        "{0}; every document fails, so the worker stops; what was in flight is delivered again at the next start"
    )]
    Model(TaggerError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(StoreError),
    /// The dead letters cannot be used.
    #[error(transparent)]
    DeadLetters(DeadLetterError),
    /// A thread could not be started, or ended by a panic.
    #[error("{0}")]
    Thread(String),
    /// The drain's bound has passed with work in flight.
    #[error(
        "{0} records were still in flight when the time to drain had passed; they are delivered again at the next start"
    )]
    NotDrained(usize),
    /// Work was given up because the pipeline stops; never the first error.
    #[error("abandoned")]
    Abandoned,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// A bounded source has delivered everything and all of it is durable.
    Complete,
    /// Asked to stop.
    Stopped,
}

/// What all stages share.
pub(super) struct Context {
    pub(super) source: Arc<dyn Source>,
    pub(super) decoder: Decoder,
    pub(super) text: TextSettings,
    pub(super) tagger: Tagger,
    pub(super) provenance: Provenance,
    pub(super) store: Arc<dyn Store>,
    pub(super) dead_letters: Arc<dyn DeadLetterSink>,
    pub(super) ledger: Ledger,
    pub(super) repeats: Repeats,
    pub(super) counters: Arc<Counters>,
    pub(super) metrics: Metrics,
    pub(super) outage: Outage,
    pub(super) acceptance: Acceptance,
    pub(super) building: Building,
    pub(super) future_tolerance: Duration,
    pub(super) future_times: FutureTimes,
    /// Above zero while batches go out at once instead of lingering.
    pub(super) draining: AtomicUsize,
    /// Work in flight is given up: retry loops end.
    pub(super) abandoned: CancellationToken,
    pub(super) failure: Mutex<Option<PipelineError>>,
    pub(super) wake: Notify,
}

impl Context {
    /// Keeps the first failure and wakes the main task.
    pub(super) fn fail(&self, error: PipelineError) {
        self.failure.lock().get_or_insert(error);
        self.wake.notify_one();
    }

    /// Batches go out at once while the guard lives.
    pub(super) fn drain(&self) -> DrainGuard<'_> {
        self.draining.fetch_add(1, Ordering::AcqRel);
        DrainGuard(self)
    }
}

/// Stops the pipeline when the thread or task that holds it panics, instead of leaving records in
/// flight for ever.
pub(super) struct PanicGuard(pub(super) Arc<Context>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(PipelineError::Thread(
                "a part of the pipeline panicked; this is a defect of the worker, please report it with the log"
                    .to_owned(),
            ));
        }
    }
}

/// Starts a named thread under a [`PanicGuard`].
pub(super) fn spawn(
    context: &Arc<Context>,
    name: String,
    body: impl FnOnce(&Arc<Context>) + Send + 'static,
) -> Result<std::thread::JoinHandle<()>, PipelineError> {
    let guard = PanicGuard(context.clone());
    std::thread::Builder::new()
        .name(name)
        .spawn(move || body(&guard.0))
        .map_err(|error| PipelineError::Thread(format!("no thread could be started: {error}")))
}

pub(super) struct DrainGuard<'a>(&'a Context);

impl Drop for DrainGuard<'_> {
    fn drop(&mut self) {
        self.0.draining.fetch_sub(1, Ordering::AcqRel);
    }
}
